"""The command `ledger` from outside: exit codes, what goes to stdout and what to stderr."""

from __future__ import annotations

import inspect
import io
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest
import typer
from confluent_kafka import Producer

from ledger.cli import app, main
from ledger.events import INPUT_TOPICS, RULES_VERSION
from ledger.kafka import BALANCES, DEAD_LETTERS
from ledger.partitioner import partition_of
from ledger.settings import Settings
from tests.support import (
    DATA,
    cluster_of,
    environment,
    eventually,
    published_at_end,
    raw_producer,
    worker,
)
from tests.test_flags import busted, deposited, event, filled, placed
from tests.test_trouble import configured

ROOT = Path(__file__).parent.parent
DOCS = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
UNREACHABLE = {"LEDGER_KAFKA": "127.0.0.1:1"}


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Call = Callable[..., Result]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> Call:
    """Run a command line in this process; returns its exit code and output."""

    def run(
        *arguments: str | Path, env: Mapping[str, str] | None = None, stdin: bytes = b""
    ) -> Result:
        with monkeypatch.context() as patch:
            for name, value in (env or {}).items():
                patch.setenv(name, value)
            patch.setattr(sys, "argv", ["ledger", *map(str, arguments)])
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
            capfdbinary.readouterr()
            with pytest.raises(SystemExit) as left:
                main()
            sys.stdout.flush()
            out, err = capfdbinary.readouterr()
        code = left.value.code
        return Result(int(code or 0), out.decode(), err.decode())

    return run


def one_sentence(result: Result) -> str:
    """Return what went wrong: exit code 2, nothing on stdout, one line on stderr."""
    assert result.code == 2
    assert result.out == ""
    lines = result.err.splitlines()
    assert len(lines) == 1, result.err
    assert "Traceback" not in result.err
    return lines[0]


# -- documentation


def commands(group: click.Group | None = None, prefix: str = "") -> Iterator[tuple[str, Any]]:
    root: Any = group or typer.main.get_command(app)
    for name, command in root.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", command


@pytest.mark.parametrize(("name", "command"), [*commands()], ids=[name for name, _ in commands()])
def test_every_command_and_option_is_documented(name: str, command: Any) -> None:
    section = re.search(rf"^## `ledger {name}[ `].*?(?=^## |\Z)", DOCS, re.MULTILINE | re.DOTALL)
    assert section is not None, f"docs/commands.md has no section on 'ledger {name}'"
    for parameter in command.params:
        if getattr(parameter, "hidden", False):  # for the commands themselves
            continue
        for option in (*parameter.opts, *parameter.secondary_opts):
            if option.startswith("--") and option != "--help":
                assert f"`{option}" in section[0], f"{option} of 'ledger {name}'"


@pytest.mark.parametrize("name", [name for name, _ in commands()])
def test_every_command_has_help(call: Call, name: str) -> None:
    result = call(*name.split(), "--help")
    assert result.code == 0
    assert "--help" in result.out


def test_documented_commands_exist() -> None:
    documented = re.findall(r"^## `ledger ([a-z-]+(?: hyperliquid)?)", DOCS, re.MULTILINE)
    assert sorted(documented) == sorted(name for name, _ in commands())


# -- what cannot run


@pytest.mark.parametrize(
    "command",
    [
        ["balances"],
        ["orders", "a"],
        ["statement", "a"],
        ["check"],
        ["dead-letters"],
        ["redrive", "--yes"],
        ["publish"],
    ],
    ids=lambda command: command[0],
)
def test_a_broker_that_is_down_is_named_within_seconds(call: Call, command: list[str]) -> None:
    began = time.monotonic()
    sentence = one_sentence(call(*command, env=UNREACHABLE))
    assert time.monotonic() - began < 8
    assert "127.0.0.1:1" in sentence


def test_without_a_stack_a_person_is_told_how_to_start_it(call: Call) -> None:
    assert "ledger up" in one_sentence(call("balances"))


@pytest.mark.parametrize(
    ("env", "named"),
    [
        ({"LEDGER_PARTITIONS": "none"}, "LEDGER_PARTITIONS"),
        ({"LEDGER_PARTITIONS": "0"}, "LEDGER_PARTITIONS"),
        ({"LEDGER_TOPIC_PREFIX": "a b"}, "LEDGER_TOPIC_PREFIX"),
        ({"LEDGER_CONFIG": "/no/such/file"}, "/no/such/file"),
    ],
)
def test_a_wrong_setting_is_named(call: Call, env: dict[str, str], named: str) -> None:
    assert named in one_sentence(call("balances", env=env))


