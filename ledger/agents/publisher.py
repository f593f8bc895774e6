"""Publishing a flush: changed rows, dead letters and the mark, in one Kafka transaction.

Each partition has a transactional id. Whoever initialises it shuts out every earlier holder, so a
worker that lost the partition without noticing can write nothing any more.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Self

import msgspec
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from ledger.errors import LedgerError, UnreachableError
from ledger.kafka import LARGEST_RECORD_BYTES, Cluster, client_config

logger = logging.getLogger(__name__)

_STEP_TIMEOUT_S: Final = 10.0
_PAUSE_S: Final = 0.2

Headers = list[tuple[str, str | bytes | None]]


class FencedError(LedgerError):
    """Another worker has taken the partition over; nothing more can be published by this one."""


class PublishError(LedgerError):
    """Something could not be published, and trying again would not help."""


_FENCED: Final = frozenset(
    {
        KafkaError._FENCED,
        KafkaError.PRODUCER_FENCED,
        KafkaError.INVALID_PRODUCER_EPOCH,
        KafkaError.INVALID_PRODUCER_ID_MAPPING,
    }
)


class Outgoing(msgspec.Struct, frozen=True, gc=False):
    """A record to publish; `partition` -1 leaves the choice to the partitioner."""

    topic: str
    partition: int
    key: bytes
    value: bytes | None
    headers: Headers | None = None


class Rows(msgspec.Struct, frozen=True, gc=False):
    """Records of one partition; `lists` makes them, `key` and `value` each, some at a time."""

    topic: str
    partition: int
    lists: Callable[[], Iterable[list[dict[str, Any]]]]


_REFUSALS: Final = frozenset(
    {
        KafkaError.MSG_SIZE_TOO_LARGE,
        KafkaError.RECORD_LIST_TOO_LARGE,
        KafkaError.INVALID_RECORD,
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.POLICY_VIOLATION,
    }
)


class Publisher:
    """The one writer of a partition's outputs. Its methods block: call them in a thread."""

    def __init__(self, bootstrap: str, transactional_id: str) -> None:
        self._bootstrap = bootstrap
        self._id = transactional_id
        self._closing = False
        self._refused: str | None = None  # which topic takes no record of ours, and why
        self._producer = Producer(
            {
                **client_config(bootstrap),
                "transactional.id": transactional_id,
                "transaction.timeout.ms": 30_000,
                "partitioner": "murmur2_random",
                "compression.type": "lz4",
                "message.max.bytes": LARGEST_RECORD_BYTES,
                "delivery.report.only.error": True,
                "on_delivery": self._not_delivered,
                "linger.ms": 100,  # for full batches; a commit does not wait for it
                "queue.buffering.max.messages": 1_000_000,
            }
        )

    @classmethod
    def of_partition(cls, cluster: Cluster, partition: int) -> Self:
        """Return the publisher of one partition's outputs."""
        return cls(cluster.bootstrap, cluster.settings.topic(f"ledger-partition-{partition}"))

    def acquire(self, timeout_s: float = 30.0) -> None:
        """Shut out every earlier holder of the partition, and end what they left open.

        Raises:
            UnreachableError: the brokers did not answer in time.
            PublishError: they refuse.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                self._producer.init_transactions(_STEP_TIMEOUT_S)
                return
            except KafkaException as error:
                cause = error.args[0]
                if not cause.retriable():
                    raise PublishError(f"{self._id}: {cause.str()}.") from error
                if time.monotonic() > deadline or self._closing:
                    raise UnreachableError("Kafka", self._bootstrap, cause.str()) from error

    def close(self) -> None:
        """Give up whatever is being published; the next holder ends an open transaction."""
        self._closing = True

    def publish(self, records: Sequence[Outgoing | Rows]) -> None:
        """Publish all records, or none; returns when they are committed.

        Brokers that do not answer are waited for.

        Raises:
            FencedError: another worker holds the partition now, or `close` was called.
            PublishError: a record cannot be published at all.
        """
        while True:
            try:
                self._producer.begin_transaction()
                self._produce_all(records)
                self._until_done(self._producer.commit_transaction)
                return
            except KafkaException as error:
                self._abort(error.args[0])

    def _abort(self, cause: KafkaError) -> None:
        """End a transaction that failed, so that it can be tried again.

        Raises:
            FencedError: it failed because another worker holds the partition.
            PublishError: it would fail again.
        """
        if cause.code() in _FENCED or (cause.fatal() and not cause.txn_requires_abort()):
            raise FencedError(f"{self._id}: {cause.str()}.")
        try:
            self._until_done(self._producer.abort_transaction)
        except KafkaException as worse:
            raise FencedError(f"{self._id}: {worse.args[0].str()}.") from worse
        refused, self._refused = self._refused, None
        # To `produce`, a transaction that failed meanwhile is only in the wrong state.
        passing = cause.txn_requires_abort() or cause.code() == KafkaError._STATE
        if refused is not None or not passing:
            raise PublishError(
                f"{self._id}: {refused or cause.str()}. Mend that and start again: what cannot be "
                "published is not gone past."
            )
        logger.warning("%s: the transaction is tried again: %s", self._id, cause.str())
        time.sleep(_PAUSE_S)
        self.require_open()

    def _not_delivered(self, error: KafkaError | None, message: Message) -> None:
        if error is not None and error.code() in _REFUSALS:
            self._refused = f"the topic {message.topic()} takes no record of ours ({error.str()})"

    def _produce_all(self, records: Sequence[Outgoing | Rows]) -> None:
        """Hand records to librdkafka, in their order."""
        for record in records:
            if isinstance(record, Outgoing):
                self._produce(record)
                continue
            for messages in record.lists():
                self._produce_list(record, messages)

    def _produce_list(self, rows: Rows, messages: list[dict[str, Any]]) -> None:
        taken = self._producer.produce_batch(
            rows.topic, messages, partition=rows.partition, on_delivery=self._not_delivered
        )
        if taken == len(messages):
            return
        for message in messages:
            if message.pop("_error", None):  # no room for it, or worse: alone it says which
                key, value = message["key"], message["value"]
                self._produce(Outgoing(rows.topic, rows.partition, key, value))

    def _produce(self, record: Outgoing) -> None:
        while True:
            try:
                self._producer.produce(
                    record.topic,
                    record.value,
                    record.key,
                    partition=record.partition,
                    headers=record.headers,
                )
                return
            except BufferError:
                self.require_open()
                self._producer.poll(0.1)

    def _until_done(self, step: Callable[[float], None]) -> None:
        waiting_since = time.monotonic()
        while True:
            try:
                step(_STEP_TIMEOUT_S)
                return
            except KafkaException as error:
                cause = error.args[0]
                if not cause.retriable():
                    raise
                self.require_open()
                logger.warning(
                    "%s: Kafka did not answer for %.0f s (%s); waiting",
                    self._id,
                    time.monotonic() - waiting_since,
                    cause.str(),
                )

    def require_open(self) -> None:
        """Go on only if `close` was not called.

        Raises:
            FencedError: it was.
        """
        if self._closing:
            raise FencedError(f"{self._id}: closed while publishing.")
