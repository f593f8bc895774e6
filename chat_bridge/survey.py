"""What rooms hold of a partition's messages, read back from their histories.

A room's history is the record of what has been posted there, whoever posted it and however that
one ended. Only messages count that RabbitMQ says the bridge's own user posted: anybody may write
any `message_id` into what they say.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

from chat_bridge.errors import RoomError
from chat_bridge.history import PREFETCH, Entry, Rooms, Start
from chat_bridge.identity import Expected
from chat_bridge.messages import OFFSET_KEY, PARTITION_KEY

_FIRST_STEP: Final = 64
_STEPS_GROW: Final = 4
_LONGEST_STEP: Final = 16_384


@dataclass(frozen=True)
class Anchor:
    """A message of ours: while it stands at its place in the stream, the room is the same."""

    stream_offset: int
    message_id: str


@dataclass(frozen=True)
class Finding:
    """What a room holds of one partition.

    Attributes:
        is_complete: whether all that was expected is there, or was until it grew too old.
        posted: the ids of messages after that, by an earlier session.
        anchor: one of the messages, None if there is none.
    """

    is_complete: bool
    posted: frozenset[str]
    anchor: Anchor | None


@dataclass(frozen=True)
class Held:
    """All messages of a partition that a room holds.

    Attributes:
        offsets: message id to `offset`, in the room's order.
        is_cut: whether the room once held more, which grew too old.
    """

    offsets: dict[str, int]
    is_cut: bool


@dataclass(frozen=True)
class _Own:
    """A message that the bridge posted: its place, its id, and whose record made it."""

    stream_offset: int
    message_id: str
    partition: int
    offset: int


@dataclass
class _Tail:
    """What was read so far of a partition: the newest part of its messages.

    Attributes:
        bound: the offset from which on messages are listed.
        posted: ids of messages from the bound on.
        newest: of those before the bound; None while none was read.
        anchor: the newest of all.
    """

    bound: int
    posted: set[str] = field(default_factory=set)
    newest: _Own | None = None
    anchor: Anchor | None = None


class Surveyor:
    """Reads what the bridge's own user has posted."""

    def __init__(self, rooms: Rooms, user: str) -> None:
        self._rooms = rooms
        self._user = user
        self._scans: dict[str, _Scan] = {}
        self._bounds: Mapping[int, int] = {}

    def begin(self, posted_until: Mapping[int, int]) -> None:
        """Forget what was read: from now on these partitions are ours, posted up to these offsets.

        What `look_back` tells is of this moment, though it reads later: nobody else posts messages
        of these partitions any more.
        """
        self._scans = {}
        self._bounds = posted_until

    def forget(self, room: str) -> None:
        """Forget what was read of a room: it is another one now."""
        self._scans.pop(room, None)

    async def look_back(self, room: str, partition: int, expected: Expected) -> Finding:
        """Return what a room held of a partition, as far as that needs to be known.

        It is read backwards, once for all partitions, up to the newest message that is expected:
        the messages of a partition stand in order, and those before it were there when it was
        posted. To be asked before anything of the partition is posted to the room. Where messages
        stand in another order, as after a refusal, a room may seem incomplete that is not.

        Raises:
            InputError: there is no such room.
            RoomError: another user's bridge has posted there.
        """
        scan = self._scans.get(room)
        if scan is None:
            scan = self._scans[room] = _Scan(self, room, self._bounds)
        return await self._finding(scan, partition, expected)

    async def look(self, room: str, expected: Mapping[int, Expected]) -> dict[int, Finding]:
        """Return the same of several partitions, of a room as it is now.

        Raises:
            InputError: there is no such room.
            RoomError: another user's bridge has posted there.
        """
        scan = _Scan(self, room, {number: one.before for number, one in expected.items()})
        return {number: await self._finding(scan, number, one) for number, one in expected.items()}

    async def _finding(self, scan: _Scan, partition: int, expected: Expected) -> Finding:
        tail = await scan.tail(partition)
        span = expected.span
        if span is None:
            is_complete = True
        elif scan.begins_at > 0:  # what is missing before that grew too old
            is_complete = tail.newest is None or tail.newest.message_id == span.last_id
        else:
            is_complete = (
                tail.newest is not None
                and tail.newest.message_id == span.last_id
                and await scan.first(partition) == span.first
            )
        return Finding(is_complete, frozenset(tail.posted), tail.anchor)

    async def all_of(self, room: str, partition: int) -> Held:
        """Return all messages that a room holds of a partition.

        Raises:
            InputError: there is no such room.
        """
        begins_at: int | None = None
        offsets: dict[str, int] = {}
        async with self.batches(room, "first") as batches:
            async for batch in batches:
                begins_at = batch[0].offset if begins_at is None else begins_at
                for own in (self.own(room, entry) for entry in batch):
                    if own is not None and own.partition == partition:
                        offsets.setdefault(own.message_id, own.offset)
        return Held(offsets, bool(begins_at))

    async def stands(self, room: str, anchor: Anchor) -> bool:
        """Return whether a message is still at its place, or has grown too old.

        Raises:
            InputError: there is no such room.
        """
        async with self._rooms.reading(room, anchor.stream_offset, prefetch=1) as reader:
            found = await reader.first()
        if found is None:
            return False
        return found.offset > anchor.stream_offset or found.message_id == anchor.message_id

    async def oldest(self, room: str) -> Entry | None:
        """Return the first message that a room still has, whosever it is."""
        return await self._rooms.oldest(room)

    @asynccontextmanager
    async def batches(
        self, room: str, start: Start, most: int = PREFETCH
    ) -> AsyncIterator[AsyncIterator[list[Entry]]]:
        """Give a room's messages up to now, some at a time, `most` at first."""
        async with self._rooms.reading(room, start, min(most, PREFETCH)) as reader:
            yield reader.batches()

    def own(self, room: str, entry: Entry) -> _Own | None:
        """Return what a message is if the bridge has posted it.

        Raises:
            RoomError: another user's bridge has.
        """
        partition, offset = entry.headers.get(PARTITION_KEY), entry.headers.get(OFFSET_KEY)
        if entry.routing_key != room or entry.message_id is None:
            return None
        if not isinstance(partition, int) or not isinstance(offset, int):
            return None
        if entry.user_id != self._user:
            # Nobody who was granted to read and talk can write with this routing key.
            raise RoomError(
                room,
                f"message {entry.message_id} at {entry.offset} was posted by RabbitMQ's user "
                f"'{entry.user_id}', and this bridge is '{self._user}'. Run it as that user, or "
                "delete the room's queue, and it is filled anew.",
            )
        return _Own(entry.offset, entry.message_id, partition, offset)


