"""Dead letters: records that cannot be applied, or not be passed on, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from ledger.kafka import LARGEST_RECORD_BYTES
from ledger.projections.partition import Rejected

_LARGEST_LETTER_BYTES: Final = LARGEST_RECORD_BYTES - (1 << 20)  # the rest is for our own headers
_HEADER_BYTES: Final = 16  # what framing takes, at most
_LONGEST_DETAIL: Final = 1000


@dataclass(frozen=True)
class DeadLetter:
    """A record of the topic `dead-letters`."""

    key: bytes
    value: bytes | None
    headers: list[tuple[str, str | bytes | None]]


def dead_letter(partition: int, rejected: Rejected) -> DeadLetter:
    """Return what is published of a rejected record; one that is too large loses its largest parts.

    A producer's limit is for value, key and headers together, before they are compressed: a record
    that came in may be far above it.

    Args:
        partition: where the record is.
        rejected: a record of a Kafka client, with headers.
    """
    record: Any = rejected.record
    source = f"{rejected.topic}:{partition}:{record.offset}".encode()
    sizes = {
        "value": len(record.value or b""),
        "headers": sum(
            len(name.encode()) + len(value or b"") + _HEADER_BYTES for name, value in record.headers
        ),
        "key": len(record.key or b""),
    }
    detail = rejected.detail.encode(errors="replace")[:_LONGEST_DETAIL]
    dropped = []
    while sum(sizes.values()) > _LARGEST_LETTER_BYTES:
        part = max(sizes, key=lambda part: sizes[part])
        dropped.append(part)
        detail += f"; too large to be kept here: {part} of {sizes.pop(part)} bytes".encode()
    headers: list[tuple[str, str | bytes | None]] = (
        list(record.headers) if "headers" in sizes else []
    )
    headers += [
        ("key", record.key if "key" in sizes else None),
        ("source", source),
        ("reason", rejected.reason.encode()),
        ("detail", detail),
    ]
    if dropped:  # else the last header is `detail`, so this cannot be one of the record's own
        headers.append(("dropped", ",".join(dropped).encode()))
    return DeadLetter(source, record.value if "value" in sizes else None, headers)
