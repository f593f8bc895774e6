"""Reading rooms: what a room holds up to now, its last messages, and what comes in live.

A stream queue cannot be asked where it ends: the message count that RabbitMQ tells is some seconds
old. But once messages have been acknowledged, the server sends whatever the freed credit allows
before it answers the next request on the same channel. So where nothing came before that answer,
there was nothing more. (What comes first takes one more step, see `Reader`.)
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from aio_pika.abc import AbstractChannel, AbstractConnection
from aio_pika.exceptions import ChannelNotFoundEntity, ChannelPreconditionFailed
from aiormq.abc import DeliveredMessage
from aiormq.exceptions import ChannelAccessRefused

from chat_bridge.amqp import lost_connections
from chat_bridge.errors import ConnectionLost, RoomError
from chat_bridge.messages import SAY as SAY_TYPE
from chat_bridge.names import SAY
from chat_bridge.properties import read_leniently
from chat_bridge.text import harmless
from ledger import times
from ledger.errors import InputError
from ledger.settings import Settings

PREFETCH: Final = 500
_SHOWN_CHARACTERS: Final = 2_000
_LONGEST_TIME: Final = 40
_SOON_S: Final = 1.0
_STARTING: Final = "replica on the local node"
_CLOCKS_DIFFER_S: Final = 300
"""By so much a venue's clock may be ahead of RabbitMQ's before `Rooms.since` misses something."""

OFFSET_HEADER: Final = "x-stream-offset"
Start = int | str | datetime
"""An offset of the stream, `first`, `last`, which is the beginning of its newest chunk, or a time:
the chunk that was posted then."""


@dataclass(frozen=True)
class Entry:
    """A message of a room: its offset in the stream, and its body, JSON or not.

    `user_id` is who posted it, as RabbitMQ has checked; the rest is what that one claims.
    """

    offset: int
    body: bytes
    routing_key: str = ""
    user_id: str | None = None
    message_id: str | None = None
    headers: dict[str, Any] = field(default_factory=dict)

    @property
    def is_said(self) -> bool:
        """Whether somebody says it, whatever the body claims: people can write no other way."""
        return self.routing_key.startswith(SAY)

    def document(self) -> dict[str, Any]:
        """Return the JSON body, or `{"body": TEXT}` where somebody posted something else.

        Of what somebody says, only the claims are kept that cannot be taken for anybody else's.
        """
        try:
            found = msgspec.json.decode(self.body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            found = None
        if not isinstance(found, dict):
            found = {"body": self.body.decode(errors="replace")}
        if self.is_said:
            text = found.get("text", found.get("body"))
            found = {
                "type": SAY_TYPE,
                "message_id": self.message_id if _is_saying(self.message_id) else None,
                "timestamp": _time_in(found),
                "text": text if isinstance(text, str) else self.body.decode(errors="replace"),
                "instrument": self.routing_key.removeprefix(SAY),
                "said_by": self.user_id,
            }
        return {**found, "user_id": self.user_id, "stream_offset": self.offset}

    def time(self) -> str | None:
        """Return the time that the message states, if it is one: a trade's is the venue's."""
        return _time_in(self.document())

    def line(self) -> tuple[str, str]:
        """Return when it was said (or nothing) and what, both safe to show on a terminal.

        What people say begins with `<USER>`, as no account and no trade's text does.
        """
        document = self.document()
        text = document.get("text", document.get("body"))
        if not isinstance(text, str):
            text = self.body.decode(errors="replace")
        who = f"<{harmless(self.user_id or '?')}> " if self.is_said else ""
        return _time_in(document) or "", who + harmless(text[:_SHOWN_CHARACTERS])


def _is_saying(message_id: str | None) -> bool:
    return message_id is not None and message_id.startswith(f"{SAY_TYPE}:")


def _time_in(document: dict[str, Any]) -> str | None:
    """Return a document's time stamp, None where it is no RFC 3339 time, or endless digits."""
    found = document.get("timestamp")
    if not isinstance(found, str) or len(found) > _LONGEST_TIME:
        return None
    try:
        times.instant(found)
    except ValueError:
        return None
    return found


