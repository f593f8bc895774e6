"""Proof of one partition: everything that workers left behind equals a fold of the topics.

What is compared: the published rows and counts with the naive reference; every mark, snapshot and
local state, at its own watermark, with the fold and with the naive reference; the newest mark with
a rebuild from genesis.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Final

import msgspec

from ledger import digests
from ledger.errors import LedgerError
from ledger.events import INPUT_TOPICS
from ledger.kafka import BALANCES, KafkaRecord
from ledger.projections.entries import META_KEY
from ledger.projections.partition import Header, Origin, Partition, Watermark
from ledger.published import MARK_KEY, Mark
from ledger.rebuild import Rebuilder
from ledger.rocks import RocksStore
from ledger.settings import Settings
from ledger.snapshots import Snapshots
from ledger.store import MemoryStore
from tests.chaos.feed import checksum
from tests.chaos.naive import NaivePartition
from tests.reference import Balances, Reference
from tests.support import cluster_of

_MOST_NAMED: Final = 4
_REJECTED: Final = ("invalid", "conflict")

Records = dict[str, list[KafkaRecord]]


@dataclass(frozen=True)
class Task:
    """What is to be proved of one partition; goes to another process.

    Attributes:
        settings: of the ledger, with the broker.
        number: the partition.
        acknowledged: for each topic the offsets that the broker acknowledged, and the checksums of
            the records there; None if that is not in question.
        uncertain: checksums of records that may be there or not.
        stores: directories of local states, with a name for people.
    """

    settings: Settings
    number: int
    acknowledged: Mapping[str, Mapping[int, int]] | None
    uncertain: Mapping[int, int]
    stores: Sequence[tuple[str, Path]]


@dataclass
class Proof:
    """What was found: differences, in a sentence each, and how much was compared.

    `letters` are the dead letters that there have to be: key to reason and value.
    """

    number: int
    differences: list[str] = field(default_factory=list)
    records: int = 0
    snapshots: int = 0
    marks: int = 0
    stores: int = 0
    chains: int = 0
    letters: dict[str, tuple[str, bytes | None]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Checkpoint:
    """Something that says what the state at a watermark is.

    `digest` is all that a mark has; a snapshot or a store has a header and balances.
    """

    name: str
    watermark: Watermark
    digest: str | None = None
    header: Header | None = None
    balances: Balances | None = None


def prove(task: Task) -> Proof:
    """Return what is to be said of one partition."""
    return _Prover(task).prove()


class _Prover:
    def __init__(self, task: Task) -> None:
        self.task = task
        self.number = task.number
        self.cluster = cluster_of(task.settings)
        self.origin = self.cluster.origin()
        self.proof = Proof(task.number)
        self.ends = {
            slot[0]: end
            for slot, end in self.cluster.ends([(t, task.number) for t in INPUT_TOPICS]).items()
        }

    def differs(self, what: str) -> None:
        self.proof.differences.append(f"partition {self.number}: {what}")

    def prove(self) -> Proof:
        records = self._read_inputs()
        self.proof.records = sum(map(len, records.values()))
        self._compare_with_acknowledged(records)
        marks, rows = self._read_published()
        self._compare_with_reference(records, marks, rows)
        self._compare_with_rebuild(marks)
        checkpoints = [
            _Checkpoint(f"mark at {offset}", mark.watermark, digest=mark.state_digest)
            for offset, mark in marks
        ]
        self.proof.marks = len(checkpoints)
        checkpoints += self._snapshots()
        checkpoints += self._stores()
        for chain in _chains(checkpoints):
            self.proof.chains += 1
            self._compare_along(chain, records)
        return self.proof

    # -- reading

    def _read_inputs(self) -> Records:
        records: Records = {topic: [] for topic in INPUT_TOPICS}
        spans = {(topic, self.number): (0, end) for topic, end in self.ends.items()}
        for batch in self.cluster.read(spans):
            records[batch.topic] += batch.records
        return records

    def _read_published(self) -> tuple[list[tuple[int, Mark]], Balances]:
        """Return all marks with their offsets, and the newest row of each account."""
        end = self.cluster.ends([(BALANCES, self.number)])[BALANCES, self.number]
        marks: list[tuple[int, Mark]] = []
        rows: Balances = {}
        for batch in self.cluster.read({(BALANCES, self.number): (0, end)}):
            for record in batch.records:
                if record.key == MARK_KEY:
                    marks.append(
                        (record.offset, msgspec.json.decode(record.value or b"", type=Mark))
                    )
                elif record.key is not None:
                    rows[record.key.decode()] = _row(record.value)
        return marks, {account: row for account, row in rows.items() if row}

    def _snapshots(self) -> Iterator[_Checkpoint]:
        settings = self.task.settings
        snapshots = Snapshots(settings.snapshot_dir, settings.topic_prefix)
        for file in snapshots.of_partition(self.number):
            name = f"snapshot {Path(file.path).name}"
            try:
                header, store = snapshots.read(file, self.origin)
            except LedgerError as error:
                self.differs(f"{name} cannot be read: {error}")
                continue
            self.proof.snapshots += 1
            yield self._checkpoint(name, header, store)

    def _stores(self) -> Iterator[_Checkpoint]:
        at_the_end = 0
        for name, directory in self.task.stores:
            store = RocksStore(directory)
            try:
                entries = dict(store.scan())
            finally:
                store.close()
            if META_KEY not in entries:
                continue  # opened by a worker that lost the partition before its first flush
            self.proof.stores += 1
            memory = MemoryStore(entries)
            partition = Partition(self.number, memory, self.origin)
            header = partition.header()
            del entries[META_KEY]
            if f"{digests.total_of(entries.items()):x}" != header.total:
                self.differs(f"the entries of {name}'s store do not add up")
            at_the_end += header.watermark == self.ends
            yield self._checkpoint(f"the store of {name}", header, memory)
        if not at_the_end:
            self.differs("no worker's store reaches the end of the topics")

    def _checkpoint(self, name: str, header: Header, store: MemoryStore) -> _Checkpoint:
        partition = Partition(self.number, store, self.origin)
        balances = {
            account: {asset: _exact(*texts) for asset, texts in rows.items()}
            for account, rows in partition.balances()
            if rows
        }
        return _Checkpoint(name, header.watermark, partition.state_digest(), header, balances)

    # -- comparing

    def _compare_with_acknowledged(self, records: Records) -> None:
        acknowledged = self.task.acknowledged
        if acknowledged is None:
            return
        uncertain = dict(self.task.uncertain)
        for topic, found in records.items():
            there = {r.offset: checksum(r.key, r.value) for r in found}
            promised = acknowledged[topic]
            lost = [offset for offset in promised if there.get(offset) != promised[offset]]
            if lost:
                self.differs(f"{len(lost)} acknowledged records of {topic} are gone: {lost[:4]}")
            for offset in there.keys() - promised.keys():
                if not uncertain.get(there[offset]):
                    self.differs(f"{topic} has a record at {offset} that was never acknowledged")
                    break
                uncertain[there[offset]] -= 1

    def _compare_with_reference(
        self, records: Records, marks: list[tuple[int, Mark]], rows: Balances
    ) -> None:
        naive = Reference(self.origin.partitions)
        for topic in INPUT_TOPICS:
            for record in records[topic]:
                verdict = naive.apply(topic, self.number, record.offset, record.key, record.value)
                if verdict in _REJECTED:
                    source = f"{topic}:{self.number}:{record.offset}"
                    self.proof.letters[source] = verdict, record.value
        self._compare_balances("the published rows", rows, naive.balances_of_partition(self.number))
        if not marks:
            self.differs("nothing was published")
            return
        newest = marks[-1][1]
        if newest.watermark != self.ends:
            self.differs(f"the newest mark is at {newest.watermark}, the topics end at {self.ends}")
        if newest.counts != naive.counts_of_partition(self.number):
            expected = naive.counts_of_partition(self.number)
            self.differs(f"published counts are {newest.counts}, should be {expected}")
        for (_, before), (offset, after) in itertools.pairwise(marks):
            if not _is_at_or_after(after.watermark, before.watermark):
                self.differs(
                    f"the mark at {offset} goes back from {before.watermark} to {after.watermark}"
                )

    def _compare_with_rebuild(self, marks: list[tuple[int, Mark]]) -> None:
        rebuilder = Rebuilder(self.cluster, self.origin, warn=self.differs)
        end = {self.number: self.ends}
        rebuilt = rebuilder.rebuild(end, end, "genesis").partitions[self.number]
        if marks and rebuilt.state_digest() != marks[-1][1].state_digest:
            self.differs("the newest mark's state digest is not that of a rebuild from genesis")

    def _compare_along(self, chain: list[_Checkpoint], records: Records) -> None:
        """Fold once, and stop at each checkpoint of a chain."""
        folding = _Folding(self.number, self.origin, records)
        for checkpoint in chain:
            folding.advance(checkpoint.watermark)
            folded = folding.folded
            if checkpoint.digest != folded.state_digest():
                self.differs(f"{checkpoint.name}: another state digest than a fold's")
            if checkpoint.header is not None and checkpoint.balances is not None:
                self._compare_headers(checkpoint.name, checkpoint.header, folded.header())
                naive = folding.naive()
                if checkpoint.header.counts != naive.counts():
                    self.differs(f"{checkpoint.name}: other counts than the reference's")
                self._compare_balances(checkpoint.name, checkpoint.balances, naive.balances())

    def _compare_headers(self, name: str, found: Header, expected: Header) -> None:
        ours, theirs = msgspec.structs.asdict(found), msgspec.structs.asdict(expected)
        fields = [each for each in ours if ours[each] != theirs[each]]
        if fields:
            self.differs(f"{name}: its header differs from a fold's in {', '.join(fields)}")

    def _compare_balances(self, name: str, found: Balances, expected: Balances) -> None:
        if found == expected:
            return
        wrong = sorted(a for a in found.keys() | expected if found.get(a) != expected.get(a))
        examples = "; ".join(
            f"{a}: {_told(found.get(a))} instead of {_told(expected.get(a))}"
            for a in wrong[:_MOST_NAMED]
        )
        self.differs(f"{name}: {len(wrong)} accounts differ from the reference: {examples}")


class _Folding:
    """One partition's folds, the real one and the naive one, moved on together."""

    def __init__(self, number: int, origin: Origin, records: Records) -> None:
        self.folded = Partition(number, MemoryStore(), origin)
        self._naive = NaivePartition(number, origin.partitions)
        self._records = records
        self._next = dict.fromkeys(INPUT_TOPICS, 0)
        self._unseen: list[tuple[str, KafkaRecord]] = []

    def advance(self, watermark: Watermark) -> None:
        """Apply the records before a watermark."""
        for topic, limit in watermark.items():
            records, begin = self._records[topic], self._next[topic]
            end = begin
            while end < len(records) and records[end].offset < limit:
                end += 1
            self._next[topic] = end
            self.folded.apply(topic, records[begin:end], limit)
            self._unseen += [(topic, record) for record in records[begin:end]]
        self.folded.freeze()
        self.folded.settle()

    def naive(self) -> NaivePartition:
        """Return the reference at the same watermark."""
        for topic, record in self._unseen:
            self._naive.apply(topic, record.offset, record.key, record.value)
        self._unseen = []
        return self._naive


