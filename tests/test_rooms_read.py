"""Reading rooms: since a time and live, all rooms at a glance, and with the documented clients."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pytest
from pika.exchange_type import ExchangeType

from chat_bridge import history
from chat_bridge.amqp import connect
from chat_bridge.errors import RoomError
from chat_bridge.history import Entry, Rooms
from chat_bridge.listing import ListedRoom, RoomSummary, listed_rooms, summaries
from ledger import times
from ledger.settings import Settings
from ledger.stack import Endpoints
from tests.support import environment, eventually, settings_on
from tests.test_rooms_access import House, connected, consume
from tests.test_rooms_say import command, error

pytestmark = pytest.mark.integration

ROOM: Final = "room.BTC-USD"
DOCS: Final = (Path(__file__).parent.parent / "docs" / "rooms.md").read_text(encoding="utf-8")
EXAMPLES: Final = re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL)
TIMES: Final = [
    "2015-05-01T10:00:00Z",
    "2015-05-01T10:05:00Z",
    "2015-05-01T09:59:59Z",  # posted late, after the bridge was stopped
    "2015-05-01T10:04:59.999999999Z",
    "2015-05-01T12:05:00+02:00",
    "2015-05-01T10:05:00.000000001Z",
    None,
    "noon",
]


@pytest.fixture(scope="module")
def house(stack: Endpoints, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    house = House(settings_on(stack, tmp_path_factory.mktemp("house"), 1))
    house.make(ROOM, house.room("alice"), house.room("bob"), "room.EMPTY-USD")
    for number, moment in enumerate(TIMES):
        stated = {"timestamp": moment} if moment else {}
        house.post(ROOM, type="trade", text=f"trade {number}", **stated)
    yield house
    house.close()


def shown(settings: Settings, *words: str) -> list[str]:
    """Return the texts that `tail --json` shows."""
    done = command(settings, "tail", *words, "--json")
    assert done.exit_code == 0, done.exception
    return [message["text"] for message in json.loads(done.stdout)["messages"]]


# -- since a time


@pytest.mark.parametrize(
    ("since", "numbers"),
    [
        ("1970-01-01T00:00:00Z", range(8)),
        ("1901-01-01T00:00:00Z", range(8)),
        ("2015-05-01T09:59:59.5Z", [0, 1, 3, 4, 5, 6, 7]),
        ("2015-05-01T10:05:00Z", [1, 4, 5, 6, 7]),
        ("2015-05-01T12:05:00.0000000001+02:00", [5, 6, 7]),
        # By when they were posted, which is what RabbitMQ knows, all are older than this.
        ("2999-01-01T00:00:00Z", []),
    ],
)
def test_since_a_time_means_the_time_in_front_of_the_line(
    house: House, since: str, numbers: list[int]
) -> None:
    assert shown(house.settings, "BTC-USD", "--since", since) == [f"trade {n}" for n in numbers]


def test_since_a_time_nothing_is_read_that_was_posted_long_before(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = house.room("alice")
    monkeypatch.setattr(history, "_CLOCKS_DIFFER_S", 0)

    def post(text: str) -> times.Instant:
        stated = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        house.post(room, type="fill", text=text, timestamp=stated)
        return times.instant(stated)

    first = post("early")
    eventually(lambda: time.time() > first[0] + 2)
    second = post("late")

    async def since(moment: times.Instant) -> list[list[Entry]]:
        async with await connect(house.amqp, "test") as connection:
            return [batch async for batch in Rooms(connection, house.settings).since(room, moment)]

    assert [entry.offset for batch in asyncio.run(since(first)) for entry in batch] == [0, 1]
    # In one batch, for the early one is not even read.
    assert [[entry.offset for entry in batch] for batch in asyncio.run(since(second))] == [[1]]


def test_since_a_time_goes_on_live_with_whatever_comes(house: House) -> None:
    house.post(house.room("bob"), type="fill", text="here", timestamp="2021-01-01T00:00:00Z")
    with subprocess.Popen(
        [
            *(sys.executable, "-m", "chat_bridge", "tail", house.room("bob"), "--follow"),
            *("--since", "2020-01-01T00:00:00Z", "--json"),
        ],
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        env=environment(house.settings),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["text"] == "here"
        # News is shown also where it is of something that happened before.
        house.post(house.room("bob"), type="fill", text="late", timestamp="2015-01-01T00:00:00Z")
        assert json.loads(process.stdout.readline())["text"] == "late"
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
        assert process.stderr is not None
        assert process.stderr.read() == b""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["BTC-USD", "--since", "noon"], "--since: must be an RFC 3339 time"),
        (["BTC-USD", "--since", "2015-02-30T00:00:00Z"], "--since: no such time"),
        (["BTC-USD", "--since", "2015-05-01T00:00:00Z", "--last", "3"], "use one of them"),
        (["NO-ROOM", "--since", "2015-05-01T00:00:00Z"], "There is no room 'room.NO-ROOM'"),
        (["NO-ROOM", "--last", "0"], "There is no room 'room.NO-ROOM'"),
    ],
)
def test_what_cannot_be_shown_is_said_in_a_sentence(
    house: House, words: list[str], said: str
) -> None:
    assert said in error(house.settings, "tail", *words)


def test_the_last_messages_are_ten_or_as_many_as_asked_for(house: House) -> None:
    assert shown(house.settings, "BTC-USD") == [f"trade {n}" for n in range(8)]
    assert shown(house.settings, "BTC-USD", "--last", "2") == ["trade 6", "trade 7"]
    assert shown(house.settings, "BTC-USD", "--last", "0") == []
    assert shown(house.settings, "EMPTY-USD") == []


def test_a_queue_that_is_no_stream_is_no_room(house: House) -> None:
    with connected(house.amqp) as channel:
        channel.queue_declare(house.name("room.NOT-USD"), durable=True)
    try:
        with pytest.raises(RoomError, match="is no room"):
            raise command(house.settings, "tail", "NOT-USD").exception or AssertionError
    finally:
        with connected(house.amqp) as channel:
            channel.queue_delete(house.name("room.NOT-USD"))


def test_a_channel_serves_one_reader_after_the_other(house: House) -> None:
    async def read() -> list[int]:
        async with await connect(house.amqp, "test") as connection:
            rooms = Rooms(connection, house.settings)
            counts = []
            for _ in range(3):
                async with rooms.reading(ROOM, "first", prefetch=3) as left_early:
                    assert await left_early.first() is not None
                async with rooms.reading(ROOM, "first", prefetch=3) as reader:
                    counts.append(len(await reader.to_end()))
            async with rooms.reading(ROOM, "first") as one, rooms.reading(ROOM, 5) as other:
                counts += [len(await one.to_end()), len(await other.to_end())]
            return counts

    assert asyncio.run(read()) == [8, 8, 8, 8, 3]


# -- all rooms


def test_rooms_shows_counts_members_and_the_last_line(house: House) -> None:
    alice = house.account("alice")
    url = house.grant(alice)
    house.make("room.TALK-USD")
    assert command(house.settings, "say", "TALK-USD", "hello", "--as", alice).exit_code == 0
    with connected(url) as one, connected(house.amqp) as two:
        for channel in (one, one, two):
            consume(channel, house.name("room.TALK-USD"))
        listed = eventually(lambda: read_by_three(house), 30)
        assert sorted(listed.readers) == sorted([alice, alice, house.management.user])
        done = json.loads(command(house.settings, "rooms", "--json").stdout)["rooms"]
    found = {room["room"]: room for room in done}
    assert found["room.TALK-USD"] == {
        "room": "room.TALK-USD",
        "messages": 1,
        "members": 3,
        "readers": sorted([alice, house.management.user]),
        "last": f"<{alice}> hello",
        "last_at": found["room.TALK-USD"]["last_at"],
    }
    assert found["room.EMPTY-USD"]["messages"] == 0
    assert found["room.EMPTY-USD"]["last"] is None
    assert (found[ROOM]["messages"], found[ROOM]["last"]) == (8, "trade 7")
    assert list(found) == sorted(found, key=lambda name: (name.startswith("account."), name))
    table = command(house.settings, "rooms").stdout
    assert re.search(rf"room\.TALK-USD *│ *1 │ *\d │.*<{alice}> hello", table)


def read_by_three(house: House) -> ListedRoom | None:
    """Return what the management page knows of the room once it has seen all who read it."""
    for room in listed_rooms(house.settings, house.amqp, house.settings.amqp_management):
        if room.name == "room.TALK-USD" and len(room.readers) == 3:
            return room
    return None


@pytest.mark.parametrize("known", [0, 3, 8, 9, 1_000])
def test_a_count_is_right_whatever_the_management_page_still_believes(
    house: House, known: int
) -> None:
    assert summary(house, ListedRoom(ROOM, known, ())).messages == 8


def test_an_empty_room_that_is_believed_to_hold_something_is_empty(house: House) -> None:
    assert summary(house, ListedRoom("room.EMPTY-USD", 5, ())).messages == 0


def test_what_grew_too_old_is_not_counted(house: House) -> None:
    name = "room.SHORT-USD"
    with connected(house.amqp) as channel:
        channel.queue_declare(
            house.name(name),
            durable=True,
            arguments={
                "x-queue-type": "stream",
                "x-max-length-bytes": 8_000,
                "x-stream-max-segment-size-bytes": 4_000,
            },
        )
        channel.exchange_declare(house.name("chat.rooms"), ExchangeType.topic, durable=True)
        channel.queue_bind(house.name(name), house.name("chat.rooms"), name)
        for _ in range(60):
            channel.basic_publish(house.name("chat.rooms"), name, b"x" * 1000, mandatory=True)
    eventually(lambda: summary(house, ListedRoom(name, 0, ())).messages < 30)
    kept = summary(house, ListedRoom(name, 0, ())).messages
    assert len(house.history(name)) == kept


def summary(house: House, room: ListedRoom) -> RoomSummary:
    async def ask() -> list[RoomSummary]:
        async with await connect(house.amqp, "test") as connection:
            return await summaries(Rooms(connection, house.settings), [room])

    (found,) = asyncio.run(ask())
    return found


def test_a_room_that_is_deleted_meanwhile_is_left_out(house: House) -> None:
    async def ask() -> list[Any]:
        async with await connect(house.amqp, "test") as connection:
            listed = [ListedRoom(name, 8, ()) for name in ("room.GONE-USD", ROOM)]
            return await summaries(Rooms(connection, house.settings), listed)

    assert [one.room for one in asyncio.run(ask())] == [ROOM]


# -- the documented clients


@pytest.mark.parametrize("code", EXAMPLES, ids=[code.split("\n")[0] for code in EXAMPLES])
def test_the_examples_in_the_documentation_read_a_room(house: House, code: str) -> None:
    alice = house.account("alice")
    with subprocess.Popen(
        [sys.executable, "-u", "-c", code, house.grant(alice), house.name(ROOM)],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            lines = [process.stdout.readline() for _ in TIMES]
        finally:
            process.kill()
    assert [line.split()[-1] for line in lines] == [str(number) for number in range(8)]
