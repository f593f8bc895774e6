"""Publishing: what of a file is sent, where it goes, and what a person is told."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ledger.errors import InputError
from ledger.events import INPUT_TOPICS
from ledger.intake import parse
from ledger.kafka import BALANCES, Cluster
from ledger.partitioner import partition_of
from ledger.projections.partition import Watermark
from ledger.publish import (
    MAX_LINE_BYTES,
    PROBLEMS_REPORTED,
    NotAppliedError,
    Sender,
    await_applied,
    check,
    send,
)
from ledger.published import (
    LETTERS_ACCOUNT,
    MARK_KEY,
    Mark,
    MarkReader,
    encode,
    encode_row,
    no_counts,
    read_published,
    tails,
)
from ledger.settings import Settings
from tests.support import BITSTAMP, cluster_of, lines_of, raw_producer
from tests.test_flags import deposited, filled, placed

GOOD = json.dumps(deposited()).encode()


def line(change: Callable[[dict[str, Any]], object], event: dict[str, Any] | None = None) -> bytes:
    changed = dict(event or filled())
    change(changed)
    return json.dumps(changed).encode()


BAD_LINES = {
    "truncated": (GOOD[:-10], "not JSON"),
    "no object": (b"[1]", "must be a JSON object"),
    "not a number": (GOOD.replace(b'"100"', b"NaN"), "not JSON"),
    "bad UTF-8": (GOOD.replace(b"alice", b"al\xffce"), "not JSON in UTF-8"),
    "number for an amount": (line(lambda e: e.update(price=1.5)), "price"),
    "exponent": (line(lambda e: e.update(price="1e3")), "price: must be"),
    "negative quantity": (line(lambda e: e.update(quantity="-1")), "quantity: must be greater"),
    "unknown field": (line(lambda e: e.update(colour="red")), "colour: no such field"),
    "missing field": (line(lambda e: e.pop("fee")), "fee: is missing"),
    "null": (line(lambda e: e.update(limit_price=None), placed()), "limit_price"),
    "system account": (line(lambda e: e.update(account="@fees")), "account: must be"),
    "unknown type": (line(lambda e: e.update(type="order_burnt")), "type: must be one of"),
    "field named twice": (GOOD[:-1] + b', "amount": "1"}', "twice"),
    "other version": (line(lambda e: e.update(version=2)), "version"),
    "no zone": (line(lambda e: e.update(occurred_at="2024-01-01T00:00:00")), "occurred_at"),
    "endless line": (b" " * (MAX_LINE_BYTES + 1) + GOOD, "longer than"),
}


@pytest.mark.parametrize(("bad", "reason"), BAD_LINES.values(), ids=BAD_LINES.keys())
def test_a_bad_line_is_named_and_the_lines_around_it_are_good(bad: bytes, reason: str) -> None:
    checked = check("FILE", io.BytesIO(GOOD + b"\n" + bad + b"\n" + GOOD))
    [problem] = checked.problems
    assert str(problem).startswith("FILE:2: ")
    assert reason in problem.reason
    assert (checked.events, checked.invalid) == (2, 1)


@pytest.mark.parametrize(
    "content",
    [GOOD, GOOD + b"\n", b"\n  \r\n" + GOOD + b"\r\n\t\n", GOOD + b"\n\n\n"],
    ids=["no newline at the end", "newline", "blank lines and CRLF", "blank lines at the end"],
)
def test_blank_lines_and_line_ends_do_not_count(content: bytes) -> None:
    checked = check("FILE", io.BytesIO(content))
    assert (checked.events, checked.invalid) == (1, 0)


def test_an_empty_file_has_no_events_and_nothing_wrong() -> None:
    checked = check("FILE", io.BytesIO())
    assert (checked.events, checked.invalid, checked.problems) == (0, 0, [])


def test_all_bad_lines_are_counted_and_the_first_are_named() -> None:
    checked = check("FILE", io.BytesIO(b"{\n" * (PROBLEMS_REPORTED + 7)))
    assert checked.invalid == PROBLEMS_REPORTED + 7
    assert [problem.line for problem in checked.problems] == [*range(1, PROBLEMS_REPORTED + 1)]


@pytest.fixture
def cluster(settings: Settings) -> Cluster:
    made = cluster_of(settings)
    made.ensure_topics()
    return made


def records(cluster: Cluster, topic: str) -> list[tuple[int, bytes | None, bytes | None]]:
    slots = [(topic, number) for number in range(8)]
    ends = cluster.ends(slots)
    return [
        (batch.partition, record.key, record.value)
        for batch in cluster.read({slot: (0, ends[slot]) for slot in slots})
        for record in batch.records
    ]


@pytest.mark.integration
def test_each_event_goes_to_its_accounts_partition_and_is_acknowledged(cluster: Cluster) -> None:
    expected: dict[str, list[bytes]] = {topic: [] for topic in INPUT_TOPICS}
    with Sender(cluster) as sender:
        for path in BITSTAMP:
            with path.open("rb") as file:
                send(check(path.name, file), file, sender)
        sender.flush()
    for line_ in lines_of(BITSTAMP):
        topic, event = parse(line_)
        expected[topic].append(event.account.encode())
    for topic in INPUT_TOPICS:
        found = records(cluster, topic)
        assert sorted(key or b"" for _, key, _ in found) == sorted(expected[topic])
        assert all(number == partition_of(key or b"", 8) for number, key, _ in found)
        assert all(parse(value or b"")[0] == topic for _, _, value in found)
        assert sender.sent[topic] == len(found)
    ends = cluster.ends(sender.offsets)
    assert sender.offsets == ends


@pytest.mark.integration
def test_a_file_that_changes_while_it_is_published_is_noticed(cluster: Cluster) -> None:
    file = io.BytesIO(GOOD + b"\n" + GOOD)
    checked = check("FILE", file)
    file.seek(0)
    file.truncate(len(GOOD) + 20)
    with pytest.raises(InputError, match=r"FILE:2: the file was changed"), Sender(cluster) as s:
        send(checked, file, s)


def produce_to_balances(
    cluster: Cluster, partition: int, *rows: tuple[bytes, bytes | None]
) -> None:
    producer = raw_producer(cluster.settings)
    for key, value in rows:
        producer.produce(cluster.settings.topic(BALANCES), value, key, partition)
    assert producer.flush(30) == 0


def publish_mark(cluster: Cluster, partition: int, watermark: Watermark, rows: int = 0) -> None:
    """Publish a mark as a worker does, behind some rows."""
    mark = Mark(watermark, "00", 1, cluster.origin().topic_ids, 8, no_counts(), {})
    behind = [(f"account-{number}".encode(), b"{}") for number in range(rows)]
    produce_to_balances(cluster, partition, (MARK_KEY, encode(mark)), *behind)


@pytest.mark.integration
def test_the_newest_mark_is_found_from_the_end_and_followed(cluster: Cluster) -> None:
    publish_mark(cluster, 3, {"orders": 1, "fills": 0, "transfers": 0})
    publish_mark(cluster, 3, {"orders": 2, "fills": 0, "transfers": 0}, rows=5000)
    reader = MarkReader(cluster, [3, 4])
    reader.poll()
    assert reader.marks[3].watermark["orders"] == 2
    assert 4 not in reader.marks
    publish_mark(cluster, 4, {"orders": 7, "fills": 0, "transfers": 0})
    reader.poll()
    assert {n: mark.watermark["orders"] for n, mark in reader.marks.items()} == {3: 2, 4: 7}


@pytest.mark.integration
def test_accounts_that_were_removed_are_not_in_the_published_tables(cluster: Cluster) -> None:
    nowhere = dict.fromkeys(INPUT_TOPICS, 0)
    texts = {"USD": ("0", "5", "0")}
    names = ("alice", "bob")
    rows = [(name.encode(), encode_row(name, nowhere, encode(texts))) for name in names]
    produce_to_balances(cluster, 2, *rows)
    publish_mark(cluster, 2, nowhere)
    produce_to_balances(cluster, 2, (b"alice", None), (b"\xff", None))
    assert read_published(cluster, [2])[2].accounts == {"bob": texts}
    produce_to_balances(cluster, 2, (b"bob", None), *rows[:1])
    assert read_published(cluster, [2])[2].accounts == {"alice": texts}


@pytest.mark.integration
def test_dead_letters_sent_ahead_are_forgotten_when_their_row_is_removed(cluster: Cluster) -> None:
    ahead = {"orders": 0, "fills": 4, "transfers": 0}
    key = LETTERS_ACCOUNT.encode()
    publish_mark(cluster, 2, dict.fromkeys(INPUT_TOPICS, 0))
    produce_to_balances(cluster, 2, (key, encode_row(LETTERS_ACCOUNT, ahead, None)))
    assert tails(cluster, [2])[2].letters == ahead
    produce_to_balances(cluster, 2, (key, None))
    tail = tails(cluster, [2])[2]
    assert tail.mark is not None
    assert tail.letters is None


@pytest.mark.integration
def test_waiting_ends_when_every_touched_partition_has_it_and_not_before(cluster: Cluster) -> None:
    ids = cluster.origin().topic_ids
    targets = {("transfers", 3): 5, ("orders", 4): 1}
    publish_mark(cluster, 3, {"orders": 0, "fills": 0, "transfers": 6})
    with pytest.raises(NotAppliedError, match=r"lack 1 records.*'ledger worker'"):
        await_applied(cluster, ids, targets, 0.3)
    publish_mark(cluster, 4, {"orders": 1, "fills": 0, "transfers": 0})
    moved: list[int] = []
    await_applied(cluster, ids, targets, 5, moved.append)
    assert sum(moved) == 6
    with pytest.raises(NotAppliedError):  # tables of topics that were deleted
        await_applied(cluster, {**ids, "fills": "another"}, targets, 0.1)


def test_reading_a_file_keeps_no_more_than_a_byte_a_line(tmp_path: Path) -> None:
    path = tmp_path / "events"
    path.write_bytes((GOOD + b"\n") * 1000)
    with path.open("rb") as file:
        assert len(check("FILE", file).codes) == 1000
