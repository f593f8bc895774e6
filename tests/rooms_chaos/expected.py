"""What must be in the rooms: contract, sections 4 and 8, written down naively once more.

Which records count is asked of the naive reference ledger; no code is shared with the real one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from tests.reference import EXACT, Record, Reference, decode
from tests.rooms_chaos.fills import FILLS, Stored


@dataclass(frozen=True)
class Wanted:
    """A message that must be in a room, made by a record of this partition.

    `body` is the JSON without `text`, `words` what the text must have.
    """

    partition: int
    body: dict[str, Any]
    words: tuple[str, ...]

    @property
    def message_id(self) -> str:
        """What the message is known by."""
        return str(self.body["message_id"])


def expected(records: Iterable[Stored], partitions: int) -> dict[str, list[Wanted]]:
    """Return each room's messages, those of one partition in order.

    Args:
        records: of `fills`, those of one partition in order of offset.
        partitions: how many there are.
    """
    reference = Reference(partitions)
    fills: dict[tuple[str, str, str], Record] = {}
    busts: dict[tuple[str, str, str], Record] = {}
    rooms: dict[str, list[Wanted]] = defaultdict(list)
    for number, offset, key, value in records:
        if reference.apply(FILLS, number, offset, key, value) != "applied":
            continue
        record = decode(FILLS, number, offset, key, value, partitions)
        identity = record.text["account"], record.text["order_id"], record.text["fill_id"]
        if record.type == "order_filled":
            fills[identity] = record
            _add(rooms, record, None)
        else:
            busts[identity] = record
        if identity in fills and identity in busts:
            _add(rooms, fills[identity], busts[identity])
    return dict(rooms)


def _add(rooms: dict[str, list[Wanted]], fill: Record, bust: Record | None) -> None:
    public = f"room.{fill.text['instrument']}"
    if fill.text["liquidity"] == "taker":
        kind = "trade" if bust is None else "bust"
        rooms[public].append(_message(kind, "room", fill, bust, _public(fill), {}))
    kind = "fill" if bust is None else "bust"
    reason = {} if bust is None else {"reason": bust.text["reason"]}
    private = f"account.{fill.text['account']}"
    rooms[private].append(_message(kind, "account", fill, bust, _private(fill), reason))


def _message(
    kind: str,
    place: str,
    fill: Record,
    bust: Record | None,
    fields: dict[str, Any],
    reason: dict[str, Any],
) -> Wanted:
    told = bust or fill
    body = {
        "type": kind,
        "message_id": f"{FILLS}:{told.partition}:{told.offset}:{place}",
        "timestamp": told.occurred_at,
        "occurred_at": told.occurred_at,
        **fields,
        **reason,
    }
    if bust is not None:
        body["busts"] = f"{FILLS}:{fill.partition}:{fill.offset}:{place}"
        body["filled_at"] = fill.occurred_at
    return Wanted(told.partition, body, (fields["instrument"], fields["quantity"], fields["price"]))


def _public(fill: Record) -> dict[str, Any]:
    amount = fill.amount
    settled = amount.get("quote_quantity")
    if settled is None:
        settled = EXACT.multiply(amount["price"], amount["quantity"])
    return {
        "instrument": fill.text["instrument"],
        "side": fill.text["side"],
        "price": _plain(amount["price"]),
        "quantity": _plain(amount["quantity"]),
        "quote_quantity": _plain(settled),
        "trade_id": fill.text["trade_id"],
    }


def _private(fill: Record) -> dict[str, Any]:
    names = ("account", "order_id", "fill_id", "fee_asset", "liquidity")
    own = {name: fill.text[name] for name in names}
    return {**_public(fill), **own, "fee": _plain(fill.amount["fee"])}


def _plain(amount: Decimal) -> str:
    text = f"{amount:f}"
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return "0" if text in ("-0", "") else text
