"""What rooms are called, and how much of its history each keeps.

A room's name is its routing key: `room.<INSTRUMENT>` or `account.<ACCOUNT>`. Its queue has the
same name behind the topic prefix, the exchange likewise; routing keys never have the prefix.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, get_args

from ledger.errors import InputError
from ledger.events import Account, Form, Instrument

EXCHANGE: Final = "chat.rooms"
SAY_EXCHANGE: Final = "chat.say"
"""Where people publish. Not `chat.rooms`, whose topic permissions cannot keep anybody who may
publish there from a room: RabbitMQ 3.10 checks the routing key, but routes by the headers `CC` and
`BCC` as well. To this one only public rooms are bound."""
GROUP: Final = "chat-bridge"
PUBLIC: Final = "room."
PRIVATE: Final = "account."
SAY: Final = "say."

_INSTRUMENT: Form = get_args(Instrument)[1]
_ACCOUNT: Form = get_args(Account)[1]


@dataclass(frozen=True)
class Retention:
    """How much a room keeps; RabbitMQ removes whole segments, oldest first.

    Attributes:
        max_age: in RabbitMQ's form, such as `365D`.
        max_length_bytes: of all segments.
        segment_bytes: size at which a new segment begins.
    """

    max_age: str
    max_length_bytes: int
    segment_bytes: int

    def arguments(self) -> dict[str, str | int]:
        """Return the arguments with which the room's stream queue is declared."""
        return {
            "x-queue-type": "stream",
            "x-max-age": self.max_age,
            "x-max-length-bytes": self.max_length_bytes,
            "x-stream-max-segment-size-bytes": self.segment_bytes,
        }


PUBLIC_RETENTION: Final = Retention("365D", 4 << 30, 64 << 20)
"""About seven million trades, at 617 bytes each as measured."""
PRIVATE_RETENTION: Final = Retention("365D", 256 << 20, 16 << 20)
"""About 340,000 fills, at 789 bytes each as measured."""


def room_of_instrument(instrument: str) -> str:
    """Return the public room of an instrument."""
    return PUBLIC + instrument


def room_of_account(account: str) -> str:
    """Return the private room of an account."""
    return PRIVATE + account


def routing_keys_of(room: str) -> list[str]:
    """Return what is routed into a room: its own name, and what people say where they may."""
    return [room, SAY + room.removeprefix(PUBLIC)] if is_public(room) else [room]


def exchange_of(routing_key: str) -> str:
    """Return the exchange, without prefix, through which a routing key leads into rooms."""
    return SAY_EXCHANGE if routing_key.startswith(SAY) else EXCHANGE


def is_public(room: str) -> bool:
    """Return whether everybody may read a room."""
    return room.startswith(PUBLIC)


def retention_of(room: str) -> Retention:
    """Return how much a room keeps."""
    return PUBLIC_RETENTION if is_public(room) else PRIVATE_RETENTION


def is_room(name: str) -> bool:
    """Return whether a name (without prefix) is one of a room."""
    try:
        return parse_room(name) == name
    except InputError:
        return False


def parse_room(text: str) -> str:
    """Return the room that a person named: `BTC-USD`, `room.BTC-USD` or `account.ACCOUNT`.

    Raises:
        InputError: no room can have this name.
    """
    try:
        if text.startswith(PRIVATE):
            return PRIVATE + _ACCOUNT.verify(text.removeprefix(PRIVATE))
        return PUBLIC + _INSTRUMENT.verify(text.removeprefix(PUBLIC))
    except ValueError as error:
        raise InputError(
            f"'{text}' is no room's name: use INSTRUMENT or room.INSTRUMENT (such as BTC-USD), "
            "or account.ACCOUNT. 'chat-bridge rooms' lists them."
        ) from error


def parse_account(text: str) -> str:
    """Return the account that a person named.

    Raises:
        InputError: no account can have this name.
    """
    try:
        return _ACCOUNT.verify(text)
    except ValueError as error:
        raise InputError(f"'{text}' is no account's name: {error}.") from error
