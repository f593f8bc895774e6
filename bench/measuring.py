"""Running workers, replays and other commands, and what they take: time, CPU, memory, writes.

- *CPU* is of the processes from their start, the broker's from then to the end of the work.
- *Peak memory* is the kernel's own peak of each process (VmHWM), added up: a little more than what
  they ever had together.
- *Written* is what the kernel says processes had it write to storage (`write_bytes`, as pages
  become dirty): state, its logs and compaction, snapshots. The broker's is what it wrote of topics.

It needs Linux (`/proc`).
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
from common import PARTITIONS, environment
from marks import Marks, await_marks

from ledger.kafka import Cluster, Slot

Result = dict[str, Any]

MIB = 1 << 20

_LOOK_S = 0.1
_STOP_S = 60.0
_REST_S = 5.0
_AT_REST = 0.1  # of a core
_PEAK = re.compile(r"^VmHWM:\s*(\d+) kB", re.M)
_FOLDING = re.compile(r"^(\S+ \S+) INFO folding partitions \d", re.M)
_LOG_TIME = "%Y-%m-%d %H:%M:%S,%f"


@dataclass
class Usage:
    """What processes and their children took, as last seen, by pid."""

    cpu_s: dict[int, float] = field(default_factory=dict)
    peak: dict[int, int] = field(default_factory=dict)
    written: dict[int, int] = field(default_factory=dict)

    def look(self, *pids: int) -> None:
        """Look at processes and all their children; those that have ended keep what was seen."""
        for pid in pids:
            try:
                family = [root := psutil.Process(pid), *root.children(recursive=True)]
            except psutil.NoSuchProcess:
                continue
            for process in family:
                self._look_at(process)

    def _look_at(self, process: psutil.Process) -> None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
            peak = _PEAK.search(status)  # what has ended has none
            if peak is not None:
                self.peak[process.pid] = int(peak[1]) * 1024
            self.cpu_s[process.pid] = sum(process.cpu_times()[:2])
            self.written[process.pid] = process.io_counters().write_bytes
        except (OSError, psutil.Error):
            return

    def as_result(self) -> Result:
        """Return the sums."""
        return {
            "cpu_s": round(sum(self.cpu_s.values()), 2),
            "peak_rss_mib": round(sum(self.peak.values()) / MIB),
            "written_mib": round(sum(self.written.values()) / MIB, 1),
        }


class Broker:
    """What the broker took since this was made; nothing where its pid is not known."""

    def __init__(self, pid: int | None) -> None:
        self.pid = pid
        self._before = self._look()

    def _look(self) -> tuple[float, int]:
        if self.pid is None:
            return 0.0, 0
        process = psutil.Process(self.pid)
        return sum(process.cpu_times()[:2]), process.io_counters().write_bytes

    def as_result(self) -> Result:
        """Return the differences."""
        if self.pid is None:
            return {}
        cpu_s, written = self._look()
        return {
            "broker_cpu_s": round(cpu_s - self._before[0], 2),
            "broker_written_mib": round((written - self._before[1]) / MIB, 1),
        }


def rate(events: int, seconds: float) -> Result:
    """Return what every result begins with."""
    return {"events": events, "seconds": round(seconds, 3), "rate": round(events / seconds)}


def run(
    command: Sequence[str], env: Mapping[str, str], log: Path, broker: int | None
) -> tuple[str, Result]:
    """Run a command to its end; return what it printed and what it took.

    Raises:
        AssertionError: it failed; with what it said.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    usage, before = Usage(), Broker(broker)
    errors = log.with_suffix(".err")
    with log.open("wb") as output, errors.open("wb") as complaints:
        process = subprocess.Popen(command, env=env, stdout=output, stderr=complaints)
        try:
            while True:
                usage.look(process.pid)
                # It tells CPU and writes to the last, of children that have ended, too; not the
                # peak, in which it counts what we had when we started the process.
                pid, status, rusage = os.wait4(process.pid, os.WNOHANG)
                if pid:
                    break
                time.sleep(_LOOK_S)
            process.returncode = os.waitstatus_to_exitcode(status)
        finally:
            if process.returncode is None:
                process.kill()
                process.wait()
    assert process.returncode == 0, f"{command}: {process.returncode}\n{errors.read_text()}"
    took = usage.as_result() | before.as_result()
    took["cpu_s"] = round(rusage.ru_utime + rusage.ru_stime, 2)
    took["written_mib"] = round(rusage.ru_oublock * 512 / MIB, 1)
    return log.read_text(), took


