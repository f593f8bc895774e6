"""Where the time of one fill goes: the steps of a worker and a replay, one by one, in one thread.

The fills of one partition of four are put into record batches as Kafka has them, without Kafka, and
folded into an empty state: in memory, as a replay does, and in RocksDB, as a worker does. Each step
is timed by this thread's CPU; RocksDB's own threads are the difference to the process's. Nothing is
recorded; one line of Markdown per step, medians of some rounds.

    python bench/steps.py [--events 1000000] [--rounds 3]
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from aiokafka.record.default_records import DefaultRecordBatchBuilder
from books import Books
from common import PARTITIONS
from workloads import fills

from ledger.memory import live_shortly
from ledger.partitioner import partition_of
from ledger.projections.partition import Frozen, Origin, Partition
from ledger.records import Block, _Blocks, packed
from ledger.rocks import RocksStore
from ledger.store import MemoryStore, Store

NUMBER = 0
BATCH = 3_000
"""Records of a batch, about 1 MiB."""
MEMORY, ROCKS = "in memory", "RocksDB"
FREEZE_AFTER = 10_000

_T = TypeVar("_T")


def batches(events: int) -> Iterator[tuple[int, bytes]]:
    """Yield record batches of the partition, each with its first offset."""
    ours = (
        (key, value)
        for _, key, value in fills(events, Books())
        if partition_of(key, PARTITIONS) == NUMBER
    )
    offset = 0
    while records := list(islice(ours, BATCH)):
        builder: Any = DefaultRecordBatchBuilder(
            magic=2,
            compression_type=0,
            is_transactional=0,
            producer_id=-1,
            producer_epoch=-1,
            base_sequence=-1,
            batch_size=1 << 24,
        )
        for place, (key, value) in enumerate(records):
            builder.append(place, 0, key, value, [])
        # The base offset comes first; the check sum does not cover it.
        yield offset, offset.to_bytes(8, "big") + bytes(builder.build())[8:]
        offset += len(records)


class Steps:
    """How much CPU each step took, in seconds."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    def take(self, step: str, work: Callable[[], _T]) -> _T:
        """Do a step's work."""
        began = time.thread_time()
        result = work()
        self.seconds[step] += time.thread_time() - began
        return result


def fold(data: list[tuple[int, bytes]], store: Store) -> dict[str, float]:
    """Fold batches; return the seconds of each step."""
    steps = Steps()
    began, in_thread = time.process_time(), time.thread_time()
    partition = Partition(NUMBER, store, Origin(partitions=PARTITIONS))
    unfrozen = 0

    def settle() -> None:
        frozen: Frozen = steps.take("freezing: encoding what changed", partition.freeze)
        steps.take("hashing", lambda: frozen.total)
        steps.take("rows to publish", lambda: sum(map(len, frozen.rows())))
        steps.take("storing", partition.write)
        steps.take("settling: forgetting what need not be kept", partition.settle)

    for offset, batch in data:
        blocks = steps.take("check sums", lambda batch=batch: _blocks(batch))  # type: ignore[misc]
        records = steps.take(
            "finding keys and values",
            lambda blocks=blocks, offset=offset: packed(blocks, offset),  # type: ignore[misc]
        )
        steps.take("applying", lambda records=records: partition.apply("fills", records))  # type: ignore[misc]
        unfrozen += len(records.records)
        if unfrozen >= FREEZE_AFTER:
            settle()
            unfrozen = 0
    settle()
    others = time.process_time() - began - (time.thread_time() - in_thread)
    steps.seconds["other threads"] = max(0.0, others)
    return dict(steps.seconds)


def _blocks(batch: bytes) -> list[Block]:
    found = _Blocks(batch)
    blocks = []
    while found.has_next():
        blocks.append(found.next_batch())
    return blocks


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--events", type=int, default=1_000_000, help="of all four partitions")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    live_shortly()  # as a replay does
    data = list(batches(options.events))
    count = sum(len(packed(_blocks(batch), offset).records) for offset, batch in data)
    took: dict[tuple[str, str], list[float]] = defaultdict(list)
    for _ in range(options.rounds):
        for kind in (MEMORY, ROCKS):
            directory = Path(tempfile.mkdtemp(prefix="ledger-bench-"))
            try:
                store = MemoryStore() if kind == MEMORY else RocksStore(directory / "p0")
                for step, seconds in fold(data, store).items():
                    took[step, kind].append(seconds / count * 1e6)
                if isinstance(store, RocksStore):
                    store.close()
            finally:
                shutil.rmtree(directory)
    print(f"{count:,} fills, µs each, medians of {options.rounds}:\n")
    print(f"| step | {MEMORY} | {ROCKS} |\n|---|---:|---:|")
    for step in dict.fromkeys(step for step, _ in took):
        cells = [f"{statistics.median(took[step, kind]):.2f}" for kind in (MEMORY, ROCKS)]
        print(f"| {step} | {' | '.join(cells)} |")
    total = [
        sum(statistics.median(times) for (_, of), times in took.items() if of == kind)
        for kind in (MEMORY, ROCKS)
    ]
    print(f"| all | {total[0]:.2f} | {total[1]:.2f} |")


if __name__ == "__main__":
    main()
