"""Replays in several threads, on disk, interrupted, under other rules, and what they write."""

from __future__ import annotations

import fcntl
import hashlib
import json
import random
import resource
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from confluent_kafka import OFFSET_END, TopicPartition
from hypothesis import example, given
from hypothesis import strategies as st

from ledger.agents.owned import stored_progress
from ledger.console import COULD_NOT_RUN, DIFFERENT, FINE
from ledger.events import INPUT_TOPICS
from ledger.journal import CLEARING
from ledger.published import conservation
from ledger.rebuild import _lanes
from ledger.settings import Settings
from replay import engine
from replay.engine import Job
from replay.engine import replay as run_replay
from replay.request import Span
from replay.results import Change, Shown
from tests.reference import Reference
from tests.support import (
    BITSTAMP,
    cluster_of,
    environment,
    eventually,
    lines_of,
    publish,
    published_at_end,
    worker,
)
from tests.test_replay import RunReplay, deposit, rebuilt, write_snapshots
from tests.test_replay import replay as replay  # a fixture
from tests.test_worker import all_records, reference_of

pytestmark = pytest.mark.integration

SAME = (
    "balances",
    "watermarks",
    "counts",
    "state_digest",
    "partition_digests",
    "log_digest",
    "conservation",
    "from",
    "to",
    "records_replayed",
    "changed",
)
"""What does not depend on how a replay was carried out."""


@pytest.fixture
def hour(settings: Settings) -> Settings:
    """A ledger with the Bitstamp hour in its topics."""
    publish(settings, lines_of(BITSTAMP))
    return settings


def same(found: dict[str, Any]) -> dict[str, Any]:
    return {name: found[name] for name in SAME}


@given(
    st.lists(st.integers(0, 1_000_000), min_size=1, max_size=12),
    st.integers(1, 9),
)
@example([0, 0], 2)
def test_every_partition_is_folded_by_one_thread_in_the_order_given(
    sizes: list[int], threads: int
) -> None:
    done: dict[int, list[tuple[int, str]]] = {number: [] for number in range(len(sizes))}
    with _lanes(dict(enumerate(sizes)), threads) as lanes:
        assert lanes.keys() == done.keys()
        assert len(set(map(id, lanes.values()))) == min(threads, len(sizes))
        for place in range(20):
            for number, lane in lanes.items():
                lane.give(
                    lambda number, place: done[number].append(
                        (place, threading.current_thread().name)
                    ),
                    number,
                    place,
                )
        for lane in lanes.values():
            lane.finish()
    for found in done.values():
        assert [place for place, _ in found] == list(range(20))
        assert len({thread for _, thread in found}) == 1


def test_what_fails_in_a_thread_is_raised_where_work_is_given() -> None:
    def fail() -> None:
        raise _Interrupted

    with _lanes({0: 1, 1: 1}, 2) as lanes:

        def give_more() -> None:
            for _ in range(100):
                lanes[0].give(lambda: None)

        lanes[0].give(fail)
        with pytest.raises(_Interrupted):
            give_more()
        lanes[1].give(fail)
        with pytest.raises(_Interrupted):
            lanes[1].finish()


@pytest.mark.parametrize("start", ["earliest", "300", "fills:3=10"])
def test_threads_and_states_on_disk_give_the_same(
    hour: Settings, replay: RunReplay, tmp_path: Path, start: str
) -> None:
    write_snapshots(
        hour, rebuilt(hour, {n: dict.fromkeys(INPUT_TOPICS, 8) for n in range(8)}).values()
    )
    for base in ("snapshot", "genesis", "empty"):
        options = ("--json", "--from-offset", start, "--base", base)
        in_memory = replay(hour, *options, "--threads", "1")
        assert in_memory.code == FINE, in_memory.err
        assert in_memory.json["changed"]
        directory = tmp_path / base
        threads = "5" if base == "snapshot" else "2"
        for more in (("--threads", threads), ("--state", str(directory))):
            ran = replay(hour, *options, *more)
            assert ran.code == FINE, ran.err
            assert same(ran.json) == same(in_memory.json), (base, more)
        again = replay(hour, *options, "--state", str(directory))
        assert same(again.json) == same(in_memory.json)
        assert not any(sum(topic.values()) for topic in again.json["records_read"].values())


