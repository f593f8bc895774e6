"""Which rooms there are: AMQP cannot tell, so RabbitMQ's management page is asked."""

from __future__ import annotations

import asyncio
import base64
import json
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote, unquote, urlsplit

from chat_bridge.history import Entry, Rooms
from chat_bridge.names import is_public, is_room
from ledger.errors import ConfigurationError, InputError, UnreachableError
from ledger.settings import Settings, mask_url

_TIMEOUT_S: Final = 10.0
_AT_A_TIME: Final = 16
_DEFAULT_PORT: Final = 15672


@dataclass(frozen=True)
class RoomSummary:
    """A room, how many messages its history holds, and the last of them."""

    room: str
    messages: int
    last: Entry | None

    def as_json(self) -> dict[str, Any]:
        """Return what `chat-bridge rooms --json` prints of it."""
        when, text = self.last.line() if self.last else (None, None)
        return {"room": self.room, "messages": self.messages, "last": text, "last_at": when or None}


def room_names(settings: Settings, amqp: str, management: str | None) -> list[str]:
    """Return all rooms, public ones first, in order of name.

    Args:
        settings: whose prefix is before the queues' names.
        amqp: RabbitMQ's URL, with the user and password to ask with.
        management: URL of the management page; without one, the usual port of the same host.

    Raises:
        UnreachableError: the page does not answer.
        ConfigurationError: it does not let this user in.
    """
    parts = urlsplit(amqp)
    base = management or f"http://{parts.hostname}:{_DEFAULT_PORT}"
    vhost = unquote(parts.path.removeprefix("/")) or "/"
    url = f"{base.rstrip('/')}/api/queues/{quote(vhost, safe='')}?columns=name,type"
    user, password = unquote(parts.username or "guest"), unquote(parts.password or "guest")
    token = base64.b64encode(f"{user}:{password}".encode()).decode()
    request = urllib.request.Request(url, headers={"Authorization": f"Basic {token}"})
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
            queues = json.load(answer)
    except urllib.error.HTTPError as error:
        raise ConfigurationError(
            f"RabbitMQ's management page {mask_url(base)} refused to list queues "
            f"({error.code} {error.reason}): the user of LEDGER_AMQP needs the tag 'management'."
        ) from error
    except (OSError, ValueError) as error:
        raise UnreachableError(
            "RabbitMQ's management page (LEDGER_AMQP_MANAGEMENT)", mask_url(base), str(error)
        ) from error
    prefix = settings.topic_prefix
    names = [
        queue["name"].removeprefix(prefix)
        for queue in queues
        if queue.get("type") == "stream" and queue["name"].startswith(prefix)
    ]
    return sorted(filter(is_room, names), key=lambda name: (not is_public(name), name))


async def summaries(rooms: Rooms, names: list[str]) -> list[RoomSummary]:
    """Return a summary of each room that still exists."""
    limit = asyncio.Semaphore(_AT_A_TIME)

    async def one(name: str) -> RoomSummary | None:
        async with limit:
            try:
                newest = await rooms.newest(name)
                oldest = await rooms.oldest(name) if newest else None
            except InputError:  # deleted meanwhile
                return None
        if newest is None or oldest is None:
            return RoomSummary(name, 0, None)
        return RoomSummary(name, newest.offset - oldest.offset + 1, newest)

    found = await asyncio.gather(*(one(name) for name in names))
    return [summary for summary in found if summary is not None]
