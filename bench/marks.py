"""Seeing in `balances` how far workers are, without taking from them what is measured.

To know to the millisecond when the last mark becomes visible one must follow `balances` with a
read-committed consumer, which then also gets, and pays for, every row. So `await_marks` only looks
now and then at the newest marks, some milliseconds of work each time, and follows from where the
topic ends when nearly all is applied. The time is that of the mark's arrival: its own time stamp is
of when it was sent, before its transaction was committed and it could be seen.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping

import msgspec
from confluent_kafka import Consumer, TopicPartition

from ledger.kafka import BALANCES, Cluster, Slot

LOOK_S = 0.25
NEARLY = 0.9
"""Which part of the records is applied when marks are followed."""

_MARK_KEY = b"@watermark"
_DEEP = 64


class Mark(msgspec.Struct):
    """What is needed of a mark: the next offset of each topic, and the digest of the state."""

    watermark: dict[str, int]
    state_digest: str


Marks = dict[int, Mark]
"""By partition."""

_decode = msgspec.json.Decoder(Mark).decode


class MarkReader:
    """Reads the marks of a ledger's `balances`, with one consumer for as long as it is open."""

    def __init__(self, cluster: Cluster, partitions: int) -> None:
        self.marks: Marks = {}
        self._cluster = cluster
        self._slots: list[Slot] = [(BALANCES, partition) for partition in range(partitions)]
        self._topic = cluster.settings.topic(BALANCES)
        self._seen: dict[Slot, int] = {}
        self._consumer = Consumer(
            {
                "bootstrap.servers": cluster.bootstrap,
                "group.id": "bench-marks",
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
                "enable.partition.eof": True,
                "fetch.wait.max.ms": 20,  # a look ends with an empty answer
                "fetch.queue.backoff.ms": 5,
                "log_level": 2,
            }
        )

    def close(self) -> None:
        """Close the consumer."""
        self._consumer.close()

    def ends(self) -> dict[Slot, int]:
        """Return up to where `balances` can be read."""
        return self._cluster.ends(self._slots)

    def look(self) -> dict[Slot, int]:
        """Bring `marks` up to what is published; return up to where that is."""
        ends = self.ends()
        left = [slot for slot in self._slots if ends[slot] != self._seen.get(slot, 0)]
        depth = 4  # the mark is mostly the last record before a transaction's marker
        while left:
            starts = {slot: max(self._seen.get(slot, 0), ends[slot] - depth) for slot in left}
            found = self._read(starts, {slot: ends[slot] for slot in left})
            self.marks.update(found)
            left = [s for s in left if s[1] not in found and starts[s] > self._seen.get(s, 0)]
            depth *= _DEEP
        self._seen = ends
        return ends

    def _read(self, starts: Mapping[Slot, int], ends: Mapping[Slot, int]) -> Marks:
        """Return the last marks of some spans."""
        found: Marks = {}
        self._assign(starts)
        left = {slot[1] for slot in starts}
        while left:
            for message in self._consumer.consume(10_000, 0.1):
                partition, offset = int(message.partition() or 0), int(message.offset() or 0)
                error = message.error()
                if error is not None and error.code() != error._PARTITION_EOF:
                    raise RuntimeError(error.str())
                if error is not None or offset >= ends[BALANCES, partition] - 1:
                    left.discard(partition)
                if error is None and message.key() == _MARK_KEY:
                    found[partition] = _decode(message.value() or b"")
        self._consumer.unassign()
        return found

    def _assign(self, starts: Mapping[Slot, int]) -> None:
        self._consumer.assign(
            [TopicPartition(self._topic, slot[1], start) for slot, start in starts.items()]
        )

    def follow(self, starts: Mapping[Slot, int]) -> Iterator[tuple[float, int, Mark] | None]:
        """Yield each mark that arrives, with the time (`time.time`) and its partition.

        Yields None at least every tenth of a second, so that one can look at something else.
        """
        self._assign(starts)
        while True:
            messages = self._consumer.consume(1_000, 0.1)
            now = time.time()
            for message in messages:
                if message.error() is None and message.key() == _MARK_KEY:
                    yield now, int(message.partition() or 0), _decode(message.value() or b"")
            yield None


def await_marks(
    cluster: Cluster, ends: Mapping[Slot, int], partitions: int, check: Callable[[], None]
) -> tuple[float, Marks]:
    """Return when marks that cover the ends of input topics were visible, and those marks.

    Call it before the workers have begun.

    Args:
        cluster: whose `balances`.
        ends: what the marks must reach.
        partitions: how many there are.
        check: called now and then; raises to end the wait.
    """

    def left() -> int:
        nothing = Mark({}, "")
        marks = reader.marks
        return sum(
            max(0, end - marks.get(partition, nothing).watermark.get(topic, 0))
            for (topic, partition), end in ends.items()
        )

    reader = MarkReader(cluster, partitions)
    try:
        reader.look()
        nearly = left() * (1 - NEARLY)
        while True:
            check()
            began = time.time()
            position = reader.look()
            if left() == 0:
                return time.time(), reader.marks
            if left() <= nearly:
                break
            time.sleep(max(0.0, began + LOOK_S - time.time()))
        for seen in reader.follow(position):
            check()
            if seen is not None:
                at, partition, mark = seen
                reader.marks[partition] = mark
                if left() == 0:
                    return at, reader.marks
        raise AssertionError("it follows for ever")
    finally:
        reader.close()
