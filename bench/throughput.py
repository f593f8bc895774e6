"""How fast workers and `replay` fold 1,000,000 events, beside a bare read of the same topics.

Two logs are published once: *fills*, the work of the peers' comparison (10,000 accounts,
4 instruments, 4 partitions, fills of about 320 bytes whose orders nobody knows), and *mixed*
(orders, fills and transfers as 10 : 4 : 1; orders are open, amended, filled in parts, cancelled).
Then, in each round and each from an empty state: a bare read without and with check sums, one and
two workers, a replay on one and on two threads and, with `--peers`, Kafka Streams on one and on
two threads. A first round is not counted: a broker that has only just started takes thrice the CPU,
whatever comes first.

Every end state is checked against sums in integers that were made with the records: all rows of
`balances`, debits, credits and holds, after each run of workers; all rows of one replay, whose
digest every other replay and all workers' marks must give.

A local stack of its own is started (or the one that LEDGER_KAFKA names is used). One JSON line per
measurement is appended to bench/results.jsonl, unless `--try`.

    python bench/throughput.py [--events 1000000] [--runs 3] [--peers DIR] [--only WHAT…]
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import producing
from books import CLEARING, Books, Rows, published_rows, require_equal, shown_rows
from common import (
    PARTITIONS,
    broker_pid,
    environment,
    forget_tables,
    ledger_in,
    record,
    stack,
)
from measuring import Result, fold, raw_read, replay
from peers import Streams, name_of
from workloads import FILLS, WORKLOADS, Workload

from ledger.digests import ledger_digest
from ledger.kafka import Cluster

__all__ = ["environment", "forget_tables", "produce"]  # for the other benchmarks

RAW_READ = "raw read"
RAW_READ_CHECKED = "raw read, check sums compared"
KINDS = ("raw", "worker", "replay")
PROCESSES = (1, 2)


def produce(
    cluster: Cluster, count: int, workload: str = "fills", compression: str = "none"
) -> Books:
    """Publish a workload; return what the ledger must hold."""
    cluster.ensure_topics()
    books = Books()
    producing.publish(cluster, WORKLOADS[workload].make(count, books), compression)
    return books


def name_with(what: str, count: int, unit: str, many: str) -> str:
    return f"{what}, {count} {unit if count == 1 else many}"


@dataclass
class Log:
    """A workload in topics of its own."""

    workload: Workload
    events: int
    prefix: str
    directory: Path
    kafka: str
    broker: int | None
    rows: Rows
    digest: str = ""

    @classmethod
    def publish(
        cls, workload: Workload, options: argparse.Namespace, kafka: str, directory: Path
    ) -> Log:
        log = cls(
            workload=workload,
            events=options.events,
            prefix=f"bench{os.getpid()}-{workload.name}-",
            directory=directory / workload.name,
            kafka=kafka,
            broker=broker_pid(directory),
            rows={},
        )
        print(f"{workload.name}: publishing {log.events:,} records ...", flush=True)
        books = produce(log.ledger(), log.events, workload.name, options.compression)
        log.rows = books.rows()
        return log

    def ledger(self) -> Cluster:
        """Return the ledger with an empty state directory."""
        state = self.directory / "state"
        shutil.rmtree(state, ignore_errors=True)
        return ledger_in(self.kafka, self.prefix, state)

    def prove(self) -> None:
        """Compare all rows of a replay, and keep its digest."""
        document, _ = replay(self.ledger(), self.events, 1)
        require_equal(shown_rows(document["balances"]), self.rows, "replay")
        self.digest = document["state_digest"]

    def raw(self) -> Iterator[Result]:
        for name, checked in ((RAW_READ, False), (RAW_READ_CHECKED, True)):
            ledger = self.ledger()
            took = raw_read(ledger, self.workload.topics, self.events, checked, self.broker)
            yield {"what": name} | took

    def worker(self) -> Iterator[Result]:
        for processes in PROCESSES:
            ledger = self.ledger()
            forget_tables(ledger)
            slots = [(topic, n) for topic in self.workload.topics for n in range(PARTITIONS)]
            folded = fold(ledger, ledger.ends(slots), self.events, processes, self.broker)
            name = name_with("worker", processes, "process", "processes")
            require_equal(published_rows(ledger, range(PARTITIONS)), self.rows, name)
            digests = [folded.marks[number].state_digest for number in range(PARTITIONS)]
            assert not self.digest or ledger_digest(digests) == self.digest, f"{name}: digest"
            yield {"what": name} | folded.result

    def replay(self) -> Iterator[Result]:
        for threads in PROCESSES:
            name = name_with("replay", threads, "thread", "threads")
            # One account, so that what is measured is not the printing of all.
            document, result = replay(
                self.ledger(), self.events, threads, CLEARING, broker=self.broker
            )
            assert document["state_digest"] == self.digest, f"{name}: digest"
            yield {"what": name} | result

    def streams(self, streams: Streams) -> Iterator[Result]:
        for threads in PROCESSES:
            ledger = self.ledger()
            took = streams.run(ledger, FILLS, self.events, self.rows, threads, self.broker)
            yield {"what": name_of(threads)} | took


def rounds(
    logs: list[Log], runs: int, only: list[str], streams: Streams | None
) -> Iterator[Result]:
    """Yield all measurements, in interleaved rounds; of round 0 the broker is not warm yet."""
    if "replay" in only:
        for log in logs:
            log.prove()
    for number in range(runs + 1):
        for log in logs:
            measurements = [getattr(log, kind) for kind in KINDS if kind in only]
            for measurement in measurements:
                for result in measurement():
                    yield {"workload": log.workload.name, "round": number} | result
            if streams is not None and log.workload.topics == (FILLS,):
                for result in log.streams(streams):
                    yield {"workload": log.workload.name, "round": number} | result


def print_tables(results: list[Result], runs: int) -> None:
    for workload in dict.fromkeys(result["workload"] for result in results):
        rows = {
            what: [r for r in results if (r["workload"], r["what"]) == (workload, what)]
            for what in dict.fromkeys(r["what"] for r in results if r["workload"] == workload)
        }
        print(f"\n{workload}, medians of {runs}:\n")
        print(
            "| what | events/s | of raw read | of Kafka Streams | CPU an event, ours + broker "
            "| peak memory | of Kafka Streams | written, ours + broker |"
        )
        print("|---|---:|---:|---:|---:|---:|---:|---:|")
        for what, found in rows.items():
            streams = rows.get(name_of(found[0].get("processes", found[0].get("threads", 0))), [])
            cpu, broker_cpu = median(found, "cpu_s"), median(found, "broker_cpu_s")
            written, broker = median(found, "written_mib"), median(found, "broker_written_mib")
            events = found[0]["events"]
            cells = [
                what,
                f"{median(found, 'rate') or 0:,.0f}",
                ratio(found, rows.get(RAW_READ, []), "rate", 3),
                ratio(found, streams, "rate", 2),
                sum_of(cpu, broker_cpu, 10**6 / events, 1, "µs"),
                f"{median(found, 'peak_rss_mib') or 0:,.0f} MiB",
                ratio(found, streams, "peak_rss_mib", 2),
                sum_of(written, broker, 1, 0, "MiB"),
            ]
            print("|", " | ".join(cells), "|")


def median(found: list[Result], name: str) -> float | None:
    values = [one[name] for one in found if name in one]
    return statistics.median(values) if values else None


def ratio(found: list[Result], others: list[Result], name: str, digits: int) -> str:
    ours, theirs = median(found, name), median(others, name)
    return f"{ours / theirs:.{digits}f}" if ours and theirs else ""


def sum_of(ours: float | None, broker: float | None, scale: float, digits: int, unit: str) -> str:
    parts = [f"{part * scale:,.{digits}f}" for part in (ours, broker) if part is not None]
    return f"{' + '.join(parts)} {unit}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--events", type=int, default=1_000_000, help="of each workload")
    parser.add_argument("--runs", type=int, default=3, help="rounds (default 3)")
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--workload", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--peers", type=Path, metavar="DIR", help="run Kafka Streams of there, too")
    producing.add_option(parser)
    parser.add_argument("--try", dest="is_trial", action="store_true", help="record nothing")
    options = parser.parse_args()
    with stack(together_ms=3_000) as (kafka, directory):  # Kafka's own default
        run_all(options, kafka, directory)


def run_all(options: argparse.Namespace, kafka: str, directory: Path) -> None:
    streams = Streams.prepare(options.peers, directory / "peers") if options.peers else None
    logs = [
        Log.publish(WORKLOADS[name], options, kafka, directory)
        for name in dict.fromkeys(options.workload)
    ]
    results: list[dict[str, Any]] = []
    for result in rounds(logs, options.runs, options.only, streams):
        result["compression"] = options.compression
        print(result, f"load {os.getloadavg()[0]:.1f}", flush=True)
        if result["round"] == 0:
            continue
        results.append(result)
        if not options.is_trial:
            record(result)
    print_tables(results, options.runs)


if __name__ == "__main__":
    main()
