"""Proves every snapshot from genesis, and says what was changed or lost, and where.

A snapshot carries the log digest of each topic, so it vouches for every record before its
watermark; and it holds each fact with the offset of its record. Where a log digest is not that of
the topic as it is now, the chain is followed again from one snapshot's digest to the next one's,
which tells between which of them a record is another one; and comparing the facts tells which it
is. A fact says that for certain: whether a record is valid depends on nothing but itself, and of
several with one identity the lowest offset stands (contract, section 4).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Final, Literal

from ledger import digests
from ledger.errors import MissingRecords, UnreadableRecords
from ledger.events import INPUT_TOPICS
from ledger.kafka import Batch, Cluster, KafkaRecord, Slot
from ledger.projections.partition import (
    Header,
    Origin,
    Partition,
    Tip,
    Watermark,
    dominates,
    tip_of,
)
from ledger.rebuild import Memory, Stores, passes, watermarks
from ledger.snapshots import (
    ForeignSnapshot,
    SnapshotError,
    SnapshotFile,
    Snapshots,
    state_digest_of,
)
from ledger.store import Store
from replay.findings import RECORD, Disagreement, Finding, Kind, PartitionProof, Proof, Proven
from replay.suspects import (
    Differing,
    Suspect,
    differing_entries,
    of_entry,
    of_header,
    suspects_of,
    text_of,
)

Read = Callable[[Mapping[Slot, tuple[int, int]]], Iterator[Batch]]
"""Yields the records of spans, as `Cluster.read` does."""

_FREEZE_AFTER_RECORDS: Final = 100_000
"""Bounds how much of a partition stays decoded in memory."""
_SHOWN: Final = 10
_NAMED: Final = 3
_SUSPECTS: Final = 1_000


def prove(
    cluster: Cluster,
    origin: Origin,
    snapshots: Snapshots,
    partitions: Iterable[int],
    progress: Callable[[int], None] | None = None,
    stores: Stores | None = None,
) -> Proof:
    """Return the proof of all snapshots of some partitions, one partition after the other.

    Args:
        cluster: where the topics are.
        origin: what they are.
        snapshots: the ledger's.
        partitions: whose snapshots are proven.
        progress: told how many offsets were read; `cost` says of how many.
        stores: where states are kept while they are rebuilt; by default in memory.

    Raises:
        MissingRecords: retention removed the beginning, and no snapshot lies beyond it: nothing can
            be proven.
        TopicError: the topics have another number of partitions than a snapshot's had.
        StorageError: the snapshots cannot be listed.
    """
    # Listed before asking for the ends: snapshots cannot be beyond them.
    files = {number: snapshots.of_partition(number) for number in partitions}
    slots = [(topic, number) for topic in INPUT_TOPICS for number in files]
    earliest, ends = watermarks(cluster.earliest(slots)), watermarks(cluster.ends(slots))

    def read(spans: Mapping[Slot, tuple[int, int]]) -> Iterator[Batch]:
        return cluster.read(spans, progress)

    proof = Proof(
        {
            number: prove_partition(
                read, snapshots, found, number, origin, earliest[number], ends[number], stores
            )
            for number, found in files.items()
        }
    )
    if not any(part.base for part in proof.partitions.values()):
        for finding in proof.findings:
            if finding.kind == "log_gone" and finding.topic is not None:
                topic, number = finding.topic, finding.partition
                first, end = earliest[number][topic], ends[number][topic]
                raise MissingRecords(topic, number, 0, first, end, "a proof")
    return proof


def cost(snapshots: Snapshots, partitions: Iterable[int]) -> int:
    """Return how many offsets a proof will read if nothing is wrong, for a progress bar."""
    files = [snapshots.of_partition(number) for number in partitions]
    return sum(
        max((file.watermark[topic] for file in found), default=0)
        for found in files
        for topic in INPUT_TOPICS
    )


def prove_partition(
    read: Read,
    snapshots: Snapshots,
    files: Iterable[SnapshotFile],
    number: int,
    origin: Origin,
    earliest: Watermark,
    ends: Watermark,
    stores: Stores | None = None,
) -> PartitionProof:
    """Return the proof of one partition's snapshots.

    Args:
        read: yields records of the topics.
        snapshots: where the files are.
        files: the snapshots to prove.
        number: the partition.
        origin: what the topics are.
        earliest: the first offsets that they still have.
        ends: the offsets after their last records.
        stores: where the state is kept while it is rebuilt; by default in memory.
    """
    prover = _PartitionProver(
        read, snapshots, number, origin, earliest, ends, Memory() if stores is None else stores
    )
    return prover.proof(files)


@dataclass(frozen=True)
class _Snapshot:
    """A snapshot that is whole and of these topics and rules."""

    file: SnapshotFile
    header: Header
    log_digests: dict[str, str]
    state_digest: str

    @property
    def name(self) -> str:
        return self.file.name

    @property
    def watermark(self) -> Watermark:
        return self.file.watermark


@dataclass
class _Lost:
    """What a snapshot has from beyond where a topic can be read."""

    snapshot: _Snapshot
    count: int = 0
    first: list[Suspect] = field(default_factory=list)


class _PartitionProver:
    def __init__(
        self,
        read: Read,
        snapshots: Snapshots,
        number: int,
        origin: Origin,
        earliest: Watermark,
        ends: Watermark,
        stores: Stores,
    ) -> None:
        self._read = read
        self._snapshots = snapshots
        self._number = number
        self._origin = origin
        self._earliest = earliest
        self._ends = ends
        self._stores = stores
        self._limits = dict(ends)  # how far each topic can be read
        self._unreadable: dict[str, UnreadableRecords] = {}
        self._findings: list[Finding] = []
        self._proven: dict[str, _Snapshot] = {}
        # Of the topics as they are: the log digest at each snapshot's offset.
        self._chains: dict[str, dict[int, str]] = {topic: {} for topic in INPUT_TOPICS}
        self._suspects: dict[str, dict[int, Suspect]] = {topic: {} for topic in INPUT_TOPICS}
        self._lost: dict[str, _Lost] = {}

    def proof(self, files: Iterable[SnapshotFile]) -> PartitionProof:
        whole = self._whole(files)
        base, anchor = self._base(whole)
        if base is not None:
            # In this order each comes after all that it goes on from.
            after_base = [s for s in whole if s is not anchor and _is_at_or_after(s, anchor)]
            for walk in passes(after_base, lambda snapshot: snapshot.watermark):
                self._walk(walk, anchor)
            for topic in INPUT_TOPICS:
                self._judge_log(topic, after_base, anchor)
        proven = [
            Proven(s.name, s.watermark, s.state_digest) for s in whole if s.name in self._proven
        ]
        unproven = [s.name for s in whole if s.name not in self._proven and s is not anchor]
        return PartitionProof(self._number, base, proven, unproven, self._findings)

    def _find(self, kind: Kind, sentence: str, **details: Any) -> None:
        self._findings.append(Finding(kind, self._number, sentence, **details))

    # -- the snapshots

    def _whole(self, files: Iterable[SnapshotFile]) -> list[_Snapshot]:
        """Return the snapshots that add up and are of these topics and rules, oldest first."""
        whole = []
        for file in sorted(files, key=lambda file: (file.records, file.name)):
            try:
                with self._snapshots.open(file, self._origin) as (header, entries):
                    for _ in entries:  # the last comes only if they add up
                        pass
            except ForeignSnapshot as error:
                self._find("foreign_snapshot", str(error), snapshot=file.name)
            except SnapshotError as error:
                self._damaged(file, str(error))
            else:
                if set(header.log_digests or ()) == set(INPUT_TOPICS):
                    assert header.log_digests is not None
                    whole.append(
                        _Snapshot(file, header, header.log_digests, state_digest_of(header))
                    )
                else:
                    self._damaged(file, f"Snapshot {file.path} has no log digests.")
        return whole

    def _damaged(self, file: SnapshotFile, sentence: str) -> None:
        if file in self._snapshots.of_partition(self._number):  # else a worker just removed it
            self._find("damaged_snapshot", sentence, snapshot=file.name)

    def _base(self, whole: Sequence[_Snapshot]) -> tuple[str | None, _Snapshot | None]:
        """Return what to begin with, and the snapshot if it is one."""
        gone = [topic for topic in INPUT_TOPICS if self._earliest[topic] > 0]
        if not gone:
            return "genesis", None
        for topic in gone:
            first = self._earliest[topic]
            self._find(
                "log_gone",
                f"{topic}:{self._number}: offsets 0 to {first - 1} are gone (earliest offset is "
                f"{first}), so nothing can be proven from the beginning.",
                topic=topic,
                first_offset=0,
                last_offset=first - 1,
            )
        for anchor in whole:
            if dominates(anchor.watermark, self._earliest) and dominates(
                self._limits, anchor.watermark
            ):
                before = sum(not _is_at_or_after(s, anchor) for s in whole)
                unproven = f"; {_count(before, 'snapshot')} before it cannot be proven"
                self._find(
                    "anchor",
                    f"Partition {self._number} is proven from snapshot {anchor.file.path} on, "
                    f"which is trusted as it is{unproven if before else ''}.",
                    snapshot=anchor.name,
                )
                return anchor.name, anchor
        return None, None

    # -- folding

    def _walk(self, walk: Sequence[_Snapshot], anchor: _Snapshot | None) -> None:
        """Fold the topics from one snapshot's watermark to the next, and compare at each."""
        store = self._store_before(walk[0], anchor)
        partition = Partition(self._number, store, self._origin)
        streams = {
            topic: self._stream(topic, start, walk[-1].watermark[topic])
            for topic, start in partition.watermark.items()
        }
        for snapshot in walk:
            for topic, stream in streams.items():
                self._advance(partition, topic, stream, snapshot.watermark[topic])
            partition.freeze()
            partition.settle()
            self._compare(snapshot, partition, store)

    def _store_before(self, snapshot: _Snapshot, anchor: _Snapshot | None) -> Store:
        """Return what to go on from to a snapshot: the newest proven one, or the base."""
        known = [s for s in self._proven.values() if _is_at_or_after(snapshot, s)]
        for base in sorted(known, key=lambda s: s.file.records, reverse=True):
            try:
                return self._restored(base)
            except SnapshotError:
                continue  # a worker just removed it
        return self._stores.restored(self._number, ()) if anchor is None else self._restored(anchor)

    def _restored(self, snapshot: _Snapshot) -> Store:
        with self._snapshots.open(snapshot.file, self._origin) as (_, entries):
            return self._stores.restored(self._number, entries)

    def _stream(self, topic: str, start: int, end: int) -> _Stream:
        slot = (topic, self._number)
        return _Stream(self._read({slot: (start, min(end, self._limits[topic]))}), start)

    def _advance(self, partition: Partition, topic: str, stream: _Stream, target: int) -> None:
        unfrozen = 0
        try:
            for records, next_offset in stream.up_to(min(target, self._limits[topic])):
                partition.apply(topic, records, next_offset)
                unfrozen += len(records)
                if unfrozen >= _FREEZE_AFTER_RECORDS:
                    partition.freeze()
                    partition.settle()
                    unfrozen = 0
        except UnreadableRecords as error:
            self._unreadable[topic] = error
            self._limits[topic] = partition.watermark[topic]

    def _compare(self, snapshot: _Snapshot, partition: Partition, store: Store) -> None:
        chains = partition.log_digests
        assert chains is not None
        is_same_log = True
        for topic, offset in snapshot.watermark.items():
            if offset <= self._limits[topic]:
                self._chains[topic][offset] = chains[topic]
                is_same_log &= chains[topic] == snapshot.log_digests[topic]
            else:
                is_same_log = False
        if (
            is_same_log
            and partition.state_digest() == snapshot.state_digest
            and partition.tips == snapshot.header.tips
        ):
            self._proven[snapshot.name] = snapshot
            return
        try:
            with self._snapshots.open(snapshot.file, self._origin) as (header, entries):
                differing = differing_entries(entries, store.scan())
                if is_same_log:
                    self._state_differs(snapshot, [*of_header(header, partition)], differing)
                else:
                    self._suspect(snapshot, differing)
        except SnapshotError as error:
            self._damaged(snapshot.file, str(error))

    def _state_differs(
        self, snapshot: _Snapshot, of_header: list[Disagreement], differing: Iterable[Differing]
    ) -> None:
        found = iter(map(of_entry, differing))
        first = [*of_header, *islice(found, _SHOWN)]
        more = sum(1 for _ in found)
        self._find(
            "state_differs",
            f"Snapshot {snapshot.file.path} is wrong: the topics have the records that it was made "
            f"of, but they make another state; differing: {_listed(first, more)}.",
            snapshot=snapshot.name,
            disagreements=first,
            more=more,
        )

    def _suspect(self, snapshot: _Snapshot, differing: Iterable[Differing]) -> None:
        lost = {topic: _Lost(snapshot) for topic in INPUT_TOPICS}
        for suspect in suspects_of(differing):
            topic, offset = suspect.topic, suspect.offset
            if offset >= self._limits[topic]:
                lost[topic].count += 1
                lost[topic].first.append(suspect)
                lost[topic].first = sorted(lost[topic].first, key=_offset_of)[:_SHOWN]
                continue
            found = self._suspects[topic]
            if offset not in found or found[offset].fact is None:
                found[offset] = suspect
            if len(found) > 2 * _SUSPECTS:
                self._suspects[topic] = dict(sorted(found.items())[:_SUSPECTS])
        for topic, one in lost.items():
            known = self._lost.get(topic)
            if known is None or known.snapshot.watermark[topic] < snapshot.watermark[topic]:
                self._lost[topic] = one

    # -- the logs

    def _judge_log(
        self, topic: str, snapshots: Sequence[_Snapshot], anchor: _Snapshot | None
    ) -> None:
        chains = self._chains[topic]
        reached = [s for s in snapshots if s.watermark[topic] in chains]
        same = [s for s in reached if s.log_digests[topic] == chains[s.watermark[topic]]]
        last_same = max(same, key=lambda s: s.watermark[topic], default=anchor)
        start = 0 if last_same is None else last_same.watermark[topic]
        differing = [s for s in reached if s not in same]
        for snapshot in differing:
            if snapshot.watermark[topic] <= start:
                self._wrong_log_digest(topic, snapshot, last_same)
        beyond = sorted(
            (s for s in differing if s.watermark[topic] > start), key=lambda s: s.watermark[topic]
        )
        self._log_differs(topic, last_same, beyond)
        ending = max(snapshots, key=lambda s: s.watermark[topic], default=None)
        if ending is not None and ending.watermark[topic] > self._limits[topic]:
            self._log_ends(topic, ending)

    def _wrong_log_digest(self, topic: str, snapshot: _Snapshot, witness: _Snapshot | None) -> None:
        offset = snapshot.watermark[topic]
        said, found = snapshot.log_digests[topic], self._chains[topic][offset]
        whose = "the beginning of the log" if witness is None else f"snapshot {witness.file.path}"
        self._find(
            "state_differs",
            f"Snapshot {snapshot.file.path} is wrong: its log digest of {topic}:{self._number} at "
            f"offset {offset} is not that of the topic, which {whose} vouches for.",
            snapshot=snapshot.name,
            disagreements=[Disagreement("log_digest", "", {"topic": topic}, said, found)],
        )

    def _log_differs(
        self, topic: str, last_same: _Snapshot | None, snapshots: Sequence[_Snapshot]
    ) -> None:
        """Find between which snapshots records are others, following the chain as recorded."""
        if not snapshots:
            return
        start, chain = 0, digests.GENESIS
        if last_same is not None:
            start = last_same.watermark[topic]
            chain = bytes.fromhex(last_same.log_digests[topic])
        stream = self._stream(topic, start, snapshots[-1].watermark[topic])
        watched = {tip.offset for s in snapshots if (tip := s.header.tips.get(topic)) is not None}
        watched |= self._suspects[topic].keys()
        for place, snapshot in enumerate(snapshots):
            end = snapshot.watermark[topic]
            if end == start:  # another snapshot with the same records of this topic
                continue
            stretch = _Stretch(start, end, chain)
            for records, _ in stream.up_to(end):
                stretch.read(records, watched)
            stretch.read_all()
            if stretch.chain.hex() != snapshot.log_digests[topic]:
                self._changed(topic, snapshot, stretch, len(snapshots) - place - 1)
            start, chain = end, bytes.fromhex(snapshot.log_digests[topic])

    def _changed(self, topic: str, snapshot: _Snapshot, stretch: _Stretch, others: int) -> None:
        tip = snapshot.header.tips.get(topic)
        found = stretch.disagreements(self._suspects[topic], tip)
        which = (
            _listed(found[:_NAMED], len(found) - _NAMED)
            if found
            else "no fact tells which (it was not applied, or its event_id or spelling is another)"
        )
        sentence = (
            f"{topic}:{self._number}: offsets {stretch.start} to {stretch.end - 1} do not hold all "
            f"the records that snapshot {snapshot.file.path} was made of: {which}"
        )
        if stretch.holes:
            sentence += (
                f"; {_holes(stretch.holes, stretch.more_holes)} (a transaction's marker makes such "
                "a hole, too)"
            )
        if others:
            sentence += f"; {_count(others, 'later snapshot')} cannot be proven either"
        self._find(
            "log_differs",
            f"{sentence}.",
            snapshot=snapshot.name,
            topic=topic,
            first_offset=stretch.start,
            last_offset=stretch.end - 1,
            disagreements=found[:_SHOWN],
            more=max(0, len(found) - _SHOWN),
        )

    def _log_ends(self, topic: str, snapshot: _Snapshot) -> None:
        """Say that a topic cannot be read as far as a snapshot was made of it."""
        lost = self._lost.get(topic, _Lost(snapshot))
        first = [suspect.disagreement("removed", None) for suspect in lost.first]
        last = snapshot.watermark[topic] - 1
        limit, end = self._limits[topic], self._ends[topic]
        facts = f"{_count(lost.count, 'fact')} of snapshot {snapshot.file.path}"
        if first:
            facts += f", beginning at offset {first[0].offset},"
        come = "come" if lost.count != 1 else "comes"
        error = self._unreadable.get(topic)
        if error is not None:
            self._find(
                "log_unreadable",
                f"{error.what_happened.removesuffix('.')}: {facts} {come} from there.",
                snapshot=snapshot.name,
                topic=topic,
                first_offset=limit,
                disagreements=[replace(one, record=None) for one in first],
                more=lost.count - len(first),
            )
        if end <= last:
            self._find(
                "log_truncated",
                f"{topic}:{self._number}: the topic ends at offset {end}, but snapshot "
                f"{snapshot.file.path} was made of its records up to offset {last}"
                + (f": {facts} {come} from what is lost." if error is None else "."),
                snapshot=snapshot.name,
                topic=topic,
                first_offset=end,
                last_offset=last,
                disagreements=first if error is None else (),
                more=lost.count - len(first) if error is None else 0,
            )


