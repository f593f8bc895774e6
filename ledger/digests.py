"""Digests that prove which records were read and which state they made (contract, section 4).

*log digest*: a SHA-256 chain over every record of a partition, valid or not.

*state digest*: SHA-256 over the canonical header of a partition's state (watermark, counts,
`rules_version`) and the sum, modulo 2^2048, of 2048 bits of BLAKE3 of each stored entry. The sum
makes it incremental: a flush pays for what changed, not for all there is, and the order of
entries does not matter. (Bellare and Micciancio, "A New Paradigm for Collision-free Hashing:
Incrementality at Reduced Cost", 1997; at 2048 bits the generalised birthday attack is out of
reach.)
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from ledger import _fold

GENESIS = bytes(32)
_ELEMENT_BYTES = 256

_sha256 = hashlib.sha256
_length = struct.Struct(">i").pack

chain = _fold.chain
"""The log digest (32 bytes) after one more record: of the digest before it, offset, key, value."""


def total_of(entries: Iterable[tuple[bytes, bytes]]) -> int:
    """Return the sum over all stored entries, as a restored state must have it."""
    sum_ = _fold.EntrySum()
    for key, value in entries:
        sum_.add(key, value)
    return from_bytes(sum_.total)


def to_bytes(total: int) -> bytes:
    """Return a sum of entries as the fold has it."""
    return total.to_bytes(_ELEMENT_BYTES, "little")


def from_bytes(total: bytes) -> int:
    """Return the sum of entries that the fold has as bytes."""
    return int.from_bytes(total, "little")


def state_digest(header: Mapping[str, Any], total: int) -> str:
    """Return the digest (hex) of one partition's state."""
    text = msgspec.json.encode(header, order="deterministic")
    return _sha256(b"ledger-state\0" + _length(len(text)) + text + to_bytes(total)).hexdigest()


def ledger_digest(partition_digests: Iterable[str]) -> str:
    """Return the digest of the whole ledger: its partitions' digests in order."""
    return _sha256(
        b"ledger\0" + b"".join(bytes.fromhex(digest) for digest in partition_digests)
    ).hexdigest()
