"""Faust fed in chunks: what was fetched of a partition travels through Faust as one message.

Faust's cost per message is 50 to 70 microseconds; as the message is a list of some thousand
records, that is nothing per record. Everything here builds on private API of faust-streaming 0.15.3
and aiokafka 0.14.0, which are pinned for that reason; nothing outside this module, and
`ledger.records` and `ledger.answers`, touches it.

The rules that make it safe:

- An *epoch* counts assignments. It rises, in the consumer's thread, before anything else happens
  at a revocation or an assignment. A chunk carries the epoch of its fetch.
- Positions belong to `resume`: partitions are assigned paused, at a dummy position, and are
  fetched only after they were told where to start. Faust's own seeking and its filter of offsets
  seen before are off.
- Chunks of a partition are numbered within an epoch, so one that Faust drops is noticed.
- A failure of any of Faust's services ends the process: Faust's own restarts lose records.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from functools import partial
from typing import Any, Final, NamedTuple, TypeVar

import faust
from aiokafka.errors import KafkaConnectionError, KafkaError
from aiokafka.protocol.group import LeaveGroupRequest
from aiokafka.structs import OffsetAndMetadata, TopicPartition
from faust.app import BootStrategy
from faust.transport.drivers import aiokafka as driver

from ledger.agents.assignor import LedgerAssignor, Progress
from ledger.errors import LedgerError, UnreadableRecords
from ledger.projections.partition import Packed
from ledger.records import UnreadableBatch, packed, read_blocks

logger = logging.getLogger(__name__)

FETCH_WAIT_MS: Final = 50
"""aiokafka waits so long at an idle broker; Faust's 1,500 stalls a broker's other partitions."""
FETCH_MIN_BYTES: Final = 1 << 16
"""For so much a broker waits, no longer than that: fetching every single record costs a core."""
FETCH_MAX_BYTES: Final = 2 << 20
"""Of one answer: few partitions at a time, so that chunks can be large while memory is not."""
PARTITION_FETCH_BYTES: Final = 3 << 19
"""Of one partition in it. Producers make batches of up to 1 MB; one that is cut off at the end is
fetched again, and each chunk has to wait for Python's lock several times."""
OUTSTANDING_CHUNKS: Final = 3
"""Fetched chunks that the agent has not finished; more are not asked for."""
_IDLE_S: Final = 0.02
_METADATA_PAUSE_S: Final = 0.2

_T = TypeVar("_T")


class Chunk:
    """Records of one partition in offset order; to Faust, one message.

    `number` counts the partition's chunks within an epoch from 0; `offset` is the position before
    them, `next_offset` that after them, transaction markers included, so there may be no records
    at all. `behind` is how many offsets the broker is known to have after that.
    """

    __slots__ = (
        "behind",
        "checksum",
        "epoch",
        "headers",
        "key",
        "next_offset",
        "number",
        "offset",
        "partition",
        "records",
        "serialized_key_size",
        "serialized_value_size",
        "timestamp",
        "timestamp_type",
        "topic",
        "value",
    )

    def __init__(
        self,
        where: TopicPartition,
        records: Packed,
        start: int,
        next_offset: int,
        behind: int,
        epoch: int,
        number: int,
    ) -> None:
        self.topic: str = where.topic
        self.partition: int = where.partition
        self.records = records
        self.next_offset = next_offset
        self.behind = behind
        self.epoch = epoch
        self.number = number
        # What Faust reads of a record:
        self.offset = start
        self.timestamp = None
        self.timestamp_type = 0
        self.headers: tuple[()] = ()
        self.key = None
        self.value = self
        self.checksum = None
        self.serialized_key_size = 0
        self.serialized_value_size = 0


class _RebalanceListener(driver.ConsumerRebalanceListener):
    _thread: _Thread

    def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> Awaitable[None]:
        # This part runs at once, in the consumer's thread, before any coroutine.
        self._thread.next_epoch()
        waiting: Awaitable[None] = super().on_partitions_revoked(revoked)
        return waiting

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        thread = self._thread
        thread.next_epoch()
        thread.assigned_epoch = thread.epoch
        consumer = thread.kafka_consumer
        for where in assigned:
            # Paused and at a valid position: no look-up of commits, no reset, no fetch.
            consumer.pause(where)
            consumer.seek(where, 0)
        await super().on_partitions_assigned(assigned)


