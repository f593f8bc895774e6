"""One partition that this worker owns: its state, its store, and the way its changes go out.

A flush freezes what changed, publishes it with its mark in one transaction, and only then writes it
to the store. So what is published is never behind what is stored, and after a crash the log alone
says what is missing: it is folded again. Digests, publishing and storing are a thread's business;
records go on being applied meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from typing import Final

from ledger.agents.publisher import FencedError, Outgoing, Publisher, Rows
from ledger.continuity import (
    Leadership,
    LogWatch,
    claim_of,
    position_of,
)
from ledger.errors import (
    DamagedState,
    RefusedState,
    StateError,
    StateInUse,
    TopicError,
    UnreachableError,
)
from ledger.events import RULES_VERSION
from ledger.kafka import BALANCES, DEAD_LETTERS, Cluster
from ledger.letters import DeadLetter, dead_letter
from ledger.objects import StorageError
from ledger.projections.entries import META_KEY
from ledger.projections.partition import (
    Frozen,
    Origin,
    Packed,
    Partition,
    Rejected,
    Watermark,
    dominates,
    read_header,
    require_same_partitions,
)
from ledger.published import (
    LETTERS_ACCOUNT,
    MARK_KEY,
    Mark,
    encode,
    encode_row,
    read_published,
    tails,
)
from ledger.rocks import RocksStore
from ledger.snapshots import SnapshotFile, Snapshots
from ledger.states import make_state, put_in_place, remove_state, tidy

logger = logging.getLogger(__name__)

_CATCHING_UP: Final = 8  # times the flush interval

Entries = Generator[tuple[bytes, bytes], None, None]


def open_state(
    path: Path,
    number: int,
    origin: Origin,
    snapshots: Snapshots,
    before_removing: Callable[[], None] = lambda: None,
) -> tuple[RocksStore, Partition]:
    """Return the freshest state there is of a partition: local, else the newest good snapshot.

    State that is damaged, or of other topics or rules, is removed and rebuilt, and that is said.

    Args:
        path: of the local state.
        number: the partition.
        origin: the topics in use.
        snapshots: of the ledger.
        before_removing: called before a state of other topics or rules is removed; may refuse.

    Raises:
        StateInUse: something else has the state at `path` open.
        TopicError: the topics have another number of partitions than when the state was made.
    """
    tidy(path)
    store: RocksStore | None = None
    local = 0
    try:
        store = RocksStore(path)
        local = sum(Partition(number, store, origin).watermark.values())
    except (DamagedState, RefusedState) as error:
        if store is not None:
            store.close()
            store = None
        if isinstance(error, RefusedState):
            before_removing()
        logger.warning("partition %d: %s It is rebuilt.", number, error)
        remove_state(path)
    except TopicError:
        if store is not None:
            store.close()
        raise
    for file in _listed(snapshots, number):
        if file.records <= local:
            break
        try:
            with snapshots.open(file, origin) as (_, entries):
                make_state(path, entries)
        except StorageError as error:
            logger.warning("partition %d: %s It is passed over.", number, error)
            continue
        except BaseException:
            if store is not None:
                store.close()
            raise
        if store is not None:
            store.close()
            store = None
        put_in_place(path)
        logger.info("partition %d starts from snapshot %s", number, file.name)
        break
    if store is None:
        store = RocksStore(path)
    return store, Partition(number, store, origin)


def _listed(snapshots: Snapshots, number: int) -> list[SnapshotFile]:
    try:
        return snapshots.of_partition(number)
    except StorageError as error:
        # Snapshots save time, nothing else depends on them.
        logger.warning("partition %d: %s It starts without snapshots.", number, error)
        return []


def stored_progress(directory: Path) -> dict[int, int]:
    """Return how many records each state in a place on disk has applied, for the assignor."""
    progress: dict[int, int] = {}
    for path in directory.glob("p*"):
        if path.name[1:].isdigit():
            try:
                store = RocksStore(path)
            except (StateError, StateInUse):
                continue  # whoever opens it for work will say what is wrong with it
            try:
                stored = store.get(META_KEY)
                if stored is not None:
                    progress[int(path.name[1:])] = sum(read_header(stored).watermark.values())
            except StateError:
                continue
            finally:
                store.close()
    return progress


class OwnedPartition:
    """A partition's state in this worker; used from the main loop, but for what it says."""

    def __init__(
        self,
        number: int,
        store: RocksStore,
        partition: Partition,
        leadership: Callable[[], Leadership] = Leadership,
    ) -> None:
        """Hold an opened state.

        Args:
            number: the partition.
            store: its store.
            partition: its state.
            leadership: see `LogWatch`.
        """
        self._leadership = leadership
        self.number = number
        self.partition = partition
        self.store = store
        self.epoch = -1
        self.expected: dict[str, int] = {}  # topic to the number of its next chunk
        self.behind: dict[str, int] = {}  # topic to offsets that the broker is known to have more
        self.unsettled = 0  # records applied but not yet in the store
        self.flushed_at = time.monotonic()
        self.is_catching_up = False  # whether it was far behind when records were applied last
        self.settled: Watermark = dict(partition.watermark)
        self.committed: Watermark | None = None  # what the group was told; None: nothing yet
        self.snapshot_at = time.monotonic()
        self.snapshot_took_s = 0.0
        self.snapshotted: Watermark = dict(partition.watermark)
        self.room = asyncio.Event()
        self.lost = False  # this state is not to be used any more; see `lose`
        self._lane = asyncio.Lock()  # held by the chunk whose turn it is
        self._folding = asyncio.Lock()  # held while a thread changes entries in memory
        self._flushing = asyncio.Lock()
        self._publisher: Publisher | None = None
        self._log_watch: LogWatch | None = None
        self._applying = threading.Lock()  # held while records are, or the store is closed
        self._reading = threading.Lock()  # held while a snapshot is made, or the store is closed
        self._writing = threading.Lock()  # held while a freeze is stored, or the store is closed
        self._closing = False
        self._published: Watermark | None = None  # what others can see
        self._letters: Watermark | None = None  # dead letters sent beyond that, without a mark
        self._owed: set[str] = set()  # accounts to publish once the published cut is reached
        self._gone: set[str] = set()  # published accounts that no longer exist
        self._everything = False

    # -- taking and giving up; these block, call them in a thread

    def acquire(self, cluster: Cluster) -> None:
        """Become the one who publishes, and learn what was published last.

        Raises:
            TopicError: the topics had another number of partitions when it was published.
            MissingRecords: records that state or tables were made of, or need, are gone.
            ReplacedRecords: others have their offsets.
            ReplacedTopic: the tables were made of topics that are no more.
            UnreachableError: Kafka did not answer.
        """
        publisher = Publisher.of_partition(cluster, self.number)
        publisher.acquire()
        self._publisher = publisher
        origin = self.partition.origin
        tail = tails(cluster, [self.number])[self.number]
        mark = tail.mark
        claims = [] if mark is None else [claim_of(mark, self.number, origin)]
        if self._log_watch is None:  # else something may be in doubt that was applied before
            self._log_watch = LogWatch(cluster, self.number, self._leadership)
        self._log_watch.confirm(position_of(self.partition), self._what, claims)
        self._owed.clear()
        self._gone.clear()
        self._published = self._letters = None
        if mark is not None:
            require_same_partitions(mark.partitions, origin.partitions)
            if mark.rules_version == RULES_VERSION:
                self._published, self._letters = mark.watermark, tail.letters
            else:
                logger.warning(
                    "partition %d: its tables were made by rules version %d; they are published "
                    "anew by version %d",
                    self.number,
                    mark.rules_version,
                    RULES_VERSION,
                )
        self._everything = self._published is None or not dominates(
            self._published, self.partition.watermark
        )
        if self._everything:
            accounts = read_published(cluster, [self.number])[self.number].accounts
            self._gone = accounts.keys() - {LETTERS_ACCOUNT}

    @property
    def _what(self) -> str:
        return f"the state in {self.store.directory}"

    def release(self) -> None:
        """Stop publishing; the state stays open."""
        publisher, self._publisher = self._publisher, None
        if publisher is not None:
            publisher.close()

    def close(self) -> None:
        """Close the store. What was not flushed is folded again by whoever comes next."""
        self.release()
        self.lost = self._closing = True  # a snapshot being made ends at its next entry
        with self._applying, self._reading, self._writing:
            self.store.close()

    def keep(self) -> None:
        """Bring to disk what is stored, so that nothing is folded again; blocks.

        Raises:
            StateError: it cannot be written.
        """
        with self._writing:
            if not self._closing:
                self.store.flush()

    def merge_files(self, at_rest: bool) -> None:
        """Have the store's files merged soon, or later; see `RocksStore.merge_files`.

        Raises:
            StateError: that cannot be set.
        """
        with self._writing:
            if not self._closing:
                self.store.merge_files(at_rest=at_rest)

    def damage(self, error: StateError) -> None:
        """Let the state go because its store is damaged; whoever opens it next rebuilds it.

        Raises:
            StateError: not even that can be noted in its directory.
        """
        logger.warning("partition %d: %s", self.number, error)
        self.store.mark_damaged()
        self.lose()

    def lose(self) -> None:
        """Let the state go: another worker has the partition, or a freeze was not settled."""
        self.lost = True
        self.room.set()

    # -- applying

    async def apply(
        self,
        topic: str,
        records: Packed,
        next_offset: int,
        executor: Executor,
        may_go_on: Callable[[], bool],
        most_unsettled: int,
    ) -> bool:
        """Apply records after all those that were given before; return whether that was done.

        A thread applies them, so that partitions do not wait for each other.

        Args:
            topic: one of the input topics.
            records: of this partition.
            next_offset: the position after them.
            executor: whose thread it is.
            may_go_on: whether the records are still wanted; asked when their turn has come.
            most_unsettled: while there are more unsettled records, flushes are waited for.

        Raises:
            DamagedState: a stored entry is damaged; this state is not to be used any more.
        """
        loop = asyncio.get_running_loop()
        async with self._lane:
            while self.unsettled > most_unsettled and may_go_on():
                self.room.clear()
                await self.room.wait()
            async with self._folding:
                if not may_go_on():
                    return False
                await loop.run_in_executor(executor, self._apply, topic, records, next_offset)
                self.unsettled += len(records.records)
                return True

    def _apply(self, topic: str, records: Packed, next_offset: int) -> None:
        with self._applying:
            if not self._closing:
                self.partition.apply(topic, records, next_offset)

    async def idle(self) -> None:
        """Return when no thread is applying records any more."""
        async with self._folding:
            pass

    def note_behind(self, topic: str, behind: int, records: int) -> None:
        """Note how many offsets a topic has more; beyond so many records it is far behind."""
        self.behind[topic] = behind
        if sum(self.behind.values()) > records:
            self.is_catching_up = True

    # -- flushing

    @property
    def is_flushing(self) -> bool:
        """Whether a flush is under way."""
        return self._flushing.locked()

    def is_due(self, interval_s: float, records: int) -> bool:
        """Return whether it is time to flush.

        A partition that is catching up is flushed less often: many of its records change the same
        accounts, and nobody waits for the rows in between. When it has caught up it is flushed at
        once.
        """
        if self.unsettled >= records:
            return True
        behind = sum(self.behind.values())
        if self.is_catching_up and not behind:
            return True
        age_s = time.monotonic() - self.flushed_at
        return age_s >= interval_s * (_CATCHING_UP if behind > records else 1)

    async def flush(self, cluster: Cluster, folders: Executor, executor: Executor) -> bool:
        """Publish and store what changed; return whether all of it is settled.

        It is not when another worker has taken the partition: then this state is lost.

        Args:
            cluster: the ledger.
            folders: whose threads change entries in memory.
            executor: whose threads wait for brokers and disks.

        Raises:
            PublishError: something cannot be published at all.
            MissingRecords: records that were applied are gone.
            ReplacedRecords: others have their offsets.
            StateError: it cannot be stored.
        """
        async with self._flushing:
            if self.lost or self._publisher is None:
                return False
            self.flushed_at = time.monotonic()
            if not any(self.behind.values()):
                self.is_catching_up = False
            loop = asyncio.get_running_loop()
            async with self._folding:
                if not self.partition.is_dirty and not self._everything:
                    return True
                flushed = self.unsettled
                frozen = await loop.run_in_executor(folders, self.partition.freeze)
            publish = partial(self._publish, self._publisher, frozen, cluster.settings.topic)
            try:
                published = await loop.run_in_executor(executor, publish)
            except FencedError as error:
                logger.warning("partition %d belongs to another worker: %s", self.number, error)
                self.lose()
            if self.lost:  # perhaps meanwhile: the store may be closed by now
                return False
            if self._is_at_cut(frozen):
                self._published = frozen.watermark
                self._letters = self._letters_beyond(frozen)
                self._owed.clear()
                self._gone.clear()
                self._everything = False
            elif published:
                self._letters = self._letters_with(frozen)
            async with self._folding:
                await loop.run_in_executor(folders, self.partition.settle)
            if self.lost:
                return False
            self.settled = frozen.watermark
            self.unsettled -= flushed
            self.room.set()
            return True

    def _publish(
        self, publisher: Publisher, frozen: Frozen, topic: Callable[[str], str]
    ) -> list[Outgoing | Rows]:
        """Publish, unless the topics do not hold what was applied; returns what; blocks.

        The broker is waited for. A broker that was away may have lost records, so the topics are
        looked at first: nothing goes out, or into the store, that they do not bear out.
        """
        assert self._log_watch is not None
        while True:
            try:
                self._log_watch.confirm(position_of(frozen), self._what)
                break
            except UnreachableError as error:
                publisher.require_open()
                logger.warning("partition %d waits: %s", self.number, error)
        records = self._outgoing(frozen, topic)
        if records:
            publisher.publish(records)
        with self._writing:
            if not self._closing:
                self.partition.write()
        return records

    def _is_at_cut(self, frozen: Frozen) -> bool:
        """Return whether nothing newer than this freeze was published before."""
        return self._published is None or dominates(frozen.watermark, self._published)

    def _was_sent(self, rejected: Rejected) -> bool:
        """Return whether a dead letter was published before, with a mark or without."""
        return any(
            sent is not None and rejected.record.offset < sent[rejected.topic]
            for sent in (self._published, self._letters)
        )

    def _letters_with(self, frozen: Frozen) -> Watermark:
        """Return up to where all dead letters are sent when those of a freeze are."""
        sent = self._letters or {}
        return {t: max(offset, sent.get(t, 0)) for t, offset in frozen.watermark.items()}

    def _letters_beyond(self, frozen: Frozen) -> Watermark | None:
        """Return what was sent of dead letters that a mark at a freeze does not cover."""
        if self._letters is None or dominates(frozen.watermark, self._letters):
            return None
        return self._letters_with(frozen)

    def _outgoing(self, frozen: Frozen, topic: Callable[[str], str]) -> list[Outgoing | Rows]:
        """Return what a freeze has to publish: nothing older than what is there already."""
        records: list[Outgoing | Rows] = [
            _outgoing(topic(DEAD_LETTERS), dead_letter(self.number, rejected))
            for rejected in frozen.rejected
            if not self._was_sent(rejected)
        ]
        if not self._is_at_cut(frozen):
            self._owed.update(frozen.changed_accounts())
            if records:
                letters = self._letters_with(frozen)
                records.append(_letters_row(topic(BALANCES), self.number, letters))
            return records
        name = topic(BALANCES)
        records.append(Rows(name, self.number, frozen.rows))
        if self._everything or self._owed or self._gone:
            records += self._overdue(frozen, name)
        mark = Mark(
            watermark=frozen.watermark,
            state_digest=frozen.state_digest,
            rules_version=RULES_VERSION,
            topic_ids=self.partition.origin.topic_ids,
            partitions=self.partition.origin.partitions,
            counts=frozen.counts,
            tips=frozen.tips,
        )
        records.append(Outgoing(name, self.number, MARK_KEY, encode(mark)))
        beyond = self._letters_beyond(frozen)
        if beyond is not None:  # a reader forgets what was said before the mark
            records.append(_letters_row(name, self.number, beyond))
        return records

    def _overdue(self, frozen: Frozen, topic: str) -> list[Outgoing]:
        """Return the rows of accounts that did not change now, but are owed, or are no more."""
        published = frozen.changed_accounts()
        owed = (
            self.partition.balance_entries()
            if self._everything
            else self.partition.balance_entries_of(self._owed - published)
        )
        records = []
        for account, stored in owed:
            if account not in published:
                published.add(account)
                row = encode_row(account, frozen.watermark, stored)
                records.append(Outgoing(topic, self.number, account.encode(), row))
        for account in self._gone - published:
            records.append(Outgoing(topic, self.number, account.encode(), None))
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
        began = time.monotonic()
        try:
            self._write_snapshot(snapshots, kept)
        finally:  # one that cannot be written takes its time, too
            self.snapshot_at = time.monotonic()
            self.snapshot_took_s = self.snapshot_at - began

    def _write_snapshot(self, snapshots: Snapshots, kept: int) -> None:
        with contextlib.ExitStack() as reading:
            reading.enter_context(self._reading)
            if self._closing:
                return
            entries = self.store.scan()
            reading.callback(entries.close)  # while an iterator lives, the database stays locked
            _, stored = next(entries)  # the header's key is the first of all
            header = read_header(stored)
            self.store.flush()  # or after a kill the snapshot would be ahead of the store
            try:
                snapshots.write(header, self._until_closing(entries, reading))
            except _Closing:
                return
        snapshots.thin(self.number, kept, header.origin)
        self.snapshotted = header.watermark

    def _until_closing(self, entries: Entries, reading: contextlib.ExitStack) -> Entries:
        for entry in entries:
            if self._closing:
                raise _Closing
            yield entry
        reading.close()  # whoever closes the store need not wait for an upload


class _Closing(Exception):  # noqa: N818 - no error: a snapshot that is not wanted any more
    pass


def _letters_row(topic: str, partition: int, sent: Watermark) -> Outgoing:
    row = encode_row(LETTERS_ACCOUNT, sent, None)
    return Outgoing(topic, partition, LETTERS_ACCOUNT.encode(), row)


def _outgoing(topic: str, letter: DeadLetter) -> Outgoing:
    return Outgoing(topic, -1, letter.key, letter.value, letter.headers)
