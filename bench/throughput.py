"""How fast one worker and `replay` fold 1,000,000 fills, beside a bare read of the same topic.

The work is that of the peers' comparison: 10,000 accounts, 4 instruments, 4 partitions, fills of
about 320 bytes whose orders nobody knows. A local stack of its own is started (or the one that
LEDGER_KAFKA names is used), everything is verified, and one JSON line per run is appended to
bench/results.jsonl.

    python bench/throughput.py [--fills 1000000] [--runs 3] [--workers 1]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import psutil
from common import PARTITIONS, record, stack
from confluent_kafka import Consumer, Producer, TopicPartition

from ledger.events import FILLS
from ledger.kafka import BALANCES, Cluster
from ledger.published import newest_marks, read_published, totals
from ledger.settings import Settings

RAW_READ = "raw read"


def produce(cluster: Cluster, count: int) -> dict[str, Decimal]:
    """Publish deterministic fills; return @clearing's balances, computed in integers."""
    cluster.ensure_topics()
    rng = random.Random(1)
    producer = Producer(
        {
            "bootstrap.servers": cluster.bootstrap,
            "linger.ms": 20,
            "batch.num.messages": 10_000,
            "queue.buffering.max.messages": 1_000_000,
            "enable.idempotence": True,
            "partitioner": "murmur2_random",
        }
    )
    encode = msgspec.json.Encoder().encode
    clearing: dict[str, int] = {}
    topic = cluster.settings.topic(FILLS)
    for number in range(count):
        base = rng.choice(("BTC", "ETH", "SOL", "XRP"))
        account = f"acct-{rng.randrange(10_000):05d}"
        price, quantity, fee = rng.randrange(1, 10**6), rng.randrange(1, 10**6), rng.randrange(1000)
        buy = number % 2 == 1
        value = encode(
            {
                "type": "order_filled",
                "version": 1,
                "event_id": f"E{number:09d}",
                "fill_id": f"F{number:09d}",
                "trade_id": f"T{number // 2:09d}",
                "order_id": f"O{rng.randrange(count):09d}",
                "account": account,
                "instrument": f"{base}-USD",
                "side": "buy" if buy else "sell",
                "price": f"{price / 100:.2f}",
                "quantity": f"{quantity / 10_000:.4f}",
                "fee": f"{fee / 1000:.3f}",
                "fee_asset": "USD",
                "liquidity": "maker" if number % 3 else "taker",
                "occurred_at": f"2026-11-23T{number // 3_600_000 % 24:02d}:"
                f"{number // 60_000 % 60:02d}:{number // 1000 % 60:02d}.{number % 1000:03d}000Z",
            }
        )
        sign = -1 if buy else 1
        clearing[base] = clearing.get(base, 0) + sign * quantity * 100
        clearing["USD"] = clearing.get("USD", 0) - sign * price * quantity
        while True:
            try:
                producer.produce(topic, value, account.encode())
                break
            except BufferError:
                producer.poll(0.05)
        if number % 10_000 == 0:
            producer.poll(0)
    assert producer.flush(60) == 0
    return {asset: Decimal(micro) / 10**6 for asset, micro in clearing.items()}


def measured(
    name: str, count: int, run: Callable[[], tuple[float, dict[str, Any]]]
) -> dict[str, Any]:
    seconds, more = run()
    return {
        "what": name,
        "fills": count,
        "seconds": round(seconds, 3),
        "rate": round(count / seconds),
        **more,
    }


def raw_read(cluster: Cluster, count: int, checked: bool) -> tuple[float, dict[str, Any]]:
    """Read the topic with librdkafka and do nothing; `checked`: compare batches' check sums."""
    consumer = Consumer(
        {
            "bootstrap.servers": cluster.bootstrap,
            "group.id": "bench-raw",
            "enable.auto.commit": False,
            "queued.max.messages.kbytes": 200_000,
            "queued.min.messages": 200_000,
            "fetch.queue.backoff.ms": 5,
            "check.crcs": checked,
        }
    )
    topic = cluster.settings.topic(FILLS)
    consumer.assign([TopicPartition(topic, number, 0) for number in range(PARTITIONS)])
    got, started = 0, 0.0
    while got < count:
        batch = consumer.consume(10_000, 1.0)
        if batch and not started:
            started = time.perf_counter()
        for message in batch:
            message.value()
        got += len(batch)
    seconds = time.perf_counter() - started
    consumer.close()
    return seconds, {}


def forget_tables(cluster: Cluster) -> None:
    """Delete `balances`, so that a new worker publishes from the start again."""
    for future in cluster.admin.delete_topics([cluster.settings.topic(BALANCES)]).values():
        future.result()
    while cluster.topics([BALANCES]):
        time.sleep(0.1)
    cluster.ensure_topics()


def environment(settings: Settings) -> dict[str, str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("LEDGER_")}
    return env | {
        "LEDGER_KAFKA": str(settings.kafka),
        "LEDGER_TOPIC_PREFIX": settings.topic_prefix,
        "LEDGER_PARTITIONS": str(PARTITIONS),
        "LEDGER_STATE_DIR": str(settings.state_dir),
    }


