"""What the benchmarks share: a stack of their own, ledgers in it, and where results are kept."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

from ledger.kafka import BALANCES, Cluster
from ledger.settings import Settings
from ledger.stack import down, up
from ledger.stack import kafka as kafka_server
from ledger.stack.state import StackDirectory

PARTITIONS = 4

RESULTS = Path(__file__).parent / "results.jsonl"


def _commit() -> str | None:
    """Return what is measured: the commit, with `-dirty` where what is not bench/ differs."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(RESULTS.parent.parent), *words]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        return ran.stdout.strip()

    commit = git("rev-parse", "--short", "HEAD")
    is_dirty = git("status", "--porcelain", "--", ".", ":!bench")
    return f"{commit}{'-dirty' * bool(is_dirty)}" or None


_MACHINE = {
    "at": datetime.now(UTC).isoformat(timespec="seconds"),
    "cores": os.cpu_count(),
    "python": platform.python_version(),
    "commit": _commit(),
}


@contextmanager
def stack(together_ms: int = 0) -> Iterator[tuple[str, Path]]:
    """Yield the address of a broker, LEDGER_KAFKA's or one of our own, and a directory.

    Args:
        together_ms: how long a broker of our own waits for further members of a new group, so that
            workers that start together share the partitions from the first record on.
    """
    waiting = f"group.initial.rebalance.delay.ms={together_ms}\n"
    properties = kafka_server.server_properties
    with (
        tempfile.TemporaryDirectory(prefix="ledger-bench-") as name,
        patch.object(
            kafka_server, "server_properties", lambda *given: properties(*given) + waiting
        ),
    ):
        base = _stack_settings(Path(name))
        kafka = up(base, print).kafka
        try:
            yield kafka, Path(name)
        finally:
            down(base, print)


def _stack_settings(directory: Path) -> Settings:
    return Settings(
        state_dir=directory / "stack",
        kafka=os.environ.get("LEDGER_KAFKA"),
        amqp="amqp://unused",
        partitions=PARTITIONS,
    )


def broker_pid(directory: Path) -> int | None:
    """Return the pid of the broker of `stack`; of a named one it is KAFKA_PID's, or unknown."""
    record = StackDirectory(_stack_settings(directory)).read().kafka
    if record is not None and record.process is not None:
        return record.process.pid
    named = os.environ.get("KAFKA_PID")
    return int(named) if named else None


def ledger_in(kafka: str, prefix: str, state_dir: Path) -> Cluster:
    """Return a ledger of its own on a broker, by its topics' prefix; its topics exist."""
    settings = Settings(
        kafka=kafka, topic_prefix=prefix, partitions=PARTITIONS, state_dir=state_dir
    )
    cluster = Cluster(kafka, settings)
    cluster.ensure_topics()
    return cluster


def forget_tables(cluster: Cluster) -> None:
    """Delete `balances`, so that a new worker publishes from the start again."""
    for future in cluster.admin.delete_topics([cluster.settings.topic(BALANCES)]).values():
        future.result()
    while cluster.topics([BALANCES]):
        time.sleep(0.1)
    cluster.ensure_topics()


def forget_ledger(cluster: Cluster) -> None:
    """Delete all topics of a ledger, so that the disk has room for the next."""
    prefix = cluster.settings.topic_prefix
    assert prefix, "without a prefix these are everybody's topics"
    names = [name for name in cluster.admin.list_topics(timeout=10).topics if prefix in name]
    for future in cluster.admin.delete_topics(names).values() if names else ():
        future.result()


def environment(settings: Settings) -> dict[str, str]:
    """Return the environment of a process of a ledger, without what LEDGER_… say here."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("LEDGER_")}
    return env | {
        "LEDGER_KAFKA": str(settings.kafka),
        "LEDGER_TOPIC_PREFIX": settings.topic_prefix,
        "LEDGER_PARTITIONS": str(PARTITIONS),
        "LEDGER_STATE_DIR": str(settings.state_dir),
    }


def record(result: dict[str, Any]) -> None:
    """Append a result, with the machine's core count, to results.jsonl."""
    with RESULTS.open("a") as file:
        file.write(json.dumps(_MACHINE | result) + "\n")