def _chains(checkpoints: Sequence[_Checkpoint]) -> list[list[_Checkpoint]]:
    """Return the checkpoints in chains in which each is at or after the one before."""
    chains: list[list[_Checkpoint]] = []
    for checkpoint in sorted(checkpoints, key=lambda each: sum(each.watermark.values())):
        for chain in chains:
            if _is_at_or_after(checkpoint.watermark, chain[-1].watermark):
                chain.append(checkpoint)
                break
        else:
            chains.append([checkpoint])
    return chains


def _is_at_or_after(one: Watermark, other: Watermark) -> bool:
    return all(one[topic] >= other[topic] for topic in INPUT_TOPICS)


def _row(value: bytes | None) -> dict[str, tuple[Decimal, Decimal, Decimal]]:
    if value is None:
        return {}
    row = json.loads(value)
    return {
        asset: _exact(texts["debits"], texts["credits"], texts["hold"])
        for asset, texts in row["balances"].items()
    }


def _exact(debits: str, credits_: str, hold: str) -> tuple[Decimal, Decimal, Decimal]:
    return Decimal(debits), Decimal(credits_), Decimal(hold)


def _told(row: Mapping[str, tuple[Decimal, ...]] | None) -> str:
    return str({asset: tuple(map(str, each)) for asset, each in (row or {}).items()})
