"""Servers of a run's own, which may be killed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from ledger.settings import Settings
from ledger.stack import down, up
from ledger.stack.state import StackDirectory
from tests.broker import OwnBroker


class OwnRabbit:
    """One RabbitMQ with its data in a directory.

    Attributes:
        url: the AMQP URL with its password.
        management: URL of the management page.
    """

    def __init__(self, directory: Path) -> None:
        # Kafka is named, so that it is not started.
        self._settings = Settings(state_dir=directory, kafka="127.0.0.1:9")
        self.url = ""
        self.management = ""

    @property
    def port(self) -> int:
        """The AMQP port."""
        port = urlsplit(self.url).port
        assert port is not None
        return port

    def url_through(self, port: int) -> str:
        """Return the AMQP URL with another port, which leads here too."""
        return self.url.replace(f":{self.port}/", f":{port}/")

    def start(self) -> None:
        """Start the server, on the same port as before, and wait until it serves."""
        found = up(self._settings, lambda _: None)
        assert found.management is not None
        self.url, self.management = found.amqp, found.management

    def stop(self) -> None:
        """Stop the server in an orderly way."""
        down(self._settings, lambda _: None)

    def kill(self) -> None:
        """Kill the server's Erlang machine as a crash does; returns when it has gone."""
        record = StackDirectory(self._settings).read().rabbitmq
        assert record is not None
        assert record.process is not None
        process = psutil.Process(record.process.pid)
        process.kill()
        process.wait(30)


@dataclass(frozen=True)
class Servers:
    """Kafka and RabbitMQ that are a run's to kill."""

    kafka: OwnBroker
    rabbit: OwnRabbit


@contextmanager
def own_servers(directory: Path) -> Iterator[Servers]:
    """Run both servers, for one seed after the other; they are stopped at the end."""
    servers = Servers(OwnBroker(directory / "kafka"), OwnRabbit(directory / "rabbit"))
    try:
        _at_once(servers.kafka.start, servers.rabbit.start)
        yield servers
    finally:
        _at_once(servers.kafka.stop, servers.rabbit.stop)


def _at_once(*steps: Callable[[], None]) -> None:
    with ThreadPoolExecutor() as pool:
        for step in [pool.submit(step) for step in steps]:
            step.result()