@pytest.mark.parametrize("command", [["publish"], ["import", "hyperliquid"]])
def test_files_that_cannot_be_read_are_named(
    call: Call, command: list[str], tmp_path: Path
) -> None:
    missing = tmp_path / "missing"
    assert "missing: no such file" in one_sentence(call(*command, missing, env=UNREACHABLE))
    assert "is a directory" in one_sentence(call(*command, tmp_path, env=UNREACHABLE))


def test_an_export_that_is_none_is_refused_and_nothing_is_written(
    call: Call, tmp_path: Path
) -> None:
    export, out = tmp_path / "export.csv", tmp_path / "events.jsonl"
    export.write_bytes(b"\xff\xfe\n")
    assert "export.csv:1" in one_sentence(call("import", "hyperliquid", export, "--out", out))
    assert not out.exists()
    good = (DATA / "hyperliquid" / "fills.csv").read_bytes()
    export.write_bytes(good[:-100])
    assert "export.csv:1994" in one_sentence(call("import", "hyperliquid", export))


def test_usage_errors_exit_with_2(call: Call) -> None:
    for arguments in (["publish", "--no-such-option"], ["orders"], ["nonsense"], []):
        assert call(*arguments).code == 2


# -- without a broker


def test_an_import_gives_the_same_events_each_time(call: Call, tmp_path: Path) -> None:
    export = DATA / "hyperliquid" / "fills.csv"
    first = call("import", "hyperliquid", export)
    assert first.code == 0
    assert len(first.out.splitlines()) == 1994
    out = tmp_path / "events.jsonl"
    second = call("import", "hyperliquid", "-", "--out", out, "--json", stdin=export.read_bytes())
    assert second.json == {"events": 1994, "out": str(out)}
    assert out.read_text() == first.out


def test_schemas_are_written_or_printed(call: Call, tmp_path: Path) -> None:
    printed = call("schemas")
    assert {"order_filled", "orders"} <= printed.json.keys()
    written = call("schemas", tmp_path / "s", "--json").json
    assert {f.name for f in (tmp_path / "s").iterdir()} == set(written["files"])
    assert json.loads((tmp_path / "s" / "orders.schema.json").read_text()) == printed.json["orders"]


def test_status_says_that_nothing_runs(call: Call) -> None:
    result = call("status", "--json")
    assert result.code == 0
    assert result.json["kafka"] == {"url": None, "up": False}


# -- with a broker


@pytest.fixture
def env(settings: Settings) -> dict[str, str]:
    return {k: v for k, v in environment(settings).items() if k.startswith("LEDGER_")}


def write(path: Path, *events: dict[str, Any] | bytes) -> Path:
    lines = [e if isinstance(e, bytes) else json.dumps(e).encode() for e in events]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def wallet(number: int) -> dict[str, Any]:
    return deposited(f"wallet-{number}", transfer_id=f"d{number}")


@pytest.mark.integration
def test_before_anything_is_published_there_are_no_balances(
    call: Call, env: dict[str, str], settings: Settings
) -> None:
    nothing = call("balances", "--json", env=env)
    assert nothing.code == 0
    assert nothing.json["balances"] == []
    for command in (["check"], ["orders", "a"], ["statement", "a"]):
        assert "nothing was published yet" in one_sentence(call(*command, env=env))
    cluster_of(settings).ensure_topics()
    zeros = {str(number): 0 for number in range(8)}
    empty = call("balances", "--json", env=env).json
    assert empty["watermarks"] == dict.fromkeys(INPUT_TOPICS, zeros)
    assert call("balances", "nobody", "--at", "0", "--json", env=env).json["balances"] == []
    assert call("orders", "nobody", "--json", env=env).json["orders"] == []
    assert call("statement", "nobody", "--json", env=env).json["entries"] == []
    assert call("check", "--strict", env=env).code == 0
    assert call("dead-letters", "--json", env=env).json["count"] == 0


