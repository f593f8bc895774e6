"""Properties of the fold, held against the naive reference ledger of `tests.reference`.

The reference shares no code with the ledger: not its decoder, not its rules, not its arithmetic.
"""

from __future__ import annotations

import itertools
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal, localcontext
from fractions import Fraction
from pathlib import Path

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ledger import _fold
from ledger.amounts import plain
from ledger.codec import DECODERS
from ledger.digests import GENESIS, chain, total_of
from ledger.errors import InvalidRecord, StateError
from ledger.events import INPUT_TOPICS, RULES_VERSION
from ledger.flags import all_cases
from ledger.intake import parse
from ledger.partitioner import partition_of
from ledger.projections.accounts import Texts
from ledger.projections.entries import META_KEY, order_key
from ledger.projections.orders import INLINE
from ledger.projections.partition import Origin, Partition, Verdict
from ledger.published import totals
from ledger.rocks import RocksStore
from ledger.snapshots import Snapshots
from ledger.statement import statement
from ledger.store import MemoryStore, Store
from tests import reference
from tests.strategies import (
    Placed,
    by_topic_partition,
    event_logs,
    interleavings,
    placed_logs,
)

PARTITIONS = 3
ORIGIN = Origin(cluster_id="test", topic_ids={}, partitions=PARTITIONS)


@dataclass(frozen=True)
class Record:
    offset: int
    key: bytes | None
    value: bytes | None


def open_partition(number: int, store: Store) -> Partition:
    return Partition(number, store, ORIGIN)


def fold(records: Iterable[Placed]) -> dict[int, Partition]:
    """Fold one record at a time and settle once, at the end."""
    partitions = {number: open_partition(number, MemoryStore()) for number in range(PARTITIONS)}
    for placed in records:
        apply(partitions[placed.partition], [placed])
    for partition in partitions.values():
        partition.freeze()
        partition.settle()
    return partitions


def apply(
    partition: Partition, records: Sequence[Placed], seen: list[Verdict] | None = None
) -> None:
    """Apply records of one topic."""
    partition.apply(
        records[0].topic,
        [Record(placed.offset, placed.key, placed.value) for placed in records],
        None,
        None if seen is None else lambda _topic, _record, _event, verdict: seen.append(verdict),
    )


def digests(partitions: dict[int, Partition]) -> list[str]:
    return [partitions[number].state_digest() for number in sorted(partitions)]


@given(placed_logs(partitions=PARTITIONS))
def test_state_verdicts_and_flags_equal_the_references(log: list[Placed]) -> None:
    naive = reference.Reference(PARTITIONS)
    expected = [naive.apply(*placed) for placed in log]
    partitions = {number: open_partition(number, MemoryStore()) for number in range(PARTITIONS)}
    seen: list[Verdict] = []
    for placed in log:
        apply(partitions[placed.partition], [placed], seen)
    assert seen == expected
    for number, partition in partitions.items():
        partition.freeze()
        partition.settle()
        assert partition.counts == naive.counts_of_partition(number)
        found = {
            account: {asset: tuple(map(Decimal, texts)) for asset, texts in rows.items()}
            for account, rows in partition.balances()
        }
        assert found == naive.balances_of_partition(number)
    cases = all_cases(partitions.values())
    flagged: dict[str, set[tuple[str, ...]]] = {flag: set() for flag in reference.FLAGS}
    for case in cases:
        flagged[case.flag].add(case.ids)
    assert flagged == naive.flags()
    assert sum(o.is_open() for p in partitions.values() for o in p.orders()) == naive.open_orders()


@given(placed_logs(partitions=PARTITIONS))
def test_orders_and_holds_equal_the_references(log: list[Placed]) -> None:
    naive = reference.Reference(PARTITIONS)
    for placed in log:
        naive.apply(*placed)
    for partition in fold(log).values():
        for order in partition.orders():
            expected = naive.orders(order.account)[order.order_id]
            assert order.hold() == expected.hold >= 0
            if order.placed is not None:
                assert order.is_open() == (expected.status == "open")
                assert order.filled == expected.filled
                assert max(Decimal(0), order.used) == expected.used
                assert order.remaining() == expected.remaining
                assert order.hold_asset() == expected.hold_asset


