"""The venue's own export becomes events, and the ledger's fold agrees with what the venue says.

The oracle is the export's `Start Position`: the position before each fill. It is printed to 10
significant digits, rounded half up, so the ledger's exact balance must give that very text when
rounded so: no further tolerance. All but one of the 1,993 links hold (see `BROKEN_LINK`).
"""

import csv
import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Context, Decimal
from itertools import islice
from pathlib import Path

import pytest

from ledger.amounts import plain
from ledger.codec import encode
from ledger.errors import InputError
from ledger.events import FILLS, TOPIC_OF_TYPE, TRANSFERS, Adjusted, AnyEvent, OrderFilled
from ledger.intake import parse
from ledger.projections.partition import Origin, Partition
from ledger.store import MemoryStore
from ledger.venues import VENUES
from ledger.venues.hyperliquid import COLUMNS, events

DATA = Path(__file__).parents[1] / "data" / "hyperliquid"
EXPORT = DATA / "fills.csv"
AS_PRINTED = Context(prec=10, rounding=ROUND_HALF_UP)

BROKEN_LINK = 1100
"""The line of 0x72c6…'s `@107` before which the spot balance went to 0 without a fill."""
VANISHED = Decimal("195.98118409")
"""What the ledger held before that line, and the wallet no longer did."""

WALLET = "0x72c6a4624e1dffa724e6d00d64ceae698af892a0"
GOOD = {
    "Account": WALLET,
    "Coin": "HYPE",
    "Execution Price": "25.5",
    "Size Tokens": "2",
    "Side": "BUY",
    "Timestamp IST": "04-12-2024 5:30",
    "Start Position": "0",
    "Order ID": "52017706630",
    "Crossed": "TRUE",
    "Fee": "0.0056",
}


@dataclass(frozen=True)
class Record:
    offset: int
    key: bytes | None
    value: bytes | None


def read(path: Path) -> list[AnyEvent]:
    with path.open("rb") as lines:
        return list(events(path, lines))


def export_of(*rows: dict[str, str]) -> list[bytes]:
    lines = [",".join(COLUMNS), *(",".join((GOOD | row).values()) for row in rows)]
    return [f"{line}\r\n".encode() for line in lines]


def convert(*rows: dict[str, str]) -> list[AnyEvent]:
    return list(events(Path("my.csv"), export_of(*rows)))


def fill_of(row: dict[str, str]) -> OrderFilled:
    *_, fill = convert(row)
    assert isinstance(fill, OrderFilled)
    return fill


def problem(lines: list[bytes]) -> str:
    with pytest.raises(InputError) as caught:
        list(events(Path("my.csv"), lines))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def imported() -> list[AnyEvent]:
    return read(EXPORT)


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    with EXPORT.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


class Fold:
    """The real fold, one record at a time."""

    def __init__(self) -> None:
        self.partition = Partition(0, MemoryStore(), Origin(partitions=1))
        self._totals: dict[str, dict[str, tuple[str, str, str]]] = {}

    def apply(self, event: AnyEvent) -> None:
        topic = TOPIC_OF_TYPE[type(event)]
        offset = self.partition.watermark[topic]
        self.partition.apply(topic, [Record(offset, event.account.encode(), encode(event))])
        self._totals.update(self.partition.freeze().accounts)
        self.partition.settle()

    def balance(self, account: str, asset: str) -> Decimal:
        debits, credits, _ = self._totals.get(account, {}).get(asset, ("0", "0", "0"))
        return Decimal(credits) - Decimal(debits)

    def assets(self) -> set[str]:
        return {asset for totals in self._totals.values() for asset in totals}

    def accounts(self) -> Iterator[str]:
        return iter(self._totals)


def test_every_row_of_the_shipped_export_is_one_valid_fill(
    imported: list[AnyEvent], rows: list[dict[str, str]]
) -> None:
    for event in imported:
        topic, parsed = parse(encode(event))
        assert (topic, parsed) == (TOPIC_OF_TYPE[type(event)], event)
    fills = [event for event in imported if isinstance(event, OrderFilled)]
    assert len(fills) == len(rows) == 1993
    assert len({fill.instrument for fill in fills}) == 28
    for fill, row in zip(fills, rows, strict=True):
        assert fill.account == row["Account"]
        assert fill.instrument == row["Coin"] + "-USDC"
        assert (fill.price, fill.quantity) == (row["Execution Price"], row["Size Tokens"])
        assert (fill.side.upper(), fill.order_id) == (row["Side"], row["Order ID"])
        assert fill.fee == row["Fee"]
        assert fill.liquidity == {"TRUE": "taker", "FALSE": "maker"}[row["Crossed"]]
        paid_in_base = row["Direction"] == "Buy"  # what the venue calls a spot buy
        assert fill.fee_asset == (row["Coin"] if paid_in_base else "USDC")


