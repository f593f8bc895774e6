"""Which rooms there are: AMQP cannot tell, so RabbitMQ's management page is asked."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Final

from chat_bridge.history import Entry, Rooms
from chat_bridge.management import Management
from chat_bridge.names import is_public, is_room
from ledger.errors import ConfigurationError, InputError
from ledger.settings import Settings

_AT_A_TIME: Final = 16


@dataclass(frozen=True)
class ListedRoom:
    """What RabbitMQ's management page knows of a room, some seconds late.

    Attributes:
        name: without prefix.
        messages: about how many it holds.
        readers: the user of each consumer that reads it.
    """

    name: str
    messages: int
    readers: tuple[str, ...]


@dataclass(frozen=True)
class RoomSummary:
    """A room, how many messages its history holds, who reads it, and its last message."""

    room: str
    messages: int
    readers: tuple[str, ...]
    last: Entry | None

    @property
    def members(self) -> int:
        """How many read the room now; who reads it with two clients counts twice."""
        return len(self.readers)

    def as_json(self) -> dict[str, Any]:
        """Return what `chat-bridge rooms --json` prints of it."""
        when, text = self.last.line() if self.last else (None, None)
        return {
            "room": self.room,
            "messages": self.messages,
            "members": self.members,
            "readers": sorted(set(self.readers)),
            "last": text,
            "last_at": when or None,
        }


def listed_rooms(settings: Settings, amqp: str, page: str | None) -> list[ListedRoom]:
    """Return all rooms, public ones first, in order of name.

    Args:
        settings: whose prefix is before the queues' names.
        amqp: RabbitMQ's URL, with the user and password to ask with.
        page: URL of the management page, if it is known.

    Raises:
        UnreachableError: the page does not answer.
        ConfigurationError: it does not let this user in.
    """
    management = Management(amqp, page)
    queues = management.get("queues", management.vhost, query="columns=name,type,messages")
    if queues is None:
        raise ConfigurationError(f"RabbitMQ has no virtual host '{management.vhost}'.")
    consumers = management.get(
        "consumers", management.vhost, query="columns=queue.name,channel_details.user"
    )
    readers: dict[str, list[str]] = {}
    for consumer in consumers or ():
        # Of one that has just ended the page knows no details any more.
        details = consumer.get("channel_details")
        if details and "user" in details:
            readers.setdefault(consumer["queue"]["name"], []).append(details["user"])
    rooms = []
    for queue in queues:
        full = queue["name"]
        name = full.removeprefix(settings.topic_prefix)
        if queue.get("type") == "stream" and settings.topic(name) == full and is_room(name):
            # A queue that was made just now has no count yet.
            rooms.append(ListedRoom(name, queue.get("messages", 0), tuple(readers.get(full, ()))))
    return sorted(rooms, key=lambda room: (not is_public(room.name), room.name))


async def summaries(rooms: Rooms, listed: list[ListedRoom]) -> list[RoomSummary]:
    """Return a summary of each room that still exists."""
    limit = asyncio.Semaphore(_AT_A_TIME)

    async def one(room: ListedRoom) -> RoomSummary | None:
        async with limit:
            try:
                return await _summary(rooms, room)
            except InputError:  # deleted meanwhile
                return None

    found = await asyncio.gather(*map(one, listed))
    return [summary for summary in found if summary is not None]


async def _summary(rooms: Rooms, room: ListedRoom) -> RoomSummary:
    newest = await rooms.newest(room.name, holds_some=room.messages > 0)
    if newest is None:
        return RoomSummary(room.name, 0, room.readers, None)
    messages = newest.offset + 1
    if messages != room.messages:  # then something was posted just now, or the oldest are gone
        oldest = await rooms.oldest(room.name)
        messages -= oldest.offset if oldest else 0
    return RoomSummary(room.name, messages, room.readers, newest)
