"""Time stamps as RFC 3339 writes them, compared exactly at any number of fraction digits."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone

RFC3339 = (
    r"[0-9]{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12][0-9]|3[01])"
    r"[Tt](?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]+)?"
    r"(?:[Zz]|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
)
_RFC3339 = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})[Tt]([0-9]{2}):([0-9]{2}):([0-9]{2})(?:\.([0-9]+))?"
    r"(?:[Zz]|([+-])([0-9]{2}):([0-9]{2}))"
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Instant = tuple[int, str]
"""Whole seconds since 1970 (UTC) and the fraction's digits without trailing zeros; sortable."""


def instant(text: str) -> Instant:
    """Return the moment that an RFC 3339 text names.

    Raises:
        ValueError: it is not RFC 3339 with a zone, or no such date exists.
    """
    match = _RFC3339.fullmatch(text)
    if match is None or re.fullmatch(RFC3339, text) is None:
        raise ValueError("must be an RFC 3339 time with a zone, such as 2015-05-01T00:00:06.337Z")
    year, month, day, hour, minute, second, fraction, sign, zone_hours, zone_minutes = (
        match.groups()
    )
    zone = UTC
    if sign is not None:
        ahead = timedelta(hours=int(zone_hours), minutes=int(zone_minutes))
        zone = timezone(-ahead if sign == "-" else ahead)
    try:
        moment = datetime(
            int(year), int(month), int(day), int(hour), int(minute), int(second), tzinfo=zone
        ).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"no such time: {error}") from error
    since = moment - _EPOCH
    return since.days * 86_400 + since.seconds, (fraction or "").rstrip("0")


def epoch_ms(text: str) -> int:
    """Return the whole milliseconds since 1970 at or before an RFC 3339 time."""
    seconds, fraction = instant(text)
    return seconds * 1000 + int(fraction[:3].ljust(3, "0"))


def rfc3339(milliseconds: int) -> str | None:
    """Return a Kafka time stamp (milliseconds since 1970) as RFC 3339 in UTC.

    None where its year does not have four digits: Kafka takes any number for a time.
    """
    try:
        moment = _EPOCH + timedelta(milliseconds=milliseconds)
    except OverflowError:
        return None
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
