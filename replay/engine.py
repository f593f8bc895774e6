"""Replays partitions of a cluster's topics beside the running system."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from ledger.errors import MissingRecords, StateError
from ledger.events import INPUT_TOPICS
from ledger.kafka import Cluster
from ledger.objects import StorageError
from ledger.positions import Watermarks
from ledger.projections.partition import Origin
from ledger.rebuild import Base, Rebuilder, Rebuilt, past
from ledger.snapshots import SnapshotFile, Snapshots
from replay.request import Span
from replay.results import PartitionReplay, Replay
from replay.state import StateFiles, claim_directory, temporary_states
from replay.whatif import WhatIf

Warn = Callable[[str], None]
Progress = Callable[[int], None]

OFFSETS_IN_MEMORY: Final = 2_000_000
"""The states of longer logs are kept in files, so that memory does not grow with them."""


@dataclass(frozen=True)
class Job:
    """What is replayed."""

    cluster: Cluster
    origin: Origin
    span: Span
    base: Base
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


def replay(
    job: Job,
    *,
    threads: int | None,
    directory: Path | None,
    warn: Warn,
    progress: Progress,
) -> Replay:
    """Return the states at the end of a span, and what its records changed; close it after use.

    Args:
        job: what to replay.
        threads: how many fold; None: as many as there are processors.
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
        files: StateFiles | None = None
        if directory is not None:
            stack.enter_context(
                claim_directory(directory, job.origin, job.base, job.span.start, numbers)
            )
            files = stack.enter_context(contextlib.closing(StateFiles(directory)))
        elif _offsets(job) > OFFSETS_IN_MEMORY:
            files = stack.enter_context(temporary_states())
        rebuilder = Rebuilder(
            job.cluster,
            job.origin,
            warn=warn,
            progress=progress,
            stores=files,
            rewrite=None if job.what_if is None else job.what_if.rewrite,
            threads=len(os.sched_getaffinity(0)) if threads is None else threads,
        )
        rebuilt = rebuilder.rebuild(job.span.start, job.span.end, job.base, remember=True)
        if files is not None:
            files.flush()
        seconds = time.perf_counter() - began
        parts = {number: _result(job, rebuilt, files, number) for number in numbers}
        return Replay(parts, seconds, stack.pop_all())


def _offsets(job: Job) -> int:
    return sum(sum(end.values()) for end in job.span.end.values())


def _result(job: Job, rebuilt: Rebuilt, files: StateFiles | None, number: int) -> PartitionReplay:
    start = job.span.start[number]
    used = rebuilt.bases[number]
    if files is not None and number in rebuilt.continued:
        base = str(files.path(number))
    elif used is not None:
        base = used.path
    else:
        base = "empty" if job.base == "empty" else "genesis"
    return PartitionReplay(
        base=base,
        start=dict(start),
        before=past(rebuilt, number, start, job.base),
        after=rebuilt.partitions[number],
        replaced=rebuilt.replaced.get(number),
        # What begins empty has no log digests even at offset 0: it does not claim to be the
        # ledger's; nor does what was made of other records than the topics'.
        is_ledgers=job.base != "empty" and job.what_if is None,
        records_read={
            topic: rebuilt.records_read.get((topic, number), 0) for topic in INPUT_TOPICS
        },
    )


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