class _Scan:
    """A room's history, read from both ends, as far as was asked for.

    Backwards it is read from where it ended at first.

    Attributes:
        begins_at: the first offset in the stream; what stood before that grew too old.
    """

    def __init__(self, surveyor: Surveyor, room: str, bounds: Mapping[int, int]) -> None:
        self.room = room
        self.begins_at = 0
        self._surveyor = surveyor
        self._tails = {partition: _Tail(bound) for partition, bound in bounds.items()}
        self._reached: int | None = None  # in the stream, from there on all was read
        self._step = _FIRST_STEP
        self._reading = asyncio.Lock()
        self._lowest: dict[int, int] = {}  # backwards, what was read last
        self._firsts: dict[int, int] = {}
        self._forward: Start = "first"  # where to read on for more of them

    async def first(self, partition: int) -> int | None:
        """Return the `offset` of the first message of a partition; None if there is none."""
        async with self._reading:
            if self._reached == self.begins_at:
                return self._lowest.get(partition)
            if partition not in self._firsts:
                await self._read_firsts(partition)
        return self._firsts.get(partition)

    async def _read_firsts(self, until: int) -> None:
        """Read on from the beginning until a message of one partition, and note those of others."""
        async with self._surveyor.batches(self.room, self._forward) as batches:
            async for batch in batches:
                for entry in batch:
                    own = self._surveyor.own(self.room, entry)
                    if own is not None:
                        self._firsts.setdefault(own.partition, own.offset)
                    self._forward = entry.offset + 1
                if until in self._firsts:
                    return

    async def tail(self, partition: int) -> _Tail:
        """Return what there is of a partition, read up to a message before its bound."""
        tail = self._tails[partition]
        async with self._reading:
            while tail.newest is None and self._reached != self.begins_at:
                await self._read_on()
        return tail

    async def _read_on(self) -> None:
        stop = self._reached
        start: Start = "last" if stop is None else max(self.begins_at, stop - self._step)
        found = await self._between(start, stop)
        for entry in reversed(found):
            self._note(entry)
        if isinstance(start, int):
            self._reached = start
            self._step = min(self._step * _STEPS_GROW, _LONGEST_STEP)
        elif not found:
            self._reached = self.begins_at  # the room is empty
        else:
            self._reached = found[0].offset
            if self._reached > 0:
                oldest = await self._surveyor.oldest(self.room)
                self.begins_at = oldest.offset if oldest is not None else self._reached

    async def _between(self, start: Start, stop: int | None) -> list[Entry]:
        """Return the messages up to now, or those before the offset `stop` in the stream."""
        found: list[Entry] = []
        most = stop - start if stop is not None and isinstance(start, int) else PREFETCH
        async with self._surveyor.batches(self.room, start, most) as batches:
            async for batch in batches:
                found += [entry for entry in batch if stop is None or entry.offset < stop]
                if stop is not None and batch[-1].offset >= stop - 1:
                    break
        return found

    def _note(self, entry: Entry) -> None:
        own = self._surveyor.own(self.room, entry)
        if own is not None:
            self._lowest[own.partition] = own.offset
        tail = self._tails.get(own.partition) if own is not None else None
        if own is None or tail is None:
            return
        tail.anchor = tail.anchor or Anchor(own.stream_offset, own.message_id)
        if own.offset >= tail.bound:
            tail.posted.add(own.message_id)
        else:
            tail.newest = tail.newest or own
