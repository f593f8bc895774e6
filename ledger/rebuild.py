"""Rebuilding state from the topics alone: what `replay`, `check`, `orders` and `statement` share.

Reads beside the running system: no consumer group, nothing committed, nothing published.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from typing import Final, Literal, ParamSpec, Protocol, TypeVar

from ledger.blocks import PackedBatch, read_packed
from ledger.continuity import Claim, require_continuous
from ledger.errors import InputError, StateError
from ledger.events import INPUT_TOPICS
from ledger.kafka import Cluster, KafkaRecord, Slot
from ledger.objects import StorageError
from ledger.positions import LATEST, Limits, clamped, is_time, moment_ms, parse_positions
from ledger.positions import Watermarks as Watermarks
from ledger.projections.entries import META_KEY
from ledger.projections.partition import Origin, Packed, Partition, Watermark, dominates
from ledger.snapshots import SnapshotFile, Snapshots
from ledger.store import MemoryStore, PastStore, Store, note_replaced

Base = Literal["snapshot", "genesis", "empty"]

_T = TypeVar("_T")
_P = ParamSpec("_P")

_FREEZE_AFTER_RECORDS: Final = 10_000
"""Bounds how much of a partition stays decoded in memory."""
_AHEAD: Final = 4
"""So many batches wait for a thread that folds."""

Entries = Iterable[tuple[bytes, bytes]]

Rewrite = Callable[[str, int, list[KafkaRecord]], list[KafkaRecord]]
"""Of records of a topic's partition, what is folded instead: some may be left out."""


class Stores(Protocol):
    """Where the states that are rebuilt are kept."""

    def store(self, number: int) -> Store:
        """Return a partition's store, with whatever an earlier run left in it."""
        ...

    def restored(self, number: int, entries: Entries) -> Store:
        """Return a partition's store with the entries of a snapshot; if they fail, it is empty."""
        ...

    def replaced(self, number: int) -> Store:
        """Return the store for what a partition's entries were at the start (see `PastStore`)."""
        ...


class Memory:
    """Keeps states as long as the process lives."""

    def store(self, number: int) -> Store:
        """Return an empty store."""
        return MemoryStore()

    def restored(self, number: int, entries: Entries) -> Store:
        """Return a store with the entries."""
        return MemoryStore(dict(entries))

    def replaced(self, number: int) -> Store:
        """Return an empty store."""
        return MemoryStore()


@dataclass
class Rebuilt:
    """Partitions' states, and how they were come by.

    Attributes:
        partitions: the states at the end.
        bases: the snapshots that they began with.
        continued: the partitions whose state an earlier run had begun.
        stores: where the states at the end are.
        replaced: what changed since the start, where that was asked for and anything was there.
        records_read: by this run.
    """

    partitions: dict[int, Partition] = field(default_factory=dict)
    bases: dict[int, SnapshotFile | None] = field(default_factory=dict)
    continued: set[int] = field(default_factory=set)
    stores: dict[int, Store] = field(default_factory=dict)
    replaced: dict[int, Store] = field(default_factory=dict)
    records_read: dict[Slot, int] = field(default_factory=dict)


