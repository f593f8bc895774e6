"""The event definitions: what door and stream accept, the schemas, and the posting rules."""

from __future__ import annotations

import json
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from ledger.codec import DECODERS, encode
from ledger.errors import InvalidRecord
from ledger.events import TYPES_OF_TOPIC, event_type
from ledger.intake import json_schemas, parse
from ledger.journal import fill_entry, reversed_entry, transfer_entry
from ledger.projections.entries import Fill, Transfer
from ledger.times import epoch_ms, instant, rfc3339

ROOT = Path(__file__).parent.parent

FILL: dict[str, Any] = {
    "type": "order_filled",
    "version": 1,
    "event_id": "e",
    "account": "alice",
    "occurred_at": "2026-01-01T00:00:00Z",
    "fill_id": "f",
    "trade_id": "t",
    "order_id": "o",
    "instrument": "BTC-USD",
    "side": "buy",
    "price": "10",
    "quantity": "2",
    "fee": "-0.5",
    "fee_asset": "USD",
    "liquidity": "maker",
}


def refusal(**changes: object) -> str:
    """Return the sentence with which a changed fill is refused, by the door and by the stream."""
    fields = {name: value for name, value in {**FILL, **changes}.items() if value != "absent"}
    value = json.dumps(fields).encode()
    with pytest.raises(InvalidRecord):
        DECODERS["fills"](value)
    with pytest.raises(InvalidRecord) as caught:
        parse(value)
    return caught.value.detail


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"price": 10.5}, "price: .* string"),
        ({"price": "1e3"}, "price: must be .*decimal string"),
        ({"price": "0.0"}, "price: must be greater than 0"),
        ({"quantity": "-1"}, "quantity: must be greater than 0"),
        ({"quantity": "01"}, "quantity: must be"),
        ({"quantity": "1."}, "quantity: must be"),
        ({"quantity": "123456789012345678901"}, "quantity: must be"),
        ({"quantity": "1.0000000000000000001"}, "quantity: must be"),
        ({"quote_quantity": "-1"}, "quote_quantity: must not be negative"),
        ({"quote_quantity": None}, "quote_quantity"),
        ({"fee": None}, "fee"),
        ({"fee": "absent"}, "fee: is missing"),
        ({"colour": "red"}, "colour: no such field"),
        ({"account": "@fees"}, "account: must be"),
        ({"account": "a" * 129}, "account: must be"),
        ({"fill_id": "é"}, "fill_id: must be"),
        ({"fill_id": ""}, "fill_id: must be"),
        ({"instrument": "BTCUSD"}, "instrument: must be"),
        ({"instrument": "BTC-USD-X"}, "instrument: must be"),
        ({"side": "hold"}, "side"),
        ({"version": 2}, "version"),
        ({"version": True}, "version"),
        ({"type": "order_eaten"}, "type: must be one of"),
        ({"occurred_at": "2026-01-01T00:00:00"}, "occurred_at: must be an RFC 3339 time"),
        ({"occurred_at": "2026-02-30T00:00:00Z"}, "occurred_at: no such time"),
        ({"occurred_at": "2026-01-01T00:00:60Z"}, "occurred_at: must be"),
    ],
)
def test_a_bad_field_is_refused_by_name(changes: dict[str, object], sentence: str) -> None:
    assert re.match(sentence, refusal(**changes))


def test_the_unchanged_fill_is_accepted() -> None:
    topic, event = parse(json.dumps(FILL).encode())
    assert topic == "fills"
    assert DECODERS["fills"](encode(event)) == event


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"order_type": "limit", "quantity": "1"}, "limit_price: a limit order needs one"),
        (
            {"order_type": "market", "quantity": "1", "limit_price": "1"},
            "limit_price: a market order has none",
        ),
        ({"order_type": "market"}, "quantity: may only be absent when reserve is given"),
    ],
)
def test_an_order_that_contradicts_itself_is_refused(fields: dict[str, str], sentence: str) -> None:
    common = {k: FILL[k] for k in ("version", "event_id", "account", "occurred_at", "order_id")}
    order = {**common, "type": "order_placed", "instrument": "A-B", "side": "buy", **fields}
    with pytest.raises(InvalidRecord, match=sentence):
        parse(json.dumps(order).encode())


