"""How rate and memory change with the events behind a worker, and with the accounts it knows.

Each step is a ledger of its own. First comes what is *behind*, in all of them: so many fills of
10,000 accounts, or one deposit to each of so many accounts; a worker folds it from an empty state
and is stopped when it has come to rest, with files merged and snapshots written. Then, in rounds
and each step after the other, 500,000 *further* fills at random accounts are published, and a
worker that starts on the state on disk folds them: that is the rate of the step. In the end one
`replay` on one thread folds everything from the first record; its digest must be that of the
worker's tables, and the balances of the clearing account those computed in integers while the
fills were made.

A local stack of its own is started (or the one that LEDGER_KAFKA names is used). One JSON line per
measurement is appended to bench/results.jsonl, unless `--try`. 100,000,000 events need about 33 GB
for the topic alone and hours.

    python bench/growth.py [--events 1000000 10000000] [--accounts 10000 1000000] [--rounds 3]
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import producing
from books import CLEARING, Books, require_equal, shown_rows
from common import PARTITIONS, broker_pid, forget_ledger, ledger_in, record, stack
from measuring import Result, fold, replay
from workloads import ACCOUNTS, FILLS, TRANSFERS, Record, deposits, many_fills

from ledger.digests import ledger_digest

EVENTS = (1_000_000, 10_000_000)
ACCOUNT_STEPS = (10_000, 1_000_000)
FURTHER = 500_000

SLOTS = [(topic, number) for topic in (FILLS, TRANSFERS) for number in range(PARTITIONS)]


@dataclass(frozen=True)
class Step:
    """What is behind the worker: fills, or deposits to accounts."""

    grows: str
    accounts: int
    fills: int
    deposits: int

    @classmethod
    def of_events(cls, events: int) -> Step:
        return cls("events", ACCOUNTS, events, 0)

    @classmethod
    def of_accounts(cls, accounts: int) -> Step:
        return cls("accounts", accounts, 0, accounts)

    @property
    def behind(self) -> int:
        """How many events are behind."""
        return self.fills + self.deposits

    @property
    def name(self) -> str:
        return f"{self.behind} {self.grows}"

    def records(self, clearing: Books) -> Iterator[Record]:
        yield from deposits(self.deposits)
        yield from many_fills(0, self.fills, self.accounts, clearing)


class Ledger:
    """A ledger with a step's events behind it."""

    def __init__(
        self, step: Step, number: int, kafka: str, directory: Path, options: argparse.Namespace
    ) -> None:
        self.step = step
        self._state = directory / f"state-{number}"
        self._cluster = ledger_in(kafka, f"bench{os.getpid()}-{number}-", self._state)
        self._broker = broker_pid(directory)
        self._options = options
        self._clearing = Books()
        self._fills = step.fills
        print(f"{step.name}:", flush=True)
        self._publish(step.records(self._clearing), step.behind)
        self._fold(step.behind, rests=True)

    def _publish(self, records: Iterable[Record], count: int) -> None:
        began = time.monotonic()
        producing.publish(self._cluster, records, self._options.compression)
        print(f"published {count:,} records in {time.monotonic() - began:.0f} s", flush=True)

    def _fold(self, events: int, *, rests: bool = False) -> Result:
        ends = self._cluster.ends(SLOTS)
        folded = fold(self._cluster, ends, events, 1, self._broker, rests=rests)
        digests = [folded.marks[partition].state_digest for partition in range(PARTITIONS)]
        self._digest = ledger_digest(digests)
        return folded.result

    def _result(self, what: str, took: Result) -> Result:
        known = {"accounts": self.step.accounts, "behind": self.step.behind}
        named = {"what": f"growth of {self.step.grows}, {what}", **known}
        return named | {"compression": self._options.compression} | took

    def further(self) -> Result:
        """Fold further fills."""
        count = self._options.further
        fills = many_fills(self._fills, count, self.step.accounts, self._clearing)
        self._publish(fills, count)
        self._fills += count
        return self._result("worker", self._fold(count))

    def prove(self) -> Result:
        """Replay everything, and hold it against what is known."""
        shutil.rmtree(self._state)
        events = self.step.deposits + self._fills
        document, took = replay(self._cluster, events, 1, CLEARING, broker=self._broker)
        require_equal(shown_rows(document["balances"]), self._clearing.rows(), "replay")
        assert document["state_digest"] == self._digest, "worker and replay differ"
        return self._result("replay", took)

    def forget(self) -> None:
        """Delete topics and state."""
        forget_ledger(self._cluster)
        shutil.rmtree(self._state)


def measurements(
    steps: list[Step], kafka: str, directory: Path, options: argparse.Namespace
) -> Iterator[Result]:
    # A broker that has only just started takes thrice the CPU, whatever comes first.
    warm_up = Ledger(Step.of_accounts(ACCOUNTS), len(steps), kafka, directory, options)
    print("not counted:", warm_up.further(), flush=True)
    warm_up.forget()
    ledgers = [Ledger(step, n, kafka, directory, options) for n, step in enumerate(steps)]
    for number in range(options.rounds):
        for ledger in ledgers:
            yield ledger.further() | {"round": number}
    for ledger in ledgers:
        yield ledger.prove()
        ledger.forget()


def print_table(results: list[Result], rounds: int) -> None:
    print(f"\nmedians of {rounds} rounds (replays: one):\n")
    print("| what | accounts | events behind | events/s | peak memory | state on disk | ready |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    steps = [(one["what"], one["accounts"], one["behind"]) for one in results]
    for step in dict.fromkeys(steps):
        found = [one for one, of in zip(results, steps, strict=True) if of == step]

        def middle(name: str, digits: int, unit: str, found: list[Result] = found) -> str:
            values = [one[name] for one in found if name in one]
            return f"{statistics.median(values):,.{digits}f}{unit}" if values else ""

        what, accounts, behind = step
        cells = [what, f"{accounts:,}", f"{behind:,}", middle("rate", 0, "")]
        cells += [middle("peak_rss_mib", 0, " MiB"), middle("state_mib", 1, " MiB")]
        print("|", " | ".join([*cells, middle("ready_s", 1, " s")]), "|")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--events", type=int, nargs="*", default=list(EVENTS), metavar="N")
    parser.add_argument("--accounts", type=int, nargs="*", default=list(ACCOUNT_STEPS), metavar="N")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--further", type=int, default=FURTHER, help="fills of a round")
    producing.add_option(parser)
    parser.add_argument("--try", dest="is_trial", action="store_true", help="record nothing")
    options = parser.parse_args()
    steps = [Step.of_events(number) for number in options.events]
    steps += [Step.of_accounts(number) for number in options.accounts]
    results: list[Result] = []
    with stack() as (kafka, directory):
        for result in measurements(steps, kafka, directory, options):
            print(result, f"load {os.getloadavg()[0]:.1f}", flush=True)
            results.append(result)
            if not options.is_trial:
                record(result)
    print_table(results, options.rounds)


if __name__ == "__main__":
    main()
