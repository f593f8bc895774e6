"""Proof of some partitions along chains of watermarks.

At each watermark the naive reference says what the state is. Compared with it are folds of the same
records in chunks of 10,000 and of 1, the topics mixed at random, and replays from the watermark
before: one on the newest snapshot and one on all records, one of them in two threads, in turn.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from functools import partial
from typing import Any, Final
from unittest.mock import patch

from ledger.events import INPUT_TOPICS
from ledger.kafka import KafkaRecord, Slot
from ledger.positions import format_positions
from ledger.projections import orders
from ledger.projections import partition as partition_module
from ledger.projections.entries import META_KEY
from ledger.projections.partition import Origin, Partition, Watermark
from ledger.rebuild import Base
from ledger.settings import Settings
from ledger.store import MemoryStore
from replay.engine import Job
from replay.engine import replay as run_replay
from replay.request import Span
from replay.results import PartitionReplay
from tests.reference import Balances, Order
from tests.support import cluster_of
from tests.watermarks.choice import Chain
from tests.watermarks.ledgers import read_plainly
from tests.watermarks.naive import Answer, NaiveState

CHUNKS: Final = (10_000, 1)
_CACHED: Final = 100
"""How many entries folds keep decoded in memory. Next to none: settling looks at all of them, so
doing it a million times stays cheap; and what a record changes is mostly read from the store again.
"""
_REPLAYS: Final[tuple[dict[Base, int], ...]] = (
    {"snapshot": 1, "genesis": 2},
    {"snapshot": 2, "genesis": 1},
)
"""Base to number of threads, for one watermark and for the next."""
_MOST_NAMED: Final = 4

Stop = tuple[int, int]
"""A watermark's place: the chain's, and its own in the chain."""

Records = Mapping[Slot, Sequence[KafkaRecord]]


@dataclass(frozen=True)
class Task:
    """What is to be proved of some partitions; goes to another process.

    Attributes:
        settings: of the ledger, with the broker.
        seed: of everything that is left to chance.
        numbers: the partitions.
        chains: the watermarks of all partitions.
        told: the stops whose balances are to be in the proof.
    """

    settings: Settings
    seed: int
    numbers: tuple[int, ...]
    chains: list[Chain]
    told: frozenset[Stop] = frozenset()


@dataclass
class Proof:
    """What was found.

    Attributes:
        records: how many were read.
        differences: in a sentence each.
        answers: what the reference says of each partition at each stop, without orders, and
            without balances where these were not to be told.
        from_snapshot: for each stop the partitions whose replay began with a snapshot.
    """

    records: int = 0
    differences: list[str] = field(default_factory=list)
    answers: dict[Stop, dict[int, Answer]] = field(default_factory=dict)
    from_snapshot: dict[Stop, set[int]] = field(default_factory=dict)

    def add(self, other: Proof) -> None:
        """Take in the proof of other partitions."""
        self.records += other.records
        self.differences += other.differences
        for stop, answers in other.answers.items():
            self.answers.setdefault(stop, {}).update(answers)
            self.from_snapshot.setdefault(stop, set()).update(other.from_snapshot[stop])


def prove(task: Task) -> Proof:
    """Return what is to be said of the task's partitions."""
    slots = [(topic, number) for topic in INPUT_TOPICS for number in task.numbers]
    return Prover(task, read_plainly(task.settings, slots)).prove()


class Prover:
    """Compares everything with the reference's answers about the records given."""

    def __init__(self, task: Task, records: Records) -> None:
        cluster = cluster_of(task.settings)
        self._task = task
        self._records = records
        self._cluster = cluster
        self._origin = cluster.origin()
        self._proof = Proof(sum(map(len, records.values())))
        self._where = ""

    def prove(self) -> Proof:
        """Return what is to be said."""
        for place, chain in enumerate(self._task.chains):
            self._prove_along(place, chain)
        return self._proof

    def _prove_along(self, place: int, chain: Chain) -> None:
        numbers = self._task.numbers
        moving = {number: _Moving(self._task.seed, number, self._origin) for number in numbers}
        before: dict[int, Answer] = {}
        start = chain[0]
        for step, end in enumerate(chain):
            self._where = f"seed {self._task.seed}, watermark {format_positions(end)}"
            answers = {n: moving[n].advance(self._records, end[n]) for n in numbers}
            for number in numbers:
                self._compare_folds(moving[number], answers[number])
            self._replay((place, step), Span(start, end), before or answers, moving, answers)
            told = (place, step) in self._task.told
            self._proof.answers[place, step] = {
                number: replace(answer, orders={}, balances=answer.balances if told else {})
                for number, answer in answers.items()
            }
            start, before = end, answers

    # -- folds

    def _compare_folds(self, moving: _Moving, answer: Answer) -> None:
        for chunk, fold in moving.folds.items():
            name = f"partition {moving.number} folded in chunks of {chunk:,}"
            self._compare_state(name, fold.partition, answer)
            if fold is not moving.first:
                self._compare(name, "entries", _entries(fold.partition), moving.entries)
        partition = moving.first.partition
        name = f"partition {moving.number} folded"
        self._compare(name, "balances", _balances(partition), answer.balances)
        orders_ = {account: _orders(partition, account) for account in answer.orders}
        self._compare(name, "orders", orders_, answer.orders)

    # -- replays

    def _replay(
        self,
        stop: Stop,
        span: Span,
        before: Mapping[int, Answer],
        moving: Mapping[int, _Moving],
        answers: Mapping[int, Answer],
    ) -> None:
        for base, threads in _REPLAYS[sum(stop) % 2].items():
            job = Job(self._cluster, self._origin, span, base)
            name = f"base {base}, {threads} thread{'s' if threads > 1 else ''}"
            with run_replay(
                job.part(self._task.numbers),
                threads=threads,
                directory=None,
                warn=partial(self._warned, name),
                progress=lambda _: None,
            ) as found:
                bases = {number: part.base for number, part in found.partitions.items()}
                for number, part in found.partitions.items():
                    entries = moving[number].entries
                    self._compare_replay(name, part, before[number], answers[number], entries)
            if base == "snapshot":
                self._proof.from_snapshot[stop] = {n for n in bases if bases[n] != "genesis"}

    def _warned(self, name: str, sentence: str) -> None:
        self._differs(f"{name} warned: {sentence}")

    def _compare_replay(
        self,
        name: str,
        part: PartitionReplay,
        before: Answer,
        answer: Answer,
        entries: Mapping[bytes, bytes],
    ) -> None:
        name = f"partition {part.partition} replayed, {name}"
        self._compare_state(f"{name}, at its start", part.before, before)
        self._compare_state(name, part.after, answer)
        self._compare(name, "entries", _entries(part.after), entries)

    # -- comparing

    def _compare_state(self, name: str, found: Partition, answer: Answer) -> None:
        digests = {"state": found.state_digest(), **(found.log_digests or {})}
        expected = {"state": answer.state_digest, **answer.log_digests}
        self._compare(name, "digests", digests, expected)
        self._compare(name, "counts", found.counts, answer.counts)

    def _compare(
        self, name: str, what: str, found: Mapping[Any, Any], expected: Mapping[Any, Any]
    ) -> None:
        if found != expected:
            self._differs(f"{name}: {what}: {differences(found, expected)}")

    def _differs(self, sentence: str) -> None:
        self._proof.differences.append(f"{self._where}: {sentence}")


