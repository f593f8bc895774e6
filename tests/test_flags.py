"""Flags, one small story each; `tests.test_fold` holds them against the reference."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pytest

from ledger.codec import topic_of
from ledger.events import INPUT_TOPICS
from ledger.flags import EXAMPLES, FLAGS, ID_NAMES, Flag, all_cases, tally
from ledger.partitioner import partition_of
from ledger.projections.partition import Origin, Partition
from ledger.store import MemoryStore

PARTITIONS = 3

EARLY = "2024-01-01T00:00:00.999999999999Z"
LATE = "2024-01-01T00:00:01Z"


@dataclass(frozen=True)
class Record:
    offset: int
    key: bytes | None
    value: bytes | None


def folded(events: Iterable[dict[str, Any]]) -> list[Partition]:
    """Return the settled partitions of a ledger to which the events were published."""
    origin = Origin(partitions=PARTITIONS)
    partitions = [Partition(n, MemoryStore(), origin) for n in range(PARTITIONS)]
    offsets: dict[tuple[str, int], int] = {}
    for event in events:
        topic = topic_of(event["type"])
        assert topic in INPUT_TOPICS
        key = event["account"].encode()
        number = partition_of(key, PARTITIONS)
        offset = offsets.get((topic, number), 0)
        offsets[topic, number] = offset + 1
        partitions[number].apply(topic, [Record(offset, key, json.dumps(event).encode())])
    for partition in partitions:
        assert partition.counts["orders"]["invalid"] == 0
        assert partition.counts["fills"]["invalid"] == 0
        assert partition.counts["transfers"]["invalid"] == 0
        partition.freeze()
        partition.settle()
    return partitions


def event(type_: str, account: str = "alice", **fields: Any) -> dict[str, Any]:
    common = {"type": type_, "version": 1, "event_id": "e", "account": account}
    return {**common, "occurred_at": EARLY, **fields}


def placed(account: str = "alice", **fields: Any) -> dict[str, Any]:
    terms = {"instrument": "BTC-USD", "side": "buy", "order_type": "limit"}
    terms |= {"quantity": "2", "limit_price": "10", "order_id": "o"}
    return event("order_placed", account, **{**terms, **fields})


def filled(account: str = "alice", **fields: Any) -> dict[str, Any]:
    terms = {"instrument": "BTC-USD", "side": "buy", "price": "10", "quantity": "1"}
    terms |= {"order_id": "o", "fill_id": "f", "trade_id": "t", "liquidity": "taker"}
    return event("order_filled", account, **{**terms, "fee": "0", "fee_asset": "USD", **fields})


def busted(account: str = "alice", **fields: Any) -> dict[str, Any]:
    terms = {"order_id": "o", "fill_id": "f", "trade_id": "t", "instrument": "BTC-USD"}
    return event("fill_busted", account, **{**terms, "reason": "error", **fields})


def deposited(account: str = "alice", **fields: Any) -> dict[str, Any]:
    return event(
        "deposited", account, **{"transfer_id": "d", "asset": "USD", "amount": "100", **fields}
    )


def flags(events: Iterable[dict[str, Any]]) -> dict[str, list[tuple[str, ...]]]:
    """Return the cases of each flag that has any."""
    found: dict[str, list[tuple[str, ...]]] = {}
    for case in all_cases(folded(events)):
        found.setdefault(case.flag, []).append(case.ids)
    return found


FUNDED = [
    deposited(),
    deposited(transfer_id="b", asset="BTC"),
    deposited("carol"),
    deposited("carol", transfer_id="b", asset="BTC"),
]
OTHER_SIDE = [placed("carol", side="sell"), filled("carol", side="sell", liquidity="maker")]


def test_a_whole_trade_of_funded_accounts_is_not_flagged() -> None:
    assert flags([*FUNDED, *OTHER_SIDE, placed(), filled()]) == {}


def test_a_fill_without_its_order_is_flagged_until_the_order_comes() -> None:
    events = [*FUNDED, *OTHER_SIDE, filled()]
    assert flags(events) == {"order_unknown": [("alice", "o", "f")]}
    assert flags([*events, placed()]) == {}


@pytest.mark.parametrize(
    "fill", [{"side": "sell"}, {"instrument": "ETH-USD"}], ids=["side", "instrument"]
)
def test_a_fill_that_is_not_of_its_orders_kind_is_flagged(fill: dict[str, str]) -> None:
    found = flags([*FUNDED, placed(), filled(**fill)])
    assert found["order_mismatch"] == [("alice", "o", "f")]
    assert "overfilled" not in found


def test_more_fills_than_the_quantity_are_flagged_by_order() -> None:
    fills = [filled(fill_id=f"f{number}") for number in range(3)]
    events = [*FUNDED, *OTHER_SIDE, placed(), *fills]
    assert flags(events) == {"overfilled": [("alice", "o")]}
    more = event("order_amended", order_id="o", revision=1, quantity="3")
    assert flags([*events, more]) == {}


def test_times_of_cancel_and_fill_are_compared_to_the_last_digit() -> None:
    cancel = event("order_cancelled", order_id="o", reason="user")
    events = [*FUNDED, *OTHER_SIDE, placed(), cancel]
    assert flags([*events, filled(occurred_at=EARLY)]) == {}
    a_moment_later = "2024-01-01T01:00:00.9999999999991+01:00"
    assert flags([*events, filled(occurred_at=a_moment_later)]) == {
        "fill_after_cancel": [("alice", "o", "f")]
    }


def test_only_customers_are_overdrawn() -> None:
    found = flags([placed(), filled(), *OTHER_SIDE])
    assert sorted(found.pop("overdrawn")) == [("alice", "USD"), ("carol", "BTC")]
    assert found == {}


def test_a_hold_beyond_the_balance_is_not_overdrawn() -> None:
    assert flags([deposited(amount="1"), placed()]) == {}


def test_a_bust_without_its_fill_is_flagged_until_the_fill_comes() -> None:
    assert flags([busted()]) == {"bust_without_fill": [("alice", "o", "f")]}
    assert flags([busted(), filled()]) == {}


def test_a_trade_with_one_side_is_flagged_over_partitions() -> None:
    numbers = {partition_of(name.encode(), PARTITIONS) for name in ("alice", "carol")}
    assert len(numbers) == 2
    alone = [*FUNDED, placed(), filled()]
    assert flags(alone) == {"one_sided_trade": [("BTC-USD", "t")]}
    assert flags([*alone, *OTHER_SIDE]) == {}
    assert flags([*alone, *OTHER_SIDE, busted("carol")]) == {"one_sided_trade": [("BTC-USD", "t")]}


def test_fills_beyond_those_that_an_order_holds_itself_are_seen() -> None:
    fills = [filled(fill_id=f"f{number:03}", quantity="0.001") for number in range(100)]
    found = flags([*FUNDED, *OTHER_SIDE, *fills])
    assert sorted(found["order_unknown"]) == [("alice", "o", f"f{n:03}") for n in range(100)]


def test_a_tally_counts_all_and_keeps_the_first() -> None:
    cases = list(all_cases(folded([busted(fill_id=f"f{number}") for number in range(9)])))
    found = tally(cases)
    assert set(found) == set(FLAGS) == set(ID_NAMES)
    assert found["bust_without_fill"].count == 9
    assert len(found["bust_without_fill"].examples) == EXAMPLES
    flag: Flag = "bust_without_fill"
    assert found[flag].as_json(flag)["examples"][0] == {
        "account": "alice",
        "order_id": "o",
        "fill_id": "f0",
    }