@given(placed_logs(partitions=PARTITIONS))
def test_a_statement_equals_the_references_journal(log: list[Placed]) -> None:
    naive = reference.Reference(PARTITIONS)
    for placed in log:
        naive.apply(*placed)
    partitions = fold(log)
    accounts = {account for p in partitions.values() for account, _ in p.balances()}
    for account in accounts:
        if account.startswith("@"):
            continue
        own = partitions[partition_of(account.encode(), PARTITIONS)]
        found = [
            (
                entry.occurred_at,
                entry.topic,
                entry.partition,
                entry.offset,
                Counter((p.account, p.asset, p.debit, p.credit) for p in entry.postings),
            )
            for entry in statement([own], account)
        ]
        expected = [
            (
                entry.occurred_at,
                entry.topic,
                entry.partition,
                entry.offset,
                Counter((x.account, x.asset, x.debit, x.credit) for x in entry.lines),
            )
            for entry in naive.journal(account)
        ]
        assert found == expected


@given(placed_logs(partitions=PARTITIONS))
def test_debits_equal_credits_per_asset(log: list[Placed]) -> None:
    partitions = fold(log)
    sums = totals(row for partition in partitions.values() for row in partition.balances())
    with localcontext(reference.EXACT):
        per_asset: dict[str, Decimal] = {}
        for (_, asset), total in sums.items():
            assert total.debits >= 0
            assert total.credits >= 0
            assert total.hold >= 0
            per_asset[asset] = per_asset.get(asset, Decimal(0)) + total.credits - total.debits
    assert not any(per_asset.values())


@given(st.data())
def test_state_does_not_depend_on_how_the_topics_interleave(data: st.DataObject) -> None:
    log = data.draw(placed_logs(partitions=PARTITIONS))
    other = data.draw(interleavings(by_topic_partition(log)))
    assert digests(fold(log)) == digests(fold(other))


@given(st.data())
def test_state_does_not_depend_on_chunks_flushes_crashes_or_the_store(data: st.DataObject) -> None:
    """Chunks of any size, flushes anywhere, and crashes that lose what was not settled."""
    log = data.draw(placed_logs(partitions=PARTITIONS))
    expected = fold(log)
    durable = data.draw(st.integers(0, 9), label="RocksDB if 0") == 0
    directory = Path(tempfile.mkdtemp())
    try:
        for number, expectation in expected.items():
            store: Store = RocksStore(directory / str(number)) if durable else MemoryStore()
            partition = open_partition(number, store)
            logs = {
                t: [p for p in log if (p.topic, p.partition) == (t, number)] for t in INPUT_TOPICS
            }
            while any(left(logs[t], partition, t) for t in INPUT_TOPICS):
                topic = data.draw(
                    st.sampled_from([t for t in INPUT_TOPICS if left(logs[t], partition, t)])
                )
                waiting = left(logs[topic], partition, topic)
                apply(partition, waiting[: data.draw(st.integers(1, len(waiting)))])
                match data.draw(st.sampled_from(("go on", "flush", "freeze", "crash"))):
                    case "flush":
                        partition.freeze()
                        partition.settle()
                    case "freeze":  # records arrive while a flush is being published
                        partition.freeze()
                        late = left(logs[topic], partition, topic)
                        if late:
                            apply(partition, late[:1])
                        partition.settle()
                    case "crash" if data.draw(st.integers(0, 2)) == 0:
                        partition = open_partition(number, store)
            partition.freeze()
            partition.settle()
            assert partition.state_digest() == expectation.state_digest()
            assert partition.log_digests == expectation.log_digests
            assert list(partition.balances()) == list(expectation.balances())
            again = open_partition(number, store)
            assert again.state_digest() == expectation.state_digest()
            if isinstance(store, RocksStore):
                store.close()
    finally:
        shutil.rmtree(directory)