@pytest.mark.integration
def test_of_a_file_with_a_bad_line_nothing_is_sent_but_other_files_are(
    call: Call, env: dict[str, str], tmp_path: Path
) -> None:
    bad = write(tmp_path / "bad", wallet(1), b'{"type": "deposited"', wallet(2), b"\xff")
    good = write(tmp_path / "good", wallet(3))
    empty = write(tmp_path / "empty")
    result = call("publish", bad, empty, good, "--json", env=env)
    assert result.code == 2
    assert [line.split(": ")[0] for line in result.err.splitlines()] == [f"{bad}:2", f"{bad}:4"]
    assert result.json["published"] == {"orders": 0, "fills": 0, "transfers": 1}
    assert result.json["refused"] == [str(bad)]

    skipping = call("publish", bad, "--skip-invalid", "--json", env=env)
    assert skipping.code == 1
    assert skipping.json["skipped"] == 2
    assert skipping.json["published"]["transfers"] == 2
    number = str(partition_of(b"wallet-2", 8))
    assert skipping.json["offsets"]["transfers"][number] >= 1

    from_stdin = call("publish", "--json", env=env, stdin=json.dumps(wallet(4)).encode())
    assert from_stdin.code == 0
    assert from_stdin.json["published"]["transfers"] == 1
    assert call("publish", tmp_path / "empty", env=env).code == 0


@pytest.mark.integration
def test_waiting_without_a_worker_says_to_start_one(
    call: Call, env: dict[str, str], tmp_path: Path
) -> None:
    path = write(tmp_path / "events", wallet(1))
    sentence = one_sentence(call("publish", path, "--wait", "--timeout", "0.2", env=env))
    assert "ledger worker" in sentence


@pytest.mark.integration
def test_another_number_of_partitions_is_refused(
    call: Call, env: dict[str, str], settings: Settings
) -> None:
    cluster_of(settings).ensure_topics()
    others = {**env, "LEDGER_PARTITIONS": "3"}
    for command in (["balances"], ["publish"], ["check"], ["orders", "a"], ["balances", "--at=0"]):
        assert "same, unchanged number of partitions" in one_sentence(call(*command, env=others))


STORY = [
    deposited(),
    placed(quantity="2", limit_price="10"),
    filled(quantity="1", price="9", fee="0.5"),
    filled(quantity="1", price="9", fill_id="f2"),
    busted(fill_id="f2"),
    event("order_rejected", order_id="r", reason="no\x1b[2J"),
    filled(order_id="unknown", fill_id="f3", price="1"),
    deposited("carol", transfer_id="b", asset="BTC"),
    placed("carol", side="sell", order_type="market", limit_price="1"),
]
STORY[-1].pop("limit_price")