class Reader:
    """A consumer of one room on a channel that nobody else uses meanwhile."""

    def __init__(self, channel: AbstractChannel) -> None:
        self._channel = channel
        self._inbox: asyncio.Queue[DeliveredMessage | None] = asyncio.Queue()
        self._end = lambda *_: self._inbox.put_nowait(None)
        self._tag: str | None = None

    async def _subscribe(
        self, queue_name: str, start: Start, prefetch: int, *, settle: bool
    ) -> None:
        self._prefetch = prefetch
        self._underlay = await self._channel.get_underlay_channel()
        self._underlay.on_consumer_cancel_callbacks.add(self._end)
        self._channel.close_callbacks.add(self._end)
        await self._underlay.basic_qos(prefetch_count=prefetch)
        # A callback and never `queue.iterator()`, which on leaving sends the nack that streams
        # refuse. It only files the message: the acknowledgement follows when it is looked at.
        consuming = await self._underlay.basic_consume(
            queue_name, self._inbox.put, arguments={OFFSET_HEADER: start}
        )
        self._tag = consuming.consumer_tag
        if not settle:
            return
        # What there is comes only once the stream's writer has told the channel of it. A second
        # consumer asks the same writer after that, so it has told when this one has been taken.
        second = await self._underlay.basic_consume(
            queue_name, _drop, arguments={OFFSET_HEADER: "next"}
        )
        assert second.consumer_tag is not None
        await self._underlay.basic_cancel(second.consumer_tag)

    async def _stop(self) -> None:
        """End, so that the channel can be used for another reader."""
        if self._tag is None:
            await self._channel.close()
            return
        self._underlay.on_consumer_cancel_callbacks.discard(self._end)
        self._channel.close_callbacks.discard(self._end)
        await self._underlay.basic_cancel(self._tag)
        # Of what was not looked at: a channel that owes acknowledgements for long is closed.
        await self._underlay.basic_ack(0, multiple=True)

    async def first(self) -> Entry | None:
        """Return the first message at or after the start, None if there is none."""
        found = await self._arrived()
        return found[0] if found else None

    async def to_end(self) -> list[Entry]:
        """Return everything that the room holds from the start, or from the last call, on."""
        return [entry async for batch in self.batches() for entry in batch]

    async def batches(self) -> AsyncIterator[list[Entry]]:
        """Yield what `to_end` returns, some messages at a time."""
        while found := await self._arrived():
            yield found
            await self._settle()

    async def more(self) -> list[Entry]:
        """Return the next messages, however long they take to come."""
        return await self._taken([await self._inbox.get()])

    async def soon(self) -> list[Entry]:
        """Return the next messages, none if they do not come within a second."""
        try:
            found = await asyncio.wait_for(self.more(), _SOON_S)
        except TimeoutError:
            return []
        await self._settle()
        return found

    async def _settle(self) -> None:
        """Wait until whatever the acknowledgements so far have let through has come."""
        with lost_connections():
            await self._underlay.basic_qos(prefetch_count=self._prefetch)

    async def _arrived(self) -> list[Entry]:
        return await self._taken([]) if not self._inbox.empty() else []

    async def _taken(self, messages: list[DeliveredMessage | None]) -> list[Entry]:
        """Return these messages and all that have come besides, and let as many more come."""
        while not self._inbox.empty():
            messages.append(self._inbox.get_nowait())
        entries = []
        for message in messages:
            if message is None:
                raise ConnectionLost("The room", "its queue or the connection was closed")
            entries.append(_entry(message))
            newest = message
        with lost_connections():
            # All at once: for each acknowledgement the server goes to the log again.
            await self._underlay.basic_ack(newest.delivery_tag or 0, multiple=True)
        return entries


async def _drop(_: DeliveredMessage) -> None:
    """Take a message that another consumer gets as well."""


def _entry(message: DeliveredMessage) -> Entry:
    properties = message.header.properties
    headers = dict(properties.headers or {})
    offset = headers.pop(OFFSET_HEADER)
    assert isinstance(offset, int)
    return Entry(
        offset,
        message.body,
        message.routing_key or "",
        properties.user_id,
        properties.message_id,
        headers,
    )


