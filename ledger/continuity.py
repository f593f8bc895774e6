"""Whether the topics still hold the records that state was made of (contract, section 5).

State names its position by offsets, and an offset alone proves nothing: a broker that lost records
which it had acknowledged uses their offsets again. So whatever is kept of state (a store, a
snapshot, a mark in `balances`) also keeps its `Tips`, and is a `Claim` about the topics that can
be checked: by `require_continuous` when it is taken up, by a `LogWatch` while a worker goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from ledger import digests
from ledger.errors import LostRecords, MissingRecords, ReplacedRecords, ReplacedTopic
from ledger.events import INPUT_TOPICS
from ledger.kafka import BALANCES, Cluster, KafkaRecord, Slot
from ledger.projections.partition import (
    Frozen,
    Origin,
    Partition,
    Tip,
    Tips,
    Watermark,
    tip_of,
)
from ledger.published import Mark, newest_marks

PUBLISHED: Final = "the published tables"


@dataclass(frozen=True)
class Position:
    """How far a partition's logs were read, and what they held.

    Attributes:
        watermark: the next offsets.
        log_digests: for each topic the digest (hex) of all records before them.
        tips: the last of those records.
    """

    watermark: Watermark
    log_digests: dict[str, str]
    tips: Tips


def position_of(state: Partition | Frozen) -> Position:
    """Return where a state stands, as a copy; it has log digests (its base is not `empty`)."""
    assert state.log_digests is not None
    return Position(dict(state.watermark), dict(state.log_digests), dict(state.tips))


@dataclass(frozen=True)
class Claim:
    """That a partition's topics hold certain records.

    Attributes:
        what: was made of them, in words for a person.
        partition: the partition.
        watermark: the offsets after the last of them.
        tips: the last of them.
    """

    what: str
    partition: int
    watermark: Watermark
    tips: Tips


def claim_of(mark: Mark, partition: int, origin: Origin) -> Claim:
    """Return what published tables say of the topics.

    Raises:
        ReplacedTopic: they were made of topics that are no more.
    """
    for topic in INPUT_TOPICS:
        if mark.topic_ids.get(topic) != origin.topic_ids[topic]:
            raise ReplacedTopic(topic, partition, mark.watermark.get(topic, 0))
    return Claim(PUBLISHED, partition, mark.watermark, mark.tips)


def require_topics(cluster: Cluster) -> None:
    """Check that no input topic is gone that published tables were made of.

    To be called before missing topics are created: records that are gone would look like records
    that never were.

    Raises:
        LostRecords: one is.
    """
    shapes = cluster.topics((*INPUT_TOPICS, BALANCES))
    missing = [topic for topic in INPUT_TOPICS if topic not in shapes]
    if not missing or BALANCES not in shapes:
        return
    marks = newest_marks(cluster, range(shapes[BALANCES].partitions))
    if marks:
        offsets = {
            (topic, number): mark.watermark.get(topic, 0)
            for topic in missing
            for number, mark in marks.items()
        }
        slot = max(offsets, key=lambda slot: offsets[slot])
        raise LostRecords(
            *slot,
            f"the topic is gone, and with it the records before offset {offsets[slot]} that "
            f"{PUBLISHED} were made of",
        )


def require_tables_continuous(cluster: Cluster, origin: Origin) -> None:
    """Check that the topics hold what the published tables say.

    Raises:
        LostRecords: they do not.
    """
    if BALANCES in cluster.topics([BALANCES]):
        marks = newest_marks(cluster, range(origin.partitions))
        require_continuous(cluster, [claim_of(mark, n, origin) for n, mark in marks.items()])


def require_continuous(cluster: Cluster, claims: Iterable[Claim]) -> None:
    """Check that the topics hold what claims say. Tips that retention removed prove nothing.

    Raises:
        MissingRecords: a topic ends before a claim's watermark, or begins after it.
        ReplacedRecords: another record has the offset of a claim's last one.
    """
    claims = list(claims)
    slots = {(topic, claim.partition) for claim in claims for topic in claim.watermark}
    earliest, ends = cluster.earliest(slots), cluster.ends(slots)
    wanted: dict[Slot, dict[Tip, str]] = {}
    for claim in claims:
        for topic, offset in claim.watermark.items():
            slot = (topic, claim.partition)
            if not earliest[slot] <= offset <= ends[slot]:
                raise MissingRecords(*slot, offset, earliest[slot], ends[slot], claim.what)
            tip = claim.tips.get(topic)
            if tip is not None and tip.offset >= earliest[slot]:
                wanted.setdefault(slot, {}).setdefault(tip, claim.what)
    while wanted:  # a read takes one span of each partition
        asked = {slot: tips.popitem() for slot, tips in wanted.items()}
        wanted = {slot: tips for slot, tips in wanted.items() if tips}
        found = _records_at(cluster, {slot: tip.offset for slot, (tip, _) in asked.items()})
        for slot, (tip, what) in asked.items():
            record = found.get(slot)
            if record is None or tip_of(record.offset, record.key, record.value) != tip:
                raise ReplacedRecords(*slot, tip.offset, tip.offset, what)


def _records_at(cluster: Cluster, offsets: dict[Slot, int]) -> dict[Slot, KafkaRecord]:
    spans = {slot: (offset, offset + 1) for slot, offset in offsets.items()}
    return {
        (batch.topic, batch.partition): record
        for batch in cluster.read(spans)
        for record in batch.records
    }


@dataclass(frozen=True)
class Leadership:
    """From which leaders a partition's records come.

    Attributes:
        number: rises before records are fetched from a leader that is another one, or was
            restarted.
        fetched: for each topic the offset before which records may have come from earlier leaders;
            some of them may still be on their way to the fold. Topics of which nothing was fetched
            are not there.
    """

    number: int = 0
    fetched: Mapping[str, int] = field(default_factory=dict)


class LogWatch:
    """Watches that a partition's topics go on being the ones that its state is made of.

    Only a leader that is another one, or was restarted, can have lost records. So what was fetched
    from the leaders of the last time was not lost; whatever came from earlier ones is read again.
    """

    def __init__(
        self, cluster: Cluster, partition: int, leadership: Callable[[], Leadership]
    ) -> None:
        """Begin to watch.

        Args:
            cluster: where the topics are.
            partition: of them.
            leadership: returns the newest one.
        """
        self._cluster = cluster
        self._partition = partition
        self._leadership = leadership
        self._seen = -1
        self._confirmed: Position | None = None

    def confirm(self, position: Position, what: str, others: Sequence[Claim] = ()) -> None:
        """Check that the records before a position are those in the topics; blocks.

        Args:
            position: one that all its records were fetched for before this call.
            what: was made of the records, in words for a person.
            others: further claims to be checked.

        Raises:
            MissingRecords: a topic ends before the position.
            ReplacedRecords: records were replaced by others.
            UnreachableError: Kafka did not answer.
        """
        leadership = self._leadership()
        if others or self._confirmed is None or self._is_in_doubt(self._confirmed, leadership):
            claims = [
                Claim(what, self._partition, known.watermark, known.tips)
                for known in (self._confirmed, position)
                if known is not None
            ]
            require_continuous(self._cluster, [*claims, *others])
            if self._confirmed is not None:
                self._read_again(self._confirmed, position, what)
            self._seen = leadership.number
        self._confirmed = position

    def _is_in_doubt(self, confirmed: Position, leadership: Leadership) -> bool:
        return leadership.number != self._seen or any(
            confirmed.watermark[topic] < offset for topic, offset in leadership.fetched.items()
        )

    def _read_again(self, before: Position, after: Position, what: str) -> None:
        chains = {topic: bytes.fromhex(digest) for topic, digest in before.log_digests.items()}
        spans: dict[Slot, tuple[int, int]] = {
            (topic, self._partition): (offset, after.watermark[topic])
            for topic, offset in before.watermark.items()
        }
        earliest = self._cluster.earliest(spans)  # what retention removed proves nothing
        spans = {slot: span for slot, span in spans.items() if span[0] >= earliest[slot]}
        for batch in self._cluster.read(spans):
            for record in batch.records:
                chains[batch.topic] = digests.chain(
                    chains[batch.topic], record.offset, record.key, record.value
                )
        for (topic, partition), (start, end) in spans.items():
            if chains[topic].hex() != after.log_digests[topic]:
                raise ReplacedRecords(topic, partition, start, end - 1, what)
