"""Rebuilding state from the topics alone: what `replay`, `check`, `orders` and `statement` share.

Reads beside the running system: no consumer group, nothing committed, nothing published.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from ledger.continuity import Claim, require_continuous
from ledger.errors import StateError
from ledger.events import INPUT_TOPICS
from ledger.kafka import Cluster, Slot
from ledger.partitioner import partition_of
from ledger.positions import Watermarks as Watermarks
from ledger.positions import clamped, moment_ms
from ledger.projections.partition import Observer, Origin, Partition, Watermark
from ledger.snapshots import SnapshotFile, Snapshots
from ledger.store import MemoryStore

Base = Literal["snapshot", "genesis", "empty"]

_FREEZE_AFTER_RECORDS: Final = 100_000
"""Bounds how much of a partition stays decoded in memory."""


@dataclass
class Rebuilt:
    """Partitions' states, and how they were come by."""

    partitions: dict[int, Partition] = field(default_factory=dict)
    bases: dict[int, SnapshotFile | None] = field(default_factory=dict)
    records_read: dict[Slot, int] = field(default_factory=dict)
    records_replayed: dict[Slot, int] = field(default_factory=dict)  # of those, from the start on


class Rebuilder:
    """Rebuilds the state of partitions of one cluster's topics."""

    def __init__(
        self,
        cluster: Cluster,
        origin: Origin,
        *,
        warn: Callable[[str], None],
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """Prepare a rebuild.

        Args:
            cluster: where the topics are.
            origin: what they are (from `cluster.origin()`).
            warn: told of a snapshot that cannot be used.
            progress: told how many offsets were read.
        """
        self._cluster = cluster
        self._origin = origin
        self._warn = warn
        self._progress = progress
        settings = cluster.settings
        self._snapshots = Snapshots(settings.snapshot_dir, settings.topic_prefix)

    def slots(self, partitions: Iterable[int] | None = None) -> list[Slot]:
        """Return the input topics' partitions, or those with the given numbers."""
        numbers = range(self._origin.partitions) if partitions is None else sorted(partitions)
        return [(topic, number) for topic in INPUT_TOPICS for number in numbers]

    def ends(self, partitions: Iterable[int] | None = None) -> Watermarks:
        """Return the end of the topics as it is now."""
        return watermarks(self._cluster.ends(self.slots(partitions)))

    def earliest(self, partitions: Iterable[int] | None = None) -> Watermarks:
        """Return the first offsets that the topics still have."""
        return watermarks(self._cluster.earliest(self.slots(partitions)))

    def at_time(self, text: str, ends: Watermarks, source: str = "time") -> Watermarks:
        """Return where the records at or after an RFC 3339 time begin, by Kafka's record times.

        Args:
            text: the time, with a zone.
            ends: where a partition stands that has no such record before its end.
            source: what a person calls the text; errors begin with it.

        Raises:
            InputError: it is not RFC 3339.
        """
        found = self._cluster.at_time(self.slots(ends), moment_ms(text, source))
        return clamped(watermarks(found), ends)

    def rebuild(
        self,
        start: Mapping[int, Watermark],
        end: Mapping[int, Watermark],
        base: Base = "snapshot",
        *,
        at_start: Callable[[Partition], None] | None = None,
        observe: Callable[[int], Observer] | None = None,
    ) -> Rebuilt:
        """Return the state at `end`.

        Args:
            start: for each partition the watermark from which records count as replayed.
            end: for each partition the watermark to stop at; never before `start`.
            base: the state before `start`: from the newest good snapshot at or below it and the
                records between, from all records, or none as if the log began there.
            at_start: given each partition when it has reached `start`.
            observe: of a partition, what is told of each record from `start` on.

        Raises:
            MissingRecords: records that are needed, or that a snapshot was made of, are gone.
            ReplacedRecords: others have the offsets of a snapshot's.
        """
        rebuilt = Rebuilt()
        for number in sorted(end):
            partition, used = self._base(number, start[number], base)
            rebuilt.partitions[number] = partition
            rebuilt.bases[number] = used
        self._require_bases_continuous(rebuilt)
        self._advance(rebuilt, start, None)
        if at_start is not None:
            for partition in rebuilt.partitions.values():
                at_start(partition)
        before = dict(rebuilt.records_read)
        self._advance(rebuilt, end, observe)
        rebuilt.records_replayed = {
            slot: number - before.get(slot, 0) for slot, number in rebuilt.records_read.items()
        }
        return rebuilt

    def at(self, end: Mapping[int, Watermark]) -> Rebuilt:
        """Return the state at `end` by the quickest way."""
        return self.rebuild(end, end)

    def cost(self, start: Watermarks, end: Watermarks, base: Base) -> int:
        """Return how many offsets a rebuild will read, for a progress bar."""
        total = 0
        for number, limit in end.items():
            begin = dict.fromkeys(INPUT_TOPICS, 0)
            if base == "empty":
                begin = start[number]
            elif base == "snapshot":
                newest = self._snapshots.at_or_below(number, start[number])
                begin = newest[0].watermark if newest else begin
            total += sum(limit[topic] - begin[topic] for topic in INPUT_TOPICS)
        return total

    def _base(
        self, number: int, start: Watermark, base: Base
    ) -> tuple[Partition, SnapshotFile | None]:
        if base == "empty":
            empty = Partition(number, MemoryStore(), partition_of, self._origin, start=start)
            return empty, None
        if base == "snapshot":
            for file in self._snapshots.at_or_below(number, start):
                try:
                    _, store = self._snapshots.read(file, self._origin)
                    return Partition(number, store, partition_of, self._origin), file
                except StateError as error:
                    self._warn(str(error))
        return Partition(number, MemoryStore(), partition_of, self._origin), None

    def _require_bases_continuous(self, rebuilt: Rebuilt) -> None:
        claims = [
            Claim(f"snapshot {used.path}", number, partition.watermark, partition.tips)
            for number, partition in rebuilt.partitions.items()
            if (used := rebuilt.bases[number]) is not None
        ]
        if claims:
            require_continuous(self._cluster, claims)

    def _advance(
        self,
        rebuilt: Rebuilt,
        target: Mapping[int, Watermark],
        observe: Callable[[int], Observer] | None,
    ) -> None:
        spans = {
            (topic, number): (partition.watermark[topic], target[number][topic])
            for number, partition in rebuilt.partitions.items()
            for topic in INPUT_TOPICS
        }
        observers = {} if observe is None else {n: observe(n) for n in rebuilt.partitions}
        unfrozen = dict.fromkeys(rebuilt.partitions, 0)
        for batch in self._cluster.read(spans, self._progress):
            partition = rebuilt.partitions[batch.partition]
            partition.apply(
                batch.topic, batch.records, batch.next_offset, observers.get(batch.partition)
            )
            slot = (batch.topic, batch.partition)
            rebuilt.records_read[slot] = rebuilt.records_read.get(slot, 0) + len(batch.records)
            unfrozen[batch.partition] += len(batch.records)
            if unfrozen[batch.partition] >= _FREEZE_AFTER_RECORDS:
                partition.freeze()
                partition.settle()
                unfrozen[batch.partition] = 0
        for partition in rebuilt.partitions.values():
            partition.freeze()
            partition.settle()


def watermarks(offsets: Mapping[Slot, int]) -> Watermarks:
    """Return offsets by topic and partition as watermarks by partition."""
    result: Watermarks = {}
    for (topic, partition), offset in offsets.items():
        result.setdefault(partition, {})[topic] = offset
    return result


def watermarks_json(marks: Mapping[int, Watermark]) -> dict[str, dict[str, int]]:
    """Return watermarks as the commands print them: topic to partition to next offset."""
    return {
        topic: {str(number): marks[number][topic] for number in sorted(marks)}
        for topic in INPUT_TOPICS
    }
