"""One order: the facts known of it, in whatever order they came, and the hold that they make.

Everything is a function of the set of facts, so an early fill or cancel needs no special case. An
order holds its first `INLINE` fills and amendments itself; later ones are entries of their own, so
that an order with a million fills costs no more per fill than one with ten.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Final

import msgspec

from ledger.amounts import ZERO, add, multiply, plain, subtract
from ledger.events import split_instrument
from ledger.journal import notional_of
from ledger.projections.entries import Amended, Closed, Execution, Fill, Placed, order_key

INLINE: Final = 16
"""How many fills, and how many amendments, an order holds itself. Part of the state's form."""

Term = tuple[int, str]
"""The highest revision that names a term, and what it says."""


class _Stored(msgspec.Struct, array_like=True):
    placed: Placed | None
    cancelled: Closed | None
    rejected: Closed | None
    quantity: Term | None
    limit_price: Term | None
    reserve: Term | None
    filled: str
    used: str
    fills: dict[str, Execution]
    amendments: dict[int, Amended]
    more_fills: int
    more_amendments: int


_decode = msgspec.json.Decoder(_Stored).decode
_encode = msgspec.json.Encoder().encode


class Order(msgspec.Struct, gc=False):
    """What is known of an order.

    `filled` is the base quantity of the fills that count, `used` what they took of the hold asset
    (before it is cut off at 0): those not busted, of the order's own instrument and side. `held` is
    what the order adds to its account's hold now, `element` belongs to its stored entry (0 where
    there is none).
    """

    account: str
    order_id: str
    key: str
    element: int = 0
    held: Decimal = ZERO
    placed: Placed | None = None
    cancelled: Closed | None = None
    rejected: Closed | None = None
    quantity: Term | None = None
    limit_price: Term | None = None
    reserve: Term | None = None
    filled: Decimal = ZERO
    used: Decimal = ZERO
    fills: dict[str, Execution] = {}
    amendments: dict[int, Amended] = {}
    more_fills: int = 0
    more_amendments: int = 0

    @classmethod
    def new(cls, account: str, order_id: str) -> Order:
        """Return an order of which nothing is known."""
        return cls(account, order_id, order_key(account, order_id))

    @classmethod
    def decode(cls, account: str, order_id: str, value: bytes) -> Order:
        """Return the order from its stored entry."""
        stored = _decode(value)
        order = cls.new(account, order_id)
        order.placed = stored.placed
        order.cancelled = stored.cancelled
        order.rejected = stored.rejected
        order.quantity = stored.quantity
        order.limit_price = stored.limit_price
        order.reserve = stored.reserve
        order.filled = Decimal(stored.filled)
        order.used = Decimal(stored.used)
        order.fills = stored.fills
        order.amendments = stored.amendments
        order.more_fills = stored.more_fills
        order.more_amendments = stored.more_amendments
        order.held = order.hold()
        return order

    def encode(self) -> bytes:
        """Return the stored entry."""
        return _encode(
            (
                self.placed,
                self.cancelled,
                self.rejected,
                self.quantity,
                self.limit_price,
                self.reserve,
                plain(self.filled),
                plain(self.used),
                self.fills,
                self.amendments,
                self.more_fills,
                self.more_amendments,
            )
        )

    # -- terms

    def term_quantity(self) -> Decimal | None:
        """Return the base quantity ordered, or None where the order has only a reserve."""
        if self.quantity is not None:
            return Decimal(self.quantity[1])
        if self.placed is not None and self.placed.quantity is not None:
            return Decimal(self.placed.quantity)
        return None

    def term_limit_price(self) -> Decimal | None:
        """Return the limit price in quote per base, or None."""
        if self.limit_price is not None:
            return Decimal(self.limit_price[1])
        if self.placed is not None and self.placed.limit_price is not None:
            return Decimal(self.placed.limit_price)
        return None

    def term_reserve(self) -> Decimal | None:
        """Return the most that the order may use of its hold asset, or None."""
        if self.reserve is not None:
            return Decimal(self.reserve[1])
        if self.placed is not None and self.placed.reserve is not None:
            return Decimal(self.placed.reserve)
        return None

    def amend(self, revision: int, amended: Amended) -> None:
        """Let an amendment's terms count where no higher revision names them."""
        if amended.quantity is not None and _newer(revision, self.quantity):
            self.quantity = (revision, amended.quantity)
        if amended.limit_price is not None and _newer(revision, self.limit_price):
            self.limit_price = (revision, amended.limit_price)
        if amended.reserve is not None and _newer(revision, self.reserve):
            self.reserve = (revision, amended.reserve)

    # -- fills

    def counts(self, fill: Fill) -> bool:
        """Return whether a fill is of this order's own instrument and side."""
        placed = self.placed
        return (
            placed is not None and fill.instrument == placed.instrument and fill.side == placed.side
        )

    def count(self, fill: Fill) -> None:
        """Add a fill that counts to `filled` and `used`."""
        self.filled = add(self.filled, Decimal(fill.quantity))
        self.used = add(self.used, taken(fill))

    def discount(self, fill: Fill) -> None:
        """Take a busted fill out of `filled` and `used` again."""
        self.filled = subtract(self.filled, Decimal(fill.quantity))
        self.used = subtract(self.used, taken(fill))

    # -- what follows from them

    def is_complete(self) -> bool:
        """Return whether the whole quantity is filled."""
        quantity = self.term_quantity()
        return quantity is not None and self.filled >= quantity

    def is_open(self) -> bool:
        """Return whether the order is placed and not closed (contract, section 3)."""
        return (
            self.placed is not None
            and self.cancelled is None
            and self.rejected is None
            and not self.is_complete()
        )

    def hold_asset(self) -> str | None:
        """Return the asset that this order holds: quote for buys, base for sells."""
        if self.placed is None:
            return None
        base, quote = split_instrument(self.placed.instrument)
        return quote if self.placed.side == "buy" else base

    def remaining(self) -> Decimal | None:
        """Return the base quantity not yet filled, never below 0; None without a quantity."""
        quantity = self.term_quantity()
        return None if quantity is None else max(ZERO, subtract(quantity, self.filled))

    def hold(self) -> Decimal:
        """Return what the order holds of its hold asset now; 0 when it is not open."""
        placed = self.placed
        if placed is None or not self.is_open():
            return ZERO
        reserve = self.term_reserve()
        if reserve is not None:
            return max(ZERO, subtract(reserve, max(ZERO, self.used)))
        remaining = self.remaining()
        if remaining is None:
            return ZERO
        if placed.side == "sell":
            return remaining
        limit_price = self.term_limit_price()
        if placed.order_type == "limit" and limit_price is not None:
            return multiply(remaining, limit_price)
        return ZERO


def _newer(revision: int, term: Term | None) -> bool:
    return term is None or revision > term[0]


def taken(fill: Fill) -> Decimal:
    """Return what a fill took of its order's hold asset, a fee in that asset included."""
    base, quote = split_instrument(fill.instrument)
    if fill.side == "buy":
        asset, amount = quote, notional_of(fill.price, fill.quantity, fill.quote_quantity)
    else:
        asset, amount = base, Decimal(fill.quantity)
    return add(amount, Decimal(fill.fee)) if fill.fee_asset == asset else amount
