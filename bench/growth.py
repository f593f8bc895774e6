"""How rate and memory change with the events behind a worker, and with the accounts it knows.

Each step is a ledger of its own. First comes what is *behind*: so many fills of 10,000 accounts, or
one deposit to each of so many accounts; a worker folds it from an empty state and is stopped.
Then 500,000 *further* fills at random accounts are published, and a worker that starts on the state
on disk folds them: that is the rate of the step. In the end one `replay` on one thread folds
everything from the first record; its digest must be that of the worker's tables, and the balances
of the clearing account those computed in integers while the fills were made.

A local stack of its own is started (or the one that LEDGER_KAFKA names is used). Two JSON lines per
step are appended to bench/results.jsonl, unless `--try`. 100,000,000 events need about 33 GB for
the topic alone and hours; topics and states are deleted after each step.

    python bench/growth.py [--events 1000000 10000000] [--accounts 10000 1000000]
"""

from __future__ import annotations

import argparse
import os
import shutil
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

    def records(self, clearing: Books) -> Iterator[Record]:
        yield from deposits(self.deposits)
        yield from many_fills(0, self.fills, self.accounts, clearing)

    def further(self, count: int, clearing: Books) -> Iterator[Record]:
        return many_fills(self.fills, count, self.accounts, clearing)


def measure(
    step: Step, name: str, kafka: str, directory: Path, options: argparse.Namespace
) -> Iterator[Result]:
    """Yield what worker and replay took with so much behind them, in a ledger of some name."""
    state = directory / "state"
    cluster = ledger_in(kafka, f"bench{os.getpid()}-{name}-", state)
    broker, clearing = broker_pid(directory), Books()

    def publish(records: Iterable[Record], count: int) -> None:
        began = time.monotonic()
        producing.publish(cluster, records, options.compression)
        seconds = time.monotonic() - began
        print(f"published {count:,} records in {seconds:.0f} s", flush=True)

    said: Result = {"accounts": step.accounts, "behind": step.behind}
    publish(step.records(clearing), step.behind)
    before = fold(cluster, cluster.ends(SLOTS), step.behind, 1, broker).result
    publish(step.further(options.further, clearing), options.further)
    folded = fold(cluster, cluster.ends(SLOTS), options.further, 1, broker)
    yield {
        "what": f"growth of {step.grows}, worker",
        **said,
        **folded.result,
        "behind_rate": before["rate"],
        "behind_peak_rss_mib": before["peak_rss_mib"],
        "behind_state_mib": before["state_mib"],
    }
    shutil.rmtree(state)
    document, took = replay(cluster, step.behind + options.further, 1, CLEARING, broker=broker)
    require_equal(shown_rows(document["balances"]), clearing.rows(), "replay")
    digests = [folded.marks[partition].state_digest for partition in range(PARTITIONS)]
    assert document["state_digest"] == ledger_digest(digests), "worker and replay differ"
    yield {"what": f"growth of {step.grows}, replay", **said, **took}
    forget_ledger(cluster)
    shutil.rmtree(state)


def print_table(results: list[Result]) -> None:
    print("\n| what | accounts | events behind | events/s | peak memory | state on disk | ready |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for one in results:
        cells = [one["what"], f"{one['accounts']:,}", f"{one['behind']:,}", f"{one['rate']:,}"]
        cells.append(f"{one['peak_rss_mib']:,} MiB")
        cells.append(f"{one['state_mib']:,} MiB" if "state_mib" in one else "")
        cells.append(f"{one['ready_s']:.1f} s" if "ready_s" in one else "")
        print("|", " | ".join(cells), "|")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--events", type=int, nargs="*", default=list(EVENTS), metavar="N")
    parser.add_argument("--accounts", type=int, nargs="*", default=list(ACCOUNT_STEPS), metavar="N")
    parser.add_argument("--further", type=int, default=FURTHER, help="fills that are measured")
    producing.add_option(parser)
    parser.add_argument("--try", dest="is_trial", action="store_true", help="record nothing")
    options = parser.parse_args()
    steps = [Step.of_events(number) for number in options.events]
    steps += [Step.of_accounts(number) for number in options.accounts]
    results: list[Result] = []
    with stack() as (kafka, directory):
        # A broker that has only just started takes thrice the CPU, whatever comes first.
        for result in measure(Step.of_accounts(ACCOUNTS), "warm-up", kafka, directory, options):
            print("not counted:", result, flush=True)
        for number, step in enumerate(steps):
            for result in measure(step, str(number), kafka, directory, options):
                result["compression"] = options.compression
                print(result, f"load {os.getloadavg()[0]:.1f}", flush=True)
                results.append(result)
                if not options.is_trial:
                    record(result)
    print_table(results)


if __name__ == "__main__":
    main()
