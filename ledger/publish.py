"""Publishing: events from JSON Lines, validated, sent to their topics, acknowledged by the broker.

A file is read twice: first every line is validated, then, if the file may be sent, its events are.
Only a byte per line is kept between, so a file may be larger than memory.
"""

from __future__ import annotations

import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Self

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from ledger.codec import DECODERS, encode
from ledger.errors import InputError, InvalidRecord, LedgerError
from ledger.events import INPUT_TOPICS
from ledger.intake import parse
from ledger.kafka import LARGEST_RECORD_BYTES, Cluster, Slot, client_config
from ledger.published import MarkReader

STDIN: Final = "-"
STDIN_NAME: Final = "<stdin>"

MAX_LINE_BYTES: Final = 1 << 20
"""No event is nearly as long; it bounds what a file without line ends takes of memory."""
PROBLEMS_REPORTED: Final = 50
"""How many bad lines of a file are named; all are counted."""

_SPOOL_BYTES: Final = 64 << 20
_DELIVERY_TIMEOUT_S: Final = 60.0
_FLUSH_STEP_S: Final = 0.2
_POLL_INTERVAL_S: Final = 0.05

# What is known of a line after the first reading: nothing to send, or the topic's number.
_BLANK: Final = 0
_BAD: Final = 255
_TOPIC_CODES: Final = {topic: number for number, topic in enumerate(INPUT_TOPICS, start=1)}
_TOPIC_OF_CODE: Final = {number: topic for topic, number in _TOPIC_CODES.items()}

Headers = list[tuple[str, bytes | None]]
Progress = Callable[[int], None]


class DeliveryError(LedgerError):
    """Kafka did not acknowledge a record; `where` says where the record came from."""

    def __init__(self, where: str, detail: str, acknowledged: int) -> None:
        self.where = where
        self.acknowledged = acknowledged
        super().__init__(
            f"{where}: Kafka did not acknowledge this record ({detail}); {acknowledged} others "
            "were. Publish it all again when the broker is well: what is there already is counted "
            "as a duplicate and changes nothing."
        )


class NotAppliedError(LedgerError):
    """The tables did not reach what was published within the time allowed."""


# -- reading


@contextmanager
def opened(name: str) -> Iterator[tuple[str, IO[bytes]]]:
    """Yield a file's name for messages and the file, which can be read more than once.

    Standard input (`-`) and what cannot be rewound are copied to a temporary file.

    Raises:
        InputError: there is no such file, or it cannot be read.
    """
    if name == STDIN:
        with _spooled(sys.stdin.buffer) as file:
            yield STDIN_NAME, file
        return
    try:
        raw: IO[bytes] = Path(name).open("rb")  # noqa: SIM115 - closed below
    except (OSError, ValueError) as error:
        raise unreadable(name, error) from error
    with raw:
        if stat.S_ISREG(Path(name).stat().st_mode):
            yield name, raw
        else:
            with _spooled(raw) as file:
                yield name, file


def unreadable(name: str, error: OSError | ValueError) -> InputError:
    """Return what to tell a person whose file cannot be read."""
    if isinstance(error, IsADirectoryError):
        return InputError(f"{name}: is a directory; name the files in it.")
    if isinstance(error, FileNotFoundError):
        return InputError(f"{name}: no such file.")
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return InputError(f"{name}: cannot be read ({reason}).")


def require_readable(names: Iterable[str]) -> None:
    """Check that every named file is there, before anything is done with any.

    Raises:
        InputError: one is not, or is a directory, or may not be read.
    """
    for name in names:
        if name == STDIN:
            continue
        try:
            path = Path(name)
            if path.is_dir():
                raise IsADirectoryError
            # Opening a pipe would take its first bytes from its reader.
            if not path.exists():
                raise FileNotFoundError
            if path.is_file():
                path.open("rb").close()
        except (OSError, ValueError) as error:
            raise unreadable(name, error) from error


