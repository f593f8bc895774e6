"""What-if rules: rewritten records, held against a naive rewriting and the reference ledger."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterable, Sequence
from decimal import Decimal, localcontext
from fractions import Fraction
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.codec import DECODERS
from ledger.errors import InputError
from ledger.events import INPUT_TOPICS
from ledger.kafka import KafkaRecord
from ledger.projections.partition import Origin, Partition
from ledger.store import MemoryStore
from replay.whatif import FeeEntry, FeeSchedule, WhatIf, load_fees
from tests import reference
from tests.strategies import ACCOUNTS, INSTRUMENTS, Placed, placed_logs

PARTITIONS = 3
ORIGIN = Origin(cluster_id="test", topic_ids={}, partitions=PARTITIONS)
RATES = ("0", "-0", "0.001", "0.0025", "-0.00005", "0.333333333333333333", "3", "-1")


class Rules(NamedTuple):
    """The rules of a what-if as the naive rewriting takes them."""

    fees: dict[tuple[str | None, str | None], dict[str, Any]]
    ignored: frozenset[str]
    without: frozenset[str]

    def what_if(self) -> WhatIf:
        entries = tuple(
            FeeEntry(account=account, instrument=instrument, **rates)
            for (account, instrument), rates in self.fees.items()
        )
        return WhatIf(FeeSchedule(entries) if entries else None, self.ignored, self.without)


_POSITIONS = st.builds(
    "{}:{}:{}".format,
    st.sampled_from(INPUT_TOPICS),
    st.integers(0, PARTITIONS - 1),
    st.integers(0, 9),
)
_RATES = st.fixed_dictionaries(
    {"maker": st.sampled_from(RATES), "taker": st.sampled_from(RATES)},
    optional={"decimals": st.integers(0, 18)},
)
_KEYS = st.tuples(
    st.sampled_from((None, *ACCOUNTS)), st.sampled_from((None, *dict.fromkeys(INSTRUMENTS)))
)
FEES = st.dictionaries(_KEYS, _RATES, max_size=5)
RULES = st.builds(
    Rules,
    FEES,
    st.frozensets(st.sampled_from(ACCOUNTS), max_size=1),
    st.frozensets(st.sampled_from(("e1", "again", "never")) | _POSITIONS, max_size=3),
)


class FeeTooLarge(Exception):  # noqa: N818
    """A fee that no amount can state."""


def naive_rewrite(log: Iterable[Placed], rules: Rules) -> list[Placed]:
    """The log that the rules make, by JSON and fractions."""
    rewritten = []
    for placed in log:
        if f"{placed.topic}:{placed.partition}:{placed.offset}" in rules.without:
            continue
        home = reference.partition_of(placed.key or b"", PARTITIONS)
        try:
            reference.decode(
                placed.topic, home, placed.offset, placed.key, placed.value, PARTITIONS
            )
        except reference.InvalidRecordError:
            rewritten.append(placed)
            continue
        event = json.loads(placed.value or b"")
        if event["account"] in rules.ignored or event["event_id"] in rules.without:
            continue
        if event["type"] == "order_filled":
            event = naive_charge(event, rules)
        rewritten.append(placed._replace(value=json.dumps(event).encode()))
    return rewritten


def naive_charge(event: dict[str, Any], rules: Rules) -> dict[str, Any]:
    account, instrument = event["account"], event["instrument"]
    for key in ((account, instrument), (account, None), (None, instrument), (None, None)):
        if key in rules.fees:
            break
    else:
        return event
    notional = Fraction(event["price"]) * Fraction(event["quantity"])
    if "quote_quantity" in event:
        notional = Fraction(event["quote_quantity"])
    decimals = rules.fees[key].get("decimals", 18)
    units = round(Fraction(rules.fees[key][event["liquidity"]]) * notional * 10**decimals)
    digits = f"{abs(units):0{decimals + 1}d}"
    whole, fraction = digits[: len(digits) - decimals], digits[len(digits) - decimals :]
    if len(whole) > 20:
        raise FeeTooLarge
    sign = "-" if units < 0 else ""
    fee = f"{sign}{whole}.{fraction}" if fraction else f"{sign}{whole}"
    return event | {"fee": fee, "fee_asset": instrument.split("-")[1]}


def rewrite(what_if: WhatIf, log: Iterable[Placed]) -> list[Placed]:
    """The log that the what-if makes, record by record."""
    rewritten = []
    for placed in log:
        record = KafkaRecord(placed.offset, placed.key, placed.value)
        for kept in what_if.rewrite(placed.topic, placed.partition, [record]):
            rewritten.append(
                Placed(placed.topic, placed.partition, kept.offset, kept.key, kept.value)
            )
    return rewritten


def fold(log: Iterable[Placed]) -> dict[int, Partition]:
    partitions = {number: Partition(number, MemoryStore(), ORIGIN) for number in range(PARTITIONS)}
    for placed in log:
        record = KafkaRecord(placed.offset, placed.key, placed.value)
        partitions[placed.partition].apply(placed.topic, [record])
    for partition in partitions.values():
        partition.freeze()
        partition.settle()
    return partitions


def balances(partition: Partition) -> reference.Balances:
    found: reference.Balances = {}
    for account, rows in partition.balances():
        for asset, (debits, credits_, hold) in rows.items():
            row = Decimal(debits), Decimal(credits_), Decimal(hold)
            found.setdefault(account, {})[asset] = row
    return found


def fill(**fields: object) -> dict[str, Any]:
    return {
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
        "price": "100",
        "quantity": "2",
        "fee": "7",
        "fee_asset": "BTC",
        "liquidity": "taker",
        **fields,
    }


def bust(**fields: object) -> dict[str, Any]:
    names = ("version", "account", "occurred_at", "fill_id", "trade_id", "order_id", "instrument")
    common = {name: value for name, value in fill().items() if name in names}
    return {**common, "type": "fill_busted", "event_id": "b", "reason": "error", **fields}


def deposit(account: str, event_id: str, transfer_id: str = "x") -> dict[str, Any]:
    return {
        "type": "deposited",
        "version": 1,
        "event_id": event_id,
        "account": account,
        "occurred_at": "2026-01-01T00:00:00Z",
        "transfer_id": transfer_id,
        "asset": "USD",
        "amount": "5",
    }


def records_of(*events: dict[str, Any]) -> list[KafkaRecord]:
    return [
        KafkaRecord(offset, event["account"].encode(), json.dumps(event).encode())
        for offset, event in enumerate(events)
    ]


def schedule(*entries: dict[str, Any]) -> FeeSchedule:
    return FeeSchedule(tuple(FeeEntry(**entry) for entry in entries))


def fee_of(rules: FeeSchedule, event: dict[str, Any]) -> str:
    """The fee that a fill has under a schedule, as the event says it."""
    [record] = WhatIf(rules).rewrite("fills", 0, records_of(event))
    fee: str = json.loads(record.value or b"")["fee"]
    return fee


# -- properties


@given(placed_logs(partitions=PARTITIONS))
def test_a_what_if_without_rules_gives_the_fold_the_same_records(log: list[Placed]) -> None:
    for topic in INPUT_TOPICS:
        records = [KafkaRecord(p.offset, p.key, p.value) for p in log if p.topic == topic]
        rewritten = WhatIf().rewrite(topic, 0, records)
        assert list(map(id, rewritten)) == list(map(id, records))


@given(placed_logs(partitions=PARTITIONS), RULES)
def test_a_what_if_is_the_reference_ledger_of_a_naively_rewritten_log(
    log: list[Placed], rules: Rules
) -> None:
    try:
        expected = naive_rewrite(log, rules)
    except FeeTooLarge:
        with pytest.raises(InputError, match="20 integer digits"):
            rewrite(rules.what_if(), log)
        return
    naive = reference.Reference(PARTITIONS)
    for placed in expected:
        naive.apply(*placed)
    for number, partition in fold(rewrite(rules.what_if(), log)).items():
        assert partition.counts == naive.counts_of_partition(number)
        assert balances(partition) == naive.balances_of_partition(number)


@given(placed_logs(partitions=PARTITIONS), RULES)
def test_under_any_rules_debits_equal_credits(log: list[Placed], rules: Rules) -> None:
    try:
        rewritten = rewrite(rules.what_if(), log)
    except InputError:
        return
    sums: dict[str, Decimal] = {}
    with localcontext(reference.EXACT):
        for partition in fold(rewritten).values():
            for rows in balances(partition).values():
                for asset, (debits, credits_, _) in rows.items():
                    sums[asset] = sums.get(asset, Decimal(0)) + credits_ - debits
    assert not any(sums.values())


@given(placed_logs(partitions=PARTITIONS), RULES)
def test_offset_and_key_stay_and_what_no_rule_changes_is_the_same_object(
    log: list[Placed], rules: Rules
) -> None:
    what_if = rules.what_if()
    for placed in log:
        record = KafkaRecord(placed.offset, placed.key, placed.value)
        try:
            rewritten = what_if.rewrite(placed.topic, placed.partition, [record])
        except InputError:
            continue
        for kept in rewritten:
            assert (kept.offset, kept.key) == (record.offset, record.key)
            if kept is not record:
                assert kept.value != record.value
                DECODERS[placed.topic](kept.value)


@given(placed_logs(partitions=PARTITIONS), RULES, st.integers(1, 5))
def test_records_may_come_in_batches_of_any_size(
    log: list[Placed], rules: Rules, size: int
) -> None:
    fills = [KafkaRecord(p.offset, p.key, p.value) for p in log if p.topic == "fills"]
    whole, batched = rules.what_if(), rules.what_if()
    try:
        expected = whole.rewrite("fills", 0, fills)
    except InputError:
        return
    batches = [fills[start : start + size] for start in range(0, len(fills), size)]
    assert [r for batch in batches for r in batched.rewrite("fills", 0, batch)] == expected
    assert batched.matched == whole.matched


@given(st.lists(st.tuples(st.sampled_from(ACCOUNTS), st.sampled_from(("1", "0.7", "12.345")))))
def test_a_schedule_of_the_fees_that_were_charged_changes_nothing(
    fills: list[tuple[str, str]],
) -> None:
    rates = {account: f"0.00{number}" for number, account in enumerate(ACCOUNTS)}
    rules = schedule(*({"account": a, "maker": "9", "taker": r} for a, r in rates.items()))
    with localcontext(reference.EXACT):
        records = records_of(
            *(
                # With a zero more at its end the fee is the same amount.
                fill(
                    account=a,
                    price=p,
                    fee=f"{Decimal(rates[a]) * Decimal(p) * 2}0",
                    fee_asset="USD",
                )
                for a, p in fills
            )
        )
    rewritten = WhatIf(rules).rewrite("fills", 0, records)
    assert list(map(id, rewritten)) == list(map(id, records))


# -- fees


@pytest.mark.parametrize(
    ("rate", "price", "decimals", "fee"),
    [
        ("0.01", "50", 0, "0"),  # 0.5: half to even
        ("0.01", "150", 0, "2"),  # 1.5
        ("0.01", "250", 0, "2"),  # 2.5
        ("0.01", "250.0000000001", 0, "3"),
        ("-0.01", "150", 0, "-2"),
        ("-0.01", "250", 0, "-2"),
        ("-0.01", "50", 0, "0"),  # and no -0
        ("0.001", "12.5", 2, "0.01"),  # 0.0125
        ("0.001", "15", 2, "0.02"),  # 0.015
        ("0.000000001", "0.0000000005", 18, "0"),
        ("0.000000001", "0.0000000015", 18, "0.000000000000000002"),
        ("0.1", "9.999999999999999999", 18, "1"),
        ("0.1", "9.999999999999999990", 18, "0.999999999999999999"),
    ],
)  # fmt: skip
def test_a_fee_is_rounded_half_to_even_to_the_schedules_decimals(
    rate: str, price: str, decimals: int, fee: str
) -> None:
    rules = schedule({"maker": "9", "taker": rate, "decimals": decimals})
    assert fee_of(rules, fill(price=price, quantity="1")) == fee


def test_maker_and_taker_have_their_own_rates_and_the_quote_asset_is_charged() -> None:
    records = records_of(fill(), fill(liquidity="maker"), fill(side="sell", quote_quantity="199.5"))
    rules = schedule({"maker": "-0.001", "taker": "0.002"})
    changed = [
        json.loads(record.value or b"") for record in WhatIf(rules).rewrite("fills", 0, records)
    ]
    assert changed == [
        fill(fee="0.4", fee_asset="USD"),
        fill(liquidity="maker", fee="-0.2", fee_asset="USD"),
        fill(side="sell", quote_quantity="199.5", fee="0.399", fee_asset="USD"),
    ]


def test_the_same_number_in_another_asset_is_another_fee() -> None:
    records = records_of(fill(fee="2", fee_asset="BTC"))
    [record] = WhatIf(schedule({"maker": "0", "taker": "0.01"})).rewrite("fills", 0, records)
    assert json.loads(record.value or b"") == fill(fee="2", fee_asset="USD")


def test_the_most_specific_entry_holds_in_any_order() -> None:
    keys: dict[str, dict[str, Any]] = {  # from the most specific to the least, by their fee
        "1": {"account": "alice", "instrument": "BTC-USD"},
        "2": {"account": "alice"},
        "3": {"instrument": "BTC-USD"},
        "4": {},
    }
    for size in range(len(keys) + 1):
        for chosen in combinations(keys, size):
            entries = [{**keys[fee], "maker": fee, "taker": fee} for fee in chosen]
            others = [
                {"account": "bob", "maker": "9", "taker": "9"},
                {"instrument": "ETH-USD", "maker": "9", "taker": "9"},
                {"account": "bob", "instrument": "BTC-USD", "maker": "9", "taker": "9"},
            ]
            event = fill(price="1", quantity="1")
            expected = min(chosen, default="7")  # without an entry the fee stays
            assert fee_of(schedule(*entries, *others), event) == expected
            assert fee_of(schedule(*others, *reversed(entries)), event) == expected


@pytest.mark.parametrize("bust_first", [False, True])
def test_a_bust_undoes_the_new_fee(bust_first: bool) -> None:
    events = [fill(), bust()]
    records = records_of(*(reversed(events) if bust_first else events))
    what_if = WhatIf(schedule({"maker": "0", "taker": "0.01"}))
    partition = Partition(0, MemoryStore(), Origin(partitions=1))
    partition.apply("fills", what_if.rewrite("fills", 0, records))
    partition.freeze()
    partition.settle()
    rows = balances(partition)
    assert rows["@fees"] == {"USD": (Decimal(2), Decimal(2), Decimal(0))}
    assert rows["alice"]["USD"] == (Decimal(202), Decimal(202), Decimal(0))


def test_a_fee_that_no_amount_can_state_names_its_record() -> None:
    most = "99999999999999999999"
    records = records_of(fill(), fill(price=most, quantity="2", quote_quantity=most))
    assert len(WhatIf(schedule({"maker": "0", "taker": "1"})).rewrite("fills", 3, records)) == 2
    what_if = WhatIf(schedule({"maker": "0", "taker": "-1.1"}))
    with pytest.raises(InputError, match=r"^fills:3:1: by entry 1 .*--without-event fills:3:1\.$"):
        what_if.rewrite("fills", 3, records)
    with pytest.raises(InputError, match="is 100000000000000000000, and"):
        fee_of(schedule({"maker": "0", "taker": "2"}), fill(quote_quantity="5" + "0" * 19))
    left_out = WhatIf(what_if.fees, without_events=frozenset({"fills:3:1"}))
    assert len(left_out.rewrite("fills", 3, records)) == 1


# -- what is left out


def test_an_ignored_account_has_no_events_and_others_have_all_of_theirs() -> None:
    records = records_of(deposit("alice", "1"), deposit("bob", "2"), deposit("alice", "3"))
    assert WhatIf(None, frozenset({"alice"})).rewrite("transfers", 0, records) == records[1:2]


def test_an_event_id_leaves_out_all_records_that_have_it_however_they_are_spelt() -> None:
    odd = 'a "b" \\ c'
    events = [deposit("alice", odd), deposit("bob", "other"), deposit("carol", odd)]
    records = records_of(*events, deposit("alice", "e1"))
    value = (records[3].value or b"").replace(b'"e1"', b'"\\u0065\\u0031"')
    escaped = KafkaRecord(3, b"alice", value)
    what_if = WhatIf(without_events=frozenset({odd, "e1"}))
    assert what_if.rewrite("transfers", 0, [*records[:3], escaped]) == [records[1]]
    assert what_if.matched == {f"--without-event {odd}": 2, "--without-event e1": 1}


def test_a_position_leaves_out_just_its_record_even_an_invalid_one() -> None:
    records = [
        *records_of(deposit("alice", "e"), deposit("alice", "e")),
        KafkaRecord(2, None, None),
    ]
    what_if = WhatIf(without_events=frozenset({"transfers:1:0", "transfers:1:2"}))
    assert what_if.rewrite("transfers", 1, records) == [records[1]]
    assert what_if.rewrite("transfers", 0, records) == records
    assert what_if.rewrite("fills", 1, records) == records


@pytest.mark.parametrize(
    "event_id", ["orders:1", "balances:0:1", "fills:00:1", "fills:0:-1", "fills:0:1 ", "Fills:0:1"]
)
def test_what_is_not_written_as_a_position_is_an_event_id(event_id: str) -> None:
    records = records_of(deposit("alice", "e"), deposit("alice", event_id))
    what_if = WhatIf(without_events=frozenset({event_id}))
    for topic in INPUT_TOPICS:
        assert what_if.rewrite(topic, 0, records)[0] is records[0]
    assert what_if.matched[f"--without-event {event_id}"] == 1


def test_what_is_written_as_a_position_is_no_event_id() -> None:
    records = records_of(deposit("alice", "transfers:0:7"))
    what_if = WhatIf(without_events=frozenset({"transfers:0:7"}))
    assert what_if.rewrite("transfers", 0, records) == records
    assert what_if.unmatched() == ["--without-event transfers:0:7"]


def test_a_duplicate_stands_where_the_first_record_is_left_out() -> None:
    records = records_of(deposit("alice", "e"), deposit("alice", "e"))
    partition = Partition(0, MemoryStore(), Origin(partitions=1))
    what_if = WhatIf(without_events=frozenset({"transfers:0:0"}))
    partition.apply("transfers", what_if.rewrite("transfers", 0, records))
    assert partition.counts["transfers"] == {
        "applied": 1, "duplicate": 0, "conflict": 0, "invalid": 0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (b"alice", None),
        (b"alice", b"{"),
        (b"alice", b"[" * 5_000),
        (b"alice", b'{"event_id": "e"}'),
        (b"alice", json.dumps(fill(event_id="e", price="-1")).encode()),
        (b"alice", json.dumps(fill(event_id="e", account="bob")).encode()),
        (None, json.dumps(fill(event_id="e")).encode()),
    ],
)
def test_a_record_that_is_no_event_of_its_key_stays_as_it_is(
    key: bytes | None, value: bytes | None
) -> None:
    rules = schedule({"maker": "0", "taker": "0"})
    what_if = WhatIf(rules, frozenset({"alice", "bob"}), frozenset({"e"}))
    record = KafkaRecord(0, key, value)
    assert what_if.rewrite("fills", 0, [record])[0] is record
    assert not any(what_if.matched.values())


# -- which rules matched


def test_rules_that_matched_nothing_are_named() -> None:
    rules = schedule(
        {"maker": "0", "taker": "0"},
        {"account": "alice", "maker": "0", "taker": "0"},
        {"instrument": "DOGE-USD", "maker": "0", "taker": "0"},
    )
    what_if = WhatIf(rules, frozenset({"bob", "dave"}), frozenset({"e7", "e8", "fills:0:9"}))
    assert what_if.unmatched() == list(what_if.matched)
    what_if.rewrite("fills", 0, records_of(fill(), bust(), fill(account="bob")))
    what_if.rewrite("transfers", 0, records_of(deposit("bob", "e7"), deposit("erin", "e7")))
    assert what_if.unmatched() == [
        "--fees, entry 1",
        "--fees, entry 3",
        "--ignore-account dave",
        "--without-event e8",
        "--without-event fills:0:9",
    ]
    # Each rule against a record counts it, also where another one left it out.
    assert what_if.matched["--ignore-account bob"] == 2
    assert what_if.matched["--without-event e7"] == 2


def test_counts_of_several_processes_add_up() -> None:
    parent = WhatIf(None, frozenset({"alice"}))
    child = pickle.loads(pickle.dumps(parent))
    child.rewrite("transfers", 0, records_of(deposit("alice", "e")))
    assert parent.unmatched() == ["--ignore-account alice"]
    parent.matched.update(child.matched)
    assert parent.unmatched() == []


def test_a_description_says_every_rule_in_json() -> None:
    rules = schedule({"account": "alice", "maker": "-0.1", "taker": "0.10", "decimals": 2})
    described = WhatIf(rules, frozenset({"bob", "al"}), frozenset({"e", "fills:0:1"})).describe()
    assert json.loads(json.dumps(described)) == {
        "fees": [
            {
                "account": "alice",
                "instrument": None,
                "maker": "-0.1",
                "taker": "0.10",
                "decimals": 2,
            }
        ],
        "ignored_accounts": ["al", "bob"],
        "without_events": ["e", "fills:0:1"],
    }
    assert WhatIf().describe() == {"fees": None, "ignored_accounts": [], "without_events": []}


class Sealed:
    """A record whose value must not be looked at."""

    offset = 5
    key = b"alice"

    @property
    def value(self) -> bytes:
        raise AssertionError("read")


def test_a_record_that_no_rule_can_concern_is_not_decoded() -> None:
    sealed: Sequence[Any] = [Sealed()]
    assert WhatIf(schedule({"maker": "0", "taker": "0"})).rewrite("orders", 0, sealed) == sealed
    assert WhatIf(None, frozenset({"bob"})).rewrite("fills", 0, sealed) == sealed
    others = WhatIf(None, frozenset(), frozenset({"fills:0:4", "fills:1:5"}))
    assert others.rewrite("fills", 0, sealed) == sealed


# -- files and options


def test_a_file_states_a_schedule(tmp_path: Path) -> None:
    path = tmp_path / "fees.toml"
    path.write_text(
        """
        # What everyone pays
        [[fee]]
        maker = "-0.0001"
        taker = "0.0005"

        [[fee]]
        account = "alice"
        instrument = "BTC-USD"
        maker = "0"
        taker = "0.0002"
        decimals = 2
        """
    )
    assert load_fees(path) == schedule(
        {"maker": "-0.0001", "taker": "0.0005"},
        {
            "account": "alice",
            "instrument": "BTC-USD",
            "maker": "0",
            "taker": "0.0002",
            "decimals": 2,
        },
    )
    what_if = WhatIf.from_options(path, ["bob", "bob"], ["e"])
    assert what_if.fees == load_fees(path)
    assert what_if.ignored_accounts == {"bob"}
    assert what_if.without_events == {"e"}


GOOD = '[[fee]]\nmaker = "0"\ntaker = "0"\n'


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "fee: is missing"),
        ("fee = []", "fee: List should have at least 1 item"),
        ("fee = 1", "fee: Input should be a valid list (found 1)"),
        ("fee = [1]", "entry 1: "),
        ("[fee]\nmaker = '0'", "fee: Input should be a valid list"),
        ("[[fees]]", "fee: is missing"),
        (GOOD + "[more]", "more: no such key"),
        (GOOD + 'takr = "1"', "entry 1: takr: no such key"),
        (GOOD + '[[fee]]\nmaker = "0"', "entry 2: taker: is missing"),
        ('[[fee]]\nmaker = 0.1\ntaker = "0"', "entry 1: maker: Input should be a valid string"),
        ('[[fee]]\nmaker = "1e-3"\ntaker = "0"', "entry 1: maker: must be a decimal string"),
        ('[[fee]]\nmaker = "NaN"\ntaker = "0"', "entry 1: maker: must be a decimal string"),
        (GOOD + "decimals = 19", "entry 1: decimals: Input should be less than or equal to 18"),
        (GOOD + "decimals = -1", "entry 1: decimals: Input should be greater than or equal to 0"),
        (GOOD + "decimals = true", "entry 1: decimals: Input should be a valid integer"),
        (GOOD + 'decimals = "2"', "entry 1: decimals: Input should be a valid integer"),
        (GOOD + 'account = "@fees"', "entry 1: account: must be 1 to 128 of"),
        (GOOD + 'instrument = "BTC"', "entry 1: instrument: must be BASE-QUOTE"),
        (GOOD * 2, "entry 2: it is for the same fills as entry 1"),
        (
            (GOOD + "account = 'a'\n") + GOOD + (GOOD + "account = 'a'\n"),
            "entry 3: it is for the same fills as entry 1",
        ),
        ("[[fee]", "is not TOML in UTF-8: "),
        ("a = " + "[" * 10_000, "is not TOML in UTF-8: "),
        ("\udcff", "is not TOML in UTF-8: "),
    ],
)  # fmt: skip
def test_a_file_that_states_no_schedule_is_refused(
    tmp_path: Path, text: str, sentence: str
) -> None:
    path = tmp_path / "fees.toml"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError) as refused:
        WhatIf.from_options(path, (), ())
    assert str(refused.value).startswith(f"{path}: {sentence}")
    assert "\n" not in str(refused.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(InputError, match=r"cannot be read \(.*\)\.$") as refused:
            load_fees(path)
        assert str(path) in str(refused.value)


@pytest.mark.parametrize("account", ["@fees", "@clearing", "@external", "@adjustments"])
def test_a_system_account_cannot_be_ignored(account: str) -> None:
    with pytest.raises(InputError, match=f"^--ignore-account: '{account}' closes"):
        WhatIf.from_options(None, ["alice", account], ())


@pytest.mark.parametrize("account", ["", "a b", "a" * 129, "é", "\udcff"])
def test_what_is_no_account_cannot_be_ignored(account: str) -> None:
    with pytest.raises(InputError, match=r"^--ignore-account: must be 1 to 128 of "):
        WhatIf.from_options(None, [account], ())


@pytest.mark.parametrize("event", ["", "é", "a\n", "a" * 129, "\udcff"])
def test_what_is_no_event_id_cannot_be_left_out(event: str) -> None:
    with pytest.raises(InputError, match=r"^--without-event: must be 1 to 128 printable ASCII"):
        WhatIf.from_options(None, (), [event])
