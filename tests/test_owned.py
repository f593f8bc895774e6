"""An owned partition by itself: what it publishes and when, around crashes and hand-overs."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, Producer

from ledger.agents import owned as module
from ledger.agents.assignor import distribute
from ledger.agents.owned import OwnedPartition, open_state, stored_progress
from ledger.agents.publisher import FencedError, Outgoing, Publisher, Rows
from ledger.agents.worker import snapshot_interval_s
from ledger.errors import ReplacedTopic, StateInUse, TopicError
from ledger.letters import dead_letter
from ledger.objects import StorageError
from ledger.projections.partition import Header, Origin, Packed, Rejected
from ledger.published import (
    LETTERS_ACCOUNT,
    MARK_KEY,
    PublishedPartition,
    Tail,
    decode_mark,
)
from ledger.settings import Settings
from ledger.snapshots import Snapshots
from tests.support import singly

ORIGIN = Origin("cluster", {"orders": "o", "fills": "f", "transfers": "t"}, 1)


@dataclass(frozen=True)
class Record:
    offset: int
    key: bytes | None
    value: bytes | None
    headers: tuple[()] = ()


def deposit(offset: int, account: str = "alice") -> Record:
    fields = {
        "type": "deposited",
        "version": 1,
        "event_id": "e",
        "account": account,
        "occurred_at": "2026-01-01T00:00:00Z",
        "transfer_id": f"x{offset}",
        "asset": "USD",
        "amount": "1",
    }
    return Record(offset, account.encode(), json.dumps(fields).encode())


@dataclass
class Topic:
    """What was published to `balances` and `dead-letters`, in transactions that all succeed."""

    sent: list[Outgoing] = field(default_factory=list)
    fenced: bool = False
    block: threading.Event | None = None

    def tail(self) -> Tail:
        tail = Tail()
        for record in self.sent:
            if record.key == MARK_KEY and record.value is not None:
                tail = Tail(decode_mark(record.value, 0, 0))
            elif record.key == LETTERS_ACCOUNT.encode():
                assert record.value is not None
                tail.letters = json.loads(record.value)["watermark"]
        return tail

    def letters(self) -> list[bytes]:
        return [record.key for record in self.sent if record.topic == "dead-letters"]


@pytest.fixture
def topic(monkeypatch: pytest.MonkeyPatch) -> Topic:
    topic = Topic()

    class FakePublisher:
        @classmethod
        def of_partition(cls, *_: object) -> FakePublisher:
            return cls()

        def acquire(self) -> None: ...

        def close(self) -> None: ...

        def publish(self, records: Iterable[Outgoing | Rows]) -> None:
            if topic.block is not None:
                topic.block.wait(10)
            if topic.fenced:
                raise FencedError("fenced")
            topic.sent.extend(singly(records))

        def require_open(self) -> None: ...

    monkeypatch.setattr(module, "Publisher", FakePublisher)
    monkeypatch.setattr(module, "LogWatch", lambda *_: SimpleNamespace(confirm=lambda *_: None))
    monkeypatch.setattr(
        module, "tails", lambda _cluster, numbers: {n: topic.tail() for n in numbers}
    )
    monkeypatch.setattr(
        module,
        "read_published",
        lambda _cluster, numbers: {n: PublishedPartition() for n in numbers},
    )
    return topic


class Cluster:
    settings = Settings()
    bootstrap = "nowhere"


CLUSTER: Any = Cluster()


def take(directory: Path) -> OwnedPartition:
    """Open a partition's state in a place on disk and become its owner."""
    snapshots = Snapshots(directory / "snapshots", "")
    store, partition = open_state(directory / "p0", 0, ORIGIN, snapshots)
    owned = OwnedPartition(0, store, partition)
    owned.acquire(CLUSTER)
    return owned


def flush(owned: OwnedPartition) -> bool:
    with ThreadPoolExecutor(1) as executor:
        return asyncio.run(owned.flush(CLUSTER, executor, executor))


