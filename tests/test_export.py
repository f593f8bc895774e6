"""Tables in files, as several programs read them; and pictures of a balance."""

from __future__ import annotations

import csv
import hashlib
import json
import resource
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal, localcontext
from pathlib import Path
from typing import Any, get_args

import duckdb
import polars
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger.errors import InputError
from ledger.journal import SYSTEM_ACCOUNTS
from ledger.objects import StorageError
from ledger.order_rows import order_row
from ledger.partitioner import partition_of
from ledger.published import totals
from ledger.statement import Entry, Posting, statement
from replay import export as exporting
from replay.export import (
    BALANCES,
    JOURNAL,
    MANIFEST,
    ORDERS,
    Form,
    Row,
    balance_rows,
    export,
    journal_rows,
    order_rows,
    require_new,
    schemas,
)
from replay.plot import PANELS, balance_lines, format_of, plot
from replay.results import Shown
from tests import reference
from tests.strategies import Placed, by_topic_partition, interleavings, placed_logs
from tests.test_flags import EARLY, LATE, PARTITIONS, busted, deposited, event, filled, folded
from tests.test_flags import placed as placed_event
from tests.test_fold import PARTITIONS as LOG_PARTITIONS
from tests.test_fold import fold

FORMS: list[Form] = list(get_args(Form))
Rows = list[dict[str, Any]]


def read_pyarrow(path: Path) -> Rows:
    found: Rows = pq.read_table(path).to_pylist()
    return found


def read_duckdb(path: Path) -> Rows:
    with duckdb.connect() as connection:
        found = connection.execute("select * from read_parquet(?)", [str(path)])
        names = [column[0] for column in found.description]
        return [dict(zip(names, row, strict=True)) for row in found.fetchall()]


def read_polars(path: Path) -> Rows:
    return polars.read_parquet(path).to_dicts()


def read_csv(path: Path) -> Rows:
    schema = schemas()[path.stem]
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, strict=True))
    return [{name: _value(schema.field(name), text) for name, text in row.items()} for row in rows]


def _value(field: Any, text: str) -> Any:
    if str(field.type).startswith("list"):
        return text.split(",") if text else []
    if str(field.type).startswith("int"):
        return int(text)
    if str(field.type) == "bool":
        return {"true": True, "false": False}[text]
    return text or None


def read_jsonl(path: Path) -> Rows:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


READERS: list[tuple[Form, Callable[[Path], Rows]]] = [
    ("parquet", read_pyarrow),
    ("parquet", read_duckdb),
    ("parquet", read_polars),
    ("csv", read_csv),
    ("jsonl", read_jsonl),
]


def named(table: str, rows: Iterable[Row]) -> Rows:
    return [dict(zip(schemas()[table].names, row, strict=True)) for row in rows]


def tables_of(partitions: Iterable[Any]) -> dict[str, list[Row]]:
    partitions = list(partitions)
    sums = totals(row for partition in partitions for row in partition.balances())
    return {
        BALANCES: list(balance_rows((*key, total) for key, total in sums.items())),
        ORDERS: list(order_rows(partitions)),
        JOURNAL: list(journal_rows(partitions)),
    }


# -- what is in the tables