async def _bootstrap(client: Any, once: Callable[[], Awaitable[None]]) -> None:
    """Connect for the first time, to brokers that may be just (re)starting.

    One that has not registered yet knows of no broker, and aiokafka then gives up for good.
    """
    while True:
        with contextlib.suppress(KafkaConnectionError):
            await once()
            if client.cluster.brokers():
                return
        await asyncio.sleep(_METADATA_PAUSE_S)


async def _know_topics(client: Any, once: Callable[[], Awaitable[None]]) -> None:
    """Wait until the partitions of all topics asked for are known.

    The group's leader waits so before it assigns. aiokafka tells it of a topic by one update and
    does not repeat one that failed: to a leader whose broker was restarting just then, the topics
    had no partitions, and it assigned none until its metadata got old, minutes later.
    """
    await once()
    while any(client.cluster.partitions_for_topic(topic) is None for topic in client._topics):
        await asyncio.sleep(_METADATA_PAUSE_S)
        await client.force_metadata_update()


class Leaders(NamedTuple):
    """How often leaders changed, or were connected to anew, and up to where chunks came before."""

    number: int
    fetched: Mapping[TopicPartition, int]


def _leaders_in(cluster: Any) -> dict[tuple[str, int], int]:
    """Return the leaders that aiokafka's metadata names."""
    return {
        (topic, number): partition.leader
        for topic, partitions in cluster._partitions.items()
        for number, partition in partitions.items()
    }


def _look_at(task: asyncio.Future[Any]) -> None:
    """Take a task's failure, so that it is not reported as one that nobody took."""
    if not task.cancelled():
        task.exception()


def _packed(where: TopicPartition, blocks: list[Any], start: int) -> Packed:
    try:
        return packed(blocks, start)
    except UnreadableBatch as damage:
        raise UnreadableRecords(
            where.topic, where.partition, damage.offset, damage.detail
        ) from damage