def size_mib(directory: Path) -> float:
    """Return the size of a directory's files."""
    total = 0
    for parent, _, names in os.walk(directory):
        for name in names:
            try:
                total += os.stat(os.path.join(parent, name)).st_size
            except FileNotFoundError:  # compacted away meanwhile
                continue
    return round(total / MIB, 1)


# -- the work


def raw_read(
    cluster: Cluster, topics: Sequence[str], events: int, checked: bool, broker: int | None
) -> Result:
    """Read the topics with librdkafka and do nothing; `checked`: compare batches' check sums."""
    script = str(Path(__file__).with_name("raw_read.py"))
    names = [cluster.settings.topic(topic) for topic in topics]
    numbers = [str(PARTITIONS), str(events), str(int(checked))]
    command = [sys.executable, script, cluster.bootstrap, *numbers, *names]
    log = cluster.settings.state_dir / "raw.log"
    printed, took = run(command, dict(os.environ), log, broker)
    return rate(events, float(printed)) | took


@dataclass(frozen=True)
class Folded:
    """What workers did: the result, and the marks in the end."""

    result: Result
    marks: Marks


@contextmanager
def worker(cluster: Cluster, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run one worker, as `ledger worker` does; yield its process."""
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-c", "from ledger.app import *; run_worker(load_settings())"]
    env = environment(cluster.settings)
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=env, stdout=output, stderr=output)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise


def await_folding(process: subprocess.Popen[bytes], log: Path) -> None:
    """Return once a worker has partitions.

    Raises:
        AssertionError: it ended.
    """
    while not _FOLDING.search(log.read_text()):
        assert process.poll() is None, log.read_text()
        time.sleep(_LOOK_S)


def await_rest(process: subprocess.Popen[bytes]) -> None:
    """Return once a process does nothing: it has merged files, and written snapshots."""
    seen = psutil.Process(process.pid)
    while seen.cpu_percent(_REST_S) > _AT_REST * 100:
        pass


def fold(
    cluster: Cluster,
    ends: Mapping[Slot, int],
    events: int,
    workers: int,
    broker: int | None,
    *,
    rests: bool = False,
) -> Folded:
    """Run workers until the last record is applied and visible in `balances`.

    The time is from the first log line `folding partitions` to the last mark being visible.

    Args:
        cluster: the ledger; its state directory is the workers'.
        ends: where the input topics end.
        events: how many of the records are folded now.
        workers: how many processes.
        broker: its pid, if known.
        rests: whether workers are stopped only when they have nothing left to do.

    Raises:
        AssertionError: a worker ended.
    """
    logs = [cluster.settings.state_dir / f"worker-{number}.log" for number in range(workers)]
    usage, before = Usage(), Broker(broker)
    began, own_cpu_s = time.time(), time.process_time()
    with ExitStack() as running:
        processes = [running.enter_context(worker(cluster, log)) for log in logs]

        def check() -> None:
            for process, log in zip(processes, logs, strict=True):
                assert process.poll() is None, log.read_text()

        finished, marks = await_marks(cluster, ends, PARTITIONS, check)
        usage.look(*(process.pid for process in processes))
        took = usage.as_result() | before.as_result()
        took["observer_cpu_s"] = round(time.process_time() - own_cpu_s, 2)
        for process in processes if rests else ():
            await_rest(process)
        for process in processes:  # together, or those that stay are given what others leave
            process.terminate()
    started = min(
        datetime.strptime(at, _LOG_TIME).timestamp()  # noqa: DTZ007 - a log has local times
        for log in logs
        for at in _FOLDING.findall(log.read_text())[:1]
    )
    took |= {
        "processes": workers,
        "ready_s": round(started - began, 3),
        "state_mib": size_mib(cluster.settings.worker_dir),
    }
    return Folded(rate(events, finished - started) | took, marks)


def replay(
    cluster: Cluster, events: int, threads: int, *accounts: str, broker: int | None = None
) -> tuple[dict[str, Any], Result]:
    """Run `replay --base genesis` on whole topics; return its document and the result.

    The time is the one that it says itself: from the first record to the last digest.

    Args:
        cluster: the ledger.
        events: how many records there are.
        threads: how many it may use.
        accounts: whose balances are to be in the document; default: everybody's.
        broker: its pid, if known.
    """
    command = [sys.executable, "-m", "replay", "--from-offset", "earliest", "--base", "genesis"]
    command += ["--threads", str(threads), "--json"]
    for account in accounts:
        command += ["--account", account]
    log = cluster.settings.state_dir / "replay.json"
    printed, took = run(command, environment(cluster.settings), log, broker)
    document = json.loads(printed)
    return document, rate(events, float(document["seconds"])) | took | {"threads": threads}
