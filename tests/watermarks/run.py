"""One ledger from its random watermarks to the verdict."""

from __future__ import annotations

import gc
import multiprocessing
import random
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Final

from ledger.positions import Watermarks, format_positions
from ledger.rebuild import Base
from ledger.settings import Settings
from tests.watermarks.choice import Chain, Kept
from tests.watermarks.command import compare_command
from tests.watermarks.ledgers import ends_of, snapshots_of
from tests.watermarks.proof import Proof, Task, prove

_COMMANDS: Final[tuple[tuple[Base, int], ...]] = (("snapshot", 1), ("genesis", 2))

_THRESHOLDS: Final = (50_000, 20, 5)
"""Of the garbage collector: there are millions of objects that stay, and states that go."""

Choose = Callable[[random.Random, Watermarks, Kept, int], list[Chain]]


@dataclass(frozen=True)
class Outcome:
    """What came of a ledger.

    Attributes:
        proof: of all its partitions; the differences of the command are in it, too.
        partitions: how many the ledger has.
        snapshots: how many it has, of all partitions.
        commands: at how many watermarks the command was run, too.
        seconds: how long it took.
    """

    proof: Proof
    partitions: int
    snapshots: int
    commands: int
    seconds: float

    @property
    def watermarks(self) -> int:
        """How many were checked."""
        return len(self.proof.answers)

    @property
    def from_snapshot(self) -> int:
        """At how many of them the replay of some partition began with a snapshot."""
        return sum(map(bool, self.proof.from_snapshot.values()))

    @property
    def share_from_snapshot(self) -> float:
        """The share of all replays of a partition on base `snapshot` that began with one."""
        began = sum(map(len, self.proof.from_snapshot.values()))
        return began / (self.watermarks * self.partitions)


def prove_ledger(
    settings: Settings, seed: int, choose: Choose, *, count: int, commands: int, processes: int = 1
) -> Outcome:
    """Return what came of random watermarks of a ledger that nobody works on.

    Args:
        settings: of the ledger.
        seed: of all that is left to chance.
        choose: makes the watermarks.
        count: how many.
        commands: at how many of them the command is run, too.
        processes: how many to compare in; 1 is this one.
    """
    began = time.monotonic()
    ends, kept = ends_of(settings), snapshots_of(settings)
    rng = random.Random(f"watermarks of {seed}")
    chains = choose(rng, ends, kept, count)
    stops = [(place, step) for place, chain in enumerate(chains) for step in range(len(chain))]
    told = rng.sample(stops, min(commands, len(stops)))
    shares = [tuple(ends)[first::processes] for first in range(processes)]
    proof = Proof()
    for part in _proofs([Task(settings, seed, share, chains, frozenset(told)) for share in shares]):
        proof.add(part)
    for place, step in told:
        start, end = chains[place][max(0, step - 1)], chains[place][step]
        where = f"seed {seed}, watermark {format_positions(end)}"
        for base, number in _COMMANDS:
            answers = proof.answers[place, step]
            found = compare_command(settings, start, end, base, number, answers)
            proof.differences += [f"{where}: {sentence}" for sentence in found]
    snapshots = sum(map(len, kept.values()))
    return Outcome(proof, len(ends), snapshots, len(told), time.monotonic() - began)


def _proofs(tasks: list[Task]) -> list[Proof]:
    if len(tasks) == 1:
        return list(map(prove, tasks))
    context = multiprocessing.get_context("spawn")  # librdkafka does not survive a fork
    with ProcessPoolExecutor(
        len(tasks), context, initializer=gc.set_threshold, initargs=_THRESHOLDS
    ) as executor:
        try:
            return list(executor.map(prove, tasks))
        except BaseException:
            for process in multiprocessing.active_children():  # leaving would wait for them
                process.terminate()
            raise
