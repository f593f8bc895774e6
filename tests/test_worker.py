"""Real workers on the real broker: what is published equals the reference, whatever happens."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from decimal import Decimal
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.record.default_records import _DefaultRecordBatchBuilderPy
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import NewPartitions, NewTopic

from ledger.agents.publisher import Publisher
from ledger.events import INPUT_TOPICS
from ledger.kafka import BALANCES, DEAD_LETTERS, Cluster, KafkaRecord
from ledger.published import MARK_KEY, PublishedPartition, conservation, totals
from ledger.rebuild import Rebuilder
from ledger.rocks import RocksStore
from ledger.settings import Settings
from tests.reference import Reference
from tests.support import (
    BITSTAMP,
    cluster_of,
    eventually,
    lines_of,
    publish,
    published_at_end,
    raw_producer,
    worker,
)

pytestmark = pytest.mark.integration


def all_records(cluster: Cluster) -> Iterator[tuple[str, int, KafkaRecord]]:
    """Yield every record of the input topics, of each partition in order."""
    slots = [(t, n) for t in INPUT_TOPICS for n in range(cluster.origin().partitions)]
    ends = cluster.ends(slots)
    for batch in cluster.read({slot: (0, ends[slot]) for slot in slots}):
        for record in batch.records:
            yield batch.topic, batch.partition, record


def reference_of(settings: Settings) -> Reference:
    """Fold everything in the topics naively."""
    cluster = cluster_of(settings)
    naive = Reference(cluster.origin().partitions)
    for topic, partition, record in all_records(cluster):
        naive.apply(topic, partition, record.offset, record.key, record.value)
    return naive


def assert_published_equals_reference(
    settings: Settings, published: dict[int, PublishedPartition], naive: Reference
) -> None:
    for number, found in published.items():
        assert found.mark is not None
        assert found.mark.counts == naive.counts_of_partition(number)
        rows = {
            account: {asset: tuple(map(Decimal, texts)) for asset, texts in row.items()}
            for account, row in found.accounts.items()
            if row
        }
        assert rows == naive.balances_of_partition(number)
    cluster = cluster_of(settings)
    rebuilder = Rebuilder(cluster, cluster.origin(), warn=pytest.fail)
    rebuilt = rebuilder.rebuild(rebuilder.ends(), rebuilder.ends(), "genesis")
    for number, partition in rebuilt.partitions.items():
        mark = published[number].mark
        assert mark is not None
        assert partition.state_digest() == mark.state_digest


def test_two_workers_fold_the_bitstamp_hour(settings: Settings, tmp_path: Path) -> None:
    sent = publish(settings, lines_of(BITSTAMP))
    assert sent == 11_432
    one_by_one = settings.model_copy(update={"chunk_records": 1})  # each of Kafka's batches
    with worker(settings, tmp_path / "1.log"), worker(one_by_one, tmp_path / "2.log"):
        published = eventually(lambda: published_at_end(settings))
        naive = reference_of(settings)
        assert_published_equals_reference(settings, published, naive)
        sums = totals(row for found in published.values() for row in found.accounts.items())
        assert str(sums["@fees", "USD"].balance) == "317.62"
        assert sums["@clearing", "BTC"].balance == sums["@clearing", "USD"].balance == 0
        holds = {
            asset: sum((t.hold for (_, a), t in sums.items() if a == asset), Decimal(0))
            for asset in ("USD", "BTC")
        }
        assert holds == {
            "USD": Decimal("225241.5532982048"),
            "BTC": Decimal("604.76137024"),
        }
        assert not any(conservation(sums).values())
        # Published again: the same balances, all of it counted as duplicate.
        publish(settings, lines_of(BITSTAMP))
        again = eventually(lambda: published_at_end(settings))
    for number, found in again.items():
        assert found.accounts == published[number].accounts
    duplicates = [
        tally["duplicate"] for f in again.values() if f.mark for tally in f.mark.counts.values()
    ]
    assert sum(duplicates) == 11_432


@pytest.mark.parametrize("seed", [1, 2])
def test_killed_stopped_and_restarted_workers_end_exact(
    settings: Settings, tmp_path: Path, seed: int
) -> None:
    """SIGKILL, SIGTERM and SIGSTOP past the session while records arrive."""
    print(f"seed {seed}")
    rng = random.Random(seed)
    lines = list(lines_of(BITSTAMP))
    rng.shuffle(lines)
    publish(settings, lines[:2000])
    with ExitStack() as running:
        workers = {
            n: running.enter_context(worker(settings, tmp_path / f"{n}.log")) for n in range(3)
        }
        eventually(lambda: published_at_end(settings))
        for part in range(4):
            publish(settings, lines[2000 + part * 2000 : 4000 + part * 2000])
            time.sleep(rng.uniform(0, 0.5))
            victim = rng.choice(list(workers))
            action = ("kill", "stop", "terminate", "kill")[part]
            if action == "stop":
                workers[victim].send_signal(signal.SIGSTOP)
                time.sleep(8)  # longer than the session: its partitions are taken
                workers[victim].send_signal(signal.SIGCONT)
                continue
            workers[victim].send_signal(signal.SIGKILL if action == "kill" else signal.SIGTERM)
            workers[victim].wait(10)
            workers[victim] = running.enter_context(worker(settings, tmp_path / f"{victim}.log"))
        publish(settings, lines[10_000:])
        published = eventually(lambda: published_at_end(settings), 90)
    assert_published_equals_reference(settings, published, reference_of(settings))


def test_what_cannot_be_applied_goes_to_dead_letters_once(
    settings: Settings, tmp_path: Path
) -> None:
    publish(settings, list(lines_of(BITSTAMP))[:500])
    producer = raw_producer(settings)
    bad: list[tuple[str, bytes | None, bytes | None, str]] = [
        ("fills", b"trader-01", b'{"type": "order_filled"', "invalid"),
        ("orders", b"trader-01", b"\xff\x00", "invalid"),
        ("transfers", b"trader-01", None, "invalid"),
        ("transfers", None, b"{}", "invalid"),
    ]
    for topic, key, value, _ in bad:
        producer.produce(settings.topic(topic), value, key, headers=[("trace", b"7")])
    assert producer.flush(10) == 0
    with worker(settings, tmp_path / "1.log") as process:
        published = eventually(lambda: published_at_end(settings))
        process.kill()
        process.wait()
    with worker(settings, tmp_path / "2.log"):
        publish(settings, list(lines_of(BITSTAMP))[500:600])
        published = eventually(lambda: published_at_end(settings))
    assert_published_equals_reference(settings, published, reference_of(settings))
    letters = read_dead_letters(settings)
    assert sorted((v or b"") for _, v, _ in letters) == sorted((v or b"") for _, _, v, _ in bad)
    for key, _, headers in letters:
        assert headers["source"] == key
        assert headers["reason"] == b"invalid"
        assert headers["trace"] == b"7"
        assert headers["detail"]


def test_a_worker_that_has_nothing_to_do_merges_files(settings: Settings, tmp_path: Path) -> None:
    directory = settings.worker_dir / "0" / "p0"
    with contextlib.closing(RocksStore(directory)) as store:
        for number in range(12):
            store.write({b"~%d" % number: b""})  # no key of an entry, so nobody asks for it
            store.flush()
    assert len(list(directory.glob("*.sst"))) == 12
    with worker(settings, tmp_path / "worker.log"):
        eventually(lambda: len(list(directory.glob("*.sst"))) <= 4)


def test_a_fenced_worker_that_the_group_still_counts_takes_the_partition_again(
    settings: Settings, tmp_path: Path
) -> None:
    """An activation that comes late fences the rightful owner, which must not stand still."""
    lines = list(lines_of(BITSTAMP))
    publish(settings, lines[:3000])
    log = tmp_path / "1.log"
    with worker(settings, log):
        eventually(lambda: published_at_end(settings))
        assert settings.kafka is not None
        for number in range(4):
            rogue = Publisher(settings.kafka, f"{settings.topic_prefix}ledger-partition-{number}")
            rogue.acquire()
        publish(settings, lines[3000:6000])
        published = eventually(lambda: published_at_end(settings), 45)
        assert "belongs to another worker" in log.read_text()
        assert "taking partitions again" in log.read_text()
    assert_published_equals_reference(settings, published, reference_of(settings))


def test_a_record_as_large_as_the_broker_takes_becomes_a_dead_letter(
    settings: Settings, tmp_path: Path
) -> None:
    """Found by review: its dead letter is larger than it was, and stopped the partition."""
    cluster_of(settings).ensure_topics()
    producer = Producer(
        {"bootstrap.servers": settings.kafka, "message.max.bytes": 2_000_000, "log_level": 2}
    )
    huge = b"x" * 1_048_000
    producer.produce(settings.topic("fills"), huge, b"trader-01", partition=0)
    assert producer.flush(30) == 0
    publish(settings, list(lines_of(BITSTAMP))[:500])
    with worker(settings, tmp_path / "1.log"):
        published = eventually(lambda: published_at_end(settings))
    assert_published_equals_reference(settings, published, reference_of(settings))
    ((key, value, headers),) = read_dead_letters(settings)
    assert (key, value) == (b"fills:0:0", huge)
    assert headers["reason"] == b"invalid"


class _NotUtf8(str):
    """A header name that aiokafka sends as other bytes than UTF-8."""

    def encode(self, *_: str) -> bytes:
        return b"\xff" + super().encode()


def publish_a_header_name_that_is_not_utf8(
    settings: Settings, compression: str | None = None, codec: int = 0
) -> None:
    """Publish three invalid records to `fills`, the second with such a header."""

    async def send() -> None:
        async with AIOKafkaProducer(
            bootstrap_servers=settings.kafka, compression_type=compression
        ) as producer:
            batch = producer.create_batch()
            batch._builder = _DefaultRecordBatchBuilderPy(2, codec, 0, -1, -1, 0, 1 << 20)
            for number in range(3):
                name = _NotUtf8("trace") if number == 1 else "trace"
                headers = [(name, b"7")]
                batch.append(timestamp=None, key=b"a", value=b"x" * 200, headers=headers)
            sent = await producer.send_batch(batch, settings.topic("fills"), partition=2)
            await sent

    asyncio.run(send())


@pytest.mark.parametrize(("compression", "codec"), [(None, 0), ("zstd", 4)])
def test_header_names_that_are_not_utf8_stop_no_worker(
    settings: Settings, tmp_path: Path, compression: str | None, codec: int
) -> None:
    """Found by review: aiokafka raises, for ever, at the batch that has one."""
    publish(settings, list(lines_of(BITSTAMP))[:500])
    publish_a_header_name_that_is_not_utf8(settings, compression, codec)
    with worker(settings, tmp_path / "1.log"):
        published = eventually(lambda: published_at_end(settings))
    assert_published_equals_reference(settings, published, reference_of(settings))
    names = [next(iter(headers)) for _, _, headers in read_dead_letters(settings)]
    assert names == ["trace", "\\xfftrace", "trace"]


def test_topics_that_grew_are_refused(settings: Settings, tmp_path: Path) -> None:
    """Accounts would lie in other partitions than their history."""
    grown = settings.model_copy(update={"partitions": None})
    publish(settings, list(lines_of(BITSTAMP))[:500])
    with worker(grown, tmp_path / "1.log") as process:
        eventually(lambda: published_at_end(settings))
        process.terminate()
        assert process.wait(10) == 0
    cluster = cluster_of(grown)
    names = [settings.topic(name) for name in (*INPUT_TOPICS, BALANCES)]
    for future in cluster.admin.create_partitions([NewPartitions(n, 12) for n in names]).values():
        future.result()
    eventually(lambda: cluster.origin().partitions == 12 or None)
    elsewhere = grown.model_copy(update={"state_dir": tmp_path / "other", "snapshots": None})
    for number, here in enumerate((grown, elsewhere)):
        log = tmp_path / f"grown-{number}.log"
        with worker(here, log) as process:
            assert process.wait(30) == 2
        assert "had 8 partitions and now have 12" in log.read_text()


@pytest.mark.parametrize("more", [0, 1000])
def test_tables_deleted_under_a_worker_are_published_anew(
    settings: Settings, tmp_path: Path, more: int
) -> None:
    """Found by review: where another created the topic at once, only what changed was published."""
    publish(settings, list(lines_of(BITSTAMP))[:2000])
    with worker(settings, tmp_path / "1.log"):
        eventually(lambda: published_at_end(settings))
        cluster = cluster_of(settings)
        for future in cluster.admin.delete_topics([settings.topic(BALANCES)]).values():
            future.result()
        eventually(lambda: BALANCES not in cluster.topics([BALANCES]))
        publish(settings, list(lines_of(BITSTAMP))[2000 : 2000 + more])
        published = eventually(lambda: published_at_end(settings), 120)
    assert_published_equals_reference(settings, published, reference_of(settings))


def test_a_compacted_input_topic_and_garbage_in_the_tables_are_refused_by_name(
    settings: Settings, tmp_path: Path
) -> None:
    cluster = cluster_of(settings)
    policy = {"cleanup.policy": "compact"}
    topic = NewTopic(settings.topic("fills"), 8, 1, config=policy)
    for future in cluster.admin.create_topics([topic]).values():
        future.result()
    with worker(settings, tmp_path / "1.log") as process:
        assert process.wait(30) == 2
    assert "cleanup.policy=compact" in (tmp_path / "1.log").read_text()
    other = settings.model_copy(update={"topic_prefix": settings.topic_prefix + "b-"})
    cluster_of(other).ensure_topics()
    producer = raw_producer(other)
    producer.produce(other.topic(BALANCES), b"garbage", MARK_KEY, partition=3)
    assert producer.flush(10) == 0
    with worker(other, tmp_path / "2.log") as process:
        assert process.wait(30) == 2
    assert "balances:3: offset 0 is not a row" in (tmp_path / "2.log").read_text()


def read_dead_letters(
    settings: Settings,
) -> list[tuple[bytes | None, bytes | None, dict[str, str | bytes | None]]]:
    cluster = cluster_of(settings)
    end = cluster.ends([(DEAD_LETTERS, 0)])[DEAD_LETTERS, 0]
    consumer = Consumer(
        {
            "bootstrap.servers": settings.kafka,
            "group.id": "test",
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
        }
    )
    consumer.assign([TopicPartition(settings.topic(DEAD_LETTERS), 0, 0)])
    found = []
    while True:
        message = consumer.poll(10)
        assert message is not None
        if message.error():
            break
        found.append((message.key(), message.value(), dict(message.headers() or [])))
        if (message.offset() or 0) + 1 >= end:
            break
    consumer.close()
    return found
