"""The stream worker: a Faust app that owns partitions and folds what arrives into their state."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final, NoReturn, TypeVar

from aiokafka.errors import KafkaError, OffsetOutOfRangeError
from aiokafka.structs import TopicPartition
from confluent_kafka import KafkaException

from ledger.agents.assignor import Progress
from ledger.agents.chunked import Chunk, ChunkedApp
from ledger.agents.owned import OwnedPartition, open_state, stored_progress
from ledger.continuity import Leadership, claim_of, require_topics
from ledger.errors import (
    DamagedState,
    LedgerError,
    MissingRecords,
    ReplacedTopic,
    StateError,
    TopicError,
    UnreachableError,
)
from ledger.events import INPUT_TOPICS
from ledger.kafka import BALANCES, Cluster
from ledger.places import Place, take_place
from ledger.projections.partition import Origin, Partition, require_same_partitions
from ledger.published import newest_marks
from ledger.settings import Settings
from ledger.snapshots import Snapshots

logger = logging.getLogger(__name__)

SESSION_TIMEOUT_S: Final = 6.0
"""The broker's minimum: how long the partitions of a worker that was killed lie idle."""
_REVOKED_FLUSH_S: Final = 2.0  # no heartbeat is sent meanwhile
_REVOKED_COMMIT_S: Final = 0.5
_COMMIT_S: Final = 5.0
_RETAKE_PAUSE_S: Final = 0.5
_STOP_FLUSH_S: Final = 2.0
_STOP_SNAPSHOT_S: Final = 1.0
_LEAVE_S: Final = 0.8
_SAY_S: Final = 0.1
_STOP_S: Final = 4.8  # for all of it
_STUCK_S: Final = 60.0
_TOPICS_S: Final = 5.0
_LOOK_S: Final = 0.05
_REST_S: Final = 1.0
_SNAPSHOTS_SHARE: Final = 0.1  # of a worker's time
_NEVER_S: Final = 10.0**9
_MOST_UNSETTLED: Final = 1.5  # times flush_records

_T = TypeVar("_T")


def snapshot_interval_s(wanted_s: float, took_s: Iterable[float]) -> float:
    """Return how far apart a partition's snapshots are to be.

    Each holds all of the state, which grows, so that at last a worker would do nothing else.

    Args:
        wanted_s: how far apart somebody wants them.
        took_s: how long the last one of each partition of the worker took.
    """
    return max(wanted_s, sum(took_s) / _SNAPSHOTS_SHARE)


