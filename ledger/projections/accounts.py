"""The totals of one account: debits, credits and hold of each asset."""

from __future__ import annotations

from decimal import Decimal
from typing import Final

import msgspec

from ledger.amounts import ZERO, plain

_ZEROS: Final = ("0", "0", "0")

Texts = dict[str, tuple[str, str, str]]
"""Asset to debits, credits and hold, as canonical texts; assets in order, rows of zeros left out.
"""

_decode = msgspec.json.Decoder(Texts).decode
_encode = msgspec.json.Encoder().encode


class Row(msgspec.Struct, gc=False):
    """The totals of one asset. Debits and credits only grow; `hold` follows the open orders."""

    debits: Decimal = ZERO
    credits: Decimal = ZERO
    hold: Decimal = ZERO
    texts: tuple[str, str, str] | None = None  # set None by whoever changes a total


class Account:
    """What the ledger owes an account, asset by asset."""

    __slots__ = ("element", "name", "rows")

    def __init__(self, name: str) -> None:
        self.name = name
        self.element = 0  # of the stored entry; 0 where there is none
        self.rows: dict[str, Row] = {}

    @classmethod
    def decode(cls, name: str, value: bytes) -> Account:
        """Return the account from its stored entry."""
        account = cls(name)
        account.rows = {
            asset: Row(Decimal(debits), Decimal(credits_), Decimal(hold))
            for asset, (debits, credits_, hold) in _decode(value).items()
        }
        return account

    def row(self, asset: str) -> Row:
        """Return the totals of an asset, to be changed in place."""
        row = self.rows.get(asset)
        if row is None:
            row = self.rows[asset] = Row()
        else:
            row.texts = None
        return row

    def texts(self) -> Texts:
        """Return the totals in canonical form."""
        result: Texts = {}
        for asset, row in sorted(self.rows.items()):
            texts = row.texts
            if texts is None:
                texts = row.texts = (plain(row.debits), plain(row.credits), plain(row.hold))
            if texts != _ZEROS:
                result[asset] = texts
        return result


def encode_texts(texts: Texts) -> bytes | None:
    """Return the stored entry, or None where every total is zero: then there is no entry."""
    return _encode(texts) if texts else None


def decode_texts(value: bytes) -> Texts:
    """Return the totals of a stored entry."""
    return _decode(value)
