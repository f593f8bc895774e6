"""Reading rooms: what a room holds up to now, its last messages, and what comes in live.

A stream queue cannot be asked where it ends: the message count that RabbitMQ tells is some seconds
old. But once a message has been delivered and acknowledged, the server sends whatever the freed
credit allows before it answers the next request on the same channel. So where nothing came before
that answer, there was nothing more.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractIncomingMessage
from aio_pika.exceptions import ChannelNotFoundEntity, ChannelPreconditionFailed

from chat_bridge.amqp import lost_connections
from chat_bridge.errors import ConnectionLost, RoomError
from chat_bridge.text import harmless
from ledger.errors import InputError
from ledger.settings import Settings

PREFETCH: Final = 500
_FIRST_TIMEOUT_S: Final = 1.0
_SHOWN_CHARACTERS: Final = 500

OFFSET_HEADER: Final = "x-stream-offset"
Start = int | str
"""An offset of the stream, `first`, or `last`, which is the beginning of its newest chunk."""


@dataclass(frozen=True)
class Entry:
    """A message of a room: its offset in the stream, and its body, JSON or not."""

    offset: int
    body: bytes

    def document(self) -> dict[str, Any]:
        """Return the JSON body, or `{"body": TEXT}` where somebody posted something else."""
        try:
            found = msgspec.json.decode(self.body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            found = None
        if not isinstance(found, dict):
            found = {"body": self.body.decode(errors="replace")}
        return {**found, "stream_offset": self.offset}

    def line(self) -> tuple[str, str]:
        """Return when it was said (or nothing) and what, both safe to show on a terminal."""
        document = self.document()
        when = document.get("timestamp")
        text = document.get("text", document.get("body"))
        if not isinstance(text, str):
            text = self.body.decode(errors="replace")
        shown = harmless(text[:_SHOWN_CHARACTERS])
        return (harmless(when[:40]) if isinstance(when, str) else ""), shown


class Reader:
    """A consumer of one room on a channel of its own."""

    def __init__(self, channel: AbstractChannel) -> None:
        self._channel = channel
        self._inbox: asyncio.Queue[AbstractIncomingMessage | None] = asyncio.Queue()

    async def _subscribe(self, queue_name: str, start: Start, prefetch: int) -> None:
        self._prefetch = prefetch
        await self._channel.set_qos(prefetch_count=prefetch)
        underlay = await self._channel.get_underlay_channel()
        underlay.on_consumer_cancel_callbacks.add(lambda _: self._inbox.put_nowait(None))
        self._channel.close_callbacks.add(lambda *_: self._inbox.put_nowait(None))
        queue = await self._channel.get_queue(queue_name, ensure=False)
        # A callback and never `queue.iterator()`, which on leaving sends the nack that streams
        # refuse. It only files the message: the acknowledgement follows when it is looked at.
        await queue.consume(self._inbox.put, arguments={OFFSET_HEADER: start})

    async def first(self) -> Entry | None:
        """Return the first message at or after the start, None if there is none."""
        found = await self._batch(_FIRST_TIMEOUT_S)
        return found[0] if found else None

    async def to_end(self) -> list[Entry]:
        """Return everything that the room holds from the start, or from the last call, on."""
        entries: list[Entry] = []
        found = await self._batch(_FIRST_TIMEOUT_S)
        while found:
            entries += found
            with lost_connections():
                # Its answer comes after whatever the acknowledgements so far have let through.
                await self._channel.set_qos(prefetch_count=self._prefetch)
            found = [] if self._inbox.empty() else await self._batch(None)
        return entries

    async def more(self) -> list[Entry]:
        """Return the next messages, however long they take to come."""
        return await self._batch(None)

    async def _batch(self, timeout_s: float | None) -> list[Entry]:
        """Return what has come, after waiting for the first; nothing only after the timeout."""
        try:
            messages = [await asyncio.wait_for(self._inbox.get(), timeout_s)]
        except TimeoutError:
            return []
        while not self._inbox.empty():
            messages.append(self._inbox.get_nowait())
        entries = []
        newest: AbstractIncomingMessage | None = None
        for message in messages:
            if message is None:
                raise ConnectionLost("The room", "its queue or the connection was closed")
            offset = message.headers[OFFSET_HEADER]
            assert isinstance(offset, int)
            entries.append(Entry(offset, message.body))
            newest = message
        assert newest is not None
        with lost_connections():
            # All at once: for each acknowledgement the server goes to the log again.
            await newest.ack(multiple=True)
        return entries


class Rooms:
    """Rooms to read, on one connection."""

    def __init__(self, connection: AbstractConnection, settings: Settings) -> None:
        self._connection = connection
        self._settings = settings

    @asynccontextmanager
    async def reading(
        self, room: str, start: Start, prefetch: int = PREFETCH
    ) -> AsyncIterator[Reader]:
        """Give a reader that begins at `start`.

        Raises:
            InputError: there is no such room.
            RoomError: the queue of that name is no stream.
        """
        name = self._settings.topic(room)
        with lost_connections():
            channel = await self._connection.channel(publisher_confirms=False)
        try:
            with lost_connections():
                try:
                    reader = Reader(channel)
                    await channel.declare_queue(name, passive=True)
                    await reader._subscribe(name, start, prefetch)
                except ChannelNotFoundEntity as error:
                    raise InputError(
                        f"There is no room '{room}'. 'chat-bridge rooms' lists those there are; "
                        "a room begins with its first fill."
                    ) from error
                except ChannelPreconditionFailed as error:
                    raise RoomError(room, f"the queue {name} is no room: {error}.") from error
            yield reader
        finally:
            if not channel.is_closed:
                with lost_connections():
                    await channel.close()

    async def newest(self, room: str) -> Entry | None:
        """Return the last message of a room, None if it is empty."""
        async with self.reading(room, "last") as reader:
            entries = await reader.to_end()
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