@pytest.mark.integration
def test_a_story_as_the_commands_tell_it(
    call: Call, env: dict[str, str], settings: Settings, tmp_path: Path
) -> None:
    path = write(tmp_path / "story", *STORY)
    with worker(settings, tmp_path / "log"):
        published = call("publish", path, "--wait", "--json", env=env)
        assert published.code == 0
        assert published.json["published"] == {"orders": 3, "fills": 4, "transfers": 2}
        assert call("publish", path, "--wait", env=env).code == 0

    # No worker runs from here on.
    balances = call("balances", "alice", "--json", env=env).json
    assert balances["balances"] == [
        {
            "account": "alice",
            "asset": "BTC",
            "balance": "2",
            "hold": "0",
            "available": "2",
            "debits": "1",
            "credits": "3",
        },
        {
            "account": "alice",
            "asset": "USD",
            "balance": "89.5",
            "hold": "10",
            "available": "79.5",
            "debits": "19.5",
            "credits": "109",
        },
    ]
    ends = {topic: sum(marks.values()) for topic, marks in balances["watermarks"].items()}
    assert ends == {"orders": 6, "fills": 8, "transfers": 4}
    assert balances["counts"]["fills"] == {
        "applied": 4, "duplicate": 4, "conflict": 0, "invalid": 0,
    }  # fmt: skip
    everything = call("balances", "--json", env=env).json
    keys = [(row["account"], row["asset"]) for row in everything["balances"]]
    assert keys == sorted(keys)
    assert call("balances", "--at", "latest", "--json", env=env).json == everything
    usd = call("balances", "@fees", "--asset", "USD", "--json", env=env).json["balances"]
    assert [row["balance"] for row in usd] == ["0.5"]
    first = call("balances", "--at", "fills=0,orders=0", "--at", "transfers=1", "--json", env=env)
    assert all(row["asset"] in ("USD", "BTC") for row in first.json["balances"])
    past = call("balances", "--at", "2001-01-01T00:00:00Z", "--json", env=env).json
    assert past["balances"] == []
    assert "--at" in one_sentence(call("balances", "--at", "yesterday", env=env))

    orders = call("orders", "alice", "--json", env=env).json["orders"]
    assert {order["order_id"]: order["status"] for order in orders} == {
        "o": "open",
        "r": "rejected",
        "unknown": "unknown",
    }
    [order] = call("orders", "alice", "--open", "--json", env=env).json["orders"]
    assert (order["filled"], order["remaining"], order["used"], order["hold"]) == (
        "1", "1", "9.5", "10",
    )  # fmt: skip
    assert order["reserve"] is None
    assert orders[-1]["flags"] == ["order_unknown"]
    assert "\x1b" not in call("orders", "alice", env=env).out

    statement = call("statement", "alice", "--json", env=env).json["entries"]
    assert [(entry["type"], entry["offset"]) for entry in statement] == [
        ("deposited", 0),
        ("order_filled", 0),
        ("order_filled", 1),
        ("fill_busted", 2),
        ("order_filled", 3),
    ]
    assert [entry["reversal"] for entry in statement].index(True) == 3
    fees = call("statement", "@fees", "--json", env=env).json["entries"]
    assert [entry["account"] for entry in fees] == ["alice"]
    assert "fills:" in call("statement", "alice", env=env).out

    check = call("check", "--json", env=env)
    assert check.code == 0
    assert check.json["passed"]
    assert check.json["books"]["conservation"] == {"BTC": "0", "USD": "0"}
    assert check.json["tables"]["match"]
    assert check.json["tables"]["behind_records"] == 0
    assert check.json["flags"]["order_unknown"] == {
        "count": 1,
        "examples": [{"account": "alice", "order_id": "unknown", "fill_id": "f3"}],
    }
    assert call("check", "--strict", env=env).code == 1
    assert "order_unknown" in call("check", env=env).out


@pytest.mark.integration
def test_tables_that_say_otherwise_than_the_topics_are_found(
    call: Call, env: dict[str, str], settings: Settings, tmp_path: Path
) -> None:
    with worker(settings, tmp_path / "log"):
        published = call("publish", write(tmp_path / "s", *STORY), "--wait", env=env)
        assert published.code == 0
    later = write(tmp_path / "later", wallet(1), deposited(transfer_id="later"))
    assert call("publish", later, env=env).code == 0
    behind = call("check", "--json", env=env)
    assert behind.code == 0
    assert behind.json["tables"]["behind_records"] == 2

    falsified = {"debits": "19.5", "credits": "109.000000000000000001", "hold": "10"}
    row = {"account": "alice", "watermark": {}, "balances": {"USD": falsified}}
    producer = raw_producer(settings)
    number = partition_of(b"alice", 8)
    producer.produce(settings.topic(BALANCES), json.dumps(row).encode(), b"alice", number)
    assert producer.flush(30) == 0
    result = call("check", "--json", env=env)
    assert result.code == 1
    assert not result.json["tables"]["match"]
    found = {
        (one["kind"], one["account"], one["asset"]) for one in result.json["tables"]["differences"]
    }
    assert found == {("row", "alice", "USD"), ("row", "alice", "BTC")}
    assert result.json["books"]["balanced"]
    assert call("check", env=env).code == 1


