"""What the commands say of one order: its terms, status, fills, hold and flags."""

from __future__ import annotations

from typing import Any, Literal

from ledger.amounts import ZERO, plain
from ledger.flags import order_cases
from ledger.projections.orders import Order
from ledger.projections.partition import Partition

OrderStatus = Literal["rejected", "filled", "cancelled", "unknown", "open"]


def order_status(order: Order) -> OrderStatus:
    """Return an order's status; one that is filled stays so, whatever came after."""
    if order.rejected is not None:
        return "rejected"
    if order.placed is not None and order.is_complete():
        return "filled"
    if order.cancelled is not None:
        return "cancelled"
    return "unknown" if order.placed is None else "open"


def order_row(partition: Partition, order: Order) -> dict[str, Any]:
    """Return an order as `ledger orders --json` prints it.

    Amounts are plain decimal strings; what is not known or does not apply is None. `quantity`,
    `filled` and `remaining` are in base, `reserve`, `used` and `hold` in `hold_asset`. `reason` and
    `closed_at` are those of the rejection or the cancel, `flags` a sorted list.

    Args:
        partition: the one that the order lies in; frozen and settled.
        order: one of its orders.
    """
    placed, closed = order.placed, order.rejected or order.cancelled
    cases = order_cases(order, partition.executions(order))
    terms = (order.term_quantity(), order.term_limit_price(), order.term_reserve())
    quantity, limit_price, reserve = (None if term is None else plain(term) for term in terms)
    remaining = None if placed is None else order.remaining()
    return {
        "order_id": order.order_id,
        "instrument": placed and placed.instrument,
        "side": placed and placed.side,
        "order_type": placed and placed.order_type,
        "status": order_status(order),
        "quantity": quantity,
        "limit_price": limit_price,
        "reserve": reserve,
        "filled": plain(order.filled),
        "remaining": None if remaining is None else plain(remaining),
        "used": plain(max(ZERO, order.used)),
        "hold": plain(order.hold()),
        "hold_asset": order.hold_asset(),
        "placed_at": placed and placed.occurred_at,
        "closed_at": closed and closed.occurred_at,
        "reason": closed and closed.reason,
        "flags": sorted({case.flag for case in cases}),
    }
