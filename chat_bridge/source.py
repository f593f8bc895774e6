"""Kafka: the bridge's own consumer group over `fills`, told exactly where to read."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.abc import ConsumerRebalanceListener
from aiokafka.errors import IllegalOperation, KafkaError
from aiokafka.structs import OffsetAndMetadata

from chat_bridge.amqp import describe
from chat_bridge.errors import ConnectionLost, stray_cancellation
from chat_bridge.names import GROUP
from ledger.errors import UnreachableError
from ledger.events import FILLS
from ledger.kafka import DEAD_LETTERS, LARGEST_RECORD_BYTES
from ledger.letters import DeadLetter
from ledger.projections.partition import Record
from ledger.records import read_records
from ledger.settings import Settings

_SESSION_MS: Final = 6_000
"""The shortest that brokers allow: so soon another bridge takes over from one that was killed."""
_NEVER_MS: Final = 10**9
_CHUNK_RECORDS: Final = 1_000
_REQUEST_TIMEOUT_S: Final = 30.0
_CLOSE_TIMEOUT_S: Final = 1.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Chunk:
    """Records of one partition in offset order, and the position after them."""

    partition: int
    records: list[Record]
    next_offset: int


class Source:
    """This process's share of the partitions of `fills`.

    `epoch` changes whenever the share does. What was read under an older epoch must be dropped:
    the partitions may be another bridge's by now.
    """

    def __init__(
        self, bootstrap: str, settings: Settings, before_revoke: Callable[[], Awaitable[None]]
    ) -> None:
        """Name the servers; nothing is sent before `connect`.

        Args:
            bootstrap: Kafka's bootstrap servers.
            settings: whose prefix is before topic and group.
            before_revoke: awaited before partitions are given away; it finishes what is in hand.
        """
        self.bootstrap = bootstrap
        self.topic = settings.topic(FILLS)
        self._dead_letters = settings.topic(DEAD_LETTERS)
        self.group = settings.topic(GROUP)
        self.epoch = 0
        self._before_revoke = before_revoke
        read_records()
        self._consumer: Any = AIOKafkaConsumer(
            bootstrap_servers=bootstrap,
            client_id=GROUP,
            group_id=self.group,
            enable_auto_commit=False,
            # Where to begin is decided for each partition by hand, never by default.
            auto_offset_reset="none",
            isolation_level="read_committed",
            session_timeout_ms=_SESSION_MS,
            # However long a step takes, and though one without partitions reads nothing: who may
            # post is another question.
            max_poll_interval_ms=_NEVER_MS,
            heartbeat_interval_ms=_SESSION_MS // 4,
            fetch_max_wait_ms=100,
            request_timeout_ms=15_000,
        )

    async def connect(self) -> None:
        """Find the servers.

        Raises:
            UnreachableError: Kafka does not answer.
        """
        try:
            await self._consumer.start()
        except (KafkaError, OSError, TimeoutError) as error:
            raise UnreachableError("Kafka", self.bootstrap, describe(error)) from error

    def join(self) -> None:
        """Join the group, which takes its time; `epoch` changes when there are partitions."""
        self._consumer.subscribe([self.topic], listener=_Listener(self))

    async def close(self) -> None:
        """Leave the group; whether or not Kafka hears of it, this ends soon."""
        with contextlib.suppress(ConnectionLost), lost_kafka():
            async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                await self._consumer.stop()

    def assigned(self) -> list[int]:
        """Return the partitions that are this process's now."""
        return sorted(slot.partition for slot in self._consumer.assignment())

    async def committed(self, partitions: Iterable[int]) -> dict[int, tuple[int, str]]:
        """Return what the group, any member of it, has committed of partitions: offset and text."""
        slots = [self._slot(partition) for partition in partitions]
        with lost_kafka():
            async with asyncio.timeout(_REQUEST_TIMEOUT_S):
                # `consumer.committed` leaves out the text.
                found = await self._consumer._coordinator.fetch_committed_offsets(slots)
        return {
            slot.partition: (max(0, found[slot].offset), found[slot].metadata)
            if slot in found
            else (0, "")
            for slot in slots
        }

    def end(self, partition: int) -> int | None:
        """Return where a partition of ours ended when it was last read, None before that."""
        slot = self._slot(partition)
        if slot not in self._consumer.assignment():
            return None
        end: int | None = self._consumer.highwater(slot)
        return end

    def start_at(self, positions: Mapping[int, int]) -> None:
        """Read partitions from these offsets on."""
        with lost_kafka():
            for partition, offset in positions.items():
                self._consumer.seek(self._slot(partition), offset)
                self._consumer.resume(self._slot(partition))

    async def read(self, partitions: Iterable[int], timeout_s: float) -> list[Chunk]:
        """Return what has arrived of these partitions, after at most `timeout_s` if nothing has.

        A chunk may have no records: its position went over transaction markers.
        """
        slots = [self._slot(partition) for partition in partitions]
        if not slots:
            await asyncio.sleep(min(timeout_s, 0.05))
            with lost_kafka():
                # Joining the group may have failed in the background.
                self._consumer._coordinator.check_errors()
            return []
        # As much of each, so that a backlog is posted about in the order in which it happened.
        most = -(-_CHUNK_RECORDS // len(slots))
        with lost_kafka():
            found: dict[TopicPartition, list[Record]] = {}
            for slot in slots:
                found |= await self._consumer.getmany(slot, max_records=most)
            if not found:
                found = await self._consumer.getmany(
                    *slots, timeout_ms=int(timeout_s * 1000), max_records=most
                )
            mine = self._consumer.assignment()
            return [
                Chunk(slot.partition, found.get(slot, []), await self._consumer.position(slot))
                for slot in slots
                if slot in mine
            ]

    async def commit(self, positions: Mapping[int, tuple[int, str]]) -> None:
        """Commit the next offset of partitions, each with a text for whoever has them next.

        Raises:
            ConnectionLost: they are no longer this process's, or Kafka is gone.
        """
        if positions:
            with lost_kafka():
                async with asyncio.timeout(_REQUEST_TIMEOUT_S):
                    await self._consumer.commit(
                        {
                            self._slot(partition): OffsetAndMetadata(offset, text)
                            for partition, (offset, text) in positions.items()
                        }
                    )

    async def bury(self, letter: DeadLetter) -> None:
        """Send a dead letter; return when Kafka has it.

        Raises:
            ConnectionLost: Kafka is gone.
        """
        with lost_kafka():
            producer = AIOKafkaProducer(
                bootstrap_servers=self.bootstrap,
                enable_idempotence=True,
                max_request_size=LARGEST_RECORD_BYTES,
            )
            try:
                await producer.start()
                await producer.send_and_wait(
                    self._dead_letters, letter.value, letter.key, headers=letter.headers
                )
            finally:
                await producer.stop()

    def _slot(self, partition: int) -> TopicPartition:
        return TopicPartition(self.topic, partition)


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka has no types
    """Hears that the share changes; both calls come from the task that keeps the membership."""

    def __init__(self, source: Source) -> None:
        self._source = source

    async def on_partitions_revoked(self, revoked: set[TopicPartition]) -> None:
        """Let what is in hand be finished; the group waits for it."""
        if revoked:
            self._source.epoch += 1
            await self._source._before_revoke()

    def on_partitions_assigned(self, assigned: set[TopicPartition]) -> None:
        """Keep the consumer from choosing where to read; `Source.start_at` says so later.

        Nothing may be awaited here before that: the consumer would look up committed offsets.
        """
        for slot in assigned:
            self._source._consumer.pause(slot)
            self._source._consumer.seek(slot, 0)
        self._source.epoch += 1


@contextmanager
def lost_kafka() -> Iterator[None]:
    """Raise `ConnectionLost` for whatever the client raises that a new start may mend."""
    try:
        with stray_cancellation("Kafka"):
            yield
    except (KafkaError, IllegalOperation, OSError, TimeoutError) as error:
        raise ConnectionLost("Kafka", describe(error)) from error
