"""The oracle itself, tested against examples computed by hand and against the Bitstamp hour.

An example is a table in the test's docstring (see ``check``): first the records and what becomes
of each, then all that follows from them.
"""

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator
from decimal import Decimal, localcontext
from functools import wraps
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference import (
    EXACT,
    FLAGS,
    SYSTEM_ACCOUNTS,
    TOPICS,
    Order,
    Reference,
    Verdict,
    instant_of,
    murmur2,
    partition_of,
)
from tests.strategies import (
    ACCOUNTS,
    TOPIC_OF,
    Placed,
    by_topic_partition,
    interleavings,
    placed,
    placed_logs,
    valid_event_logs,
)

PARTITIONS = 8
BITSTAMP = Path(__file__).parent.parent / "data" / "bitstamp"

DEFAULTS = {
    "order_placed": {"instrument": "BTC-USD", "side": "buy", "order_type": "limit"},
    "order_amended": {},
    "order_cancelled": {"reason": "user"},
    "order_rejected": {"reason": "no margin"},
    "order_filled": {
        "trade_id": "t1",
        "instrument": "BTC-USD",
        "side": "buy",
        "fee": "0",
        "fee_asset": "USD",
        "liquidity": "taker",
    },
    "fill_busted": {"trade_id": "t1", "instrument": "BTC-USD", "reason": "error"},
    "deposited": {"asset": "USD"},
    "withdrawn": {"asset": "USD"},
    "adjusted": {"asset": "USD", "reason": "correction"},
}


def event_of(words: str) -> dict[str, object]:
    """The event that `account type name=value…` stands for."""
    account, type_, *pairs = words.split()
    event: dict[str, object] = {
        "type": type_,
        "version": 1,
        "event_id": "e",
        "account": account,
        "occurred_at": "2024-01-01T00:00:00Z",
        **DEFAULTS[type_],
    }
    for pair in pairs:
        name, value = pair.split("=")
        event[name] = int(value) if name == "revision" else value
    return event


def placed_events(events: list[dict[str, object]]) -> list[Placed]:
    """The events as records, each in its topic and in the partition of its account."""
    next_offset: Counter[tuple[str, int]] = Counter()
    records = []
    for event in events:
        topic, key = TOPIC_OF[str(event["type"])], str(event["account"]).encode()
        partition = partition_of(key, PARTITIONS)
        offset = next_offset[topic, partition]
        next_offset[topic, partition] += 1
        records.append(Placed(topic, partition, offset, key, json.dumps(event).encode()))
    return records


def ledger_of(table: str) -> Reference:
    """The ledger after the table's records, whose verdicts must be the table's."""
    rows = [line.split() for line in table.splitlines()]
    rows = [row for row in rows if row and row[0] in ("applied", "duplicate", "conflict")]
    reference = Reference(PARTITIONS)
    records = placed_events([event_of(" ".join(row[1:])) for row in rows])
    assert [reference.apply(*record) for record in records] == [row[0] for row in rows]
    for order in itertools.permutations(TOPICS):
        other = Reference(PARTITIONS)
        for topic in order:
            for record in records:
                if record.topic == topic:
                    other.apply(*record)
        assert state_of(other) == state_of(reference)
    return reference


def check(table: str) -> None:
    """Compares the ledger after the table's records with the rows below them.

    - ``VERDICT ACCOUNT TYPE NAME=VALUE…``: a record; DEFAULTS has the fields not named
    - ``= ACCOUNT ASSET DEBITS CREDITS HOLD``: there is every row of balances, and no other
    - ``order ACCOUNT ID STATUS FILLED USED REMAINING HOLD ASSET``: some orders
    - ``flag NAME IDENTITY…``: every flag, but one_sided_trade only if the table has one
    """
    reference = ledger_of(table)
    balances: dict[str, dict[str, tuple[Decimal, ...]]] = {}
    flags: dict[str, set[tuple[str, ...]]] = {flag: set() for flag in FLAGS}
    for words in map(str.split, table.splitlines()):
        match words:
            case ["=", account, asset, *amounts]:
                balances.setdefault(account, {})[asset] = tuple(map(Decimal, amounts))
            case ["order", account, order_id, *fields]:
                assert order_words(reference.orders(account)[order_id]) == fields
            case ["flag", name, *identity]:
                flags[name].add(tuple(identity))
            case _:
                pass
    found = reference.flags()
    if not flags["one_sided_trade"]:
        found["one_sided_trade"] = set()
    assert reference.balances() == balances
    assert found == flags


def order_words(order: Order) -> list[str]:
    fields = (order.filled, order.used, order.remaining, order.hold)
    amounts = ["-" if field is None else plain(field) for field in fields]
    return [order.status, *amounts, order.hold_asset or "-"]


def plain(amount: Decimal) -> str:
    text = f"{amount:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def example(test: Callable[[], None]) -> Callable[[], None]:
    """The test, run after its docstring's table has been checked."""

    @wraps(test)
    def checked() -> None:
        check(test.__doc__ or "")
        test()

    return checked


def state_of(reference: Reference) -> tuple[object, ...]:
    accounts = (*reference.balances(), *ACCOUNTS)
    return (
        reference.balances(),
        reference.counts(),
        reference.flags(),
        [reference.orders(account) for account in accounts],
        [reference.journal(account) for account in accounts],
    )


# Transfers.


@example
def test_a_deposit_comes_from_external() -> None:
    """
    applied  alice deposited transfer_id=d1 amount=100.50

    = @external  USD  100.5  0      0
    = alice      USD  0      100.5  0
    """


@example
def test_a_withdrawal_and_its_fee_are_one_entry() -> None:
    """
    applied  alice deposited transfer_id=d1 amount=100
    applied  alice withdrawn transfer_id=w1 amount=30 fee=0.5
    applied  alice withdrawn transfer_id=w2 amount=1

    = @external  USD  100   31   0
    = @fees      USD  0     0.5  0
    = alice      USD  31.5  100  0
    """


@example
def test_an_adjustment_goes_either_way() -> None:
    """
    applied  alice adjusted transfer_id=a1 amount=5
    applied  alice adjusted transfer_id=a2 amount=-2

    = @adjustments  USD  5  2  0
    = alice         USD  2  5  0
    """


@example
def test_an_account_may_be_overdrawn_and_is_flagged() -> None:
    """
    applied  alice withdrawn transfer_id=w1 amount=30

    = @external  USD  0   30  0
    = alice      USD  30  0   0
    flag overdrawn alice USD
    """


