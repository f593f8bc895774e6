"""Replays partitions of a cluster's topics beside the running system."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from ledger.errors import MissingRecords, StateError
from ledger.events import INPUT_TOPICS
from ledger.kafka import Cluster
from ledger.positions import Watermarks
from ledger.projections.accounts import Texts
from ledger.projections.partition import Origin, Partition
from ledger.rebuild import Base, Rebuilder, Rebuilt
from ledger.snapshots import SnapshotFile, Snapshots
from replay.request import Span
from replay.results import PartitionReplay, Replay

Warn = Callable[[str], None]
Progress = Callable[[int], None]


def replay(
    cluster: Cluster, origin: Origin, span: Span, base: Base, warn: Warn, progress: Progress
) -> Replay:
    """Return the states at the end of a span, and what its records changed.

    Args:
        cluster: where the topics are.
        origin: what they are.
        span: which records of which partitions are replayed.
        base: the state before them.
        warn: told of a snapshot that cannot be used.
        progress: told how many offsets were read.

    Raises:
        MissingRecords: records that are needed are gone.
    """
    began = time.perf_counter()
    before: dict[int, dict[str, Texts]] = {}

    def at_start(partition: Partition) -> None:
        before[partition.number] = dict(partition.balances())

    rebuilder = Rebuilder(cluster, origin, warn=warn, progress=progress)
    rebuilt = rebuilder.rebuild(span.start, span.end, base, at_start=at_start)
    seconds = time.perf_counter() - began
    return Replay(
        {
            number: _result(rebuilt, span, base, partition, before[number])
            for number, partition in rebuilt.partitions.items()
        },
        seconds,
    )


def _result(
    rebuilt: Rebuilt, span: Span, base: Base, partition: Partition, before: dict[str, Texts]
) -> PartitionReplay:
    number = partition.number
    used = rebuilt.bases[number]
    without_snapshot = "empty" if base == "empty" else "genesis"
    return PartitionReplay(
        partition=number,
        base=without_snapshot if used is None else used.path,
        start=dict(span.start[number]),
        watermark=dict(partition.watermark),
        counts=partition.counts,
        state_digest=partition.state_digest(),
        # A state that begins empty has none even at offset 0: it does not claim to be the ledger's.
        log_digests=None if base == "empty" else partition.log_digests,
        before=before,
        after=dict(partition.balances()),
        records_read={
            topic: rebuilt.records_read.get((topic, number), 0) for topic in INPUT_TOPICS
        },
        records_replayed={
            topic: rebuilt.records_replayed.get((topic, number), 0) for topic in INPUT_TOPICS
        },
    )


def known_snapshots(snapshots: Snapshots, partitions: Iterable[int]) -> list[SnapshotFile]:
    """Return all snapshots; list them before asking for the topics' ends, then `refuse_loss`."""
    return [file for number in partitions for file in snapshots.of_partition(number)]


def refuse_loss(
    snapshots: Snapshots, known: Iterable[SnapshotFile], origin: Origin, ends: Watermarks
) -> None:
    """Check that the topics still have every record that some snapshot was made of.

    A broker that lost records which it had acknowledged ends before a snapshot made of them.

    Raises:
        MissingRecords: it does; it names topic, partition and offsets.
    """
    for file in known:
        limit = ends[file.partition]
        for topic in INPUT_TOPICS:
            if file.watermark[topic] <= limit[topic]:
                continue
            try:
                snapshots.read(file, origin)
            except StateError:
                break  # of other topics, or damaged: it proves nothing
            raise MissingRecords(topic, file.partition, file.watermark[topic], 0, limit[topic])
