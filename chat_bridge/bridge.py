"""The bridge: from `fills` into the rooms.

The order of every step is publish, confirms, settle the state, commit the offset. So what is
settled is in its rooms, and what is committed is settled; after a crash in between, records are
read again, and at worst some of their messages are posted again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Final, TypeVar

from confluent_kafka import KafkaException
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
    stop_after_attempt,
    stop_never,
    wait_exponential_jitter,
)

from chat_bridge.errors import ConnectionLost
from chat_bridge.identity import StoredIdentity
from chat_bridge.messages import BUST, FILL, TRADE, Message
from chat_bridge.poster import Poster
from chat_bridge.source import Chunk, Source
from ledger.errors import MissingRecords, TopicError, UnreachableError
from ledger.events import FILLS, INPUT_TOPICS
from ledger.kafka import Cluster
from ledger.places import Place, take_place
from ledger.projections.partition import Origin
from ledger.settings import Settings

STOP_WITHIN_S: Final = 3.0
"""After a signal, what is in hand gets so long to be confirmed; then it is left for next time."""
_IDLE_S: Final = 0.25
_STALLED_S: Final = 60.0

_A = TypeVar("_A")
_R = TypeVar("_R")

log = logging.getLogger(__name__)


class NothingPublished(TopicError):  # noqa: N818 - not an error for who can wait
    """The input topics do not exist yet."""


@dataclass
class Tally:
    """What was done since the start: records of `fills` read, and messages confirmed by type."""

    records: int = 0
    trades: int = 0
    fills: int = 0
    busts: int = 0

    def count(self, records: int, messages: list[Message]) -> None:
        """Add one step's work."""
        kinds = [message.type for message in messages]
        self.records += records
        self.trades += kinds.count(TRADE)
        self.fills += kinds.count(FILL)
        self.busts += kinds.count(BUST)

    @property
    def messages(self) -> int:
        """All messages."""
        return self.trades + self.fills + self.busts

    def as_json(self) -> dict[str, int]:
        """Return what `chat-bridge run --json` prints."""
        return {**asdict(self), "messages": self.messages}


