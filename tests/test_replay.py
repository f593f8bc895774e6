"""The command `replay`: rebuilding from any position, on any base, and verifying."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import msgspec
import pytest
from confluent_kafka import TopicPartition

from ledger.console import COULD_NOT_RUN, DIFFERENT, FINE
from ledger.digests import GENESIS
from ledger.errors import InputError
from ledger.events import INPUT_TOPICS, RULES_VERSION
from ledger.kafka import BALANCES, DEAD_LETTERS
from ledger.partitioner import partition_of
from ledger.positions import Watermarks, format_positions
from ledger.projections.accounts import Texts
from ledger.projections.entries import META_KEY, balances_key
from ledger.projections.partition import Header, Origin, Partition
from ledger.published import (
    MARK_KEY,
    Mark,
    PublishedPartition,
    encode,
    encode_row,
    no_counts,
)
from ledger.rebuild import Rebuilder
from ledger.settings import Settings
from ledger.snapshots import SnapshotFile, Snapshots
from ledger.store import MemoryStore
from replay import cli
from replay.request import Request
from replay.results import PartitionReplay, Replay
from replay.verify import published_watermarks, verify
from tests.support import BITSTAMP, cluster_of, environment, lines_of, publish, raw_producer

RECORDS = 11_432
FEES = "317.62"
NOTHING = dict.fromkeys(("balance", "hold", "debits", "credits"), "0")

RunReplay = Callable[..., "Ran"]


@dataclass(frozen=True)
class Ran:
    """What a command line left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        assert self.out, self.err
        found: dict[str, Any] = json.loads(self.out)
        return found


@pytest.fixture
def replay(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> RunReplay:
    """The command, run in this process."""

    def run(settings: Settings, *arguments: str) -> Ran:
        for name, value in environment(settings).items():
            if name.startswith("LEDGER_"):
                monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["replay", *arguments])
        with pytest.raises(SystemExit) as left:
            cli.main()
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        ran = Ran(int(left.value.code or 0), captured.out, captured.err)
        assert ran.code != COULD_NOT_RUN or "rror: " in ran.err, ran
        return ran

    return run


def deposit(account: str, number: int, amount: str = "1") -> bytes:
    return encode(
        {
            "type": "deposited",
            "version": 1,
            "event_id": f"e-{account}-{number}",
            "account": account,
            "occurred_at": "2024-01-01T00:00:00Z",
            "transfer_id": f"t-{number}",
            "asset": "USD",
            "amount": amount,
        }
    )


def account_of(partition: int, partitions: int = 8) -> str:
    """Return an account that lives in a partition."""
    names = (f"acc-{number}" for number in range(10_000))
    return next(name for name in names if partition_of(name.encode(), partitions) == partition)


def rebuilt(settings: Settings, marks: Watermarks | None = None) -> dict[int, Partition]:
    cluster = cluster_of(settings)
    rebuilder = Rebuilder(cluster, cluster.origin(), warn=print)
    return rebuilder.at(rebuilder.ends() if marks is None else marks).partitions


def write_snapshots(settings: Settings, partitions: Iterable[Partition]) -> list[SnapshotFile]:
    snapshots = Snapshots(settings.snapshot_dir, settings.topic_prefix)
    return [snapshots.write(one.header(), one._store.scan()) for one in partitions]


def publish_tables(
    settings: Settings,
    partitions: Iterable[Partition],
    change_rows: Callable[[int, dict[str, Texts]], None] = lambda number, rows: None,
    change_mark: Callable[[Mark], Mark] = lambda mark: mark,
) -> None:
    """Publish tables as a worker does, or with something wrong in them."""
    producer = raw_producer(settings)
    for one in partitions:
        rows = dict(one.balances())
        change_rows(one.number, rows)
        mark = change_mark(
            Mark(
                one.watermark,
                one.state_digest(),
                RULES_VERSION,
                one.origin.topic_ids,
                one.origin.partitions,
                one.counts,
                one.tips,
            )
        )
        topic = settings.topic(BALANCES)
        for account, texts in rows.items():
            value = encode_row(account, one.watermark, encode(texts))
            producer.produce(topic, value, account.encode(), partition=one.number)
        producer.produce(topic, encode(mark), MARK_KEY, partition=one.number)
    assert producer.flush(30) == 0


