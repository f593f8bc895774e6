"""Positions as people write them (`ledger.positions`)."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.errors import InputError
from ledger.events import INPUT_TOPICS
from ledger.positions import (
    EARLIEST,
    LATEST,
    Limits,
    Watermarks,
    clamped,
    format_positions,
    is_time,
    moment_ms,
    parse_positions,
    parse_snapshot_name,
    require_order,
    snapshot_name,
)

PARTITIONS = 3
BEGIN: Watermarks = {p: {"orders": 0, "fills": 2, "transfers": 0} for p in range(PARTITIONS)}
END: Watermarks = {p: {"orders": 1000, "fills": 50 + p, "transfers": 7} for p in range(PARTITIONS)}
NEWEST: Watermarks = {1: {"orders": 30, "fills": 20, "transfers": 1}}
LIMITS = Limits(BEGIN, END, lambda: NEWEST)


def start(*texts: str) -> Watermarks:
    return parse_positions(texts, LIMITS, EARLIEST, "--from-offset")


def end(*texts: str) -> Watermarks:
    return parse_positions(texts, LIMITS, LATEST, "--to-offset")


def test_what_is_not_named_starts_at_the_earliest_and_stops_at_the_end() -> None:
    assert start() == BEGIN
    assert end() == END
    assert start("orders:1=5")[0] == BEGIN[0]
    assert end("orders:1=5")[0] == END[0]


def test_a_bare_offset_is_for_every_partition_and_clamped_to_its_end() -> None:
    assert start("51") == {
        0: {"orders": 51, "fills": 50, "transfers": 7},
        1: {"orders": 51, "fills": 51, "transfers": 7},
        2: {"orders": 51, "fills": 51, "transfers": 7},
    }


def test_a_topics_offset_is_clamped_to_each_partitions_end() -> None:
    assert [mark["fills"] for mark in start("fills=51").values()] == [50, 51, 51]
    assert start("fills=51")[0]["orders"] == 0


def test_a_partitions_offset_may_be_its_end_but_not_beyond() -> None:
    assert start("fills:1=51")[1]["fills"] == 51
    with pytest.raises(InputError, match=r"--from-offset: 'fills:1=52' is beyond the end.* 51"):
        start("fills:1=52")


def test_earliest_is_the_first_offset_still_there() -> None:
    assert start("earliest") == BEGIN
    assert start("40,fills=earliest,orders:2=latest") == {
        0: {"orders": 40, "fills": 2, "transfers": 7},
        1: {"orders": 40, "fills": 2, "transfers": 7},
        2: {"orders": 1000, "fills": 2, "transfers": 7},
    }


def test_snapshot_is_where_the_newest_was_made_and_the_earliest_where_there_is_none() -> None:
    assert start("snapshot") == {0: BEGIN[0], 1: NEWEST[1], 2: BEGIN[2]}
    assert end("fills=snapshot") == {
        number: {**END[number], "fills": fills} for number, fills in ((0, 2), (1, 20), (2, 2))
    }


def test_snapshots_are_not_asked_about_where_none_is_meant() -> None:
    limits = Limits(BEGIN, END, lambda: pytest.fail("asked"))
    assert parse_positions(["5,fills=latest"], limits, EARLIEST)[0]["orders"] == 5


@pytest.mark.parametrize("before", ["", "/some/where/", "s3://bucket/p00000-orders=1/"])
def test_a_snapshots_name_or_path_is_where_it_was_made_in_its_partition(before: str) -> None:
    name = snapshot_name(1, {"orders": 30, "fills": 20, "transfers": 1})
    assert name == "p00001-orders=30-fills=20-transfers=1.parquet"
    assert start(before + name) == {0: BEGIN[0], 1: NEWEST[1], 2: BEGIN[2]}
    assert start("5", before + name)[0]["orders"] == 5
    assert start("5", before + name)[1] == NEWEST[1]
    with pytest.raises(InputError, match="contradict each other"):
        start(before + name, "fills:1=19")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("p00003-orders=0-fills=0-transfers=0.parquet", "there is no partition '3'"),
        ("p00001-orders=0-fills=52-transfers=0.parquet", "'fills:1=52' is beyond the end"),
        ("p1-orders=0-fills=0-transfers=0.parquet", "is not a position"),
        ("p00001-orders=0-fills=0.parquet", "is not a position"),
        ("p00001-orders=0-fills=0-transfers=0.parquet.gz", "is not a position"),
    ],
)
def test_a_snapshots_name_that_cannot_be_is_refused(name: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        start(name)


def test_an_offset_below_the_earliest_is_kept_so_that_the_reader_names_what_is_gone() -> None:
    assert start("1")[0]["fills"] == 1


def test_the_most_specific_wins_in_any_order() -> None:
    items = ("5", "fills=20", "fills:2=30")
    expected = start(*items)
    assert expected[2] == {"orders": 5, "fills": 30, "transfers": 5}
    assert expected[1] == {"orders": 5, "fills": 20, "transfers": 5}
    for order in itertools.permutations(items):
        assert start(*order) == expected
        assert start(",".join(order)) == expected
        assert start(", ".join(order)) == expected


@pytest.mark.parametrize(
    "texts",
    [("5", "6"), ("5", "earliest"), ("fills=1,fills=2",), ("fills:0=1", "3", "fills:0=2")],
)
def test_two_positions_of_one_specificity_must_not_contradict_each_other(
    texts: tuple[str, ...],
) -> None:
    with pytest.raises(InputError, match="contradict each other"):
        start(*texts)


def test_a_position_said_twice_is_fine() -> None:
    assert start("fills:0=3", "fills:0=03") == start("fills:0=3")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("trades=5", "there is no input topic 'trades'; there are orders, fills, transfers"),
        ("trades:0=5", "there is no input topic 'trades'"),
        ("balances=5", "there is no input topic 'balances'"),
        ("fills:3=5", "there is no partition '3'; there are 0 to 2"),
        ("fills:-1=5", "there is no partition '-1'"),
        ("fills:x=5", "there is no partition 'x'"),
        ("fills:=5", "there is no partition ''"),
        ("-1", "an offset cannot be negative"),
        ("fills=-1", "an offset cannot be negative"),
        ("fills:0=-1", "an offset cannot be negative"),
        ("", "is not a position"),
        ("5,", "is not a position"),
        ("5.0", "is not a position"),
        ("fills:0", "is not a position"),
        ("fills=", "is not a position"),
        ("fills:0:1=2", "is not a position"),
        ("soon", "is not a position"),
        ("٣", "is not a position"),
        ("2015-05-01T00:00:00Z", "is not a position"),
    ],
)
def test_what_is_no_position_is_refused_in_one_sentence(text: str, sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        start(text)
    message = str(caught.value)
    assert sentence in message
    assert message.startswith("--from-offset: ")
    assert message.endswith(".")
    assert "\n" not in message


def test_an_offset_of_any_length_is_clamped() -> None:
    assert start("9" * 5000) == END
    with pytest.raises(InputError, match="beyond the end"):
        start("fills:0=" + "9" * 5000)


@st.composite
def watermarks(draw: st.DrawFn) -> Watermarks:
    offset = st.integers(0, 2**63 - 1)
    numbers = range(draw(st.integers(1, 5)))
    return {n: {topic: draw(offset) for topic in INPUT_TOPICS} for n in numbers}


@given(watermarks())
def test_a_printed_watermark_is_read_back_as_itself(marks: Watermarks) -> None:
    limits = Limits(marks, marks, dict)
    assert parse_positions([format_positions(marks)], limits, LATEST) == marks
    for number, mark in marks.items():
        name = snapshot_name(number, mark)
        assert parse_snapshot_name(name) == (number, mark)
        assert parse_positions([name], limits, LATEST) == marks


ITEMS = st.builds(
    lambda target, offset: (target, offset),
    st.one_of(
        st.just((None, None)),
        st.tuples(st.sampled_from(INPUT_TOPICS), st.none()),
        st.tuples(st.sampled_from(INPUT_TOPICS), st.integers(0, PARTITIONS - 1)),
    ),
    st.integers(0, 60),
)


@given(st.lists(ITEMS, unique_by=lambda item: item[0]))
def test_each_partition_takes_the_most_specific_offset(
    items: list[tuple[tuple[str | None, int | None], int]],
) -> None:
    def text(topic: str | None, partition: int | None, offset: int) -> str:
        if topic is None:
            return str(offset)
        return f"{topic}={offset}" if partition is None else f"{topic}:{partition}={offset}"

    texts = [text(*target, offset) for target, offset in items]
    named = dict(items)
    too_far = any(
        topic is not None and partition is not None and offset > END[partition][topic]
        for (topic, partition), offset in named.items()
    )
    if too_far:
        with pytest.raises(InputError):
            start(*texts)
        return
    found = start(*texts)
    for partition in range(PARTITIONS):
        for topic in INPUT_TOPICS:
            limit = END[partition][topic]
            expected = BEGIN[partition][topic]
            for target in ((None, None), (topic, None), (topic, partition)):
                if target in named:
                    expected = min(named[target], limit)
            assert found[partition][topic] == expected


def test_watermarks_are_clamped_to_limits() -> None:
    assert clamped({0: {"orders": 2000, "fills": 3, "transfers": 7}}, END) == {
        0: {"orders": 1000, "fills": 3, "transfers": 7}
    }


def test_an_end_before_its_start_is_refused_by_name() -> None:
    require_order(BEGIN, BEGIN)
    require_order(BEGIN, END)
    with pytest.raises(InputError, match=r"fills:1: the end, offset 4, is before .* offset 9\."):
        require_order(start("fills:1=9"), end("fills:1=4"))


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [
        ("1970-01-01T00:00:01Z", 1000),
        ("1970-01-01T01:00:01.5+01:00", 1500),
        ("1970-01-01T00:00:00.001000Z", 1),
        ("1970-01-01T00:00:00.0010001Z", 2),
        ("1970-01-01T00:00:00.9999Z", 1000),
        ("1969-12-31T23:59:59.999Z", 0),
        ("1900-01-01T00:00:00Z", 0),
    ],
)
def test_a_moment_is_the_first_millisecond_at_or_after_the_time(
    text: str, milliseconds: int
) -> None:
    assert moment_ms(text) == milliseconds


@pytest.mark.parametrize("text", ["", "yesterday", "2015-05-01", "2015-05-01T00:00:00", "500"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="--from-time: must be an RFC 3339 time"):
        moment_ms(text, "--from-time")


def test_times_and_positions_are_told_apart() -> None:
    assert is_time("2015-05-01T00:00:00Z")
    assert is_time("2015-05-01")
    assert not is_time("2015")
    assert not is_time("orders:0=2015,fills:0=1")
    assert not is_time("earliest")