class Session:
    """One life of both connections: all of it ends with the first error."""

    def __init__(
        self, settings: Settings, kafka: str, amqp: str, place: Place, tally: Tally
    ) -> None:
        self._settings = settings
        self._amqp = amqp
        self._where = place
        self._tally = tally
        self._source = Source(kafka, settings, self._let_go)
        self._cluster = Cluster(kafka, settings)
        self._poster: Poster
        self._origin: Origin
        # Held while records are in hand: partitions are given away between steps only.
        self._hands = asyncio.Lock()
        self._identities: dict[int, StoredIdentity] = {}
        self._committed: dict[int, int] = {}
        self._epoch = 0
        self._closing = contextlib.AsyncExitStack()

    async def start(self) -> None:
        """Connect to both servers and join the group.

        Raises:
            UnreachableError: one of them does not answer.
            NothingPublished: there are no topics yet.
            TopicError: the topics are not what the ledger needs.
        """
        self._closing.callback(self._close_identities)
        self._closing.push_async_callback(self._source.close)
        # First, because it fails fast and can be cancelled, which a thread cannot.
        await self._source.connect()
        self._origin = await _in_thread(_origin, self._cluster)
        self._poster = await Poster.open(self._amqp, self._settings)
        self._closing.push_async_callback(self._poster.close)
        self._source.join()

    async def close(self) -> None:
        """Leave both servers; nothing that is in hand is stored."""
        await self._closing.aclose()

    async def ends(self) -> dict[int, int]:
        """Return the end offset of each partition of `fills` now."""
        slots = [(FILLS, number) for number in range(self._origin.partitions)]
        ends = await _in_thread(self._cluster.ends, slots)
        return {number: end for (_, number), end in ends.items()}

    async def serve(self, stopping: asyncio.Event, ends: dict[int, int] | None) -> None:
        """Post until told to stop, or until all records before `ends` are posted by the group.

        Raises:
            ConnectionLost: a server went away.
            RoomError: RabbitMQ did not take a message.
            MissingRecords: records are gone that are still needed.
        """
        last_news = time.monotonic()
        while not stopping.is_set():
            if self._epoch != self._source.epoch:
                await self._take_over()
            chunks = await self._source.read(self._identities, _IDLE_S)
            async with self._hands:
                moved = self._epoch == self._source.epoch and await self._step(chunks)
            if self._poster.is_closed:
                raise ConnectionLost("RabbitMQ", "the connection was closed")
            if moved:
                last_news = time.monotonic()
            if ends is not None:
                if not moved and await self._is_done(ends):
                    return
                if time.monotonic() - last_news > _STALLED_S:
                    raise ConnectionLost("Kafka", f"no progress for {_STALLED_S:.0f} s")

    async def _step(self, chunks: list[Chunk]) -> bool:
        """Post what was read, settle, commit; return whether anything moved."""
        messages: list[Message] = []
        records = 0
        for chunk in chunks:
            identity = self._identities[chunk.partition]
            if chunk.next_offset > identity.next_offset:
                messages += identity.read(chunk.records, chunk.next_offset)
                records += len(chunk.records)
        await self._poster.post(messages)
        moved = {
            number: identity.next_offset
            for number, identity in self._identities.items()
            if identity.next_offset > self._committed[number]
        }
        for identity in self._identities.values():
            identity.settle()
        await self._source.commit(moved)
        self._committed.update(moved)
        self._tally.count(records, messages)
        return bool(records or moved)

    async def _is_done(self, ends: dict[int, int]) -> bool:
        """Return whether the whole group has committed up to `ends`."""
        if self._epoch == 0 or self._epoch != self._source.epoch:
            return False
        for partition, end in ends.items():
            known = self._committed.get(partition)
            if known is None:  # another bridge's
                known = await self._source.committed(partition) or 0
            if known < end:
                return False
        return True

    async def _let_go(self) -> None:
        """Wait until nothing is in hand, and close the state."""
        async with self._hands:
            self._close_identities()

    def _close_identities(self) -> None:
        for identity in self._identities.values():
            identity.close()
        self._identities.clear()
        self._committed.clear()

    async def _take_over(self) -> None:
        """Open the state of the partitions that are now ours, and read on from there."""
        async with self._hands:
            epoch = self._source.epoch
            self._close_identities()
            numbers = self._source.assigned()
            slots = [(FILLS, number) for number in numbers]
            earliest = await _in_thread(self._cluster.earliest, slots)
            ends = await _in_thread(self._cluster.ends, slots)
            committed = {n: await self._source.committed(n) or 0 for n in numbers}
            if epoch != self._source.epoch:
                return
            for number in numbers:
                where = self._where.partition(number)
                identity = StoredIdentity(number, where, self._origin)
                self._identities[number] = identity
                self._committed[number] = committed[number]
                self._place(
                    identity, committed[number], earliest[FILLS, number], ends[FILLS, number]
                )
            self._source.start_at({n: i.next_offset for n, i in self._identities.items()})
            self._epoch = epoch
        log.info("Partitions of %s: %s.", self._source.topic, _listed(numbers))

    def _place(self, identity: StoredIdentity, committed: int, earliest: int, end: int) -> None:
        """Decide from where a partition is folded, and from where it is posted."""
        folded = identity.next_offset
        if folded < earliest:
            raise MissingRecords(FILLS, identity.number, folded, earliest, end)
        if max(folded, committed) > end:
            raise MissingRecords(FILLS, identity.number, max(folded, committed), earliest, end)
        # Behind the commit, the state was lost or is another bridge's older one: fold silently.
        # Ahead of it, a crash came between settling and committing: all that was confirmed.
        identity.posted_until = max(folded, committed)
        if folded < committed:
            log.info(
                "%s:%d: folding offsets %d to %d, which were posted before.",
                self._source.topic,
                identity.number,
                folded,
                committed - 1,
            )


