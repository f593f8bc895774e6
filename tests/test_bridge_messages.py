"""What the rooms are told of an accepted record: pure, without brokers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chat_bridge.amqp import lost_connections
from chat_bridge.errors import ConnectionLost, RoomError
from chat_bridge.history import Entry
from chat_bridge.identity import Expected, Identity, Span, StoredIdentity
from chat_bridge.messages import Message
from chat_bridge.names import is_room, parse_room, retention_of
from chat_bridge.text import harmless
from ledger.errors import InputError, StateError
from ledger.places import take_place
from ledger.projections.entries import META_KEY
from ledger.projections.partition import Origin
from ledger.rocks import RocksStore
from ledger.store import MemoryStore

ORIGIN = Origin("cluster", {"fills": "f"}, 1)
FILL: dict[str, Any] = {
    "type": "order_filled",
    "version": 1,
    "event_id": "e1",
    "account": "alice",
    "occurred_at": "2015-05-01T00:00:06.339Z",
    "fill_id": "f1",
    "trade_id": "t1",
    "order_id": "o1",
    "instrument": "BTC-USD",
    "side": "sell",
    "price": "236.470",
    "quantity": "1.78855669",
    "fee": "1.06",
    "fee_asset": "USD",
    "liquidity": "taker",
}
BUST: dict[str, Any] = {
    "type": "fill_busted",
    "version": 1,
    "event_id": "e2",
    "account": "alice",
    "occurred_at": "2015-05-01T00:10:00Z",
    "fill_id": "f1",
    "order_id": "o1",
    "trade_id": "t1",
    "instrument": "BTC-USD",
    "reason": "alice's\x1b[2J mistake",
}


@dataclass(frozen=True)
class Recorded:
    offset: int
    key: bytes | None
    value: bytes | None


def records(*events: dict[str, Any]) -> list[Recorded]:
    return [
        Recorded(offset, event["account"].encode(), json.dumps(event).encode())
        for offset, event in enumerate(events)
    ]


def posted(*events: dict[str, Any]) -> list[Message]:
    """Return what a bridge that reads these from offset 0 posts."""
    return Identity(0, MemoryStore(), ORIGIN).read(records(*events), len(events))


def ids(messages: list[Message]) -> list[tuple[str, str, str]]:
    return [(message.room, message.type, message.message_id) for message in messages]


def test_a_takers_fill_makes_a_trade_in_public_and_a_fill_in_private() -> None:
    trade, fill = posted(FILL)
    assert json.loads(trade.body()) == {
        "type": "trade",
        "message_id": "fills:0:0:room",
        "timestamp": "2015-05-01T00:00:06.339Z",
        "text": "BTC-USD  sell 1.78855669 @ 236.47",
        "instrument": "BTC-USD",
        "side": "sell",
        "price": "236.47",
        "quantity": "1.78855669",
        "quote_quantity": "422.9400004843",
        "trade_id": "t1",
        "occurred_at": "2015-05-01T00:00:06.339Z",
    }
    assert json.loads(fill.body()) == {
        "type": "fill",
        "message_id": "fills:0:0:account",
        "timestamp": "2015-05-01T00:00:06.339Z",
        "text": "BTC-USD  sold 1.78855669 @ 236.47, fee 1.06 USD (taker, order o1)",
        "instrument": "BTC-USD",
        "side": "sell",
        "price": "236.47",
        "quantity": "1.78855669",
        "quote_quantity": "422.9400004843",
        "trade_id": "t1",
        "account": "alice",
        "order_id": "o1",
        "fill_id": "f1",
        "fee": "1.06",
        "fee_asset": "USD",
        "liquidity": "taker",
        "occurred_at": "2015-05-01T00:00:06.339Z",
    }
    assert (trade.room, fill.room) == ("room.BTC-USD", "account.alice")


def test_a_makers_fill_is_private_only() -> None:
    assert ids(posted(FILL | {"liquidity": "maker"})) == [
        ("account.alice", "fill", "fills:0:0:account")
    ]


def test_no_public_message_names_account_order_or_fill() -> None:
    for message in posted(FILL, BUST):
        if message.room.startswith("room."):
            assert not {"account", "order_id", "fill_id", "fee", "reason"} & set(message.fields)
            assert b"alice" not in message.body()


def test_duplicates_conflicts_and_invalid_records_are_not_posted() -> None:
    messages = posted(
        FILL,
        FILL | {"event_id": "again", "price": "236.47"},
        FILL | {"price": "1"},
        FILL | {"fill_id": "f2", "price": "-1"},
        BUST,
        BUST,
        BUST | {"reason": "other"},
    )
    assert [message.message_id for message in messages] == [
        "fills:0:0:room",
        "fills:0:0:account",
        "fills:0:4:room",
        "fills:0:4:account",
    ]


def test_a_bust_goes_where_its_fill_was() -> None:
    assert ids(posted(FILL, BUST))[2:] == [
        ("room.BTC-USD", "bust", "fills:0:1:room"),
        ("account.alice", "bust", "fills:0:1:account"),
    ]
    assert ids(posted(FILL | {"liquidity": "maker"}, BUST))[1:] == [
        ("account.alice", "bust", "fills:0:1:account")
    ]


def test_a_bust_before_its_fill_waits_for_it_and_keeps_its_own_offset() -> None:
    assert ids(posted(BUST)) == []
    assert ids(posted(BUST, FILL)) == [
        ("room.BTC-USD", "trade", "fills:0:1:room"),
        ("account.alice", "fill", "fills:0:1:account"),
        ("room.BTC-USD", "bust", "fills:0:0:room"),
        ("account.alice", "bust", "fills:0:0:account"),
    ]


def test_a_bust_goes_to_the_instrument_of_the_fill_whatever_it_says_itself() -> None:
    rooms = [message.room for message in posted(FILL, BUST | {"instrument": "X-Y"})]
    assert rooms == ["room.BTC-USD", "account.alice"] * 2


def test_a_bust_says_what_it_undoes() -> None:
    *_, public, private = posted(FILL, BUST)
    assert public.fields["text"] == "BTC-USD  BUSTED: sell 1.78855669 @ 236.47 (trade t1)"
    assert public.fields["busts"] == "fills:0:0:room"
    assert private.fields["busts"] == "fills:0:0:account"
    assert private.timestamp == private.fields["occurred_at"] == BUST["occurred_at"]
    assert private.fields["filled_at"] == FILL["occurred_at"]
    assert private.fields["reason"] == BUST["reason"]
    assert private.fields["text"].endswith("(order o1): alice's\\x1b[2J mistake")


@pytest.mark.parametrize(
    ("fee", "said"), [("-0.50", "rebate 0.5 USD"), ("0.00", "no fee"), ("-0", "no fee")]
)
def test_the_fee_is_named_for_what_it_is(fee: str, said: str) -> None:
    assert said in posted(FILL | {"fee": fee})[1].fields["text"]


def test_what_the_venue_settled_is_said() -> None:
    assert posted(FILL | {"quote_quantity": "422.90"})[0].fields["quote_quantity"] == "422.9"


def test_amqp_time_stamps_begin_in_1970() -> None:
    assert posted(FILL | {"occurred_at": "1969-12-31T23:59:59Z"})[0].moment() is None
    moment = posted(FILL)[0].moment()
    assert moment is not None
    assert moment.isoformat() == "2015-05-01T00:00:06+00:00"


@given(st.permutations([FILL, BUST]), st.lists(st.sampled_from([FILL, BUST]), max_size=6))
def test_any_order_and_repetition_posts_each_message_once(
    first: list[dict[str, Any]], again: list[dict[str, Any]]
) -> None:
    found = ids(posted(*first, *again))
    assert sorted(kind for _, kind, _ in found) == ["bust", "bust", "fill", "trade"]
    assert len({message_id for *_, message_id in found}) == 4


@given(st.integers(0, 8), st.data())
def test_a_restart_between_any_two_records_changes_no_message(cut: int, data: Any) -> None:
    events = [FILL | {"fill_id": f"f{n % 3}", "order_id": "o1"} for n in range(4)]
    events += [BUST | {"fill_id": f"f{n % 4}"} for n in range(4)]
    everything = records(*data.draw(st.permutations(events)))
    whole = Identity(0, MemoryStore(), ORIGIN).read(everything, 8)
    store = MemoryStore()
    before = Identity(0, store, ORIGIN)
    messages = before.read(everything[:cut], cut)
    before.settle()
    after = Identity(0, store, ORIGIN)
    assert after.next_offset == cut
    assert messages + after.read(everything[cut:], 8) == whole
    # With the state lost, what was posted is folded in silence.
    lost = Identity(0, MemoryStore(), ORIGIN)
    lost.posted_until = cut
    assert messages + lost.read(everything, 8) == whole


def test_state_of_another_topic_is_refused_and_says_what_to_remove(tmp_path: Path) -> None:
    stored = StoredIdentity(0, tmp_path, ORIGIN)
    stored.read(records(FILL), 1)
    stored.settle()
    stored.close()
    with pytest.raises(StateError, match=rf"another topics .* remove {tmp_path}"):
        StoredIdentity(0, tmp_path, Origin("cluster", {"fills": "recreated"}, 1))


def test_state_of_older_rules_is_folded_again(tmp_path: Path) -> None:
    stored = StoredIdentity(0, tmp_path, ORIGIN)
    stored.read(records(FILL), 1)
    stored.settle()
    stored.close()
    store = RocksStore(tmp_path)
    header = msgspec.json.decode(store.get(META_KEY) or b"")
    store.write({META_KEY: msgspec.json.encode(header | {"rules_version": 0})})
    store.close()
    again = StoredIdentity(0, tmp_path, ORIGIN)
    assert again.next_offset == 0
    again.close()


def test_a_damaged_state_is_folded_again(tmp_path: Path) -> None:
    """Found by review: a kill while it is removed leaves one that cannot be opened."""
    stored = StoredIdentity(0, tmp_path / "p0", ORIGIN)
    stored.read(records(FILL), 1)
    stored.settle()
    stored.close()
    for table in (tmp_path / "p0").glob("CURRENT"):
        table.write_bytes(b"MANIFEST-000099\n")
    again = StoredIdentity(0, tmp_path / "p0", ORIGIN)
    assert again.next_offset == 0
    again.close()


def test_the_rooms_of_a_partition_are_known_with_their_first_and_last_message() -> None:
    identity = Identity(0, MemoryStore(), ORIGIN)
    identity.read(records(BUST, FILL, FILL | {"fill_id": "f2", "liquidity": "maker"}), 3)
    identity.settle()
    assert sorted(identity.rooms()) == ["account.alice", "room.BTC-USD"]
    assert identity.expected("account.alice") == Expected(Span(1, 2, "fills:0:2:account", 3), 3)
    assert identity.expected("room.BTC-USD") == Expected(Span(1, 1, "fills:0:0:room", 2), 3)
    assert identity.expected("room.X-Y").span is None


def test_a_refill_makes_what_rooms_may_lack_and_nothing_else() -> None:
    everything = records(*(FILL | {"fill_id": f"f{n}"} for n in range(4)))
    before = Identity(0, MemoryStore(), ORIGIN)
    before.read(everything, 4)
    before.settle()
    again = Identity(0, MemoryStore(), ORIGIN)
    again.refill({"account.alice": 2}, before)
    assert ids(again.read(everything, 4)) == [
        ("account.alice", "fill", "fills:0:2:account"),
        ("account.alice", "fill", "fills:0:3:account"),
    ]


def test_what_was_not_settled_is_read_again(tmp_path: Path) -> None:
    stored = StoredIdentity(0, tmp_path, ORIGIN)
    stored.read(records(FILL), 1)
    stored.close()
    again = StoredIdentity(0, tmp_path, ORIGIN)
    assert len(again.read(records(FILL), 1)) == 2
    again.close()


# -- names, text, places ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "room"),
    [
        ("BTC-USD", "room.BTC-USD"),
        ("room.BTC-USD", "room.BTC-USD"),
        ("@107-USDC", "room.@107-USDC"),
        ("account.trader-04", "account.trader-04"),
    ],
)
def test_a_room_may_be_named_as_people_do(said: str, room: str) -> None:
    assert parse_room(said) == room
    assert is_room(room)


@pytest.mark.parametrize("said", ["", "BTC", "room.", "account.", "account.a b", "room.*", "#"])
def test_what_no_room_can_be_called_is_refused(said: str) -> None:
    with pytest.raises(InputError, match="is no room's name"):
        parse_room(said)
    assert not is_room(said)


def test_every_room_is_a_stream_with_limits() -> None:
    for room in ("room.BTC-USD", "account.a"):
        arguments = retention_of(room).arguments()
        assert arguments["x-queue-type"] == "stream"
        assert {"x-max-age", "x-max-length-bytes"} <= set(arguments)


@given(st.text())
def test_shown_text_cannot_steer_a_terminal(text: str) -> None:
    shown = harmless(text)
    assert not any(ord(c) < 0x20 or 0x7F <= ord(c) < 0xA0 for c in shown)
    assert len(shown.splitlines()) <= 1
    shown.encode()


@pytest.mark.parametrize("body", [b"\xff\x1b[31m", b"[1]", b'{"text": 5}', b"{", b""])
def test_what_others_post_is_shown_whatever_it_is(body: bytes) -> None:
    entry = Entry(3, body)
    assert entry.document()["stream_offset"] == 3
    assert "\x1b" not in entry.line()[1]


def test_two_bridges_in_one_state_directory_get_places_of_their_own(tmp_path: Path) -> None:
    first, second = take_place(tmp_path), take_place(tmp_path)
    assert (first.directory.name, second.directory.name) == ("0", "1")
    first.release()
    third = take_place(tmp_path)
    assert third.directory.name == "0"
    second.release()
    third.release()


@pytest.mark.parametrize("raised", [Exception, RuntimeError("<Connection> closed")])
def test_a_connection_that_ends_without_a_reason_is_lost_and_a_bug_is_a_bug(
    raised: Exception,
) -> None:
    """Found by chaos: aiormq raises the class `Exception` itself, or `RuntimeError`."""
    with pytest.raises(ConnectionLost, match="the connection was closed"), lost_connections():
        raise raised
    with pytest.raises(ZeroDivisionError), lost_connections():
        raise ZeroDivisionError


def test_errors_say_which_room() -> None:
    assert str(RoomError("room.A-B", "gone.")) == "room.A-B: gone."
