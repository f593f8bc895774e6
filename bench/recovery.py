"""How soon records are applied again after a worker was killed or stopped, or lost its state.

Two workers share 4 partitions. A probe (one fill) goes to each partition ten times a second, and
its latency is the time from producing it to a mark in `balances` that covers it. Measured are

- *recovery*: from the signal until the first probe sent after it is applied in every partition;
- *longest wait*: the largest latency of any probe of the next 15 seconds, so that a rebalance
  that comes later, when the replacement joins, counts as well;
- *ready*: from starting a worker without local state, at the end of a log of 300,000 fills, until
  a probe sent then is applied in every partition.

A local stack of its own is started (or the one that LEDGER_KAFKA names is used). One JSON line per
kill, stop or start is appended to bench/results.jsonl.

    python bench/recovery.py [--kills 10] [--fills 300000] [--only KIND…] [--pause SECONDS]
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import psutil
from common import PARTITIONS, record, stack
from confluent_kafka import (
    Consumer,
    ConsumerGroupState,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)
from throughput import environment, forget_tables, produce

from ledger.events import FILLS
from ledger.kafka import BALANCES, Cluster
from ledger.partitioner import partition_of
from ledger.published import MARK_KEY, decode_mark, newest_marks
from ledger.settings import Settings
from ledger.snapshots import Snapshots

WORKERS = 2
PROBE_EVERY_S = 0.1
OBSERVED_S = 15.0
REPETITIONS = 3

KILLS = {
    "kill, not replaced": "plain workers; a new one is started once the other has taken over",
    "kill, replaced at once": "plain workers; a new one is started at once, as systemd would",
    "kill, supervised": "ledger worker --supervise 2",
    "stop": "SIGTERM to one of two plain workers",
}
STARTS = ("start from snapshot", "start from offset 0")

Result = dict[str, Any]


class Probes:
    """Sends probes and watches the marks; knows when each probe was sent and applied."""

    def __init__(self, cluster: Cluster) -> None:
        self._topic = cluster.settings.topic(FILLS)
        self._lock = threading.Lock()
        self._sent: dict[int, list[tuple[int, float]]] = {p: [] for p in range(PARTITIONS)}
        self._marks: dict[int, list[tuple[int, float]]] = {p: [] for p in range(PARTITIONS)}
        self._ended = threading.Event()
        self._producer = Producer(
            {
                "bootstrap.servers": cluster.bootstrap,
                "enable.idempotence": True,
                "partitioner": "murmur2_random",
                "linger.ms": 0,
                "log_level": 2,
            }
        )
        self._consumer = Consumer(
            {
                "bootstrap.servers": cluster.bootstrap,
                "group.id": "bench-recovery",
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
                "fetch.wait.max.ms": 10,
                "log_level": 2,
            }
        )
        balances = cluster.settings.topic(BALANCES)
        ends = cluster.ends([(BALANCES, p) for p in range(PARTITIONS)])
        self._consumer.assign(
            [TopicPartition(balances, p, ends[BALANCES, p]) for p in range(PARTITIONS)]
        )
        self._accounts: dict[int, str] = {}
        number = 0
        while len(self._accounts) < PARTITIONS:
            account = f"probe-{number}"
            self._accounts.setdefault(partition_of(account.encode(), PARTITIONS), account)
            number += 1
        self._threads = [
            threading.Thread(target=work) for work in (self._send_forever, self._watch_forever)
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()
        self._consumer.close()

    def _send_forever(self) -> None:
        number = 0
        while not self._ended.wait(PROBE_EVERY_S):
            for partition, account in self._accounts.items():
                number += 1
                self._send(partition, account, f"P{os.getpid()}-{time.time_ns()}-{number}")
            self._producer.poll(0)
        assert self._producer.flush(10) == 0

    def _send(self, partition: int, account: str, name: str) -> None:
        fill = {
            "type": "order_filled",
            "version": 1,
            "event_id": name,
            "fill_id": name,
            "trade_id": name,
            "order_id": name,
            "account": account,
            "instrument": "BTC-USD",
            "side": "buy",
            "price": "1",
            "quantity": "1",
            "fee": "0",
            "fee_asset": "USD",
            "liquidity": "maker",
            "occurred_at": "2026-11-23T00:00:00Z",
        }
        sent_at = time.monotonic()

        def acknowledged(error: Any, message: Message) -> None:
            assert error is None, error
            assert message.partition() == partition
            with self._lock:
                self._sent[partition].append((message.offset() or 0, sent_at))

        value = msgspec.json.encode(fill)
        self._producer.produce(self._topic, value, account.encode(), on_delivery=acknowledged)

    def _watch_forever(self) -> None:
        while not self._ended.is_set():
            message = self._consumer.poll(0.05)
            if message is None or message.error() or message.key() != MARK_KEY:
                continue
            now, value = time.monotonic(), message.value()
            assert value is not None
            partition, offset = message.partition() or 0, message.offset() or 0
            mark = decode_mark(value, partition, offset)
            with self._lock:
                self._marks[partition].append((mark.watermark[FILLS], now))

    def latencies(self, partition: int, since: float, until: float) -> list[float] | None:
        """Return the latencies of the probes sent in a span, or None if one is not applied yet."""
        with self._lock:
            sent = [one for one in self._sent[partition] if since <= one[1] < until]
            marks = list(self._marks[partition])
        found = []
        for offset, sent_at in sent:
            applied = next((at for watermark, at in marks if watermark > offset), None)
            if applied is None:
                return None
            found.append(applied - sent_at)
        return found

    def recovery(self, since: float) -> float | None:
        """Return the time until the first probe sent after a moment is applied everywhere."""
        applied = []
        for partition in range(PARTITIONS):
            with self._lock:
                sent = [at for _, at in self._sent[partition] if at >= since]
            latencies = self.latencies(partition, since, sent[0] + 1e-9) if sent else None
            if not latencies:
                return None
            applied.append(sent[0] + latencies[0] - since)
        return max(applied)

    def longest_wait(self, since: float, until: float) -> float | None:
        """Return the largest latency of the probes sent in a span, once all are applied."""
        found = [self.latencies(partition, since, until) for partition in range(PARTITIONS)]
        if not all(found):
            return None
        return max(latency for latencies in found for latency in latencies or [])


def awaited(condition: Callable[[], Any], timeout_s: float = 120.0) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not true within {timeout_s} s"
        time.sleep(0.02)
    return value


def await_calm(cluster: Cluster, probes: Probes) -> None:
    """Wait until the group has its members and probes have been applied quickly for a while."""
    group = f"{cluster.settings.topic_prefix}ledger"

    def is_calm() -> bool:
        try:
            found = cluster.admin.describe_consumer_groups([group])[group].result()
        except KafkaException:  # the coordinator is only starting
            return False
        now = time.monotonic()
        wait = probes.longest_wait(now - 4, now - 2)
        whole = len(found.members) == WORKERS and found.state == ConsumerGroupState.STABLE
        return whole and wait is not None and wait < 1.5

    awaited(is_calm)


@contextmanager
def process(
    cluster: Cluster, log: Path, code: str, **more: str
) -> Iterator[subprocess.Popen[bytes]]:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        started = subprocess.Popen(
            [sys.executable, "-c", code],
            env=environment(cluster.settings) | more,
            stdout=output,
            stderr=output,
        )
    try:
        yield started
    finally:
        started.terminate()
        started.wait(20)


def plain_worker(cluster: Cluster, log: Path, **more: str) -> Any:
    code = "from ledger.app import *; run_worker(load_settings())"
    return process(cluster, log, code, **more)


def supervisor(cluster: Cluster, log: Path, pause_s: float | None) -> Any:
    set_pause = "" if pause_s is None else f"supervisor.FIRST_PAUSE_S = {pause_s}; "
    code = (
        "import sys; from ledger import supervisor; from ledger.cli import main; "
        f"{set_pause}sys.argv = ['ledger', 'worker', '--supervise', '{WORKERS}']; main()"
    )
    return process(cluster, log, code)


def kills(cluster: Cluster, kind: str, options: argparse.Namespace) -> Iterator[Result]:
    """Kill or stop one worker after another; yield what each cost."""
    rng = random.Random(1)
    logs = cluster.settings.state_dir / "logs"
    with ExitStack() as running:
        workers: list[subprocess.Popen[bytes]] = []

        def start() -> None:
            log = logs / f"{len(os.listdir(logs)) if logs.exists() else 0}.log"
            workers.append(running.enter_context(plain_worker(cluster, log)))

        parent = None
        if kind == "kill, supervised":
            log = logs / "supervisor.log"
            parent = running.enter_context(supervisor(cluster, log, options.pause))
        else:
            for _ in range(WORKERS):
                start()
        probes = Probes(cluster)
        running.callback(probes.close)
        for _ in range(options.kills):
            await_calm(cluster, probes)
            time.sleep(rng.random())  # anywhere between two heartbeats
            if parent is not None:
                victim = rng.choice(psutil.Process(parent.pid).children()).pid
            else:
                victim = workers.pop(rng.randrange(len(workers))).pid
            since = time.monotonic()
            os.kill(victim, signal.SIGTERM if kind == "stop" else signal.SIGKILL)
            if kind == "kill, replaced at once":
                start()
            recovery = awaited(lambda since=since: probes.recovery(since))
            if kind in ("kill, not replaced", "stop"):
                longest = recovery
                start()
            else:
                until = since + OBSERVED_S
                time.sleep(max(0.0, until - time.monotonic()))
                longest = awaited(lambda s=since, u=until: probes.longest_wait(s, u))
            yield {
                "what": kind,
                "seconds": round(recovery, 3),
                "longest_wait_s": round(longest, 3),
            } | ({} if options.pause is None else {"pause_s": options.pause})


def starts(cluster_in: Callable[[str], Cluster], fills: int) -> Iterator[Result]:
    """Start workers without local state at the end of a log; yield how long each took."""
    first = cluster_in("first")
    produce(first, fills)
    forget_tables(first)
    end = first.ends([(FILLS, partition) for partition in range(PARTITIONS)])
    snapshots = Snapshots(first.settings.snapshot_dir, first.settings.topic_prefix)

    def is_at_end(what: dict[int, int]) -> bool:
        return all(what.get(p, 0) >= end[FILLS, p] for p in range(PARTITIONS))

    log = first.settings.state_dir / "first.log"
    with plain_worker(first, log, LEDGER_SNAPSHOT_INTERVAL_S="2"):
        awaited(
            lambda: is_at_end(
                {
                    p: snapshot.watermark[FILLS]
                    for p in range(PARTITIONS)
                    for snapshot in snapshots.of_partition(p)[:1]
                }
            ),
            600,
        )
        awaited(
            lambda: is_at_end(
                {p: m.watermark[FILLS] for p, m in newest_marks(first, range(PARTITIONS)).items()}
            )
        )
    for repetition in range(REPETITIONS):
        for kind in STARTS:
            fresh = cluster_in(f"{kind}-{repetition}".replace(" ", "-"))
            if kind == "start from snapshot":
                shutil.copytree(first.settings.snapshot_dir, fresh.settings.snapshot_dir)
            probes = Probes(fresh)
            since = time.monotonic()
            with plain_worker(fresh, fresh.settings.state_dir / "worker.log"):
                seconds = awaited(lambda p=probes, s=since: p.recovery(s), 600)
                yield {"what": kind, "fills": fills, "seconds": round(seconds, 3)}
                probes.close()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--fills", type=int, default=300_000)
    parser.add_argument("--only", nargs="+", choices=[*KILLS, "start"], default=[*KILLS, "start"])
    parser.add_argument("--pause", type=float, help="the supervisor's first pause, to try others")
    options = parser.parse_args()
    with stack() as (kafka, directory):
        run_all(options, kafka, directory)


def run_all(options: argparse.Namespace, kafka: str, directory: Path) -> None:
    def cluster_in(prefix: str, state: str) -> Cluster:
        cluster = Cluster(
            kafka,
            Settings(
                kafka=kafka,
                topic_prefix=f"bench{os.getpid()}-{prefix}-",
                partitions=PARTITIONS,
                state_dir=directory / prefix / state,
            ),
        )
        cluster.ensure_topics()
        return cluster

    results = []
    for number, kind in enumerate(options.only):
        found = (
            starts(lambda state: cluster_in("start", state), options.fills)
            if kind == "start"
            else kills(cluster_in(f"kill{number}", "state"), kind, options)
        )
        for result in found:
            print(result, f"load {os.getloadavg()[0]:.1f}", flush=True)
            results.append(result)
            record(result)
    print_table(results)


def print_table(results: list[Result]) -> None:
    print("\n| what | times | median s | worst s | longest wait, median s | worst s |")
    print("|---|---:|---:|---:|---:|---:|")
    for what in dict.fromkeys(result["what"] for result in results):
        cells: list[object] = [what, sum(result["what"] == what for result in results)]
        for measure in ("seconds", "longest_wait_s"):
            found = [r[measure] for r in results if r["what"] == what and measure in r]
            for summary in (statistics.median, max):
                cells.append(f"{summary(found):.2f}" if found else "")
        print("|", " | ".join(map(str, cells)), "|")


if __name__ == "__main__":
    main()