@example
def test_a_hold_above_the_balance_overdraws_nothing() -> None:
    """
    applied  alice deposited transfer_id=d1 amount=199
    applied  alice order_placed order_id=o1 quantity=2 limit_price=100
    applied  bob   deposited transfer_id=d1 amount=200
    applied  bob   order_placed order_id=o1 quantity=2 limit_price=100

    = @external  USD  399  0    0
    = alice      USD  0    199  200
    = bob        USD  0    200  200
    """


# Fills.


@example
def test_both_sides_of_a_trade_cancel_in_clearing() -> None:
    """2 BTC at 10.5 are 21 USD; the buyer pays a fee, the seller gets a rebate in BTC.

    applied  alice order_placed order_id=o1 quantity=2 limit_price=11
    applied  bob   order_placed order_id=o1 side=sell quantity=3 limit_price=10
    applied  alice order_filled order_id=o1 fill_id=f1 price=10.5 quantity=2 fee=0.25
    applied  bob   order_filled order_id=o1 fill_id=f2 price=10.5 quantity=2 side=sell \
                   fee=-0.1 fee_asset=BTC

    = @clearing  USD  21     21    0
    = @clearing  BTC  2      2     0
    = @fees      USD  0      0.25  0
    = @fees      BTC  0.1    0     0
    = alice      USD  21.25  0     0
    = alice      BTC  0      2     0
    = bob        USD  0      21    0
    = bob        BTC  2      0.1   1
    order alice o1 closed 2 21.25 0 0 USD
    order bob   o1 open   2 1.9   1 1 BTC
    flag overdrawn alice USD
    flag overdrawn bob   BTC
    """


@example
def test_quote_quantity_is_what_changes_hands() -> None:
    """Not 3 × 0.333 = 0.999, but the 1 that the venue settled.

    applied  alice order_placed order_id=o1 side=sell quantity=3 limit_price=0.3
    applied  alice order_filled order_id=o1 fill_id=f1 side=sell price=0.333 quantity=3 \
                   quote_quantity=1

    = @clearing  USD  1  0  0
    = @clearing  BTC  0  3  0
    = alice      USD  0  1  0
    = alice      BTC  3  0  0
    flag overdrawn alice BTC
    flag one_sided_trade BTC-USD t1
    """


@example
def test_a_fee_in_a_third_asset_uses_nothing_of_the_order() -> None:
    """
    applied  alice order_placed order_id=o1 quantity=2 limit_price=10
    applied  alice order_filled order_id=o1 fill_id=f1 price=10 quantity=1 fee=3 fee_asset=BNB

    = @clearing  USD  0   10  0
    = @clearing  BTC  1   0   0
    = @fees      BNB  0   3   0
    = alice      USD  10  0   10
    = alice      BTC  0   1   0
    = alice      BNB  3   0   0
    order alice o1 open 1 10 1 10 USD
    flag overdrawn alice USD
    flag overdrawn alice BNB
    """


@example
def test_nothing_is_rounded() -> None:
    """The grammar's largest amount, squared: (10^20 − 10^-18)² = 10^40 − 200 + 10^-36.

    applied  alice order_filled order_id=o1 fill_id=f1 \
        price=99999999999999999999.999999999999999999 \
        quantity=99999999999999999999.999999999999999999
    applied  alice deposited transfer_id=d1 amount=0.000000000000000001

    = @clearing  USD  0  9999999999999999999999999999999999999800.000000000000000000000000000000000001  0
    = @clearing  BTC  99999999999999999999.999999999999999999  0  0
    = @external  USD  0.000000000000000001  0  0
    = alice      USD  9999999999999999999999999999999999999800.000000000000000000000000000000000001  0.000000000000000001  0
    = alice      BTC  0  99999999999999999999.999999999999999999  0
    order alice o1 unknown 0 0 - 0 -
    flag order_unknown alice o1 f1
    flag overdrawn alice USD
    """  # noqa: E501


@example
def test_a_fill_of_another_instrument_or_side_is_posted_but_not_filled() -> None:
    """
    applied  alice order_placed order_id=o1 quantity=2 limit_price=10
    applied  alice order_filled order_id=o1 fill_id=f1 instrument=ETH-USD price=1 quantity=2
    applied  alice order_filled order_id=o1 fill_id=f2 side=sell price=5 quantity=1
    applied  alice deposited transfer_id=d1 amount=20

    = @clearing  USD  5   2   0
    = @clearing  ETH  2   0   0
    = @clearing  BTC  0   1   0
    = @external  USD  20  0   0
    = alice      USD  2   25  20
    = alice      ETH  0   2   0
    = alice      BTC  1   0   0
    order alice o1 open 0 0 2 20 USD
    flag order_mismatch alice o1 f1
    flag order_mismatch alice o1 f2
    flag overdrawn alice BTC
    """


@example
def test_more_than_the_order_overfills_it() -> None:
    """
    applied  alice order_placed order_id=o1 side=sell order_type=market quantity=2
    applied  alice order_filled order_id=o1 fill_id=f1 side=sell price=1 quantity=1.5
    applied  alice order_filled order_id=o1 fill_id=f2 side=sell price=1 quantity=1
    applied  alice deposited transfer_id=d1 asset=BTC amount=3

    = @clearing  USD  2.5  0    0
    = @clearing  BTC  0    2.5  0
    = @external  BTC  3    0    0
    = alice      USD  0    2.5  0
    = alice      BTC  2.5  3    0
    order alice o1 closed 2.5 2.5 0 0 BTC
    flag overfilled alice o1
    """


@example
def test_a_fill_is_late_by_its_own_time_to_the_last_digit() -> None:
    """f1 is earlier than the cancel, f2 at the same moment, f3 later by 10^-12 seconds.

    applied  alice deposited transfer_id=d1 amount=3
    applied  alice order_placed order_id=o1 quantity=9 limit_price=1
    applied  alice order_cancelled order_id=o1 occurred_at=2024-01-01T12:00:00.5Z
    applied  alice order_filled order_id=o1 fill_id=f1 price=1 quantity=1 \
                   occurred_at=2024-01-01T12:00:00.499999999999Z
    applied  alice order_filled order_id=o1 fill_id=f2 price=1 quantity=1 \
                   occurred_at=2024-01-01t14:30:00.500+02:30
    applied  alice order_filled order_id=o1 fill_id=f3 price=1 quantity=1 \
                   occurred_at=2024-01-01T12:00:00.500000000001z

    = @clearing  USD  0  3  0
    = @clearing  BTC  3  0  0
    = @external  USD  3  0  0
    = alice      USD  3  3  0
    = alice      BTC  0  3  0
    order alice o1 closed 3 3 6 0 USD
    flag fill_after_cancel alice o1 f3
    """


