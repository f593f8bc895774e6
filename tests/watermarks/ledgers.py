"""Ledgers to prove: events in the topics, and snapshots that a real worker made meanwhile."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from confluent_kafka import Consumer, KafkaError, TopicPartition

from ledger.events import INPUT_TOPICS
from ledger.kafka import KafkaRecord, Slot
from ledger.positions import Watermarks
from ledger.projections.partition import Watermark
from ledger.published import newest_marks
from ledger.rebuild import watermarks
from ledger.settings import Settings
from ledger.snapshots import Snapshots
from tests.chaos.events import Traffic
from tests.chaos.feed import Feed
from tests.support import BITSTAMP, cluster_of, eventually, publish, worker

_PATIENCE_S: Final = 300.0


def with_snapshots(settings: Settings, interval_s: float) -> Settings:
    """Return the settings of a ledger whose workers write a snapshot every `interval_s`."""
    often = {"snapshot_interval_s": interval_s, "snapshots_kept": 1_000_000}
    return settings.model_copy(update=often)


def publish_hour(settings: Settings, log: Path, pieces: int) -> None:
    """Publish the Bitstamp hour in pieces of all topics, and have snapshots after each of them."""
    topics = [path.read_bytes().splitlines() for path in BITSTAMP]
    with _working(settings, log):
        for piece in range(pieces):
            for lines in topics:
                begin, end = (len(lines) * place // pieces for place in (piece, piece + 1))
                publish(settings, lines[begin:end])
            eventually(lambda: _is_snapshotted(settings), _PATIENCE_S)


def publish_generated(
    settings: Settings, log: Path, seed: object, events: int, seconds: float
) -> None:
    """Publish generated events in `seconds`, some of them in transactions, while a worker works."""
    cluster_of(settings).ensure_topics()
    assert settings.partitions is not None
    traffic = Traffic(seed, events, settings.partitions)
    with _working(settings, log):
        feed = Feed(settings, traffic, seed, events, seconds)
        feed.start()
        feed.join()
        assert feed.failure is None, feed.failure
        eventually(lambda: _is_published(settings), _PATIENCE_S)


@contextlib.contextmanager
def _working(settings: Settings, log: Path) -> Iterator[None]:
    """Let a worker work, and end as it ends on a computer that is shut down."""
    with worker(settings, log) as process:
        yield
        process.terminate()
        assert process.wait(_PATIENCE_S) == 0, f"the worker failed; see {log}"


def ends_of(settings: Settings) -> Watermarks:
    """Return where the input topics end."""
    cluster = cluster_of(settings)
    slots = [(t, n) for t in INPUT_TOPICS for n in range(cluster.origin().partitions)]
    return watermarks(cluster.ends(slots))


def snapshots_of(settings: Settings) -> dict[int, list[Watermark]]:
    """Return the watermarks of each partition's snapshots, oldest first."""
    snapshots = Snapshots(settings.snapshot_dir, settings.topic_prefix)
    return {
        number: [file.watermark for file in reversed(snapshots.of_partition(number))]
        for number in range(cluster_of(settings).origin().partitions)
    }


def _is_snapshotted(settings: Settings) -> bool:
    kept = snapshots_of(settings)
    return all(
        not any(end.values()) or end in kept[number] for number, end in ends_of(settings).items()
    )


def _is_published(settings: Settings) -> bool:
    ends = ends_of(settings)
    marks = newest_marks(cluster_of(settings), ends)
    return all(
        not any(end.values()) or (number in marks and marks[number].watermark == end)
        for number, end in ends.items()
    )


def read_plainly(settings: Settings, slots: list[Slot]) -> dict[Slot, list[KafkaRecord]]:
    """Return all committed records of some partitions, by nothing but a Kafka consumer."""
    consumer = Consumer(
        {
            "bootstrap.servers": settings.kafka,
            "group.id": "watermarks",  # never joined
            "isolation.level": "read_committed",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
        }
    )
    found: dict[Slot, list[KafkaRecord]] = {slot: [] for slot in slots}
    names = {settings.topic(topic): topic for topic in INPUT_TOPICS}
    consumer.assign([TopicPartition(settings.topic(topic), number, 0) for topic, number in slots])
    unread = set(slots)
    try:
        while unread:
            message = consumer.poll(_PATIENCE_S)
            assert message is not None, f"no records come: {unread}"
            slot = names[str(message.topic())], int(message.partition() or 0)
            error = message.error()
            if error is None:
                record = KafkaRecord(int(message.offset() or 0), message.key(), message.value())
                found[slot].append(record)
            else:
                assert error.code() == KafkaError._PARTITION_EOF, error.str()
                unread.discard(slot)
    finally:
        consumer.close()
    return found
