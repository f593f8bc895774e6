"""The commands `dead-letters` and `redrive`: what could not be applied, and sending it again.

A dead letter has the original value and, as its key, `topic:partition:offset` of its source. Its
headers are the original ones as they were and, after them, `key` (the original key; null where
there was none), `source`, `reason` and `detail`; and `dropped` where the record was too large:
which of `value`, `headers` and `key` were left out, joined by commas.
"""

from __future__ import annotations

import base64
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Final

import typer
from confluent_kafka import Consumer, KafkaError, Message, TopicPartition

from ledger import console, times
from ledger.cli.shared import AsJson, confirm, connect
from ledger.continuity import require_topics
from ledger.errors import InputError, UnreachableError
from ledger.events import INPUT_TOPICS
from ledger.kafka import DEAD_LETTERS, Cluster, Slot, client_config
from ledger.publish import Headers, Sender
from ledger.settings import load_settings

_BATCH: Final = 1_000
_STALLED_S: Final = 30.0
_PREVIEW: Final = 80

SOURCE: Final = "source"
REASON: Final = "reason"
DETAIL: Final = "detail"
KEY: Final = "key"
DROPPED: Final = "dropped"
UNKNOWN: Final = "unknown"
"""The reason of what no worker wrote."""

Reason = Annotated[
    str | None,
    typer.Option(help="Only those with this reason: 'invalid', 'conflict' or 'unpublishable'."),
]


@dataclass(frozen=True)
class DeadLetter:
    """A record that was not applied, and why.

    Attributes:
        offset: of the dead letter in its own topic.
        occurred_ms: when it was written, in milliseconds since 1970.
        source: `topic:partition:offset` of the record.
        reason: a word.
        detail: a sentence.
        key: of the record.
        value: of the record.
        headers: of the record.
        dropped: which of the three were too large for a dead letter, and are not in it.
    """

    offset: int
    occurred_ms: int
    source: str
    reason: str
    detail: str
    key: bytes | None
    value: bytes | None
    headers: Headers
    dropped: tuple[str, ...] = ()

    @property
    def topic(self) -> str:
        """The topic that the record is in."""
        return self.source.partition(":")[0]

    def as_json(self) -> dict[str, Any]:
        """Return the dead letter as `--json` prints it."""
        return {
            "source": self.source,
            "reason": self.reason,
            "detail": self.detail,
            "key": bytes_json(self.key),
            "value": bytes_json(self.value),
            "headers": [[name, bytes_json(value)] for name, value in self.headers],
            "dropped": list(self.dropped),
            "offset": self.offset,
            "time": times.rfc3339(self.occurred_ms),
        }


def bytes_json(data: bytes | None) -> str | dict[str, str] | None:
    """Return bytes for JSON: text where they are UTF-8, else `{"base64": …}`."""
    if data is None:
        return None
    try:
        return data.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode()}


def reasons(letters: Iterable[DeadLetter]) -> dict[str, int]:
    """Return how many dead letters have each reason, reasons in order."""
    counts: dict[str, int] = {}
    for letter in letters:
        counts[letter.reason] = counts.get(letter.reason, 0) + 1
    return dict(sorted(counts.items()))


def show_dead_letters(
    last: Annotated[
        int, typer.Option(min=0, metavar="N", help="Only the newest N; 0 for all.")
    ] = 20,
    reason: Reason = None,
    as_json: AsJson = False,
) -> None:
    """Show the records that could not be applied, and why."""
    cluster = connect(load_settings())
    counts: dict[str, int] = {}
    newest: deque[DeadLetter] = deque(maxlen=last or None)
    for letter in read_dead_letters(cluster):
        if reason in (None, letter.reason):
            counts[letter.reason] = counts.get(letter.reason, 0) + 1
            newest.append(letter)
    total = sum(counts.values())
    if as_json:
        console.print_json(
            {
                "dead_letters": [letter.as_json() for letter in newest],
                "count": total,
                "reasons": dict(sorted(counts.items())),
            }
        )
        return
    if not newest:
        console.out.print("No dead letters.")
        return
    console.print_table(
        f"Dead letters ({len(newest)} of {total})",
        ("source", "reason", "detail", "key", "value"),
        (
            (letter.source, letter.reason, letter.detail, _preview(letter.key),
             _preview(letter.value))
            for letter in newest
        ),
    )  # fmt: skip