def test_real_cancels_may_name_their_instrument() -> None:
    line = (ROOT / "data/bitstamp/orders.jsonl").read_bytes().splitlines()[1]
    topic, event = parse(line)
    assert topic == "orders"
    assert json.loads(encode(event)) == json.loads(line)


def test_a_type_in_the_wrong_topic_is_named() -> None:
    with pytest.raises(InvalidRecord, match="'order_filled' events belong to the topic 'fills'"):
        DECODERS["orders"](json.dumps(FILL).encode())


def test_the_schemas_in_docs_are_current() -> None:
    for name, schema in json_schemas().items():
        written = json.loads((ROOT / "docs/schemas" / f"{name}.schema.json").read_text())
        assert written == schema, f"{name}: run 'make schemas'"
    types = {event_type(cls) for classes in TYPES_OF_TOPIC.values() for cls in classes}
    assert {path.name.split(".")[0] for path in (ROOT / "docs/schemas").iterdir()} == {
        *types,
        *TYPES_OF_TOPIC,
    }


def fill_of(side: str, fee: str, fee_asset: str) -> Fill:
    return Fill(
        offset=0,
        occurred_at="2026-01-01T00:00:00Z",
        trade_id="t",
        instrument="BTC-USD",
        side="buy" if side == "buy" else "sell",
        price="10",
        quantity="2",
        quote_quantity=None,
        fee=fee,
        fee_asset=fee_asset,
        liquidity="maker",
    )


def test_a_buy_with_a_rebate_posts_what_the_contract_says() -> None:
    """2 BTC at 10, rebate 0.5: the table of contract, section 3, line by line."""
    two, twenty = Decimal(2), Decimal(20)
    entry = fill_entry("alice", fill_of("buy", "-0.5", "USD"))
    assert entry == [
        ("alice", "@clearing", "USD", twenty),
        ("@clearing", "alice", "BTC", two),
        ("@fees", "alice", "USD", Decimal("0.5")),
    ]
    assert reversed_entry(entry)[0] == ("@clearing", "alice", "USD", twenty)


def test_a_sell_with_a_fee_posts_what_the_contract_says() -> None:
    two, twenty = Decimal(2), Decimal(20)
    assert fill_entry("bob", fill_of("sell", "0.1", "BNB")) == [
        ("@clearing", "bob", "USD", twenty),
        ("bob", "@clearing", "BTC", two),
        ("bob", "@fees", "BNB", Decimal("0.1")),
    ]


def test_a_withdrawal_posts_amount_and_fee() -> None:
    withdrawn = Transfer(0, "2026-01-01T00:00:00Z", "withdrawn", "USD", "5", "0.25", None)
    assert transfer_entry("alice", withdrawn) == [
        ("alice", "@external", "USD", Decimal(5)),
        ("alice", "@fees", "USD", Decimal("0.25")),
    ]


def test_times_compare_exactly_at_any_precision_and_zone() -> None:
    early, late = "2026-01-01T05:30:00.0000000001+05:30", "2026-01-01t00:00:00.00000000011z"
    assert instant(early) < instant(late)
    assert instant("2026-01-01T00:00:00.10Z") == instant("2025-12-31T23:00:00.1-01:00")
    assert instant("0001-01-01T00:00:00Z") < instant("1969-12-31T23:59:59.9Z") < instant(early)
    assert rfc3339(epoch_ms("2026-01-01T00:00:00.1239Z")) == "2026-01-01T00:00:00.123Z"


def test_a_time_stamp_that_is_no_time_has_no_text() -> None:
    last = epoch_ms("9999-12-31T23:59:59.999Z")
    assert rfc3339(last) == "9999-12-31T23:59:59.999Z"
    assert [rfc3339(number) for number in (last + 1, 2**63 - 1, -(2**63))] == [None] * 3
