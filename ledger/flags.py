"""Flags: what looks wrong in a state but is posted all the same (contract, section 3).

They are computed from state at a watermark, never recorded on arrival, so two states with equal
digests have equal flags. A busted fill is undone, and nothing is wrong with it any more.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final, Literal, get_args

from ledger import times
from ledger.amounts import subtract
from ledger.journal import is_system
from ledger.projections.entries import Execution
from ledger.projections.orders import Order
from ledger.projections.partition import Partition

Flag = Literal[
    "order_unknown",
    "overfilled",
    "order_mismatch",
    "fill_after_cancel",
    "overdrawn",
    "bust_without_fill",
    "one_sided_trade",
]
FLAGS: Final[tuple[Flag, ...]] = get_args(Flag)

ID_NAMES: Final[dict[Flag, tuple[str, ...]]] = {
    "order_unknown": ("account", "order_id", "fill_id"),
    "overfilled": ("account", "order_id"),
    "order_mismatch": ("account", "order_id", "fill_id"),
    "fill_after_cancel": ("account", "order_id", "fill_id"),
    "overdrawn": ("account", "asset"),
    "bust_without_fill": ("account", "order_id", "fill_id"),
    "one_sided_trade": ("instrument", "trade_id"),
}
"""What the texts of a case are, for each flag."""

EXAMPLES: Final = 5
"""How many cases of a flag are kept; all are counted."""

_BOUGHT: Final = 1
_SOLD: Final = 2


@dataclass(frozen=True)
class Case:
    """One thing that is flagged; `ids` are named by `ID_NAMES`."""

    flag: Flag
    ids: tuple[str, ...]


@dataclass
class Tally:
    """The cases of one flag: how many, and the first of them."""

    count: int = 0
    examples: list[tuple[str, ...]] = field(default_factory=list)

    def as_json(self, flag: Flag) -> dict[str, Any]:
        """Return the tally as `ledger check` prints it."""
        names = ID_NAMES[flag]
        return {
            "count": self.count,
            "examples": [dict(zip(names, ids, strict=True)) for ids in self.examples],
        }


def tally(cases: Iterable[Case], examples: int = EXAMPLES) -> dict[Flag, Tally]:
    """Return how many cases each flag has; every flag is there."""
    result: dict[Flag, Tally] = {flag: Tally() for flag in FLAGS}
    for case in cases:
        found = result[case.flag]
        found.count += 1
        if len(found.examples) < examples:
            found.examples.append(case.ids)
    return result


def order_cases(order: Order, executions: Iterable[tuple[str, Execution]]) -> Iterator[Case]:
    """Yield what is flagged of one order.

    Args:
        order: all that is known of it.
        executions: all of its fills and busts by their fill id.
    """
    where = (order.account, order.order_id)
    cancelled = None if order.cancelled is None else times.instant(order.cancelled.occurred_at)
    for fill_id, execution in executions:
        fill = execution.fill
        if fill is None:
            yield Case("bust_without_fill", (*where, fill_id))
            continue
        if execution.bust is not None:
            continue
        if order.placed is None:
            yield Case("order_unknown", (*where, fill_id))
        elif not order.counts(fill):
            yield Case("order_mismatch", (*where, fill_id))
        if cancelled is not None and times.instant(fill.occurred_at) > cancelled:
            yield Case("fill_after_cancel", (*where, fill_id))
    quantity = order.term_quantity()
    if order.placed is not None and quantity is not None and order.filled > quantity:
        yield Case("overfilled", where)


def all_cases(partitions: Iterable[Partition]) -> Iterator[Case]:
    """Yield every case in the given partitions, which must be frozen and settled.

    `one_sided_trade` needs all partitions of the ledger: the two sides of a trade may lie in two.
    """
    sides: dict[tuple[str, str], int] = {}
    for partition in partitions:
        for order in partition.orders():
            executions = list(partition.executions(order))
            yield from order_cases(order, executions)
            for _, execution in executions:
                fill = execution.fill
                if fill is not None and execution.bust is None:
                    trade = (fill.instrument, fill.trade_id)
                    side = _BOUGHT if fill.side == "buy" else _SOLD
                    sides[trade] = sides.get(trade, 0) | side
        for account, texts in partition.balances():
            if is_system(account):
                continue
            for asset, (debits, credits_, _) in texts.items():
                if subtract(Decimal(credits_), Decimal(debits)) < 0:
                    yield Case("overdrawn", (account, asset))
    for trade in sorted(trade for trade, present in sides.items() if present != _BOUGHT | _SOLD):
        yield Case("one_sided_trade", trade)
