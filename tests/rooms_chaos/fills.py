"""What is fed to the bridges, and what of it Kafka holds in the end."""

from __future__ import annotations

import time
from typing import Final, NamedTuple

from confluent_kafka import Consumer, KafkaError, TopicPartition

from ledger.settings import Settings
from tests.chaos.events import Sent, Traffic

FILLS: Final = "fills"
_READ_S: Final = 60.0
_FAR: Final = 2_000
"""What is far apart for `Traffic`, which also makes 112 accounts of it: that many private rooms."""


class Fills(Traffic):
    """Fills and busts of mixed traffic, the same for the same seed: early, twice, broken.

    Accounts appear one by one, so that there are new rooms at any time.
    """

    def __init__(self, seed: object, records: int, partitions: int) -> None:
        """Prepare the stream.

        Args:
            seed: of all its choices.
            records: how many will be taken; all accounts have appeared by then.
            partitions: of the topics.
        """
        self._taken = 0
        self._records = records
        super().__init__(f"rooms {seed}", _FAR, partitions)

    def _account(self) -> bytes:
        account = super()._account()
        known = 1 + len(self._cold) * self._taken // self._records
        return account if account in self._hot else self._cold[self._cold.index(account) % known]

    def _next(self) -> Sent:
        while (sent := super()._next()).topic != FILLS:
            pass
        self._taken += 1
        return sent


class Stored(NamedTuple):
    """A record of `fills` as Kafka has it."""

    partition: int
    offset: int
    key: bytes | None
    value: bytes | None


def stored(settings: Settings, partitions: int) -> tuple[list[Stored], dict[int, int]]:
    """Return all committed records of `fills`, and the end offset of each partition."""
    consumer = Consumer(
        {
            "bootstrap.servers": settings.kafka,
            "group.id": "rooms-chaos",  # never joined
            "isolation.level": "read_committed",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "log_level": 2,
        }
    )
    topic = settings.topic(FILLS)
    consumer.assign([TopicPartition(topic, number, 0) for number in range(partitions)])
    found: list[Stored] = []
    ends: dict[int, int] = {}
    deadline = time.monotonic() + _READ_S
    try:
        while len(ends) < partitions:
            assert time.monotonic() < deadline, f"{topic} cannot be read to its end"
            for message in consumer.consume(1_000, 0.2):
                partition, offset = message.partition(), message.offset()
                assert partition is not None
                assert offset is not None
                error = message.error()
                if error is None:
                    found.append(Stored(partition, offset, message.key(), message.value()))
                elif error.code() == KafkaError._PARTITION_EOF:
                    ends[partition] = offset
    finally:
        consumer.close()
    return found, ends