def test_a_trade_is_one_sided_until_its_other_side_is_there() -> None:
    half = """
    applied  alice order_filled order_id=o1 fill_id=f1 price=1 quantity=1 trade_id=x
    applied  alice order_filled order_id=o1 fill_id=f2 price=1 quantity=1 trade_id=x
    """
    other = """
    applied  bob order_filled order_id=o1 fill_id=f1 side=sell price=1 quantity=1 trade_id=x
    """
    bust = """
    applied  bob fill_busted order_id=o1 fill_id=f1 trade_id=x
    """
    elsewhere = other.replace("order_id=o1", "order_id=o1 instrument=ETH-USD")
    assert ledger_of(half).flags()["one_sided_trade"] == {("BTC-USD", "x")}
    assert ledger_of(half + other).flags()["one_sided_trade"] == set()
    assert ledger_of(half + other + bust).flags()["one_sided_trade"] == {("BTC-USD", "x")}
    assert ledger_of(other + bust).flags()["one_sided_trade"] == set()
    assert ledger_of(half + elsewhere).flags()["one_sided_trade"] == {
        ("BTC-USD", "x"),
        ("ETH-USD", "x"),
    }


# Holds.


@example
def test_a_limit_buy_holds_what_remains_at_its_price() -> None:
    """2 × 10.1 = 20.2 before, 1.5 × 10.1 = 15.15 after a fill at a better price.

    applied  alice deposited transfer_id=d1 amount=100
    applied  alice order_placed order_id=o1 quantity=2 limit_price=10.1
    applied  bob   deposited transfer_id=d1 amount=100
    applied  bob   order_placed order_id=o1 quantity=2 limit_price=10.1
    applied  bob   order_filled order_id=o1 fill_id=f1 price=10 quantity=0.5

    = @clearing  USD  0    5    0
    = @clearing  BTC  0.5  0    0
    = @external  USD  200  0    0
    = alice      USD  0    100  20.2
    = bob        USD  5    100  15.15
    = bob        BTC  0    0.5  0
    order alice o1 open 0   0 2   20.2  USD
    order bob   o1 open 0.5 5 1.5 15.15 USD
    """


@example
def test_any_sell_holds_what_remains() -> None:
    """
    applied  alice deposited transfer_id=d1 asset=BTC amount=9
    applied  alice order_placed order_id=o1 side=sell quantity=2 limit_price=10
    applied  alice order_placed order_id=o2 side=sell quantity=3 order_type=market

    = @external  BTC  9  0  0
    = alice      BTC  0  9  5
    order alice o1 open 0 0 2 2 BTC
    order alice o2 open 0 0 3 3 BTC
    """


@example
def test_a_market_buy_without_reserve_holds_nothing() -> None:
    """Not even after an amendment gives it a limit price; a reserve changes that.

    applied  alice order_placed order_id=o1 quantity=2 order_type=market
    applied  alice order_placed order_id=o2 quantity=2 order_type=market
    applied  alice order_amended order_id=o2 revision=1 limit_price=7
    applied  alice order_placed order_id=o3 quantity=2 order_type=market
    applied  alice order_amended order_id=o3 revision=1 reserve=7

    = alice  USD  0  0  7
    order alice o1 open 0 0 2 0 USD
    order alice o2 open 0 0 2 0 USD
    order alice o3 open 0 0 2 7 USD
    """


@example
def test_a_reserve_is_held_less_what_was_used() -> None:
    """alice used 20 + 0.5 of 30; bob, selling, 2 + 0.5 BTC of 10; a fee elsewhere does not count.

    applied  alice deposited transfer_id=d1 amount=100
    applied  alice order_placed order_id=o1 order_type=market reserve=30
    applied  alice order_filled order_id=o1 fill_id=f1 price=10 quantity=2 fee=0.5
    applied  alice order_filled order_id=o1 fill_id=f2 price=1 quantity=1 fee=0.1 fee_asset=BTC
    applied  bob   deposited transfer_id=d1 asset=BTC amount=100
    applied  bob   order_placed order_id=o1 side=sell limit_price=1 quantity=3 reserve=10
    applied  bob   order_filled order_id=o1 fill_id=f1 side=sell price=10 quantity=2 \
                   fee=0.5 fee_asset=BTC

    = @clearing  USD  20    21   0
    = @clearing  BTC  3     2    0
    = @external  USD  100   0    0
    = @external  BTC  100   0    0
    = @fees      USD  0     0.5  0
    = @fees      BTC  0     0.6  0
    = alice      USD  21.5  100  8.5
    = alice      BTC  0.1   3    0
    = bob        USD  0     20   0
    = bob        BTC  2.5   100  7.5
    order alice o1 open 3 21.5 - 8.5 USD
    order bob   o1 open 2 2.5  1 7.5 BTC
    """


@example
def test_used_and_reserve_never_go_below_zero() -> None:
    """alice's rebates of 3 exceed the 1 she paid: 5 stay held, not 7; bob used 12 of 5.

    applied  alice deposited transfer_id=d1 amount=100
    applied  alice order_placed order_id=o1 order_type=market reserve=5
    applied  alice order_filled order_id=o1 fill_id=f1 price=1 quantity=1 fee=-3
    applied  bob   deposited transfer_id=d1 amount=100
    applied  bob   order_placed order_id=o1 order_type=market reserve=5
    applied  bob   order_filled order_id=o1 fill_id=f1 price=12 quantity=1

    = @clearing  USD  0    13   0
    = @clearing  BTC  2    0    0
    = @external  USD  200  0    0
    = @fees      USD  3    0    0
    = alice      USD  1    103  5
    = alice      BTC  0    1    0
    = bob        USD  12   100  0
    = bob        BTC  0    1    0
    order alice o1 open 1 0  - 5 USD
    order bob   o1 open 1 12 - 0 USD
    """


# The life of an order.


@example
def test_the_highest_revision_that_names_a_term_counts() -> None:
    """Revision 3 arrives first and names the price only; 2 gives quantity, 1 gives nothing more.

    applied  alice deposited transfer_id=d1 amount=100
    applied  alice order_amended order_id=o1 revision=3 limit_price=4
    applied  alice order_placed order_id=o1 quantity=1 limit_price=1
    applied  alice order_amended order_id=o1 revision=2 limit_price=3 quantity=5
    applied  alice order_amended order_id=o1 revision=1 limit_price=2 quantity=7

    = @external  USD  100  0    0
    = alice      USD  0    100  20
    order alice o1 open 0 0 5 20 USD
    """