def left(log: list[Placed], partition: Partition, topic: str) -> list[Placed]:
    return [placed for placed in log if placed.offset >= partition.watermark[topic]]


def many_deposits(first: int, count: int, accounts: int) -> list[Record]:
    deposit = (
        '{{"type":"deposited","version":1,"event_id":"{0}","account":"{1}","transfer_id":"{0}",'
        '"occurred_at":"2026-11-23T00:00:00Z","asset":"USD","amount":"1"}}'
    )
    names = [f"a{number * 7 % accounts}" for number in range(first, first + count)]
    return [
        Record(offset, name.encode(), deposit.format(f"D{offset}", name).encode())
        for offset, name in enumerate(names, first)
    ]


def test_many_accounts_are_looked_up_at_a_time_and_published_in_lists(tmp_path: Path) -> None:
    accounts = 1_300
    store = RocksStore(tmp_path)
    origin = Origin(cluster_id="test", topic_ids={}, partitions=1)
    for first in (0, accounts):
        partition = Partition(0, store, origin)  # which knows no account
        partition.apply("transfers", many_deposits(first, accounts, accounts))
        frozen = partition.freeze()
        lists = list(frozen.rows())
        rows = {row["key"].decode(): row["value"] for rows in lists for row in rows}
        assert len(lists) > 2
        assert sum(map(len, lists)) == len(rows) == len(frozen.changed_accounts())
        mark = msgspec.json.encode(partition.watermark)
        partition.settle()
        for account, entry in partition.balance_entries():
            assert rows[account] == _fold.row(account, mark, entry)
    found = dict(partition.balances())
    assert found["a0"] == {"USD": ("0", "2", "0")}
    assert all(found[f"a{number}"] == found["a0"] for number in range(accounts))
    assert len(found) == accounts + 1  # and the clearing account
    store.close()


_LARGEST = 2**63 - 1
# Around what 64 and 128 bits hold, with as many places as make a product of either.
_AMOUNTS = st.builds(
    lambda digits, places: plain(Decimal(f"{digits}e-{places}")),
    st.integers(0, 10**38) | st.integers(_LARGEST - 1, _LARGEST + 2) | st.integers(0, 1_000),
    st.integers(0, 38),
)
_TINY, _TINIER = plain(Decimal("1e-18")), plain(Decimal("1e-19"))


@given(st.lists(st.dictionaries(st.sampled_from("ABC"), st.tuples(*[_AMOUNTS] * 3))))
@example([{"A": (str(_LARGEST), _TINY, "0")}, {"A": (_TINY, str(_LARGEST), "0")}])
@example([{"A": (str(_LARGEST + 1), _TINY, "0")}, {"A": (str(_LARGEST), _TINIER, "0")}])
def test_what_accounts_are_owed_is_added_up_exactly(entries: list[Texts]) -> None:
    found = _fold.BalanceSums()
    expected: dict[str, Fraction] = {}
    for entry in entries:
        found.add(msgspec.json.encode(entry))
        for asset, (debits, credits_, _) in entry.items():
            balance = Fraction(credits_) - Fraction(debits)
            expected[asset] = expected.get(asset, Fraction(0)) + balance
    assert [(asset, Fraction(rest)) for asset, rest in found.sums()] == sorted(expected.items())


@given(placed_logs(partitions=PARTITIONS), st.randoms(use_true_random=False))
def test_a_log_published_twice_changes_nothing_but_counts(
    log: list[Placed], rng: random.Random
) -> None:
    once = fold(log)
    ends: Counter[tuple[str, int]] = Counter()
    for placed in log:
        ends[placed.topic, placed.partition] = placed.offset + 1
    repeated = [p._replace(offset=p.offset + ends[p.topic, p.partition]) for p in log]
    twice = fold([*log, *repeated])
    for number, partition in once.items():
        assert list(twice[number].balances()) == list(partition.balances())
        for topic in INPUT_TOPICS:
            before, after = partition.counts[topic], twice[number].counts[topic]
            assert after["applied"] == before["applied"]
            assert after["duplicate"] == 2 * before["duplicate"] + before["applied"]
            assert after["conflict"] == 2 * before["conflict"]
            assert after["invalid"] == 2 * before["invalid"]