class Rebuilder:
    """Rebuilds the state of partitions of one cluster's topics."""

    def __init__(
        self,
        cluster: Cluster,
        origin: Origin,
        *,
        warn: Callable[[str], None],
        progress: Callable[[int], None] | None = None,
        stores: Stores | None = None,
        rewrite: Rewrite | None = None,
        threads: int = 1,
    ) -> None:
        """Prepare a rebuild.

        Args:
            cluster: where the topics are.
            origin: what they are (from `cluster.origin()`).
            warn: told of a snapshot that cannot be used, or that none can be listed.
            progress: told how many offsets were read.
            stores: where the states are kept; by default in memory.
            rewrite: from the start of a rebuild on, the fold is given what this makes of records.
            threads: how many fold; a partition's records are folded by one of them.
        """
        self._cluster = cluster
        self._stores = Memory() if stores is None else stores
        self._rewrite = rewrite
        self._threads = threads
        self._origin = origin
        self._warn = warn
        self._progress = progress
        settings = cluster.settings
        self._snapshots = Snapshots(settings.snapshot_dir, settings.topic_prefix)
        self._unlisted: StorageError | None = None  # why there are no snapshots to begin with

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

    def at_time(self, text: str, ends: Mapping[int, Watermark], source: str) -> Watermarks:
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

    def limits(self, ends: Watermarks) -> Limits:
        """Return the offsets that words mean in positions (`ledger.positions`), asked for once.

        That snapshots cannot be listed (StorageError) shows where one is meant.
        """
        return Limits(clamped(self.earliest(ends), ends), ends, cache(lambda: self._newest(ends)))

    def watermarks_at(self, texts: Sequence[str], limits: Limits, source: str) -> Watermarks:
        """Return the watermarks that texts mean: one time, or positions.

        Partitions that positions do not name stand at their end. Raises as `at_time` and
        `parse_positions` do.
        """
        if len(texts) == 1 and is_time(texts[0]):
            return self.at_time(texts[0], limits.latest, source)
        return parse_positions(texts, limits, LATEST, source)

    def _newest(self, ends: Watermarks) -> Watermarks:
        files = [self._snapshots.newest(number, ends[number], self._origin) for number in ends]
        return {file.partition: file.watermark for file in files if file is not None}

    def rebuild(
        self,
        start: Mapping[int, Watermark],
        end: Mapping[int, Watermark],
        base: Base = "snapshot",
        *,
        at_start: Callable[[Partition], None] | None = None,
        remember: bool = False,
    ) -> Rebuilt:
        """Return the state at `end`.

        Args:
            start: for each partition the watermark from which records count as replayed.
            end: for each partition the watermark to stop at; never before `start`.
            base: the state before `start`: from the newest good snapshot at or below it and the
                records between, from all records, or none as if the log began there.
            at_start: given each partition when it has reached `start`; not in a run that continues
                an earlier one from beyond it.
            remember: note what changed since `start`, so that the state there can be seen, too.

        Raises:
            MissingRecords: records that are needed, or that a snapshot was made of, are gone.
            ReplacedRecords: others have the offsets of a snapshot's.
        """
        rebuilt = Rebuilt()
        for number in sorted(end):
            self._begin(rebuilt, number, start[number], base)
            _require_not_beyond(rebuilt.partitions[number], end[number])
        if self._unlisted is not None:
            self._warn(f"{self._unlisted} Every record is read instead.")
        self._require_bases_continuous(rebuilt)
        self._advance(rebuilt, start, None)
        if at_start is not None:
            for partition in rebuilt.partitions.values():
                at_start(partition)
        if remember and base != "empty":
            rebuilt.replaced = {
                number: self._stores.replaced(number)
                for number in rebuilt.partitions
                if any(start[number].values())
            }
        self._advance(rebuilt, end, self._rewrite)
        return rebuilt

    def at(self, end: Mapping[int, Watermark]) -> Rebuilt:
        """Return the state at `end` by the quickest way."""
        return self.rebuild(end, end)

    def walk(self, stops: Sequence[Mapping[int, Watermark]]) -> Iterator[Rebuilt]:
        """Yield the state at each of several watermarks, the same one going from stop to stop.

        Args:
            stops: of the same partitions each, none before the one in front of it.

        Raises:
            MissingRecords: records that are needed, or that a snapshot was made of, are gone.
            ReplacedRecords: others have the offsets of a snapshot's.
        """
        rebuilt = self.rebuild(stops[0], stops[0])
        yield rebuilt
        for stop in stops[1:]:
            self._advance(rebuilt, stop, None)
            yield rebuilt

    def cost(self, start: Watermarks, end: Watermarks, base: Base) -> int:
        """Return how many offsets a rebuild will read, for a progress bar."""
        total = 0
        for number, limit in end.items():
            begin = dict.fromkeys(INPUT_TOPICS, 0)
            if base == "empty":
                begin = start[number]
            elif base == "snapshot":
                newest = self._at_or_below(number, start[number])
                begin = newest[0].watermark if newest else begin
            total += sum(limit[topic] - begin[topic] for topic in INPUT_TOPICS)
        return total

    def _begin(self, rebuilt: Rebuilt, number: int, start: Watermark, base: Base) -> None:
        store = self._stores.store(number)
        used: SnapshotFile | None = None
        if store.get(META_KEY) is not None:
            rebuilt.continued.add(number)
        elif base == "snapshot":
            for file in self._at_or_below(number, start):
                try:
                    with self._snapshots.open(file, self._origin) as (_, entries):
                        store = self._stores.restored(number, entries)
                    used = file
                    break
                except StateError as error:
                    self._warn(str(error))
        rebuilt.stores[number] = store
        rebuilt.bases[number] = used
        rebuilt.partitions[number] = Partition(
            number, store, self._origin, start=start if base == "empty" else None
        )

    def _at_or_below(self, number: int, start: Watermark) -> list[SnapshotFile]:
        """Return the snapshots to begin with: none where they cannot be listed; asked once."""
        if self._unlisted is None:
            try:
                return self._snapshots.at_or_below(number, start)
            except StorageError as error:
                self._unlisted = error
        return []

    def _require_bases_continuous(self, rebuilt: Rebuilt) -> None:
        claims = []
        for number, partition in rebuilt.partitions.items():
            used = rebuilt.bases[number]
            if used is not None or number in rebuilt.continued:
                what = "the state to go on from" if used is None else f"snapshot {used.path}"
                claims.append(Claim(what, number, partition.watermark, partition.tips))
        if claims:
            require_continuous(self._cluster, claims)

    def _advance(
        self, rebuilt: Rebuilt, target: Mapping[int, Watermark], rewrite: Rewrite | None
    ) -> None:
        spans = {
            (topic, number): (partition.watermark[topic], target[number][topic])
            for number, partition in rebuilt.partitions.items()
            for topic in INPUT_TOPICS
        }
        unfrozen = dict.fromkeys(rebuilt.partitions, 0)

        def fold(batch: PackedBatch) -> None:
            number = batch.partition
            rebuilt.partitions[number].apply(batch.topic, batch.records, batch.next_offset)
            slot = (batch.topic, number)
            rebuilt.records_read[slot] = rebuilt.records_read.get(slot, 0) + batch.count
            unfrozen[number] += batch.count
            if unfrozen[number] >= _FREEZE_AFTER_RECORDS:
                _settle(rebuilt, number, whole=not isinstance(rebuilt.stores[number], MemoryStore))
                unfrozen[number] = 0

        sizes = dict.fromkeys(rebuilt.partitions, 0)
        for (_, number), (begin, end) in spans.items():
            sizes[number] += end - begin
        with _lanes(sizes, self._threads) as lanes:
            for batch in self._batches(spans, rewrite):
                lanes[batch.partition].give(fold, batch)
            for number, lane in lanes.items():
                lane.give(_settle, rebuilt, number)
            for lane in lanes.values():
                lane.finish()

    def _batches(
        self, spans: Mapping[Slot, tuple[int, int]], rewrite: Rewrite | None
    ) -> Iterator[PackedBatch]:
        if rewrite is None:
            yield from read_packed(self._cluster, spans, self._progress)
            return
        for batch in self._cluster.read(spans, self._progress):
            records = rewrite(batch.topic, batch.partition, batch.records)
            packed, count = Packed.of(records), len(batch.records)
            yield PackedBatch(batch.topic, batch.partition, packed, count, batch.next_offset)


