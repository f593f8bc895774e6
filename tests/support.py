"""What several integration tests need: publishing, worker processes, waiting for a condition."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import chain
from pathlib import Path
from typing import Final, TypeVar

from confluent_kafka import Producer
from pydantic import SecretStr

from ledger.agents.publisher import Outgoing, Rows
from ledger.events import INPUT_TOPICS
from ledger.intake import parse
from ledger.kafka import Cluster
from ledger.published import PublishedPartition, read_published
from ledger.settings import Settings
from ledger.stack import Endpoints

DATA: Final = Path(__file__).parent.parent / "data"
BITSTAMP: Final = [DATA / "bitstamp" / f"{topic}.jsonl" for topic in INPUT_TOPICS]

_T = TypeVar("_T")


def settings_on(stack: Endpoints, directory: Path, partitions: int) -> Settings:
    """Return the settings of a ledger of its own on a running stack, its files in a directory."""
    return Settings(
        kafka=stack.kafka,
        amqp=SecretStr(stack.amqp),
        amqp_management=stack.management,
        topic_prefix=f"t{uuid.uuid4().hex[:8]}-",
        state_dir=directory / "state",
        partitions=partitions,
        flush_interval_s=0.1,
    )


def cluster_of(settings: Settings) -> Cluster:
    """Return the cluster that a test's settings name."""
    assert settings.kafka is not None
    return Cluster(settings.kafka, settings)


def publish(settings: Settings, lines: Iterable[bytes]) -> int:
    """Publish events given as JSON lines; return how many."""
    cluster = cluster_of(settings)
    cluster.ensure_topics()
    producer = raw_producer(settings)
    sent = 0
    for line in lines:
        topic, event = parse(line)
        producer.produce(settings.topic(topic), line.strip(), event.account.encode())
        producer.poll(0)
        sent += 1
    assert producer.flush(30) == 0
    return sent


def raw_producer(settings: Settings) -> Producer:
    """Return a producer that partitions as the contract asks."""
    return Producer(
        {
            "bootstrap.servers": settings.kafka,
            "partitioner": "murmur2_random",
            "enable.idempotence": True,
            "linger.ms": 5,
            "log_level": 2,
        }
    )


def lines_of(paths: Iterable[Path]) -> Iterator[bytes]:
    """Yield the lines of several files."""
    for path in paths:
        with path.open("rb") as file:
            yield from file


def environment(settings: Settings) -> dict[str, str]:
    """Return the environment in which a process has these settings."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("LEDGER_")}
    for name, value in settings.model_dump().items():
        if value is not None:
            secret = getattr(value, "get_secret_value", None)
            env[f"LEDGER_{name.upper()}"] = str(secret() if secret else value)
    return env


@contextmanager
def running(settings: Settings, log: Path, *module: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a module's command as a real process; it is killed at the end if it still runs."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *module],
            env=environment(settings),
            stdout=output,
            stderr=output,
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def worker(settings: Settings, log: Path) -> AbstractContextManager[subprocess.Popen[bytes]]:
    """Run a real worker process."""
    return running(settings, log, "ledger", "worker")


def command(settings: Settings, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a module's command to its end, without a terminal, and return what it said."""
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        env=environment(settings),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def eventually(condition: Callable[[], _T | None], timeout_s: float = 60.0) -> _T:
    """Return the condition's first true value; fail when the deadline passes."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not true within {timeout_s} s: {condition}")
        time.sleep(0.05)


def published_at_end(settings: Settings) -> dict[int, PublishedPartition] | None:
    """Return the published tables once they have everything that is in the topics."""
    cluster = cluster_of(settings)
    partitions = range(cluster.origin().partitions)
    ends = cluster.ends([(topic, number) for topic in INPUT_TOPICS for number in partitions])
    published = read_published(cluster, partitions)
    for (topic, number), end in ends.items():
        mark = published[number].mark
        if mark is None or mark.watermark[topic] < end:
            return None
    return published


def singly(records: Iterable[Outgoing | Rows]) -> Iterator[Outgoing]:
    """Yield what is published as one record after the other."""
    for record in records:
        if isinstance(record, Outgoing):
            yield record
        else:
            for message in chain.from_iterable(record.lists()):
                yield Outgoing(record.topic, record.partition, message["key"], message["value"])