@pytest.mark.integration
def test_dead_letters_are_listed_and_published_again(
    call: Call, env: dict[str, str], settings: Settings, tmp_path: Path
) -> None:
    cluster_of(settings).ensure_topics()
    producer = raw_producer(settings)
    raw = json.dumps(deposited(amount="0")).encode()
    headers: Any = [("trace", b"1"), ("source", b"not ours")]
    producer.produce(settings.topic("transfers"), raw, b"alice", headers=headers)
    producer.produce(settings.topic("fills"), b"\xff\x1b[2J", None, 2)
    assert producer.flush(30) == 0
    with worker(settings, tmp_path / "log"):
        assert call("publish", "--wait", env=env, stdin=json.dumps(wallet(1)).encode()).code == 0

        def letters() -> list[Any]:
            found: list[Any] = call("dead-letters", "--json", env=env).json["dead_letters"]
            return found

        deadline = time.monotonic() + 30
        while len(letters()) < 2:
            assert time.monotonic() < deadline
        where = f"transfers:{partition_of(b'alice', 8)}:0"
        one, other = sorted(letters(), key=lambda letter: letter["source"], reverse=True)
        assert (one["source"], one["reason"], one["key"]) == (where, "invalid", "alice")
        assert one["value"] == raw.decode()
        assert one["headers"] == [["trace", "1"], ["source", "not ours"]]
        assert (other["source"], other["key"]) == ("fills:2:0", None)
        assert other["value"] == {"base64": "/xtbMko="}
        assert "\x1b" not in call("dead-letters", env=env).out
        assert len(call("dead-letters", "--last", "1", "--json", env=env).json["dead_letters"]) == 1
        none = call("dead-letters", "--reason", "conflict", "--json", env=env).json
        assert none["count"] == 0

        assert "--yes" in one_sentence(call("redrive", env=env))
        assert "no:9:9" in one_sentence(call("redrive", "no:9:9", "--yes", env=env))
        again = call("redrive", where, "--yes", "--json", env=env)
        assert again.json["published"] == {"orders": 0, "fills": 0, "transfers": 1}
        deadline = time.monotonic() + 30
        while len(letters()) < 3:
            assert time.monotonic() < deadline
    again_letter = letters()[-1]
    assert again_letter["headers"] == one["headers"]
    assert again_letter["value"] == one["value"]
    check = call("check", "--json", env=env)
    assert check.code == 0
    assert check.json["dead_letters"] == {"count": 3, "reasons": {"invalid": 3}}
    assert call("check", "--strict", env=env).code == 1


@pytest.mark.integration
def test_dead_letters_that_cannot_be_sent_again_are_named_and_the_rest_is_sent(
    call: Call, env: dict[str, str], settings: Settings, tmp_path: Path
) -> None:
    """Found by review: 17 MiB of zeros in a header, of which nothing is left when compressed."""
    cluster_of(settings).ensure_topics()
    producer = Producer(
        {
            "bootstrap.servers": settings.kafka,
            "message.max.bytes": 32 << 20,
            "compression.type": "lz4",
        }
    )
    headers: Any = [("zeros", bytes(17 << 20))]
    topic, number = settings.topic("fills"), partition_of(b"alice", 8)
    values = [b"bad", b"x" * 2_000_000, b"small", os.urandom(50_000)]
    for value in values:
        producer.produce(
            topic, value, b"alice", number, headers=headers if value == b"bad" else None
        )
        assert producer.flush(30) == 0  # each in a batch of its own
    with worker(settings, tmp_path / "log"):
        eventually(lambda: published_at_end(settings))
    letters = call("dead-letters", "--json", env=env).json["dead_letters"]
    assert [letter["source"] for letter in letters] == [f"fills:{number}:{n}" for n in range(4)]
    assert [letter["dropped"] for letter in letters] == [["headers"], [], [], []]
    assert letters[0]["value"] == "bad"
    assert "headers of 178258" in letters[0]["detail"]

    with configured(settings, "fills", "max.message.bytes", "20000", None):
        again = call("redrive", "--yes", "--json", env=env)
    assert again.code == 2
    assert again.json["published"] == {"orders": 0, "fills": 2, "transfers": 0}
    assert [one["source"] for one in again.json["failed"]] == [f"fills:{number}:3"]
    assert again.json["incomplete"] == [f"fills:{number}:0"]
    said = " ".join(again.err.split())
    assert (
        f"fills:{number}:0 is not published again: the headers of the record were too large" in said
    )
    assert f"fills:{number}:3 was not published again: " in said
    assert call("redrive", f"fills:{number}:3", "--yes", env=env).code == 0
    ends = cluster_of(settings).ends([("fills", number)])
    found = [
        record.value
        for batch in cluster_of(settings).read({("fills", number): (4, ends["fills", number])})
        for record in batch.records
    ]
    assert found == values[1:]