class _Lane:
    """A thread that does one thing after the other, and how far it is behind."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="fold")
        self._given: deque[Future[None]] = deque()

    def give(self, work: Callable[_P, None], *args: _P.args, **kwargs: _P.kwargs) -> None:
        """Let something be done when all before it is; wait if that is too much.

        Raises:
            Exception: what was given before failed.
        """
        self._given.append(self._thread.submit(work, *args, **kwargs))
        if len(self._given) > _AHEAD:
            self._given.popleft().result()

    def finish(self) -> None:
        """Wait until all is done; raises as `give` does."""
        while self._given:
            self._given.popleft().result()

    def close(self) -> None:
        """End the thread; what it has not begun is not done."""
        self._thread.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _lanes(sizes: Mapping[int, int], threads: int) -> Iterator[dict[int, _Lane]]:
    """Yield for each partition the thread that folds it, so that all have about as much to do."""
    lanes = {_Lane(): 0 for _ in range(max(1, min(threads, len(sizes))))}
    shared: dict[int, _Lane] = {}
    try:
        for number in sorted(sizes, key=lambda number: (-sizes[number], number)):
            least = min(lanes, key=lanes.__getitem__)
            lanes[least] += 1 + sizes[number]  # so that none is idle where there is little
            shared[number] = least
        yield shared
    finally:
        for lane in lanes:
            lane.close()


def _require_not_beyond(partition: Partition, end: Watermark) -> None:
    for topic, offset in partition.watermark.items():
        if offset > end[topic]:
            raise InputError(
                f"{topic}:{partition.number}: the state to go on from is at offset {offset} "
                f"already, beyond the end that was asked for, {end[topic]}. Begin anew, with "
                "another directory."
            )


def _settle(rebuilt: Rebuilt, number: int, *, whole: bool = True) -> None:
    partition = rebuilt.partitions[number]
    changes = partition.freeze(whole=whole)
    if number in rebuilt.replaced:
        note_replaced(rebuilt.stores[number], changes, rebuilt.replaced[number])
    partition.settle()


def passes(stops: Iterable[_T], watermark: Callable[[_T], Watermark]) -> list[list[_T]]:
    """Return stops in groups, each of which one fold passes through; usually it is one group.

    Owners of a partition whose topics interleaved otherwise leave watermarks of which neither comes
    after the other.

    Args:
        stops: in order of their number of records; within a group they stay in it.
        watermark: returns that of a stop.
    """
    groups: list[list[_T]] = []
    for stop in stops:
        for group in groups:
            if dominates(watermark(stop), watermark(group[-1])):
                group.append(stop)
                break
        else:
            groups.append([stop])
    return groups


def past(rebuilt: Rebuilt, number: int, start: Watermark, base: Base) -> Partition:
    """Return a partition's state at the start of a rebuild that was asked to remember it."""
    end = rebuilt.partitions[number]
    if number in rebuilt.replaced:
        store: Store = PastStore(rebuilt.stores[number], rebuilt.replaced[number])
        return Partition(number, store, end.origin)
    began = start if base == "empty" else None
    return Partition(number, MemoryStore(), end.origin, start=began)


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
