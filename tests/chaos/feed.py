"""A steady stream of records into the topics, that knows which of them were acknowledged."""

from __future__ import annotations

import random
import threading
import time
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from ledger.kafka import Slot
from ledger.settings import Settings
from tests.chaos.events import Sent, Traffic

_TICK_S: Final = 0.02
_MOST_AT_ONCE: Final = 5_000
_TRANSACTIONS: Final = 0.04  # of the ticks
_ABORTED: Final = 0.35  # of the transactions
_STEP_S: Final = 5.0

Acknowledged = dict[Slot, dict[int, int]]
"""Topic and partition to offset to the checksum of the record there."""


def checksum(key: bytes | None, value: bytes | None) -> int:
    """Return what a record is recognised by."""
    return zlib.crc32(b"none" if value is None else value, zlib.crc32(key or b""))


class Feed(threading.Thread):
    """Produces a traffic's records, spread over some seconds, in a thread of its own.

    Attributes:
        acknowledged: what the broker acknowledged, and committed where in a transaction.
        uncertain: checksums of records whose transaction ended nobody knows how.
        aborted: how many records were sent in transactions that were aborted.
        failure: what ended the feed before its end, if anything did.
    """

    def __init__(
        self, settings: Settings, traffic: Traffic, seed: object, events: int, seconds: float
    ) -> None:
        super().__init__(name="feed", daemon=True)
        self.acknowledged: Acknowledged = defaultdict(dict)
        self.uncertain: Counter[int] = Counter()
        self.aborted = 0
        self.sent = 0
        self.failure: str | None = None
        self._rng = random.Random(f"feed of {seed}")
        self._settings = settings
        self._traffic = traffic
        self._events = events
        self._seconds = seconds
        self._ended = threading.Event()
        self._names = {settings.topic(name): name for name in ("orders", "fills", "transfers")}
        self._producer = Producer({**self._config(), "message.timeout.ms": 0, "linger.ms": 5})
        self._transactional = self._new_transactional()

    def _config(self) -> dict[str, Any]:
        return {
            "bootstrap.servers": self._settings.kafka,
            "partitioner": "murmur2_random",
            "enable.idempotence": True,
            "acks": "all",
            "compression.type": "lz4",
            "queue.buffering.max.messages": 200_000,
            "reconnect.backoff.max.ms": 500,
            "log_level": 0,
        }

    def _new_transactional(self) -> Producer:
        ours = {"transactional.id": "chaos-feed", "transaction.timeout.ms": 10_000}
        producer = Producer({**self._config(), **ours})
        self._insist(producer.init_transactions)
        return producer

    def end(self) -> None:
        """Stop before all records were sent."""
        self._ended.set()

    @property
    def counted(self) -> int:
        """How many records were acknowledged."""
        return sum(map(len, self.acknowledged.values()))

    def run(self) -> None:
        """Produce until everything is acknowledged, or `end` is called."""
        try:
            self._produce_all()
        except Exception as error:  # noqa: BLE001 - whoever waits for the feed is told
            self.failure = f"the feed failed: {error!r}"

    def _produce_all(self) -> None:
        began = time.monotonic()
        while self.sent < self._events and not self._ended.is_set():
            share = (time.monotonic() - began) / self._seconds
            due = min(self._events, int(share * self._events)) - self.sent
            if due > 0:
                records = self._traffic.take(min(due, _MOST_AT_ONCE))
                self.sent += len(records)
                if self._rng.random() < _TRANSACTIONS:
                    size = self._rng.randint(1, 60)
                    self._transaction(records[:size], self._rng.random() < _ABORTED)
                    records = records[size:]
                for record in records:
                    self._produce(self._producer, record, self._delivered)
            self._producer.poll(_TICK_S)
        while self._producer.flush(1.0) and not self._ended.is_set():
            pass

    def _produce(
        self,
        producer: Producer,
        record: Sent,
        delivered: Callable[[KafkaError | None, Message], None],
    ) -> None:
        topic = self._settings.topic(record.topic)
        while not self._ended.is_set():
            try:
                producer.produce(
                    topic,
                    record.value,
                    record.key,
                    partition=record.partition,
                    on_delivery=delivered,
                    headers=record.headers,
                )
                return
            except BufferError:
                producer.poll(0.05)

    def _delivered(self, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            raise KafkaException(error)
        self._acknowledge(message)

    def _acknowledge(self, message: Message) -> None:
        slot = (self._names[str(message.topic())], int(message.partition() or 0))
        offset = int(message.offset() or 0)
        self.acknowledged[slot][offset] = checksum(message.key(), message.value())

    # -- transactions

    def _transaction(self, records: list[Sent], abort: bool) -> None:
        """Send records in a transaction, and commit or abort it."""
        delivered: list[Message] = []
        producer = self._transactional

        def keep(error: KafkaError | None, message: Message) -> None:
            if error is None:
                delivered.append(message)

        try:
            producer.begin_transaction()
            for record in records:
                self._produce(producer, record, keep)
            if abort:
                producer.flush(_STEP_S)  # only what arrived leaves holes
                self._insist(producer.abort_transaction)
                self.aborted += len(records)
            else:
                self._insist(producer.commit_transaction)
                for message in delivered:
                    self._acknowledge(message)
        except KafkaException as error:
            if error.args[0].txn_requires_abort():
                try:
                    self._insist(producer.abort_transaction)
                    self.aborted += len(records)
                    return
                except KafkaException:
                    pass
            for record in records:
                self.uncertain[checksum(record.key, record.value)] += 1
            self._transactional = self._new_transactional()

    def _insist(self, step: Callable[[float], None]) -> None:
        while True:
            try:
                step(_STEP_S)
                return
            except KafkaException as error:
                if not error.args[0].retriable() or self._ended.is_set():
                    raise
