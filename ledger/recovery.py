"""After records were lost: what was made of them, and discarding it so that tables can be rebuilt.

Workers and replays stop when the topics do not hold what state was made of. What to do then is for
a person to decide: bring the topics back from a copy, or accept them as they are. This is the
second.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

from ledger.agents.publisher import Outgoing, Publisher
from ledger.continuity import Claim, claim_of, require_continuous
from ledger.errors import DamagedState, LostRecords, MissingRecords, StateInUse
from ledger.events import INPUT_TOPICS, RULES_VERSION
from ledger.kafka import BALANCES, Cluster
from ledger.projections.entries import META_KEY
from ledger.projections.partition import Header, Origin, Watermark, dominates, read_header
from ledger.published import LETTERS_ACCOUNT, MARK_KEY, newest_marks, tails
from ledger.rocks import RocksStore
from ledger.snapshots import SnapshotError, Snapshots

Kind = Literal["state", "snapshot", "tables"]

_FORGOTTEN_S: Final = 10.0
"""A group remembers a member that did not leave for as long as its session lasts."""
_PAUSE_S: Final = 0.2
_NOWHERE: Final[Watermark] = dict.fromkeys(INPUT_TOPICS, 0)


@dataclass(frozen=True)
class Contradiction:
    """Something that was made of records which the topics do not hold.

    Attributes:
        kind: what it is.
        partition: its partition.
        place: where it is.
        reason: what the topics do not hold, in a sentence.
        discard: puts it out of the way.
    """

    kind: Kind
    partition: int
    place: str
    reason: str
    discard: Callable[[], None]

    def as_json(self) -> dict[str, Any]:
        """Return it as `--json` prints it."""
        return {
            "kind": self.kind,
            "partition": self.partition,
            "place": self.place,
            "reason": self.reason,
        }


class Recovery:
    """Compares all that workers made with the topics. No worker may run meanwhile."""

    def __init__(self, cluster: Cluster, origin: Origin) -> None:
        self._cluster = cluster
        self._origin = origin
        settings = cluster.settings
        self._snapshots = Snapshots(settings.snapshot_dir, settings.topic_prefix)
        self._bases = {number: [_NOWHERE] for number in range(origin.partitions)}

    def contradictions(self) -> list[Contradiction]:
        """Return what contradicts the topics: local states, snapshots and published tables.

        Raises:
            StateInUse: a worker runs.
            MissingRecords: a partition could not be rebuilt, because the topics no longer have its
                first records and no state or snapshot that matches goes on where they begin.
            StateError: a state or snapshot cannot be read now, so nobody knows what it contradicts.
        """
        self._require_no_worker()
        found = [*self._tables(), *self._kept_snapshots(), *self._states()]
        self._require_bases()
        return found

    def discard(self, found: Sequence[Contradiction]) -> None:
        """Discard what `contradictions` found.

        Raises:
            StateInUse: a worker runs by now; nothing was discarded.
            StateError: something cannot be put out of the way; those after it are still there.
        """
        self._require_no_worker()
        if BALANCES in self._cluster.topics([BALANCES]):
            # Of the records that are no more, dead letters may have been sent beyond the mark.
            for number, tail in tails(self._cluster, {one.partition for one in found}).items():
                if tail.letters is not None:
                    _remove_row(self._cluster, number, LETTERS_ACCOUNT.encode())
        for one in found:
            one.discard()

    def _require_no_worker(self) -> None:
        group = self._cluster.settings.topic("ledger")
        deadline = time.monotonic() + _FORGOTTEN_S
        while members := self._cluster.members(group):
            if time.monotonic() > deadline:
                raise StateInUse(f"Workers run: {group} has {len(members)} members. Stop them.")
            time.sleep(_PAUSE_S)

    def _tables(self) -> Iterator[Contradiction]:
        if BALANCES not in self._cluster.topics([BALANCES]):
            return
        marks = newest_marks(self._cluster, range(self._origin.partitions))
        for number, mark in sorted(marks.items()):
            try:
                require_continuous(self._cluster, [claim_of(mark, number, self._origin)])
            except LostRecords as lost:
                yield Contradiction(
                    "tables",
                    number,
                    f"{BALANCES}:{number}",
                    lost.what_happened,
                    partial(_remove_row, self._cluster, number, MARK_KEY),
                )

    def _kept_snapshots(self) -> Iterator[Contradiction]:
        for number in range(self._origin.partitions):
            for file in self._snapshots.of_partition(number):
                try:
                    header, _ = self._snapshots.read(file, self._origin)
                except SnapshotError:
                    continue  # damaged, or of other topics: whoever comes to it passes it over
                lost = self._lost(
                    Claim(f"snapshot {file.path}", number, header.watermark, header.tips)
                )
                if lost is not None:
                    discard = partial(self._snapshots.set_aside, file)
                    yield Contradiction("snapshot", number, str(file.path), lost, discard)

    def _states(self) -> Iterator[Contradiction]:
        settings = self._cluster.settings
        for path, header in stored_headers(settings.worker_dir):
            if header.origin != self._origin or header.rules_version != RULES_VERSION:
                continue  # a worker that opens it rebuilds it
            what = f"the state in {path}"
            lost = self._lost(Claim(what, header.partition, header.watermark, header.tips))
            if lost is not None:
                discard = partial(shutil.rmtree, path)
                yield Contradiction("state", header.partition, str(path), lost, discard)

    def _lost(self, claim: Claim) -> str | None:
        """Return what the topics do not hold of a claim; one that they bear out can be a base."""
        try:
            require_continuous(self._cluster, [claim])
        except LostRecords as lost:
            return lost.what_happened
        self._bases[claim.partition].append(claim.watermark)
        return None

    def _require_bases(self) -> None:
        slots = [(topic, number) for number in self._bases for topic in INPUT_TOPICS]
        earliest = self._cluster.earliest(slots)
        ends = self._cluster.ends(slots)
        for number, bases in self._bases.items():
            first = {topic: earliest[topic, number] for topic in INPUT_TOPICS}
            if not any(dominates(base, first) for base in bases):
                topic = max(INPUT_TOPICS, key=lambda topic: first[topic])
                slot = (topic, number)
                raise MissingRecords(*slot, 0, earliest[slot], ends[slot], "a rebuilt state")


def stored_headers(places: Path) -> Iterator[tuple[Path, Header]]:
    """Yield the directory and header of each readable state of the workers on this machine.

    Raises:
        StateInUse: a worker has one open.
        StateError: one cannot be read now.
    """
    for path in sorted(places.glob("*/p*")):
        if not path.name[1:].isdigit():
            continue
        try:
            store = RocksStore(path)
            try:
                stored = store.get(META_KEY)
            finally:
                store.close()
            if stored is not None:
                yield path, read_header(stored)
        except DamagedState:
            continue  # a worker that opens it rebuilds it


def _remove_row(cluster: Cluster, number: int, key: bytes) -> None:
    """Remove a row of a partition's tables.

    Nobody vouches for tables without their mark; a worker publishes them anew.
    """
    publisher = Publisher.of_partition(cluster, number)
    publisher.acquire()
    publisher.publish([Outgoing(cluster.settings.topic(BALANCES), number, key, None)])