@given(placed_logs(partitions=PARTITIONS))
def test_the_running_digest_is_that_of_the_stored_entries(log: list[Placed]) -> None:
    partitions = {}
    stores = {number: MemoryStore() for number in range(PARTITIONS)}
    for number, store in stores.items():
        partitions[number] = open_partition(number, store)
    for placed in log:
        apply(partitions[placed.partition], [placed])
        partitions[placed.partition].freeze()
        partitions[placed.partition].settle()
    for number, store in stores.items():
        entries = [(key, value) for key, value in store.scan() if key != META_KEY]
        assert f"{total_of(entries):x}" == partitions[number].header().total


@given(placed_logs(partitions=PARTITIONS), st.randoms(use_true_random=False))
def test_accounts_may_stay_in_memory_until_the_end(log: list[Placed], rng: random.Random) -> None:
    expected = fold(log)
    stores = {number: MemoryStore() for number in range(PARTITIONS)}
    partitions = {number: open_partition(number, store) for number, store in stores.items()}
    for placed in log:
        partition = partitions[placed.partition]
        apply(partition, [placed])
        if rng.random() < 0.5:
            partition.freeze(whole=rng.random() < 0.3)
            partition.settle()
    for number, partition in partitions.items():
        partition.freeze()
        partition.settle()
        assert partition.state_digest() == expected[number].state_digest()
        again = open_partition(number, stores[number])
        assert again.state_digest() == expected[number].state_digest()
        assert list(again.balances()) == list(expected[number].balances())
        entries = [(key, value) for key, value in stores[number].scan() if key != META_KEY]
        assert f"{total_of(entries):x}" == again.header().total


@given(placed_logs(partitions=PARTITIONS))
def test_a_snapshot_restores_the_same_state(log: list[Placed]) -> None:
    half = len(log) // 2
    first = fold(log[:half])
    with tempfile.TemporaryDirectory() as name:
        snapshots = Snapshots(Path(name), "")
        for number, partition in first.items():
            store = partition._store
            file = snapshots.write(partition.header(), store.scan())
            _, restored = snapshots.read(file, ORIGIN)
            again = open_partition(number, restored)
            assert again.state_digest() == partition.state_digest()
            rest = [p for p in log[half:] if p.partition == number]
            for placed in rest:
                apply(again, [placed])
            again.freeze()
            again.settle()
            assert again.state_digest() == fold(log)[number].state_digest()


@given(event_logs())
def test_what_the_door_accepts_is_what_the_stream_accepts(log: list[Placed]) -> None:
    for sent in log:
        if sent.value is None:
            continue
        try:
            topic, event = parse(sent.value)
        except InvalidRecord:
            for decode in DECODERS.values():
                with pytest.raises(InvalidRecord):
                    decode(sent.value)
        else:
            assert DECODERS[topic](sent.value) == event


def test_the_log_digest_is_the_contracts_chain() -> None:
    """h' = SHA-256(h, offset u64, key length i32, key, value length i32, value), -1 for null."""
    import hashlib

    record = b"\x00" * 7 + b"\x05" + b"\x00\x00\x00\x03key" + b"\xff\xff\xff\xff"
    assert chain(GENESIS, 5, b"key", None) == hashlib.sha256(bytes(32) + record).digest()


def lines(count: int, make: Callable[[int], bytes]) -> list[Record]:
    return [Record(offset, b"alice", make(offset)) for offset in range(count)]


def event(kind: str, **fields: object) -> bytes:
    import json

    common = {"type": kind, "version": 1, "event_id": "e", "account": "alice"}
    return json.dumps({**common, "occurred_at": "2026-01-01T00:00:00Z", **fields}).encode()