class Bridge:
    """Sessions, one after the other, until it is told to stop."""

    def __init__(self, settings: Settings, kafka: str, amqp: str, *, once: bool = False) -> None:
        """Name the servers; `run` does the work.

        Args:
            settings: prefix and state directory.
            kafka: bootstrap servers.
            amqp: RabbitMQ's URL.
            once: stop when all there is now is posted, and give up where a server is down.
        """
        self._settings = settings
        self._kafka = kafka
        self._amqp = amqp
        self._once = once
        self._stopping = asyncio.Event()
        self.tally = Tally()

    def stop(self) -> None:
        """Ask it to finish what is in hand and return."""
        self._stopping.set()

    async def run(self) -> Tally:
        """Post until stopped, and return what was done.

        Raises:
            LedgerError: something that a new connection does not mend; and with `once` anything.
        """
        place = take_place(self._settings.state_dir / self._settings.topic("bridge"))
        work = asyncio.create_task(self._work(place))
        signalled = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait({work, signalled}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                await asyncio.wait({work}, timeout=STOP_WITHIN_S)
            if not work.done():
                log.warning("What was in hand is not confirmed yet; it is left for the next start.")
                work.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await work
            else:
                work.result()
        finally:
            signalled.cancel()
            work.cancel()
            place.release()
        return self.tally

    async def _work(self, place: Place) -> None:
        while not self._stopping.is_set():
            session = await self._open(place)
            if session is None:
                return
            try:
                ends = await session.ends() if self._once else None
                await session.serve(self._stopping, ends)
                return
            except (ConnectionLost, UnreachableError) as error:
                if self._once:
                    raise
                log.warning("%s Starting again.", error)
            finally:
                await session.close()
            await self._pause(1.0)

    async def _open(self, place: Place) -> Session | None:
        """Return a started session, or None when told to stop before there was one."""
        retrying = AsyncRetrying(
            retry=retry_if_exception_type((UnreachableError, ConnectionLost, NothingPublished)),
            wait=wait_exponential_jitter(initial=0.5, max=5, jitter=0.5),
            stop=stop_after_attempt(1) if self._once else stop_never,
            sleep=self._pause,
            before_sleep=_say_why,
            reraise=True,
        )
        async for attempt in retrying:
            if self._stopping.is_set():
                return None
            with attempt:
                session = Session(self._settings, self._kafka, self._amqp, place, self.tally)
                try:
                    await session.start()
                except BaseException:
                    await session.close()
                    raise
                return session
        return None

    async def _pause(self, seconds: float) -> None:
        """Wait, or less long when told to stop."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()


async def run(settings: Settings, kafka: str, amqp: str, *, once: bool = False) -> Tally:
    """Run a bridge that SIGTERM and SIGINT stop, and return what it did."""
    bridge = Bridge(settings, kafka, amqp, once=once)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, bridge.stop)
    try:
        return await bridge.run()
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


async def _in_thread(ask: Callable[[_A], _R], argument: _A) -> _R:
    """Return what a blocking call to Kafka returns."""
    try:
        return await asyncio.to_thread(ask, argument)
    except KafkaException as error:
        raise ConnectionLost("Kafka", error.args[0].str()) from error


def _origin(cluster: Cluster) -> Origin:
    if len(cluster.topics(INPUT_TOPICS)) < len(INPUT_TOPICS):
        names = ", ".join(map(cluster.settings.topic, INPUT_TOPICS))
        raise NothingPublished(
            f"Not all of the topics {names} are at {cluster.bootstrap}: nothing was published "
            "yet. 'ledger publish' and 'ledger worker' create them."
        )
    return cluster.origin()


def _say_why(state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    wait_s = state.next_action.sleep if state.next_action else 0
    log.warning("%s Trying again in %.1f s.", error, wait_s)


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers)) or "none (other bridges have them all)"