def _is_at_or_after(snapshot: _Snapshot, other: _Snapshot | None) -> bool:
    return other is None or dominates(snapshot.watermark, other.watermark)


class _Stream:
    """The records of one topic of a partition, taken piece by piece."""

    def __init__(self, batches: Iterator[Batch], start: int) -> None:
        self._batches = batches
        self._position = start
        self._rest: Batch | None = None
        self._damage: UnreadableRecords | None = None

    def up_to(self, target: int) -> Iterator[tuple[list[KafkaRecord], int]]:
        """Yield the records before `target`, and the position after each piece.

        Raises:
            UnreadableRecords: the next ones are damaged.
        """
        while self._position < target:
            if self._damage is not None:
                raise self._damage
            batch = next(self._batches) if self._rest is None else self._rest
            records, end, self._rest = batch.records, batch.next_offset, None
            if end > target:
                cut = bisect_left(records, target, key=_offset_of)
                self._rest = replace(batch, records=records[cut:])
                records, end = records[:cut], target
            for place, record in enumerate(records):
                if record.offset < self._position:  # a check sum does not cover the offset itself
                    self._damage = UnreadableRecords(
                        batch.topic, batch.partition, record.offset, "that offset comes twice"
                    )
                    records, end = records[:place], self._position
                    break
                self._position = record.offset + 1
            self._position = end
            yield records, end


