"""Which partition a key belongs to: Kafka's default murmur2."""

from __future__ import annotations

from ledger import _fold

partition_of = _fold.partition_of
"""The partition (0-based) of a record's key among a number of partitions."""
