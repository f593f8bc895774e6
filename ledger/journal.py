"""The posting rules: which debits and credits one event makes (contract, section 3).

A journal entry is a list of pairs, each a debit of one account and an equal credit of another in
one asset. So an entry cannot be unbalanced.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Final

from msgspec import UNSET, UnsetType

from ledger.amounts import ZERO, multiply
from ledger.events import Adjusted, Deposited, TransferEvent, Withdrawn, split_instrument

CLEARING: Final = "@clearing"
FEES: Final = "@fees"
EXTERNAL: Final = "@external"
ADJUSTMENTS: Final = "@adjustments"
SYSTEM_ACCOUNTS: Final = (CLEARING, FEES, EXTERNAL, ADJUSTMENTS)


Pair = tuple[str, str, str, Decimal]
"""A debit posting and the credit posting that closes it: account debited, account credited, asset,
amount (at least 0)."""

JournalEntry = list[Pair]


def is_system(account: str) -> bool:
    """Return whether an account is one of the four that close every entry."""
    return account.startswith("@")


def notional_of(price: str, quantity: str, quote_quantity: str | UnsetType | None) -> Decimal:
    """Return what a fill moves in quote: what the venue settled, else price x quantity."""
    if quote_quantity is None or quote_quantity is UNSET:
        return multiply(Decimal(price), Decimal(quantity))
    return Decimal(quote_quantity)


def fill_entry(
    account: str,
    instrument: str,
    side: str,
    quantity: Decimal,
    notional: Decimal,
    fee: Decimal,
    fee_asset: str,
) -> JournalEntry:
    """Return the entry of one side of a trade. `quantity` is in base, `notional` in quote."""
    base, quote = split_instrument(instrument)
    if side == "buy":
        entry = [
            (account, CLEARING, quote, notional),
            (CLEARING, account, base, quantity),
        ]
    else:
        entry = [
            (CLEARING, account, quote, notional),
            (account, CLEARING, base, quantity),
        ]
    if fee > 0:
        entry.append((account, FEES, fee_asset, fee))
    elif fee < 0:
        entry.append((FEES, account, fee_asset, fee.copy_negate()))
    return entry


def transfer_entry(event: TransferEvent) -> JournalEntry:
    """Return the entry of a deposit, a withdrawal or an adjustment."""
    account, asset, amount = event.account, event.asset, Decimal(event.amount)
    if type(event) is Deposited:
        return [(EXTERNAL, account, asset, amount)]
    if type(event) is Withdrawn:
        entry = [(account, EXTERNAL, asset, amount)]
        fee = ZERO if event.fee is UNSET else Decimal(event.fee)
        if fee > 0:
            entry.append((account, FEES, asset, fee))
        return entry
    assert type(event) is Adjusted
    if amount > 0:
        return [(ADJUSTMENTS, account, asset, amount)]
    return [(account, ADJUSTMENTS, asset, amount.copy_negate())]


def reversed_entry(entry: JournalEntry) -> JournalEntry:
    """Return the entry with debit and credit exchanged: what a bust posts."""
    return [(credit, debit, asset, amount) for debit, credit, asset, amount in entry]