def test_the_states_of_a_long_log_are_kept_in_files_that_are_removed_in_the_end(
    hour: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(engine, "OFFSETS_IN_MEMORY", 11_432)
    cluster = cluster_of(hour)
    ends = {n: part.watermark for n, part in rebuilt(hour).items()}
    start = {n: dict.fromkeys(INPUT_TOPICS, 10) for n in ends}

    def run() -> tuple[str, list[Change], int]:
        job = Job(cluster, cluster.origin(), Span(start, ends), "genesis")
        with run_replay(
            job, threads=1, directory=None, warn=pytest.fail, progress=lambda _: None
        ) as found:
            files = len(list(tmp_path.glob("replay-*/p*/CURRENT")))
            return found.state_digest, list(found.changes()), files

    *in_memory, files = run()
    assert files == 0
    monkeypatch.setattr(engine, "OFFSETS_IN_MEMORY", 11_431)
    *in_files, files = run()
    assert in_files == in_memory
    assert files == 2 * len(ends)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("start", [0, 200])
def test_accounts_that_are_named_are_shown_as_if_all_were_gone_through(
    hour: Settings, start: int
) -> None:
    cluster = cluster_of(hour)
    ends = {n: part.watermark for n, part in rebuilt(hour).items()}
    begin = {n: {t: min(start, o) for t, o in mark.items()} for n, mark in ends.items()}
    job = Job(cluster, cluster.origin(), Span(begin, ends), "genesis")
    with run_replay(
        job, threads=1, directory=None, warn=pytest.fail, progress=lambda _: None
    ) as found:
        rows, changes = list(found.rows()), list(found.changes())
        accounts = ["nobody", CLEARING, *{change.account for change in changes[::7]}]
        for shown in (Shown(accounts), Shown(accounts, ["USD"]), Shown((), ["BTC"])):
            expected = [row for row in rows if row[:2] in shown]
            assert list(found.rows(shown)) == expected != []
            expected_changes = [c for c in changes if (c.account, c.asset) in shown]
            assert list(found.changes(shown)) == expected_changes != []
        sums = {(account, asset): total for account, asset, total in rows}
        assert found.conservation == conservation(sums) != {}


class _Interrupted(Exception):  # noqa: N818 - a test's own
    pass


def interrupt_after(batches: int) -> Callable[[int], None]:
    left = [batches]

    def progress(_: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise _Interrupted

    return progress


@pytest.mark.parametrize("start", [0, 200])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_replay_that_is_interrupted_anywhere_goes_on_to_the_same(
    hour: Settings, tmp_path: Path, start: int, threads: int
) -> None:
    cluster = cluster_of(hour)
    origin = cluster.origin()
    ends = {n: part.watermark for n, part in rebuilt(hour).items()}
    begin = {n: {t: min(start, o) for t, o in mark.items()} for n, mark in ends.items()}
    job = Job(cluster, origin, Span(begin, ends), "genesis")

    def run(directory: Path | None, progress: Callable[[int], None]) -> Any:
        with run_replay(
            job, threads=threads, directory=directory, warn=pytest.fail, progress=progress
        ) as found:
            return (
                found.state_digest,
                found.records_replayed,
                list(found.changes()),
                list(found.rows()),
                [part.before.state_digest() for part in found.partitions.values()],
            )

    whole = run(None, lambda _: None)
    interrupted = 0
    for batches in (0, 1, 2, 3, 5, 8, 13, 21, 1000):
        try:
            found = run(tmp_path / "state", interrupt_after(batches))
        except _Interrupted:
            interrupted += 1
        else:
            assert found == whole
    assert interrupted >= 3
    assert found == whole


@contextmanager
def held(settings: Settings, *options: str) -> Iterator[subprocess.Popen[str]]:
    """Run a replay as a process of its own that cannot end before its JSON is read: it is long."""
    with subprocess.Popen(
        [sys.executable, "-m", "replay", "--json", *options],
        env=environment(settings),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, 4096)
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("option", ["--state", "--into"])
def test_of_two_replays_in_one_directory_the_second_is_refused(
    hour: Settings, replay: RunReplay, tmp_path: Path, option: str
) -> None:
    place = tmp_path / "place"
    with held(hour, option, str(place)) as first:
        eventually(lambda: list(place.rglob("replay.json")))
        second = replay(hour, "--json", option, str(place))
        assert (second.code, second.out) == (COULD_NOT_RUN, "")
        assert f"Another replay works in {place}" in second.err
        assert "Wait for its end." in second.err
        out, err = first.communicate(timeout=60)
    assert first.returncode == FINE, err
    assert same(json.loads(out)) == same(replay(hour, "--json").json)


@pytest.mark.parametrize("threads", ["1", "2"])
def test_a_replay_that_is_killed_anywhere_goes_on_to_the_same(
    hour: Settings, replay: RunReplay, tmp_path: Path, threads: str
) -> None:
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    options = ("--from-offset", "300", "--threads", threads)
    whole = replay(hour, "--json", "--from-offset", "300").json
    for number, reached in enumerate(("replay.json", "p*", "p*-before")):
        state = tmp_path / str(number)
        with held(hour, *options, "--state", str(state)) as process:
            eventually(lambda: list(state.glob(reached)))  # noqa: B023 - it is called right here
            with suppress(subprocess.TimeoutExpired):
                process.wait(chance.uniform(0, 0.5))
            process.kill()
        assert process.returncode == -signal.SIGKILL
        again = replay(hour, "--json", *options, "--state", str(state))
        assert again.code == FINE, f"seed {seed}, {reached}: {again.err}"
        assert same(again.json) == same(whole), f"seed {seed}, {reached}"


@pytest.mark.parametrize(
    ("option", "threads", "limits"),
    [
        ("--state", "1", (0, 1_000, 65_536)),
        ("--state", "2", (65_536,)),
        ("--into", "2", (0, 1_000)),
    ],
)
def test_a_full_disk_stops_a_replay_which_goes_on_when_there_is_space(
    hour: Settings,
    replay: RunReplay,
    tmp_path: Path,
    option: str,
    threads: str,
    limits: tuple[int, ...],
) -> None:
    """A limit on the size of files fails writes as a full disk does."""
    whole = replay(hour, "--json").json
    for limit in limits:
        place = tmp_path / str(limit)
        options = ("--json", option, str(place), "--threads", threads)
        full = subprocess.run(
            [sys.executable, "-m", "replay", *options],
            env=environment(hour),
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),  # noqa: B023
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (full.returncode, full.stdout) == (COULD_NOT_RUN, ""), full.stderr
        (sentence,) = full.stderr.splitlines()
        assert sentence.startswith("error: ")
        assert str(place) in sentence
        assert "File too large" in sentence
        again = replay(hour, *options)
        assert again.code == FINE, again.err
        assert same(again.json) == same(whole)


def test_a_directory_of_another_replay_is_refused(
    settings: Settings, replay: RunReplay, tmp_path: Path
) -> None:
    publish(settings, (deposit("alice", number) for number in range(20)))
    state = str(tmp_path / "state")
    assert replay(settings, "--state", state).code == FINE
    for options, sentence in (
        (("--base", "genesis"), "its base is snapshot, this one's is genesis"),
        (("--from-offset", "5"), "its start is"),
        (("--to-offset", "5"), "beyond the end that was asked for"),
        (("--to-offset", "5", "--threads", "2"), "beyond the end that was asked for"),
    ):
        ran = replay(settings, "--state", state, *options)
        assert ran.code == COULD_NOT_RUN
        assert sentence in ran.err
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("")
    assert "something else" in replay(settings, "--state", str(tmp_path / "other")).err
    publish(settings, (deposit("alice", number) for number in range(20, 30)))
    more = replay(settings, "--state", state, "--json").json  # new records: it goes on
    assert sum(sum(topic.values()) for topic in more["records_read"].values()) == 10
    assert same(more) == same(replay(settings, "--json").json)


def test_workers_start_from_a_directory_that_a_replay_made(
    hour: Settings, replay: RunReplay, tmp_path: Path
) -> None:
    naive = reference_of(hour)
    made = tmp_path / "made"
    ran = replay(hour, "--into", str(made), "--threads", "2")
    assert ran.code == FINE, ran.err
    assert "LEDGER_STATE_DIR" in ran.err
    assert replay(hour, "--into", str(tmp_path / "two"), "--workers", "2").code == FINE
    progress = [stored_progress(place) for place in sorted((tmp_path / "two").glob("*worker/?"))]
    assert [sorted(place) for place in progress] == [[0, 2, 4, 6], [1, 3, 5, 7]]
    again = replay(hour, "--into", str(made))
    assert (again.code, "is there already" in again.err) == (COULD_NOT_RUN, True)
    # Without their states workers could do nothing: the records are gone.
    cluster = cluster_of(hour)
    gone = [TopicPartition(hour.topic(t), n, OFFSET_END) for t in INPUT_TOPICS for n in range(8)]
    for future in cluster.admin.delete_records(gone).values():
        future.result()
    here = hour.model_copy(update={"state_dir": made})
    with worker(here, tmp_path / "1.log"):
        published = eventually(lambda: published_at_end(here))
    for number, found in published.items():
        assert found.mark is not None
        assert found.mark.counts == naive.counts_of_partition(number)
    for options in (("--state", "s"), ("--base", "empty"), ("--ignore-account", "a")):
        assert replay(hour, "--into", str(tmp_path / "x"), *options).code == COULD_NOT_RUN
    assert replay(hour, "--workers", "2").code == COULD_NOT_RUN


def test_what_if_an_account_had_not_been_there(
    hour: Settings, replay: RunReplay, tmp_path: Path
) -> None:
    naive = Reference(8)
    offsets: dict[tuple[str, int], int] = {}
    for topic, partition, record in all_records(cluster_of(hour)):
        if record.key != b"trader-64":
            offset = offsets.setdefault((topic, partition), 0)
            offsets[topic, partition] += 1
            naive.apply(topic, partition, offset, record.key, record.value)
    actual = replay(hour, "--json").json
    for threads in ("1", "2"):
        ran = replay(hour, "--json", "--ignore-account", "trader-64", "--threads", threads)
        assert ran.code == FINE
        found = ran.json
        rows = {
            (row["account"], row["asset"]): tuple(
                Decimal(row[name]) for name in ("debits", "credits", "hold")
            )
            for row in found["balances"]
            if not row["account"].startswith("@")
        }
        wanted = {
            (account, asset): amounts
            for number in range(8)
            for account, row in naive.balances_of_partition(number).items()
            for asset, amounts in row.items()
            if not account.startswith("@")
        }
        assert rows == wanted
        assert found["log_digest"] is None
        assert found["what_if"]["matched"] == {
            "--ignore-account trader-64": sum(
                record.key == b"trader-64" for _, _, record in all_records(cluster_of(hour))
            )
        }
        before = {(row["account"], row["asset"]): row for row in actual["balances"]}
        gone = [one for one in found["what_if"]["differences"] if one["account"] == "trader-64"]
        assert {one["asset"] for one in gone} == {"USD", "BTC"}
        for one in gone:
            assert one["before"]["balance"] == before["trader-64", one["asset"]]["balance"]
            assert one["after"]["balance"] == "0"
    people = replay(hour, "--ignore-account", "trader-64")
    assert "What would differ from what was" in people.out
    assert "matched no record" in replay(hour, "--ignore-account", "nobody").err
    for options in (("--verify",), ("--state", str(tmp_path / "s"))):
        ran = replay(hour, "--ignore-account", "trader-64", *options)
        assert ran.code == COULD_NOT_RUN


def test_tables_plot_proof_and_assertions_of_one_state(
    hour: Settings, replay: RunReplay, tmp_path: Path
) -> None:
    write_snapshots(hour, rebuilt(hour).values())
    out, plot = tmp_path / "out", tmp_path / "a.svg"
    ran = replay(
        hour, "--json", "--out", str(out), "--journal", "--plot", str(plot), "--account",
        "trader-64",
    )  # fmt: skip
    assert ran.code == FINE, ran.err
    manifest = json.loads((out / "manifest.json").read_text())
    for name in ("state_digest", "log_digest", "counts", "conservation", "to"):
        assert manifest[name] == ran.json[name]
    rows = pq.read_table(out / "balances.parquet").to_pylist()
    assert rows == ran.json["balances"]
    for table in manifest["tables"].values():
        content = (out / table["file"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == table["sha256"]
    assert plot.read_text().startswith("<?xml")
    assert replay(hour, "--out", str(out)).code == COULD_NOT_RUN  # it is there

    proof = replay(hour, "verify", "--json")
    assert (proof.code, proof.json["match"], proof.json["proven"]) == (FINE, True, 8)
    assert "All is proven" in replay(hour, "verify").out

    (usd,) = (row for row in rows if row["asset"] == "USD")
    lines = tmp_path / "books.txt"
    lines.write_text(f"trader-64 USD = {usd['balance']}\ntrader-64 USD hold = {usd['hold']}\n")
    assert replay(hour, "assert", str(lines)).code == FINE
    lines.write_text(f"trader-64 USD = {usd['balance']}\n@fees USD = 317.63  # a cent more\n")
    ran = replay(hour, "assert", str(lines), "--json")
    assert (ran.code, ran.json["failed"]) == (DIFFERENT, 1)
    assert ran.json["assertions"][1]["found"] == "317.62"
    assert "1 of 2 assertions hold" in replay(hour, "assert", str(lines)).out
    lines.write_text("trader-64 = 1\n")
    assert replay(hour, "assert", str(lines)).code == COULD_NOT_RUN


def test_a_damaged_snapshot_is_found_by_verify(settings: Settings, replay: RunReplay) -> None:
    publish(settings, (deposit("alice", number) for number in range(20)))
    files = write_snapshots(settings, rebuilt(settings).values())
    path = Path(files[0].path)
    path.write_bytes(path.read_bytes()[:-20])
    ran = replay(settings, "verify", "--json")
    assert ran.code == DIFFERENT
    (finding,) = ran.json["findings"]
    assert finding["kind"] == "damaged_snapshot"
    assert files[0].name in finding["sentence"]
    assert "damaged_snapshot" in replay(settings, "verify").out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--format", "csv"), "--out"),
        (("--journal",), "--out"),
        (("--plot", "a.svg"), "--account"),
        (("--plot", "a.gif", "--account", "a"), ".png or an .svg"),
        (("assert", "nowhere.txt"), "cannot be read"),
    ],
)
def test_options_that_cannot_be_used_are_refused_before_anything_is_read(
    replay: RunReplay, arguments: tuple[str, ...], sentence: str
) -> None:
    ran = replay(Settings(kafka="127.0.0.1:1"), *arguments)
    assert ran.code == COULD_NOT_RUN
    assert sentence in ran.err


def posted(entries: list[dict[str, Any]], account: str, asset: str, side: str) -> Decimal:
    return sum(
        (
            Decimal(posting[side])
            for entry in entries
            for posting in entry["postings"]
            if (posting["account"], posting["asset"]) == (account, asset)
        ),
        Decimal(0),
    )


@pytest.mark.parametrize(
    ("first", "second"),
    [("100", "300"), ("earliest", "latest"), ("orders=50,fills=2,transfers=3", "orders=900")],
)
def test_the_records_behind_a_difference_add_up_to_it(
    hour: Settings, replay: RunReplay, first: str, second: str
) -> None:
    ran = replay(hour, "diff", first, second, "--json")
    assert ran.code == FINE, ran.err
    found = ran.json
    spans = replay(hour, "--from-offset", first, "--to-offset", second, "--json").json
    if first != "orders=50,fills=2,transfers=3":  # there, what is not named stands at its end
        assert (found["from"], found["to"]) == (spans["from"], spans["to"])
        assert [
            {name: one[name] for name in spans["changed"][0]} for one in found["changed"]
        ] == spans["changed"]
    customers = [one for one in found["changed"] if not one["account"].startswith("@")]
    assert customers
    for one in customers:
        account, asset = one["account"], one["asset"]
        for side in ("debits", "credits"):
            grew = Decimal(one["after"][side]) - Decimal(one["before"][side])
            assert posted(one["entries"], account, asset, side.removesuffix("s")) == grew
        held = sum(
            (Decimal(o["hold_after"]) - Decimal(o["hold_before"]) for o in one["orders"]),
            Decimal(0),
        )
        assert held == Decimal(one["change"]["hold"])
        assert all(order["events"] for order in one["orders"])
        for entry in one["entries"]:
            number = str(entry["partition"])
            assert (
                found["from"][entry["topic"]][number]
                <= entry["offset"]
                < found["to"][entry["topic"]][number]
            )
    assert all(one["entries"] is None for one in found["changed"] if one["account"][0] == "@")
    fees = replay(hour, "diff", first, second, "--json", "--account", "@fees").json["changed"]
    for one in fees:
        assert posted(one["entries"], "@fees", one["asset"], "credit") == Decimal(
            one["after"]["credits"]
        ) - Decimal(one["before"]["credits"])


def test_a_statement_of_a_span_leads_from_its_opening_to_its_closing_balances(
    hour: Settings, replay: RunReplay
) -> None:
    for account in ("trader-64", "@clearing", "nobody"):
        span = ("--from-offset", "200", "--to-offset", "1000")
        found = replay(hour, "statement", account, *span, "--json").json
        balances = {row["asset"]: Decimal(row["balance"]) for row in found["opening"]}
        for row in found["closing"]:
            asset = row["asset"]
            change = posted(found["entries"], account, asset, "credit") - posted(
                found["entries"], account, asset, "debit"
            )
            assert balances.get(asset, Decimal(0)) + change == Decimal(row["balance"])
        assert bool(found["closing"]) == (account != "nobody")
    assert "opening balance" in replay(hour, "statement", "trader-64", "--from-offset", "200").out
    assert "No entries of nobody" in replay(hour, "statement", "nobody").out


def test_all_amendments_of_an_order_are_behind_its_difference(
    settings: Settings, replay: RunReplay
) -> None:
    """The first ones are kept with the order, the others as entries of their own."""
    common = {
        "version": 1,
        "account": "alice",
        "order_id": "o",
        "occurred_at": "2024-01-01T00:00:00Z",
    }
    placed = {
        **common,
        "type": "order_placed",
        "event_id": "e",
        "instrument": "BTC-USD",
        "side": "buy",
        "order_type": "limit",
        "quantity": "1",
        "limit_price": "10",
    }
    amended = [
        {**common, "type": "order_amended", "event_id": f"e{n}", "revision": n, "quantity": f"{n}"}
        for n in range(1, 31)
    ]
    publish(settings, (json.dumps(event).encode() for event in [placed, *amended]))
    (change,) = replay(settings, "diff", "5", "latest", "--json").json["changed"]
    (order,) = change["orders"]
    assert [event["offset"] for event in order["events"]] == list(range(5, 31))
    assert (order["hold_before"], order["hold_after"]) == ("40", "300")


def test_a_difference_is_shown_to_people_with_its_records(
    hour: Settings, replay: RunReplay
) -> None:
    shown = replay(hour, "diff", "100", "latest", "--account", "trader-64").out
    assert "Entries of trader-64" in shown
    assert "order_placed orders:" in shown
    ran = replay(hour, "diff", "300", "100")
    assert ran.code == COULD_NOT_RUN
    assert "Give the earlier position first" in ran.err
    assert replay(hour, "diff", "100", "x").code == COULD_NOT_RUN