@contextmanager
def _spooled(source: IO[bytes]) -> Iterator[IO[bytes]]:
    with tempfile.SpooledTemporaryFile(_SPOOL_BYTES) as file:
        while chunk := source.read(1 << 20):
            file.write(chunk)
        file.seek(0)
        yield file


def lines_of(file: IO[bytes]) -> Iterator[bytes | None]:
    """Yield a file's lines from its beginning; None in place of one that is too long."""
    file.seek(0)
    while line := file.readline(MAX_LINE_BYTES):
        if len(line) < MAX_LINE_BYTES or line.endswith(b"\n"):
            yield line
            continue
        while rest := file.readline(MAX_LINE_BYTES):
            if rest.endswith(b"\n"):
                break
        yield None


@dataclass(frozen=True)
class Problem:
    """What is wrong with one line (counted from 1) of a file."""

    name: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.name}:{self.line}: {self.reason}"


@dataclass
class Checked:
    """A file whose lines were validated.

    Attributes:
        name: of the file, for messages.
        codes: for each line what it is; see `_TOPIC_CODES`.
        events: how many lines are valid events.
        invalid: how many lines are not.
        problems: what is wrong with the first of those.
    """

    name: str
    codes: bytearray = field(default_factory=bytearray)
    events: int = 0
    invalid: int = 0
    problems: list[Problem] = field(default_factory=list)


def check(name: str, file: IO[bytes], progress: Progress | None = None) -> Checked:
    """Return what the lines of a file are; `progress` is told how many bytes were read."""
    checked = Checked(name)
    for number, line in enumerate(lines_of(file), start=1):
        try:
            checked.codes.append(_code(line))
        except InvalidRecord as invalid:
            checked.codes.append(_BAD)
            checked.invalid += 1
            if len(checked.problems) < PROBLEMS_REPORTED:
                checked.problems.append(Problem(name, number, invalid.detail))
        if progress is not None:
            progress(MAX_LINE_BYTES if line is None else len(line))
    checked.events = sum(checked.codes.count(code) for code in _TOPIC_OF_CODE)
    return checked


def _code(line: bytes | None) -> int:
    if line is None:
        raise InvalidRecord("json", f"longer than {MAX_LINE_BYTES} bytes, so it is no event")
    if not line.strip(b" \t\r\n"):
        return _BLANK
    topic, _ = parse(line)
    return _TOPIC_CODES[topic]


def send(
    checked: Checked, file: IO[bytes], sender: Sender, progress: Progress | None = None
) -> None:
    """Send the valid events of a checked file, in its order.

    Raises:
        InputError: the file is no longer what was checked.
        DeliveryError: Kafka did not take a record.
    """
    lines = lines_of(file)
    for number, code in enumerate(checked.codes, start=1):
        line = next(lines, None)
        topic = _TOPIC_OF_CODE.get(code)
        if topic is None:
            continue
        where = f"{checked.name}:{number}"
        try:
            event = DECODERS[topic](line)
        except InvalidRecord as invalid:
            raise InputError(
                f"{where}: the file was changed while it was published ({invalid.detail}); "
                "publish it again."
            ) from invalid
        sender.send(topic, event.account.encode(), encode(event), where)
        if progress is not None:
            progress(1)


# -- sending


