"""Positions in the input topics as people write them, and as they can be pasted back.

| form | means |
|---|---|
| `N` | offset N in every partition of every input topic, or its end where that is before N |
| `earliest`, `latest` | the first offset still there, the end |
| `TOPIC=…` | the same, for one topic |
| `TOPIC:PARTITION=…` | the same, for one partition; an N beyond its end is refused |

Several are joined by commas or given as several options; the most specific wins in any order.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from ledger import times
from ledger.errors import InputError
from ledger.events import INPUT_TOPICS
from ledger.projections.partition import Watermark

Watermarks = dict[int, Watermark]
"""Partition to watermark."""

Edge = Literal["earliest", "latest"]
EARLIEST: Final = "earliest"
LATEST: Final = "latest"

LARGEST_OFFSET: Final = 2**63 - 1

_ITEM: Final = re.compile(
    r"(?:(?P<topic>[^=:]*)(?::(?P<partition>[^=:]*))?=)?(?P<offset>-?[0-9]+|earliest|latest)"
)
_FORMS: Final = "N, TOPIC=N or TOPIC:PARTITION=N, where N is an offset, 'earliest' or 'latest'"
_TIME: Final = re.compile(r"[0-9]{4}-.*")

Target = tuple[str | None, int | None]
"""What a position is for: a topic's partition, a topic (None), or all (None, None)."""


@dataclass(frozen=True)
class Limits:
    """The offsets that can be named: `earliest` is the first still there, `latest` the end."""

    earliest: Mapping[int, Watermark]
    latest: Mapping[int, Watermark]

    def at(self, edge: Edge, topic: str, partition: int) -> int:
        """Return the offset of one edge of a partition."""
        limits = self.earliest if edge == EARLIEST else self.latest
        return limits[partition][topic]


def parse_positions(
    texts: Iterable[str], limits: Limits, unnamed: Edge, source: str = "position"
) -> Watermarks:
    """Return the watermark of each partition that the texts name.

    Args:
        texts: positions in the forms above, each possibly several joined by commas.
        limits: where each partition begins and ends.
        unnamed: where a partition stands that no text names.
        source: what a person calls the texts, such as `--from-offset`; errors begin with it.

    Raises:
        InputError: a text has another form, names a topic or partition that does not exist or
            an offset beyond its end, or contradicts another of the same specificity.
    """
    try:
        named = _named(texts, len(limits.latest))
        return {
            partition: {
                topic: _position(named, topic, partition, limits, unnamed) for topic in INPUT_TOPICS
            }
            for partition in sorted(limits.latest)
        }
    except InputError as error:
        raise InputError(f"{source}: {error}") from error


def parse_watermark(
    text: str,
    ends: Mapping[int, Watermark],
    earliest: Mapping[int, Watermark],
    source: str = "watermark",
) -> Watermarks:
    """Return the watermarks that one text names, as `format_positions` wrote it or shorter.

    Partitions that it does not name stand at their end. See `parse_positions` for the errors.
    """
    return parse_positions([text], Limits(earliest, ends), LATEST, source)


def format_positions(marks: Mapping[int, Watermark]) -> str:
    """Return watermarks in the form that `parse_positions` takes back."""
    return ",".join(
        f"{topic}:{partition}={marks[partition][topic]}"
        for topic in INPUT_TOPICS
        for partition in sorted(marks)
    )


def is_time(text: str) -> bool:
    """Return whether a text that may be a position or a time is meant to be a time."""
    return _TIME.fullmatch(text.strip()) is not None


def moment_ms(text: str, source: str = "time") -> int:
    """Return the milliseconds since 1970 of an RFC 3339 time, the next ones if it lies between.

    A record whose time stamp is at or above the result is at or after the time. Times before 1970
    give 0, for no record is older.

    Raises:
        InputError: it is not RFC 3339 with a zone.
    """
    try:
        _, fraction = times.instant(text.strip())
        whole = times.epoch_ms(text.strip())
    except ValueError as error:
        raise InputError(f"{source}: {error} (found {text!r:.80}).") from error
    return max(0, whole + (1 if len(fraction) > 3 else 0))


def clamped(marks: Mapping[int, Watermark], limits: Mapping[int, Watermark]) -> Watermarks:
    """Return watermarks, no offset of them beyond a limit."""
    return {
        partition: {topic: min(offset, limits[partition][topic]) for topic, offset in mark.items()}
        for partition, mark in marks.items()
    }


def require_order(
    start: Mapping[int, Watermark],
    end: Mapping[int, Watermark],
    mend: str = "Move --to-offset or --to-time up, or --from-offset or --from-time down.",
) -> None:
    """Check that no partition ends before it starts; `mend` says what a person can do.

    Raises:
        InputError: one does; it names it.
    """
    for topic in INPUT_TOPICS:
        for partition in sorted(end):
            first, stop = start[partition][topic], end[partition][topic]
            if stop < first:
                raise InputError(
                    f"{topic}:{partition}: the end, offset {stop}, is before the start, offset "
                    f"{first}. {mend}"
                )


def _named(texts: Iterable[str], partitions: int) -> dict[Target, int | Edge]:
    named: dict[Target, int | Edge] = {}
    words: dict[Target, str] = {}
    for item in (item.strip() for text in texts for item in text.split(",")):
        target, offset = _parse(item, partitions)
        if named.setdefault(target, offset) != offset:
            raise InputError(
                f"'{words[target]}' and '{item:.80}' contradict each other; leave one out."
            )
        words.setdefault(target, item)
    return named


def _parse(item: str, partitions: int) -> tuple[Target, int | Edge]:
    match = _ITEM.fullmatch(item)
    if match is None:
        raise InputError(f"'{item:.80}' is not a position; it must be {_FORMS}.")
    topic, number, offset = match["topic"], match["partition"], match["offset"]
    if topic is not None and topic not in INPUT_TOPICS:
        raise InputError(
            f"'{item:.80}': there is no input topic '{topic:.80}'; "
            f"there are {', '.join(INPUT_TOPICS)}."
        )
    return (topic, _partition(item, number, partitions)), _offset(item, offset)


def _partition(item: str, number: str | None, partitions: int) -> int | None:
    if number is None:
        return None
    if re.fullmatch(r"[0-9]{1,9}", number) is None or int(number) >= partitions:
        raise InputError(
            f"'{item:.80}': there is no partition '{number:.80}'; there are 0 to {partitions - 1}."
        )
    return int(number)


def _offset(item: str, text: str) -> int | Edge:
    if text == "earliest":
        return EARLIEST
    if text == "latest":
        return LATEST
    if text.startswith("-"):
        raise InputError(f"'{item:.80}': an offset cannot be negative; the first one is 0.")
    # Beyond 19 digits it is beyond any end; no need to know by how much.
    return min(int(text), LARGEST_OFFSET) if len(text.lstrip("0")) < 20 else LARGEST_OFFSET


def _position(
    named: Mapping[Target, int | Edge], topic: str, partition: int, limits: Limits, unnamed: Edge
) -> int:
    end = limits.latest[partition][topic]
    exact = named.get((topic, partition))
    if exact is not None and not isinstance(exact, str):
        if exact > end:
            raise InputError(
                f"'{topic}:{partition}={exact}' is beyond the end, which is at offset {end}."
            )
        return exact
    broader = named.get((topic, None), named.get((None, None), unnamed))
    chosen = exact if exact is not None else broader
    if isinstance(chosen, str):
        return limits.at(chosen, topic, partition)
    return min(chosen, end)
