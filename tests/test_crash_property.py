"""A partition killed, handed over and restored at any point: a state machine of Hypothesis.

The log, the published topics and the places on disk outlive every worker. Whatever happens, each
mark that is published is the state at its watermark, and each dead letter is sent once.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, Literal

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from ledger.agents import owned as module
from ledger.agents.owned import OwnedPartition, open_state
from ledger.agents.publisher import FencedError, Outgoing, Rows
from ledger.events import INPUT_TOPICS
from ledger.kafka import BALANCES, DEAD_LETTERS
from ledger.projections.accounts import Texts
from ledger.projections.partition import Origin, Partition, Watermark, dominates
from ledger.published import LETTERS_ACCOUNT, MARK_KEY, Mark, PublishedPartition, Tail, decode_mark
from ledger.settings import Settings
from ledger.snapshots import Snapshots
from ledger.store import MemoryStore
from tests.reference import Balances, Reference
from tests.strategies import event_logs
from tests.support import eventually, singly

ORIGIN: Final = Origin("cluster", {"orders": "o", "fills": "f", "transfers": "t"}, 1)
CLUSTER: Final[Any] = SimpleNamespace(settings=Settings(), bootstrap="nowhere")
PLACES: Final = ("a", "b", "c")

_LOGS: Final = event_logs(max_size=5)

Moment = Literal["before publishing", "before settling", "after settling"]
MOMENTS: Final[tuple[Moment, ...]] = ("before publishing", "before settling", "after settling")


class Killed(Exception):  # noqa: N818 - what it stands for is no error
    """The process ends here."""


@dataclass(frozen=True)
class Record:
    offset: int
    key: bytes | None
    value: bytes | None
    headers: tuple[()] = ()


@dataclass
class Topics:
    """The input topics, and what was published in transactions that succeed or never were."""

    log: dict[str, list[Record]] = field(default_factory=lambda: {t: [] for t in INPUT_TOPICS})
    balances: list[Outgoing] = field(default_factory=list)
    letters: list[bytes] = field(default_factory=list)
    holder: int = 0  # whoever initialised the transactional id last

    def take(self, records: Iterable[Outgoing]) -> None:
        for record in records:
            if record.topic == DEAD_LETTERS:
                self.letters.append(record.key)
            else:
                assert record.topic == BALANCES
                self.balances.append(record)

    def compact(self) -> None:
        """Remove what a newer record of the same key replaces, as Kafka does at any time."""
        newest = {record.key: number for number, record in enumerate(self.balances)}
        self.balances = [self.balances[number] for number in sorted(newest.values())]

    def tail(self) -> Tail:
        tail = Tail()
        for record in self.balances:
            if record.key == MARK_KEY:
                assert record.value is not None
                tail = Tail(decode_mark(record.value, 0, 0))
            elif record.key == LETTERS_ACCOUNT.encode() and record.value is not None:
                tail.letters = json.loads(record.value)["watermark"]
        return tail

    def published(self) -> PublishedPartition:
        accounts: dict[str, Texts] = {}
        for record in self.balances:
            if record.key == MARK_KEY:
                continue
            account = record.key.decode()
            accounts.pop(account, None)
            if record.value is not None:
                rows = json.loads(record.value)["balances"].items()
                accounts[account] = {
                    asset: (row["debits"], row["credits"], row["hold"]) for asset, row in rows
                }
        return PublishedPartition(self.tail().mark, accounts)

    def before(self, watermark: Watermark | None) -> list[tuple[str, Record]]:
        """Return the records before a watermark (None: all), one topic after the other."""
        return [
            (topic, record)
            for topic, records in self.log.items()
            for record in records
            if watermark is None or record.offset < watermark[topic]
        ]

    def end(self) -> Watermark:
        return {t: records[-1].offset + 1 if records else 0 for t, records in self.log.items()}


def straight_fold(records: list[tuple[str, Record]]) -> tuple[Partition, list[bytes]]:
    """Return the state that records lead to without any trouble, and its dead letters' keys."""
    partition = Partition(0, MemoryStore(), ORIGIN)
    for topic, record in records:
        partition.apply(topic, [record])
    rejected = partition.freeze().rejected
    partition.settle()
    return partition, [f"{r.topic}:0:{r.record.offset}".encode() for r in rejected]