class _Moving:
    """One partition's reference and folds, moved on together.

    `entries` is what `first`, one of the folds, has stored, but for the header.
    """

    def __init__(self, seed: int, number: int, origin: Origin) -> None:
        self.number = number
        self.folds = {chunk: _Fold(seed, number, origin, chunk) for chunk in CHUNKS}
        self.first = self.folds[CHUNKS[0]]
        self.entries: dict[bytes, bytes] = {}
        self._naive = NaiveState(number, origin.partitions)
        self._at = dict.fromkeys(INPUT_TOPICS, 0)

    def advance(self, records: Records, watermark: Watermark) -> Answer:
        """Apply the records before a watermark, and return what the reference says."""
        new = {
            topic: _between(records[topic, self.number], self._at[topic], watermark[topic])
            for topic in INPUT_TOPICS
        }
        self._at = watermark
        for topic, found in new.items():
            for record in found:
                self._naive.apply(topic, record.offset, record.key, record.value)
        with patch.object(partition_module, "CACHED_ENTRIES", _CACHED):
            for fold in self.folds.values():
                fold.advance(new, watermark)
        self.entries = _entries(self.first.partition)
        return self._naive.answer(watermark)


class _Fold:
    """The ledger's own fold of one partition, in chunks, frozen and settled after each."""

    def __init__(self, seed: int, number: int, origin: Origin, chunk: int) -> None:
        self.partition = Partition(number, MemoryStore(), origin)
        self._chunk = chunk
        self._rng = random.Random(f"{seed}: chunks of {chunk} of partition {number}")

    def advance(self, records: Mapping[str, Sequence[KafkaRecord]], watermark: Watermark) -> None:
        """Apply records, the topics mixed at random, up to a watermark."""
        order = [topic for topic, new in records.items() for _ in range(0, len(new), self._chunk)]
        self._rng.shuffle(order)
        begins = dict.fromkeys(records, 0)
        for topic in order:
            begin = begins[topic]
            begins[topic] += self._chunk
            self._apply(topic, records[topic][begin : begins[topic]], None)
        for topic, offset in watermark.items():
            self._apply(topic, [], offset)  # there may be holes before it

    def _apply(self, topic: str, records: Iterable[KafkaRecord], next_offset: int | None) -> None:
        self.partition.apply(topic, records, next_offset)
        self.partition.freeze()
        self.partition.settle()


def _between(records: Sequence[KafkaRecord], begin: int, end: int) -> Sequence[KafkaRecord]:
    first, last = (
        bisect_left(records, at, key=lambda record: record.offset) for at in (begin, end)
    )
    return records[first:last]


def _entries(partition: Partition) -> dict[bytes, bytes]:
    entries = dict(partition._store.scan())
    entries.pop(META_KEY, None)
    return entries


def _balances(partition: Partition) -> Balances:
    found: Balances = {}
    for account, row in partition.balances():
        found[account] = {
            asset: (Decimal(debits), Decimal(credits_), Decimal(hold))
            for asset, (debits, credits_, hold) in row.items()
        }
    return found


def _orders(partition: Partition, account: str) -> dict[str, Order]:
    return {order.order_id: _as_reference(order) for order in partition.orders(account)}


def _as_reference(order: orders.Order) -> Order:
    return Order(
        "unknown" if order.placed is None else "open" if order.is_open() else "closed",
        order.filled,
        max(Decimal(0), order.used),
        order.remaining() if order.placed else None,
        order.hold(),
        order.hold_asset(),
    )


def differences(found: Mapping[Any, Any], expected: Mapping[Any, Any]) -> str:
    """Return how many values differ, and the first of them, for people."""
    wrong = sorted(key for key in found.keys() | expected if found.get(key) != expected.get(key))
    told = [f"{key} is {found.get(key)}, not {expected.get(key)}" for key in wrong[:_MOST_NAMED]]
    return f"{len(wrong)} differ: {'; '.join(told)}"
