"""Which partition a key belongs to: Kafka's default murmur2, as aiokafka computes it."""

from __future__ import annotations

from functools import lru_cache


@lru_cache(maxsize=100_000)
def partition_of(key: bytes, partitions: int) -> int:
    """Return the partition (0-based) of a record's key among `partitions`."""
    # Imported here, because a command that needs no more of aiokafka should not wait for it.
    from aiokafka.partitioner import murmur2

    return int(murmur2(key) & 0x7FFFFFFF) % partitions
