"""The topic `balances`: what workers publish of their tables, and reading it back.

Partition *p* of the topic holds partition *p*'s accounts. One transaction per flush writes the
changed rows and the mark, so a read-committed reader sees a consistent cut. System accounts have a
row in each partition; `totals` adds them up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Final

import msgspec

from ledger import _fold
from ledger.amounts import ZERO, add, plain, subtract
from ledger.errors import TopicError
from ledger.events import INPUT_TOPICS
from ledger.kafka import BALANCES, Cluster, Slot
from ledger.projections.accounts import Texts
from ledger.projections.partition import (
    VERDICTS,
    Counts,
    Origin,
    Tips,
    Watermark,
    require_same_partitions,
)

MARK_KEY: Final = b"@watermark"
LETTERS_ACCOUNT: Final = "@dead-letters"
"""A row without balances, written while a worker catches up with the published cut: its watermark
says which dead letters were sent since the last mark."""


class Amounts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The totals of one account and asset, as canonical texts."""

    debits: str
    credits: str
    hold: str


class Row(msgspec.Struct, frozen=True):
    """The value of an account's record; `watermark` is that of the flush that wrote it."""

    account: str
    watermark: Watermark
    balances: dict[str, Amounts]


class Mark(msgspec.Struct, frozen=True):
    """The value of the record `@watermark`: the cut that all rows of the partition belong to."""

    watermark: Watermark
    state_digest: str
    rules_version: int
    topic_ids: dict[str, str]
    partitions: int
    counts: Counts
    tips: Tips


encode = msgspec.json.Encoder().encode
_decode_mark = msgspec.json.Decoder(Mark).decode
_decode_row = msgspec.json.Decoder(Row).decode


def decode_mark(value: bytes, partition: int, offset: int) -> Mark:
    """Return the mark in a record of `balances`.

    Raises:
        TopicError: it is not what a worker writes; the message names the record.
    """
    try:
        return _decode_mark(value)
    except msgspec.DecodeError as error:
        raise _no_row(partition, offset, error) from error


def _no_row(partition: int, offset: int, error: msgspec.DecodeError) -> TopicError:
    return TopicError(
        f"{BALANCES}:{partition}: offset {offset} is not a row of a worker ({error}). Stop the "
        "workers and delete the topic: when they start again they publish it anew."
    )


def encode_row(account: str, watermark: Watermark, stored: bytes | None) -> bytes:
    """Return the value of an account's record; `stored` is its entry, if there is one."""
    return _fold.row(account, encode(watermark), stored)


@dataclass
class PublishedPartition:
    """What the newest committed records of one partition say."""

    mark: Mark | None = None
    accounts: dict[str, Texts] = field(default_factory=dict)


def read_published(
    cluster: Cluster,
    partitions: Iterable[int],
    progress: Callable[[int], None] | None = None,
) -> dict[int, PublishedPartition]:
    """Return the published tables; a partition that nobody published yet is empty.

    Accounts that were removed are not in them.

    Raises:
        TopicError: a record is not what a worker writes.
    """
    published = {partition: PublishedPartition() for partition in partitions}
    slots: list[Slot] = [(BALANCES, partition) for partition in published]
    shape = cluster.topics([BALANCES]).get(BALANCES)
    if shape is None:
        return published
    slots = [slot for slot in slots if slot[1] < shape.partitions]
    earliest, ends = cluster.earliest(slots), cluster.ends(slots)
    spans = {slot: (earliest[slot], ends[slot]) for slot in slots}
    for batch in cluster.read(spans, progress):
        found = published[batch.partition]
        for record in batch.records:
            if record.key == MARK_KEY:
                found.mark = (
                    None
                    if record.value is None
                    else decode_mark(record.value, batch.partition, record.offset)
                )
            elif record.value is None:
                found.accounts.pop((record.key or b"").decode(errors="replace"), None)
            else:
                try:
                    row = _decode_row(record.value)
                except msgspec.DecodeError as error:
                    raise _no_row(batch.partition, record.offset, error) from error
                found.accounts[row.account] = {
                    asset: (amounts.debits, amounts.credits, amounts.hold)
                    for asset, amounts in row.balances.items()
                }
    return published


@dataclass
class Tail:
    """The end of a partition's published records.

    Attributes:
        mark: the newest one, or None where nobody published yet.
        letters: up to where dead letters were sent since that mark, or None if none were.
    """

    mark: Mark | None = None
    letters: Watermark | None = None