class LedgerApp(ChunkedApp):
    """Owns partitions of the input topics, with one agent over all three."""

    def __init__(self, name: str, *, settings: Settings, bootstrap: str, **options: Any) -> None:
        super().__init__(name, **options)
        self.settings = settings
        self.cluster = Cluster(bootstrap, settings)
        self.owned: dict[int, OwnedPartition] = {}
        self._parked: dict[int, OwnedPartition] = {}  # open, but not ours to fold now
        self._progress: Progress = {}
        self._place: Place | None = None
        self._snapshots = Snapshots(settings.snapshot_dir, settings.topic_prefix)
        self._executor = ThreadPoolExecutor(max_workers=16, thread_name_prefix="ledger")
        # Apart from those who wait for brokers; more would only take turns.
        self._folders = ThreadPoolExecutor(len(os.sched_getaffinity(0)), thread_name_prefix="fold")
        self._activation = asyncio.Lock()
        self._flush_wanted = asyncio.Event()
        self._closing = False
        self._names = {settings.topic(name): name for name in INPUT_TOPICS}
        self._background: set[asyncio.Task[Any]] = set()
        self._beat = time.monotonic()
        self._tables_id: str | None = None  # of the topic that the owned tables are in

    # -- starting

    async def on_first_start(self) -> None:
        """Prepare topics and the place on disk before Faust subscribes."""
        try:
            self._place = take_place(self.settings.worker_dir)
            await super().on_first_start()
            await self._in_executor(require_topics, self.cluster)
            await self._in_executor(self.cluster.ensure_topics)
            for warning in await self._in_executor(self.cluster.policy_warnings):
                logger.warning("%s", warning)
            self._progress = await self._in_executor(stored_progress, self._place.directory)
        except (LedgerError, KafkaException, OSError) as error:
            self.fail(str(error))
            return
        logger.info("worker in %s, Kafka at %s", self._place.directory, self.cluster.bootstrap)
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        self._start(self._flush_forever())
        self._start(self._snapshot_forever())
        self._start(self._merge_at_rest())
        self._start(self._watch_topics())

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._background_ended)

    def _background_ended(self, task: asyncio.Task[Any]) -> None:
        self._background.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            expected = isinstance(error, LedgerError)
            self.fail(str(error) if expected else f"A part of the worker failed: {error!r}")

    async def _in_executor(self, function: Callable[..., _T], *args: Any) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, function, *args)

    # -- assignments

    def progress(self) -> Progress:
        """Return what local state has applied, for the assignor."""
        return dict(self._progress)

    def park(self) -> list[OwnedPartition]:
        """Stop folding the owned partitions; their stores stay open. Returns them."""
        parked = list(self.owned.values())
        self.owned = {}
        for owned in parked:
            owned.epoch = -1
            owned.room.set()
            self._parked[owned.number] = owned
        return parked

    async def give_up(self) -> None:
        """Flush and park what is owned: the partitions are being assigned anew."""
        epoch, parked = self.epoch, self.park()
        await self._flush_all(parked, _REVOKED_FLUSH_S)
        for owned in parked:
            owned.release()
        # Before rejoining, while the group still knows our generation.
        await self._commit(epoch, parked, _REVOKED_COMMIT_S)

    async def activate(self, epoch: int) -> None:
        """Open the assigned partitions' states and resume fetching where they end.

        Brokers that do not answer are waited for.

        Raises:
            MissingRecords: records that state was made of, or needs, are gone.
            ReplacedRecords: others have their offsets.
            ReplacedTopic: a topic was created anew.
        """
        async with self._activation:
            while self.epoch == epoch and not self._closing and not self.is_active:
                try:
                    await self._take_assigned(epoch)
                    return
                except UnreachableError as error:
                    logger.warning("waiting to take partitions: %s", error)
                    await asyncio.sleep(_RETAKE_PAUSE_S)

    async def _take_assigned(self, epoch: int) -> None:
        self.park()  # whatever is open is found there, and not opened twice
        assigned = self.assigned()
        numbers = sorted({where.partition for where in assigned})
        wanted = {TopicPartition(topic, n) for topic in self._names for n in numbers}
        if wanted != assigned:
            raise TopicError(f"The topics were not assigned together: {sorted(assigned)}.")
        await self._in_executor(require_topics, self.cluster)
        origin = await self._in_executor(self.cluster.ensure_outputs)
        self._tables_id = await self._in_executor(self._find_tables_id)
        outcomes = await asyncio.gather(
            *(self._open(number, origin, epoch) for number in numbers), return_exceptions=True
        )
        for outcome in outcomes:
            if outcome is not None:
                raise outcome
        if self.epoch != epoch or self._closing:
            return  # assigned anew meanwhile; the stores may still be of use
        opened = [self._parked.pop(number) for number in numbers]
        offsets = {
            TopicPartition(self.settings.topic(topic), owned.number): offset
            for owned in opened
            for topic, offset in owned.partition.watermark.items()
        }
        for owned in opened:
            owned.epoch = epoch
            owned.committed = None
            owned.expected = dict.fromkeys(INPUT_TOPICS, 0)
            owned.behind = {}
            self.owned[owned.number] = owned
            self._progress[owned.number] = sum(owned.settled.values())
        left_over = [self._parked.pop(number) for number in list(self._parked)]
        await self.resume(epoch, offsets)
        for owned in left_over:
            await self._in_executor(owned.close)
        logger.info("folding partitions %s", ", ".join(map(str, numbers)) or "none")

    async def _open(self, number: int, origin: Origin, epoch: int) -> None:
        """Open a partition's state, park it and become its owner."""
        assert self._place is not None
        owned = self._parked.get(number)
        if owned is not None:
            await owned.idle()  # with what was fetched before; what waits is not applied any more
        if owned is not None and (owned.lost or owned.partition.origin != origin):
            del self._parked[number]
            await self._in_executor(owned.close)
            owned = None
        if owned is None:
            store, partition = await self._in_executor(
                open_state,
                self._place.partition(number),
                number,
                origin,
                self._snapshots,
                partial(require_tables_of, self.cluster, number, origin),
            )
            owned = OwnedPartition(number, store, partition, partial(self._leadership, number))
            self._parked[number] = owned
        if self.epoch == epoch:  # else it may be another worker's by now, who must not be fenced
            await self._in_executor(owned.acquire, self.cluster)

    def _leadership(self, number: int) -> Leadership:
        leaders = self.leaders
        return Leadership(
            leaders.number,
            {
                self._names[where.topic]: offset
                for where, offset in leaders.fetched.items()
                if where.partition == number
            },
        )

    # -- folding

    def fold(self, chunk: Chunk) -> None:
        """Let a chunk be applied to its partition, unless the assignment changed since its fetch.

        Partitions do not wait for each other; the chunks of one are applied as they come.
        """
        owned = self.owned.get(chunk.partition)
        if owned is None or not self._is_current(owned, chunk):
            self.chunk_done(chunk)
            return
        topic = self._names[chunk.topic]
        if chunk.number != owned.expected[topic]:
            raise StateError(
                f"{topic}:{chunk.partition}: chunk {owned.expected[topic]} before offset "
                f"{chunk.offset} was lost on its way to the agent. Start the worker again."
            )
        owned.expected[topic] += 1
        self._start(self._fold(owned, topic, chunk))

    async def _fold(self, owned: OwnedPartition, topic: str, chunk: Chunk) -> None:
        records = self._flush_after
        try:
            applied = await owned.apply(
                topic,
                chunk.records,
                chunk.next_offset,
                self._folders,
                partial(self._is_current, owned, chunk),
                int(_MOST_UNSETTLED * records),
            )
            if applied:
                owned.note_behind(topic, chunk.behind, records)
                if owned.is_due(self.settings.flush_interval_s, records):
                    self._flush_wanted.set()
        except DamagedState as error:
            owned.damage(error)
        except LedgerError as error:
            self.fail(str(error))
        except Exception as error:  # noqa: BLE001
            self.fail(f"{topic}:{chunk.partition}: {error!r}")
        finally:
            self.chunk_done(chunk)

    def _is_current(self, owned: OwnedPartition, chunk: Chunk) -> bool:
        return (
            owned.epoch == chunk.epoch == self.epoch
            and not owned.lost
            and self.owned.get(chunk.partition) is owned
            and not self._closing
        )

    # -- flushing

    @property
    def _flush_after(self) -> int:
        """After how many records a partition is flushed: all that waits is bounded together."""
        return max(1, self.settings.flush_records // max(1, len(self.owned)))

    async def _flush_forever(self) -> None:
        """Flush partitions that are due, each for itself: one that waits holds up no other."""
        interval_s = self.settings.flush_interval_s
        while not self._closing:
            epoch, records = self.epoch, self._flush_after
            self._flush_wanted.clear()
            for owned in list(self.owned.values()):
                if owned.is_due(interval_s, records) and not owned.is_flushing:
                    self._start(self._flush_and_commit(owned, epoch))
            if any(owned.lost for owned in self.owned.values()):
                await self._retake(epoch)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._flush_wanted.wait(), min(_LOOK_S, interval_s))

    async def _flush_and_commit(self, owned: OwnedPartition, epoch: int) -> None:
        await self._flush_all([owned], None)
        self._flush_wanted.set()  # what was applied meanwhile may be enough for the next
        if not self._closing:
            await self._commit(epoch, [owned])

    async def _flush_all(self, partitions: list[OwnedPartition], timeout_s: float | None) -> None:
        flushes = asyncio.gather(*map(self._flush, partitions))
        try:
            await asyncio.wait_for(flushes, timeout_s)
        except TimeoutError:
            logger.warning("Kafka is too slow to flush now; what is missing is folded again")
            for owned in partitions:
                owned.lose()  # its freeze was not settled
        for owned in partitions:
            self._progress[owned.number] = sum(owned.settled.values())

    async def _flush(self, owned: OwnedPartition) -> None:
        try:
            await owned.flush(self.cluster, self._folders, self._executor)
        except DamagedState as error:
            owned.damage(error)
        except LedgerError as error:
            self._end(str(error))

    async def _retake(self, epoch: int) -> None:
        """Take partitions again that were fenced, or damaged, if the group says they are ours.

        A worker whose assignment came late may have fenced us; or we were paused and are the late
        one. The group coordinator knows: it refuses the commit of a member that is out.
        """
        partitions = list(self.owned.values())
        offsets = self._offsets_of(partitions)
        if await self.commit_offsets(epoch, offsets, _COMMIT_S) and self.epoch == epoch:
            logger.warning("taking partitions again")
            await asyncio.sleep(_RETAKE_PAUSE_S)
            await self.activate_again(epoch)
        else:
            await asyncio.sleep(_RETAKE_PAUSE_S)

    async def _commit(
        self, epoch: int, partitions: list[OwnedPartition], within_s: float = _COMMIT_S
    ) -> None:
        """Commit what is settled and not committed yet; what fails comes with the next flush."""
        due = [o for o in partitions if not o.lost and o.committed != o.settled]
        settled = [owned.settled for owned in due]
        if due and await self.commit_offsets(epoch, self._offsets_of(due), within_s):
            for owned, offsets in zip(due, settled, strict=True):
                owned.committed = offsets

    def _offsets_of(self, partitions: list[OwnedPartition]) -> dict[TopicPartition, int]:
        return {
            TopicPartition(self.settings.topic(topic), owned.number): offset
            for owned in partitions
            for topic, offset in owned.settled.items()
        }

    async def _merge_at_rest(self) -> None:
        """Let states have few files while no partition is catching up: merging takes a core."""
        rested = False
        while not self._closing:
            await asyncio.sleep(_REST_S)
            partitions = list(self.owned.values())
            rests = not any(owned.is_catching_up for owned in partitions)
            for owned in partitions:
                with contextlib.suppress(StateError):  # the next write says what is the matter
                    await self._in_executor(owned.merge_files, rests and rested)
            rested = rests

    async def _snapshot_forever(self) -> None:
        """Write snapshots that are due, one at a time; flushes do not wait for them."""

        def interval_s() -> float:
            took_s = (owned.snapshot_took_s for owned in self.owned.values())
            return snapshot_interval_s(self.settings.snapshot_interval_s, took_s)

        while not self._closing:
            apart_s = interval_s()
            for owned in list(self.owned.values()):
                due = owned.wants_snapshot(apart_s)
                if due and not (owned.lost or self._closing):
                    await self._snapshot(owned)
                    apart_s = interval_s()
            await asyncio.sleep(_LOOK_S)

    async def _snapshot(self, owned: OwnedPartition) -> None:
        try:
            await self._in_executor(owned.keep)
        except DamagedState as error:
            owned.damage(error)
            return
        except StateError as error:
            self.fail(str(error))
        try:
            await self._in_executor(
                owned.write_snapshot, self._snapshots, self.settings.snapshots_kept
            )
        except DamagedState as error:
            owned.damage(error)
        except (OSError, LedgerError) as error:
            # Snapshots save time, nothing else depends on them.
            logger.warning("partition %d: no snapshot could be written: %s", owned.number, error)

    # -- stopping

    async def on_stop(self) -> None:
        """Flush, hand the partitions over and end the process, whatever becomes of either."""
        if self._closing:
            return
        self._closing = True
        logger.info("stopping")
        latest = threading.Timer(_STOP_S, self._end_stopped, [f"not all within {_STOP_S} s"])
        latest.daemon = True
        latest.start()
        try:
            await self._hand_over()
        except BaseException as error:  # noqa: BLE001 - what was not flushed is folded again
            self._end_stopped(repr(error))
        self._end_stopped()

    async def _hand_over(self) -> None:
        epoch, owned = self.epoch, list(self.owned.values())
        await self._flush_all(owned, _STOP_FLUSH_S)
        # What does not get to disk is folded again, so nobody waits for it in vain.
        kept = asyncio.gather(*map(self._keep, [*owned, *self._parked.values()]))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._last_snapshots(owned), _STOP_SNAPSHOT_S)
        if self.is_connected:
            await self._commit(epoch, owned, _LEAVE_S)
            with contextlib.suppress(TimeoutError, KafkaError):
                await asyncio.wait_for(self.leave_group(), _LEAVE_S)
        await kept

    async def _keep(self, owned: OwnedPartition) -> None:
        with contextlib.suppress(StateError):
            await self._in_executor(owned.keep)

    def _end_stopped(self, trouble: str | None = None) -> NoReturn:
        if trouble is not None:
            logger.warning("the partitions could not be handed over: %s", trouble)
        if not self.was_told_to_stop:
            self._end("Faust could not go on; the log says why. Start the worker again.")
        logger.info("stopped")
        _leave(0)  # state is durable; Faust's own way to stop would add nothing but time

    async def _last_snapshots(self, partitions: list[OwnedPartition]) -> None:
        for owned in partitions:
            if owned.needs_snapshot() and not owned.lost:
                await self._snapshot(owned)

    def fail(self, sentence: str) -> None:
        """End the process with exit code 2; a supervisor starts it again."""
        if not self._closing:  # then parts fail because they are taken down; that says nothing
            self._end(sentence)

    def _end(self, sentence: str) -> NoReturn:
        _leave(2, f"error: {sentence}\n")

    def explain(self, failure: BaseException) -> str:
        """Return a sentence on why the consumer failed."""
        if isinstance(failure, OffsetOutOfRangeError):
            with contextlib.suppress(LedgerError, KafkaException):
                where, offset = next(iter(failure.args[0].items()))
                slot = (self._names[where.topic], where.partition)
                first, last = self.cluster.earliest([slot])[slot], self.cluster.ends([slot])[slot]
                return str(MissingRecords(*slot, offset, first, last, "the state of this worker"))
        return super().explain(failure)

    async def _watch_topics(self) -> None:
        """Notice topics that are deleted, created anew or given more partitions as we fold them."""
        away = False
        while not self._closing:
            await asyncio.sleep(_TOPICS_S)
            try:
                await self._in_executor(require_topics, self.cluster)
                now = await self._in_executor(self.cluster.origin)
                tables_id = await self._in_executor(self._find_tables_id)
            except UnreachableError as error:
                if not away:
                    logger.warning("waiting for Kafka: %s", error)
                away = True
                continue
            if away:
                logger.info("Kafka answers again")
            away = False
            for owned in list(self.owned.values()):
                require_same_topics(owned.partition, now)
            if self.is_active and tables_id != self._tables_id:
                logger.warning("%s was deleted: the tables are published anew", BALANCES)
                for owned in list(self.owned.values()):
                    owned.lose()

    def _find_tables_id(self) -> str | None:
        shape = self.cluster.topics([BALANCES]).get(BALANCES)
        return None if shape is None else shape.topic_id

    # -- watching

    def _watch(self) -> None:
        """Notice what Faust does not: a stuck loop, a lost group, an assignment never activated."""
        last = idle_since = self._beat = time.monotonic()
        while not self._closing:
            time.sleep(1)
            now = time.monotonic()
            if now - last > 5:  # the process was stopped for a while
                idle_since = self._beat = now
            last = now
            with contextlib.suppress(RuntimeError):
                self.loop.call_soon_threadsafe(self._tick)
            if now - self._beat > _STUCK_S:
                self.fail(f"The worker's loop did not move for {_STUCK_S:.0f} s.")
            trouble = self.consumer_trouble()
            if trouble is not None and not self._closing:
                self.fail(f"This worker gets no records any more: {trouble}. Start it again.")
            restoring = self._activation.locked()  # takes as long as it takes
            if restoring or (self.is_connected and self.is_active and not self._is_stuck(now)):
                idle_since = now
            elif now - idle_since > _STUCK_S:
                if not self._kafka_answers():
                    idle_since = time.monotonic()
                    continue
                self.fail(f"No partition was taken, or no record applied, for {_STUCK_S:.0f} s.")

    def _kafka_answers(self) -> bool:
        try:
            self.cluster.cluster_id()
        except (LedgerError, KafkaException) as error:
            logger.warning("waiting: %s", error)
            return False
        return True

    def _tick(self) -> None:
        self._beat = time.monotonic()

    def _is_stuck(self, now: float) -> bool:
        """Return whether a partition is lost, or chunks wait and none is finished."""
        partitions = list(self.owned.values())
        if any(owned.is_flushing for owned in partitions):
            return False  # the publisher waits for the broker, and says so
        lost = any(owned.lost for owned in partitions)
        return lost or (self.chunks_waiting and now - self.chunk_finished_at > _LOOK_S * 20)


