"""Kafka from outside the stream: topics, offsets, and a reader that fetches spans of records.

Names here are without prefix; the prefix of the settings is added where the broker is spoken to.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import msgspec
from confluent_kafka import (
    OFFSET_INVALID,
    Consumer,
    IsolationLevel,
    KafkaError,
    KafkaException,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import (
    AdminClient,
    ConfigResource,
    ListOffsetsResultInfo,
    NewTopic,
    OffsetSpec,
)
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_fixed

from ledger.errors import MissingRecords, TopicError, UnreachableError, UnreadableRecords
from ledger.events import INPUT_TOPICS
from ledger.projections.partition import Origin
from ledger.settings import DEFAULT_PARTITIONS, Settings

BALANCES: Final = "balances"
DEAD_LETTERS: Final = "dead-letters"

LARGEST_RECORD_BYTES: Final = 16 << 20
"""What may be published; `dead-letters` takes as much, so that what came in also goes out."""
REQUEST_TIMEOUT_S: Final = 15.0
_SOCKET_TIMEOUT_S: Final = 20.0
_RENEWED_AFTER_S: Final = 1.0
STALLED_S: Final = 30.0
_BATCH: Final = 10_000

_T = TypeVar("_T")

Slot = tuple[str, int]
"""A topic (without prefix) and a partition."""


class KafkaRecord(msgspec.Struct, gc=False, frozen=True):
    """What is read of a record; offsets are positions, keys and values are bytes or None."""

    offset: int
    key: bytes | None
    value: bytes | None


@dataclass(frozen=True)
class Batch:
    """Records of one partition in offset order; `next_offset` is the position after them.

    It may be beyond the last record's offset + 1, where transaction markers follow.
    """

    topic: str
    partition: int
    records: list[KafkaRecord]
    next_offset: int


@dataclass(frozen=True)
class TopicShape:
    """What is known of a topic on the broker."""

    topic_id: str
    partitions: int


def client_config(bootstrap: str) -> dict[str, Any]:
    """Return what every librdkafka client here shares."""
    return {
        "bootstrap.servers": bootstrap,
        "client.id": "ledger",
        "log_level": 2,  # what goes wrong is raised, not printed
        "socket.keepalive.enable": True,
        "reconnect.backoff.max.ms": 2000,
        "allow.auto.create.topics": False,
    }


# What brokers say while leaders change and topics appear: ask again.
_PASSING: Final = frozenset(
    {
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.NOT_COORDINATOR,
        KafkaError.NETWORK_EXCEPTION,
        KafkaError.BROKER_NOT_AVAILABLE,
        KafkaError.REPLICA_NOT_AVAILABLE,
        KafkaError.KAFKA_STORAGE_ERROR,
        KafkaError.OFFSET_NOT_AVAILABLE,  # a new leader that has not caught up
        KafkaError.FENCED_LEADER_EPOCH,
        KafkaError.UNKNOWN_LEADER_EPOCH,
        KafkaError._NOENT,  # librdkafka found no leader of any partition that was asked for
        KafkaError._PARTIAL,  # a broker that has only just started knows of nothing
        KafkaError._DESTROY_BROKER,  # librdkafka gave up a connection that was asked by
    }
)
_AWAY: Final = _PASSING | {
    KafkaError._TRANSPORT,
    KafkaError._TIMED_OUT,
    KafkaError._ALL_BROKERS_DOWN,
    KafkaError.REQUEST_TIMED_OUT,
}
# What librdkafka says of a batch that is damaged. It goes on behind some of them by itself.
_DAMAGED: Final = frozenset(
    {
        KafkaError._BAD_MSG,  # it fails its check sum, or cannot be parsed
        KafkaError._BAD_COMPRESSION,
        KafkaError._NOT_IMPLEMENTED,  # of a form that nobody writes
        KafkaError._UNDERFLOW,
        KafkaError.INVALID_MSG,  # so says the broker
    }
)


class Cluster:
    """The Kafka cluster that a process talks to."""

    def __init__(self, bootstrap: str, settings: Settings) -> None:
        self.bootstrap = bootstrap
        self.settings = settings
        self.admin = self._new_admin()
        self._renewed_at = time.monotonic()
        self._retired: deque[tuple[float, AdminClient]] = deque()
        self._renewing = threading.Lock()

    # -- topics

    def cluster_id(self) -> str:
        """Return the cluster's id.

        Raises:
            UnreachableError: no broker answers.
        """
        # Not DescribeCluster: librdkafka 2.16 aborts the process where a broker that has only just
        # started names neither brokers nor topics (rdkafka_admin.c, assertion 'rko_result').
        name = self.settings.topic(INPUT_TOPICS[0])
        metadata = self._ask(lambda admin: admin.list_topics(name, timeout=REQUEST_TIMEOUT_S))
        return str(metadata.cluster_id)

    def topics(self, names: Iterable[str]) -> dict[str, TopicShape]:
        """Return the shape of those of the named topics that exist."""
        prefixed = {self.settings.topic(name): name for name in names}

        def describe(admin: AdminClient) -> dict[str, TopicShape]:
            shapes: dict[str, TopicShape] = {}
            futures = admin.describe_topics(
                TopicCollection(list(prefixed)), request_timeout=REQUEST_TIMEOUT_S
            )
            for topic, future in futures.items():
                try:
                    found = future.result()
                except KafkaException as error:
                    if error.args[0].code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
                        continue
                    raise
                shapes[prefixed[topic]] = TopicShape(str(found.topic_id), len(found.partitions))
            return shapes

        return self._ask(describe)

    def origin(self) -> Origin:
        """Return where records come from: this cluster and its input topics.

        Raises:
            TopicError: an input topic is missing, or their partition counts differ from each
                other, from those of `balances`, or from the settings.
        """
        shapes = self.topics((*INPUT_TOPICS, BALANCES))
        missing = [name for name in INPUT_TOPICS if name not in shapes]
        if missing:
            names = ", ".join(self.settings.topic(name) for name in missing)
            raise TopicError(
                f"No topic {names} at {self.bootstrap}: nothing was published yet. "
                "'ledger publish' and 'ledger worker' create the topics."
            )
        self._check_counts(shapes)
        return Origin(
            cluster_id=self.cluster_id(),
            topic_ids={name: shapes[name].topic_id for name in INPUT_TOPICS},
            partitions=shapes[INPUT_TOPICS[0]].partitions,
        )

    def _check_counts(self, shapes: Mapping[str, TopicShape]) -> None:
        counts = {
            name: shapes[name].partitions for name in (*INPUT_TOPICS, BALANCES) if name in shapes
        }
        wanted = self.settings.partitions
        if len(set(counts.values())) > 1 or (wanted is not None and wanted not in counts.values()):
            found = ", ".join(f"{self.settings.topic(n)} has {c}" for n, c in counts.items())
            expected = "" if wanted is None else f" (LEDGER_PARTITIONS is {wanted})"
            raise TopicError(
                f"The topics must all have the same, unchanged number of partitions: {found}"
                f"{expected}. Accounts would move to other partitions; use a new topic prefix "
                "and publish the events again."
            )

    def ensure_outputs(self) -> Origin:
        """Create the output topics where they are missing, and return where records come from.

        Raises:
            TopicError: an input topic is missing. A worker that folds it must not make it anew.
        """
        self.origin()
        return self.ensure_topics()

    def policy_warnings(self) -> list[str]:
        """Return in a sentence each what topics' policies put at risk.

        Raises:
            TopicError: an input topic is compacted; its history is not whole.
        """
        names = {self.settings.topic(name): name for name in (*INPUT_TOPICS, BALANCES)}
        resources = [ConfigResource(ConfigResource.Type.TOPIC, name) for name in names]

        def describe(admin: AdminClient) -> dict[str, dict[str, str]]:
            futures = admin.describe_configs(resources, request_timeout=REQUEST_TIMEOUT_S)
            return {
                names[resource.name]: {key: str(e.value) for key, e in future.result().items()}
                for resource, future in futures.items()
            }

        warnings = []
        for name, config in self._ask(describe).items():
            topic, policy = self.settings.topic(name), config["cleanup.policy"]
            if name == BALANCES:
                if policy != "compact":
                    warnings.append(f"{topic} has cleanup.policy={policy}: rows will be deleted.")
            elif "compact" in policy:
                raise TopicError(
                    f"{topic} has cleanup.policy={policy}: Kafka removes records that are needed. "
                    "Create it anew with cleanup.policy=delete and publish the events again."
                )
            elif config["retention.ms"] != "-1" or config["retention.bytes"] != "-1":
                warnings.append(
                    f"{topic} has retention.ms={config['retention.ms']} and retention.bytes="
                    f"{config['retention.bytes']}: records will be deleted; -1 keeps them."
                )
        return warnings

    def ensure_topics(self) -> Origin:
        """Create what is missing of the ledger's topics, and return where records come from."""
        shapes = self.topics((*INPUT_TOPICS, BALANCES, DEAD_LETTERS))
        partitions = self.settings.partitions or next(
            (shapes[name].partitions for name in (*INPUT_TOPICS, BALANCES) if name in shapes),
            DEFAULT_PARTITIONS,
        )
        forever = {"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1"}
        large = {"max.message.bytes": str(LARGEST_RECORD_BYTES)}
        configs = {
            **dict.fromkeys(INPUT_TOPICS, (partitions, forever)),
            # A system account's row has all assets; a dead letter is larger than its record was.
            BALANCES: (partitions, {"cleanup.policy": "compact", **large}),
            DEAD_LETTERS: (1, {**forever, **large}),
        }
        safe = {"min.insync.replicas": "2"} if self.settings.replication >= 3 else {}
        new = [
            NewTopic(
                self.settings.topic(name),
                count,
                self.settings.replication,
                config={**config, **safe},
            )
            for name, (count, config) in configs.items()
            if name not in shapes
        ]
        if new:
            admin = self.admin
            for topic, future in admin.create_topics(new, request_timeout=15.0).items():
                try:
                    future.result()
                except KafkaException as error:
                    code = error.args[0].code()
                    if code != KafkaError.TOPIC_ALREADY_EXISTS:  # another process was quicker
                        raise TopicError(f"Topic {topic}: {error.args[0].str()}.") from error
            self._await_topics(configs)
        return self.origin()

    def _await_topics(self, names: Iterable[str]) -> None:
        """Wait until brokers know the topics that were just created."""
        wanted = set(names)
        deadline = time.monotonic() + REQUEST_TIMEOUT_S
        while wanted - set(self.topics(wanted)):
            if time.monotonic() > deadline:
                raise TopicError(f"The topics {sorted(wanted)} were created but do not appear.")
            time.sleep(0.05)

    # -- offsets

    def earliest(self, slots: Iterable[Slot]) -> dict[Slot, int]:
        """Return the first offset that each partition still has."""
        return self._offsets(slots, OffsetSpec.earliest())

    def ends(self, slots: Iterable[Slot]) -> dict[Slot, int]:
        """Return the offset after the last committed record of each partition."""
        return self._offsets(slots, OffsetSpec.latest())

    def at_time(self, slots: Iterable[Slot], milliseconds: int) -> dict[Slot, int]:
        """Return the first offset whose record's time is at or after a moment (else the end)."""
        wanted = list(slots)
        found = self._offsets(wanted, OffsetSpec.for_timestamp(milliseconds))
        ends = self.ends(wanted)
        return {slot: ends[slot] if found[slot] < 0 else found[slot] for slot in wanted}

    def _offsets(self, slots: Iterable[Slot], spec: OffsetSpec) -> dict[Slot, int]:
        return {slot: int(one.offset) for slot, one in self._list_offsets(slots, spec).items()}

    def _list_offsets(
        self, slots: Iterable[Slot], spec: OffsetSpec
    ) -> dict[Slot, ListOffsetsResultInfo]:
        by_partition = {
            TopicPartition(self.settings.topic(topic), partition): (topic, partition)
            for topic, partition in slots
        }
        if not by_partition:
            return {}

        def list_offsets(admin: AdminClient) -> dict[Slot, ListOffsetsResultInfo]:
            futures = admin.list_offsets(
                dict.fromkeys(by_partition, spec),
                isolation_level=IsolationLevel.READ_COMMITTED,
                request_timeout=REQUEST_TIMEOUT_S,
            )
            found = {by_partition[where]: future.result() for where, future in futures.items()}
            if any(one.offset == OFFSET_INVALID for one in found.values()):
                # So says a broker that is not the leader any more, or not yet, and no error.
                raise KafkaException(KafkaError(KafkaError.LEADER_NOT_AVAILABLE))
            return found

        return self._ask(list_offsets)

    def members(self, group: str) -> list[str]:
        """Return the client ids of a consumer group's members; none where there is no group."""
        described = self._ask(
            lambda admin: admin.describe_consumer_groups(
                [group], request_timeout=REQUEST_TIMEOUT_S
            )[group].result()
        )
        return sorted(str(member.client_id) for member in described.members)

    def _ask(self, question: Callable[[AdminClient], _T]) -> _T:
        """Return the answer to an admin request, asked again while leaders are being elected."""
        patiently = Retrying(
            retry=retry_if_exception(
                lambda error: isinstance(error, KafkaException) and error.args[0].code() in _PASSING
            ),
            stop=stop_after_delay(REQUEST_TIMEOUT_S),
            wait=wait_fixed(0.1),
            reraise=True,
        )
        try:
            answer: _T = patiently(self._ask_once, question)
            return answer
        except KafkaException as error:
            if error.args[0].code() in _AWAY:
                raise UnreachableError("Kafka", self.bootstrap, error.args[0].str()) from error
            raise

    def _ask_once(self, question: Callable[[AdminClient], _T]) -> _T:
        admin = self.admin  # held until it has answered: what a dropped client owes never comes
        try:
            return question(admin)
        except KafkaException as error:
            if error.args[0].code() in _PASSING:
                self._renew(admin)
            raise

    def _renew(self, admin: AdminClient) -> None:
        """Replace a client: it keeps asking with the leader's epoch that it once learnt.

        The old one is kept until nothing can be in flight: librdkafka may abort the process when
        it closes a client that is just being answered.
        """
        now = time.monotonic()
        with self._renewing:
            if self.admin is not admin or now - self._renewed_at < _RENEWED_AFTER_S:
                return
            while self._retired and now - self._retired[0][0] > 2 * _SOCKET_TIMEOUT_S:
                self._retired.popleft()
            self._retired.append((now, admin))
            self.admin, self._renewed_at = self._new_admin(), now

    def _new_admin(self) -> AdminClient:
        timeout_ms = int(_SOCKET_TIMEOUT_S * 1000)
        return AdminClient({**client_config(self.bootstrap), "socket.timeout.ms": timeout_ms})

    # -- records

    def read(
        self, spans: Mapping[Slot, tuple[int, int]], progress: Callable[[int], None] | None = None
    ) -> Iterator[Batch]:
        """Yield the committed records of each span `[start, end)`, in offset order a partition.

        Args:
            spans: for each topic partition the first offset and the one to stop before.
            progress: told how far positions have moved, in offsets.

        Raises:
            MissingRecords: the first offset is not there any more, or not there yet.
            UnreadableRecords: records are damaged; those before them were yielded.
            UnreachableError: nothing arrived for half a minute.
        """
        open_spans = {slot: span for slot, span in spans.items() if span[0] < span[1]}
        if not open_spans:
            return
        require_there(self, open_spans)
        consumer = Consumer(
            {
                **client_config(self.bootstrap),
                "group.id": "ledger-reader",  # never joined, nothing is committed
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "auto.offset.reset": "error",
                "isolation.level": "read_committed",
                "check.crcs": True,  # brokers serve what is on their disk, damaged or not
                "enable.partition.eof": True,
                # The default of a second parks a partition of a fast reader each time.
                "fetch.queue.backoff.ms": 5,
                "fetch.wait.max.ms": 50,
                "queued.max.messages.kbytes": 65_536,
            }
        )
        try:
            yield from self._drain(consumer, open_spans, progress)
        finally:
            consumer.close()

    def _drain(
        self,
        consumer: Consumer,
        spans: dict[Slot, tuple[int, int]],
        progress: Callable[[int], None] | None,
    ) -> Iterator[Batch]:
        names = {self.settings.topic(slot[0]): slot[0] for slot in spans}
        positions = {slot: span[0] for slot, span in spans.items()}
        consumer.assign(
            [
                TopicPartition(self.settings.topic(topic), partition, span[0])
                for (topic, partition), span in spans.items()
            ]
        )
        last_news = time.monotonic()
        while positions:
            messages = consumer.consume(_BATCH, 0.2)
            if not messages:
                if time.monotonic() - last_news > STALLED_S:
                    where = ", ".join(f"{t}:{p} at {o}" for (t, p), o in positions.items())
                    raise UnreachableError("Kafka", self.bootstrap, f"no records for 30 s: {where}")
                continue
            last_news = time.monotonic()
            batches: dict[Slot, list[KafkaRecord]] = {}
            reached: dict[Slot, int] = {}
            unreadable: dict[Slot, UnreadableRecords] = {}
            for message in messages:
                error = message.error()
                if error is not None and message.topic() is None:  # of the client as a whole
                    raise UnreachableError("Kafka", self.bootstrap, error.str())
                slot = (names[str(message.topic())], int(message.partition() or 0))
                if slot in unreadable:
                    continue
                offset = int(message.offset() or 0)
                if error is not None:
                    if error.code() == KafkaError._PARTITION_EOF:
                        reached[slot] = offset
                        continue
                    if error.code() in _DAMAGED:
                        reached[slot] = offset
                        unreadable[slot] = UnreadableRecords(*slot, offset, error.str())
                        continue
                    if error.code() == KafkaError._AUTO_OFFSET_RESET and slot in positions:
                        raise MissingRecords(
                            *slot,
                            positions[slot],
                            self.earliest([slot])[slot],
                            self.ends([slot])[slot],
                        )
                    raise UnreachableError("Kafka", self.bootstrap, error.str())
                reached[slot] = offset + 1
                if slot in positions and offset < spans[slot][1]:
                    batches.setdefault(slot, []).append(
                        KafkaRecord(offset, message.key(), message.value())
                    )
            for slot, offset in reached.items():
                if slot not in positions:
                    continue
                position = min(max(offset, positions[slot]), spans[slot][1])
                if progress is not None:
                    progress(position - positions[slot])
                yield Batch(*slot, batches.get(slot, []), position)
                positions[slot] = position
                if position >= spans[slot][1]:
                    del positions[slot]
                    consumer.incremental_unassign(
                        [TopicPartition(self.settings.topic(slot[0]), slot[1])]
                    )
            for slot, damage in unreadable.items():
                if slot in positions:  # else it lies behind the span
                    raise damage


def require_there(cluster: Cluster, spans: Mapping[Slot, tuple[int, int]]) -> None:
    """Check that topics have the records from one offset to before another, by partition.

    Raises:
        MissingRecords: a first offset is not there any more, or a last one not there yet.
    """
    earliest, ends = cluster.earliest(spans), cluster.ends(spans)
    for slot, (start, end) in spans.items():
        if start < earliest[slot] or end > ends[slot]:
            needed = start if start < earliest[slot] else end
            raise MissingRecords(*slot, needed, earliest[slot], ends[slot])
