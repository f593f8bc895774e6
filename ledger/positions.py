"""Positions in the input topics as people write them, and as they can be pasted back.

| form | means |
|---|---|
| `N` | offset N in every partition of every input topic, or its end where that is before N |
| `earliest`, `latest` | the first offset still there, the end |
| `snapshot` | where the newest snapshot was made, or `earliest` where there is none |
| `TOPIC=…` | the same, for one topic |
| `TOPIC:PARTITION=…` | the same, for one partition; an N beyond its end is refused |
| a snapshot's name or path | where it was made, in the partition that it is of |

Several are joined by commas or given as several options; the most specific wins in any order.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal, get_args

from ledger import times
from ledger.errors import InputError
from ledger.events import INPUT_TOPICS
from ledger.projections.partition import Watermark

Watermarks = dict[int, Watermark]
"""Partition to watermark."""

Word = Literal["earliest", "latest", "snapshot"]
EARLIEST: Final = "earliest"
LATEST: Final = "latest"
WORDS: Final[Mapping[str, Word]] = {word: word for word in get_args(Word)}

LARGEST_OFFSET: Final = 2**63 - 1

_ITEM: Final = re.compile(
    rf"(?:(?P<topic>[^=:]*)(?::(?P<partition>[^=:]*))?=)?(?P<offset>-?[0-9]+|{'|'.join(WORDS)})"
)
_NAME: Final = re.compile(
    rf"p(?P<partition>[0-9]{{5,9}})-{'-'.join(f'{t}=(?P<{t}>[0-9]{{1,19}})' for t in INPUT_TOPICS)}"
    r"\.parquet"
)
FORMS: Final = (
    "N, TOPIC=N or TOPIC:PARTITION=N, where TOPIC is one of "
    f"{', '.join(INPUT_TOPICS)} and N an offset, 'earliest', 'latest' or 'snapshot'; or a "
    "snapshot's name"
)
_TIME: Final = re.compile(r"[0-9]{4}-.*")

Target = tuple[str | None, int | None]
"""What a position is for: a topic's partition, a topic (None), or all (None, None)."""


@dataclass(frozen=True)
class Limits:
    """The offsets that words mean.

    Attributes:
        earliest: the first ones still there.
        latest: the ends.
        snapshots: returns where the newest snapshots were made; asked where one is meant.
    """

    earliest: Mapping[int, Watermark]
    latest: Mapping[int, Watermark]
    snapshots: Callable[[], Mapping[int, Watermark]]

    def at(self, word: Word, topic: str, partition: int) -> int:
        """Return the offset that a word means in a partition of a topic."""
        if word == EARLIEST:
            return self.earliest[partition][topic]
        if word == LATEST:
            return self.latest[partition][topic]
        return self.snapshots().get(partition, self.earliest[partition])[topic]


def parse_positions(
    texts: Iterable[str], limits: Limits, unnamed: Word, source: str = "position"
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


def format_positions(marks: Mapping[int, Watermark]) -> str:
    """Return watermarks in the form that `parse_positions` takes back."""
    return ",".join(
        f"{topic}:{partition}={marks[partition][topic]}"
        for topic in INPUT_TOPICS
        for partition in sorted(marks)
    )


def snapshot_name(partition: int, watermark: Watermark) -> str:
    """Return the file name of a partition's snapshot."""
    offsets = "-".join(f"{topic}={watermark[topic]}" for topic in INPUT_TOPICS)
    return f"p{partition:05d}-{offsets}.parquet"


def parse_snapshot_name(name: str) -> tuple[int, Watermark] | None:
    """Return the partition and watermark in a snapshot's file name; None if it is none."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    return int(match["partition"]), {topic: int(match[topic]) for topic in INPUT_TOPICS}


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


def _named(texts: Iterable[str], partitions: int) -> dict[Target, int | Word]:
    named: dict[Target, int | Word] = {}
    words: dict[Target, str] = {}
    for item in (item.strip() for text in texts for item in text.split(",")):
        for target, offset in _parse(item, partitions):
            if named.setdefault(target, offset) != offset:
                raise InputError(
                    f"'{words[target]}' and '{item:.80}' contradict each other; leave one out."
                )
            words.setdefault(target, f"{item:.80}")
    return named


def _parse(item: str, partitions: int) -> Iterator[tuple[Target, int | Word]]:
    snapshot = parse_snapshot_name(item.rpartition("/")[2])
    if snapshot is not None:
        number, watermark = snapshot
        _partition(item, str(number), partitions)
        for topic, offset in watermark.items():
            yield (topic, number), offset
        return
    match = _ITEM.fullmatch(item)
    if match is None:
        raise InputError(f"'{item:.80}' is not a position; it must be {FORMS}.")
    topic, text = match["topic"], match["partition"]
    if topic is not None and topic not in INPUT_TOPICS:
        raise InputError(
            f"'{item:.80}': there is no input topic '{topic:.80}'; "
            f"there are {', '.join(INPUT_TOPICS)}."
        )
    yield (topic, _partition(item, text, partitions)), _offset(item, match["offset"])


def _partition(item: str, number: str | None, partitions: int) -> int | None:
    if number is None:
        return None
    if re.fullmatch(r"[0-9]{1,9}", number) is None or int(number) >= partitions:
        raise InputError(
            f"'{item:.80}': there is no partition '{number:.80}'; there are 0 to {partitions - 1}."
        )
    return int(number)


def _offset(item: str, text: str) -> int | Word:
    if text in WORDS:
        return WORDS[text]
    if text.startswith("-"):
        raise InputError(f"'{item:.80}': an offset cannot be negative; the first one is 0.")
    # Beyond 19 digits it is beyond any end; no need to know by how much.
    return min(int(text), LARGEST_OFFSET) if len(text.lstrip("0")) < 20 else LARGEST_OFFSET


def _position(
    named: Mapping[Target, int | Word], topic: str, partition: int, limits: Limits, unnamed: Word
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