def fill(number: int, quantity: str = "1") -> bytes:
    return event(
        "order_filled",
        fill_id=f"f{number}",
        trade_id=f"t{number}",
        order_id="o",
        instrument="BTC-USD",
        side="buy",
        price="2",
        quantity=quantity,
        fee="0",
        fee_asset="USD",
        liquidity="taker",
    )


def bust(number: int) -> bytes:
    return event(
        "fill_busted",
        fill_id=f"f{number}",
        trade_id=f"t{number}",
        order_id="o",
        instrument="BTC-USD",
        reason="error",
    )


@pytest.mark.parametrize("settle_every", [1, 7, 1000])
@pytest.mark.parametrize("placed_first", [True, False])
def test_an_order_with_more_fills_than_it_holds_itself(
    settle_every: int, placed_first: bool
) -> None:
    """3 x INLINE fills, every second one busted, each published twice; the order late or early."""
    number = 3 * INLINE
    origin = Origin(partitions=1)
    partition = Partition(0, MemoryStore(), origin)
    placed = event(
        "order_placed",
        order_id="o",
        instrument="BTC-USD",
        side="buy",
        order_type="limit",
        quantity="1000",
        limit_price="2",
    )
    fills = [fill(n) for n in range(number)] + [bust(n) for n in range(0, number, 2)]
    fills += fills + [fill(n, "9") for n in range(number)]
    if placed_first:
        partition.apply("orders", [Record(0, b"alice", placed)])
    for offset, value in enumerate(fills):
        partition.apply("fills", [Record(offset, b"alice", value)])
        if offset % settle_every == 0:
            partition.freeze()
            partition.settle()
    if not placed_first:
        partition.apply("orders", [Record(0, b"alice", placed)])
    partition.freeze()
    partition.settle()
    assert partition.counts["fills"] == {
        "applied": number + number // 2,
        "duplicate": number + number // 2,
        "conflict": number,
        "invalid": 0,
    }
    (order,) = partition.orders()
    assert order.filled == number // 2
    assert order.more_fills == number - INLINE
    assert order.hold() == (1000 - number // 2) * 2
    assert len(list(partition.executions(order))) == number
    assert dict(partition.balances())["alice"]["USD"][2] == str((1000 - number // 2) * 2)


def test_an_order_with_more_amendments_than_it_holds_itself() -> None:
    number = 3 * INLINE
    partition = Partition(0, MemoryStore(), Origin(partitions=1))
    order = list(range(1, number + 1))
    random.Random(5).shuffle(order)
    amendments = [
        event("order_amended", order_id="o", revision=revision, quantity=str(revision))
        for revision in order
    ]
    for offset, value in enumerate([*amendments, *amendments]):
        partition.apply("orders", [Record(offset, b"alice", value)])
        if offset % 5 == 0:
            partition.freeze()
            partition.settle()
    partition.freeze()
    partition.settle()
    assert partition.counts["orders"]["applied"] == number
    assert partition.counts["orders"]["duplicate"] == number
    (found,) = partition.orders()
    assert found.term_quantity() == number


@pytest.mark.parametrize(
    "change",
    [
        {"rules_version": RULES_VERSION + 1},
        {"partition": 1},
        {"origin": Origin(cluster_id="another")},
    ],
)
def test_state_of_other_rules_or_topics_is_refused(change: dict[str, object]) -> None:
    import msgspec

    partition = open_partition(0, MemoryStore())
    header = msgspec.structs.replace(partition.header(), **change)
    with pytest.raises(StateError, match="belongs to another"):
        open_partition(0, MemoryStore({META_KEY: msgspec.json.encode(header)}))


def test_a_rebate_and_a_correction_of_38_digits_are_not_rounded() -> None:
    """Found by the properties: the unary minus rounded to the 28 digits of the thread's context."""
    text = "99999999999999999999.999999999999999999"
    rebate = fill(0).replace(b'"fee": "0"', f'"fee": "-{text}"'.encode())
    partition = Partition(0, MemoryStore(), Origin(partitions=1))
    partition.apply("fills", [Record(0, b"alice", rebate)])
    correction = event("adjusted", transfer_id="x", asset="A", amount=f"-{text}", reason="r")
    partition.apply("transfers", [Record(0, b"alice", correction)])
    partition.freeze()
    partition.settle()
    balances = dict(partition.balances())
    assert balances["@fees"]["USD"][0] == text
    assert balances["alice"]["A"][0] == text


def test_huge_and_tiny_amounts_are_exact() -> None:
    huge, tiny = "99999999999999999999.999999999999999999", "0.000000000000000001"
    partition = Partition(0, MemoryStore(), Origin(partitions=1))
    values = [
        event(
            "order_filled",
            fill_id=str(n),
            trade_id=str(n),
            order_id="o",
            instrument="A-B",
            side="buy",
            price=price,
            quantity=quantity,
            fee=f"-{tiny}",
            fee_asset="B",
            liquidity="maker",
        )
        for n, (price, quantity) in enumerate(itertools.product((huge, tiny), repeat=2))
    ]
    partition.apply("fills", [Record(n, b"alice", value) for n, value in enumerate(values)])
    partition.freeze()
    partition.settle()
    with localcontext(reference.EXACT):
        debits, credits_, _ = map(Decimal, dict(partition.balances())["alice"]["B"])
        assert debits == (Decimal(huge) + Decimal(tiny)) ** 2
        assert credits_ == 4 * Decimal(tiny)


@given(st.lists(st.from_regex(r"A{0,2}(BCDEFGHI)?J{0,9}", fullmatch=True), min_size=1))
def test_assets_whose_names_begin_alike_are_kept_apart(names: list[str]) -> None:
    partition = Partition(0, MemoryStore(), Origin(partitions=1))
    assets = [f"X{name}" for name in names]
    values = [
        event("deposited", transfer_id=str(n), asset=asset, amount="1")
        for n, asset in enumerate(assets)
    ]
    partition.apply("transfers", [Record(n, b"alice", value) for n, value in enumerate(values)])
    partition.freeze()
    partition.settle()
    credits_ = {
        asset: int(texts[1]) for asset, texts in dict(partition.balances())["alice"].items()
    }
    assert credits_ == Counter(assets)


def test_whatever_a_text_has_where_is_stored_as_it_was_sent() -> None:
    """Each kind of byte at each place of texts of some lengths: they are looked at in words."""
    odd = ('"', "\\", "\n", "\x00", "\x1f", " ", "~", "\x7f", "é", "𝄞")
    reasons = [
        "r" * before + character + "r" * after
        for character in odd
        for before in range(20)
        for after in range(20)
    ]
    partition = Partition(0, store := MemoryStore(), Origin(partitions=1))
    values = [
        event("order_cancelled", order_id=f"{number:04}", reason=reason)
        for number, reason in enumerate(reasons)
    ]
    partition.apply("orders", [Record(n, b"alice", value) for n, value in enumerate(values)])
    partition.freeze()
    partition.settle()
    stored = {order.order_id: order for order in partition.orders("alice")}
    for number, reason in enumerate(reasons):
        closed = stored[f"{number:04}"].cancelled
        assert closed is not None
        assert closed.reason == reason
        entry = store.get(order_key("alice", f"{number:04}").encode())
        assert entry is not None
        assert msgspec.json.encode(reason) in entry


@pytest.mark.parametrize(
    "time", ["0000-01-01T00:00:00Z", "0001-01-01T00:00:00+00:01", "9999-12-28T23:59:59-00:01"]
)
def test_a_time_outside_the_calendar_is_refused_by_the_stream_too(time: str) -> None:
    """Found by the properties: the stream's quick check let year 0 pass."""
    value = event("order_cancelled", order_id="o", reason="user", occurred_at=time)
    if time.startswith("9999"):
        assert DECODERS["orders"](value).occurred_at == time
    else:
        with pytest.raises(InvalidRecord, match="no such time"):
            DECODERS["orders"](value)