def test_a_crash_between_publishing_and_storing_repeats_nothing(
    topic: Topic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = take(tmp_path)
    first.partition.apply("transfers", [deposit(0), Record(1, b"k", b"bad")])
    monkeypatch.setattr(first.partition, "write", lambda: (_ for _ in ()).throw(OSError("killed")))
    with pytest.raises(OSError, match="killed"):
        flush(first)
    first.close()
    assert topic.letters() == [b"transfers:0:1"]
    digest = topic.tail().mark
    again = take(tmp_path)
    assert again.partition.watermark["transfers"] == 0
    again.partition.apply("transfers", [deposit(0), Record(1, b"k", b"bad")])
    assert flush(again)
    assert topic.letters() == [b"transfers:0:1"]
    assert topic.tail().mark == digest
    again.close()


def test_dead_letters_sent_while_catching_up_are_not_sent_by_the_next_owner(
    topic: Topic, tmp_path: Path
) -> None:
    """Found by review: two hand-overs during one catch-up doubled them."""
    one = take(tmp_path / "1")
    one.partition.apply("transfers", [deposit(n) for n in range(10)])
    assert flush(one)
    one.close()
    for place in ("2", "3"):  # places without state, behind what is published
        behind = take(tmp_path / place)
        behind.partition.apply("fills", [Record(0, b"k", b"bad")])
        behind.partition.apply("transfers", [deposit(n) for n in range(5)])
        assert flush(behind)
        mark = topic.tail().mark
        assert mark is not None
        assert mark.watermark["transfers"] == 10
        behind.close()
    last = take(tmp_path / "3")
    last.partition.apply("transfers", [deposit(n) for n in range(5, 11)])
    assert flush(last)
    assert topic.letters() == [b"fills:0:0"]
    mark = topic.tail().mark
    assert mark is not None
    assert mark.state_digest == last.partition.state_digest()
    last.close()


def test_dead_letters_sent_ahead_are_remembered_by_owners_that_are_ahead_elsewhere(
    topic: Topic, tmp_path: Path
) -> None:
    """Found by chaos: a row of an owner that was behind in one topic hid what had been sent of it.

    Three owners, each from a place without state: the first publishes, the second sends letters of
    `fills` ahead of that, the third of `orders`; and then the mark comes without those `fills`.
    """
    bad = [Record(offset, b"k", b"bad") for offset in range(5)]
    one = take(tmp_path / "1")
    one.partition.apply("transfers", [deposit(n) for n in range(10)])
    assert flush(one)
    one.close()
    for place, ahead in (("2", "fills"), ("3", "orders")):
        owned = take(tmp_path / place)
        owned.partition.apply(ahead, bad)
        assert flush(owned)
        owned.close()
    third = take(tmp_path / "3")
    third.partition.apply("transfers", [deposit(n) for n in range(10)])
    assert flush(third)
    mark = topic.tail().mark
    assert mark is not None
    assert mark.watermark == {"orders": 5, "fills": 0, "transfers": 10}
    third.close()
    last = take(tmp_path / "3")
    last.partition.apply("fills", bad)
    assert flush(last)
    assert sorted(topic.letters()) == sorted(
        f"{ahead}:0:{offset}".encode() for ahead in ("fills", "orders") for offset in range(5)
    )
    tail = topic.tail()
    assert tail.letters is None
    last.close()


SMALL, LARGE = 100, 16 << 20


@pytest.mark.parametrize(
    ("sizes", "dropped"),
    [
        ({"value": SMALL, "headers": SMALL, "key": SMALL}, []),
        ({"value": LARGE - (2 << 20), "headers": SMALL, "key": SMALL}, []),
        ({"value": LARGE, "headers": SMALL, "key": SMALL}, ["value"]),
        ({"value": SMALL, "headers": LARGE, "key": SMALL}, ["headers"]),
        ({"value": SMALL, "headers": SMALL, "key": LARGE}, ["key"]),
        ({"value": LARGE, "headers": LARGE + 1, "key": SMALL}, ["headers", "value"]),
        ({"value": LARGE // 2, "headers": LARGE // 2 - 1000, "key": LARGE // 4}, ["value"]),
        (
            {"value": LARGE, "headers": LARGE - 1000, "key": LARGE - 2000},
            ["value", "headers", "key"],
        ),
    ],
)
def test_a_dead_letter_is_never_too_large_and_says_what_it_lacks(
    sizes: dict[str, int], dropped: list[str]
) -> None:
    """Found by review: headers were not counted; such a record stopped its partition for good."""
    parts = {part: b"x" * size for part, size in sizes.items()}
    record = SimpleNamespace(
        offset=7,
        key=parts["key"],
        value=parts["value"],
        headers=(("dropped", b"value"), ("one", parts["headers"][10:]), ("two", None)),
    )
    rejected = Rejected("fills", record, "invalid", "é" * 2000)
    letter = dead_letter(3, rejected)
    assert letter.key == b"fills:3:7"
    kept = dict(letter.headers[-5:])
    assert letter.value == (None if "value" in dropped else parts["value"])
    assert kept["key"] == (None if "key" in dropped else parts["key"])
    assert (("two", None) in letter.headers) == ("headers" not in dropped)
    assert (letter.headers[-1] == ("dropped", ",".join(dropped).encode())) == bool(dropped)
    assert isinstance(kept["detail"], bytes)
    for part in dropped:
        assert f"too large to be kept here: {part} of " in kept["detail"].decode()
    producer = Producer({"bootstrap.servers": "127.0.0.1:1", "message.max.bytes": LARGE})
    producer.produce("t", letter.value, letter.key, headers=letter.headers)  # or it would raise
    producer.purge()


def test_tables_of_topics_that_are_no_more_are_refused(
    topic: Topic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = take(tmp_path / "1")
    one.partition.apply("transfers", [deposit(n) for n in range(10)])
    assert flush(one)
    one.close()
    anew = {**ORIGIN.topic_ids, "transfers": "new"}
    monkeypatch.setitem(globals(), "ORIGIN", Origin("cluster", anew, 1))
    with pytest.raises(ReplacedTopic, match=r"transfers:0: the topic was created anew.* 10 "):
        take(tmp_path / "2")


def test_nothing_older_than_the_published_cut_is_published(topic: Topic, tmp_path: Path) -> None:
    one = take(tmp_path / "1")
    one.partition.apply("transfers", [deposit(n) for n in range(10)])
    assert flush(one)
    one.close()
    sent = len(topic.sent)
    behind = take(tmp_path / "2")
    behind.partition.apply("transfers", [deposit(n) for n in range(9)])
    assert flush(behind)
    assert len(topic.sent) == sent
    behind.partition.apply("transfers", [deposit(9)])
    assert flush(behind)
    assert len(topic.sent) > sent
    behind.close()


def test_a_fenced_flush_loses_the_state_and_wakes_whoever_waits(
    topic: Topic, tmp_path: Path
) -> None:
    owned = take(tmp_path)
    owned.partition.apply("transfers", [deposit(0)])
    topic.fenced = True
    assert not flush(owned)
    assert owned.lost
    assert owned.room.is_set()
    owned.close()


def test_a_flush_that_ends_after_the_state_was_let_go_stores_nothing(
    topic: Topic, tmp_path: Path
) -> None:
    owned = take(tmp_path)
    owned.partition.apply("transfers", [deposit(0)])
    topic.block = threading.Event()

    async def let_go() -> bool:
        with ThreadPoolExecutor(1) as executor:
            flushing = asyncio.ensure_future(owned.flush(CLUSTER, executor, executor))
            await asyncio.sleep(0.05)
            owned.lose()
            owned.close()
            assert topic.block is not None
            topic.block.set()
            return await flushing

    assert asyncio.run(let_go()) is False


def test_a_store_is_closed_while_its_snapshot_is_being_uploaded(
    topic: Topic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owned = take(tmp_path)
    owned.partition.apply("transfers", [deposit(n, f"a{n}") for n in range(50)])
    assert flush(owned)
    uploading, uploaded = threading.Event(), threading.Event()

    def write(self: Snapshots, header: Header, entries: Iterable[tuple[bytes, bytes]]) -> None:
        assert len(list(entries)) > 50
        uploading.set()
        assert uploaded.wait(10)

    monkeypatch.setattr(Snapshots, "write", write)
    making = threading.Thread(target=owned.write_snapshot, args=(Snapshots(tmp_path / "s", ""), 3))
    making.start()
    assert uploading.wait(5)
    owned.close()
    take(tmp_path).close()
    uploaded.set()
    making.join(5)
    assert not making.is_alive()


def test_snapshots_take_no_more_than_a_tenth_of_the_time(
    topic: Topic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found with 60,000,000 orders: a worker did hardly anything but write snapshots."""
    owned = take(tmp_path)
    owned.partition.apply("transfers", [deposit(0, "a")])
    assert flush(owned)
    now = [1000.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    owned.snapshot_at = now[0]

    def write(self: Snapshots, header: Header, entries: Iterable[tuple[bytes, bytes]]) -> None:
        now[0] += 30

    monkeypatch.setattr(Snapshots, "write", write)
    owned.write_snapshot(Snapshots(tmp_path / "s", ""), 3)
    owned.partition.apply("transfers", [deposit(1, "a")])
    assert flush(owned)
    assert snapshot_interval_s(60, [0, 5]) == 60
    interval = snapshot_interval_s(60, [owned.snapshot_took_s, 20])  # of another partition
    assert interval == 500
    now[0] += 499
    assert not owned.wants_snapshot(interval)
    now[0] += 1
    assert owned.wants_snapshot(interval)

    def fail(self: Snapshots, header: Header, entries: Iterable[tuple[bytes, bytes]]) -> None:
        now[0] += 40
        raise StorageError("full")

    monkeypatch.setattr(Snapshots, "write", fail)
    with pytest.raises(StorageError, match="full"):
        owned.write_snapshot(Snapshots(tmp_path / "s", ""), 3)
    assert owned.snapshot_took_s == 40
    assert not owned.wants_snapshot(400)
    owned.close()


def test_closing_ends_a_snapshot_being_made_and_lets_go_of_the_lock(
    topic: Topic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by review: the database stayed locked, was taken for damaged, and removed."""
    owned = take(tmp_path)
    owned.partition.apply("transfers", [deposit(n, f"a{n}") for n in range(500)])
    assert flush(owned)
    snapshots = Snapshots(tmp_path / "s", "")
    started = threading.Event()
    original = OwnedPartition._until_closing

    def slowly(self: OwnedPartition, entries: module.Entries, reading: ExitStack) -> module.Entries:
        for entry in original(self, entries, reading):
            started.set()
            time.sleep(0.01)
            yield entry

    monkeypatch.setattr(OwnedPartition, "_until_closing", slowly)
    making = threading.Thread(target=owned.write_snapshot, args=(snapshots, 3))
    making.start()
    assert started.wait(5)
    owned.close()
    making.join(5)
    again = take(tmp_path)
    assert again.partition.watermark["transfers"] == 500
    with pytest.raises(StateInUse):
        take(tmp_path)
    again.close()
    assert stored_progress(tmp_path) == {0: 500}
    assert snapshots.of_partition(0) == []


def test_grown_topics_are_refused_and_the_state_is_kept(topic: Topic, tmp_path: Path) -> None:
    owned = take(tmp_path)
    owned.partition.apply("transfers", [deposit(0)])
    assert flush(owned)
    owned.close()
    grown = Origin(ORIGIN.cluster_id, ORIGIN.topic_ids, 2)
    with pytest.raises(TopicError, match="had 1 partitions and now have 2"):
        open_state(tmp_path / "p0", 0, grown, Snapshots(tmp_path / "s", ""))
    assert stored_progress(tmp_path) == {0: 1}


@pytest.mark.parametrize(
    ("progress", "expected"),
    [
        ({"a": {}, "b": {}}, {"a": [0, 2], "b": [1, 3]}),
        ({"a": {3: 5}, "b": {0: 5, 1: 5}}, {"a": [2, 3], "b": [0, 1]}),
        ({"a": {0: 9, 1: 9, 2: 9, 3: 9}, "b": {}}, {"a": [0, 1], "b": [2, 3]}),
        ({"a": {0: 1}, "b": {0: 2}}, {"a": [1, 2], "b": [0, 3]}),
    ],
)
def test_partitions_go_to_the_freshest_state_and_evenly(
    progress: dict[str, dict[int, int]], expected: dict[str, list[int]]
) -> None:
    assert distribute(4, progress) == expected


def test_one_that_has_caught_up_is_flushed_at_once(topic: Topic, tmp_path: Path) -> None:
    owned = take(tmp_path)
    owned.partition.apply("transfers", [deposit(0)])
    owned.note_behind("transfers", 99, 100)
    assert not owned.is_due(60, 100)
    owned.note_behind("fills", 2, 100)  # now both together are far behind
    owned.note_behind("transfers", 0, 100)
    assert not owned.is_due(60, 100)
    owned.note_behind("fills", 0, 100)
    assert owned.is_due(60, 100)
    assert flush(owned)
    assert not owned.is_due(60, 100)
    owned.close()


def test_chunks_are_applied_in_the_order_they_came_while_they_are_wanted(
    topic: Topic, tmp_path: Path
) -> None:
    owned = take(tmp_path)
    wanted = [True] * 20 + [False] * 2

    async def apply_all() -> list[bool]:
        with ThreadPoolExecutor(4) as executor:
            return await asyncio.gather(
                *(
                    owned.apply(
                        "transfers",
                        Packed.of([deposit(n)]),
                        n + 1,
                        executor,
                        partial(wanted.__getitem__, n),
                        100,
                    )
                    for n in range(len(wanted))
                )
            )

    assert asyncio.run(apply_all()) == wanted
    assert owned.partition.watermark["transfers"] == owned.unsettled == 20
    owned.close()


def test_chunks_wait_for_a_flush_when_too_much_is_unsettled(topic: Topic, tmp_path: Path) -> None:
    owned = take(tmp_path)

    async def apply(n: int, executor: ThreadPoolExecutor) -> bool:
        records = Packed.of([deposit(n)])
        return await owned.apply("transfers", records, n + 1, executor, lambda: True, 1)

    async def run() -> None:
        with ThreadPoolExecutor(4) as executor:
            assert await apply(0, executor)
            assert await apply(1, executor)
            waiting = asyncio.ensure_future(apply(2, executor))
            await asyncio.sleep(0.05)
            assert owned.partition.watermark["transfers"] == 2
            assert await owned.flush(CLUSTER, executor, executor)
            assert await waiting
            assert owned.unsettled == 1

    asyncio.run(run())
    owned.close()


def test_a_row_that_is_too_large_for_the_producer_stops_it() -> None:
    """Found by reading: it was tried again for ever, as if there were no room for it."""
    publisher = Publisher("127.0.0.1:1", "nobody")
    publisher._producer = Producer(
        {"bootstrap.servers": "127.0.0.1:1", "message.max.bytes": 1000, "log_level": 0}
    )
    messages = [{"key": b"alice", "value": b"x" * 2000}, {"key": b"bob", "value": b"x"}]
    with pytest.raises(KafkaException) as raised:
        publisher._produce_all([Rows("balances", 0, lambda: [messages])])
    assert raised.value.args[0].code() == KafkaError.MSG_SIZE_TOO_LARGE