def test_ids_are_unique_and_hide_the_account_from_public_rooms(imported: list[AnyEvent]) -> None:
    fills = [event for event in imported if isinstance(event, OrderFilled)]
    assert len({event.event_id for event in imported}) == len(imported)
    assert len({(fill.account, fill.fill_id) for fill in fills}) == len(fills)
    assert len({fill.trade_id for fill in fills}) == len(fills)
    assert not any(fill.account in fill.trade_id + fill.fill_id for fill in fills)


def test_importing_twice_gives_the_same_events(imported: list[AnyEvent]) -> None:
    assert read(EXPORT) == imported
    fold = Fold()
    for event in (*imported, *imported):
        fold.apply(event)
    assert {topic: fold.partition.counts[topic] for topic in (FILLS, TRANSFERS)} == {
        FILLS: {"applied": 1993, "duplicate": 1993, "conflict": 0, "invalid": 0},
        TRANSFERS: {"applied": 1, "duplicate": 1, "conflict": 0, "invalid": 0},
    }


def test_the_balance_before_each_fill_is_the_start_position_of_the_venue(
    imported: list[AnyEvent], rows: list[dict[str, str]]
) -> None:
    fold = Fold()
    lines = enumerate(rows, start=2)
    vanished: dict[tuple[str, str], Decimal] = defaultdict(Decimal)
    for event in imported:
        if isinstance(event, OrderFilled):
            line, row = next(lines)
            account, coin = key = row["Account"], row["Coin"]
            held = fold.balance(account, coin)
            if line == BROKEN_LINK:
                assert (row["Start Position"], held) == ("0", VANISHED)
                vanished[key] = held
            printed = plain(AS_PRINTED.plus(held - vanished[key]))
            assert printed == row["Start Position"], f"line {line}: the ledger holds {held}"
        fold.apply(event)
    assert next(lines, None) is None


def test_the_books_of_the_import_balance(imported: list[AnyEvent]) -> None:
    fold = Fold()
    fees: dict[str, Decimal] = defaultdict(Decimal)
    for event in imported:
        fold.apply(event)
        if isinstance(event, OrderFilled):
            fees[event.fee_asset] += Decimal(event.fee)
    for asset in fold.assets():
        assert sum(fold.balance(account, asset) for account in fold.accounts()) == 0
        assert fold.balance("@fees", asset) == fees.get(asset, 0)
    assert set(fees) == {"USDC", "@107"}


def test_trades_per_account_and_indian_day_are_those_another_person_counted(
    imported: list[AnyEvent],
) -> None:
    counted = Counter(
        (event.account, event.occurred_at[:10])
        for event in imported
        if isinstance(event, OrderFilled)
    )
    with (DATA / "expected_daily_per_account.csv").open(newline="", encoding="utf-8") as file:
        expected = {
            (row["account"], row["date"]): int(row["trade_count"]) for row in csv.DictReader(file)
        }
    assert counted == expected
    assert len(expected) == 81


def test_an_opening_position_comes_before_the_first_fill_of_its_coin(
    imported: list[AnyEvent],
) -> None:
    [(at, opening)] = [(n, e) for n, e in enumerate(imported) if isinstance(e, Adjusted)]
    following = imported[at + 1]
    assert isinstance(following, OrderFilled)
    assert (opening.account, opening.asset, opening.amount) == (WALLET, "@107", "171.22")
    assert opening.reason == "opening position"
    assert opening.occurred_at == following.occurred_at
    earlier = [e for e in imported[:at] if isinstance(e, OrderFilled) and e.account == WALLET]
    assert "@107-USDC" not in {fill.instrument for fill in earlier}