def test_what_the_tables_say_of_a_fill_that_was_busted() -> None:
    tables = tables_of(
        folded(
            [
                deposited(amount="100.50", occurred_at=EARLY),
                placed_event(),
                filled(price="10.0", quantity="1.50", fee="0.5"),
                busted(reason="typo, sorry", occurred_at=LATE),
                event("adjusted", transfer_id='"x"', asset="USD", amount="-1", reason="r\nr"),
            ]
        )
    )
    number = partition_of(b"alice", PARTITIONS)
    assert named(BALANCES, tables[BALANCES])[-1] == {
        "account": "alice", "asset": "USD", "balance": "99.5", "hold": "20", "available": "79.5",
        "debits": "16.5", "credits": "116",
    }  # fmt: skip
    assert named(ORDERS, tables[ORDERS]) == [
        {
            "account": "alice", "order_id": "o", "instrument": "BTC-USD", "side": "buy",
            "order_type": "limit", "status": "open", "quantity": "2", "limit_price": "10",
            "reserve": None, "filled": "0", "remaining": "2", "used": "0", "hold": "20",
            "hold_asset": "USD", "placed_at": EARLY, "closed_at": None, "reason": None, "flags": [],
        }
    ]  # fmt: skip
    fill = {
        "occurred_at": EARLY, "type": "order_filled", "topic": "fills", "partition": number,
        "offset": 0, "reversal": False, "account": "alice", "order_id": "o", "fill_id": "f",
        "trade_id": "t", "transfer_id": None, "instrument": "BTC-USD", "side": "buy",
        "price": "10", "quantity": "1.5", "reason": None,
    }  # fmt: skip
    bust = fill | {
        "occurred_at": LATE, "type": "fill_busted", "offset": 1, "reversal": True,
        "reason": "typo, sorry",
    }  # fmt: skip
    nothing = dict.fromkeys(fill)
    transfer = nothing | {
        "occurred_at": EARLY, "type": "adjusted", "topic": "transfers", "partition": number,
        "offset": 1, "reversal": False, "account": "alice", "transfer_id": '"x"', "reason": "r\nr",
    }  # fmt: skip
    deposit = transfer | {
        "type": "deposited", "offset": 0, "transfer_id": "d", "reason": None,
    }  # fmt: skip
    lines = [
        (fill, 1, "alice", "USD", "15", "0"),
        (fill, 2, "@clearing", "USD", "0", "15"),
        (fill, 3, "@clearing", "BTC", "1.5", "0"),
        (fill, 4, "alice", "BTC", "0", "1.5"),
        (fill, 5, "alice", "USD", "0.5", "0"),
        (fill, 6, "@fees", "USD", "0", "0.5"),
        (bust, 1, "@clearing", "USD", "15", "0"),
        (bust, 2, "alice", "USD", "0", "15"),
        (bust, 3, "alice", "BTC", "1.5", "0"),
        (bust, 4, "@clearing", "BTC", "0", "1.5"),
        (bust, 5, "@fees", "USD", "0.5", "0"),
        (bust, 6, "alice", "USD", "0", "0.5"),
        (transfer, 1, "alice", "USD", "1", "0"),
        (transfer, 2, "@adjustments", "USD", "0", "1"),
        (deposit, 1, "@external", "USD", "100.5", "0"),
        (deposit, 2, "alice", "USD", "0", "100.5"),
    ]
    names = ("posting", "posting_account", "asset", "debit", "credit")
    assert named(JOURNAL, tables[JOURNAL]) == [
        said | dict(zip(names, line, strict=True)) for said, *line in lines
    ]


@given(placed_logs(partitions=LOG_PARTITIONS))
def test_the_tables_equal_the_references(log: list[Placed]) -> None:
    naive = reference.Reference(LOG_PARTITIONS)
    for record in log:
        naive.apply(*record)
    partitions = fold(log)
    tables = {name: named(name, rows) for name, rows in tables_of(partitions.values()).items()}
    with localcontext(reference.EXACT):
        assert [
            (row["account"], row["asset"], *map(Decimal, (row["debits"], row["credits"])))
            for row in tables[BALANCES]
        ] == [
            (account, asset, debits, credits_)
            for account, assets in sorted(naive.balances().items())
            for asset, (debits, credits_, _) in sorted(assets.items())
        ]
        for row in tables[BALANCES]:
            assert Decimal(row["balance"]) == Decimal(row["credits"]) - Decimal(row["debits"])
            assert Decimal(row["available"]) == Decimal(row["balance"]) - Decimal(row["hold"])
        for row in tables[ORDERS]:
            order = naive.orders(row["account"])[row["order_id"]]
            assert Decimal(row["hold"]) == order.hold
            assert (row["status"] == "open") == (order.status == "open")
        customers = {row["account"] for row in tables[JOURNAL]}
        assert Counter(
            (
                *(row[name] for name in ("occurred_at", "topic", "partition", "offset")),
                *(row[name] for name in ("account", "posting_account", "asset")),
                *(Decimal(row[name]) for name in ("debit", "credit")),
            )
            for row in tables[JOURNAL]
        ) == Counter(
            (entry.occurred_at, entry.topic, entry.partition, entry.offset, customer, *line)
            for customer in {*naive.balances(), *customers} - {*SYSTEM_ACCOUNTS}
            for entry in naive.journal(customer)
            for line in entry.lines
        )


