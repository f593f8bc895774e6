"""A short run of the rooms' chaos, and that its judge and its proxy do what they say."""

from __future__ import annotations

import json
import random
import socket
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pika.spec import BasicProperties

from tests.chaos.mischief import Tempo
from tests.reference import partition_of
from tests.rooms_chaos.expected import Wanted, expected
from tests.rooms_chaos.fills import Stored
from tests.rooms_chaos.proxy import CONFIRMS, PUBLISHES, Proxy, proxies
from tests.rooms_chaos.rooms import Found
from tests.rooms_chaos.run import Shape, run
from tests.rooms_chaos.servers import own_servers
from tests.rooms_chaos.verify import Verdict, compare
from tests.support import eventually
from tests.test_bridge_messages import BUST, FILL

EXCHANGE = "t-chat.rooms"
ALICE = partition_of(b"alice", 8)
BOB = partition_of(b"bob", 8)

# More than there is time for, so that nothing is added by chance that takes longer.
DEEDS = ("kill_rabbit", "lose_confirms", "kill_two", "cut_confirms", "wipe", "kill")
SHORT = Shape(
    fills=2_000,
    tempo=Tempo(9.0, between_s=(0.5, 1.5), calm_s=(1.0, 1.5), burst=(4, 5)),
    must=(*DEEDS, "cut", "cut_publishes", "lose_confirms", "terminate", "cut_confirms"),
)


@pytest.mark.integration
def test_whatever_is_killed_or_cut_each_fill_is_in_its_rooms_once_and_in_order(
    tmp_path: Path,
) -> None:
    seed = random.randrange(1_000_000)
    print(f"seed {seed}")
    with own_servers(tmp_path) as servers:
        (tmp_path / "seed").mkdir()
        outcome = run(seed, SHORT, servers, tmp_path / "seed")
    print(outcome)
    assert outcome.differences == []
    assert outcome.done["kill_rabbit"] == 1
    assert outcome.verdict.messages > SHORT.fills


# -- the judge


def stored(*events: dict[str, Any]) -> list[Stored]:
    """Return events as the topic has them, each partition's in order."""
    offsets: dict[int, int] = {}
    found = []
    for event in events:
        key = event["account"].encode()
        partition = partition_of(key, 8)
        offsets[partition] = offsets.get(partition, -1) + 1
        value = json.dumps(event).encode()
        found.append(Stored(partition, offsets[partition], key, value))
    return found


def wanted_of(*events: dict[str, Any]) -> dict[str, list[Wanted]]:
    return expected(stored(*events), 8)


def ids_of(wanted: dict[str, list[Wanted]]) -> dict[str, list[str]]:
    return {room: [message.message_id for message in found] for room, found in wanted.items()}


def as_posted(room: str, wanted: Wanted) -> Found:
    """Return a message as a bridge without faults would post it."""
    text = f"said: {' '.join(wanted.words)}"
    properties = BasicProperties(
        content_type="application/json",
        delivery_mode=2,
        message_id=wanted.message_id,
        timestamp=1430438406,
        type=wanted.body["type"],
    )
    return Found(json.dumps({**wanted.body, "text": text}).encode(), properties, room, EXCHANGE)


FILLED = {**FILL, "occurred_at": "2015-05-01T00:00:06.339Z"}
MESSAGES = wanted_of(*({**FILLED, "fill_id": f"f{n}"} for n in range(3)))
POSTED = {room: [as_posted(room, one) for one in found] for room, found in MESSAGES.items()}
PUBLIC = "room.BTC-USD"
PRIVATE = "account.alice"


def judged(room: str, messages: Sequence[Found]) -> Verdict:
    """Return the verdict where one room has these messages and the others have theirs."""
    return compare(MESSAGES, {**POSTED, room: messages}, EXCHANGE)


def with_body(message: Found, **fields: Any) -> Found:
    return replace(message, body=json.dumps({**json.loads(message.body), **fields}).encode())


def test_rooms_that_are_as_they_must_be_make_no_difference() -> None:
    verdict = compare(MESSAGES, POSTED, EXCHANGE)
    assert verdict == Verdict(rooms=2, messages=6)


def test_a_message_that_is_there_twice_is_a_duplicate() -> None:
    first, *others = POSTED[PUBLIC]
    verdict = judged(PUBLIC, [first, *others, first])
    assert (verdict.duplicates, verdict.disorder) == (1, 0)
    assert verdict.differences == [
        f"{PUBLIC}: 1 messages are there more than once: fills:{ALICE}:0:room"
    ]


def test_a_message_that_is_not_there_is_missing() -> None:
    verdict = judged(PRIVATE, POSTED[PRIVATE][1:])
    assert (verdict.missing, len(verdict.differences)) == (1, 1)


def test_a_room_that_is_not_there_misses_all_its_messages() -> None:
    verdict = compare(MESSAGES, {PUBLIC: POSTED[PUBLIC]}, EXCHANGE)
    assert verdict.missing == 3
    assert verdict.differences[0] == f"{PRIVATE} is not there"


def test_messages_of_one_partition_that_changed_places_are_out_of_order() -> None:
    verdict = judged(PUBLIC, [POSTED[PUBLIC][n] for n in (1, 0, 2)])
    assert (verdict.disorder, len(verdict.differences)) == (1, 1)


