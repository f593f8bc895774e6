"""The totals of one account: debits, credits and hold of each asset."""

from __future__ import annotations

from decimal import Decimal
from typing import Final

import msgspec

from ledger.amounts import ZERO, plain

DEBITS: Final = 0
CREDITS: Final = 1
HOLD: Final = 2

Texts = dict[str, tuple[str, str, str]]
"""Asset to debits, credits and hold, as canonical texts; assets in order, rows of zeros left out.
"""

_decode = msgspec.json.Decoder(Texts).decode
_encode = msgspec.json.Encoder().encode


class Account:
    """Running totals that only grow (debits, credits), and what open orders hold."""

    __slots__ = ("element", "name", "rows")

    def __init__(self, name: str) -> None:
        self.name = name
        self.element = 0  # of the stored entry; 0 where there is none
        self.rows: dict[str, list[Decimal]] = {}

    @classmethod
    def decode(cls, name: str, value: bytes) -> Account:
        """Return the account from its stored entry."""
        account = cls(name)
        account.rows = {
            asset: [Decimal(text) for text in texts] for asset, texts in _decode(value).items()
        }
        return account

    def row(self, asset: str) -> list[Decimal]:
        """Return the totals of an asset, to be changed in place."""
        row = self.rows.get(asset)
        if row is None:
            row = self.rows[asset] = [ZERO, ZERO, ZERO]
        return row

    def texts(self) -> Texts:
        """Return the totals in canonical form."""
        return {
            asset: (plain(row[DEBITS]), plain(row[CREDITS]), plain(row[HOLD]))
            for asset, row in sorted(self.rows.items())
            if row[DEBITS] or row[CREDITS] or row[HOLD]
        }


def encode_texts(texts: Texts) -> bytes | None:
    """Return the stored entry, or None where every total is zero: then there is no entry."""
    return _encode(texts) if texts else None


def decode_texts(value: bytes) -> Texts:
    """Return the totals of a stored entry."""
    return _decode(value)
