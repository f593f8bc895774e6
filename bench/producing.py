"""Putting many records into a ledger's topics, as fast as one process can."""

from __future__ import annotations

import argparse
from collections.abc import Iterable

from confluent_kafka import Producer
from workloads import Record

from ledger.kafka import Cluster

COMPRESSIONS = ("none", "lz4", "zstd", "snappy", "gzip")

_POLLED_EVERY = 10_000
_FLUSH_S = 60.0


def add_option(parser: argparse.ArgumentParser) -> None:
    """Add the option `--compression`."""
    parser.add_argument(
        "--compression", choices=COMPRESSIONS, default="none", help="of the records (default none)"
    )


def producer(cluster: Cluster, compression: str = "none", linger_ms: int = 20) -> Producer:
    """Return a producer whose partitions are the ledger's; `linger_ms` fills its batches."""
    return Producer(
        {
            "bootstrap.servers": cluster.bootstrap,
            "linger.ms": linger_ms,
            "batch.num.messages": 10_000,
            "queue.buffering.max.messages": 1_000_000,
            "enable.idempotence": True,
            "partitioner": "murmur2_random",
            "compression.type": compression,
            "log_level": 2,
        }
    )


def publish(cluster: Cluster, records: Iterable[Record], compression: str = "none") -> None:
    """Publish records; return when all are acknowledged."""
    sender = producer(cluster, compression)
    for number, (topic, key, value) in enumerate(records):
        name = cluster.settings.topic(topic)
        while True:
            try:
                sender.produce(name, value, key)
                break
            except BufferError:
                sender.poll(0.05)
        if number % _POLLED_EVERY == 0:
            sender.poll(0)
    assert sender.flush(_FLUSH_S) == 0, "not all was acknowledged"