def require_tables_of(cluster: Cluster, number: int, origin: Origin) -> None:
    """Refuse topics that are not those that a partition's published tables were made of.

    Raises:
        ReplacedTopic: one was created anew.
    """
    for mark in newest_marks(cluster, [number]).values():
        claim_of(mark, number, origin)


def require_same_topics(partition: Partition, origin: Origin) -> None:
    """Refuse topics that are not those that a state is made of.

    Raises:
        ReplacedTopic: one was created anew.
        TopicError: their number of partitions changed.
    """
    for topic, topic_id in partition.origin.topic_ids.items():
        if origin.topic_ids[topic] != topic_id:
            raise ReplacedTopic(topic, partition.number, partition.watermark[topic])
    require_same_partitions(partition.origin.partitions, origin.partitions)


def _leave(code: int, sentence: str = "") -> NoReturn:
    def say() -> None:
        # Where it is written to may be full, or closed.
        with contextlib.suppress(OSError, ValueError, AttributeError):
            sys.stderr.write(sentence)
        logging.shutdown()
        with contextlib.suppress(OSError, ValueError, AttributeError):
            sys.stdout.flush()
            sys.stderr.flush()

    # Whoever reads a pipe may have stopped reading, and another thread may be stuck in it.
    saying = threading.Thread(target=say, daemon=True)
    saying.start()
    saying.join(_SAY_S)
    os._exit(code)


