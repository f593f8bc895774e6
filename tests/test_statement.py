"""Statements, as a person would check them by hand; and against the reference's journal."""

from __future__ import annotations

from decimal import Decimal, localcontext
from typing import Any

import pytest
from hypothesis import given

from ledger.amounts import plain
from ledger.journal import SYSTEM_ACCOUNTS
from ledger.partitioner import partition_of
from ledger.projections.partition import Partition
from ledger.published import totals
from ledger.statement import Entry, running, statement
from tests import reference
from tests.strategies import Placed, placed_logs
from tests.test_flags import (
    EARLY,
    LATE,
    PARTITIONS,
    busted,
    deposited,
    event,
    filled,
    folded,
)
from tests.test_fold import PARTITIONS as LOG_PARTITIONS
from tests.test_fold import fold


def of(account: str, events: list[dict[str, Any]]) -> list[Entry]:
    partitions = folded(events)
    return statement([partitions[partition_of(account.encode(), PARTITIONS)]], account)


def lines(entry: Entry) -> list[tuple[str, str, str, str]]:
    return [
        (line.account, line.asset, plain(line.debit), plain(line.credit)) for line in entry.postings
    ]


def test_a_fill_debits_what_was_paid_and_credits_what_was_bought() -> None:
    [entry] = of("alice", [filled(price="3", quantity="2", fee="-0.5")])
    assert (entry.type, entry.topic, entry.offset, entry.is_reversal) == (
        "order_filled", "fills", 0, False,
    )  # fmt: skip
    assert lines(entry) == [
        ("alice", "USD", "6", "0"),
        ("@clearing", "USD", "0", "6"),
        ("@clearing", "BTC", "2", "0"),
        ("alice", "BTC", "0", "2"),
        ("@fees", "USD", "0.5", "0"),
        ("alice", "USD", "0", "0.5"),
    ]


@pytest.mark.parametrize("bust_first", [False, True])
def test_a_reversal_stands_at_the_later_record_and_undoes_the_fill(bust_first: bool) -> None:
    fill, bust = filled(occurred_at=EARLY), busted(occurred_at=LATE)
    posted, reversal = of("alice", [bust, fill] if bust_first else [fill, bust])
    assert not posted.is_reversal
    assert posted.type == "order_filled"
    assert posted.offset == int(bust_first)
    assert reversal.is_reversal
    assert reversal.type == "fill_busted"
    assert reversal.offset == 1
    assert reversal.occurred_at == (EARLY if bust_first else LATE)
    undone = [(account, asset, credit, debit) for account, asset, debit, credit in lines(posted)]
    assert sorted(undone) == sorted(lines(reversal))


def test_a_bust_alone_posts_nothing() -> None:
    assert of("alice", [busted()]) == []


def test_entries_come_by_exact_time_then_topic_then_offset() -> None:
    events = [
        filled(fill_id="late", occurred_at=LATE),
        filled(fill_id="second", occurred_at="2024-01-01T00:00:00.5Z"),
        filled(fill_id="first", occurred_at="2024-01-01T00:00:00.4999999999999Z"),
        filled(fill_id="third", occurred_at="2024-01-01T02:00:00.500+02:00"),
        deposited(occurred_at="2024-01-01T00:00:00.50Z"),
    ]
    order = [entry.ids.get("fill_id", "deposit") for entry in of("alice", events)]
    assert order == ["first", "deposit", "second", "third", "late"]


def test_the_running_balance_is_per_asset() -> None:
    withdrawn = event(
        "withdrawn", transfer_id="w", asset="USD", amount="30", fee="1", occurred_at=LATE
    )
    entries = of("alice", [withdrawn, deposited(), deposited(transfer_id="b", asset="BTC")])
    balances = [(line.asset, plain(balance)) for _, line, balance in running(entries, "alice")]
    assert balances == [("USD", "100"), ("BTC", "100"), ("USD", "70"), ("USD", "69")]


def test_what_json_says_of_an_entry() -> None:
    [entry] = of("alice", [event("adjusted", transfer_id="a", asset="X", amount="-1", reason="r")])
    assert entry.as_json() == {
        "occurred_at": EARLY,
        "type": "adjusted",
        "topic": "transfers",
        "partition": partition_of(b"alice", PARTITIONS),
        "offset": 0,
        "reversal": False,
        "account": "alice",
        "transfer_id": "a",
        "reason": "r",
        "postings": [
            {"account": "alice", "asset": "X", "debit": "1", "credit": "0"},
            {"account": "@adjustments", "asset": "X", "debit": "0", "credit": "1"},
        ],
    }


@given(placed_logs(partitions=LOG_PARTITIONS))
def test_statements_of_all_accounts_equal_the_references_and_add_up(log: list[Placed]) -> None:
    naive = reference.Reference(LOG_PARTITIONS)
    for record in log:
        naive.apply(*record)
    partitions: list[Partition] = [*fold(log).values()]
    sums = totals(row for partition in partitions for row in partition.balances())
    for account in {*SYSTEM_ACCOUNTS, *(account for account, _ in sums)}:
        found = statement(partitions, account)
        expected = naive.journal(account)
        with localcontext(reference.EXACT):
            assert [(e.occurred_at, e.topic, e.partition, e.offset) for e in found] == [
                (e.occurred_at, e.topic, e.partition, e.offset) for e in expected
            ]
            assert [_net(entry.postings) for entry in found] == [
                _net(entry.lines) for entry in expected
            ]
        last = {line.asset: balance for _, line, balance in running(found, account)}
        for (owner, asset), total in sums.items():
            if owner == account:
                assert last.get(asset, Decimal(0)) == total.balance


def _net(postings: Any) -> dict[tuple[str, str], tuple[Decimal, Decimal]]:
    """Return debits and credits of each account and asset, however they are split into lines."""
    net: dict[tuple[str, str], tuple[Decimal, Decimal]] = {}
    for line in postings:
        debit, credit = net.get((line.account, line.asset), (Decimal(0), Decimal(0)))
        net[line.account, line.asset] = debit + line.debit, credit + line.credit
    return net