@pytest.mark.integration
def test_only_what_workers_wrote_is_published_again_and_no_topic_is_made_for_nothing(
    call: Call, env: dict[str, str], settings: Settings
) -> None:
    assert call("redrive", "--yes", env=env).code == 0
    cluster = cluster_of(settings)
    assert cluster.topics([*INPUT_TOPICS, BALANCES, DEAD_LETTERS]) == {}

    cluster.ensure_topics()
    producer = raw_producer(settings)
    ours: Any = [("key", b"alice"), ("source", b"fills:0:5"), ("reason", b"invalid")]
    for headers in (None, ours, [*ours[1:], ("detail", b"")]):
        producer.produce(settings.topic(DEAD_LETTERS), b"{}", b"fills:0:5", headers=headers)
    assert producer.flush(30) == 0
    listed = call("dead-letters", "--json", env=env).json
    assert listed["reasons"] == {"unknown": 3}
    assert "fills:0:5" in one_sentence(call("redrive", "fills:0:5", "--yes", env=env))
    again = call("redrive", "--yes", "--json", env=env)
    assert again.json == {
        "published": dict.fromkeys(INPUT_TOPICS, 0), "failed": [], "incomplete": []
    }  # fmt: skip


@pytest.mark.integration
def test_an_export_is_published_like_a_file(call: Call, env: dict[str, str]) -> None:
    export = DATA / "hyperliquid" / "fills.csv"
    result = call("import", "hyperliquid", export, "--publish", "--json", env=env)
    assert result.code == 0
    assert result.json["published"] == {"orders": 0, "fills": 1993, "transfers": 1}


@pytest.mark.integration
def test_tables_that_cover_records_which_are_gone_stop_the_check(
    call: Call, env: dict[str, str], settings: Settings
) -> None:
    cluster = cluster_of(settings)
    cluster.ensure_topics()
    mark = {
        "watermark": {"orders": 0, "fills": 5, "transfers": 0},
        "state_digest": "00",
        "rules_version": RULES_VERSION,
        "topic_ids": cluster.origin().topic_ids,
        "tips": {},
        "partitions": 8,
        "counts": {},
    }
    producer = raw_producer(settings)
    producer.produce(settings.topic(BALANCES), json.dumps(mark).encode(), b"@watermark", 2)
    assert producer.flush(30) == 0
    assert "fills:2: the topic ends at 0" in one_sentence(call("check", env=env))


@pytest.mark.integration
def test_snapshots_that_cannot_be_listed_are_missed_and_nothing_else(
    call: Call, env: dict[str, str], tmp_path: Path
) -> None:
    assert call("publish", write(tmp_path / "s", *STORY), env=env).code == 0
    (tmp_path / "file").write_text("")
    away = {**env, "LEDGER_SNAPSHOTS": str(tmp_path / "file")}
    for command in (["check"], ["orders", "alice"], ["statement", "alice"], ["balances", "--at=1"]):
        result = call(*command, "--json", env=away)
        assert result.code == 0
        assert result.json == call(*command, "--json", env=env).json
        said = " ".join(result.err.split())
        assert said.count("cannot be used: ") == said.count("Every record is read instead.") == 1


@pytest.mark.integration
def test_the_demonstration_goes_well_and_a_second_run_finds_only_duplicates(
    call: Call, env: dict[str, str]
) -> None:
    once = call("demo", "--json", env=env)
    assert once.code == 0, once.err
    assert once.json["passed"]
    theirs = {**env, "LEDGER_TOPIC_PREFIX": env["LEDGER_TOPIC_PREFIX"] + "demo."}
    before = call("balances", "--json", env=theirs).json
    assert before["counts"]["fills"]["applied"] == 270 + 1993
    assert call("demo", "--workers", "1", "--json", env=env).code == 0
    after = call("balances", "--json", env=theirs).json
    assert after["balances"] == before["balances"]
    assert after["counts"]["fills"]["duplicate"] == 270 + 1993


def test_output_into_a_closed_pipe_is_no_error() -> None:
    source = inspect.cleandoc(
        """
        import sys
        from ledger.cli import main
        sys.argv = ["ledger", "import", "hyperliquid", sys.argv[1]]
        main()
        """
    )
    export = str(DATA / "hyperliquid" / "fills.csv")
    process = subprocess.Popen(
        [sys.executable, "-c", source, export], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 0
