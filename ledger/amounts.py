"""Exact decimal arithmetic: nothing in the ledger is ever rounded.

Amounts enter as text of at most 20 integer and 18 fraction digits (contract, section 2). A product
of two has at most 76 digits; `EXACT` leaves room for sums of 10^100 of them, and an operation that
would have to round raises `decimal.Inexact` instead.
"""

from __future__ import annotations

from decimal import Context, Decimal, DivisionByZero, Inexact, InvalidOperation, Overflow

EXACT = Context(prec=200, traps=[Inexact, InvalidOperation, DivisionByZero, Overflow])
ZERO = Decimal(0)

# A context of our own, not the thread's: the result does not depend on who calls. Mind that the
# operators, unary minus included, use the thread's: write `subtract`, or `value.copy_negate()`.
add = EXACT.add
subtract = EXACT.subtract
multiply = EXACT.multiply


def plain(value: Decimal) -> str:
    """Return `value` as its one canonical text: no exponent, no trailing zeros, no `-0`."""
    text = str(value)
    if "E" in text:
        text = format(value, "f")
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def canonical(text: str) -> str:
    """Return the canonical form of an amount's text, so that `1`, `1.0` and `1.00` are equal."""
    return plain(Decimal(text))
