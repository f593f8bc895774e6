"""A Kafka broker of a test's own, which may be killed and may lose what it acknowledged."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from aiokafka.record.util import calc_crc32c
from pydantic import SecretStr

from ledger.settings import Settings
from ledger.stack import down, up
from ledger.stack.state import StackDirectory

_BATCH_HEAD = struct.Struct(">qi")
"""How a record batch begins: its first offset, and how many bytes follow."""

_CRC_AT = 17
_CHECKED_FROM = 21
"""Where a batch has its CRC-32C, and from where on that is computed (Kafka's record format 2)."""


class OwnBroker:
    """One broker with its data in a directory."""

    def __init__(self, directory: Path) -> None:
        # RabbitMQ is named, so that it is not started.
        self._settings = Settings(state_dir=directory, amqp=SecretStr("amqp://127.0.0.1:9"))
        self.bootstrap = ""

    def start(self) -> None:
        """Start the broker, on the same port as before, and wait until it serves."""
        self.bootstrap = up(self._settings, lambda _: None).kafka

    def stop(self) -> None:
        """Stop the broker in an orderly way."""
        down(self._settings, lambda _: None)

    def kill(self) -> None:
        """Kill the broker as a crash does; returns when it has gone."""
        process = self.process()
        process.kill()
        process.wait(30)

    def process(self) -> psutil.Process:
        """Return the broker's process."""
        record = StackDirectory(self._settings).read().kafka
        assert record is not None
        assert record.process is not None
        return psutil.Process(record.process.pid)

    def lose(self, topic: str, partition: int, offset: int) -> None:
        """Make a killed broker forget the batches of a partition from the one with `offset` on."""
        (log,) = self._settings.state_dir.glob(f"stack/**/{topic}-{partition}/{0:020d}.log")
        data = log.read_bytes()
        place = 0
        while place < len(data):
            first, length = _BATCH_HEAD.unpack_from(data, place)
            after = place + _BATCH_HEAD.size + length
            following = _BATCH_HEAD.unpack_from(data, after)[0] if after < len(data) else None
            if first <= offset and (following is None or offset < following):
                break
            place = after
        assert place < len(data), f"{log} has no offset {offset}"
        with log.open("rb+") as file:
            file.truncate(place)
        for index in log.parent.glob(f"{log.stem}.*index"):
            index.unlink()

    def replace(
        self, topic: str, partition: int, old: bytes, new: bytes, *, with_crc: bool
    ) -> None:
        """Change bytes of a partition of a stopped broker, in the one batch that has them.

        Args:
            topic: with its prefix.
            partition: of it.
            old: the bytes; the batch is not compressed.
            new: as many others.
            with_crc: whether the batch gets the check sum that belongs to it then.
        """
        assert len(old) == len(new)
        log = self._segment(topic, partition)
        data = bytearray(log.read_bytes())
        ((start, end),) = [
            (start, end) for _, start, end in _batches(data) if old in data[start:end]
        ]
        place = data.index(old, start)
        data[place : place + len(old)] = new
        if with_crc:
            crc = calc_crc32c(bytes(data[start + _CHECKED_FROM : end]))
            struct.pack_into(">I", data, start + _CRC_AT, crc)
        log.write_bytes(data)

    def remove(self, topic: str, partition: int, offset: int) -> None:
        """Take the batch that begins at an offset out of a partition of a stopped broker."""
        log = self._segment(topic, partition)
        data = log.read_bytes()
        ((start, end),) = [(start, end) for first, start, end in _batches(data) if first == offset]
        log.write_bytes(data[:start] + data[end:])
        for index in log.parent.glob(f"{log.stem}.*index"):
            index.unlink()

    def _segment(self, topic: str, partition: int) -> Path:
        place = f"stack/**/{topic}-{partition}/{0:020d}.log"
        (log,) = self._settings.state_dir.glob(place)
        return log

    def settings(self, state_dir: Path, **changes: Any) -> Settings:
        """Return settings of a ledger on this broker."""
        given: dict[str, Any] = {
            "kafka": self.bootstrap,
            "state_dir": state_dir,
            "partitions": 2,
            "flush_interval_s": 0.1,
            **changes,
        }
        return Settings(**given)


def _batches(data: bytes | bytearray) -> Iterator[tuple[int, int, int]]:
    """Yield each batch's first offset, and where it begins and ends in a segment."""
    start = 0
    while start < len(data):
        first, length = _BATCH_HEAD.unpack_from(data, start)
        end = start + _BATCH_HEAD.size + length
        yield first, start, end
        start = end


@contextmanager
def own_broker(directory: Path) -> Iterator[OwnBroker]:
    """Run a broker; it is stopped at the end."""
    broker = OwnBroker(directory)
    broker.start()
    try:
        yield broker
    finally:
        broker.stop()
