"""A Kafka broker of a test's own, which may be killed and may lose what it acknowledged."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from pydantic import SecretStr

from ledger.settings import Settings
from ledger.stack import down, up
from ledger.stack.state import StackDirectory

_BATCH_HEAD = struct.Struct(">qi")
"""How a record batch begins: its first offset, and how many bytes follow."""


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


@contextmanager
def own_broker(directory: Path) -> Iterator[OwnBroker]:
    """Run a broker; it is stopped at the end."""
    broker = OwnBroker(directory)
    broker.start()
    try:
        yield broker
    finally:
        broker.stop()
