"""Properties of messages, read whatever bytes people put there.

RabbitMQ passes on names of headers and values of properties as they came. The client takes text
that is no UTF-8, and times that no calendar has, for a broken frame and ends the connection, again
and again at the same message. So one message would keep everybody from reading on in its room.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from pamqp import decode


class _Lenient(bytes):
    """Bytes that can always be decoded; so can their parts."""

    def __getitem__(self, key: Any) -> Any:
        part = super().__getitem__(key)
        return _Lenient(part) if isinstance(part, bytes) else part

    def decode(self, encoding: str = "utf-8", errors: str = "replace") -> str:
        return super().decode(encoding, errors)


def read_leniently() -> None:
    """Let the client read every message, for this process; to do it again changes nothing."""
    decode.METHODS["shortstr"] = lambda value: decode.short_str(_Lenient(value))
    decode.METHODS["table"] = lambda value: decode.field_table(_Lenient(value))
    decode.METHODS["timestamp"] = _timestamp
    decode.TABLE_MAPPING[b"T"] = _timestamp


def _timestamp(value: bytes) -> tuple[int, datetime]:
    try:
        return decode.timestamp(value)
    except (ValueError, OverflowError):  # 8 bytes that are no date
        return 8, datetime.fromtimestamp(0, UTC)
