"""How long a fill takes from the broker's acknowledgement to being visible in `balances`.

With one worker running, fills of 10,000 accounts are produced at a steady rate, 1,000 and then
10,000 a second, for 30 seconds each, after some seconds that are not measured. The producer and the
reader have a process each. A fill was acknowledged when its delivery callback was called; it is
visible when a read-committed consumer of `balances` gets the first mark that covers it. All three
processes share the machine's clock.

Last, with nothing else going on, single fills are published and waited for one after the other by
the code of `ledger publish --wait`, from the acknowledgement to its return.

A local stack of its own is started (or the one that LEDGER_KAFKA names is used). One JSON line per
measurement is appended to bench/results.jsonl, unless `--try`.

    python bench/latency.py [--rates 1000 10000] [--seconds 30] [--warm-up 10] [--waits 50]
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import statistics
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import producing
from common import PARTITIONS, broker_pid, forget_ledger, ledger_in, record, stack
from marks import MarkReader
from measuring import Broker, Result, Usage, await_folding, worker
from workloads import ACCOUNTS, FILLS, many_fills

from ledger.kafka import Cluster
from ledger.publish import Sender, await_applied
from ledger.settings import Settings

SINCE_ACKNOWLEDGED = "latency since acknowledged"
WAITED_FOR = "latency, published and waited for one by one"

PATIENCE_S = 300.0
LINGER_MS = 1
SHORTEST_PAUSE_S = 0.001

Acknowledged = dict[int, list[tuple[int, float]]]
"""Of each partition, the offsets of fills and when each was acknowledged."""
Seen = dict[int, list[tuple[int, float]]]
"""Of each partition, the next offsets of marks and when each arrived."""


def produce(settings: Settings, rate: int, count: int, to: Connection) -> None:
    """Produce fills at a steady rate; send when each was acknowledged, and how long it took."""
    cluster = Cluster(str(settings.kafka), settings)
    sender = producing.producer(cluster, linger_ms=LINGER_MS)
    acknowledged: Acknowledged = {number: [] for number in range(PARTITIONS)}

    def delivered(error: Any, message: Any) -> None:
        now = time.time()
        assert error is None, error
        acknowledged[message.partition()].append((message.offset(), now))

    name = settings.topic(FILLS)
    began = time.monotonic()
    for number, (_, key, value) in enumerate(many_fills(0, count, ACCOUNTS, None)):
        # Callbacks are called while it waits for the next fill's turn.
        while (pause_s := began + number / rate - time.monotonic()) > 0:
            sender.poll(max(pause_s, SHORTEST_PAUSE_S))
        sender.produce(name, value, key, on_delivery=delivered)
    seconds = time.monotonic() - began
    while sender.flush(1):
        pass
    to.send((acknowledged, seconds))


def read(settings: Settings, connection: Connection) -> None:
    """Send word when ready; then, told where `fills` ends, the marks up to there."""
    cluster = Cluster(str(settings.kafka), settings)
    reader = MarkReader(cluster, PARTITIONS)
    starts = reader.ends()
    seen: Seen = {number: [] for number in range(PARTITIONS)}
    ends: dict[int, int] | None = None
    connection.send(None)
    for found in reader.follow(starts):
        if found is not None:
            at, partition, mark = found
            seen[partition].append((mark.watermark[FILLS], at))
            continue
        if ends is None and connection.poll():
            ends = connection.recv()
        if ends is not None and all(seen[p] and seen[p][-1][0] >= ends[p] for p in ends):
            break
    reader.close()
    connection.send(seen)


def delays(acknowledged: Acknowledged, seen: Seen, since: float) -> np.ndarray:
    """Return the seconds from acknowledgement to visibility, sorted, of what came after a time."""
    found = []
    for partition, fills in acknowledged.items():
        offsets, acked_at = np.array(fills).T
        next_offsets, seen_at = np.array(seen[partition]).T
        # The first mark whose next offset is above the fill's.
        index = np.searchsorted(next_offsets, offsets, side="right")
        found.append((seen_at[index] - acked_at)[acked_at >= since])
    return np.sort(np.concatenate(found))


def measure(kafka: str, directory: Path, rate: int, seconds: float, warm_up_s: float) -> Result:
    """Return the latencies at one rate, with a worker and topics of their own."""
    state = directory / "state"
    cluster = ledger_in(kafka, f"bench{os.getpid()}-latency-{rate}-", state)
    context = multiprocessing.get_context("spawn")  # librdkafka does not survive a fork
    log = state / "worker.log"
    with worker(cluster, log) as process:
        await_folding(process, log)
        broker = broker_pid(directory)
        reader_end, reader_side = context.Pipe()
        producer_end, producer_side = context.Pipe()
        count = int(rate * (warm_up_s + seconds))
        children = [
            context.Process(target=read, args=(cluster.settings, reader_side)),
            context.Process(target=produce, args=(cluster.settings, rate, count, producer_side)),
        ]
        try:
            children[0].start()
            receive(reader_end, "the reader does not start")
            children[1].start()
            time.sleep(warm_up_s)
            usage, took = Usage(), Broker(broker)
            usage.look(process.pid)
            cpu_s = sum(usage.cpu_s.values())
            acknowledged, took_s = receive(producer_end, "the producer does not end")
            usage.look(process.pid)
            used = usage.as_result() | took.as_result()
            used["cpu_s"] = round(used["cpu_s"] - cpu_s, 2)
            reader_end.send({p: fills[-1][0] + 1 for p, fills in acknowledged.items() if fills})
            seen = receive(reader_end, "not all fills become visible")
        finally:
            for child in children:
                if child.pid is not None:
                    child.terminate()
                    child.join()
        assert process.poll() is None, log.read_text()
    first = min(at for fills in acknowledged.values() for _, at in fills)
    found_ms = delays(acknowledged, seen, first + warm_up_s) * 1000
    forget_ledger(cluster)
    shutil.rmtree(state)
    said = {"what": SINCE_ACKNOWLEDGED, "events_s": rate, "seconds": seconds}
    return said | summary(found_ms) | used | {"produced_s": round(count / took_s)}


def summary(sorted_ms: np.ndarray) -> Result:
    return {
        "events": len(sorted_ms),
        "median_ms": round(float(np.median(sorted_ms)), 1),
        "p99_ms": round(float(sorted_ms[len(sorted_ms) * 99 // 100]), 1),
        "max_ms": round(float(sorted_ms[-1]), 1),
    }


def measure_waits(kafka: str, directory: Path, count: int) -> Result:
    """Return how long fills take that are published and waited for one after the other."""
    state = directory / "state"
    cluster = ledger_in(kafka, f"bench{os.getpid()}-waits-", state)
    topic_ids = cluster.origin().topic_ids
    found = []
    log = state / "worker.log"
    with worker(cluster, log) as process:
        await_folding(process, log)
        for number, (topic, key, value) in enumerate(many_fills(0, count, ACCOUNTS, None)):
            with Sender(cluster) as sender:
                sender.send(topic, key, value, str(number))
                sender.flush()
                acknowledged_at = time.monotonic()
                await_applied(cluster, topic_ids, sender.offsets, PATIENCE_S)
            found.append(time.monotonic() - acknowledged_at)
    forget_ledger(cluster)
    shutil.rmtree(state)
    return {"what": WAITED_FOR} | summary(np.sort(found) * 1000)


def receive(connection: Connection, otherwise: str) -> Any:
    assert connection.poll(PATIENCE_S), otherwise
    return connection.recv()


def print_table(results: list[Result]) -> None:
    print("\n| what | events/s | events | median | 99th percentile | worst |")
    print("|---|---:|---:|---:|---:|---:|")
    groups: dict[tuple[str, int], list[Result]] = {}
    for result in results:
        groups.setdefault((result["what"], result.get("events_s", 0)), []).append(result)
    for (what, rate), found in groups.items():
        cells = [what, f"{rate:,}" if rate else ""]
        cells.append(f"{sum(one['events'] for one in found):,}")
        cells += [
            f"{statistics.median(one[name] for one in found):,.0f} ms"
            for name in ("median_ms", "p99_ms", "max_ms")
        ]
        print("|", " | ".join(cells), "|")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rates", type=int, nargs="*", default=[1_000, 10_000], metavar="N")
    parser.add_argument("--seconds", type=float, default=30.0, help="of each rate")
    parser.add_argument("--warm-up", type=float, default=10.0, help="seconds before (default 10)")
    parser.add_argument("--waits", type=int, default=50, help="fills waited for (default 50)")
    parser.add_argument("--runs", type=int, default=1, help="rounds (default 1)")
    parser.add_argument("--try", dest="is_trial", action="store_true", help="record nothing")
    options = parser.parse_args()
    results: list[Result] = []
    with stack() as (kafka, directory):
        for result in run_all(options, kafka, directory):
            print(result, f"load {os.getloadavg()[0]:.1f}", flush=True)
            results.append(result)
            if not options.is_trial:
                record(result)
    print_table(results)


def run_all(options: argparse.Namespace, kafka: str, directory: Path) -> Iterator[Result]:
    for _ in range(options.runs):
        for rate in options.rates:
            yield measure(kafka, directory, rate, options.seconds, options.warm_up)
        if options.waits:
            yield measure_waits(kafka, directory, options.waits)


if __name__ == "__main__":
    main()
