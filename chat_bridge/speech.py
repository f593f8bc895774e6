"""Talking: what somebody says, published into the stream of a public room."""

from __future__ import annotations

import fcntl
import time
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import quote

import aio_pika
import msgspec
from aio_pika import DeliveryMode
from aio_pika.exceptions import (
    AuthenticationError,
    ChannelNotFoundEntity,
    DeliveryError,
    ProbableAuthenticationError,
    PublishError,
)
from aiormq.exceptions import ChannelAccessRefused

from chat_bridge.access import stored_password, url_of
from chat_bridge.amqp import connect, lost_connections, user_of
from chat_bridge.errors import RoomError
from chat_bridge.messages import SAY as SAY_TYPE
from chat_bridge.names import PUBLIC, SAY, SAY_EXCHANGE, is_public, parse_account, parse_room
from chat_bridge.text import harmless, is_blank
from ledger.errors import ConfigurationError, InputError, UnreachableError
from ledger.settings import Settings

MOST_CHARACTERS: Final = 1_000
"""Of one message; in UTF-8 these are 4,000 bytes at most."""
AT_ONCE: Final = 5
"""So many messages somebody may send one right after the other."""
PAUSE_S: Final = 1.0
"""After them, one in so many seconds."""
_CONFIRM_TIMEOUT_S: Final = 30.0


@dataclass(frozen=True)
class Saying:
    """What somebody says in a public room.

    Attributes:
        room: the public room.
        speaker: the user in RabbitMQ who says it, who is named like the account.
        text: one line, without anything that a terminal would obey.
        moment: when it is said.
        message_id: `say:` and a UUID, so never that of a message that the bridge posts.
    """

    room: str
    speaker: str
    text: str
    moment: datetime
    message_id: str

    def document(self) -> dict[str, Any]:
        """Return the JSON that is published."""
        return {
            "type": SAY_TYPE,
            "message_id": self.message_id,
            "timestamp": self.moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "text": self.text,
            "from": self.speaker,
            "instrument": self.room.removeprefix(PUBLIC),
        }


def saying(room: str, text: str, speaker: str) -> Saying:
    """Return what somebody says now.

    Raises:
        InputError: nobody talks in that room, or the text is empty or too long.
    """
    name = parse_room(room)
    if not is_public(name):
        raise InputError(
            f"'{name}' is private: the bridge alone posts there. People talk in public rooms, "
            "such as BTC-USD."
        )
    if is_blank(text):
        raise InputError("There is nothing to say: the text is empty.")
    shown = harmless(" ".join(text.split()))
    if len(shown) > MOST_CHARACTERS:
        raise InputError(
            f"The text is too long: {len(shown):,} characters, and {MOST_CHARACTERS:,} is the most."
        )
    return Saying(name, speaker, shown, datetime.now(UTC), f"{SAY_TYPE}:{uuid.uuid4()}")


def url_of_speaker(settings: Settings, amqp: str, speaker: str) -> str:
    """Return the AMQP URL with which somebody connects: that of the settings, or a granted one.

    Raises:
        InputError: the user of `amqp` is another one, and no account can have this name.
        ConfigurationError: likewise, and the account was not granted access on this machine.
    """
    if speaker == user_of(amqp):
        return amqp
    password = stored_password(settings, parse_account(speaker))
    if password is None:
        raise ConfigurationError(
            f"There is no password of '{speaker}' on this machine: run 'chat-bridge grant "
            f"{speaker}' here, or set LEDGER_AMQP to the URL that it printed elsewhere."
        )
    return url_of(amqp, speaker, password)


def keep_pace(settings: Settings, speaker: str) -> None:
    """Count one more message of somebody on this machine.

    The file holds when those said so far will have been paid for, at one for each pause: a leaky
    bucket in one number.

    Raises:
        InputError: there were too many just now; it says when the next may be sent.
    """
    path = settings.state_dir / settings.topic("chat") / f"{quote(speaker, safe='')}.pace"
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with path.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        now = time.time()
        # A clock that was put back makes nobody wait for more than the full bucket.
        paid_for = min(max(_number(file.read()), now), now + AT_ONCE * PAUSE_S) + PAUSE_S
        if (early_s := paid_for - AT_ONCE * PAUSE_S - now) > 0:
            raise InputError(
                f"'{speaker}' says too much at once: the next message may be sent in "
                f"{early_s:.1f} s."
            )
        file.truncate(0)
        file.write(f"{paid_for}")


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:  # a new file, or a damaged one
        return 0.0


async def send(settings: Settings, url: str, said: Saying) -> None:
    """Publish what somebody says; return when RabbitMQ has confirmed that the room has it.

    Args:
        settings: whose prefix is before the exchange's name.
        url: RabbitMQ's URL, of the speaker.
        said: what is said.

    Raises:
        InputError: there is no such room yet.
        ConfigurationError: RabbitMQ does not take the password, or does not let the user talk.
        RoomError: RabbitMQ refused the message.
        UnreachableError: RabbitMQ does not answer.
        ConnectionLost: the connection broke; whether the message was taken is not known.
    """
    try:
        connection = await connect(url, settings.topic("chat-say"))
    except UnreachableError as error:
        if isinstance(error.__cause__, AuthenticationError | ProbableAuthenticationError):
            raise ConfigurationError(
                f"RabbitMQ does not take the password of '{said.speaker}' any more: 'chat-bridge "
                f"grant {said.speaker}' gives a new one."
            ) from error
        raise
    message = aio_pika.Message(
        msgspec.json.encode(said.document()),
        content_type="application/json",
        content_encoding="utf-8",
        delivery_mode=DeliveryMode.PERSISTENT,
        message_id=said.message_id,
        timestamp=said.moment,
        type=SAY_TYPE,
        user_id=said.speaker,
    )
    no_room = InputError(
        f"There is no room '{said.room}' yet: RabbitMQ returned the message. A room begins with "
        "its first fill."
    )
    with lost_connections():
        async with connection:
            channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
            exchange = await channel.get_exchange(settings.topic(SAY_EXCHANGE), ensure=False)
            try:
                await exchange.publish(
                    message,
                    routing_key=SAY + said.room.removeprefix(PUBLIC),
                    mandatory=True,
                    timeout=_CONFIRM_TIMEOUT_S,
                )
            except (PublishError, ChannelNotFoundEntity) as error:
                raise no_room from error
            except ChannelAccessRefused as error:
                raise ConfigurationError(
                    f"RabbitMQ does not let '{said.speaker}' talk in these rooms: 'chat-bridge "
                    f"grant {said.speaker}' gives access."
                ) from error
            except DeliveryError as error:
                raise RoomError(
                    said.room, "RabbitMQ refused the message (nack); say it again."
                ) from error
