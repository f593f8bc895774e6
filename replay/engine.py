"""Replays partitions of a cluster's topics beside the running system, in one process or several."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import queue
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from multiprocessing import reduction
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import IO, Any, Final

from ledger.errors import LedgerError, MissingRecords, StateError
from ledger.events import INPUT_TOPICS
from ledger.kafka import Cluster
from ledger.objects import StorageError
from ledger.positions import Watermarks
from ledger.projections.partition import Origin, Partition
from ledger.rebuild import Base, Rebuilder, Rebuilt, past
from ledger.settings import Settings
from ledger.snapshots import SnapshotFile, Snapshots
from replay.request import Span
from replay.results import PartitionReplay, Replay
from replay.state import StateFiles, claim_directory, temporary_states
from replay.whatif import WhatIf

Warn = Callable[[str], None]
Progress = Callable[[int], None]

OFFSETS_WORTH_A_PROCESS: Final = 150_000
"""Fewer are read sooner than another process has started."""
OFFSETS_IN_MEMORY: Final = 2_000_000
"""The states of longer logs are kept in files, so that memory does not grow with them."""
_LOOK_S: Final = 0.1


@dataclass(frozen=True)
class Job:
    """What one process replays; it can be sent to one."""

    bootstrap: str
    settings: Settings
    origin: Origin
    span: Span
    base: Base
    directory: Path | None = None
    what_if: WhatIf | None = None

    def part(self, numbers: Iterable[int]) -> Job:
        """Return the same for some of the partitions."""
        span = Span(
            {number: self.span.start[number] for number in numbers},
            {number: self.span.end[number] for number in numbers},
        )
        return replace(self, span=span)

    def with_rules(self, what_if: WhatIf) -> Job:
        """Return the same under other rules, from the start of the span on."""
        return replace(self, what_if=what_if)


@dataclass
class _Done:
    """What a process says of the partitions that it replayed."""

    bases: dict[int, str] = field(default_factory=dict)
    read: dict[int, dict[str, int]] = field(default_factory=dict)
    matched: Counter[str] = field(default_factory=Counter)


def replay(
    job: Job,
    *,
    processes: int | None,
    directory: Path | None,
    warn: Warn,
    progress: Progress,
) -> Replay:
    """Return the states at the end of a span, and what its records changed; close it after use.

    Args:
        job: what to replay.
        processes: how many; None: as many as there are processors, if there is enough to read.
        directory: where states are kept and gone on with; None: in memory, or in files that are
            removed in the end.
        warn: told of a snapshot that cannot be used.
        progress: told how many offsets were read.

    Raises:
        MissingRecords: records that are needed are gone.
        InputError: the directory holds something else.
        StateInUse: another process uses the directory.
    """
    began = time.perf_counter()
    numbers = sorted(job.span.end)
    with contextlib.ExitStack() as stack:
        groups = _groups(job, processes)
        lock, files = None, None
        if directory is not None:
            lock = stack.enter_context(
                claim_directory(directory, job.origin, job.base, job.span.start, numbers)
            )
            files = stack.enter_context(contextlib.closing(StateFiles(directory)))
        elif len(groups) > 1 or _offsets(job) > OFFSETS_IN_MEMORY:
            files = stack.enter_context(temporary_states())
        if files is not None:
            job = replace(job, directory=files.directory)
        if len(groups) > 1:
            assert files is not None
            done = _in_processes([job.part(group) for group in groups], lock, warn, progress)
            rebuilt = _opened(job, files)
        else:
            rebuilt, done = _rebuild(job, files, warn, progress)
        if job.what_if is not None:
            job.what_if.matched.update(done.matched)
        seconds = time.perf_counter() - began
        parts = {number: _result(job, rebuilt, done, number) for number in numbers}
        return Replay(parts, seconds, stack.pop_all())


def _offsets(job: Job) -> int:
    return sum(sum(end.values()) for end in job.span.end.values())


def _groups(job: Job, processes: int | None) -> list[list[int]]:
    """Return which partitions each process replays, so that all have about as much to read."""
    sizes = {number: sum(end.values()) for number, end in job.span.end.items()}
    if processes is None:
        worth = _offsets(job) // OFFSETS_WORTH_A_PROCESS
        processes = min(len(os.sched_getaffinity(0)), worth)
    groups: list[list[int]] = [[] for _ in range(max(1, min(processes, len(sizes))))]
    for number in sorted(sizes, key=lambda number: (-sizes[number], number)):
        min(groups, key=lambda group: sum(sizes[n] for n in group)).append(number)
    return groups


def _rebuild(
    job: Job, files: StateFiles | None, warn: Warn, progress: Progress
) -> tuple[Rebuilt, _Done]:
    rebuilder = Rebuilder(
        Cluster(job.bootstrap, job.settings),
        job.origin,
        warn=warn,
        progress=progress,
        stores=files,
        rewrite=None if job.what_if is None else job.what_if.rewrite,
    )
    rebuilt = rebuilder.rebuild(job.span.start, job.span.end, job.base, remember=True)
    if files is not None:
        files.flush()
    done = _Done()
    for number in rebuilt.partitions:
        used = rebuilt.bases[number]
        if files is not None and number in rebuilt.continued:
            done.bases[number] = str(files.path(number))
        elif used is not None:
            done.bases[number] = used.path
        else:
            done.bases[number] = "empty" if job.base == "empty" else "genesis"
        done.read[number] = {
            topic: rebuilt.records_read.get((topic, number), 0) for topic in INPUT_TOPICS
        }
    return rebuilt, done


def _opened(job: Job, files: StateFiles) -> Rebuilt:
    """Return states that other processes have rebuilt."""
    rebuilt = Rebuilt()
    for number in sorted(job.span.end):
        store = rebuilt.stores[number] = files.store(number)
        rebuilt.partitions[number] = Partition(number, store, job.origin)
        if job.base != "empty" and any(job.span.start[number].values()):
            rebuilt.replaced[number] = files.replaced(number)
    return rebuilt


def _result(job: Job, rebuilt: Rebuilt, done: _Done, number: int) -> PartitionReplay:
    start = job.span.start[number]
    return PartitionReplay(
        base=done.bases[number],
        start=dict(start),
        before=past(rebuilt, number, start, job.base),
        after=rebuilt.partitions[number],
        replaced=rebuilt.replaced.get(number),
        # What begins empty has no log digests even at offset 0: it does not claim to be the
        # ledger's; nor does what was made of other records than the topics'.
        is_ledgers=job.base != "empty" and job.what_if is None,
        records_read=done.read[number],
    )


# -- processes


class _Shared:
    """A lock that a process holds together with its parent: until both have ended."""

    def __init__(self, lock: IO[str] | None) -> None:
        self._lock = lock

    def __getstate__(self) -> Any:
        return self._lock and reduction.DupFd(self._lock.fileno())

    def __setstate__(self, shared: Any) -> None:
        self._descriptor = shared and shared.detach()


def _in_processes(jobs: list[Job], lock: IO[str] | None, warn: Warn, progress: Progress) -> _Done:
    context = multiprocessing.get_context("spawn")  # librdkafka does not survive a fork
    said: Any = context.Queue()
    running: list[BaseProcess] = []
    whole = _Done()
    left = len(jobs)
    try:
        # Ctrl-C goes to all processes of a terminal. Ours begin with it blocked: we end them.
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            for job in jobs:
                args = (job, said, os.getpid(), _Shared(lock))
                started = context.Process(target=_work, args=args, daemon=True)
                started.start()
                running.append(started)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        while left:
            try:
                kind, what = said.get(timeout=_LOOK_S)
            except queue.Empty:
                if any(process.exitcode not in (None, 0) for process in running):
                    raise StateError(
                        "A process of the replay was killed; run it again (with --state it goes on "
                        "where it was)."
                    ) from None
                continue
            if kind == "failed":
                raise what
            if kind == "warn":
                warn(what)
            elif kind == "progress":
                progress(what)
            else:
                left -= 1
                whole.bases.update(what.bases)
                whole.read.update(what.read)
                whole.matched.update(what.matched)
        return whole
    finally:
        for process in running:
            process.terminate()
            process.join()


def _work(job: Job, said: Any, parent: int, lock: _Shared) -> None:
    """Replay some partitions in a process of its own, which holds the lock, and tell the parent."""
    gc.set_threshold(50_000, 20, 50)
    assert job.directory is not None
    files = StateFiles(job.directory)

    def progress(amount: int) -> None:
        if os.getppid() != parent:
            os._exit(1)
        said.put(("progress", amount))

    try:
        with contextlib.closing(files):
            _, done = _rebuild(job, files, lambda text: said.put(("warn", text)), progress)
        if job.what_if is not None:
            done.matched = job.what_if.matched
        said.put(("done", done))
    except (LedgerError, OSError) as error:
        said.put(("failed", error))


def known_snapshots(snapshots: Snapshots, partitions: Iterable[int]) -> list[SnapshotFile]:
    """Return all snapshots; list them before asking for the topics' ends, then `refuse_loss`.

    There are none where they cannot be listed; whoever wants to begin with one says so.
    """
    try:
        return [file for number in partitions for file in snapshots.of_partition(number)]
    except StorageError:
        return []


def refuse_loss(
    snapshots: Snapshots, known: Iterable[SnapshotFile], origin: Origin, ends: Watermarks
) -> None:
    """Check that the topics still have every record that some snapshot was made of.

    A broker that lost records which it had acknowledged ends before a snapshot made of them.

    Raises:
        MissingRecords: it does; it names topic, partition and offsets.
    """
    for file in known:
        limit = ends[file.partition]
        for topic in INPUT_TOPICS:
            if file.watermark[topic] <= limit[topic]:
                continue
            try:
                snapshots.read(file, origin)
            except StateError:
                break  # of other topics, or damaged: it proves nothing
            raise MissingRecords(topic, file.partition, file.watermark[topic], 0, limit[topic])