class Rooms:
    """Rooms to read, on one connection."""

    def __init__(self, connection: AbstractConnection, settings: Settings) -> None:
        self._connection = connection
        self._settings = settings
        self._idle: list[AbstractChannel] = []
        read_leniently()

    @asynccontextmanager
    async def reading(
        self, room: str, start: Start, prefetch: int = PREFETCH, *, settle: bool = True
    ) -> AsyncIterator[Reader]:
        """Give a reader that begins at `start`.

        Args:
            room: the room's name, without prefix.
            start: where to begin.
            prefetch: how many messages may come before the first are looked at.
            settle: make sure that what there is has come when the reader is given. It takes as
                long as to begin a second reader, and who only waits for messages needs it not.

        Raises:
            InputError: there is no such room.
            RoomError: the queue of that name is no stream, or this user may not read it.
        """
        name = self._settings.topic(room)
        with lost_connections():
            channel = await self._channel()
        reader = Reader(channel)
        try:
            with lost_connections():
                try:
                    await reader._subscribe(name, start, prefetch, settle=settle)
                except ChannelNotFoundEntity as error:
                    raise InputError(
                        f"There is no room '{room}'. 'chat-bridge rooms' lists those there are; "
                        "a room begins with its first fill."
                    ) from error
                except ChannelAccessRefused as error:
                    raise RoomError(
                        room,
                        "RabbitMQ does not let the user of LEDGER_AMQP read it. Whom 'chat-bridge "
                        "grant ACCOUNT' gave access may read public rooms and the account's own.",
                    ) from error
                except ChannelPreconditionFailed as error:
                    if _STARTING in str(error):
                        raise ConnectionLost(
                            "The room", "RabbitMQ is only just starting"
                        ) from error
                    raise RoomError(room, f"the queue {name} is no room: {error}.") from error
            yield reader
        finally:
            if not channel.is_closed:
                with lost_connections():
                    await reader._stop()
                self._idle.append(channel)

    async def _channel(self) -> AbstractChannel:
        """Return a channel that no reader uses: to open and close one takes longer than to read."""
        while self._idle:
            channel = self._idle.pop()
            if not channel.is_closed:
                return channel
        return await self._connection.channel(publisher_confirms=False)

    async def newest(self, room: str, *, holds_some: bool = False) -> Entry | None:
        """Return the last message of a room, None if it is empty.

        Args:
            room: the room's name, without prefix.
            holds_some: it is known not to be empty, which makes this twice as fast.
        """
        async with self.reading(room, "last", settle=not holds_some) as reader:
            entries = await reader.soon() if holds_some else []
            entries += await reader.to_end()
        return entries[-1] if entries else None

    async def oldest(self, room: str) -> Entry | None:
        """Return the first message that a room still has, None if it is empty."""
        async with self.reading(room, "first", prefetch=1) as reader:
            return await reader.first()

    async def last(self, room: str, count: int) -> list[Entry]:
        """Return the last `count` messages of a room, oldest first, or all it has."""
        newest = await self.newest(room)
        if newest is None or count < 1:
            return []
        span = count
        while True:
            start = max(0, newest.offset + 1 - span)
            async with self.reading(room, start) as reader:
                entries = await reader.to_end()
            if len(entries) >= count or start == 0:
                return entries[-count:]
            # Offsets may have holes, and the oldest may be gone: look further back.
            span *= 2

    async def since(self, room: str, moment: times.Instant) -> AsyncIterator[list[Entry]]:
        """Yield the messages up to now that state a time at or after a moment, oldest first.

        RabbitMQ knows when a message was posted. Trades state when they happened, which was before
        that, and after a stop of the bridge long before. So nothing is missed by reading from what
        was posted at the moment on, and what happened earlier is left out. A message that states no
        time is kept.
        """
        posted_s = max(0, moment[0] - _CLOCKS_DIFFER_S)
        async with self.reading(room, datetime.fromtimestamp(posted_s, UTC)) as reader:
            async for batch in reader.batches():
                yield [entry for entry in batch if _is_since(entry, moment)]


def _is_since(entry: Entry, moment: times.Instant) -> bool:
    stated = entry.time()
    return stated is None or times.instant(stated) >= moment
