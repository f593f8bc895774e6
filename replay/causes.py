"""Why an account's totals changed between two positions: the entries and orders behind it.

State keeps every fact with the offset of its record, so what the replayed records did is found in
the two states, and needs no journal of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from ledger.amounts import ZERO, plain
from ledger.events import FILLS, ORDERS
from ledger.projections.entries import Fact
from ledger.projections.orders import Order
from ledger.projections.partition import Partition
from ledger.statement import Entry, statement
from replay.results import PartitionReplay


@dataclass(frozen=True)
class OrderEvent:
    """An event of an order, and where its record is."""

    type: str
    topic: str
    partition: int
    fact: Fact

    def as_json(self) -> dict[str, Any]:
        """Return the event as `--json` prints it."""
        return {
            "type": self.type,
            "topic": self.topic,
            "partition": self.partition,
            "offset": self.fact.offset,
            "occurred_at": self.fact.occurred_at,
        }


@dataclass(frozen=True)
class OrderChange:
    """An order that replayed records are about, and what it held before and after them.

    Attributes:
        asset: what it holds; None where it was never placed, and so holds nothing.
        events: of the replayed records, in order of topic and offset.
    """

    order_id: str
    asset: str | None
    before: Decimal
    after: Decimal
    events: list[OrderEvent]

    def as_json(self) -> dict[str, Any]:
        """Return the change as `--json` prints it."""
        return {
            "order_id": self.order_id,
            "hold_before": plain(self.before),
            "hold_after": plain(self.after),
            "events": [event.as_json() for event in self.events],
        }


def entries_of_span(parts: Iterable[PartitionReplay], account: str) -> list[Entry]:
    """Return the journal entries that replayed records posted to an account, as a statement."""
    parts = list(parts)
    starts = {part.partition: part.start for part in parts}
    return [
        entry
        for entry in statement((part.after for part in parts), account)
        if entry.offset >= starts[entry.partition][entry.topic]
    ]


def orders_of_span(part: PartitionReplay, account: str) -> Iterator[OrderChange]:
    """Yield the orders of an account that replayed records are about, in order of their ids."""
    held = {order.order_id: order.hold() for order in part.before.orders(account)}
    for order in part.after.orders(account):
        events = [
            event
            for event in _events(part.after, order)
            if event.fact.offset >= part.start[event.topic]
        ]
        if events:
            yield OrderChange(
                order.order_id,
                order.hold_asset(),
                held.get(order.order_id, ZERO),
                order.hold(),
                sorted(events, key=lambda event: (event.topic == FILLS, event.fact.offset)),
            )


def _events(partition: Partition, order: Order) -> Iterator[OrderEvent]:
    facts: list[tuple[str, str, Fact | None]] = [
        ("order_placed", ORDERS, order.placed),
        ("order_cancelled", ORDERS, order.cancelled),
        ("order_rejected", ORDERS, order.rejected),
        *(("order_amended", ORDERS, fact) for _, fact in partition.amendments(order)),
    ]
    for _, execution in partition.executions(order):
        facts.append(("order_filled", FILLS, execution.fill))
        facts.append(("fill_busted", FILLS, execution.bust))
    for name, topic, fact in facts:
        if fact is not None:
            yield OrderEvent(name, topic, partition.number, fact)