def test_a_short_opens_below_zero_and_each_coin_opens_once() -> None:
    short, _, second, other, last = convert(
        {"Start Position": "-3.5"},
        {"Start Position": "-1.5"},
        {"Start Position": "7", "Coin": "SOL"},
    )
    assert isinstance(short, Adjusted)
    assert isinstance(other, Adjusted)
    assert (short.asset, short.amount, other.asset, other.amount) == ("HYPE", "-3.5", "SOL", "7")
    assert isinstance(second, OrderFilled)
    assert isinstance(last, OrderFilled)


def test_an_opening_stated_again_by_a_later_file_is_refused_not_added() -> None:
    fold = Fold()
    for event in (*convert({"Start Position": "1"}), *convert({"Start Position": "3"})):
        fold.apply(event)
    assert fold.partition.counts[TRANSFERS]["conflict"] == 1
    assert fold.balance(WALLET, "HYPE") == 5


def test_a_time_is_the_indian_minute() -> None:
    assert fill_of({}).occurred_at == "2024-12-04T05:30:00+05:30"


@pytest.mark.parametrize(
    ("given", "fee"),
    [
        ("1E-05", "0.00001"),
        ("-2.5e-7", "-0.00000025"),
        ("1.2345E+2", "123.45"),
        ("+.5", "0.5"),
        ("007", "7"),
        (" 0.10 ", "0.10"),
        ("-0.25", "-0.25"),
        ("0.1000000000000000055", None),
    ],
)
def test_a_fee_is_taken_exactly_or_not_at_all(given: str, fee: str | None) -> None:
    if fee is None:
        assert "Fee must be a number of at most 20" in problem(export_of({"Fee": given}))
    else:
        assert fill_of({"Fee": given}).fee == fee


def test_a_spot_buy_pays_its_fee_in_base_and_a_spot_sell_in_quote() -> None:
    bought = fill_of({"Coin": "PURR/USDC"})
    assert (bought.instrument, bought.fee_asset) == ("@PURR-USDC", "@PURR")
    assert fill_of({"Coin": "@107"}).fee_asset == "@107"
    assert fill_of({"Coin": "@107", "Side": "SELL"}).fee_asset == "USDC"
    assert fill_of({"Coin": "kPEPE"}).fee_asset == "USDC"


def test_the_way_a_row_is_written_does_not_change_its_event() -> None:
    plain_lines = [line.replace(b"\r\n", b"\n") for line in export_of({})]
    spaced = {name: f" {value} " for name, value in GOOD.items()}
    expected = convert({})
    assert list(events(Path("my.csv"), plain_lines)) == expected
    marked = [b"\xef\xbb\xbf" + plain_lines[0], b"\n", *plain_lines[1:], b"\n"]
    assert list(events(Path("my.csv"), marked)) == expected
    assert convert(spaced) == expected
    assert convert({"Account": WALLET.upper().replace("X", "x"), "Crossed": "True"}) == expected
    assert convert({"Start Position": "-0"}) == expected
    assert convert({"Start Position": "0.00"}) == expected


def test_columns_may_come_in_another_order_and_with_others() -> None:
    row = {"Closed PnL": "1", **dict(reversed(GOOD.items())), "Trade ID": "8.95E+14"}
    lines = [f"{','.join(line)}\n".encode() for line in (row, row.values())]
    assert list(events(Path("my.csv"), lines)) == convert({})


def test_events_come_while_the_file_is_being_read() -> None:
    lines = iter([*export_of({}), b"not,a,fill\n"])
    assert len(list(islice(events(Path("my.csv"), lines), 1))) == 1


def test_a_row_repeated_later_is_a_duplicate() -> None:
    late = {"Start Position": "2", "Timestamp IST": "05-12-2024 0:00"}
    first, _, again = convert({}, late, {})
    assert first == again


def test_two_fills_that_the_export_cannot_tell_apart_are_refused() -> None:
    message = problem(export_of({}, {"Size Tokens": "3"}))
    assert message.startswith("my.csv:3: has the Coin, Order ID and Start Position of line 2")


def test_a_file_sorted_newest_first_is_refused() -> None:
    older = {"Start Position": "2", "Timestamp IST": "03-12-2024 23:59"}
    message = problem(export_of({}, older))
    assert message.startswith("my.csv:3: this fill of HYPE")
    assert "sort the export by time" in message


