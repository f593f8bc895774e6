"""Which records of `fills` count: the ledger's own fold over that topic, one partition at a time.

It is the same `Partition` that workers and replays run, fed with one topic only, so a duplicate is
a duplicate here exactly where it is one for the tables. Beside it the fold keeps, for each room,
the first and the last message that this partition has put there: what the room's history should
hold of it, whoever posted it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import msgspec

from chat_bridge.messages import Message, Subject, of_bust, of_fill
from ledger.errors import DamagedState, StateError
from ledger.events import FILLS, RULES_VERSION, AnyEvent, FillBusted, OrderFilled
from ledger.projections.entries import META_KEY
from ledger.projections.partition import (
    APPLIED,
    Origin,
    Partition,
    Record,
    Rejected,
    Verdict,
    read_header,
)
from ledger.rocks import RocksStore
from ledger.states import remove_state, tidy
from ledger.store import Changes, Store

# Beside the fold's own entries: no account begins with these bytes.
_SPAN: Final = b"\1"
_SKIPPED_KEY: Final = b"\2skipped"
_CACHED_SPANS: Final = 50_000

UNPUBLISHABLE: Final = "unpublishable"
"""The reason of a dead letter whose record was applied but could not be told to a room."""

Skipped = list[tuple[int, int]]
"""Offsets whose messages nobody wants, as (first, after the last), in order and apart."""


class Span(msgspec.Struct, frozen=True, array_like=True):
    """The messages that a partition has put into a room.

    Attributes:
        first: `offset` of the first of them.
        last: `offset` of the last.
        last_id: its `message_id`: a fill and its bust that came before it have one `offset`.
        count: how many they are.
    """

    first: int
    last: int
    last_id: str
    count: int


class Expected(msgspec.Struct, frozen=True):
    """What a room should hold of a partition's messages before an offset.

    Attributes:
        span: the first and last of them, None if there are none.
        before: the offset.
    """

    span: Span | None
    before: int


log = logging.getLogger(__name__)

_encode = msgspec.json.Encoder().encode
_decode_span = msgspec.json.Decoder(Span).decode
_decode_skipped = msgspec.json.Decoder(Skipped).decode


def merged(*lists: Skipped) -> Skipped:
    """Return what is skipped by any of the lists."""
    found: Skipped = []
    for first, after in sorted(part for skipped in lists for part in skipped):
        if found and first <= found[-1][1]:
            found[-1] = (found[-1][0], max(after, found[-1][1]))
        elif first < after:
            found.append((first, after))
    return found


class Identity:
    """The fold of one partition of `fills`, and the messages that its records make.

    Attributes:
        number: of the partition.
        posted_until: the offset before which records were posted by an earlier run: they are
            folded where the stored state does not have them, but make no messages, except for
        refilled: rooms that lost messages, and the offset from which on they did: for them these
            records make messages, too.
        largest_bytes: what a message's body may have; None for no limit.
        unpublishable: records since the last settling that would make a larger one, and why.
        settled: the offset before which the store has everything.
    """

    def __init__(self, number: int, store: Store, origin: Origin) -> None:
        """Open the state that `store` holds, or an empty one.

        Raises:
            StateError: it is of another cluster, topic or rules version.
        """
        self.number = number
        self.posted_until = 0
        self.refilled: Mapping[str, int] = {}
        self.largest_bytes: int | None = None
        self.unpublishable: list[Rejected] = []
        self._store = _WithSpans(store)
        self._partition = Partition(number, self._store, origin)
        self._spans: dict[str, Span] = {}
        self.settled = self.next_offset
        self._touched: set[str] = set()
        self._unread: dict[str, Expected] = {}
        stored = store.get(_SKIPPED_KEY)
        self._skipped = _decode_skipped(stored) if stored is not None else []

    @property
    def next_offset(self) -> int:
        """The offset of the next record to fold."""
        return self._partition.watermark[FILLS]

    @property
    def counts(self) -> dict[str, int]:
        """How many records had which verdict, since offset 0."""
        return self._partition.counts[FILLS]

    @property
    def is_past_what_was_posted(self) -> bool:
        """Whether everything that was posted by an earlier run is folded and settled."""
        return self.settled >= self.posted_until

    @property
    def skipped(self) -> Skipped:
        """Offsets whose messages nobody wants."""
        return self._skipped

    def skip(self, skipped: Skipped) -> None:
        """Make no messages for these offsets either; none of them may have been posted."""
        both = merged(self._skipped, skipped)
        if both != self._skipped:
            self._skipped = both
            self._store.extra[_SKIPPED_KEY] = _encode(both)

    def read(self, records: Iterable[Record], next_offset: int) -> list[Message]:
        """Fold records in offset order, and return the messages that they make, in order.

        Args:
            records: of this partition, from `next_offset` on.
            next_offset: the position after them, transaction markers included.
        """
        messages: list[Message] = []

        def observe(_: str, record: Record, event: AnyEvent | None, verdict: Verdict) -> None:
            if verdict is not APPLIED:
                return
            assert isinstance(event, OrderFilled | FillBusted)
            subject = Subject(self.number, event.account, event.order_id, event.fill_id)
            execution = self._partition.execution(event.account, event.order_id, event.fill_id)
            make = of_fill if isinstance(event, OrderFilled) else of_bust
            for message in make(subject, execution):
                if self.is_skipped(message.offset):
                    continue
                if self._is_too_large(message):
                    if record.offset >= self.posted_until:
                        self._reject(record, message)
                    continue
                self._extend(message)
                lost_from = self.refilled.get(message.room, self.posted_until)
                if record.offset >= self.posted_until or message.offset >= lost_from:
                    messages.append(message)

        self._partition.apply(FILLS, records, next_offset, observe)
        return messages

    def take_unread(self) -> dict[str, Expected]:
        """Return the rooms that messages since the last call are the first ones for.

        With each what it should hold from before: who posts there looks first.
        """
        unread, self._unread = self._unread, {}
        return unread

    def refill(self, rooms: Mapping[str, int], before: Identity) -> None:
        """Make the messages that these rooms may lack.

        Args:
            rooms: whose histories were read; and the offset before which nothing is missing there.
            before: the same partition's fold until now; the rooms it has made messages for need
                not be read again.
        """
        self.posted_until = max(before.settled, before.posted_until)
        self.refilled = dict(rooms)
        self._touched = before._touched | rooms.keys()
        self.largest_bytes = before.largest_bytes
        self.skip(before.skipped)

    def rooms(self) -> list[str]:
        """Return the rooms that this partition has put messages into, as settled."""
        return [key.removeprefix(_SPAN).decode() for key, _ in self._store.scan(_SPAN)]

    def expected(self, room: str) -> Expected:
        """Return what a room should hold of what is settled."""
        stored = self._store.get(_SPAN + room.encode())
        return Expected(_decode_span(stored) if stored is not None else None, self.settled)

    def settle(self) -> None:
        """Store what was folded, in one batch; what it made must be in its rooms by now."""
        if self._partition.is_dirty:
            self._partition.freeze()
            self._partition.settle()
            self.settled = self.next_offset
            self.unpublishable.clear()
            if len(self._spans) > _CACHED_SPANS:
                self._spans.clear()

    def is_skipped(self, offset: int) -> bool:
        """Return whether nobody wants what is posted upon a record."""
        return any(first <= offset < after for first, after in self._skipped)

    def _is_too_large(self, message: Message) -> bool:
        return self.largest_bytes is not None and len(message.body()) > self.largest_bytes

    def _reject(self, record: Record, message: Message) -> None:
        detail = (
            f"{message.message_id} for {message.room} would have {len(message.body())} bytes, and "
            f"RabbitMQ takes no more than {self.largest_bytes}"
        )
        self.unpublishable.append(Rejected(FILLS, record, UNPUBLISHABLE, detail))

    def _extend(self, message: Message) -> None:
        """Note that a room has one more message."""
        room = message.room
        span = self._spans.get(room)
        if span is None:
            stored = self._store.get(_SPAN + room.encode())
            span = _decode_span(stored) if stored is not None else None
        if message.offset >= self.posted_until and room not in self._touched:
            self._touched.add(room)
            self._unread[room] = Expected(span, message.offset)
        first, count = (message.offset, 0) if span is None else (span.first, span.count)
        span = self._spans[room] = Span(first, message.offset, message.message_id, count + 1)
        self._store.extra[_SPAN + room.encode()] = _encode(span)


class _WithSpans:
    """A store that writes the spans in the same batch as what the fold writes."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.get = store.get
        self.get_many = store.get_many
        self.scan = store.scan
        self.extra: dict[bytes, bytes] = {}

    def write(self, changes: Changes) -> None:
        """Put every entry and the spans that changed, delete those whose value is None."""
        self._store.write({**dict(changes.items()), **self.extra})
        self.extra.clear()


class StoredIdentity(Identity):
    """An `Identity` whose state is in a directory of its own."""

    def __init__(self, number: int, directory: Path, origin: Origin) -> None:
        """Open or create the state; one that is damaged or of older rules is folded again.

        Raises:
            StateError: another process has it open, or it is of another cluster or topic.
        """
        tidy(directory)
        store = _opened(directory)
        try:
            super().__init__(number, store, origin)
        except StateError as error:
            store.close()
            raise StateError(
                f"{error} If the topics were meant to be replaced, remove {directory}."
            ) from error
        self._rocks = store

    def close(self) -> None:
        """Close the state without storing what was not settled."""
        self._rocks.close()

    def remove(self) -> None:
        """Close the state and remove it from disk."""
        self._rocks.close()
        remove_state(self._rocks.directory)


def _opened(directory: Path) -> RocksStore:
    try:
        store = RocksStore(directory, keeps_log=True)
        header = store.get(META_KEY)
    except DamagedState as error:
        log.warning("%s It is folded again.", error)
    else:
        if header is None or read_header(header).rules_version == RULES_VERSION:
            return store
        store.close()
    remove_state(directory)
    return RocksStore(directory, keeps_log=True)
