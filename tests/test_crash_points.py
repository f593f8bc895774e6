"""A worker that dies at any point between a record's arrival and its snapshot ends exact."""

from __future__ import annotations

import signal
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from ledger.settings import Settings
from tests.chaos.events import Sent, Traffic
from tests.chaos.fleet import Worker
from tests.chaos.verify import verify
from tests.crashing_worker import POINTS
from tests.support import cluster_of, eventually, published_at_end, raw_producer

pytestmark = pytest.mark.integration

_PARTITIONS: Final = 2
_EVENTS: Final = 1500
_REACHED_S: Final = 60.0
_AT_ONCE: Final = 8  # what is waited for is mostly the group's session


class Crash(NamedTuple):
    """Where a worker dies, at which arrival there, and whether its local state dies with it."""

    point: str
    arrival: int = 1
    wipe: bool = False


CHAINS: Final = (
    (Crash("receive", 3), Crash("after apply"), Crash("after freeze")),
    (Crash("after freeze", 2), Crash("before begin"), Crash("before begin")),
    (Crash("after begin", 2), Crash("after produce", 150), Crash("before commit")),
    (Crash("before commit", 2), Crash("after produce", 5), Crash("after commit")),
    (Crash("after commit"), Crash("after commit"), Crash("before write")),
    (Crash("before write", 2), Crash("after write", 2), Crash("before offsets")),
    (Crash("after offsets", 2), Crash("before acquire", 2), Crash("after acquire")),
    (Crash("before snapshot", 2), Crash("before snapshot's name"), Crash("after commit", 3)),
    (Crash("after snapshot's name", 2, wipe=True), Crash("while restoring"), Crash("receive")),
    (
        Crash("after snapshot's name", 2, wipe=True),
        Crash("before restored"),
        Crash("after restored"),
    ),
)
"""Each is one ledger's: a worker dies at the first point, the next one at the second, and so on."""


def test_every_point_is_in_a_chain() -> None:
    assert {crash.point for chain in CHAINS for crash in chain} == set(POINTS)


def test_a_worker_that_dies_at_any_point_leaves_nothing_to_be_mended(
    settings: Settings, tmp_path: Path
) -> None:
    with ThreadPoolExecutor(_AT_ONCE) as executor:
        chains = enumerate(CHAINS)
        running = [executor.submit(_die_along, c, settings, tmp_path / str(n)) for n, c in chains]
        trouble = [line for each in running for line in each.result()]
    assert trouble == []


def _die_along(chain: tuple[Crash, ...], settings: Settings, directory: Path) -> list[str]:
    """Let workers die one after the other; return what is not exact in the end."""
    directory.mkdir()
    own = settings.model_copy(
        update={
            "topic_prefix": f"c{uuid.uuid4().hex[:8]}-",
            "snapshots": directory / "snapshots",
            "partitions": _PARTITIONS,
            "snapshot_interval_s": 0.2,
            "snapshots_kept": 1_000,
        }
    )
    cluster_of(own).ensure_topics()
    traffic = Traffic(str(chain), _EVENTS, _PARTITIONS)
    worker = Worker("worker", own, directory)
    told = " -> ".join(crash.point for crash in chain)
    try:
        for crash in chain:
            _produce(own, traffic.take(_EVENTS // (len(chain) + 1)))
            worker.start("tests.crashing_worker", crash.point, str(crash.arrival))
            if not _has_died(worker, own, traffic):
                return [f"{told}: '{crash.point}' was not reached"]
            if crash.wipe:
                worker.wipe()
        _produce(own, traffic.take(_EVENTS // (len(chain) + 1)))
        worker.start()
        eventually(lambda: published_at_end(own))
        worker.terminate()
    except AssertionError as error:
        return [f"{told}: {error}"]
    finally:
        worker.kill()
    verdict = verify(own, [worker])
    return [f"{told}: {difference}" for difference in verdict.differences]


def _has_died(worker: Worker, settings: Settings, traffic: Traffic) -> bool:
    """Feed a worker until it kills itself; return whether it did."""
    process = worker.process
    assert process is not None
    deadline = time.monotonic() + _REACHED_S
    while process.poll() is None and time.monotonic() < deadline:
        _produce(settings, traffic.take(10))
        time.sleep(0.2)
    with suppress(Exception):
        worker.took_leave()
    return process.returncode == -signal.SIGKILL


def _produce(settings: Settings, records: list[Sent]) -> None:
    producer = raw_producer(settings)
    for record in records:
        producer.produce(
            settings.topic(record.topic),
            record.value,
            record.key,
            partition=record.partition,
            headers=record.headers,
        )
    assert producer.flush(30) == 0
