"""Assertions about balances: what a file may say, and whether it holds on real topics."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, timedelta, timezone
from decimal import Decimal
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.codec import topic_of
from ledger.errors import InputError
from ledger.events import INPUT_TOPICS
from ledger.journal import SYSTEM_ACCOUNTS
from ledger.partitioner import partition_of
from ledger.positions import format_positions
from ledger.published import encode
from ledger.rebuild import Rebuilder
from ledger.settings import Settings
from replay.assertions import FIELDS, LISTED, Assertion, Outcome, evaluate, parse
from tests.support import cluster_of, raw_producer
from tests.test_flags import deposited, event, filled, placed

PARTITIONS: Final = 8


def refusals(*lines: str) -> list[str]:
    with pytest.raises(InputError) as refused:
        parse(lines, "a.txt")
    return str(refused.value).split("\n")


# -- what a file may say

_SPACES = st.text(" \t", min_size=1, max_size=3)
_MAYBE_SPACES = st.text(" \t", max_size=2)
_OFFSETS = st.integers(0, 2**70).map(str) | st.sampled_from(("earliest", "latest"))
_TARGETS = st.just("") | st.builds(
    "{}{}=".format,
    st.sampled_from(INPUT_TOPICS),
    st.just("") | st.integers(0, 99).map(":{}".format),
)
_ITEMS = st.lists(st.builds("{}{}".format, _TARGETS, _OFFSETS), min_size=1, max_size=3)
_ZONES = st.just(UTC) | st.integers(-1439, 1439).map(lambda m: timezone(timedelta(minutes=m)))
_TIMES = st.datetimes(timezones=_ZONES).map(lambda moment: moment.isoformat())
_MOMENTS = _TIMES.filter(lambda text: "0002-" < text < "9998-")  # far from what dates can say


@st.composite
def said(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """Return a line, and what it says."""
    account = draw(
        st.from_regex(r"[A-Za-z0-9_:-]{1,128}", fullmatch=True) | st.sampled_from(SYSTEM_ACCOUNTS)
    )
    asset = draw(
        st.from_regex(r"[A-Za-z0-9@_]{1,32}", fullmatch=True) | st.sampled_from(("hold", "at"))
    )
    field = draw(st.none() | st.sampled_from(FIELDS))
    amount = draw(st.from_regex(r"-?(0|[1-9][0-9]{0,19})(\.[0-9]{1,18})?", fullmatch=True))
    parts: list[str] | None = draw(st.none() | _ITEMS | _MOMENTS.map(lambda text: [text]))

    line = draw(_MAYBE_SPACES) + account + draw(_SPACES) + asset
    if field is not None:
        line += draw(_SPACES) + field
    line += draw(_MAYBE_SPACES) + "=" + draw(_MAYBE_SPACES) + amount
    if parts is not None:
        comma = draw(_MAYBE_SPACES) + "," + draw(_MAYBE_SPACES)
        line += draw(_SPACES) + "at" + draw(_SPACES) + comma.join(parts)
    line += draw(_MAYBE_SPACES)
    return line, {
        "text": line.strip(),
        "account": account,
        "asset": asset,
        "field": field or "balance",
        "amount": Decimal(amount),
        "position": None if parts is None else ",".join(parts),
    }


_COMMENTS = st.just("") | st.text(st.characters(exclude_categories=["Cs"]), max_size=9).map(
    "#{}".format
)
_ENDS = st.sampled_from(("", "\n", "\r\n"))
_EMPTY = st.builds("{}{}{}".format, _MAYBE_SPACES, _COMMENTS, _ENDS)


@given(st.lists(st.none() | said()), st.data())
def test_whatever_is_said_is_read_back(
    statements: list[tuple[str, dict[str, Any]] | None], data: st.DataObject
) -> None:
    lines, expected = [], []
    for number, statement in enumerate(statements, 1):
        if statement is None:
            lines.append(data.draw(_EMPTY))
            continue
        line, says = statement
        lines.append(line + data.draw(_COMMENTS) + data.draw(_ENDS))
        expected.append(Assertion(file="some file", line=number, **says))
    assert parse(lines, "some file") == expected


FORM = "must be ACCOUNT ASSET [FIELD] = AMOUNT [at POSITION]"
POSITION = (
    "position: must be N, TOPIC=N or TOPIC:PARTITION=N, where TOPIC is one of orders, fills, "
    "transfers and N an offset, 'earliest', 'latest' or 'snapshot'; or a snapshot's name; several "
    "of them joined by commas; or an RFC 3339 time"
)
AMOUNT = "amount: must be a decimal string of at most 20 integer and 18 fraction digits"
MOMENT = "must be an RFC 3339 time with a zone, such as 2015-05-01T00:00:06.337Z"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("alice", f"{FORM} (found 'alice')"),
        ("alice = 5", f"{FORM} (found 'alice = 5')"),
        ("alice USD 5", f"{FORM} (found 'alice USD 5')"),
        ("alice USD =", f"{FORM} (found 'alice USD =')"),
        ("alice USD = # 5", f"{FORM} (found 'alice USD =')"),
        ("= 5", f"{FORM} (found '= 5')"),
        ("alice USD at orders=5", f"{FORM} (found 'alice USD at orders=5')"),
        ("alice USD hold now = 5", f"{FORM} (found 'alice USD hold now = 5')"),
        ("al.ice USD = 5", "account: must be 1 to 128 of A-Z a-z 0-9 _ : - (found 'al.ice')"),
        ("älice USD = 5", "account: must be 1 to 128 of A-Z a-z 0-9 _ : - (found 'älice')"),
        (
            "@fee USD = 5",
            "account: must be a customer's or one of @clearing, @fees, @external, @adjustments "
            "(found '@fee')",
        ),
        ("alice BTC-USD = 5", "asset: must be 1 to 32 of A-Z a-z 0-9 @ _ (found 'BTC-USD')"),
        (
            "alice USD Hold = 5",
            "field: must be one of balance, hold, available, debits, credits (found 'Hold')",
        ),
        ("alice USD == 5", f"{AMOUNT} (found '=')"),
        ("alice USD = 1e3", f"{AMOUNT} (found '1e3')"),
        ("alice USD = NaN", f"{AMOUNT} (found 'NaN')"),
        ("alice USD = +1", f"{AMOUNT} (found '+1')"),
        ("alice USD = 01", f"{AMOUNT} (found '01')"),
        ("alice USD = .5", f"{AMOUNT} (found '.5')"),
        ("alice USD = 1_000", f"{AMOUNT} (found '1_000')"),
        ("alice USD = ٣", f"{AMOUNT} (found '٣')"),
        ("alice USD = 0.1234567890123456789", f"{AMOUNT} (found '0.1234567890123456789')"),
        ("alice USD = 1 USD", "after the amount may stand 'at' and a position (found 'USD')"),
        ("alice USD = 1 AT 5", "after the amount may stand 'at' and a position (found 'AT 5')"),
        ("alice USD = 1 at", "after the amount may stand 'at' and a position (found 'at')"),
        ("alice USD = 1 at noon", f"{POSITION} (found 'noon')"),
        ("alice USD = 1 at -1", f"{POSITION} (found '-1')"),
        ("alice USD = 1 at balances=1", f"{POSITION} (found 'balances=1')"),
        ("alice USD = 1 at orders:x=1", f"{POSITION} (found 'orders:x=1')"),
        ("alice USD = 1 at orders=1,", f"{POSITION} (found 'orders=1,')"),
        ("alice USD = 1 at orders=1 fills=2", f"{POSITION} (found 'orders=1 fills=2')"),
        ("alice USD = 1 at 2015-05-01", f"position: {MOMENT} (found '2015-05-01')"),
        (
            "alice USD = 1 at 2015-05-01T00:00:00",
            f"position: {MOMENT} (found '2015-05-01T00:00:00')",
        ),
    ],
)
def test_a_line_of_another_form_is_refused(line: str, reason: str) -> None:
    assert refusals("", line) == [f"a.txt:2: {reason}."]


def test_a_date_that_does_not_exist_is_refused() -> None:
    [refusal] = refusals("alice USD = 1 at 2015-02-29T00:00:00Z")
    assert refusal.startswith("a.txt:1: position: no such time: ")  # Python words the rest


def test_every_line_of_another_form_is_named() -> None:
    lines = ("alice", "alice USD = 1", "# bob", "bob USD = x", "carol USD = 1 at y")
    assert [refusal.split(": ")[0] for refusal in refusals(*lines)] == [
        "a.txt:1",
        "a.txt:4",
        "a.txt:5",
    ]


def test_beyond_some_number_refused_lines_are_counted() -> None:
    assert len(refusals(*["?"] * LISTED)) == LISTED
    found = refusals(*["?"] * (LISTED + 3))
    assert len(found) == LISTED + 1
    assert found[LISTED - 1].startswith(f"a.txt:{LISTED}: ")
    assert found[LISTED] == "The number of further lines that cannot be used: 3."


# -- whether it holds


def account_of(partition: int) -> str:
    names = (f"acc-{number}" for number in range(10_000))
    return next(name for name in names if partition_of(name.encode(), PARTITIONS) == partition)


ALICE: Final = account_of(0)
BOB: Final = account_of(1)

# What happened, and at which second Kafka noted it.
STORY: Final[Sequence[tuple[int, dict[str, Any]]]] = (
    (1, deposited(ALICE, amount="1000")),
    (2, deposited(BOB, asset="BTC", amount="3")),
    (3, placed(ALICE, quantity="2", limit_price="100")),
    (3, placed(BOB, quantity="1", limit_price="90", side="sell")),
    (4, filled(ALICE, price="90", fee="0.5")),
    (4, filled(BOB, price="90", fee="-0.2", side="sell", liquidity="maker")),
    (5, event("withdrawn", ALICE, transfer_id="w", asset="USD", amount="100", fee="2")),
)
ALICES_RECORDS: Final = 4


class Checked:
    """A ledger of the story above, and what checking assertions on it reads."""

    def __init__(self, settings: Settings) -> None:
        self.cluster = cluster_of(settings)
        self.cluster.ensure_topics()
        producer = raw_producer(settings)
        for second, happened in STORY:
            topic = topic_of(happened["type"])
            assert topic is not None
            producer.produce(
                settings.topic(topic),
                encode(happened),
                happened["account"].encode(),
                timestamp=second * 1000,
            )
        assert producer.flush(30) == 0
        self.read: list[int] = []
        origin = self.cluster.origin()
        self.rebuilder = Rebuilder(self.cluster, origin, warn=print, progress=self.read.append)

    def outcomes(self, lines: Iterable[str]) -> list[Outcome]:
        return evaluate(parse(lines, "a.txt"), self.rebuilder, self.rebuilder.ends(), PARTITIONS)

    def refusals(self, *lines: str) -> list[str]:
        with pytest.raises(InputError) as refused:
            self.outcomes(lines)
        return str(refused.value).split("\n")


@pytest.fixture
def checked(settings: Settings) -> Checked:
    return Checked(settings)


HOLDING: Final = f"""
# The end: bought 1 of 2 at 90 with a fee of 0.5, withdrew 100 with a fee of 2.
{ALICE} USD = 807.5
{ALICE} USD balance = 807.50
{ALICE} USD hold = 100
{ALICE} USD available = 707.5
{ALICE} USD debits = 192.5
{ALICE} USD credits = 1000
{ALICE} BTC = 1
{BOB} BTC = 2.0
{BOB} BTC hold = 0
{BOB} BTC debits = 1
{BOB} USD = 90.2
{BOB} USD available = 90.2

