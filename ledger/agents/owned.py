"""One partition that this worker owns: its state, its store, and the way its changes go out.

A flush freezes what changed, publishes it with its mark in one transaction, and only then writes it
to the store. So what is published is never behind what is stored, and after a crash the log alone
says what is missing: it is folded again. Only the publishing waits; records go on being applied.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, Final

from ledger.agents.publisher import FencedError, Headers, Outgoing, Publisher
from ledger.errors import StateError
from ledger.events import RULES_VERSION
from ledger.kafka import BALANCES, DEAD_LETTERS, Cluster
from ledger.partitioner import partition_of
from ledger.projections.accounts import Texts
from ledger.projections.partition import (
    Frozen,
    Origin,
    Partition,
    Rejected,
    Watermark,
    read_header,
)
from ledger.published import MARK_KEY, Mark, encode, encode_row, newest_marks, read_published
from ledger.rocks import RocksStore
from ledger.snapshots import Snapshots

logger = logging.getLogger(__name__)

_RESTORE_BATCH: Final = 20_000
_CATCHING_UP: Final = 8  # times the flush interval


def open_state(
    path: Path, number: int, origin: Origin, snapshots: Snapshots
) -> tuple[RocksStore, Partition]:
    """Return the freshest state there is of a partition: local, else the newest good snapshot.

    State that is damaged, or of other topics or rules, is removed and rebuilt.
    """
    restored = path.with_suffix(".restored")
    shutil.rmtree(restored, ignore_errors=True)
    store: RocksStore | None = None
    local = 0
    try:
        store = RocksStore(path)
        local = sum(Partition(number, store, partition_of, origin).watermark.values())
    except StateError as error:
        logger.warning("%s It is rebuilt.", error)
        if store is not None:
            store.close()
            store = None
        shutil.rmtree(path, ignore_errors=True)
    for file in snapshots.of_partition(number):
        if sum(file.watermark.values()) <= local:
            break
        try:
            _, entries = snapshots.read(file, origin)
        except StateError as error:
            logger.warning("%s It is passed over.", error)
            continue
        copy = RocksStore(restored)
        batch: dict[bytes, bytes | None] = {}
        for key, value in entries.scan():
            batch[key] = value
            if len(batch) >= _RESTORE_BATCH:
                copy.write(batch)
                batch = {}
        copy.write(batch)
        copy.close()
        if store is not None:
            store.close()
            store = None
        shutil.rmtree(path, ignore_errors=True)
        restored.rename(path)
        logger.info("partition %d starts from snapshot %s", number, file.path.name)
        break
    if store is None:
        store = RocksStore(path)
    return store, Partition(number, store, partition_of, origin)


def dominates(one: Watermark, other: Watermark) -> bool:
    """Return whether `one` is at or after `other` in every topic."""
    return all(one[topic] >= offset for topic, offset in other.items())


class OwnedPartition:
    """A partition's state in this worker; used from the main loop, but for what it says."""

    def __init__(self, number: int, store: RocksStore, partition: Partition) -> None:
        self.number = number
        self.partition = partition
        self.store = store
        self.epoch = -1
        self.expected: dict[str, int] = {}  # topic to the number of its next chunk
        self.behind: dict[str, int] = {}  # topic to offsets that the broker is known to have more
        self.unsettled = 0  # records applied but not yet in the store
        self.flushed_at = time.monotonic()
        self.settled: Watermark = dict(partition.watermark)
        self.snapshot_at = time.monotonic()
        self.snapshotted: Watermark = dict(partition.watermark)
        self.room = asyncio.Event()
        self.lost = False
        self._flushing = asyncio.Lock()
        self._publisher: Publisher | None = None
        self._published: Watermark | None = None  # what others can see
        self._owed: set[str] = set()  # accounts to publish once the published cut is reached
        self._gone: set[str] = set()  # published accounts that no longer exist
        self._everything = False

    # -- taking and giving up; these block, call them in a thread

    def acquire(self, cluster: Cluster) -> None:
        """Become the one who publishes, and learn what was published last."""
        settings = cluster.settings
        publisher = Publisher(
            cluster.bootstrap, f"{settings.topic_prefix}ledger-partition-{self.number}"
        )
        publisher.acquire()
        self._publisher = publisher
        mark = newest_marks(cluster, [self.number]).get(self.number)
        self._owed.clear()
        self._gone.clear()
        mine = mark is not None and (
            mark.rules_version == RULES_VERSION
            and mark.topic_ids == self.partition.origin.topic_ids
        )
        self._published = mark.watermark if mine and mark is not None else None
        self._everything = self._published is None or not dominates(
            self._published, self.partition.watermark
        )
        if self._everything and mark is not None:
            self._gone = set(read_published(cluster, [self.number])[self.number].accounts)

    def release(self) -> None:
        """Stop publishing; the state stays open."""
        publisher, self._publisher = self._publisher, None
        if publisher is not None:
            publisher.close()

    def close(self) -> None:
        """Close the store. What was not flushed is folded again by whoever comes next."""
        self.release()
        self.store.close()

    # -- flushing

    def is_due(self, interval_s: float, records: int) -> bool:
        """Return whether it is time to flush.

        A partition that is catching up is flushed less often: many of its records change the same
        accounts, and nobody waits for the rows in between.
        """
        catching_up = sum(self.behind.values()) > records
        age_s = time.monotonic() - self.flushed_at
        return self.unsettled >= records or age_s >= interval_s * (
            _CATCHING_UP if catching_up else 1
        )

    async def flush(self, cluster: Cluster, executor: Executor) -> bool:
        """Publish and store what changed; return whether all of it is settled.

        It is not when another worker has taken the partition: then this state is not to be used
        any more (`lost`).
        """
        async with self._flushing:
            if self.lost or self._publisher is None:
                return False
            if not self.partition.is_dirty and not self._everything:
                return True
            flushed = self.unsettled
            self.flushed_at = time.monotonic()
            frozen = self.partition.freeze()
            records = self._outgoing(frozen, cluster.settings.topic)
            if records:
                loop = asyncio.get_running_loop()
                try:
                    await loop.run_in_executor(executor, self._publisher.publish, records)
                except FencedError as error:
                    logger.warning("partition %d belongs to another worker: %s", self.number, error)
                    self.lost = True
                    return False
            if self._is_at_cut(frozen):
                self._published = frozen.watermark
                self._owed.clear()
                self._gone.clear()
                self._everything = False
            self.partition.settle()
            self.settled = frozen.watermark
            self.unsettled -= flushed
            self.room.set()
            return True

    def _is_at_cut(self, frozen: Frozen) -> bool:
        """Return whether nothing newer than this freeze was published before."""
        return self._published is None or dominates(frozen.watermark, self._published)

    def _outgoing(self, frozen: Frozen, topic: Callable[[str], str]) -> list[Outgoing]:
        """Return what a freeze has to publish: nothing older than what is there already."""
        records = [
            _dead_letter(topic(DEAD_LETTERS), self.number, rejected)
            for rejected in frozen.rejected
            # What was published with an earlier mark is there already.
            if self._published is None or rejected.record.offset >= self._published[rejected.topic]
        ]
        if not self._is_at_cut(frozen):
            self._owed.update(frozen.accounts)
            return records
        accounts: dict[str, Texts] = {}
        if self._everything:
            accounts.update(self.partition.balances())
        else:
            accounts.update(self.partition.balances_of(self._owed))
        accounts.update(frozen.accounts)
        name = topic(BALANCES)
        for account, texts in accounts.items():
            row = encode_row(account, frozen.watermark, texts)
            records.append(Outgoing(name, self.number, account.encode(), row))
        for account in self._gone.difference(accounts):
            records.append(Outgoing(name, self.number, account.encode(), None))
        mark = Mark(
            watermark=frozen.watermark,
            state_digest=frozen.state_digest,
            rules_version=RULES_VERSION,
            topic_ids=self.partition.origin.topic_ids,
            counts=frozen.counts,
        )
        records.append(Outgoing(name, self.number, MARK_KEY, encode(mark)))
        return records

    # -- snapshots

    def wants_snapshot(self, interval_s: float) -> bool:
        """Return whether the last snapshot is old, and not of what is stored now."""
        return time.monotonic() - self.snapshot_at >= interval_s and self.needs_snapshot()

    def needs_snapshot(self) -> bool:
        """Return whether there is something stored that no snapshot of this worker has."""
        return self.settled != self.snapshotted and any(self.settled.values())

    def write_snapshot(self, snapshots: Snapshots, kept: int) -> None:
        """Write a snapshot of what is stored; blocks, call it in a thread."""
        entries = self.store.scan()
        _, stored = next(entries)  # the header's key is the first of all
        header = read_header(stored)
        snapshots.write(header, entries)
        snapshots.thin(self.number, kept)
        self.snapshotted = header.watermark
        self.snapshot_at = time.monotonic()


def _dead_letter(topic: str, partition: int, rejected: Rejected) -> Outgoing:
    record: Any = rejected.record
    source = f"{rejected.topic}:{partition}:{record.offset}".encode()
    headers: Headers = list(record.headers)
    headers += [
        ("key", record.key),  # None stays None: the last four headers are always ours
        ("source", source),
        ("reason", rejected.reason.encode()),
        ("detail", rejected.detail.encode(errors="replace")[:1000]),
    ]
    return Outgoing(topic, -1, source, record.value, headers)
