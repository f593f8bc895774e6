"""One seed: broker, feed, workers and mischief from the beginning to the verdict."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from confluent_kafka import KafkaException

from ledger.errors import LedgerError
from ledger.events import INPUT_TOPICS
from ledger.published import newest_marks
from tests.broker import OwnBroker, own_broker
from tests.chaos.events import Traffic
from tests.chaos.feed import Feed
from tests.chaos.fleet import Exit, Fleet
from tests.chaos.mischief import KINDS, Mischief, Tempo, plan
from tests.chaos.verify import Verdict, uncommitted, verify
from tests.support import cluster_of

_SETTLE_S: Final = 180.0
_FEED_S: Final = 120.0  # how long the feed may go on after the mischief
_COMMIT_S: Final = 15.0
_TEMPO: Final = Tempo(seconds=100.0)


@dataclass(frozen=True)
class Shape:
    """How large a run is.

    Attributes:
        events: records to produce.
        tempo: of mischief; records are produced as long as it lasts.
        workers: that run from the beginning; one more may join.
        partitions: of the topics.
        must: what is done at least once.
        processes: to verify in.
    """

    events: int = 410_000  # of some the transactions are aborted; 400,000 and more arrive
    tempo: Tempo = _TEMPO
    workers: int = 3
    partitions: int = 8
    must: tuple[str, ...] = KINDS
    processes: int = 2


@dataclass
class Outcome:
    """What came of a seed; `str` of it is the line that is printed."""

    seed: int
    verdict: Verdict = field(default_factory=Verdict)
    done: Counter[str] = field(default_factory=Counter)
    exits: list[Exit] = field(default_factory=list)
    said: dict[str, int] = field(default_factory=dict)
    aborted: int = 0
    phases: dict[str, float] = field(default_factory=dict)

    @property
    def differences(self) -> list[str]:
        """What is wrong, in a sentence each."""
        return self.verdict.differences

    def __str__(self) -> str:
        verdict = self.verdict
        actions = ", ".join(f"{kind} {count}" for kind, count in sorted(self.done.items()))
        seconds = ", ".join(f"{name} {spent:.0f}" for name, spent in self.phases.items())
        said = ", ".join(f"{words} {count}" for words, count in self.said.items())
        return (
            f"seed {self.seed}: {verdict.records} events (+{self.aborted} aborted); {actions}; "
            f"{sum(self.phases.values()):.0f} s ({seconds}); {verdict.snapshots} snapshots, "
            f"{verdict.marks} marks, {verdict.stores} stores checked; {verdict.letters} dead "
            f"letters; {said}; exits by themselves {len(self.exits)}; "
            + ("exact" if not self.differences else f"{len(self.differences)} DIFFERENCES")
        )


NOTABLE: Final = {
    "from snapshots": "starts from snapshot",
    "fenced": "belongs to another worker",
    "retaken": "taking partitions again",
    "waits": "waits:",
    "slow flushes": "too slow to flush",
}
"""What is counted of the workers' logs."""


def run(seed: int, shape: Shape, directory: Path) -> Outcome:
    """Return what came of a seed; logs and data are left in `directory`."""
    with own_broker(directory / "broker") as broker:
        return _Run(seed, shape, directory, broker).run()


class _Run:
    def __init__(self, seed: int, shape: Shape, directory: Path, broker: OwnBroker) -> None:
        self.outcome = Outcome(seed)
        self.shape = shape
        self.settings = broker.settings(
            directory / "reader",
            partitions=shape.partitions,
            snapshots=directory / "snapshots",
            flush_interval_s=0.2,
            snapshot_interval_s=2.0,
            snapshots_kept=1_000_000,
        )
        cluster_of(self.settings).ensure_topics()
        traffic = Traffic(seed, shape.events, shape.partitions)
        self.feed = Feed(self.settings, traffic, seed, shape.events, shape.tempo.seconds)
        self.fleet = Fleet(self.settings, directory, shape.workers + 1)
        self.mischief = Mischief(self.fleet, broker, directory / "mischief.log")
        self._since = time.monotonic()

    def _phase(self, name: str) -> None:
        now = time.monotonic()
        self.outcome.phases[name] = now - self._since
        self._since = now

    def run(self) -> Outcome:
        try:
            self._rage()
            settled = self._settle()
            self._phase("settling")
            for worker in self.fleet.workers:
                if worker.is_alive:
                    self.fleet.terminate(worker)
            self._phase("ending")
            self.fleet.end()
            if settled:
                self._verify()
        finally:
            self.feed.end()
            self.fleet.kill()
            self.mischief.await_broker()
        self._conclude()
        return self.outcome

    def _rage(self) -> None:
        shape = self.shape
        steps = plan(self.outcome.seed, len(self.fleet.workers), shape.tempo, shape.must)
        for worker in self.fleet.workers[: shape.workers]:
            worker.start()
        self.feed.start()
        # All of them, also where the feed ended before the last: `must` is a promise.
        self.mischief.carry_out(steps, lambda: self.feed.failure is not None)
        self.mischief.make_good()
        self._phase("mischief")
        deadline = time.monotonic() + _FEED_S
        while self.feed.is_alive() and time.monotonic() < deadline:
            self.mischief.attend()
            time.sleep(0.05)
        if self.feed.is_alive():
            self.outcome.differences.append(
                f"the feed did not end: {self.feed.counted} of {self.feed.sent} acknowledged"
            )
        elif self.feed.failure is not None:
            self.outcome.differences.append(self.feed.failure)
        self._phase("feeding")

    def _settle(self) -> bool:
        """Wait until tables and committed offsets have everything; return whether they do."""
        deadline = time.monotonic() + _SETTLE_S
        behind = self._behind()
        while behind and time.monotonic() < deadline:
            self.mischief.attend()
            time.sleep(0.3)
            behind = self._behind()
        if behind:
            self.outcome.differences.append(f"stalled: {'; '.join(behind)}")
            return False
        deadline = time.monotonic() + _COMMIT_S
        lag = uncommitted(cluster_of(self.settings))
        while lag and time.monotonic() < deadline:
            self.mischief.attend()
            time.sleep(0.3)
            lag = uncommitted(cluster_of(self.settings))
        if lag:
            self.outcome.differences.append(f"committed offsets are not the topics' ends: {lag}")
        return True

    def _behind(self) -> list[str]:
        try:
            numbers = range(self.shape.partitions)
            cluster = cluster_of(self.settings)  # one that has not lived through anything
            ends = cluster.ends([(topic, n) for topic in INPUT_TOPICS for n in numbers])
            marks = newest_marks(cluster, numbers)
        except (LedgerError, KafkaException) as error:
            return [str(error)]
        found = []
        for (topic, number), end in ends.items():
            position = marks[number].watermark[topic] if number in marks else 0
            if position < end:
                found.append(f"{topic}:{number} published to {position} of {end}")
        return found

    def _verify(self) -> None:
        differences = self.outcome.differences
        self.outcome.verdict = verify(
            self.settings,
            self.fleet.workers,
            acknowledged=self.feed.acknowledged,
            uncertain=self.feed.uncertain,
            processes=self.shape.processes,
        )
        self.outcome.verdict.differences[:0] = differences
        self._phase("verifying")

    def _conclude(self) -> None:
        outcome = self.outcome
        outcome.done = self.mischief.done
        outcome.exits = self.fleet.exits
        outcome.aborted = self.feed.aborted
        outcome.said = {name: self.fleet.said(words) for name, words in NOTABLE.items()}
        outcome.differences.extend(self.fleet.bugs())