@example
def test_an_amendment_closes_an_order_or_opens_it_again() -> None:
    """o1 is filled, then raised to 3; o2 is lowered to what is filled; both were placed for 2.

    applied  alice deposited transfer_id=d1 amount=100
    applied  alice order_placed order_id=o1 quantity=2 limit_price=5
    applied  alice order_filled order_id=o1 fill_id=f1 price=5 quantity=2
    applied  alice order_amended order_id=o1 revision=1 quantity=3
    applied  alice order_placed order_id=o2 quantity=2 limit_price=5
    applied  alice order_filled order_id=o2 fill_id=f1 price=5 quantity=1
    applied  alice order_amended order_id=o2 revision=1 quantity=1

    = @clearing  USD  0    15   0
    = @clearing  BTC  3    0    0
    = @external  USD  100  0    0
    = alice      USD  15   100  5
    = alice      BTC  0    3    0
    order alice o1 open   2 10 1 5 USD
    order alice o2 closed 1 5  0 0 USD
    """


@example
def test_cancelled_and_rejected_orders_are_closed_for_ever() -> None:
    """Though o1 is raised, and o2 placed only afterwards; o3 was never placed.

    applied  alice order_placed order_id=o1 quantity=2 limit_price=5
    applied  alice order_cancelled order_id=o1
    applied  alice order_amended order_id=o1 revision=1 quantity=9
    applied  alice order_rejected order_id=o2
    applied  alice order_placed order_id=o2 quantity=2 limit_price=5
    applied  alice order_cancelled order_id=o3 instrument=BTC-USD

    order alice o1 closed  0 0 9 0 USD
    order alice o2 closed  0 0 2 0 USD
    order alice o3 unknown 0 0 - 0 -
    """


def test_open_orders_are_counted_over_all_accounts() -> None:
    reference = ledger_of("""
    applied  alice order_placed order_id=o1 quantity=2 limit_price=5
    applied  bob   order_placed order_id=o1 order_type=market reserve=0
    applied  bob   order_placed order_id=o2 quantity=2 limit_price=5
    applied  bob   order_cancelled order_id=o2
    applied  bob   order_cancelled order_id=o3
    """)
    assert reference.open_orders() == 2


# Busts.


@example
def test_a_bust_exchanges_debit_and_credit_and_totals_grow() -> None:
    """The bust's own trade_id and instrument do not matter.

    applied  alice order_placed order_id=o1 quantity=2 limit_price=5
    applied  alice order_filled order_id=o1 fill_id=f1 price=5 quantity=2 fee=0.3
    applied  alice fill_busted order_id=o1 fill_id=f1 trade_id=other instrument=A-B
    applied  alice deposited transfer_id=d1 amount=10

    = @clearing  USD  10    10    0
    = @clearing  BTC  2     2     0
    = @external  USD  10    0     0
    = @fees      USD  0.3   0.3   0
    = alice      USD  10.3  20.3  10
    = alice      BTC  2     2     0
    order alice o1 open 0 0 2 10 USD
    """


@example
def test_a_bust_before_its_fill_undoes_it_too() -> None:
    """
    applied  alice order_placed order_id=o1 quantity=2 limit_price=5
    applied  alice fill_busted order_id=o1 fill_id=f1
    applied  alice order_filled order_id=o1 fill_id=f1 price=5 quantity=2 fee=-0.3
    applied  alice deposited transfer_id=d1 amount=10

    = @clearing  USD  10    10    0
    = @clearing  BTC  2     2     0
    = @external  USD  10    0     0
    = @fees      USD  0.3   0.3   0
    = alice      USD  10.3  20.3  10
    = alice      BTC  2     2     0
    order alice o1 open 0 0 2 10 USD
    """


@example
def test_a_bust_of_a_fill_not_seen_posts_nothing_and_is_flagged() -> None:
    """Neither another order's fill nor another account's has the bust's identity.

    applied  alice fill_busted order_id=o1 fill_id=f1
    applied  alice order_filled order_id=o2 fill_id=f1 side=sell price=1 quantity=1
    applied  bob   order_filled order_id=o1 fill_id=f1 side=sell price=1 quantity=1
    applied  alice deposited transfer_id=d1 asset=BTC amount=1
    applied  bob   deposited transfer_id=d1 asset=BTC amount=1

    = @clearing  USD  2  0  0
    = @clearing  BTC  0  2  0
    = @external  BTC  2  0  0
    = alice      USD  0  1  0
    = alice      BTC  1  1  0
    = bob        USD  0  1  0
    = bob        BTC  1  1  0
    flag bust_without_fill alice o1 f1
    flag order_unknown alice o2 f1
    flag order_unknown bob o1 f1
    """


def test_a_busted_fill_is_flagged_only_if_asked_for() -> None:
    reference = ledger_of("""
    applied  alice order_filled order_id=o1 fill_id=f1 price=1 quantity=1
    applied  alice fill_busted order_id=o1 fill_id=f1
    """)
    assert reference.flags()["order_unknown"] == set()
    assert reference.flags(busted_too=True)["order_unknown"] == {("alice", "o1", "f1")}


# Identity.


@example
def test_the_same_content_again_is_a_duplicate() -> None:
    """event_id and occurred_at are not content; amounts are compared by value.

    applied    alice deposited transfer_id=d1 amount=1.5
    duplicate  alice deposited transfer_id=d1 amount=1.50 event_id=x
    duplicate  alice deposited transfer_id=d1 amount=1.500 occurred_at=2025-01-01T00:00:00Z
    applied    alice withdrawn transfer_id=w1 amount=1
    duplicate  alice withdrawn transfer_id=w1 amount=1.0 fee=-0.0
    applied    alice order_filled order_id=o1 fill_id=f1 price=1 quantity=1 fee=0
    duplicate  alice order_filled order_id=o1 fill_id=f1 price=1.0 quantity=1.00 fee=-0
    applied    alice order_amended order_id=o1 revision=1 reserve=3
    duplicate  alice order_amended order_id=o1 revision=1 reserve=3.0
    applied    alice order_amended order_id=o1 revision=2 reserve=3.0

    = @clearing  USD  0    1    0
    = @clearing  BTC  1    0    0
    = @external  USD  1.5  1    0
    = alice      USD  2    1.5  0
    = alice      BTC  0    1    0
    flag order_unknown alice o1 f1
    flag overdrawn alice USD
    """


