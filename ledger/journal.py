"""Journal entries: the debits and credits that one event makes (contract, section 3).

The posting rules are the fold's (`fold/src/journal.rs`). A journal entry is a list of pairs, each a
debit of one account and an equal credit of another in one asset. So an entry cannot be unbalanced.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Final

import msgspec
from msgspec import UNSET, UnsetType

from ledger import _fold
from ledger.projections.entries import Fill, Transfer

CLEARING: Final = "@clearing"
FEES: Final = "@fees"
EXTERNAL: Final = "@external"
ADJUSTMENTS: Final = "@adjustments"
SYSTEM_ACCOUNTS: Final = (CLEARING, FEES, EXTERNAL, ADJUSTMENTS)


Pair = tuple[str, str, str, Decimal]
"""A debit posting and the credit posting that closes it: account debited, account credited, asset,
amount (at least 0)."""

JournalEntry = list[Pair]

_encode = msgspec.json.Encoder().encode


def is_system(account: str) -> bool:
    """Return whether an account is one of the four that close every entry."""
    return account.startswith("@")


def notional_of(price: str, quantity: str, quote_quantity: str | UnsetType | None) -> Decimal:
    """Return what a fill moves in quote: what the venue settled, else price x quantity."""
    settled = None if quote_quantity is UNSET else quote_quantity
    return Decimal(_fold.notional(price, quantity, settled))


def fill_entry(account: str, fill: Fill) -> JournalEntry:
    """Return the entry of one side of a trade."""
    return _exact(_fold.fill_entry(account, _encode(fill)))


def transfer_entry(account: str, transfer: Transfer) -> JournalEntry:
    """Return the entry of a deposit, a withdrawal or an adjustment."""
    kind, asset, amount, fee = transfer.type, transfer.asset, transfer.amount, transfer.fee
    return _exact(_fold.transfer_entry(account, kind, asset, amount, fee))


def reversed_entry(entry: JournalEntry) -> JournalEntry:
    """Return the entry with debit and credit exchanged: what a bust posts."""
    return [(credit, debit, asset, amount) for debit, credit, asset, amount in entry]


def _exact(postings: list[tuple[str, str, str, str]]) -> JournalEntry:
    return [(debit, credit, asset, Decimal(amount)) for debit, credit, asset, amount in postings]