def create_app(settings: Settings, bootstrap: str) -> LedgerApp:
    """Return the worker's Faust app."""
    app = LedgerApp(
        f"{settings.topic_prefix}ledger",
        settings=settings,
        bootstrap=bootstrap,
        broker=[f"kafka://{address}" for address in bootstrap.split(",")],
        broker_client_id=settings.client_id,
        broker_max_poll_records=settings.chunk_records,
        broker_session_timeout=SESSION_TIMEOUT_S,
        broker_heartbeat_interval=1.0,
        # aiokafka leaves the group when nothing was fetched for so long, as by a spare worker.
        broker_max_poll_interval=_NEVER_S,
        broker_rebalance_timeout=15.0,
        broker_request_timeout=30.0,
        consumer_auto_offset_reset="none",
        datadir=settings.state_dir / "faust",
        store="memory://",
        stream_buffer_maxsize=256,
        stream_wait_empty=False,
        stream_recovery_delay=0.0,
        topic_allow_declare=False,
        topic_disable_leader=True,
        web_enabled=False,
        worker_redirect_stdouts=False,
    )

    @app.on_partitions_revoked.connect
    async def on_revoked(*_: Any, **__: Any) -> None:
        await app.give_up()

    @app.agent(app.chunks_of(*(settings.topic(name) for name in INPUT_TOPICS)), concurrency=1)
    async def ledger(stream: Any) -> None:
        """Fold each chunk; a failure ends the process, because Faust would go on without it."""
        async for event in stream.events():
            try:
                app.fold(event.value)
            except asyncio.CancelledError:
                raise
            except LedgerError as error:
                app.fail(str(error))
            except BaseException as error:  # noqa: BLE001
                app.fail(f"{event.value.topic}:{event.value.partition}: {error!r}")

    return app
