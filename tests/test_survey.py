"""What the bridge makes of a room's history, of some that RabbitMQ would need a year for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from chat_bridge.errors import RoomError
from chat_bridge.history import Entry, Rooms, Start
from chat_bridge.identity import Expected, Span
from chat_bridge.survey import Anchor, Surveyor

ROOM = "room.A-B"


class Histories:
    """One room, in the place of `Rooms`; it counts how often a message is read."""

    def __init__(self, entries: list[Entry]) -> None:
        self.entries = entries
        self.read = 0

    @asynccontextmanager
    async def reading(self, _: str, start: Start, prefetch: int = 500) -> AsyncIterator[Any]:
        if start == "last":
            found = self.entries[-3:]
        else:
            first = start if isinstance(start, int) else 0
            found = [entry for entry in self.entries if entry.offset >= first]
        yield _Reader(self, found, prefetch)

    async def oldest(self, _: str) -> Entry | None:
        return self.entries[0] if self.entries else None


class _Reader:
    def __init__(self, room: Histories, entries: list[Entry], prefetch: int) -> None:
        self._room, self._entries, self._prefetch = room, entries, prefetch

    async def first(self) -> Entry | None:
        return self._entries[0] if self._entries else None

    async def batches(self) -> AsyncIterator[list[Entry]]:
        for at in range(0, len(self._entries), self._prefetch):
            batch = self._entries[at : at + self._prefetch]
            self._room.read += len(batch)
            yield batch


def posted(
    offset: int, partition: int = 0, *, bust: bool = False, user: str = "ledger"
) -> tuple[str, str, dict[str, int]]:
    """Return user, id and headers of a message that a bridge has posted upon a record."""
    message_id = f"fills:{partition}:{'b' if bust else ''}{offset}:room"
    return user, message_id, {"partition": partition, "offset": offset}


def history(*messages: tuple[str, str, dict[str, int]], begins_at: int = 0) -> Histories:
    return Histories(
        [
            Entry(begins_at + at, b"{}", ROOM, user, message_id, headers)
            for at, (user, message_id, headers) in enumerate(messages)
        ]
    )


def surveyor(room: Histories) -> Surveyor:
    return Surveyor(cast(Rooms, room), "ledger")


def span(first: int, last: int, *, count: int = 0, bust: bool = False) -> Span:
    return Span(first, last, posted(last, bust=bust)[1], count)


def is_complete(room: Histories, expected: Span | None, before: int = 100) -> bool:
    found = asyncio.run(surveyor(room).look(ROOM, {0: Expected(expected, before)}))
    return found[0].is_complete


def test_a_room_with_its_first_and_last_message_is_complete() -> None:
    assert is_complete(history(posted(3), posted(4), posted(9)), span(3, 9))
    assert is_complete(history(), None)


@pytest.mark.parametrize(
    "room",
    [history(), history(posted(3), posted(4)), history(posted(4), posted(9)), history(posted(3))],
)
def test_a_room_without_its_first_or_last_message_is_not(room: Histories) -> None:
    assert not is_complete(room, span(3, 9))


def test_a_bust_that_is_missing_behind_its_fill_is_missed() -> None:
    """Found by review: both are posted upon the same record."""
    assert not is_complete(history(posted(3), posted(9)), span(3, 9, bust=True))
    assert is_complete(history(posted(3), posted(9), posted(9, bust=True)), span(3, 9, bust=True))


def test_what_grew_too_old_is_not_missing() -> None:
    assert is_complete(history(posted(7), posted(9), begins_at=40), span(3, 9))
    assert is_complete(history(posted(7, 1), begins_at=40), span(3, 9))
    assert not is_complete(history(posted(7), posted(8), begins_at=40), span(3, 9))


def test_what_people_say_counts_for_nothing() -> None:
    said = Entry(1, b"{}", "say.A-B", "mallory", posted(9)[1], {"partition": 0, "offset": 9})
    room = history(posted(3))
    room.entries.append(said)
    assert not is_complete(room, span(3, 9))


def test_a_bridge_of_another_user_is_named() -> None:
    with pytest.raises(RoomError, match=r"posted by RabbitMQ's user 'other', .* is 'ledger'"):
        is_complete(history(posted(3, user="other")), span(3, 3))


def test_what_an_earlier_session_posted_is_listed_and_no_more_is_read_than_needed() -> None:
    messages = [posted(offset, offset % 2) for offset in range(2000)]
    room = history(*messages)
    looking = surveyor(room)

    async def look_back() -> list[int]:
        looking.begin({0: 1990, 1: 1991})
        even = await looking.look_back(ROOM, 0, Expected(span(0, 1988), 1992))
        # What is posted meanwhile is not of an earlier session.
        room.entries.append(Entry(2000, b"{}", ROOM, *posted(2000, 1)))
        odd = await looking.look_back(ROOM, 1, Expected(None, 1993))
        assert even.is_complete
        assert even.anchor == Anchor(1998, posted(1998)[1])
        return [len(even.posted), len(odd.posted)]

    assert asyncio.run(look_back()) == [5, 5]
    assert room.read < 700


def test_all_messages_of_a_partition_are_held_against_what_should_be_there() -> None:
    room = history(posted(5), posted(6, 1), posted(2), posted(9))
    held = asyncio.run(surveyor(room).all_of(ROOM, 0))
    assert list(held.offsets.values()) == [5, 2, 9]
    assert not held.is_cut
    assert asyncio.run(surveyor(history(posted(5), begins_at=1)).all_of(ROOM, 0)).is_cut


def test_an_anchor_stands_until_another_message_is_in_its_place() -> None:
    anchor = Anchor(1, posted(4)[1])
    for room, stands in (
        (history(posted(3), posted(4)), True),
        (history(posted(4), posted(3)), False),
        (history(posted(4)), False),
        (history(posted(9), begins_at=7), True),
    ):
        assert asyncio.run(surveyor(room).stands(ROOM, anchor)) is stands