# System accounts, over the partitions of both: fees 0.5 and 2, a rebate of 0.2.
@fees USD = 2.3
@fees USD credits = 2.5
@fees USD debits = 0.2
@external USD = -900
@external BTC = -3
@clearing USD = 0
@clearing USD debits = 90
@clearing USD credits = 90
@adjustments USD = -0

# What the ledger does not know.
nobody USD = 0
{ALICE} EUR credits = 0
@fees EUR = 0

# Before the fills the whole order is held.
{ALICE} USD = 898 at fills=0
{ALICE} USD hold = 200 at fills=0
{ALICE} USD available = 698 at fills=0
{BOB} BTC available = 2 at fills=0
@fees USD = 2 at fills=0
@clearing USD debits = 0 at fills=0

# Before her withdrawal; only her partition has two transfers.
{ALICE} USD = 909.5 at transfers=1
{ALICE} USD = 909.5 at transfers:0=1
@fees USD = 0.3 at transfers=1
@external USD = -1000 at transfers:0=1

# System accounts stand at another place in each partition.
@fees USD = 1.8 at fills:0=0
@fees USD = 2.5 at fills:1=0
@fees USD = -0.2 at fills:0=0, transfers:0=1
@external BTC = 0 at 0, transfers:0=latest
@external USD = -900 at 0, transfers:0=latest