@example
def test_other_content_is_a_conflict_and_the_lowest_offset_stands() -> None:
    """Each field counts; the first content once more is still a duplicate, at any distance.

    applied    alice deposited transfer_id=x amount=5
    conflict   alice deposited transfer_id=x amount=5.01
    conflict   alice deposited transfer_id=x amount=5 asset=BTC
    conflict   alice withdrawn transfer_id=x amount=5
    conflict   alice adjusted transfer_id=x amount=5
    duplicate  alice deposited transfer_id=x amount=5
    applied    bob   deposited transfer_id=x amount=6
    applied    bob   order_placed order_id=o1 quantity=3 limit_price=2
    conflict   bob   order_placed order_id=o1 quantity=3 limit_price=2 reserve=6
    conflict   bob   order_placed order_id=o1 quantity=3 order_type=market
    applied    bob   order_cancelled order_id=o2
    conflict   bob   order_cancelled order_id=o2 instrument=BTC-USD
    conflict   bob   order_cancelled order_id=o2 reason=done
    applied    bob   order_filled order_id=o1 fill_id=f1 price=2 quantity=1
    conflict   bob   order_filled order_id=o1 fill_id=f1 price=2 quantity=1 quote_quantity=2
    conflict   bob   order_filled order_id=o1 fill_id=f1 price=2 quantity=1 trade_id=t2
    conflict   bob   order_filled order_id=o1 fill_id=f1 price=2 quantity=1 fee_asset=BTC
    duplicate  bob   order_filled order_id=o1 fill_id=f1 price=2 quantity=1
    applied    bob   fill_busted order_id=o1 fill_id=f2
    conflict   bob   fill_busted order_id=o1 fill_id=f2 trade_id=t2

    = @clearing  USD  0   2  0
    = @clearing  BTC  1   0  0
    = @external  USD  11  0  0
    = alice      USD  0   5  0
    = bob        USD  2   6  4
    = bob        BTC  0   1  0
    order bob o1 open 1 2 2 4 USD
    flag bust_without_fill bob o1 f2
    """


@example
def test_one_order_has_one_record_of_each_type() -> None:
    """
    applied   alice order_placed order_id=o1 order_type=market reserve=0
    applied   alice order_amended order_id=o1 revision=1 quantity=1
    conflict  alice order_amended order_id=o1 revision=1 quantity=2
    applied   alice order_amended order_id=o1 revision=9223372036854775807 quantity=3
    applied   alice order_cancelled order_id=o1
    applied   alice order_rejected order_id=o1
    """


# Journal and partitions.


def test_the_journal_is_in_order_of_time_then_topic_and_offset() -> None:
    """The reversal stands where the later of its two records does, behind that one's entry."""
    reference = ledger_of("""
    applied  alice order_filled order_id=o1 fill_id=f1 price=2 quantity=3 fee=-1
    applied  alice fill_busted order_id=o1 fill_id=f2 occurred_at=2024-01-05T00:00:00Z
    applied  alice fill_busted order_id=o1 fill_id=f1 occurred_at=2024-01-03T00:00:00Z
    applied  alice order_filled order_id=o1 fill_id=f2 side=sell price=1 quantity=1 \
                   quote_quantity=0 occurred_at=2024-01-02T00:00:00Z
    applied  alice deposited transfer_id=d1 amount=1
    applied  alice withdrawn transfer_id=w1 amount=1 fee=0.1 \
                   occurred_at=2024-01-01T00:59:59.9+01:00
    """)
    p = partition_of(b"alice", PARTITIONS)
    d, zero = Decimal, Decimal(0)
    assert reference.journal("alice") == [
        (
            "2024-01-01T00:59:59.9+01:00",
            *("transfers", p, 1),
            [
                ("alice", "USD", d(1), zero),
                ("@external", "USD", zero, d(1)),
                ("alice", "USD", d("0.1"), zero),
                ("@fees", "USD", zero, d("0.1")),
            ],
        ),
        (
            "2024-01-01T00:00:00Z",
            *("transfers", p, 0),
            [("@external", "USD", d(1), zero), ("alice", "USD", zero, d(1))],
        ),
        (
            "2024-01-01T00:00:00Z",
            *("fills", p, 0),
            [
                ("alice", "USD", d(6), zero),
                ("@clearing", "USD", zero, d(6)),
                ("@clearing", "BTC", d(3), zero),
                ("alice", "BTC", zero, d(3)),
                ("@fees", "USD", d(1), zero),
                ("alice", "USD", zero, d(1)),
            ],
        ),
        (
            "2024-01-02T00:00:00Z",
            *("fills", p, 3),
            [("alice", "BTC", d(1), zero), ("@clearing", "BTC", zero, d(1))],
        ),
        (
            "2024-01-02T00:00:00Z",
            *("fills", p, 3),
            [("alice", "BTC", zero, d(1)), ("@clearing", "BTC", d(1), zero)],
        ),
        (
            "2024-01-03T00:00:00Z",
            *("fills", p, 2),
            [
                ("alice", "USD", zero, d(6)),
                ("@clearing", "USD", d(6), zero),
                ("@clearing", "BTC", zero, d(3)),
                ("alice", "BTC", d(3), zero),
                ("@fees", "USD", zero, d(1)),
                ("alice", "USD", d(1), zero),
            ],
        ),
    ]
    assert len(reference.journal("@clearing")) == 4
    assert reference.journal("nobody") == []


def test_system_accounts_are_summed_over_partitions() -> None:
    reference = ledger_of("""
    applied  alice deposited transfer_id=d1 amount=1
    applied  bob   deposited transfer_id=d1 amount=2
    """)
    alice, bob = partition_of(b"alice", PARTITIONS), partition_of(b"bob", PARTITIONS)
    assert alice != bob
    zero, one = Decimal(0), Decimal(1)
    assert reference.balances_of_partition(alice) == {
        "@external": {"USD": (one, zero, zero)},
        "alice": {"USD": (zero, one, zero)},
    }
    assert reference.balances()["@external"]["USD"] == (Decimal(3), zero, zero)
    assert reference.counts_of_partition(bob)["transfers"]["applied"] == 1
    assert reference.counts()["transfers"]["applied"] == 2


def test_murmur2_is_kafkas() -> None:
    """The values of UtilsTest.testMurmur2 in Apache Kafka."""
    hashes = {
        b"21": -973932308,
        b"foobar": -790332482,
        b"a-little-bit-long-string": -985981536,
        b"a-little-bit-longer-string": -1486304829,
        b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
        b"abc": 479470107,
    }
    assert {key: murmur2(key) for key in hashes} == {
        key: value % 2**32 for key, value in hashes.items()
    }


