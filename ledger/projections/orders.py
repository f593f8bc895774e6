"""One order, as whoever reads a state sees it: the facts known of it, and what follows from them.

Everything is a function of the set of facts, in whatever order they came. An order holds its first
`INLINE` fills and amendments itself; later ones are entries of their own, so that an order with a
million fills costs no more per fill than one with ten.
"""

from __future__ import annotations

from decimal import Decimal
from functools import cached_property

import msgspec

from ledger import _fold
from ledger.events import split_instrument
from ledger.projections.entries import Amended, Closed, Execution, Fill, Placed

INLINE = _fold.INLINE
"""How many fills, and how many amendments, an order holds itself. Part of the state's form."""

Term = tuple[int, str]
"""The highest revision that names a term, and what it says."""


class _Stored(msgspec.Struct, array_like=True):
    # Parts at the end that have their defaults are left out.
    fills: dict[str, Execution]
    placed: Placed | None = None
    filled: str = "0"
    used: str = "0"
    cancelled: Closed | None = None
    rejected: Closed | None = None
    quantity: Term | None = None
    limit_price: Term | None = None
    reserve: Term | None = None
    amendments: dict[int, Amended] = {}
    more_fills: int = 0
    more_amendments: int = 0


_decode = msgspec.json.Decoder(_Stored).decode


class Order:
    """What is known of an order, from its stored entry.

    Attributes:
        filled: the base quantity of the fills that count: those not busted, of the order's own
            instrument and side.
        used: what they took of the hold asset, before it is cut off at 0.
        more_fills: how many fills are entries of their own.
        more_amendments: how many amendments are.
    """

    def __init__(self, account: str, order_id: str, value: bytes) -> None:
        """Read an order's stored entry.

        Raises:
            msgspec.DecodeError: it is none.
            ArithmeticError: an amount in it is none.
        """
        stored = _decode(value)
        self._value = value
        self.account = account
        self.order_id = order_id
        self.placed = stored.placed
        self.cancelled = stored.cancelled
        self.rejected = stored.rejected
        self.filled = Decimal(stored.filled)
        self.used = Decimal(stored.used)
        self.fills = stored.fills
        self.amendments = stored.amendments
        self.more_fills = stored.more_fills
        self.more_amendments = stored.more_amendments

    @cached_property
    def _terms(self) -> _fold.Terms:
        return _fold.order_terms(self._value)

    def term_quantity(self) -> Decimal | None:
        """Return the base quantity ordered, or None where the order has only a reserve."""
        return _decimal(self._terms[2][0])

    def term_limit_price(self) -> Decimal | None:
        """Return the limit price in quote per base, or None."""
        return _decimal(self._terms[2][1])

    def term_reserve(self) -> Decimal | None:
        """Return the most that the order may use of its hold asset, or None."""
        return _decimal(self._terms[2][2])

    def counts(self, fill: Fill) -> bool:
        """Return whether a fill is of this order's own instrument and side."""
        placed = self.placed
        return (
            placed is not None and fill.instrument == placed.instrument and fill.side == placed.side
        )

    def is_open(self) -> bool:
        """Return whether the order is placed and not closed (contract, section 3)."""
        return self._terms[0]

    def is_complete(self) -> bool:
        """Return whether the whole quantity is filled."""
        return self._terms[1]

    def hold_asset(self) -> str | None:
        """Return the asset that this order holds: quote for buys, base for sells."""
        if self.placed is None:
            return None
        base, quote = split_instrument(self.placed.instrument)
        return quote if self.placed.side == "buy" else base

    def remaining(self) -> Decimal | None:
        """Return the base quantity not yet filled, never below 0; None without a quantity."""
        return _decimal(self._terms[3])

    def hold(self) -> Decimal:
        """Return what the order holds of its hold asset now; 0 when it is not open."""
        return Decimal(self._terms[4])


def _decimal(text: str | None) -> Decimal | None:
    return None if text is None else Decimal(text)