# No record at all; all of them.
{ALICE} USD credits = 0 at earliest
@external BTC = 0 at 0
{ALICE} USD = 807.5 at latest
{ALICE} USD = 807.5 at 1000000

# The records before a time: that of the fills, and around the withdrawal.
{ALICE} USD = 1000 at 1970-01-01T00:00:04Z
{ALICE} USD hold = 200 at 1970-01-01T01:00:04+01:00
{BOB} BTC available = 2 at 1970-01-01T00:00:04Z
{ALICE} USD = 909.5 at 1970-01-01T00:00:04.0001Z
@fees USD = 0.3 at 1970-01-01T00:00:05Z
@fees USD = 2.3 at 1970-01-01T00:00:05.001Z
{ALICE} USD credits = 0 at 1970-01-01T00:00:01Z
{ALICE} USD = 807.5 at 2999-01-01T00:00:00Z
"""


@pytest.mark.integration
def test_what_is_true_holds_at_any_watermark_and_time(checked: Checked) -> None:
    outcomes = checked.outcomes(HOLDING.splitlines())
    assert [one.as_json() for one in outcomes if not one.holds] == []
    assert [one.assertion for one in outcomes] == parse(HOLDING.splitlines(), "a.txt")
    assert checked.outcomes([]) == []


@pytest.mark.integration
def test_what_is_not_true_is_told_with_what_was_found(checked: Checked) -> None:
    lines = [
        f"{ALICE} USD = 807.500000000000000001  # off by the last digit",
        f"{BOB} BTC hold = 0",
        f"{BOB} BTC hold=2 at  fills:1=0 , latest",
        "nobody USD = 1",
    ]
    outcomes = checked.outcomes(lines)
    assert [one.holds for one in outcomes] == [False, True, False, False]
    assert [one.found for one in outcomes] == [Decimal(n) for n in ("807.5", "0", "1", "0")]
    assert outcomes[0].as_json() == {
        "file": "a.txt",
        "line": 1,
        "text": f"{ALICE} USD = 807.500000000000000001",
        "account": ALICE,
        "asset": "USD",
        "field": "balance",
        "position": None,
        "expected": "807.500000000000000001",
        "found": "807.5",
        "holds": False,
    }
    wrong_hold = outcomes[2].as_json()
    assert wrong_hold["position"] == "fills:1=0,latest"
    assert (wrong_hold["expected"], wrong_hold["found"]) == ("2", "1")


@pytest.mark.integration
def test_without_a_position_it_is_the_end_that_is_given(checked: Checked) -> None:
    ends = checked.rebuilder.ends()
    ends[0] |= {"fills": 0, "transfers": 1}
    assertions = parse([f"{ALICE} USD = 1000", f"{ALICE} USD hold = 200 at orders=1"], "a.txt")
    outcomes = evaluate(assertions, checked.rebuilder, ends, PARTITIONS)
    assert [one.holds for one in outcomes] == [True, True]


@pytest.mark.integration
def test_each_partition_is_read_once_and_only_where_needed(
    checked: Checked,
) -> None:
    def offsets_read(*lines: str) -> int:
        checked.read.clear()
        assert all(one.holds for one in checked.outcomes(lines))
        return sum(checked.read)

    ends = format_positions(checked.rebuilder.ends())
    at_the_end = (
        f"{ALICE} USD = 807.5",
        f"{ALICE} BTC = 1 at latest",
        f"{ALICE} USD hold = 100 at transfers=2",
        f"{ALICE} USD = 807.5 at {ends}",
        f"{ALICE} USD = 807.5 at fills:1=0",  # another watermark, but not of her partition
    )
    assert offsets_read(*at_the_end) == ALICES_RECORDS
    earlier = f"{ALICE} USD = 909.5 at transfers=1"
    assert offsets_read(*at_the_end, earlier) == ALICES_RECORDS
    # Neither of the two comes after the other.
    other = f"{ALICE} USD = 898 at fills=0"
    assert offsets_read(earlier, other) > ALICES_RECORDS
    assert offsets_read(earlier, other, *at_the_end) < 2 * ALICES_RECORDS
    assert offsets_read("nobody USD = 0") == 0
    everywhere = ("@fees USD = 2.3", f"{BOB} USD = 90.2", *at_the_end)
    assert offsets_read(*everywhere) == len(STORY)
    assert offsets_read("@fees USD = 2.5 at fills:1=0", *everywhere) == len(STORY)


@pytest.mark.integration
def test_positions_that_the_topics_do_not_have_are_refused_line_by_line(checked: Checked) -> None:
    assert checked.refusals(
        f"{ALICE} USD = 1 at orders:0=2",
        f"{ALICE} USD = 807.5",
        f"{ALICE} USD = 1 at fills:8=0",
        "",
        "nobody USD = 0 at orders:0=2  # beyond the end, whoever's partition it is",
        f"{ALICE} USD = 1 at 1, 2",
    ) == [
        "a.txt:1: 'orders:0=2' is beyond the end, which is at offset 1.",
        "a.txt:3: 'fills:8=0': there is no partition '8'; there are 0 to 7.",
        "a.txt:5: 'orders:0=2' is beyond the end, which is at offset 1.",
        "a.txt:6: '1' and '2' contradict each other; leave one out.",
    ]