class _Thread(driver.AIOKafkaConsumerThread):
    epoch = 0
    assigned_epoch = -1  # the epoch of the newest assignment; a later epoch is its revocation
    app: ChunkedApp

    def __post_init__(self) -> None:
        super().__post_init__()
        self._next_offsets: dict[TopicPartition, int] = {}
        self._numbers: dict[TopicPartition, int] = {}
        self._records_a_batch = 1  # as of the last fetch
        self._commits_fail = False
        self.leaders = Leaders(0, {})

    @property
    def kafka_consumer(self) -> Any:
        return self._ensure_consumer()

    def next_epoch(self) -> None:
        self.epoch += 1
        self._next_offsets = {}
        self.app.loop.call_soon_threadsafe(self.app.wake)

    def _create_worker_consumer(self, transport: Any) -> Any:
        read_blocks()
        consumer = super()._create_worker_consumer(transport)
        consumer._fetch_max_wait_ms = FETCH_WAIT_MS
        consumer._fetch_min_bytes = FETCH_MIN_BYTES
        consumer._fetch_max_bytes = FETCH_MAX_BYTES
        consumer._max_partition_fetch_bytes = PARTITION_FETCH_BYTES
        consumer._isolation_level = "read_committed"
        consumer._partition_assignment_strategy = [LedgerAssignor(self.app.progress)]
        client = consumer._client
        client.bootstrap = partial(_bootstrap, client, client.bootstrap)
        client._maybe_wait_metadata = partial(_know_topics, client, client._maybe_wait_metadata)
        client._metadata_update = partial(self._update_metadata, client._metadata_update)
        client._get_conn = partial(self._get_connection, client._get_conn, weakref.WeakSet())
        return consumer

    async def _update_metadata(
        self, update: Callable[..., Awaitable[bool]], cluster: Any, topics: Any
    ) -> bool:
        before = _leaders_in(cluster)
        updated = await update(cluster, topics)
        if _leaders_in(cluster) != before:
            self._other_leaders()
        return updated

    async def _get_connection(
        self,
        get: Callable[..., Awaitable[Any]],
        known: weakref.WeakSet[Any],
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        connection = await get(*args, **kwargs)
        if connection is not None and connection not in known:
            known.add(connection)
            self._other_leaders()  # a broker that was restarted is connected to anew
        return connection

    def _other_leaders(self) -> None:
        """Note what was fetched so far, and let go of what aiokafka has beyond that."""
        assigned = self._fetch_states()
        fetched = {where: o for where, o in self._next_offsets.items() if where in assigned}
        for where, offset in fetched.items():
            self.kafka_consumer.seek(where, offset)
        self.leaders = Leaders(self.leaders.number + 1, fetched)

    async def _fetch_records(
        self,
        consumer: Any,
        active_partitions: Any,
        timeout: float | None = None,
        max_records: int | None = None,
    ) -> dict[TopicPartition, list[Chunk]]:
        assert max_records is not None  # to aiokafka, a batch is a record
        drained = await super()._fetch_records(
            consumer,
            active_partitions,
            timeout=timeout,
            max_records=max(1, max_records // self._records_a_batch),
        )
        # From the drain to here nothing was awaited: epoch and positions belong to the records.
        chunks: dict[TopicPartition, list[Chunk]] = {}
        states = self._fetch_states()
        for where, before in self._next_offsets.items():
            state = states.get(where)
            if state is None:
                continue
            after = state._position
            if after > before:
                number = self._numbers[where]
                self._numbers[where] = number + 1
                self._next_offsets[where] = after
                behind = max(0, (state.highwater or 0) - after)
                records = _packed(where, drained.get(where, []), before)
                chunks[where] = [Chunk(where, records, before, after, behind, self.epoch, number)]
        batches = sum(map(len, drained.values()))
        if batches:
            count = sum(len(chunk.records.records) for (chunk,) in chunks.values())
            self._records_a_batch = max(1, count // batches)
        return chunks

    async def crash(self, reason: BaseException) -> None:
        self.app.fail(self.app.explain(reason))

    def _fetch_states(self) -> dict[TopicPartition, Any]:
        subscription = self.kafka_consumer._subscription.subscription
        assignment = subscription and subscription.assignment
        if not assignment:
            return {}
        return {where: assignment.state_value(where) for where in assignment.tps}

    # What follows runs in the consumer thread's loop; see `ChunkedApp.in_thread`.

    async def resume(self, epoch: int, offsets: Mapping[TopicPartition, int]) -> bool:
        if self.epoch != epoch:
            return False
        for where, offset in offsets.items():
            self.kafka_consumer.seek(where, offset)
        self._next_offsets = dict(offsets)
        self._numbers = dict.fromkeys(offsets, 0)
        self.kafka_consumer.resume(*offsets)
        return True

    async def commit_offsets(
        self, epoch: int, offsets: Mapping[TopicPartition, int], within_s: float
    ) -> bool:
        try:
            return await asyncio.wait_for(self._commit_once(epoch, offsets), within_s)
        except (KafkaError, TimeoutError) as error:
            # The committed offset is for Kafka's tools; ours is in the state. It is tried again.
            if not self._commits_fail:
                logger.warning("The offsets cannot be committed now: %r", error)
            self._commits_fail = True
            return False

    async def _commit_once(self, epoch: int, offsets: Mapping[TopicPartition, int]) -> bool:
        """Commit without aiokafka's retries.

        A request that waits there is sent under whatever generation the group has by then: over
        newer offsets, or another owner's.
        """
        coordinator = self.kafka_consumer._coordinator
        async with coordinator._commit_lock:
            if self.epoch != epoch:
                return False
            await coordinator._do_commit_offsets(
                None, {where: OffsetAndMetadata(offset, "") for where, offset in offsets.items()}
            )
        self._commits_fail = False
        return True

    async def renew(self, epoch: int) -> int | None:
        if self.epoch != epoch:
            return None
        self.next_epoch()
        self.assigned_epoch = self.epoch
        return self.epoch

    async def leave_group(self) -> None:
        coordinator = self.kafka_consumer._coordinator
        node = coordinator.coordinator_id
        if node is None or not coordinator.member_id:
            return
        if not coordinator._closing.done():
            coordinator._closing.set_result(None)  # so that it does not join again
        # Not the consumer's own stop, which first waits for a rebalance that may be under way.
        request = LeaveGroupRequest(coordinator.group_id, coordinator.member_id)
        await self.kafka_consumer._client.send(node, request)

    def close(self) -> None:
        """Leave the closing to `leave_group`: Faust closes aiokafka's parts in the wrong loop."""


class _Never(dict[Any, Any]):
    """Faust's table of offsets already read, kept empty: it can drop chunks fetched again."""

    def __getitem__(self, key: Any) -> None:
        return None

    def __setitem__(self, key: Any, value: Any) -> None:
        return


class _Consumer(driver.Consumer):
    RebalanceListener = _RebalanceListener
    _thread: _Thread
    app: ChunkedApp

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._read_offset = _Never()

    def _new_consumer_thread(self) -> _Thread:
        return _Thread(self, loop=self.loop, beacon=self.beacon)

    async def perform_seek(self) -> None:
        """Positions belong to `resume`."""

    async def _wait_next_records(self, timeout: float) -> tuple[Any, Any]:
        if not self.flow_active:
            await self.wait(self.can_resume_flow)  # type: ignore[arg-type]  # as Faust does
        active = self._get_active_partitions()
        if not active or not self.app.is_active:
            await asyncio.sleep(_IDLE_S)  # Faust's own wait here is a whole second
            return {}, active
        return await self._getmany(active, timeout), active

    async def _getmany(self, active_partitions: Any, timeout: float) -> Any:
        await self.app.wait_for_room()
        chunks = await super()._getmany(active_partitions, timeout)
        for (chunk,) in chunks.values():
            self.app.chunk_fetched(chunk)
        return chunks

    async def crash(self, reason: BaseException) -> None:
        self.app.fail(self.app.explain(reason))


class _Producer(driver.Producer):
    """Sends nothing, and so does not connect: what is published is published in transactions."""

    async def on_start(self) -> None:
        """Make no producer."""


class _Transport(driver.Transport):
    Consumer = _Consumer
    Producer = _Producer


class _BootStrategy(BootStrategy):
    enable_web = False  # whatever Faust's command line says: a second worker would need a port


class _RawSchema(faust.Schema[Any, Any]):
    def loads_key(self, app: Any, message: Any, **kwargs: Any) -> Any:
        return message.key

    def loads_value(self, app: Any, message: Any, **kwargs: Any) -> Any:
        return message.value


class ChunkedApp(faust.App):
    """A Faust app whose agents get `Chunk`s, of partitions that were activated.

    Subclasses say what activation is (`activate`), what local state is worth (`progress`) and how
    the process ends (`fail`).
    """

    BootStrategy = _BootStrategy

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._active_epoch = -1
        self._outstanding = 0
        self._room = asyncio.Event()
        self.chunk_finished_at = time.monotonic()

    def chunks_of(self, *topics: str) -> Any:
        """Return the Faust topic that yields the chunks of several Kafka topics."""
        return self.topic(*topics, schema=_RawSchema(), acks=False)

    # -- for subclasses

    def progress(self) -> Progress:
        """Return what this worker's local state has applied; asked in the consumer's thread."""
        raise NotImplementedError

    async def activate(self, epoch: int) -> None:
        """Open the assigned partitions and call `resume`; the epoch may change at any await."""
        raise NotImplementedError

    def fail(self, sentence: str) -> None:
        """End the process: what it holds in memory cannot be trusted to be complete."""
        raise NotImplementedError

    def explain(self, failure: BaseException) -> str:
        """Return a sentence on a failure of Faust's or its consumer's; may block."""
        return str(failure) if isinstance(failure, LedgerError) else f"Faust failed: {failure!r}"

    # -- state of the assignment

    @property
    def epoch(self) -> int:
        """The number of the newest assignment."""
        return int(self._kafka_thread.epoch)

    @property
    def leaders(self) -> Leaders:
        """From which leaders chunks come; changes before anything is fetched from other ones."""
        return self._kafka_thread.leaders

    @property
    def is_active(self) -> bool:
        """Whether the newest assignment's partitions are being fetched."""
        return self._active_epoch == self.epoch

    @property
    def was_told_to_stop(self) -> bool:
        """Whether a signal asked the process to end; else something failed in Faust."""
        root: Any = self.beacon.root
        return root is not None and getattr(root.data, "_signal_stop_time", None) is not None

    @property
    def is_connected(self) -> bool:
        """Whether the consumer was created."""
        consumer: Any = self._consumer
        return consumer is not None and consumer._thread._consumer is not None

    @property
    def _kafka_thread(self) -> _Thread:
        consumer: Any = self.consumer
        thread: _Thread = consumer._thread
        return thread

    def assigned(self) -> set[TopicPartition]:
        """Return the assigned partitions of all topics."""
        return {TopicPartition(*tp) for tp in self._kafka_thread.assignment()}

    def consumer_trouble(self) -> str | None:
        """Return why this worker gets no records any more, or None.

        Faust never asks, so that for example a session timeout below the broker's minimum would
        hang silently.
        """
        if not self.is_connected:
            return None
        consumer = self._kafka_thread.kafka_consumer
        coordinator = consumer._coordinator
        pending = getattr(coordinator, "_pending_exception", None)
        if pending is not None:
            return f"the group coordinator answered {pending!r}"
        for what, owner, name in (
            ("group coordination", coordinator, "_coordination_task"),
            ("fetching", consumer._fetcher, "_fetch_task"),
            ("updating of metadata", consumer._client, "_sync_task"),
        ):
            task = getattr(owner, name, None)
            if task is not None and task.done():
                return f"aiokafka's {what} ended"
        return None

    # -- what subclasses call

    async def resume(self, epoch: int, offsets: Mapping[TopicPartition, int]) -> bool:
        """Start fetching at `offsets`; return False if the assignment changed meanwhile."""
        self._outstanding = 0
        self._active_epoch = epoch
        return await self.in_thread(self._kafka_thread.resume(epoch, offsets))

    async def commit_offsets(
        self, epoch: int, offsets: Mapping[TopicPartition, int], within_s: float
    ) -> bool:
        """Commit next offsets for Kafka's tools, if the epoch is still this one; say whether."""
        return await self.in_thread(self._kafka_thread.commit_offsets(epoch, offsets, within_s))

    async def activate_again(self, epoch: int) -> None:
        """Take the partitions assigned in an epoch anew, in one of their own, if it still lasts."""
        renewed = await self.in_thread(self._kafka_thread.renew(epoch))
        if renewed is not None:
            await self._activate(renewed)

    async def leave_group(self) -> None:
        """Leave the consumer group, so that others get the partitions at once."""
        if self.is_connected:
            await self.in_thread(self._kafka_thread.leave_group())

    async def in_thread(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Run a coroutine in the consumer thread's loop and return what it returns.

        It is not cancelled when the caller is. When it is cancelled in the thread, the caller must
        not take that for its own cancellation.

        Raises:
            KafkaError: it was cancelled in the thread.
        """
        loop = self._kafka_thread.thread_loop
        future = asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, loop))
        future.add_done_callback(_look_at)
        await asyncio.wait({future})
        if future.cancelled():
            raise KafkaError("The consumer gave up what it was asked to do.")
        return future.result()

    # -- backpressure

    def wake(self) -> None:
        """Let whoever waits for room look again."""
        self._room.set()

    async def wait_for_room(self) -> None:
        """Wait until few enough chunks are under way, or the assignment changes."""
        while self._outstanding >= OUTSTANDING_CHUNKS and self.is_active:
            self._room.clear()
            await self._room.wait()

    def chunk_fetched(self, chunk: Chunk) -> None:
        """Count a chunk that is on its way to the agent."""
        if chunk.epoch == self._active_epoch:
            self._outstanding += 1

    def chunk_done(self, chunk: Chunk) -> None:
        """Count a chunk that the agent has finished with."""
        self.chunk_finished_at = time.monotonic()
        del chunk.records  # Faust keeps the message itself for some time
        if chunk.epoch == self._active_epoch:
            self._outstanding -= 1
            self.wake()

    @property
    def chunks_waiting(self) -> bool:
        """Whether chunks are on their way to the agent, or in its hands."""
        return self._outstanding > 0

    # -- Faust's hooks

    def _new_transport(self) -> _Transport:
        return _Transport(self.conf.broker_consumer, self)

    def _crash(self, reason: BaseException) -> None:
        self.fail(self.explain(reason))

    def on_rebalance_end(self) -> None:
        """Start activation: Faust's own part of the rebalance is done."""
        super().on_rebalance_end()
        tables: Any = self.tables
        if not tables.recovery.signal_recovery_start.is_set():
            asyncio.ensure_future(self._activate(self._kafka_thread.assigned_epoch))

    async def _activate(self, epoch: int) -> None:
        try:
            await self.activate(epoch)
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001 - whatever it is, going on would lose records
            self.fail(str(error) if isinstance(error, Exception) else repr(error))
