"""Supervised workers on the real broker: killed, stopped, orphaned, and unable to start."""

from __future__ import annotations

import random
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from confluent_kafka import ConsumerGroupTopicPartitions, TopicPartition

from ledger import supervisor as module
from ledger.events import INPUT_TOPICS
from ledger.kafka import Slot
from ledger.settings import Settings
from ledger.stack.process import Process, start_moment
from ledger.supervisor import pause_s
from tests.support import (
    BITSTAMP,
    cluster_of,
    eventually,
    lines_of,
    publish,
    published_at_end,
    running,
    worker,
)
from tests.test_worker import assert_published_equals_reference, reference_of

WORKERS = 2


@contextmanager
def supervisor(settings: Settings, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a supervisor of two workers. None of its workers stays."""
    children: list[Process] = []
    with running(settings, log, "ledger", "worker", "--supervise", str(WORKERS)) as process:
        yield process
        if process.poll() is None:
            children = children_of(process.pid)
    eventually(lambda: all_gone(children), 30)


def children_of(pid: int) -> list[Process]:
    found = []
    for child in psutil.Process(pid).children():
        started = start_moment(child.pid)
        if started is not None:
            found.append(Process(child.pid, started))
    return found


def all_gone(processes: list[Process]) -> bool:
    return not any(process.is_running() for process in processes)


def pauses_in(log: Path) -> list[str]:
    return re.findall(r"exit code 2; another is started in (\S+) s", log.read_text())


def group_of(settings: Settings) -> str:
    return f"{settings.topic_prefix}ledger"


def two_members(settings: Settings) -> bool:
    return len(cluster_of(settings).members(group_of(settings))) == WORKERS


def committed(settings: Settings) -> dict[Slot, int]:
    """Return the group's committed offsets, as Kafka's own tools see them; nothing counts as 0."""
    cluster = cluster_of(settings)
    group = group_of(settings)
    futures = cluster.admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(group)])
    found = {
        (where.topic, where.partition): where for where in futures[group].result().topic_partitions
    }
    slots = [(topic, n) for topic in INPUT_TOPICS for n in range(cluster.origin().partitions)]
    offsets = {}
    for topic, partition in slots:
        where = found.get((settings.topic(topic), partition))
        offsets[topic, partition] = max(0, where.offset) if where is not None else 0
    return offsets


def test_pauses_grow_and_end_at_half_a_minute() -> None:
    assert [pause_s(failures) for failures in (1, 2, 3, 7, 8, 10_000)] == [0.5, 1, 2, 30, 30, 30]


@pytest.mark.integration
def test_killed_workers_are_replaced_and_leave_the_group(
    settings: Settings, tmp_path: Path
) -> None:
    rng = random.Random(3)
    lines = list(lines_of(BITSTAMP))
    rng.shuffle(lines)
    log = tmp_path / "supervisor.log"
    killed: list[int] = []
    with supervisor(settings, log) as process:
        publish(settings, lines[:2000])
        eventually(lambda: published_at_end(settings))
        for part in range(3):
            eventually(lambda: two_members(settings))
            publish(settings, lines[2000 + part * 2000 : 4000 + part * 2000])
            victim = rng.choice(children_of(process.pid))
            victim.send(signal.SIGKILL)
            killed.append(victim.pid)
            eventually(lambda: f"(pid {killed[-1]}) was removed from the group" in log.read_text())
            eventually(lambda: len(children_of(process.pid)) == WORKERS)
        publish(settings, lines[8000:])
        published = eventually(lambda: published_at_end(settings), 90)
        children = children_of(process.pid)
        process.terminate()
        assert process.wait(30) == 0
        assert all_gone(children)
    assert_published_equals_reference(settings, published, reference_of(settings))
    text = log.read_text()
    assert re.findall(r"\(pid (\d+)\) ended with SIGKILL", text) == [*map(str, killed)]
    assert re.findall(r"\(pid (\d+)\) was removed", text) == [*map(str, killed)]


@pytest.mark.integration
def test_workers_end_by_themselves_when_their_supervisor_is_killed(
    settings: Settings, tmp_path: Path
) -> None:
    log = tmp_path / "supervisor.log"
    publish(settings, list(lines_of(BITSTAMP))[:500])
    with supervisor(settings, log) as process:
        eventually(lambda: published_at_end(settings))
        eventually(lambda: two_members(settings))
        children = children_of(process.pid)
        assert len(children) == WORKERS
        process.kill()
        eventually(lambda: all_gone(children), 30)
    assert log.read_text().count("the supervisor has gone: stopping") == WORKERS
    assert log.read_text().count("INFO stopped") == WORKERS  # and nothing was lost or left behind
    eventually(lambda: not cluster_of(settings).members(group_of(settings)))


def test_workers_that_cannot_start_are_tried_again_ever_more_rarely(tmp_path: Path) -> None:
    state = tmp_path / "a file, no directory"
    state.write_text("")
    settings = Settings(kafka="127.0.0.1:1", state_dir=state)
    log = tmp_path / "supervisor.log"
    with running(settings, log, "ledger", "worker", "--supervise", "1") as process:
        eventually(lambda: len(pauses_in(log)) > 3)
        assert pauses_in(log)[:4] == ["0.5", "1.0", "2.0", "4.0"]
        asked = time.monotonic()
        process.terminate()
        assert process.wait(30) == 0
        assert time.monotonic() - asked < 10  # the pauses, and waiting for Kafka, are cut short
    assert "cannot be used" in log.read_text()


@pytest.mark.integration
def test_a_stopped_worker_hands_its_partitions_over_and_no_lag_is_left(
    settings: Settings, tmp_path: Path
) -> None:
    lines = list(lines_of(BITSTAMP))
    log = tmp_path / "1.log"
    with worker(settings, log) as first, worker(settings, tmp_path / "2.log") as second:
        publish(settings, lines[:1000])
        eventually(lambda: published_at_end(settings))
        eventually(lambda: two_members(settings))
        publish(settings, lines[1000:6000])
        first.terminate()
        publish(settings, lines[6000:])
        assert first.wait(5) == 0
        assert "INFO stopped" in log.read_text()
        published = eventually(lambda: published_at_end(settings))
        ends = cluster_of(settings).ends(committed(settings))
        eventually(lambda: committed(settings) == ends)
        second.terminate()
        assert second.wait(5) == 0
    assert committed(settings) == ends
    assert_published_equals_reference(settings, published, reference_of(settings))


@pytest.mark.integration
def test_workers_that_stop_at_the_same_time_all_leave_the_group(
    settings: Settings, tmp_path: Path
) -> None:
    """One that is being rebalanced while it stops has to leave, too."""
    publish(settings, list(lines_of(BITSTAMP))[:500])
    for turn in range(3):
        logs = tmp_path / f"{turn}-1.log", tmp_path / f"{turn}-2.log"
        with worker(settings, logs[0]) as first, worker(settings, logs[1]) as second:
            eventually(lambda: two_members(settings))
            eventually(lambda: published_at_end(settings))
            first.terminate()
            time.sleep(0.3 * turn)
            second.terminate()
            assert (first.wait(5), second.wait(5)) == (0, 0)
        assert cluster_of(settings).members(group_of(settings)) == []


@pytest.mark.integration
def test_offsets_that_were_not_committed_are_committed_without_new_records(
    settings: Settings, tmp_path: Path
) -> None:
    """As after a kill between store and commit."""
    publish(settings, list(lines_of(BITSTAMP))[:500])
    ends = cluster_of(settings).ends(committed(settings))
    with worker(settings, tmp_path / "1.log") as process:
        eventually(lambda: committed(settings) == ends)
        process.terminate()
        assert process.wait(5) == 0
    admin = cluster_of(settings).admin
    admin.alter_consumer_group_offsets(
        [
            ConsumerGroupTopicPartitions(
                group_of(settings),
                [TopicPartition(settings.topic(topic), number, 0) for topic, number in ends],
            )
        ]
    )[group_of(settings)].result()
    assert committed(settings) != ends
    with worker(settings, tmp_path / "2.log") as process:
        eventually(lambda: committed(settings) == ends)
        process.terminate()
        assert process.wait(5) == 0


def test_a_worker_that_must_end_ends_also_when_its_last_words_cannot_be_written(
    tmp_path: Path,
) -> None:
    state = tmp_path / "a file, no directory"
    state.write_text("")
    settings = Settings(kafka="127.0.0.1:1", state_dir=state)
    with running(settings, Path("/dev/full"), "ledger", "worker") as process:
        assert process.wait(60) == 2


def test_a_process_that_cannot_be_made_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    starts = iter([BlockingIOError("no more processes"), MemoryError()])

    def start(*_: Any) -> None:
        raise next(starts)

    monkeypatch.setattr(module._Supervisor, "_start", start)
    monkeypatch.setattr(module, "FIRST_PAUSE_S", 0.01)
    with pytest.raises(MemoryError):  # the second one: it was tried again
        module.supervise(Settings(kafka="127.0.0.1:1"), 1)
    assert "worker 0 cannot be started: no more processes" in caplog.text
