"""What the rooms are told: from an accepted record of `fills` to messages (contract, section 8).

Pure: the same facts make the same messages, byte for byte, whenever and by whichever bridge. Where
a message stands in a partition's order is part of it (`partition` and `offset`), so that a room's
history tells what of a partition has been posted there.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal

import msgspec

from chat_bridge.names import room_of_account, room_of_instrument
from chat_bridge.text import harmless
from ledger import times
from ledger.amounts import canonical, plain
from ledger.events import FILLS
from ledger.journal import notional_of
from ledger.projections.entries import Bust, Execution, Fill

TRADE: Final = "trade"
FILL: Final = "fill"
BUST: Final = "bust"
SAY: Final = "say"

PARTITION_KEY: Final = "partition"
OFFSET_KEY: Final = "offset"
"""Names of the AMQP headers that say where a message stands in its partition's order."""

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True)
class Message:
    """One message of one room.

    Attributes:
        room: the room, which is also the routing key.
        message_id: `fills:PARTITION:OFFSET:room` or `…:account`.
        type: `trade`, `fill` or `bust`.
        timestamp: the venue's time, RFC 3339 as it was stated.
        fields: what the JSON body says besides these.
        partition: of `fills`, whose record it is made of.
        offset: of the record upon which it is posted: its own, or the fill's where a bust came
            before its fill. The messages of a partition are posted in this order.
    """

    room: str
    message_id: str
    type: str
    timestamp: str
    fields: dict[str, Any]
    partition: int
    offset: int

    def body(self) -> bytes:
        """Return the JSON that is published."""
        head = {"type": self.type, "message_id": self.message_id, "timestamp": self.timestamp}
        return _encode({**head, **self.fields})

    def headers(self) -> dict[str, int]:
        """Return where it stands in its partition's order, as AMQP headers."""
        return {PARTITION_KEY: self.partition, OFFSET_KEY: self.offset}

    def instant(self) -> times.Instant:
        """Return the time, exactly; in its order messages of several partitions are posted."""
        return times.instant(self.timestamp)

    def moment(self) -> datetime | None:
        """Return the time in whole seconds, as AMQP has it, or None for one before 1970."""
        seconds = self.instant()[0]
        return datetime.fromtimestamp(seconds, UTC) if seconds >= 0 else None


@dataclass(frozen=True)
class Subject:
    """Which fill messages are about: the partition of its records, and its identity."""

    partition: int
    account: str
    order_id: str
    fill_id: str

    def message_id(self, offset: int, place: Literal["room", "account"]) -> str:
        """Return the id of what the record at `offset` makes in the public or private room."""
        return f"{FILLS}:{self.partition}:{offset}:{place}"


def of_fill(subject: Subject, execution: Execution) -> list[Message]:
    """Return what a fill that was just accepted puts into rooms, its earlier bust included."""
    fill = execution.fill
    assert fill is not None
    messages = [_trade(subject, fill)] if _is_public(fill) else []
    messages.append(_fill(subject, fill))
    if execution.bust is not None:
        messages += _busts(subject, fill, execution.bust)
    return messages


def of_bust(subject: Subject, execution: Execution) -> list[Message]:
    """Return what a bust that was just accepted puts into rooms: nothing before its fill came."""
    assert execution.bust is not None
    if execution.fill is None:
        return []
    return _busts(subject, execution.fill, execution.bust)


def _is_public(fill: Fill) -> bool:
    return fill.liquidity == "taker"


def _public_fields(fill: Fill) -> dict[str, Any]:
    """Return what everybody may know: no account, order or fill id."""
    return {
        "instrument": fill.instrument,
        "side": fill.side,
        "price": canonical(fill.price),
        "quantity": canonical(fill.quantity),
        "quote_quantity": plain(notional_of(fill.price, fill.quantity, fill.quote_quantity)),
        "trade_id": fill.trade_id,
    }


def _private_fields(subject: Subject, fill: Fill) -> dict[str, Any]:
    return {
        **_public_fields(fill),
        "account": subject.account,
        "order_id": subject.order_id,
        "fill_id": subject.fill_id,
        "fee": canonical(fill.fee),
        "fee_asset": fill.fee_asset,
        "liquidity": fill.liquidity,
    }


def _deal(fill: Fill, verb: str) -> str:
    return f"{verb} {canonical(fill.quantity)} @ {canonical(fill.price)}"


def _fee(fill: Fill) -> str:
    fee = canonical(fill.fee)
    if fee == "0":
        return "no fee"
    if fee.startswith("-"):
        return f"rebate {fee[1:]} {fill.fee_asset}"
    return f"fee {fee} {fill.fee_asset}"


def _trade(subject: Subject, fill: Fill) -> Message:
    text = f"{fill.instrument}  {_deal(fill, fill.side)}"
    return Message(
        room=room_of_instrument(fill.instrument),
        message_id=subject.message_id(fill.offset, "room"),
        type=TRADE,
        timestamp=fill.occurred_at,
        fields={"text": text, **_public_fields(fill), "occurred_at": fill.occurred_at},
        partition=subject.partition,
        offset=fill.offset,
    )


def _fill(subject: Subject, fill: Fill) -> Message:
    verb = "bought" if fill.side == "buy" else "sold"
    text = (
        f"{fill.instrument}  {_deal(fill, verb)}, {_fee(fill)} "
        f"({fill.liquidity}, order {subject.order_id})"
    )
    return Message(
        room=room_of_account(subject.account),
        message_id=subject.message_id(fill.offset, "account"),
        type=FILL,
        timestamp=fill.occurred_at,
        fields={
            "text": text,
            **_private_fields(subject, fill),
            "occurred_at": fill.occurred_at,
        },
        partition=subject.partition,
        offset=fill.offset,
    )


def _busts(subject: Subject, fill: Fill, bust: Bust) -> list[Message]:
    """Return the busts, each where its fill was.

    The public one leaves out the reason: it is free text and might name an account.
    """
    when = {"occurred_at": bust.occurred_at, "filled_at": fill.occurred_at}
    offset = max(fill.offset, bust.offset)
    messages = []
    if _is_public(fill):
        text = f"{fill.instrument}  BUSTED: {_deal(fill, fill.side)} (trade {fill.trade_id})"
        fields = {
            "text": text,
            "busts": subject.message_id(fill.offset, "room"),
            **_public_fields(fill),
            **when,
        }
        messages.append(
            Message(
                room=room_of_instrument(fill.instrument),
                message_id=subject.message_id(bust.offset, "room"),
                type=BUST,
                timestamp=bust.occurred_at,
                fields=fields,
                partition=subject.partition,
                offset=offset,
            )
        )
    verb = "bought" if fill.side == "buy" else "sold"
    text = (
        f"{fill.instrument}  BUSTED: {_deal(fill, verb)}, {_fee(fill)} "
        f"(order {subject.order_id}): {harmless(bust.reason)}"
    )
    fields = {
        "text": text,
        "busts": subject.message_id(fill.offset, "account"),
        **_private_fields(subject, fill),
        "reason": bust.reason,
        **when,
    }
    messages.append(
        Message(
            room=room_of_account(subject.account),
            message_id=subject.message_id(bust.offset, "account"),
            type=BUST,
            timestamp=bust.occurred_at,
            fields=fields,
            partition=subject.partition,
            offset=offset,
        )
    )
    return messages
