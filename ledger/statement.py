"""Statements: the journal entries of an account, found again in the state that they made.

State keeps every fact that posted something, with the offset of its record, so a statement needs
no journal of its own and cannot disagree with the balances.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from ledger import times
from ledger.amounts import ZERO, add, plain, subtract
from ledger.events import FILLS, ORDERS, TRANSFERS
from ledger.journal import JournalEntry, fill_entry, is_system, reversed_entry, transfer_entry
from ledger.projections.entries import Bust, Fill, Transfer
from ledger.projections.partition import Partition

_TOPIC_ORDER: Final = (TRANSFERS, ORDERS, FILLS)


@dataclass(frozen=True)
class Posting:
    """One line of an entry: of `debit` and `credit` one is 0."""

    account: str
    asset: str
    debit: Decimal
    credit: Decimal

    def as_json(self) -> dict[str, str]:
        """Return the line as the commands print it."""
        return {
            "account": self.account,
            "asset": self.asset,
            "debit": plain(self.debit),
            "credit": plain(self.credit),
        }


@dataclass(frozen=True)
class Entry:
    """One journal entry and the record that posted it.

    Attributes:
        occurred_at: what that record says, as it says it.
        type: of the event; a reversal is the entry of a `fill_busted`.
        topic: of the record, without prefix.
        partition: of the record.
        offset: of the record. A reversal stands at the later record of fill and bust.
        is_reversal: whether it undoes a fill.
        ids: the event's ids and what else identifies it, by field name.
        postings: its lines, none of them 0; per asset, debits equal credits.
    """

    occurred_at: str
    type: str
    topic: str
    partition: int
    offset: int
    is_reversal: bool
    ids: dict[str, str]
    postings: list[Posting]

    def as_json(self) -> dict[str, Any]:
        """Return the entry as `ledger statement --json` prints it."""
        return {
            "occurred_at": self.occurred_at,
            "type": self.type,
            "topic": self.topic,
            "partition": self.partition,
            "offset": self.offset,
            "reversal": self.is_reversal,
            **self.ids,
            "postings": [posting.as_json() for posting in self.postings],
        }


def statement(partitions: Iterable[Partition], account: str) -> list[Entry]:
    """Return the entries that post to an account, in order.

    The order is that of `occurred_at`, compared exactly; then transfers, orders, fills; then
    partition and offset; then an entry before its reversal.

    Args:
        partitions: frozen and settled; the one of a customer's account, or all of them for a
            system account, which has a part in each.
        account: whose statement it is.
    """
    entries: list[Entry] = []
    for partition in partitions:
        if is_system(account):
            found = entries_of(partition)
            entries += (entry for entry in found if _touches(entry, account))
        else:
            entries += _account_entries(partition, account)
    return sorted(entries, key=_position)


def entries_of(partition: Partition) -> Iterator[Entry]:
    """Yield every entry of a partition, one in memory at a time.

    They come in the order in which state is stored: fills by account and order, each before its
    reversal, then transfers by account and id. It is the same for equal states.

    Args:
        partition: frozen and settled.
    """
    yield from _fill_entries(partition, None)
    for account, _ in partition.balances():
        if not is_system(account):
            yield from _transfer_entries(partition, account)


def running(
    entries: Iterable[Entry], account: str, opening: Mapping[str, Decimal] | None = None
) -> Iterator[tuple[Entry, Posting, Decimal]]:
    """Yield each line of the account with its entry and the account's balance after it.

    Args:
        entries: of a statement, in order.
        account: whose.
        opening: by asset the balances before them; none where they begin with the first.
    """
    balances = dict(opening or {})
    for entry in entries:
        for posting in entry.postings:
            if posting.account == account:
                change = subtract(posting.credit, posting.debit)
                balance = add(balances.get(posting.asset, ZERO), change)
                balances[posting.asset] = balance
                yield entry, posting, balance


def _position(entry: Entry) -> tuple[times.Instant, int, int, int, bool]:
    return (
        times.instant(entry.occurred_at),
        _TOPIC_ORDER.index(entry.topic),
        entry.partition,
        entry.offset,
        entry.is_reversal,
    )


def _touches(entry: Entry, account: str) -> bool:
    return any(posting.account == account for posting in entry.postings)


def _account_entries(partition: Partition, account: str) -> Iterator[Entry]:
    yield from _fill_entries(partition, account)
    yield from _transfer_entries(partition, account)


def _fill_entries(partition: Partition, account: str | None) -> Iterator[Entry]:
    for order in partition.orders(account):
        for fill_id, execution in partition.executions(order):
            fill, bust = execution.fill, execution.bust
            if fill is None:  # a bust alone posts nothing
                continue
            posted = fill_entry(order.account, fill)
            ids = {
                "account": order.account,
                "order_id": order.order_id,
                "fill_id": fill_id,
                "trade_id": fill.trade_id,
                "instrument": fill.instrument,
                "side": fill.side,
                "price": fill.price,
                "quantity": fill.quantity,
            }
            yield _fill_entry(partition.number, fill, ids, posted)
            if bust is not None:
                yield _reversal(partition.number, fill, bust, ids, posted)


def _fill_entry(number: int, fill: Fill, ids: dict[str, str], posted: JournalEntry) -> Entry:
    return Entry(
        fill.occurred_at,
        "order_filled",
        FILLS,
        number,
        fill.offset,
        is_reversal=False,
        ids=ids,
        postings=_postings(posted),
    )


def _reversal(
    number: int, fill: Fill, bust: Bust, ids: dict[str, str], posted: JournalEntry
) -> Entry:
    later = max(fill, bust, key=lambda fact: fact.offset)
    return Entry(
        later.occurred_at,
        "fill_busted",
        FILLS,
        number,
        later.offset,
        is_reversal=True,
        ids={**ids, "reason": bust.reason},
        postings=_postings(reversed_entry(posted)),
    )


def _transfer_entries(partition: Partition, account: str) -> Iterator[Entry]:
    for transfer_id, transfer in partition.transfers(account):
        posted = transfer_entry(account, transfer)
        yield Entry(
            transfer.occurred_at,
            transfer.type,
            TRANSFERS,
            partition.number,
            transfer.offset,
            is_reversal=False,
            ids=_transfer_ids(transfer, account, transfer_id),
            postings=_postings(posted),
        )


def _transfer_ids(transfer: Transfer, account: str, transfer_id: str) -> dict[str, str]:
    ids = {"account": account, "transfer_id": transfer_id}
    if transfer.reason is not None:
        ids["reason"] = transfer.reason
    return ids


def _postings(entry: JournalEntry) -> list[Posting]:
    lines = []
    for debit, credit, asset, amount in entry:
        if amount:
            lines.append(Posting(debit, asset, amount, ZERO))
            lines.append(Posting(credit, asset, ZERO, amount))
    return lines