def redrive(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SOURCE",
            help="Source positions, TOPIC:PARTITION:OFFSET, as 'dead-letters' shows them; "
            "none: all.",
        ),
    ] = None,
    reason: Reason = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Publish dead letters again, to the topics that they came from, as they were.

    For after a fix: what is still wrong becomes a dead letter once more, and what was applied in
    the meantime is counted as a duplicate. Letters with the same content are sent once. Exits with
    2 where some of them could not be sent; the others are.
    """
    cluster = connect(load_settings())
    wanted = set(sources or ())
    chosen: dict[tuple[str, bytes | None, bytes | None], DeadLetter] = {}
    incomplete: dict[str, DeadLetter] = {}
    found: set[str] = set()
    for letter in read_dead_letters(cluster):
        if not redrivable(letter) or reason not in (None, letter.reason):
            continue
        if wanted and letter.source not in wanted:
            continue
        found.add(letter.source)
        if letter.dropped:
            incomplete[letter.source] = letter
        else:
            chosen.setdefault((letter.topic, letter.key, letter.value), letter)
    if wanted - found:
        missing = ", ".join(sorted(wanted - found))
        raise InputError(
            f"No dead letter of a worker has the source {missing:.200}; "
            "'ledger dead-letters --last 0' lists them all."
        )
    for source, letter in incomplete.items():
        console.warn(
            f"{source} is not published again: the {' and '.join(letter.dropped)} of the record "
            "were too large for a dead letter. The record itself is still in its topic."
        )
    if chosen and not yes:
        prefix = cluster.settings.topic_prefix
        where = f" (prefix {prefix})" if prefix else ""
        confirm(
            f"Publish {len(chosen)} records again{where}?",
            "publish the records again",
            "Nothing was published.",
        )
    if chosen:
        require_topics(cluster)
        cluster.ensure_topics()
    with Sender(cluster, past_failures=True) as sender:
        for letter in chosen.values():
            sender.send(letter.topic, letter.key, letter.value, letter.source, letter.headers)
    if as_json:
        failed = [{"source": source, "detail": detail} for source, detail in sender.failed]
        console.print_json(
            {"published": sender.sent, "failed": failed, "incomplete": [*incomplete]}
        )
    else:
        console.out.print(f"Published {sum(sender.sent.values())} records again.")
    for source, detail in sender.failed:
        console.warn(f"{source} was not published again: {detail}.")
    if sender.failed:
        raise typer.Exit(console.COULD_NOT_RUN)


def _preview(data: bytes | None) -> str:
    if data is None:
        return "(null)"
    text = console.harmless(data[: 4 * _PREVIEW].decode(errors="backslashreplace"))
    return text if len(text) <= _PREVIEW else text[: _PREVIEW - 1] + "…"


# -- reading


def read_dead_letters(cluster: Cluster) -> Iterator[DeadLetter]:
    """Yield all dead letters that are there now, oldest first; none where there is no topic."""
    shape = cluster.topics([DEAD_LETTERS]).get(DEAD_LETTERS)
    if shape is None:
        return
    slots: list[Slot] = [(DEAD_LETTERS, number) for number in range(shape.partitions)]
    ends = {slot[1]: end for slot, end in cluster.ends(slots).items()}
    starts = {slot[1]: first for slot, first in cluster.earliest(slots).items()}
    for number in sorted(ends):
        if starts[number] < ends[number]:
            yield from map(dead_letter, _messages(cluster, number, starts[number], ends[number]))


def _messages(cluster: Cluster, partition: int, start: int, end: int) -> Iterator[Message]:
    """Yield the committed records of a span, headers included, which `Cluster.read` leaves out."""
    consumer = Consumer(
        {
            **client_config(cluster.bootstrap),
            "group.id": "ledger-reader",  # never joined, nothing is committed
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "earliest",
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
            "error_cb": lambda _: None,
        }
    )
    try:
        topic = cluster.settings.topic(DEAD_LETTERS)
        consumer.assign([TopicPartition(topic, partition, start)])
        deadline = time.monotonic() + _STALLED_S
        while True:
            messages = consumer.consume(_BATCH, 0.2)
            if messages:
                deadline = time.monotonic() + _STALLED_S
            elif time.monotonic() > deadline:
                raise UnreachableError(
                    "Kafka", cluster.bootstrap, f"no records of {topic} for {_STALLED_S:.0f} s"
                )
            for message in messages:
                error = message.error()
                if error is not None:
                    if error.code() == KafkaError._PARTITION_EOF:
                        return
                    raise UnreachableError("Kafka", cluster.bootstrap, error.str())
                if int(message.offset() or 0) >= end:
                    return
                yield message
    finally:
        consumer.close()


def dead_letter(message: Message) -> DeadLetter:
    """Return the dead letter in a record; one that no worker wrote has the reason `UNKNOWN`."""
    found: Any = message.headers()
    headers: Headers = list(found or [])
    offset = int(message.offset() or 0)
    occurred_ms = int(message.timestamp()[1])
    dropped: tuple[str, ...] = ()
    kept = headers
    if headers and headers[-1][0] == DROPPED:
        dropped, kept = tuple(_text(headers[-1][1]).split(",")), headers[:-1]
    if [name for name, _ in kept[-4:]] != [KEY, SOURCE, REASON, DETAIL]:
        return DeadLetter(
            offset, occurred_ms, _text(message.key()), UNKNOWN, "no worker wrote this", None,
            message.value(), headers,
        )  # fmt: skip
    key = kept[-4][1]
    source, reason, detail = (_text(value) for _, value in kept[-3:])
    return DeadLetter(
        offset, occurred_ms, source, reason, detail, key, message.value(), kept[:-4], dropped
    )


def _text(data: bytes | str | None) -> str:
    return data.decode(errors="replace") if isinstance(data, bytes) else data or ""


def redrivable(letter: DeadLetter) -> bool:
    """Return whether a worker wrote a dead letter, of a record of an input topic."""
    return letter.topic in INPUT_TOPICS and letter.reason != UNKNOWN