def test_the_columns_of_orders_are_those_of_the_command() -> None:
    [partition] = [one for one in folded([placed_event()]) if any(one.orders())]
    [order] = partition.orders()
    assert schemas()[ORDERS].names == ["account", *order_row(partition, order)]


@given(placed_logs(partitions=LOG_PARTITIONS), st.data())
def test_a_start_and_accounts_narrow_the_journal_to_whole_entries(
    log: list[Placed], data: st.DataObject
) -> None:
    partitions = list(fold(log).values())
    offsets = st.fixed_dictionaries(
        {topic: st.integers(0, 8) for topic in ("orders", "fills", "transfers")}
    )
    start = data.draw(st.fixed_dictionaries(dict.fromkeys(range(LOG_PARTITIONS), offsets)))
    accounts = data.draw(st.sets(st.sampled_from(["alice", "bob", "@fees", "@external"])))
    assets = data.draw(st.sets(st.sampled_from(["USD", "BTC", "@1"])))
    everything = named(JOURNAL, journal_rows(partitions))
    names = schemas()[JOURNAL].names

    def entry(row: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(row[name] for name in names[: names.index("posting")])

    touched = {
        entry(row)
        for row in everything
        if (not accounts or row["posting_account"] in accounts)
        and (not assets or row["asset"] in assets)
    }
    shown = Shown(accounts, assets)
    assert named(JOURNAL, journal_rows(partitions, start, shown)) == [
        row
        for row in everything
        if entry(row) in touched and row["offset"] >= start[row["partition"]][row["topic"]]
    ]


def test_accounts_and_assets_narrow_balances_and_orders() -> None:
    partitions = folded(
        [deposited(), deposited(asset="BTC", transfer_id="b"), placed_event(), placed_event("bob")]
    )
    sums = totals(row for partition in partitions for row in partition.balances())
    rows = [(*key, total) for key, total in sums.items()]
    assert [row[:2] for row in balance_rows(rows, Shown(["alice"], ["BTC"]))] == [("alice", "BTC")]
    assert [row[0] for row in order_rows(partitions, Shown(["bob"], ["BTC"]))] == ["bob"]


# -- what is in the files

_TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
_IDS = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1, max_size=6)
_AMOUNTS = st.sampled_from(["0", "-1.5", "99999999999999999999.999999999999999999"])
_FLAGS = st.lists(st.sampled_from(["order_unknown", "overfilled"]), unique=True)


def _values(field: Any) -> st.SearchStrategy[Any]:
    """Anything that a column may hold."""
    kind = str(field.type)
    if kind == "bool":
        return st.booleans()
    if kind.startswith("int"):
        bits = int(kind.removeprefix("int")) - 1
        return st.integers(0, 2**bits - 1)
    if kind.startswith("list"):
        return _FLAGS
    values = _TEXT if field.name == "reason" else st.one_of(_IDS, _AMOUNTS)
    return st.one_of(st.none(), values) if field.nullable else values


_ROWS: dict[str, st.SearchStrategy[list[Row]]] = {
    name: st.lists(st.tuples(*map(_values, schema)), max_size=4)
    for name, schema in schemas().items()
}