@pytest.mark.parametrize(
    ("column", "value", "expected"),
    [
        ("Account", "me", "a wallet"),
        ("Coin", "xyz:TSLA", "a perpetual such as HYPE or a spot pair such as @107"),
        ("Coin", "", "a perpetual such as HYPE"),
        ("Coin", "@", "a perpetual such as HYPE"),
        ("Execution Price", "abc", "a decimal number"),
        ("Execution Price", "NaN", "a decimal number"),
        ("Execution Price", "1E+999999999", "a decimal number"),
        ("Execution Price", "0", "greater than 0"),
        ("Size Tokens", "-1", "greater than 0"),
        ("Size Tokens", "1.23457E+11", "all its digits"),
        ("Size Tokens", "", "a decimal number"),
        ("Size Tokens", "123456789012345678901", "at most 20 integer"),
        ("Side", "HOLD", "BUY or SELL"),
        ("Timestamp IST", "2024-12-04 05:30", "a time such as 02-12-2024 22:50"),
        ("Timestamp IST", "12-31-2024 05:30", "a time such as"),
        ("Timestamp IST", "31-12-2024 24:00", "a time such as"),
        ("Start Position", "?", "a decimal number"),
        ("Order ID", "5.20E+10", "a whole number with all its digits"),
        ("Crossed", "maybe", "TRUE or FALSE"),
        ("Fee", "٣", "a decimal number"),
    ],
)
def test_a_bad_value_is_named_with_its_line(column: str, value: str, expected: str) -> None:
    other = {"Order ID": "1"}
    message = problem(export_of(other, {column: value}))
    assert message.startswith(f"my.csv:3: {column} must be ")
    assert expected in message
    assert f"(found {value!r})" in message


@pytest.mark.parametrize("column", COLUMNS)
def test_a_missing_column_is_named(column: str) -> None:
    lines = [",".join(name for name in COLUMNS if name != column).encode()]
    assert problem(lines).startswith(f"my.csv:1: the column '{column}' is missing")


def test_a_column_that_is_there_twice_is_refused() -> None:
    lines = [",".join([*COLUMNS, "Fee"]).encode()]
    assert problem(lines).startswith("my.csv:1: the column 'Fee' is there more than once")


@pytest.mark.parametrize("lines", [[], [b"\n"], [b"\xef\xbb\xbf"]])
def test_an_empty_file_is_refused(lines: list[bytes]) -> None:
    assert problem(lines).startswith("my.csv:1: the file is empty")


def test_a_file_of_a_header_alone_has_no_events() -> None:
    assert list(events(Path("my.csv"), export_of())) == []


def test_a_file_in_another_encoding_is_refused_at_its_line() -> None:
    assert problem([",".join(COLUMNS).encode("utf-16")]).startswith("my.csv:1: is not UTF-8")
    latin = ",".join((GOOD | {"Coin": "CAFÉ"}).values()).encode("latin-1")
    assert problem([*export_of({}), latin]).startswith("my.csv:3: is not UTF-8")


def test_a_row_cut_short_is_refused() -> None:
    message = problem([*export_of({}), b"0x72c6,HYPE\r\n"])
    assert message.startswith("my.csv:3: has 2 fields where the header has 10")


@pytest.mark.parametrize("tail", [b'"0x72', b"a\rb\n", b'"a"b\n'])
def test_what_is_not_csv_is_refused(tail: bytes) -> None:
    assert problem([*export_of({}), tail]).startswith("my.csv:3: is not CSV")


def test_an_event_as_json_is_what_the_docs_say() -> None:
    assert json.loads(encode(fill_of({}))) == {
        "type": "order_filled",
        "version": 1,
        "event_id": "hyperliquid:fill:" + fill_of({}).trade_id.removeprefix("derived:"),
        "account": WALLET,
        "occurred_at": "2024-12-04T05:30:00+05:30",
        "fill_id": "HYPE:52017706630:0",
        "trade_id": fill_of({}).trade_id,
        "order_id": "52017706630",
        "instrument": "HYPE-USDC",
        "side": "buy",
        "price": "25.5",
        "quantity": "2",
        "fee": "0.0056",
        "fee_asset": "USDC",
        "liquidity": "taker",
    }


def test_the_venue_is_registered_under_its_name() -> None:
    assert VENUES["hyperliquid"] is events