def ends_of_everything(settings: Settings) -> dict[tuple[str, int], int]:
    cluster = cluster_of(settings)
    slots = [(t, n) for t in (*INPUT_TOPICS, BALANCES) for n in range(8)] + [(DEAD_LETTERS, 0)]
    return cluster.ends(slots)


# --- what is asked -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        (Request(("5",), "2024-01-01T00:00:00Z"), "--from-offset and --from-time"),
        (Request((), None, ("5",), "2024-01-01T00:00:00Z"), "--to-offset and --to-time"),
        (Request(to_offsets=("5",), verify=True), "exactly the watermark"),
        (Request(to_time="2024-01-01T00:00:00Z", verify=True), "exactly the watermark"),
        (Request(base="empty", verify=True), "base 'empty'"),
    ],
)
def test_options_that_contradict_each_other_are_refused(request_: Request, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        request_.check()


def test_a_start_by_offset_and_an_end_by_time_go_together() -> None:
    Request(from_offsets=("5",), to_time="2024-01-01T00:00:00Z").check()
    Request(from_offsets=("5",), verify=True).check()


# --- books that do not balance -------------------------------------------------------------------


ORIGIN = Origin("cluster", {"orders": "o", "fills": "f", "transfers": "t"}, 2)
ZERO = dict.fromkeys(INPUT_TOPICS, 0)
AT = {"orders": 3, "fills": 2, "transfers": 1}
ROWS: dict[str, Texts] = {"a": {"USD": ("1", "5", "0")}, "@external": {"USD": ("5", "1", "0")}}


def state_of(rows: dict[str, Texts], watermark: dict[str, int]) -> Partition:
    """Return a state that no records made."""
    chains = dict.fromkeys(INPUT_TOPICS, GENESIS.hex())
    header = Header(
        rules_version=RULES_VERSION,
        partition=0,
        origin=ORIGIN,
        watermark=watermark,
        counts=no_counts(),
        log_digests=chains,
        tips={},
        total="0",
    )
    entries = {balances_key(account).encode(): encode(texts) for account, texts in rows.items()}
    store = MemoryStore({META_KEY: msgspec.json.encode(header), **entries})
    return Partition(0, store, ORIGIN)


def replay_of(rows: dict[str, Texts]) -> PartitionReplay:
    return PartitionReplay(
        "genesis", ZERO, state_of({}, ZERO), state_of(rows, AT), None, True, ZERO
    )


@pytest.mark.parametrize("arguments", [(), ("--json",)])
def test_books_that_do_not_balance_are_exit_code_1(
    replay: RunReplay, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    found = Replay({0: replay_of({"a": {"USD": ("0", "5", "0")}})}, 0.1)
    monkeypatch.setattr(cli, "Topics", MagicMock())
    monkeypatch.setattr(cli, "span_of", MagicMock())
    monkeypatch.setattr(cli, "_replayed", lambda *_: nullcontext((found, None)))
    ran = replay(Settings(kafka="127.0.0.1:1"), *arguments)
    assert ran.code == DIFFERENT
    if arguments:
        assert ran.json["conservation"] == {"USD": "5"}
    else:
        assert "The books do not balance" in ran.out


# --- comparing published tables ------------------------------------------------------------------

REPLAYED = replay_of(ROWS)
MARK = Mark(
    AT,
    REPLAYED.state_digest,
    RULES_VERSION,
    ORIGIN.topic_ids,
    ORIGIN.partitions,
    no_counts(),
    {},
)


def compared(
    mark: Mark | None, rows: dict[str, Texts], replayed: PartitionReplay = REPLAYED
) -> Any:
    ends = {0: {"orders": 3, "fills": 4, "transfers": 1}}
    return verify({0: PublishedPartition(mark, rows)}, {0: replayed}, ORIGIN, ends).as_json()


def test_equal_tables_match_and_newer_records_are_counted() -> None:
    assert compared(MARK, ROWS) == {
        "match": True,
        "partitions": 1,
        "accounts": 2,
        "unpublished": [],
        "lag_records": 2,
        "differences": [],
    }


def test_an_account_published_without_any_amount_equals_none() -> None:
    assert compared(MARK, {**ROWS, "b": {}})["match"]


def test_missing_extra_and_differing_rows_are_named() -> None:
    published: dict[str, Texts] = {
        "a": {"USD": ("1", "5", "2"), "EUR": ("0", "1", "0")},
    }
    totals = ("debits", "credits", "hold")
    assert compared(MARK, published)["differences"] == [
        {
            "partition": 0,
            "kind": "row",
            "account": "@external",
            "asset": "USD",
            "published": None,
            "rebuilt": dict(zip(totals, ("5", "1", "0"), strict=True)),
        },
        {
            "partition": 0,
            "kind": "row",
            "account": "a",
            "asset": "EUR",
            "published": dict(zip(totals, ("0", "1", "0"), strict=True)),
            "rebuilt": None,
        },
        {
            "partition": 0,
            "kind": "row",
            "account": "a",
            "asset": "USD",
            "published": dict(zip(totals, ("1", "5", "2"), strict=True)),
            "rebuilt": dict(zip(totals, ("1", "5", "0"), strict=True)),
        },
    ]


def test_a_mark_of_other_rules_or_topics_is_not_compared_but_differs() -> None:
    for mark, kind in (
        (msgspec.structs.replace(MARK, rules_version=RULES_VERSION + 1), "rules_version"),
        (msgspec.structs.replace(MARK, topic_ids={"orders": "x"}), "topic_ids"),
        (msgspec.structs.replace(MARK, watermark={"orders": 3}), "mark"),
    ):
        published = {0: PublishedPartition(mark, ROWS)}
        assert published_watermarks(published, ORIGIN) == {0: dict.fromkeys(INPUT_TOPICS, 0)}
        found = compared(mark, ROWS)
        assert [difference["kind"] for difference in found["differences"]] == [kind]
        assert (found["match"], found["partitions"], found["lag_records"]) == (False, 0, 8)


def test_rows_without_a_mark_differ_and_nothing_published_does_not() -> None:
    assert [one["kind"] for one in compared(None, ROWS)["differences"]] == ["mark"]
    nothing = compared(None, {})
    assert (nothing["match"], nothing["unpublished"]) == (True, [0])


def test_other_digests_and_counts_differ() -> None:
    counts = no_counts()
    counts["fills"]["applied"] = 1
    mark = msgspec.structs.replace(MARK, state_digest="11" * 32, counts=counts)
    assert [one["kind"] for one in compared(mark, ROWS)["differences"]] == [
        "state_digest",
        "counts",
    ]


# --- real data, a real broker --------------------------------------------------------------------


@pytest.mark.integration
def test_every_start_and_base_gives_the_same_state(settings: Settings, replay: RunReplay) -> None:
    assert publish(settings, lines_of(BITSTAMP)) == RECORDS
    before = ends_of_everything(settings)
    first = replay(settings, "--json")
    assert first.code == FINE
    full = first.json
    rows = {(row["account"], row["asset"]): row for row in full["balances"]}
    assert rows["@fees", "USD"]["balance"] == FEES
    assert full["conservation"] == {"BTC": "0", "USD": "0"}
    assert sum(sum(topic.values()) for topic in full["records_read"].values()) == RECORDS
    assert full["records_replayed"] == full["records_read"] == full["watermarks"] == full["to"]
    assert sum(tally["applied"] for tally in full["counts"].values()) == RECORDS
    assert set(full["base"].values()) == {"genesis"}
    assert len(full["changed"]) == len(full["balances"])
    assert full["seconds"] > 0
    assert full["rate"] > 0
    assert "verify" not in full

    # Snapshots in the middle of the log, and others beyond where some replays begin.
    ends = {n: {t: full["to"][t][str(n)] for t in INPUT_TOPICS} for n in range(8)}
    for limit in (8, 300):
        marks = {n: {t: min(o, limit) for t, o in mark.items()} for n, mark in ends.items()}
        write_snapshots(settings, rebuilt(settings, marks).values())

    used = set()
    starts = ("earliest", "500", "fills:3=10", "orders=300,fills=5", "latest", "8")
    for start in starts:
        for base in ("snapshot", "genesis"):
            ran = replay(settings, "--json", "--from-offset", start, "--base", base)
            assert ran.code == FINE, ran.err
            found = ran.json
            for same in ("state_digest", "log_digest", "partition_digests", "balances", "counts"):
                assert found[same] == full[same], (start, base, same)
            used |= set(found["base"].values())
            if base == "snapshot" and start == "500":
                assert all("=" in path for path in found["base"].values())
                read = sum(sum(topic.values()) for topic in found["records_read"].values())
                replayed = sum(sum(t.values()) for t in found["records_replayed"].values())
                assert replayed < read < RECORDS
    assert "genesis" in used
    assert len(used) > 1

    # Nothing was published and no group was made.
    assert ends_of_everything(settings) == before
    cluster = cluster_of(settings)
    groups = cluster.admin.list_consumer_groups().result(30).valid
    assert "ledger-reader" not in {group.group_id for group in groups}


@pytest.mark.integration
def test_a_prefix_of_the_log_is_what_the_ledger_was_then(
    settings: Settings, replay: RunReplay
) -> None:
    lines = list(lines_of(BITSTAMP))
    # Transfers and fills lie at the end of the list: some of each topic in both parts.
    first, rest = lines[::2], lines[1::2]
    publish(settings, first)
    then = replay(settings, "--json").json
    publish(settings, rest)
    marks = {n: {t: then["to"][t][str(n)] for t in INPUT_TOPICS} for n in range(8)}
    watermark = format_positions(marks)

    again = replay(settings, "--json", "--to-offset", watermark).json
    part = replay(settings, "--json", "--from-offset", "orders=100", "--to-offset", watermark).json
    genesis = replay(settings, "--json", "--to-offset", watermark, "--base", "genesis").json
    for found in (again, part, genesis):
        for same in ("state_digest", "log_digest", "balances", "counts", "watermarks"):
            assert found[same] == then[same]

    tail = replay(settings, "--json", "--from-offset", watermark).json
    assert tail["from"] == then["to"]
    now = {(row["account"], row["asset"]): row for row in tail["balances"]}
    before = {(row["account"], row["asset"]): row for row in then["balances"]}
    changed = {(row["account"], row["asset"]): row for row in tail["changed"]}
    assert changed.keys() == {row for row, total in now.items() if total != before.get(row)}
    for row, change in changed.items():
        assert change["after"]["balance"] == now[row]["balance"]
        for name in ("balance", "hold", "debits", "credits"):
            assert change["before"][name] == before.get(row, NOTHING)[name]


@pytest.mark.integration
def test_base_empty_begins_as_if_the_log_began_there(settings: Settings, replay: RunReplay) -> None:
    publish(settings, [deposit("alice", n, "2.50") for n in range(4)])
    everything = replay(settings, "--json").json
    whole = replay(settings, "--json", "--base", "empty").json
    assert whole["state_digest"] == everything["state_digest"]
    assert whole["log_digest"] is None
    assert set(whole["base"].values()) == {"empty"}

    half = replay(settings, "--json", "--base", "empty", "--from-offset", "2").json
    assert half["state_digest"] != everything["state_digest"]
    assert half["watermarks"] == everything["watermarks"]
    assert [(r["account"], r["balance"]) for r in half["balances"]] == [
        ("@external", "-5"),
        ("alice", "5"),
    ]
    assert half["conservation"] == {"USD": "0"}
    assert sum(half["records_read"]["transfers"].values()) == 2
    on_snapshot = replay(settings, "--json", "--from-offset", "2").json
    assert on_snapshot["changed"] == [
        {
            "account": account,
            "asset": "USD",
            "before": {
                "balance": sign + "5",
                "hold": "0",
                "available": sign + "5",
                "debits": debits[0],
                "credits": credits_[0],
            },
            "after": {
                "balance": sign + "10",
                "hold": "0",
                "available": sign + "10",
                "debits": debits[1],
                "credits": credits_[1],
            },
            "change": {"balance": sign + "5", "hold": "0"},
        }
        for account, sign, debits, credits_ in (
            ("@external", "-", ("5", "10"), ("0", "0")),
            ("alice", "", ("0", "0"), ("5", "10")),
        )
    ]


@pytest.mark.integration
def test_times_are_those_of_kafkas_records(settings: Settings, replay: RunReplay) -> None:
    cluster_of(settings).ensure_topics()
    producer = raw_producer(settings)
    number = partition_of(b"alice", 8)
    for n in range(5):
        producer.produce(
            settings.topic("transfers"), deposit("alice", n), b"alice", timestamp=1000 * (n + 1)
        )
    assert producer.flush(30) == 0

    def span(*arguments: str) -> tuple[int, int]:
        ran = replay(settings, "--json", *arguments)
        assert ran.code == FINE, ran.err
        found = ran.json
        return tuple(found[end]["transfers"][str(number)] for end in ("from", "to"))

    second = "1970-01-01T00:00:0{}Z".format
    assert span("--from-time", second(2)) == (1, 5)
    assert span("--to-time", second(2)) == (0, 1)
    assert span("--from-time", second("2.0001"), "--to-time", second(4)) == (2, 3)
    assert span("--from-time", "1969-12-31T23:59:59.999Z") == (0, 5)
    assert span("--from-time", second(9)) == (5, 5)
    assert span("--from-offset", "1", "--to-time", "1970-01-01T01:00:05+01:00") == (1, 4)

    backwards = replay(settings, "--from-time", second(4), "--to-time", second(2))
    assert backwards.code == COULD_NOT_RUN
    assert f"transfers:{number}: the end, offset 1, is before the start, offset 3." in backwards.err
    bad = replay(settings, "--from-time", "yesterday")
    assert bad.code == COULD_NOT_RUN
    assert "--from-time: must be an RFC 3339 time" in bad.err


@pytest.mark.integration
def test_what_cannot_be_run_is_exit_code_2_and_one_sentence(
    settings: Settings, replay: RunReplay
) -> None:
    before = replay(settings)
    assert before.code == COULD_NOT_RUN
    assert "nothing was published yet" in before.err
    publish(settings, [deposit("alice", 1)])
    for arguments, sentence in (
        (("--from-offset", "fills:0=1"), "'fills:0=1' is beyond the end"),
        (("--to-offset", "fills:0=1"), "--to-offset: 'fills:0=1' is beyond the end"),
        (("--from-offset", "trades=1"), "no input topic 'trades'"),
        (("--from-offset", "fills:8=0"), "no partition '8'; there are 0 to 7"),
        (("--from-offset", "-1"), "cannot be negative"),
        (("--from-offset", "latest", "--to-offset", "0"), "is before the start"),
        (("--from-offset", "1", "--from-offset", "0"), "contradict each other"),
        (("--verify", "--base", "empty"), "base 'empty'"),
        (("--base", "nothing"), "nothing"),
    ):
        ran = replay(settings, "--json", *arguments)
        assert ran.code == COULD_NOT_RUN, arguments
        assert sentence in ran.err
        assert ran.out == ""


@pytest.mark.integration
def test_records_that_are_gone_are_named(settings: Settings, replay: RunReplay) -> None:
    account = account_of(5)
    publish(settings, [deposit(account, n) for n in range(6)])
    full = replay(settings, "--json").json
    marks = {n: dict.fromkeys(INPUT_TOPICS, 0) for n in range(8)}
    marks[5]["transfers"] = 4
    write_snapshots(settings, [rebuilt(settings, marks)[5]])
    gone = TopicPartition(settings.topic("transfers"), 5, 3)
    cluster = cluster_of(settings)
    for future in cluster.admin.delete_records([gone]).values():
        future.result(30)

    for arguments in ((), ("--base", "genesis"), ("--base", "empty", "--from-offset", "2")):
        ran = replay(settings, "--json", *arguments)
        assert ran.code == COULD_NOT_RUN, arguments
        first = 2 if "empty" in arguments else 0
        assert f"transfers:5: offsets {first} to 2 are gone" in ran.err
    kept = replay(settings, "--json", "--from-offset", "transfers:5=4").json
    assert kept["state_digest"] == full["state_digest"]
    assert kept["base"]["5"].endswith("p00005-orders=0-fills=0-transfers=4.parquet")
    empty = replay(settings, "--json", "--base", "empty").json
    assert empty["from"]["transfers"]["5"] == 3
    assert [row["balance"] for row in empty["balances"]] == ["-3", "3"]


@pytest.mark.integration
def test_a_log_that_ends_before_a_snapshot_has_lost_records(
    settings: Settings, replay: RunReplay
) -> None:
    account = account_of(2)
    publish(settings, [deposit(account, n) for n in range(3)])
    partition = rebuilt(settings)[2]
    partition.watermark["transfers"] = 7  # as if four more records had been there
    write_snapshots(settings, [partition])
    ran = replay(settings, "--json")
    assert ran.code == COULD_NOT_RUN
    assert "transfers:2: the topic ends at 3, before the needed offset 7" in ran.err
    assert replay(settings, "--json", "--base", "genesis").code == FINE


@pytest.mark.integration
def test_a_replay_starts_and_stops_where_snapshots_were_made(
    settings: Settings, replay: RunReplay
) -> None:
    first, second = account_of(1), account_of(5)
    publish(settings, [deposit(first, 0), deposit(first, 1), deposit(second, 0)])
    (older,) = write_snapshots(settings, [rebuilt(settings)[1]])
    publish(settings, [deposit(first, 2), deposit(second, 1)])
    (newer,) = write_snapshots(settings, [rebuilt(settings)[1]])
    publish(settings, [deposit(first, 3)])

    since = replay(settings, "--from-offset", "snapshot", "--json").json
    replayed = since["records_replayed"]["transfers"]
    assert (replayed["1"], replayed["5"]) == (1, 2)  # of the second one's partition there is none
    assert since["base"]["1"] == newer.path
    until = replay(settings, "--to-offset", older.path, "--account", first, "--json").json
    assert until["watermarks"]["transfers"] == {**since["watermarks"]["transfers"], "1": 2}
    assert [row["balance"] for row in until["balances"]] == ["2"]
    of_first = ("--account", "@external", "--account", first)
    between = replay(settings, "diff", older.name, newer.name, *of_first, "--json").json
    assert [(row["account"], row["asset"]) for row in between["changed"]] == [
        ("@external", "USD"),
        (first, "USD"),
    ]


@pytest.mark.integration
def test_a_damaged_snapshot_is_named_and_not_used(settings: Settings, replay: RunReplay) -> None:
    publish(settings, [deposit("alice", n) for n in range(3)])
    full = replay(settings, "--json").json
    for file in write_snapshots(settings, rebuilt(settings).values()):
        path = Path(file.path)
        path.write_bytes(path.read_bytes()[:-9])
    ran = replay(settings, "--json", "--from-offset", "latest")
    assert ran.code == FINE
    assert "cannot be read" in ran.err
    assert ran.json["state_digest"] == full["state_digest"]
    assert set(ran.json["base"].values()) == {"genesis"}


@pytest.mark.integration
def test_accounts_and_assets_narrow_what_is_shown_and_nothing_else(
    settings: Settings, replay: RunReplay
) -> None:
    publish(settings, [deposit(name, 1) for name in ("alice", "bob", "carol")])
    full = replay(settings, "--json").json
    two = replay(settings, "--json", "--account", "alice", "--account", "bob").json
    assert [row["account"] for row in two["balances"]] == ["alice", "bob"]
    assert [row["account"] for row in two["changed"]] == ["alice", "bob"]
    assert two["state_digest"] == full["state_digest"]
    assert two["conservation"] == {"USD": "0"}
    assert replay(settings, "--json", "--asset", "BTC").json["balances"] == []
    table = replay(settings, "--account", "alice")
    assert "alice" in table.out
    assert "bob" not in table.out


@pytest.mark.integration
def test_people_get_tables_and_a_watermark_to_paste(settings: Settings, replay: RunReplay) -> None:
    publish(settings, lines_of(BITSTAMP))
    ran = replay(settings, "--from-offset", "10")
    assert ran.code == FINE
    assert "11,432 records" in ran.out
    assert "… and " in ran.out
    assert "The books balance: debits equal credits in 2 assets." in ran.out
    line = next(line for line in ran.out.splitlines() if line.startswith("Watermark "))
    again = replay(settings, "--json", "--to-offset", line.removeprefix("Watermark ")).json
    assert again["state_digest"] in ran.out


@pytest.mark.integration
def test_the_program_itself_runs(settings: Settings) -> None:
    publish(settings, [deposit("alice", 1)])
    done = subprocess.run(
        [sys.executable, "-m", "replay", "--json"],
        env=environment(settings),
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    assert len(json.loads(done.stdout)["balances"]) == 2


@pytest.mark.integration
def test_tables_that_match_the_topics_verify(settings: Settings, replay: RunReplay) -> None:
    publish(settings, lines_of(BITSTAMP))
    nothing = replay(settings, "--json", "--verify")
    assert nothing.code == FINE
    assert nothing.json["verify"]["unpublished"] == list(range(8))
    assert nothing.json["verify"]["lag_records"] == RECORDS
    assert "Nothing was published yet" in replay(settings, "--verify").out

    partitions = rebuilt(settings)
    write_snapshots(settings, partitions.values())
    publish_tables(settings, partitions.values())
    publish(settings, [deposit(account_of(n), 1) for n in (0, 3, 7)])
    for base in ("snapshot", "genesis"):
        for start in ("earliest", "500", "fills:3=10", "latest"):
            ran = replay(settings, "--json", "--verify", "--base", base, "--from-offset", start)
            assert ran.code == FINE, ran.err
            assert ran.json["verify"] == {
                "match": True,
                "partitions": 8,
                "accounts": 100,  # 97 traders, @clearing, @external, @fees
                "unpublished": [],
                "lag_records": 3,
                "differences": [],
            }
    people = replay(settings, "--verify")
    assert "The published tables match the topics" in people.out
    assert "Not covered: 3 newer offsets" in people.out


@pytest.mark.integration
def test_tables_that_differ_are_exit_code_1(settings: Settings, replay: RunReplay) -> None:
    accounts = {number: account_of(number) for number in range(8)}
    publish(settings, [deposit(account, 1, "7") for account in accounts.values()])

    def tamper(number: int, rows: dict[str, Texts]) -> None:
        if number == 1:
            rows[accounts[1]] = {"USD": ("0", "8", "0")}
        if number == 2:
            del rows[accounts[2]]
        if number == 3:
            rows["extra"] = {"USD": ("0", "1", "0")}

    def remark(mark: Mark) -> Mark:
        if mark.state_digest == digests[4]:
            return msgspec.structs.replace(mark, state_digest="ab" * 32)
        if mark.state_digest == digests[5]:
            return msgspec.structs.replace(mark, rules_version=RULES_VERSION + 1)
        if mark.state_digest == digests[6]:
            return msgspec.structs.replace(mark, topic_ids=dict.fromkeys(INPUT_TOPICS, "older"))
        return mark

    partitions = rebuilt(settings)
    digests = {number: one.state_digest() for number, one in partitions.items()}
    publish_tables(settings, [partitions[n] for n in range(7)], tamper, remark)

    ran = replay(settings, "--json", "--verify")
    assert ran.code == DIFFERENT
    found = ran.json["verify"]
    assert (found["match"], found["partitions"], found["unpublished"]) == (False, 5, [7])
    assert found["lag_records"] == 3
    assert [(d["partition"], d["kind"], d.get("account")) for d in found["differences"]] == [
        (1, "row", accounts[1]),
        (2, "row", accounts[2]),
        (3, "row", "extra"),
        (4, "state_digest", None),
        (5, "rules_version", None),
        (6, "topic_ids", None),
    ]
    people = replay(settings, "--verify")
    assert people.code == DIFFERENT
    for text in (
        f"rules version {RULES_VERSION + 1}",
        "other topics",
        accounts[1],
        "The published tables do not match the topics.",
    ):
        assert text in people.out


@pytest.mark.integration
def test_a_published_watermark_beyond_the_topics_is_named(
    settings: Settings, replay: RunReplay
) -> None:
    account = account_of(4)
    publish(settings, [deposit(account, 1)])

    def beyond(mark: Mark) -> Mark:
        return msgspec.structs.replace(mark, watermark={**mark.watermark, "transfers": 9})

    publish_tables(settings, [rebuilt(settings)[4]], change_mark=beyond)
    ran = replay(settings, "--verify")
    assert ran.code == COULD_NOT_RUN
    assert "transfers:4: the topic ends at 1, before the needed offset 9" in ran.err


@pytest.mark.integration
def test_records_that_are_not_applied_are_counted(settings: Settings, replay: RunReplay) -> None:
    publish(settings, [deposit("alice", 1), deposit("alice", 1), deposit("alice", 1, "9")])
    producer = raw_producer(settings)
    producer.produce(settings.topic("transfers"), b"not json", b"alice")
    assert producer.flush(30) == 0
    found = replay(settings, "--json").json
    assert found["counts"]["transfers"] == {
        "applied": 1,
        "duplicate": 1,
        "conflict": 1,
        "invalid": 1,
    }
    assert [row["balance"] for row in found["balances"]] == ["-1", "1"]