def test_messages_of_different_partitions_may_be_in_any_order() -> None:
    wanted = wanted_of(FILLED, {**FILLED, "account": "bob"})
    assert BOB != ALICE
    posted = {room: [as_posted(room, m) for m in found[::-1]] for room, found in wanted.items()}
    assert compare(wanted, posted, EXCHANGE).differences == []


def test_a_message_or_room_that_nothing_made_is_a_stranger() -> None:
    stranger = replace(POSTED[PUBLIC][0], properties=BasicProperties(message_id="fills:0:9:room"))
    assert judged(PUBLIC, [*POSTED[PUBLIC], stranger]).strangers == 1
    assert judged("room.ETH-USD", []).differences == ["room.ETH-USD should not be there"]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"price": "236.470"}, "price: '236.470' and not '236.47'"),
        ({"quantity": 1}, "quantity: 1 and not"),
        ({"account": "alice"}, "account: 'alice' and not None"),
        ({"text": "two\nlines"}, "text is no line"),
        ({"text": "BTC-USD  sold"}, "text leaves something out"),
    ],
)
def test_a_body_that_says_something_else_is_wrong(fields: dict[str, Any], said: str) -> None:
    first, *others = POSTED[PUBLIC]
    verdict = judged(PUBLIC, [with_body(first, **fields), *others])
    assert verdict.wrong == 1
    assert said in verdict.differences[0]


@pytest.mark.parametrize(
    "change",
    [
        {"routing_key": PUBLIC.lower()},
        {"exchange": ""},
        {"properties": BasicProperties(message_id=f"fills:{ALICE}:0:room", type="trade")},
    ],
)
def test_a_message_that_was_posted_in_another_way_is_wrong(change: dict[str, Any]) -> None:
    first, *others = POSTED[PUBLIC]
    assert judged(PUBLIC, [replace(first, **change), *others]).wrong >= 1


def test_what_must_be_in_rooms_follows_the_first_record_of_each_identity() -> None:
    maker = {**FILLED, "account": "bob", "liquidity": "maker"}
    broken = {**FILLED, "fill_id": "f2", "price": "-1"}
    wanted = wanted_of(
        FILLED, {**FILLED, "event_id": "again"}, {**FILLED, "price": "1"}, broken, maker
    )
    assert ids_of(wanted) == {
        PUBLIC: [f"fills:{ALICE}:0:room"],
        PRIVATE: [f"fills:{ALICE}:0:account"],
        "account.bob": [f"fills:{BOB}:0:account"],
    }


def test_a_bust_must_be_in_rooms_once_its_fill_is_known() -> None:
    later = wanted_of(FILLED, BUST)
    assert ids_of(later)[PUBLIC] == [f"fills:{ALICE}:{offset}:room" for offset in (0, 1)]
    earlier = wanted_of(BUST, FILLED)
    assert ids_of(earlier)[PUBLIC] == [f"fills:{ALICE}:{offset}:room" for offset in (1, 0)]
    bust = earlier[PUBLIC][1].body
    assert (bust["type"], bust["busts"]) == ("bust", f"fills:{ALICE}:1:room")
    assert "reason" not in bust
    assert earlier[PRIVATE][1].body["reason"] == BUST["reason"]
    assert wanted_of(BUST) == {}


# -- the proxy


@pytest.fixture
def echo() -> Iterator[int]:
    """A server that sends back what it gets, and the port that it is on."""

    def answer(connection: socket.socket) -> None:
        with connection:
            try:
                while data := connection.recv(4096):
                    connection.sendall(data)
            except OSError:
                pass

    def accept() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=accept, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def proxy(echo: int) -> Iterator[Proxy]:
    with proxies(1, lambda: echo) as (one,):
        yield one


@pytest.fixture
def line(proxy: Proxy) -> Iterator[socket.socket]:
    """A connection to the echo through the proxy, which has been used."""
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=5) as connection:
        connection.sendall(b"hello")
        assert connection.recv(5) == b"hello"
        yield connection


def test_a_cut_line_is_reset(proxy: Proxy, line: socket.socket) -> None:
    proxy.cut()
    with pytest.raises(ConnectionResetError):
        line.recv(1)


def test_a_line_is_cut_after_so_many_bytes_came_back(proxy: Proxy, line: socket.socket) -> None:
    proxy.cut_after(CONFIRMS, 3)
    line.sendall(b"12345")
    assert line.recv(5) == b"123"
    with pytest.raises(ConnectionResetError):
        line.recv(1)


def test_a_stalled_line_brings_everything_later(proxy: Proxy, line: socket.socket) -> None:
    proxy.stall(PUBLISHES)
    line.sendall(b"later")
    line.settimeout(0.2)
    with pytest.raises(TimeoutError):
        line.recv(1)
    proxy.flow()
    line.settimeout(5)
    assert line.recv(5) == b"later"


def test_a_refused_line_is_reset_until_the_proxy_is_healed(proxy: Proxy) -> None:
    def answers() -> bool:
        try:
            with socket.create_connection(("127.0.0.1", proxy.port), timeout=5) as connection:
                connection.sendall(b"hello")
                return connection.recv(5) == b"hello"
        except ConnectionError:
            return False

    assert answers()
    proxy.refuse(True)
    assert not answers()
    proxy.heal()
    eventually(answers, 5)