def balances_of(published: PublishedPartition) -> Balances:
    return {
        account: {
            asset: (Decimal(debits), Decimal(credits_), Decimal(hold))
            for asset, (debits, credits_, hold) in rows.items()
        }
        for account, rows in published.accounts.items()
        if rows
    }


def copied(source: Path, target: Path) -> bool:
    """Copy an open database's directory; not if RocksDB removed a file of it meanwhile."""
    shutil.rmtree(target, ignore_errors=True)
    try:
        shutil.copytree(source, target)
    except shutil.Error:
        return False
    return True


class Crashes(RuleBasedStateMachine):
    """One partition, and the workers that have it one after the other, or think so."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp())
        self.topics = Topics()
        self.owned: OwnedPartition | None = None
        self.place = PLACES[0]
        self.killed_at: Moment | None = None
        self.meanwhile: Callable[[], None] = lambda: None
        self.checked: Mark | None = None
        self.patches = pytest.MonkeyPatch()
        self._replace_kafka()

    def _replace_kafka(self) -> None:
        machine, topics = self, self.topics

        class FakePublisher:
            def __init__(self) -> None:
                self.epoch = 0

            @classmethod
            def of_partition(cls, *_: object) -> FakePublisher:
                return cls()

            def acquire(self) -> None:
                topics.holder += 1
                self.epoch = topics.holder

            def close(self) -> None: ...

            def require_open(self) -> None: ...

            def publish(self, records: Iterable[Outgoing | Rows]) -> None:
                machine.meanwhile()
                if self.epoch != topics.holder:
                    raise FencedError("fenced")
                if machine.killed_at == "before publishing":
                    raise Killed
                topics.take(singly(records))

        replace = self.patches.setattr
        replace(module, "Publisher", FakePublisher)
        replace(module, "LogWatch", lambda *_: SimpleNamespace(confirm=lambda *_: None))
        replace(module, "tails", lambda *_: {0: topics.tail()})
        replace(module, "read_published", lambda *_: {0: topics.published()})

    # -- what happens

    @initialize(data=st.data(), place=st.sampled_from(PLACES))
    def begin(self, data: st.DataObject, place: str) -> None:
        self.records_arrive(data, 0)
        self.records_arrive(data, 0)
        self.take(place)

    @rule(data=st.data(), holes=st.integers(0, 2))
    def records_arrive(self, data: st.DataObject, holes: int) -> None:
        # The strategy is too large to be printed as a rule's argument.
        for each in data.draw(_LOGS):
            records = self.topics.log[each.topic]
            offset = (records[-1].offset + 1 if records else 0) + holes
            records.append(Record(offset, each.key, each.value))

    @precondition(lambda self: self.owned is not None)
    @rule(topic=st.sampled_from(INPUT_TOPICS), size=st.integers(1, 6))
    def a_chunk_is_applied(self, topic: str, size: int) -> None:
        self.apply(topic, size)

    @precondition(lambda self: self.owned is not None)
    @rule(topic=st.sampled_from(INPUT_TOPICS), meanwhile=st.integers(0, 3))
    def it_flushes(self, topic: str, meanwhile: int) -> None:
        """Records go on being applied while the flush is published."""
        self.meanwhile = lambda: self.apply(topic, meanwhile)
        assert self.flush()
        self.meanwhile = lambda: None

    @precondition(lambda self: self.owned is not None)
    @rule(moment=st.sampled_from(MOMENTS))
    def it_is_killed_in_a_flush(self, moment: Moment) -> None:
        assert self.owned is not None
        partition = self.owned.partition
        settle = partition.settle

        def killed_while_settling() -> None:
            if moment == "after settling":
                settle()
            raise Killed

        self.killed_at = moment
        if moment != "before publishing":
            self.patches.setattr(partition, "settle", killed_while_settling)
        try:
            self.flush()
        except Killed:
            pass
        finally:
            self.killed_at = None
        self.kill()

    @precondition(lambda self: self.owned is not None)
    @rule()
    def it_is_killed(self) -> None:
        self.kill()

    @precondition(lambda self: self.owned is not None)
    @rule(topic=st.sampled_from(INPUT_TOPICS), size=st.integers(1, 9))
    def a_chunk_is_applied_and_flushed(self, topic: str, size: int) -> None:
        self.apply(topic, size)
        assert self.flush()

    @precondition(lambda self: self.owned is not None)
    @rule(place=st.sampled_from(PLACES), is_new=st.booleans())
    def it_is_killed_and_taken_elsewhere(self, place: str, is_new: bool) -> None:
        self.kill()
        if is_new:
            shutil.rmtree(self.directory / place, ignore_errors=True)
        self.take(place)

    @precondition(lambda self: self.owned is not None)
    @rule()
    def it_hands_over(self) -> None:
        assert self.owned is not None
        self.flush()
        self.owned.close()
        self.owned = None

    @precondition(lambda self: self.owned is None)
    @rule(place=st.sampled_from(PLACES))
    def it_is_taken(self, place: str) -> None:
        """Somewhere else, or where old state still lies."""
        self.take(place)

    @precondition(lambda self: self.owned is not None)
    @rule(place=st.sampled_from(PLACES))
    def it_is_taken_from_a_worker_that_does_not_know(self, place: str) -> None:
        stale = self.owned
        assert stale is not None
        if place == self.place:
            return
        self.take(place)
        before = list(self.topics.balances), list(self.topics.letters)
        with ThreadPoolExecutor(1) as executor:
            asyncio.run(stale.flush(CLUSTER, executor, executor))
        assert (self.topics.balances, self.topics.letters) == before
        stale.close()

    @precondition(lambda self: self.owned is not None)
    @rule()
    def a_snapshot_is_written(self) -> None:
        assert self.owned is not None
        if self.owned.needs_snapshot():
            self.owned.write_snapshot(self._snapshots(), 2)

    @rule(place=st.sampled_from(PLACES))
    def a_disk_is_lost(self, place: str) -> None:
        if self.owned is None or place != self.place:
            shutil.rmtree(self.directory / place, ignore_errors=True)

    @rule()
    def the_tables_are_compacted(self) -> None:
        self.topics.compact()

    # -- what always holds

    @invariant()
    def no_dead_letter_is_sent_twice(self) -> None:
        assert max(Counter(self.topics.letters).values(), default=1) == 1

    @invariant()
    def what_is_published_is_the_state_at_its_mark(self) -> None:
        published = self.topics.published()
        mark = published.mark
        if mark is None or mark == self.checked:
            return
        assert self.checked is None or dominates(mark.watermark, self.checked.watermark)
        records = self.topics.before(mark.watermark)
        partition, letters = straight_fold(records)
        naive = Reference(1)
        for topic, record in records:
            naive.apply(topic, 0, record.offset, record.key, record.value)
        assert mark.counts == partition.counts == naive.counts_of_partition(0)
        rows = balances_of(published)
        rows.pop(LETTERS_ACCOUNT, None)
        assert rows == naive.balances_of_partition(0)
        if mark.watermark == partition.watermark:  # no holes right before it
            assert mark.state_digest == partition.state_digest()
        assert set(letters) <= set(self.topics.letters)
        self.checked = mark

    def teardown(self) -> None:
        """Let it run to the end of the log, and compare all of it."""
        try:
            if self.owned is None:
                self.take(self.place)
            for topic in INPUT_TOPICS:
                self.apply(topic, 1_000)
            assert self.flush()
            assert self.owned is not None
            expected, letters = straight_fold(self.topics.before(None))
            assert self.owned.partition.state_digest() == expected.state_digest()
            assert self.owned.partition.log_digests == expected.log_digests
            assert list(self.owned.partition.balances()) == list(expected.balances())
            assert Counter(self.topics.letters) == Counter(letters)
            if any(self.topics.end().values()):
                mark = self.topics.tail().mark
                assert mark is not None
                assert mark.watermark == self.topics.end()
                assert mark.state_digest == expected.state_digest()
            self.what_is_published_is_the_state_at_its_mark()
        finally:
            if self.owned is not None:
                self.owned.close()
            self.patches.undo()
            shutil.rmtree(self.directory)

    # -- steps

    def _snapshots(self) -> Snapshots:
        return Snapshots(self.directory / "snapshots", "")

    def take(self, place: str) -> None:
        store, partition = open_state(self.directory / place / "p0", 0, ORIGIN, self._snapshots())
        self.owned, self.place = OwnedPartition(0, store, partition), place
        self.owned.acquire(CLUSTER)

    def apply(self, topic: str, size: int) -> None:
        assert self.owned is not None
        partition = self.owned.partition
        position = partition.watermark[topic]
        chunk = [r for r in self.topics.log[topic] if r.offset >= position][:size]
        if chunk:
            partition.apply(topic, chunk)
            self.owned.unsettled += len(chunk)

    def flush(self) -> bool:
        assert self.owned is not None
        with ThreadPoolExecutor(1) as executor:
            return asyncio.run(self.owned.flush(CLUSTER, executor, executor))

    def kill(self) -> None:
        """End the worker as SIGKILL does: what its disk has at this moment is all that is left."""
        assert self.owned is not None
        here, left = self.directory / self.place, self.directory / "left"
        eventually(lambda: copied(here, left))
        self.owned.close()
        self.owned = None
        shutil.rmtree(here)
        left.rename(here)


def test_a_partition_ends_exact_whatever_happens_to_its_workers() -> None:
    run_state_machine_as_test(
        Crashes,
        settings=hypothesis_settings(
            hypothesis_settings(), max_examples=40, stateful_step_count=40
        ),
    )


def deposit(number: int) -> bytes:
    """Return the value of a valid record of `transfers`."""
    fields = {
        "type": "deposited",
        "version": 1,
        "event_id": "e",
        "account": "alice",
        "occurred_at": "2026-01-01T00:00:00Z",
        "transfer_id": f"x{number}",
        "asset": "USD",
        "amount": "1",
    }
    return json.dumps(fields).encode()


@pytest.fixture
def crashes() -> Iterator[Crashes]:
    """Ten deposits folded and published at place a; then a bad order and a bad fill arrived."""
    machine = Crashes()
    log = machine.topics.log
    log["transfers"] = [Record(number, b"alice", deposit(number)) for number in range(10)]
    machine.take("a")
    machine.apply("transfers", 10)
    assert machine.flush()
    log["orders"], log["fills"] = [Record(0, b"k", b"bad")], [Record(0, b"k", b"bad")]
    yield machine
    machine.teardown()


def test_dead_letters_sent_by_two_that_catch_up_apart_are_not_sent_by_the_second(
    crashes: Crashes,
) -> None:
    """Found by reading: the second one's row `@dead-letters` forgot what the first had sent."""
    crashes.kill()
    crashes.take("b")
    crashes.apply("fills", 1)
    assert crashes.flush()
    crashes.kill()
    crashes.take("c")
    crashes.apply("orders", 1)
    assert crashes.flush()
    crashes.apply("fills", 1)
    assert crashes.flush()
    assert crashes.topics.letters == [b"fills:0:0", b"orders:0:0"]


def test_dead_letters_sent_beyond_a_mark_are_known_after_the_next_mark(crashes: Crashes) -> None:
    """Found by reading: a mark that was ahead in another topic hid the row `@dead-letters`."""
    crashes.kill()
    crashes.take("b")
    crashes.apply("fills", 1)
    assert crashes.flush()
    crashes.kill()
    crashes.take("a")  # exactly at the mark, and before the bad fill
    crashes.apply("orders", 1)
    assert crashes.flush()
    crashes.kill()
    crashes.take("c")
    crashes.apply("fills", 1)
    assert crashes.flush()
    assert crashes.topics.letters == [b"fills:0:0", b"orders:0:0"]