@settings(max_examples=25)
@given(tables=st.fixed_dictionaries(_ROWS), number=st.uuids())
def test_every_reader_finds_what_was_written(
    tables: dict[str, list[Row]], number: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    place = tmp_path_factory.mktemp(str(number))
    for form in FORMS:
        paths = export(place / form, form, tables, {})
        assert [path.name for path in paths] == [*(f"{name}.{form}" for name in tables), MANIFEST]
    for form, read in READERS:
        for name, rows in tables.items():
            assert read(place / form / f"{name}.{form}") == named(name, rows), (read, name)


@pytest.mark.parametrize(("form", "read"), READERS)
def test_a_table_of_many_row_groups_is_read_whole_and_in_order(
    form: Form, read: Callable[[Path], Rows], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "_ROWS", 100)
    rows: list[Row] = [(f"a{number}", "USD", *["1"] * 5) for number in range(1_001)]
    [path, _] = export(tmp_path / "out", form, {BALANCES: rows}, {})
    assert read(path) == named(BALANCES, rows)
    if form == "parquet":
        found = pq.ParquetFile(path).metadata
        assert found.num_row_groups == 11
        assert found.row_group(0).column(0).compression == "ZSTD"


def test_csv_is_that_of_the_standard(tmp_path: Path) -> None:
    rows: list[Row] = [
        ("a", 'say "o"', *[None] * 3, "open", *[None] * 3, "0", None, "0", "0", *[None] * 3,
         "two\nlines", ["order_unknown", "overfilled"])
    ]  # fmt: skip
    [path, _] = export(tmp_path / "out", "csv", {ORDERS: rows}, {})
    head, row = path.read_bytes().split(b"\r\n", 1)
    assert head.decode().split(",") == schemas()[ORDERS].names
    assert row == (
        b'a,"say ""o""",,,,open,,,,0,,0,0,,,,"two\nlines","order_unknown,overfilled"\r\n'
    )


@pytest.mark.parametrize("form", FORMS)
def test_only_some_rows_are_in_memory_at_a_time(
    form: Form, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive = most = 0

    class Counted(tuple[Any, ...]):
        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    def rows() -> Iterator[Row]:
        nonlocal alive, most
        for number in range(5_000):
            alive += 1
            most = max(most, alive)
            yield Counted((f"a{number}", "USD", *["1"] * 5))

    monkeypatch.setattr(exporting, "_ROWS", 100)
    export(tmp_path / "out", form, {BALANCES: rows()}, {})
    assert most <= 250


@settings(max_examples=20)
@given(log=placed_logs(partitions=LOG_PARTITIONS), data=st.data())
def test_equal_states_make_equal_files(
    log: list[Placed], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = data.draw(interleavings(by_topic_partition(log)))
    place = tmp_path_factory.mktemp("equal")
    for form in FORMS:
        one, two = (
            export(place / f"{form}{number}", form, tables_of(fold(records).values()), {})
            for number, records in enumerate([log, other])
        )
        assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]


@pytest.mark.parametrize("form", FORMS)
def test_the_manifest_says_what_the_files_are(form: Form, tmp_path: Path) -> None:
    tables = tables_of(folded([deposited(), placed_event(), filled()]))
    said = {"watermark": "orders:0=1", "state_digest": "00", "é": {"n": 1}}
    *paths, manifest = export(tmp_path / "out", form, tables, said)
    document = json.loads(manifest.read_text(encoding="utf-8"))
    described = document.pop("tables")
    assert document == said
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == sorted(
        path.name for path in (*paths, manifest)
    )
    for path, (name, rows) in zip(paths, tables.items(), strict=True):
        assert described[name] == {
            "file": path.name,
            "format": form,
            "columns": {field.name: str(field.type) for field in schemas()[name]},
            "rows": len(rows),
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }


# -- complete or not at all


class BrokenError(Exception):
    pass


def two_rows_and_then(failing: Callable[[], object]) -> Iterator[Row]:
    for number in range(2):
        yield (f"a{number}", "USD", *["1"] * 5)
    failing()


def left_in(place: Path) -> list[str]:
    return sorted(str(path.relative_to(place)) for path in place.rglob("*"))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("where", ["out", "made/on/the/way/out", "there"])
def test_rows_that_fail_half_way_leave_nothing(
    form: Form, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise BrokenError

    monkeypatch.setattr(exporting, "_ROWS", 1)
    (tmp_path / "there").mkdir()
    with pytest.raises(BrokenError):
        export(tmp_path / where, form, {ORDERS: [], BALANCES: two_rows_and_then(fail)}, {})
    assert left_in(tmp_path) == ["there"]


@pytest.mark.parametrize("form", FORMS)
def test_a_disk_that_takes_no_more_is_one_sentence_and_leaves_nothing(
    form: Form, tmp_path: Path
) -> None:
    rows = (
        (hashlib.sha256(str(number).encode()).hexdigest(), *["1"] * 6) for number in range(20_000)
    )
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
    try:
        with pytest.raises(StorageError, match=r"cannot be written: .*File too large") as caught:
            export(tmp_path / "out", form, {BALANCES: rows}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "\n" not in str(caught.value)
    assert left_in(tmp_path) == []


def test_a_directory_that_is_not_empty_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    (tmp_path / "file").touch()
    for refuse in (require_new, lambda path: export(path, "csv", {BALANCES: []}, {})):
        with pytest.raises(InputError, match="not empty"):
            refuse(tmp_path / "out")
        with pytest.raises(InputError, match="not a directory"):
            refuse(tmp_path / "file")
        with pytest.raises((InputError, StorageError)):
            refuse(tmp_path / ("x" * 300))
        with pytest.raises(InputError, match="not a directory"):
            refuse(tmp_path / "file" / "some" / "out")
    assert left_in(tmp_path) == ["file", "out", "out/mine"]


def test_where_nothing_can_be_made_is_refused_before_a_replay() -> None:
    with pytest.raises(InputError, match="The directory /proc cannot be written to"):
        require_new(Path("/proc/some/out"))


def test_the_working_directory_is_not_replaced(tmp_path: Path) -> None:
    assert Path.cwd() == tmp_path
    with pytest.raises(InputError, match="name one in it"):
        require_new(Path())


def test_an_empty_directory_and_a_link_to_one_are_filled(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    [table, _] = export(tmp_path / "link", "csv", {BALANCES: []}, {})
    assert table == tmp_path / "link" / "balances.csv"
    assert left_in(tmp_path) == ["link", "real", "real/balances.csv", "real/manifest.json"]


def test_of_two_exports_to_one_directory_the_first_to_end_stands(tmp_path: Path) -> None:
    out = tmp_path / "out"
    other: list[Row] = [("other", "USD", *["1"] * 5)]
    slow = two_rows_and_then(lambda: export(out, "csv", {BALANCES: other}, {}))
    with pytest.raises(InputError, match="not empty"):
        export(out, "csv", {BALANCES: slow}, {})
    assert read_csv(out / "balances.csv") == named(BALANCES, other)
    assert left_in(tmp_path) == ["out", "out/balances.csv", "out/manifest.json"]


# -- pictures


def moved(at: str, amount: str, asset: str = "USD", account: str = "alice") -> Entry:
    value = Decimal(amount)
    zero = Decimal(0)
    posting = Posting(account, asset, max(value.copy_negate(), zero), max(value, zero))
    ids = {"account": account, "transfer_id": "t"}
    return Entry(at, "adjusted", "transfers", 0, 0, False, ids, [posting])


def drawn(path: Path, *arguments: Any, **more: Any) -> bytes:
    plot(path, *arguments, **more)
    found = path.read_bytes()
    if path.suffix.lower() == ".svg":
        ElementTree.fromstring(found)
    else:
        assert found.startswith(b"\x89PNG\r\n")
    return found


def said_in(picture: bytes) -> list[str]:
    """The texts of an SVG: each stands in a comment before the shapes of its letters.

    XML has no place for two hyphens in a comment, so matplotlib puts a space between them.
    """
    comments = [part.partition(b" -->")[0].decode() for part in picture.split(b"<!-- ")[1:]]
    return [comment.replace("- -", "--") for comment in comments]


def test_a_balance_is_what_it_was_after_each_moment() -> None:
    entries = [
        moved("1969-12-31T23:59:59.5Z", "-1"),
        moved("1970-01-02T00:00:00.000000000Z", "3"),
        moved("1970-01-02T01:00:00+01:00", "0.25"),
        moved("1970-01-03T00:00:00Z", "2", asset="BTC"),
        moved("1970-01-03T00:00:00Z", "2", account="bob"),
    ]
    assert balance_lines(entries, "alice") == {
        "USD": [(-0.5 / 86_400, -1.0), (1.0, 2.25)],
        "BTC": [(2.0, 2.0)],
    }


@given(placed_logs(partitions=LOG_PARTITIONS))
def test_every_line_ends_at_the_balance(log: list[Placed]) -> None:
    partitions = list(fold(log).values())
    sums = totals(row for partition in partitions for row in partition.balances())
    for account in {account for account, _ in sums}:
        lines = balance_lines(statement(partitions, account), account)
        for asset, line in lines.items():
            assert line[-1][1] == float(sums[account, asset].balance)
            moments = [moment for moment, _ in line]
            assert moments == sorted(set(moments))


@pytest.mark.parametrize("suffix", ["png", "svg", "SVG"])
def test_equal_entries_make_equal_pictures(suffix: str, tmp_path: Path) -> None:
    entries = [moved(EARLY, "1.5"), moved(LATE, "2", "BTC")]
    one, two = (
        drawn(tmp_path / f"{name}.{suffix}", "alice", entries, "orders:0=1") for name in "ab"
    )
    assert one == two
    assert left_in(tmp_path) == [f"a.{suffix}", f"b.{suffix}"]


def test_a_picture_names_account_watermark_assets_and_time(tmp_path: Path) -> None:
    entries = [moved(EARLY, "1", "$_A^2$"), moved(LATE, "2", "BTC"), moved(LATE, "1", "ETH")]
    account = "$x_{1}$:_@--a"
    entries = [moved(entry.occurred_at, "1", entry.postings[0].asset, account) for entry in entries]
    texts = said_in(
        drawn(tmp_path / "a.svg", account, entries, "orders:0=1,fills:0=2", ["$_A^2$", "BTC"])
    )
    assert f"Balance of {account}" in texts
    assert {"as of orders:0=1, fills:0=2", "$_A^2$ balance", "BTC balance", "time (UTC)"} <= {
        *texts
    }
    assert "ETH balance" not in texts


def test_an_account_without_entries_has_a_picture_that_says_so(tmp_path: Path) -> None:
    texts = said_in(drawn(tmp_path / "a.svg", "nobody\u202e\ud800\n\0é", [], ""))
    assert "No entries." in texts
    assert "Balance of nobody\\u202e\\ud800 \\x00\\xe9" in texts


@pytest.mark.parametrize(
    "moments",
    [
        ["0001-01-01T00:00:00Z"],
        ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59.9999999999Z"],
        ["9999-12-31T23:59:59.9999999999Z"],
        ["1969-12-31T23:59:59.999999999Z", "1970-01-01T00:00:00.000000001Z"],
        ["2024-02-29T23:59:59.999999999+23:59", "2024-02-29T23:59:59.999999999Z"],
    ],
)
def test_any_time_can_be_drawn(moments: list[str], tmp_path: Path) -> None:
    drawn(tmp_path / "a.png", "alice", [moved(at, "1") for at in moments], "")


@pytest.mark.parametrize(
    "amounts",
    [["9" * 60, "1"], ["0." + "0" * 35 + "1"] * 2, ["1", "-1"], ["-5"], ["1e20", "1e-18"]],
)
def test_any_amount_can_be_drawn(amounts: list[str], tmp_path: Path) -> None:
    times = [EARLY, LATE]
    entries = [moved(at, amount) for at, amount in zip(times, amounts, strict=False)]
    drawn(tmp_path / "a.png", "alice", entries, "")


def test_of_very_many_assets_the_first_are_drawn(tmp_path: Path) -> None:
    entries = [moved(EARLY, "1", f"{'W' * 29}{number:03d}") for number in range(PANELS + 1)]
    watermark = ",".join(f"orders:{number}=123456789" for number in range(300))
    texts = said_in(drawn(tmp_path / "a.svg", "alice", entries, watermark))
    assert f"The first {PANELS} of {PANELS + 1} assets; --asset chooses others." in texts
    assert sum(text.endswith(" balance") for text in texts) == PANELS


def test_a_picture_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.pdf: a plot is a \.png or an \.svg file"):
        format_of(Path("a.pdf"))
    with pytest.raises(InputError):
        plot(tmp_path / "png", "alice", [], "")
    (tmp_path / "file").touch()
    with pytest.raises(StorageError) as caught:
        plot(tmp_path / "file" / "a.png", "alice", [], "")
    assert "\n" not in str(caught.value)
    assert left_in(tmp_path) == ["file"]