class Sender:
    """Sends records and sees each one acknowledged; a context manager that ends with all of them.

    Attributes:
        sent: how many records of each input topic were acknowledged.
        offsets: for each topic partition the offset after the last of them.
        failed: where each record came from that was not taken, and why.
    """

    def __init__(self, cluster: Cluster, *, past_failures: bool = False) -> None:
        """Prepare to send.

        Args:
            cluster: where the topics are.
            past_failures: go on past records that are not taken; otherwise the first one is raised.
        """
        self.sent: dict[str, int] = dict.fromkeys(INPUT_TOPICS, 0)
        self.offsets: dict[Slot, int] = {}
        self._settings = cluster.settings
        self.failed: list[tuple[str, str]] = []
        self._past_failures = past_failures
        self._producer = Producer(
            {
                **client_config(cluster.bootstrap),
                "partitioner": "murmur2_random",
                "enable.idempotence": True,
                "acks": "all",
                "linger.ms": 10,
                # A batch is refused as a whole.
                **({"batch.num.messages": 1} if past_failures else {}),
                "compression.type": "lz4",
                "message.max.bytes": LARGEST_RECORD_BYTES,
                "delivery.timeout.ms": int(_DELIVERY_TIMEOUT_S * 1000),
                "error_cb": lambda _: None,  # deliveries tell; without one it is printed
            }
        )

    def send(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        where: str,
        headers: Headers | None = None,
    ) -> None:
        """Hand a record to the producer; it is acknowledged when `flush` has returned.

        Args:
            topic: an input topic, without prefix.
            key: the account.
            value: the event.
            where: where it came from, for messages.
            headers: of the record.

        Raises:
            DeliveryError: this record, or one before it, was not taken, unless past failures.
        """
        delivered = partial(self._delivered, topic, where)
        more: dict[str, Any] = {} if headers is None else {"headers": headers}
        while True:
            try:
                self._producer.produce(
                    self._settings.topic(topic),
                    value=value,
                    key=key,
                    on_delivery=delivered,
                    **more,
                )
                break
            except BufferError:
                self._producer.poll(_FLUSH_STEP_S)
            except KafkaException as error:
                self.failed.append((where, error.args[0].str()))
                break
            self._raise_failure()
        self._producer.poll(0)
        self._raise_failure()

    def flush(self) -> None:
        """Wait until every record is acknowledged.

        Raises:
            DeliveryError: one was not, unless past failures.
        """
        while self._producer.flush(_FLUSH_STEP_S):
            self._raise_failure()
        self._raise_failure()

    def _delivered(
        self, topic: str, where: str, error: KafkaError | None, message: Message
    ) -> None:
        if error is not None:
            self.failed.append((where, error.str()))
            return
        self.sent[topic] += 1
        slot = (topic, int(message.partition() or 0))
        self.offsets[slot] = max(self.offsets.get(slot, 0), int(message.offset() or 0) + 1)

    def _raise_failure(self) -> None:
        if self.failed and not self._past_failures:
            raise DeliveryError(*self.failed[0], sum(self.sent.values()))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self.flush()
        else:
            self._producer.purge()
            self._producer.flush(_FLUSH_STEP_S)


# -- waiting


def await_applied(
    cluster: Cluster,
    topic_ids: Mapping[str, str],
    targets: Mapping[Slot, int],
    timeout_s: float,
    progress: Progress | None = None,
) -> None:
    """Return once the published tables have every record before the targets.

    Args:
        cluster: where the tables are.
        topic_ids: of the input topics; tables of others do not count.
        targets: for each topic partition the next offset that its watermark must reach.
        timeout_s: how long the tables may stand still before this gives up.
        progress: told how many offsets of the targets the tables have moved by.

    Raises:
        NotAppliedError: they stood still for too long.
    """
    reader = MarkReader(cluster, {partition for _, partition in targets})
    reached = dict.fromkeys(targets, 0)
    first = True
    deadline = time.monotonic() + timeout_s
    while True:
        reader.poll()
        moved = 0
        for slot, target in targets.items():
            topic, partition = slot
            mark = reader.marks.get(partition)
            if mark is None or mark.topic_ids != topic_ids:
                continue
            position = min(mark.watermark[topic], target)
            moved += max(0, position - reached[slot])
            reached[slot] = max(position, reached[slot])
        if moved and not first:
            deadline = time.monotonic() + timeout_s
        first = False
        if moved and progress is not None:
            progress(moved)
        behind = sum(target - reached[slot] for slot, target in targets.items())
        if not behind:
            return
        if time.monotonic() > deadline:
            raise NotAppliedError(
                f"The events are published, but the tables have not moved for {timeout_s:g} s and "
                f"lack {behind} records: no worker applies them. Start one with 'ledger worker'."
            )
        time.sleep(_POLL_INTERVAL_S)