def tails(cluster: Cluster, partitions: Iterable[int]) -> dict[int, Tail]:
    """Return what was committed last in each partition, reading from the end."""
    found = {partition: Tail() for partition in partitions}
    left: list[Slot] = [(BALANCES, partition) for partition in found]
    earliest, ends = cluster.earliest(left), cluster.ends(left)
    depth = 16
    while left:
        spans = {slot: (max(earliest[slot], ends[slot] - depth), ends[slot]) for slot in left}
        decided = {slot for slot in left if spans[slot][0] == earliest[slot]}
        for batch in cluster.read(spans):
            number = batch.partition
            for record in batch.records:
                if record.key == MARK_KEY:  # one without a value was removed: nobody published yet
                    mark = record.value and decode_mark(record.value, number, record.offset)
                    found[number] = Tail(mark or None)
                    decided.add((BALANCES, number))
                elif record.key == LETTERS_ACCOUNT.encode():
                    row = record.value and _decode_row(record.value)
                    found[number].letters = row.watermark if row else None
        left = [slot for slot in left if slot not in decided]
        depth *= 64
    return found


def newest_marks(cluster: Cluster, partitions: Iterable[int]) -> dict[int, Mark]:
    """Return the newest committed mark of each partition that has one."""
    ends = tails(cluster, partitions)
    return {partition: tail.mark for partition, tail in ends.items() if tail.mark is not None}


def require_unchanged(cluster: Cluster, origin: Origin) -> Origin:
    """Return `origin`, if the topics have the partitions that they had when tables were published.

    Raises:
        TopicError: their number changed since.
    """
    if BALANCES in cluster.topics([BALANCES]):
        for mark in newest_marks(cluster, range(origin.partitions)).values():
            if mark.topic_ids == origin.topic_ids:
                require_same_partitions(mark.partitions, origin.partitions)
    return origin


class MarkReader:
    """Follows the marks of some partitions without reading their tables.

    Attributes:
        marks: of each partition that was published, its newest mark as of the last `poll`.
    """

    def __init__(self, cluster: Cluster, partitions: Iterable[int]) -> None:
        self.marks: dict[int, Mark] = {}
        self._cluster = cluster
        self._slots: list[Slot] = [(BALANCES, partition) for partition in sorted(partitions)]
        self._positions: dict[Slot, int] = {}

    def poll(self) -> None:
        """Take in what was committed since the last call."""
        ends = self._cluster.ends(self._slots)
        new = [slot for slot in self._slots if self._positions.get(slot, 0) > ends[slot]]
        for slot in new:  # a topic that was made anew
            del self._positions[slot]
            self.marks.pop(slot[1], None)
        unknown = [slot for slot in self._slots if slot not in self._positions]
        self.marks.update(newest_marks(self._cluster, [partition for _, partition in unknown]))
        known = [slot for slot in self._slots if slot in self._positions]
        spans = {slot: (self._positions[slot], ends[slot]) for slot in known}
        for batch in self._cluster.read(spans):
            for record in batch.records:
                if record.key == MARK_KEY:
                    self.marks.pop(batch.partition, None)
                    if record.value is not None:
                        self.marks[batch.partition] = decode_mark(
                            record.value, batch.partition, record.offset
                        )
        self._positions.update(ends)


@dataclass(frozen=True)
class Total:
    """Exact totals of one account and asset."""

    debits: Decimal
    credits: Decimal
    hold: Decimal

    @property
    def balance(self) -> Decimal:
        """Credits less debits: what the ledger owes the account."""
        return subtract(self.credits, self.debits)

    @property
    def available(self) -> Decimal:
        """The balance less what open orders hold."""
        return subtract(self.balance, self.hold)

    def as_json(self, account: str, asset: str) -> dict[str, str]:
        """Return the row as the commands print it."""
        return {
            "account": account,
            "asset": asset,
            "balance": plain(self.balance),
            "hold": plain(self.hold),
            "available": plain(self.available),
            "debits": plain(self.debits),
            "credits": plain(self.credits),
        }


Totals = dict[tuple[str, str], Total]
"""Account and asset to totals, in order."""


def totals(accounts: Iterable[tuple[str, Texts]]) -> Totals:
    """Return the totals over all partitions; an account in several is added up."""
    sums: dict[tuple[str, str], Total] = {}
    nothing = Total(ZERO, ZERO, ZERO)
    for account, texts in accounts:
        for asset, (debits, credits_, hold) in texts.items():
            before = sums.get((account, asset), nothing)
            sums[account, asset] = Total(
                add(before.debits, Decimal(debits)),
                add(before.credits, Decimal(credits_)),
                add(before.hold, Decimal(hold)),
            )
    return dict(sorted(sums.items()))


def conservation(sums: Totals) -> dict[str, Decimal]:
    """Return, per asset, credits less debits over all accounts: 0, or the books do not balance."""
    result: dict[str, Decimal] = {}
    for (_, asset), total in sums.items():
        result[asset] = add(result.get(asset, ZERO), total.balance)
    return dict(sorted(result.items()))


def no_counts() -> Counts:
    """Return the counts of a partition to which nothing was applied."""
    return {topic: dict.fromkeys(VERDICTS, 0) for topic in INPUT_TOPICS}


def add_counts(counts: Iterable[Counts]) -> Counts:
    """Return the counts over several partitions."""
    result = no_counts()
    for one in counts:
        for topic, tally in one.items():
            for verdict, number in tally.items():
                result[topic][verdict] += number
    return result