class _Stretch:
    """The records between the offsets of two snapshots, as they are now."""

    def __init__(self, start: int, end: int, chain: bytes) -> None:
        self.start = start
        self.end = end
        self.chain = chain
        self.holes: list[tuple[int, int]] = []
        self.more_holes = 0
        self._next_offset = start
        self._present: dict[int, tuple[Tip, str | None]] = {}

    def read(self, records: Iterable[KafkaRecord], watched: set[int]) -> None:
        """Take in the next records; those at watched offsets are remembered."""
        for record in records:
            offset, key, value = record.offset, record.key, record.value
            self.chain = digests.chain(self.chain, offset, key, value)
            self._skip_to(offset)
            self._next_offset = offset + 1
            if offset in watched:
                self._present[offset] = (tip_of(offset, key, value), text_of(value))

    def read_all(self) -> None:
        """Take in that no more come."""
        self._skip_to(self.end)

    def _skip_to(self, offset: int) -> None:
        if offset > self._next_offset:
            if len(self.holes) < _NAMED:
                self.holes.append((self._next_offset, offset - 1))
            else:
                self.more_holes += 1

    def disagreements(self, suspects: Mapping[int, Suspect], tip: Tip | None) -> list[Disagreement]:
        """Return the records that were changed or removed, as far as they can be told.

        Args:
            suspects: by offset, of the whole topic.
            tip: the last record that the snapshot at the end was made of.
        """
        found = {}
        for offset, suspect in suspects.items():
            if self.start <= offset < self.end:
                _, text = self._present.get(offset, (None, None))
                record: Literal["changed", "removed"]
                record = "changed" if offset in self._present else "removed"
                found[offset] = suspect.disagreement(record, text)
        if tip is not None and self.start <= tip.offset and tip.offset not in found:
            there, text = self._present.get(tip.offset, (None, None))
            if there != tip:
                record = "changed" if there is not None else "removed"
                found[tip.offset] = Disagreement(
                    RECORD, "", {}, {"digest": tip.digest}, text, tip.offset, record
                )
        return [found[offset] for offset in sorted(found)]


def _offset_of(what: KafkaRecord | Suspect) -> int:
    return what.offset


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _listed(found: Sequence[Disagreement], more: int) -> str:
    text = ", ".join(map(str, found[:_NAMED]))
    more += max(0, len(found) - _NAMED)
    return text if more <= 0 else f"{text}, and {more} more"


def _holes(holes: Sequence[tuple[int, int]], more: int) -> str:
    spans = [str(a) if a == b else f"{a} to {b}" for a, b in holes]
    further = f" and {_count(more, 'more hole')}" if more else ""
    noun = "offset" if len(spans) == 1 and holes[0][0] == holes[0][1] else "offsets"
    return f"no record is at {noun} {', '.join(spans)}{further}"
