"""Reading whole batches: it gives the records that a reader of single ones gives."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer

from ledger.blocks import read_packed
from ledger.errors import MissingRecords, UnreadableRecords
from ledger.kafka import Cluster, Slot
from ledger.settings import Settings
from tests.broker import own_broker
from tests.support import cluster_of, worker

pytestmark = pytest.mark.integration

SEED = 7
COMPRESSIONS = ("none", "gzip", "snappy", "lz4", "zstd")
Found = dict[Slot, list[tuple[int, bytes | None, bytes | None]]]
Spans = dict[Slot, tuple[int, int]]


@pytest.fixture(scope="module")
def rng() -> random.Random:
    return random.Random(SEED)


@pytest.fixture
def cluster(settings: Settings, rng: random.Random) -> Cluster:
    """Topics with batches of all kinds: compressed or not, committed, aborted, or of one record."""
    cluster = cluster_of(settings)
    cluster.ensure_topics()
    common: dict[str, Any] = {"bootstrap.servers": settings.kafka, "log_level": 2}
    for number, compression in enumerate(COMPRESSIONS):
        options = {**common, "compression.type": compression, "linger.ms": rng.choice([0, 50])}
        produce(Producer(options), settings, rng, 200)
        writer = Producer({**options, "transactional.id": f"{settings.topic_prefix}{number}"})
        writer.init_transactions(30)
        for abort in (False, True, False):
            writer.begin_transaction()
            produce(writer, settings, rng, 50)
            writer.abort_transaction(30) if abort else writer.commit_transaction(30)
    return cluster


def produce(producer: Producer, settings: Settings, rng: random.Random, count: int) -> None:
    for _ in range(count):
        value = rng.choice([None, b"", rng.randbytes(rng.randrange(400))])
        key = rng.choice([None, b"", rng.randbytes(5)])
        topic = settings.topic(rng.choice(["orders", "fills"]))
        headers: Any = rng.choice([[], [("a", b"1"), ("b", None)]])
        producer.produce(topic, value, key, partition=rng.randrange(2), headers=headers)
    assert producer.flush(30) == 0


def by_record(cluster: Cluster, spans: Spans) -> tuple[Found, int]:
    found: Found = {}
    moved: list[int] = []
    for batch in cluster.read(spans, moved.append):
        mine = found.setdefault((batch.topic, batch.partition), [])
        mine += [(record.offset, record.key, record.value) for record in batch.records]
    return found, sum(moved)


def by_batch(cluster: Cluster, spans: Spans) -> tuple[Found, int]:
    found: Found = {}
    moved: list[int] = []
    for batch in read_packed(cluster, spans, moved.append):
        mine = found.setdefault((batch.topic, batch.partition), [])
        records = [batch.records.full(place) for place in range(batch.count)]
        mine += [(record.offset, record.key, record.value) for record in records]
    return found, sum(moved)


def test_it_gives_what_a_reader_of_records_gives(cluster: Cluster, rng: random.Random) -> None:
    slots = [(topic, number) for topic in ("orders", "fills") for number in range(2)]
    ends = cluster.ends(slots)
    for _ in range(20):
        spans = {}
        for slot in slots:
            begin, end = sorted(rng.randrange(ends[slot] + 1) for _ in range(2))
            spans[slot] = (0, ends[slot]) if rng.random() < 0.2 else (begin, end)
        assert by_batch(cluster, spans) == by_record(cluster, spans), f"seed {SEED}: {spans}"


def test_records_that_are_not_there_are_missed(cluster: Cluster) -> None:
    with pytest.raises(MissingRecords, match="before the needed offset 1000000"):
        list(read_packed(cluster, {("fills", 0): (0, 1_000_000)}))


def test_a_reader_may_stop_in_the_middle(cluster: Cluster) -> None:
    end = cluster.ends([("fills", 0)])["fills", 0]
    reading = read_packed(cluster, {("fills", 0): (0, end)})
    assert next(iter(reading)).topic == "fills"
    reading.close()  # type: ignore[attr-defined]  # it is a generator


def test_records_before_a_damaged_batch_are_read(tmp_path: Path) -> None:
    with own_broker(tmp_path / "broker") as broker:
        settings = broker.settings(tmp_path / "state")
        cluster_of(settings).ensure_topics()
        producer = Producer({"bootstrap.servers": settings.kafka, "log_level": 2})
        for value in (b"first", b"second", b"third"):
            producer.produce(settings.topic("fills"), value, b"k", partition=0)
            assert producer.flush(30) == 0
        broker.stop()
        broker.replace(settings.topic("fills"), 0, b"second", b"SECOND", with_crc=False)
        broker.start()
        cluster = cluster_of(broker.settings(tmp_path / "state"))
        found: list[bytes | None] = []

        def read(end: int) -> None:
            for batch in read_packed(cluster, {("fills", 0): (0, end)}):
                found.extend(batch.records.full(place).value for place in range(batch.count))

        read(1)
        assert found == [b"first"]
        with pytest.raises(UnreadableRecords, match="fails its check sum") as raised:
            read(3)
        assert found == [b"first", b"first"]
        assert raised.value.offset == 1
        log = tmp_path / "worker.log"
        with worker(broker.settings(tmp_path / "state"), log) as process:
            assert process.wait(60) == 2
        assert "fills:0: the records from offset 1 on cannot be read" in log.read_text()