def test_records_out_of_order_are_a_mistake_of_the_caller() -> None:
    reference = Reference(1)
    assert reference.apply("orders", 0, 7, None, None) == "invalid"
    with pytest.raises(ValueError, match="orders:0:7 comes out of order"):
        reference.apply("orders", 0, 7, None, None)
    with pytest.raises(ValueError, match="no input topic"):
        reference.apply("balances", 0, 0, None, None)


# Validity.

VALID = {
    "order_placed": event_of("alice order_placed order_id=o quantity=1 limit_price=1"),
    "order_amended": event_of("alice order_amended order_id=o revision=1 quantity=1"),
    "order_cancelled": event_of("alice order_cancelled order_id=o"),
    "order_rejected": event_of("alice order_rejected order_id=o"),
    "order_filled": event_of("alice order_filled order_id=o fill_id=f price=1 quantity=1"),
    "fill_busted": event_of("alice fill_busted order_id=o fill_id=f"),
    "deposited": event_of("alice deposited transfer_id=x amount=1"),
    "withdrawn": event_of("alice withdrawn transfer_id=x amount=1 fee=1"),
    "adjusted": event_of("alice adjusted transfer_id=x amount=1"),
}
ALICE = partition_of(b"alice", PARTITIONS)


def verdict_of(
    value: bytes | None,
    topic: str = "transfers",
    key: bytes | None = b"alice",
    partition: int = ALICE,
) -> Verdict:
    return Reference(PARTITIONS).apply(topic, partition, 0, key, value)


def verdict_of_event(event: dict[str, object]) -> Verdict:
    """The verdict on the event in the topic of its type, under its own key."""
    key = str(event.get("account")).encode()
    return verdict_of(
        json.dumps(event).encode(),
        TOPIC_OF.get(str(event.get("type")), "transfers"),
        key,
        partition_of(key, PARTITIONS),
    )


@pytest.mark.parametrize("type_", VALID)
def test_each_field_is_needed_typed_and_not_null(type_: str) -> None:
    event = VALID[type_]
    assert verdict_of_event(event) == "applied"
    for name in event:
        without = {other: event[other] for other in event if other != name}
        if (type_, name) == ("withdrawn", "fee"):
            assert verdict_of_event(without) == "applied"
        elif name != "type":
            assert verdict_of_event(without) == "invalid", name
        for value in (None, True, 1.0, 2, "", [], {}, ["1"], {"a": "1"}):
            if (name, value) != ("revision", 2):
                assert verdict_of_event(event | {name: value}) == "invalid", (name, value)
    for unknown in ("note", "Type", "account "):
        assert verdict_of_event(event | {unknown: "1"}) == "invalid"


@pytest.mark.parametrize(
    ("type_", "optional"),
    [
        ("order_placed", {"reserve": "0"}),
        ("order_amended", {"reserve": "0"}),
        ("order_amended", {"limit_price": "1"}),
        ("order_cancelled", {"instrument": "BTC-USD"}),
        ("order_filled", {"quote_quantity": "0"}),
    ],
)
def test_optional_fields_may_be_there_but_not_null(type_: str, optional: dict[str, object]) -> None:
    for name in optional:
        assert verdict_of_event(VALID[type_] | optional) == "applied"
        assert verdict_of_event(VALID[type_] | {name: None}) == "invalid"
        assert verdict_of_event(VALID[type_] | {name: 1}) == "invalid"


def test_fields_of_other_types_are_unknown() -> None:
    assert verdict_of_event(VALID["order_rejected"] | {"instrument": "BTC-USD"}) == "invalid"
    assert verdict_of_event(VALID["deposited"] | {"fee": "0"}) == "invalid"
    assert verdict_of_event(VALID["order_placed"] | {"revision": 1}) == "invalid"
    assert verdict_of_event(VALID["order_amended"] | {"instrument": "BTC-USD"}) == "invalid"
    assert verdict_of_event(VALID["fill_busted"] | {"side": "buy"}) == "invalid"


@pytest.mark.parametrize(
    ("fields", "verdict"),
    [
        ("order_type=limit quantity=1 limit_price=1", "applied"),
        ("order_type=limit reserve=1 limit_price=1", "applied"),
        ("order_type=limit quantity=1", "invalid"),
        ("order_type=limit quantity=1 reserve=1", "invalid"),
        ("order_type=limit limit_price=1", "invalid"),
        ("order_type=market quantity=1", "applied"),
        ("order_type=market reserve=0", "applied"),
        ("order_type=market quantity=1 reserve=0", "applied"),
        ("order_type=market", "invalid"),
        ("order_type=market quantity=1 limit_price=1", "invalid"),
        ("order_type=stop quantity=1", "invalid"),
    ],
)
def test_which_terms_an_order_has(fields: str, verdict: Verdict) -> None:
    assert verdict_of_event(event_of(f"alice order_placed order_id=o {fields}")) == verdict


@pytest.mark.parametrize(
    ("words", "refused"),
    [
        ("order_placed order_id=o limit_price=1 quantity=", "0 -1"),
        ("order_placed order_id=o quantity=1 limit_price=", "0 -1"),
        ("order_placed order_id=o quantity=1 limit_price=1 reserve=", "-1"),
        ("order_amended order_id=o revision=1 quantity=", "0 -1"),
        ("order_amended order_id=o revision=1 limit_price=", "0 -1"),
        ("order_amended order_id=o revision=1 reserve=", "-1"),
        ("order_filled order_id=o fill_id=f price=1 quantity=", "0 -1"),
        ("order_filled order_id=o fill_id=f quantity=1 price=", "0 -1"),
        ("order_filled order_id=o fill_id=f quantity=1 price=1 quote_quantity=", "-1"),
        ("order_filled order_id=o fill_id=f quantity=1 price=1 fee=", ""),
        ("deposited transfer_id=x amount=", "0 -1"),
        ("withdrawn transfer_id=x amount=", "0 -1"),
        ("withdrawn transfer_id=x amount=1 fee=", "-1"),
        ("adjusted transfer_id=x amount=", "0"),
    ],
)
def test_the_sign_of_each_amount(words: str, refused: str) -> None:
    for amount in ("1", "0", "-1"):
        expected = "invalid" if amount in refused.split() else "applied"
        assert verdict_of_event(event_of(f"alice {words}{amount}")) == expected


@pytest.mark.parametrize("text", ["1", "0.5", "1.10", "9" * 20, "0." + "0" * 17 + "1", "-0", "-9"])
def test_amounts(text: str) -> None:
    assert verdict_of_event(VALID["order_filled"] | {"fee": text}) == "applied"