def workers(
    cluster: Cluster, count: int, clearing: dict[str, Decimal], number: int
) -> tuple[float, dict[str, Any]]:
    """Run workers from the first record to the last one's flush being visible in `balances`."""
    settings = cluster.settings
    processes = []
    logs = []
    for index in range(number):
        log = settings.state_dir / f"worker-{index}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        logs.append(log)
        with log.open("wb") as output:
            command = [
                sys.executable,
                "-c",
                "from ledger.app import *; run_worker(load_settings())",
            ]
            processes.append(
                subprocess.Popen(command, env=environment(settings), stdout=output, stderr=output)
            )
    try:
        slots = [(FILLS, partition) for partition in range(PARTITIONS)]
        ends = cluster.ends(slots)
        watched = [psutil.Process(process.pid) for process in processes]
        peak = 0
        while True:
            assert all(process.poll() is None for process in processes), logs[0].read_text()
            peak = max(peak, sum(process.memory_info().rss for process in watched))
            marks = newest_marks(cluster, range(PARTITIONS))
            if all(p in marks and marks[p].watermark[FILLS] >= ends[FILLS, p] for _, p in slots):
                break
            time.sleep(0.05)
        finished = datetime.now()  # noqa: DTZ005 - the worker's log has local times too
        cpu = sum(sum(process.cpu_times()[:2]) for process in watched)
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(10)
    folding = [
        re.findall(r"^(\S+ \S+) INFO folding partitions \d", log.read_text(), re.M) for log in logs
    ]
    started = min(datetime.strptime(times[0], "%Y-%m-%d %H:%M:%S,%f") for times in folding if times)  # noqa: DTZ007
    published = read_published(cluster, range(PARTITIONS))
    sums = totals(row for found in published.values() for row in found.accounts.items())
    assert {a: sums["@clearing", a].balance for a in clearing} == clearing, "wrong result"
    return (finished - started).total_seconds(), {
        "workers": number,
        "cpu_s": round(cpu, 2),
        "peak_rss_mib": peak >> 20,
    }


def replay(
    cluster: Cluster, clearing: dict[str, Decimal], processes: int
) -> tuple[float, dict[str, Any]]:
    """Run `replay --base genesis` on the whole topic."""
    command = [sys.executable, "-m", "replay", "--from-offset", "earliest", "--base", "genesis"]
    command += ["--account", "@clearing", "--processes", str(processes), "--json"]
    process = subprocess.Popen(command, env=environment(cluster.settings), stdout=subprocess.PIPE)
    out, _ = process.communicate()
    assert process.returncode == 0
    result = json.loads(out)
    found = {row["asset"]: Decimal(row["balance"]) for row in result["balances"]}
    assert found == clearing, "wrong result"
    return float(result["seconds"]), {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fills", type=int, default=1_000_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--only", choices=["worker", "replay"])
    options = parser.parse_args()
    with stack() as (kafka, directory):
        run_all(options, kafka, directory)


def run_all(options: argparse.Namespace, kafka: str, directory: Path) -> None:
    results: list[dict[str, Any]] = []
    prefix = f"bench{os.getpid()}-"

    def cluster(state: str) -> Cluster:
        return Cluster(
            kafka,
            Settings(
                kafka=kafka,
                topic_prefix=prefix,
                partitions=PARTITIONS,
                state_dir=directory / state,
            ),
        )

    clearing = produce(cluster("produce"), options.fills)
    for run in range(options.runs):
        for name, checked in ((RAW_READ, False), ("raw read, check sums compared", True)):
            results.append(
                measured(
                    name,
                    options.fills,
                    lambda checked=checked: raw_read(cluster("r"), options.fills, checked),
                )
            )
            print(results[-1], flush=True)
        if options.only != "replay":
            fresh = cluster(f"worker-{run}")
            forget_tables(fresh)
            results.append(
                measured(
                    "worker",
                    options.fills,
                    lambda fresh=fresh: workers(fresh, options.fills, clearing, options.workers),
                )
            )
            print(results[-1], flush=True)
        for processes in () if options.only == "worker" else (1, 2):
            results.append(
                measured(
                    f"replay, {processes} process{'es' * (processes > 1)}",
                    options.fills,
                    lambda run=run, processes=processes: replay(
                        cluster(f"replay-{run}"), clearing, processes
                    ),
                )
            )
            print(results[-1], flush=True)
    medians = {
        what: statistics.median(r["rate"] for r in results if r["what"] == what)
        for what in dict.fromkeys(r["what"] for r in results)
    }
    print(f"\n| what | fills/s (median of {options.runs}) | of raw read |\n|---|---:|---:|")
    for what, rate in medians.items():
        print(f"| {what} | {rate:,.0f} | {rate / medians[RAW_READ]:.3f} |")
    for result in results:
        record(result)


if __name__ == "__main__":
    main()
