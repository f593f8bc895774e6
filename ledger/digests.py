"""Digests that prove which records were read and which state they made (contract, section 4).

*log digest*: a SHA-256 chain over every record of a partition, valid or not.

*state digest*: SHA-256 over the canonical header of a partition's state (watermark, counts,
`rules_version`) and the sum, modulo 2^2048, of one 2048-bit hash for each stored entry. The sum
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

GENESIS = bytes(32)
_ELEMENT_BYTES = 256
_MODULUS_MASK = (1 << (8 * _ELEMENT_BYTES)) - 1

_sha256 = hashlib.sha256
_shake = hashlib.shake_128
_offset_and_length = struct.Struct(">Qi").pack
_length = struct.Struct(">i").pack
_NULL = struct.pack(">i", -1)


def chain(previous: bytes, offset: int, key: bytes | None, value: bytes | None) -> bytes:
    """Return the log digest (32 bytes) after one more record."""
    if key is None:
        head = _offset_and_length(offset, -1)
    else:
        head = _offset_and_length(offset, len(key)) + key
    tail = _NULL if value is None else _length(len(value)) + value
    return _sha256(previous + head + tail).digest()


def element(key: bytes, value: bytes) -> int:
    """Return the 2048-bit hash of one stored entry."""
    data = _length(len(key)) + key + value
    return int.from_bytes(_shake(data).digest(_ELEMENT_BYTES), "little")


def combine(total: int, added: int, removed: int) -> int:
    """Return the sum of a state's elements after some were added and some removed."""
    return (total + added - removed) & _MODULUS_MASK


def total_of(entries: Iterable[tuple[bytes, bytes]]) -> int:
    """Return the sum over all stored entries, as a restored state must have it."""
    total = 0
    for key, value in entries:
        total += element(key, value)
    return total & _MODULUS_MASK


def state_digest(header: Mapping[str, Any], total: int) -> str:
    """Return the digest (hex) of one partition's state."""
    text = msgspec.json.encode(header, order="deterministic")
    return _sha256(
        b"ledger-state\0" + _length(len(text)) + text + total.to_bytes(_ELEMENT_BYTES, "little")
    ).hexdigest()


def ledger_digest(partition_digests: Iterable[str]) -> str:
    """Return the digest of the whole ledger: its partitions' digests in order."""
    return _sha256(
        b"ledger\0" + b"".join(bytes.fromhex(digest) for digest in partition_digests)
    ).hexdigest()