@pytest.mark.parametrize(
    "text",
    [
        "+1", "01", "1.", ".5", "1e3", "-", "--1", "00", "1_0", "1,5", "0x1", " 1", "1 ", "1\n",
        "NaN", "Infinity", "１", "٣", "1" * 21, "0." + "1" * 19,
    ],
)  # fmt: skip
def test_what_is_no_amount(text: str) -> None:
    assert verdict_of_event(VALID["order_filled"] | {"fee": text}) == "invalid"


@pytest.mark.parametrize(
    ("type_", "name", "good", "bad"),
    [
        ("deposited", "account", "a Z09_:- " + "x" * 128, "@fees a.b é a/b " + "x" * 129),
        ("deposited", "asset", "a USD @107 _ " + "x" * 32, "A-B A:B é $ " + "x" * 33),
        ("deposited", "transfer_id", "a ~!@#-/\\\" " + "x" * 128, "é ä\u007f " + "x" * 129),
        ("deposited", "event_id", "a ~ " + "x" * 128, "é " + "x" * 129),
        ("order_filled", "instrument", "A-B @1-_ A-A", "A -A A- A-B-C A--B A/B é-A"),
        ("order_filled", "side", "buy sell", "BUY Sell both"),
        ("order_filled", "liquidity", "maker taker", "Maker none"),
        ("order_filled", "fee_asset", "ANY", "A-B"),
        ("order_rejected", "reason", "user é 𝄞 \0 " + "x" * 1024, "\ud800 x\udc00 " + "x" * 1025),
    ],
)  # fmt: skip
def test_forms_of_texts(type_: str, name: str, good: str, bad: str) -> None:
    for text in good.split(" "):
        assert verdict_of_event(VALID[type_] | {name: text}) == "applied", text
    for text in ("", "a\n", *bad.split(" ")):
        expected = "applied" if (name, text) == ("reason", "a\n") else "invalid"
        assert verdict_of_event(VALID[type_] | {name: text}) == expected, text


def test_ids_may_have_spaces() -> None:
    assert verdict_of_event(VALID["deposited"] | {"transfer_id": " a b "}) == "applied"
    assert verdict_of_event(VALID["deposited"] | {"account": "a b"}) == "invalid"


def test_forms_of_numbers() -> None:
    for revision in (1, 2**63 - 1):
        assert verdict_of_event(VALID["order_amended"] | {"revision": revision}) == "applied"
    for refused in (0, -1, 2**63, 10**5000, 1.0, True, "1"):
        event = json.dumps(VALID["order_amended"] | {"revision": "?"})
        text = "1" + "0" * 5000 if refused == 10**5000 else json.dumps(refused)
        value = event.replace('"?"', text).encode()
        assert verdict_of(value, "orders") == "invalid"
    for version in (0, 2, 1.0, True, "1", None):
        assert verdict_of_event(VALID["deposited"] | {"version": version}) == "invalid"
    for type_ in ("", "Deposited", "order_replaced", None, 1, ["deposited"]):
        assert verdict_of_event(VALID["deposited"] | {"type": type_}) == "invalid"


@pytest.mark.parametrize(
    "text",
    [
        "2024-02-29T23:59:59Z",
        "2024-02-29t23:59:59z",
        "2024-02-29T23:59:59.123456789012345678901234567890Z",
        "2024-02-29T23:59:59+23:59",
        "2024-02-29T23:59:59-00:00",
        "0001-01-01T00:00:00Z",
        "0001-01-01T23:59:00+23:59",
        "9999-12-31T23:59:59.999Z",
    ],
)
def test_times(text: str) -> None:
    assert verdict_of_event(VALID["deposited"] | {"occurred_at": text}) == "applied"


@pytest.mark.parametrize(
    "text",
    [
        "2024-01-01T00:00:00",
        "2024-01-01",
        "2024-01-01 00:00:00Z",
        "2024-01-01T00:00Z",
        "2024-01-01T00:00:00.Z",
        "2024-01-01T00:00:00,1Z",
        "2024-01-01T00:00:00Z\n",
        "2024-01-01T00:00:00+0100",
        "2024-01-01T00:00:00+24:00",
        "2024-01-01T00:00:00+01:60",
        "2024-01-01T24:00:00Z",
        "2016-12-31T23:59:60Z",
        "2023-02-29T00:00:00Z",
        "2024-13-01T00:00:00Z",
        "0000-12-31T00:00:00Z",
        "0001-01-01T00:00:00+00:01",
        "9999-12-31T23:59:59-00:01",
        "２024-01-01T00:00:00Z",
    ],
)
def test_what_is_no_time(text: str) -> None:
    assert verdict_of_event(VALID["deposited"] | {"occurred_at": text}) == "invalid"


def test_times_compare_to_the_last_digit() -> None:
    texts = [
        "2024-01-01T00:00:00Z",
        "2024-01-01T00:00:00.00000000000000000001Z",
        "2024-01-01T00:00:00.1Z",
        "2024-01-01T00:00:00.10000000001Z",
        "2024-01-01T02:00:00.5+02:00",
        "2024-01-01T00:00:01Z",
    ]
    instants = [instant_of(text) for text in texts]
    assert instants == sorted(instants)
    assert len(set(instants)) == len(instants)
    assert instant_of("2024-01-01T00:00:00.50-00:00") == instants[4]


DEPOSIT = json.dumps(VALID["deposited"]).encode()


@pytest.mark.parametrize(
    "value",
    [
        DEPOSIT,
        b" \t\r\n" + DEPOSIT + b"\n",
        DEPOSIT.replace(b"deposited", b"\\u0064eposited"),
    ],
)
def test_json(value: bytes) -> None:
    assert verdict_of(value) == "applied"


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"",
        b"null",
        b"1",
        b"{}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"[" + DEPOSIT + b"]",
        DEPOSIT.replace(b'"version": 1', b'"version": 1, "version": 1'),
        DEPOSIT.replace(b'"version": 1', b'"version": null, "version": 1'),
        DEPOSIT + DEPOSIT,
        DEPOSIT[:-1],
        b"\xef\xbb\xbf" + DEPOSIT,
        DEPOSIT.decode().encode("utf-16"),
        DEPOSIT.replace(b'"x"', b'"\xff"'),
        DEPOSIT.replace(b'"x"', b"'x'"),
        DEPOSIT.replace(b'"x"', b'"\x00"'),
        DEPOSIT.replace(b'"version": 1', b'"version": 1.0'),
        DEPOSIT.replace(b'"version": 1', b'"version": 1e0'),
        DEPOSIT.replace(b'"version": 1', b'"version": 01'),
        DEPOSIT.replace(b'"version": 1', b'"version": NaN'),
        DEPOSIT.replace(b'"version": 1', b'"version": NaN, "version": 1'),
        DEPOSIT.replace(b'"version": 1', b'"version": -Infinity, "version": 1'),
        DEPOSIT.replace(b'"version": 1', b'"version": 1, "version": 2'),
        DEPOSIT.replace(b'"version": 1', b'"version": 1,'),
    ],
)
def test_what_is_no_json_object(value: bytes | None) -> None:
    assert verdict_of(value) == "invalid"


def test_topic_key_and_partition_belong_to_the_event() -> None:
    assert verdict_of(DEPOSIT) == "applied"
    for topic in ("orders", "fills"):
        assert verdict_of(DEPOSIT, topic) == "invalid"
    for key in (None, b"", b"bob", b"Alice", b"alice "):
        assert verdict_of(DEPOSIT, key=key) == "invalid"
    for partition in range(PARTITIONS):
        expected = "applied" if partition == ALICE else "invalid"
        assert verdict_of(DEPOSIT, partition=partition) == expected
    assert verdict_of(DEPOSIT, key=b"bob", partition=partition_of(b"bob", 8)) == "invalid"


def test_an_invalid_record_is_counted_and_takes_no_identity() -> None:
    reference = Reference(PARTITIONS)
    refused = DEPOSIT.replace(b'"amount": "1"', b'"amount": "0"')
    verdicts = [
        reference.apply("transfers", ALICE, offset, b"alice", value)
        for offset, value in enumerate([refused, DEPOSIT, DEPOSIT, refused])
    ]
    assert verdicts == ["invalid", "applied", "duplicate", "invalid"]
    assert reference.counts()["transfers"] == {
        "applied": 1,
        "duplicate": 1,
        "conflict": 0,
        "invalid": 2,
    }


# The Bitstamp hour.


def bitstamp() -> Iterator[tuple[str, bytes]]:
    for topic in TOPICS:
        for line in (BITSTAMP / f"{topic}.jsonl").read_bytes().splitlines():
            yield topic, line


def publish_bitstamp(reference: Reference, next_offset: Counter[tuple[str, int]]) -> None:
    for topic, line in bitstamp():
        key = json.loads(line)["account"].encode()
        partition = partition_of(key, PARTITIONS)
        reference.apply(topic, partition, next_offset[topic, partition], key, line)
        next_offset[topic, partition] += 1


def total(reference: Reference, column: int, asset: str) -> Decimal:
    """The sum over all accounts of debits (0), credits (1) or hold (2)."""
    with localcontext(EXACT):
        rows = [rows[asset] for rows in reference.balances().values() if asset in rows]
        return sum((row[column] for row in rows), Decimal(0))


def test_the_bitstamp_hour() -> None:
    reference = Reference(PARTITIONS)
    publish_bitstamp(reference, Counter())
    balances = reference.balances()
    nothing = {"duplicate": 0, "conflict": 0, "invalid": 0}
    assert reference.counts() == {
        "orders": {"applied": 10968, **nothing},
        "fills": {"applied": 270, **nothing},
        "transfers": {"applied": 194, **nothing},
    }
    assert balances["@fees"] == {"USD": (Decimal(0), Decimal("317.62"), Decimal(0))}
    for asset in ("BTC", "USD"):
        debits, credits_, _ = balances["@clearing"][asset]
        assert debits == credits_ > 0
        assert total(reference, 0, asset) == total(reference, 1, asset)
    assert {asset for rows in balances.values() for asset in rows} == {"BTC", "USD"}
    assert total(reference, 2, "USD") == Decimal("225241.5532982048")
    assert total(reference, 2, "BTC") == Decimal("604.76137024")
    assert reference.open_orders() == 162
    flags = reference.flags()
    # Two orders were placed before the hour began.
    assert flags.pop("order_unknown") == {
        ("trader-26", "65590359", "82"),
        ("trader-29", "65590362", "84"),
    }
    assert not any(flags.values())


def test_the_bitstamp_hour_published_twice() -> None:
    reference = Reference(PARTITIONS)
    next_offset: Counter[tuple[str, int]] = Counter()
    publish_bitstamp(reference, next_offset)
    once = reference.balances()
    publish_bitstamp(reference, next_offset)
    assert reference.balances() == once
    assert sum(each["applied"] for each in reference.counts().values()) == 11432
    assert sum(each["duplicate"] for each in reference.counts().values()) == 11432
    assert sum(next_offset.values()) == 2 * 11432


# Properties, which also try the strategies.


@settings(max_examples=100, deadline=None)
@given(placed_logs(), st.data())
def test_any_interleaving_gives_the_same_state(log: list[Placed], data: st.DataObject) -> None:
    one, other = Reference(PARTITIONS), Reference(PARTITIONS)
    for record in log:
        one.apply(*record)
    for record in data.draw(interleavings(by_topic_partition(log))):
        other.apply(*record)
    assert state_of(one) == state_of(other)


@settings(max_examples=100, deadline=None)
@given(placed_logs(partitions=2))
def test_debits_equal_credits_and_nothing_is_below_zero(log: list[Placed]) -> None:
    reference = Reference(2)
    for record in log:
        reference.apply(*record)
    balances = reference.balances()
    for asset in {asset for rows in balances.values() for asset in rows}:
        assert total(reference, 0, asset) == total(reference, 1, asset)
    for account, rows in balances.items():
        for row in rows.values():
            assert min(row) >= 0
            assert account not in SYSTEM_ACCOUNTS or row[2] == 0
    with localcontext(EXACT):
        for account in balances:
            lines = [line for entry in reference.journal(account) for line in entry.lines]
            for asset, (debits, credits_, _) in balances[account].items():
                own = [line for line in lines if line[:2] == (account, asset)]
                assert sum((line.debit for line in own), Decimal(0)) == debits
                assert sum((line.credit for line in own), Decimal(0)) == credits_


@settings(max_examples=100, deadline=None)
@given(valid_event_logs().map(lambda log: placed([*log, *log], PARTITIONS)))
def test_a_valid_log_sent_twice_applies_nothing_the_second_time(log: list[Placed]) -> None:
    reference = Reference(PARTITIONS)
    half = len(log) // 2
    first = [reference.apply(*record) for record in log[:half]]
    state = (reference.balances(), reference.flags())
    second = [reference.apply(*record) for record in log[half:]]
    assert (reference.balances(), reference.flags()) == state
    assert "invalid" not in first
    assert set(second) <= {"duplicate", "conflict"}
    assert [verdict == "conflict" for verdict in first] == [
        verdict == "conflict" for verdict in second
    ]
