"""A hundred thousand mutated records: the fold, the door and a real worker against the reference.

The records are the same at every run; `FUZZ_SEED=<number>` in the environment makes others, and a
failure names its seed. Every disagreement that was ever found stays below as its own example.
"""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Final

import pytest

from ledger.codec import DECODERS
from ledger.errors import InvalidRecord
from ledger.intake import parse
from ledger.partitioner import partition_of
from ledger.projections.partition import Origin, Partition
from ledger.settings import Settings
from ledger.store import MemoryStore
from tests.reference import TOPICS, Reference, Verdict
from tests.strategies import (
    AMOUNTS,
    BAD_AMOUNTS,
    BAD_TEXTS,
    BAD_TIMES,
    BAD_VALUES,
    FIELDS,
    RAW_VALUES,
    REASONS,
    TIMES,
    TOPIC_OF,
    TYPES,
    VERSIONS,
    Event,
    Placed,
)
from tests.support import cluster_of, eventually, published_at_end, raw_producer, worker
from tests.test_worker import assert_published_equals_reference, read_dead_letters

SEED: Final = int(os.environ.get("FUZZ_SEED", "20150501"))
MUTATED: Final = 100_000
UNTOUCHED: Final = 25_000  # between them, so that there is state to disagree about
PARTITIONS: Final = 8
ORIGIN: Final = Origin(partitions=PARTITIONS)

Pick = random.Random
Change = Callable[[Pick, Event], None]
Edit = Callable[[Pick, bytes], bytes]


# -- valid events: few names, so that records meet

_ACCOUNTS: Final = (*(f"trader-{n:02}" for n in range(40)), "desk:7_x-Y", "a" * 128)
_LIMIT: Final = "99999999999999999999.999999999999999999"
_POSITIVE: Final = (
    "1", "2", "0.5", "1.0", "1.50", "10", "0.000000000000000001", "12345678901234567890",
    "99999999999999999999", "0.999999999999999999", _LIMIT,
)  # fmt: skip
_UNSIGNED: Final = (*_POSITIVE, "0", "-0", "0.00", "-0.000000000000000000")
_NOT_ZERO: Final = (*_POSITIVE, *(f"-{text}" for text in _POSITIVE))
_INSTRUMENTS: Final = (
    "BTC-USD",
    "BTC-USD",
    "ETH-USD",
    "USD-BTC",
    "@1-@1",
    f"{'A' * 32}-{'_' * 32}",
)
_ASSETS: Final = ("USD", "BTC", "ETH", "@107", "Z" * 32)
_IDS: Final = ("~" * 128, " ", '"', "\\", 'a"b\\c')


def _valid(pick: Pick) -> Event:
    """Return an event as the contract wants it."""
    choice, number = pick.choice, pick.randrange
    kind = choice(_KINDS)
    event: Event = {
        "type": kind,
        "version": 1,
        "event_id": f"e{number(10**6)}",
        "account": choice(_ACCOUNTS),
        "occurred_at": choice(TIMES),
    }
    if kind in ("deposited", "withdrawn", "adjusted"):
        event["transfer_id"] = f"x{number(200)}"
        event["asset"] = choice(_ASSETS)
        event["amount"] = choice(_NOT_ZERO if kind == "adjusted" else _POSITIVE)
        if kind == "withdrawn" and number(2):
            event["fee"] = choice(_UNSIGNED)
        if kind == "adjusted":
            event["reason"] = choice(REASONS)
        return event
    event["order_id"] = choice(_IDS) if number(50) == 0 else f"o{number(40)}"
    if kind in ("order_cancelled", "order_rejected"):
        event["reason"] = choice(REASONS)
    elif kind == "order_amended":
        event["revision"] = choice((1, 2, 3, number(1, 100), 2**63 - 1))
        for name in pick.sample(("quantity", "limit_price", "reserve"), number(1, 4)):
            event[name] = choice(_UNSIGNED if name == "reserve" else _POSITIVE)
    elif kind == "fill_busted":
        event["fill_id"] = f"f{number(8)}"
        event["trade_id"] = f"t{number(4)}"
        event["instrument"] = choice(_INSTRUMENTS)
        event["reason"] = choice(REASONS)
    else:
        event["instrument"] = choice(_INSTRUMENTS)
        event["side"] = choice(("buy", "sell"))
        if kind == "order_placed":
            event["order_type"] = choice(("limit", "market"))
            if event["order_type"] == "limit":
                event["limit_price"] = choice(_POSITIVE)
            with_reserve = number(3) == 0
            if with_reserve:
                event["reserve"] = choice(_UNSIGNED)
            if not with_reserve or number(2):
                event["quantity"] = choice(_POSITIVE)
        else:
            event["fill_id"] = f"f{number(8)}"
            event["trade_id"] = f"t{number(4)}"
            event["price"] = choice(_POSITIVE)
            event["quantity"] = choice(_POSITIVE)
            event["fee"] = choice((*_NOT_ZERO, "0", "-0"))
            event["fee_asset"] = choice(_ASSETS)
            event["liquidity"] = choice(("maker", "taker"))
            if number(3) == 0:
                event["quote_quantity"] = choice(_UNSIGNED)
    return event


_KINDS: Final = (*TOPIC_OF, "order_placed", "order_filled", "order_filled", "order_filled")


# -- changes to an event's fields

_LENGTHS: Final = (0, 1, 31, 32, 33, 127, 128, 129, 1023, 1024, 1025)
_CHARACTERS: Final = (
    "\x00", "\x1f", "\x20", "\x7e", "\x7f", "\x80", "\x85", "\n", "\r", "\t", "\u00a0", "\u2028",
    "\u0661", "\uff11", "\ufeff", "\ud800", "\udfff", "\U0001d11e", "é", "-", "@", ":", '"', "\\",
)  # fmt: skip
_NUMBERS: Final = (
    0, 1, -1, 1.0, 1.5, 1e22, 1e300, 2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64, 10**19, 10**20,
    10**40, -(2**63), -0.0, True, False, None,
)  # fmt: skip
_MORE_AMOUNTS: Final = (
    *BAD_AMOUNTS, _LIMIT, f"-{_LIMIT}", "9" * 20, "9" * 21, "1" + "0" * 19, "1" + "0" * 20,
    "0." + "0" * 18, "0." + "0" * 17 + "1", "0." + "0" * 18 + "1", "-0.0", "-00", "0e0", "1e400",
    "1e-400", "-.5", "0.", "", "+0", "∞", "-Infinity", "sNaN", "1_0", "१", "1٫5", "0b1",
)  # fmt: skip
_MORE_TIMES: Final = (
    *BAD_TIMES, *TIMES, "1969-12-31T23:59:59.9Z", "0001-01-01T00:00:00+00:00",
    "9999-12-31T23:59:59.999999999999999999999999Z", "2016-12-31T23:59:60+00:00",
    "1990-12-31T15:59:60-08:00", "2000-02-29T00:00:00Z", "1900-02-29T00:00:00Z",
    "2024-04-31T00:00:00Z", "2024-01-01T00:00:00+23:59", "2024-01-01T00:00:00-23:59",
    "2024-01-01T00:00:00-24:00", "2024-01-01T00:00:00+00:60", "2024-01-01T00:00:00Z ",
    " 2024-01-01T00:00:00Z", "2024-01-01T00:00:00ZZ", "2024-01-01t00:00:00z",
    "2024-01-01_00:00:00Z", "2024-01-01T00:00:00." + "1" * 400 + "Z", "-001-01-01T00:00:00Z",
    "2024-01-01T00:00:00+1:00", "2024-01-01T00:00:00\u221201:00", "2024-1-1T0:0:0Z",
)  # fmt: skip


def _name(pick: Pick, event: Event) -> str:
    return pick.choice(list(event)) if event else "account"


def _another_value(pick: Pick, event: Event) -> None:
    event[_name(pick, event)] = pick.choice(BAD_VALUES)


def _a_number(pick: Pick, event: Event) -> None:
    event[_name(pick, event)] = pick.choice(_NUMBERS)


def _its_text_as_a_number(pick: Pick, event: Event) -> None:
    name = _name(pick, event)
    try:
        event[name] = float(str(event[name]))
    except ValueError:
        event[name] = [event[name]]


def _another_text(pick: Pick, event: Event) -> None:
    event[_name(pick, event)] = pick.choice(BAD_TEXTS)


def _another_length(pick: Pick, event: Event) -> None:
    event[_name(pick, event)] = pick.choice("a1_~é") * pick.choice(_LENGTHS)


def _a_character_more(pick: Pick, event: Event) -> None:
    name = _name(pick, event)
    text = str(event[name])
    at = pick.randrange(len(text) + 1)
    event[name] = text[:at] + pick.choice(_CHARACTERS) + text[at:]


def _another_amount(pick: Pick, event: Event) -> None:
    names = [name for name in AMOUNTS if name in event]
    event[pick.choice(names or AMOUNTS)] = pick.choice(_MORE_AMOUNTS)


def _another_time(pick: Pick, event: Event) -> None:
    event["occurred_at"] = pick.choice(_MORE_TIMES)


def _another_type(pick: Pick, event: Event) -> None:
    event["type"] = pick.choice(TYPES)


def _another_version(pick: Pick, event: Event) -> None:
    event["version"] = pick.choice(
        (True, 1.0, "1", 0, 2, -1, None, [1], 2**64 + 1, "", 1.5, "true")
    )


def _another_revision(pick: Pick, event: Event) -> None:
    event["revision"] = pick.choice((0, 1, -1, 1.0, "1", True, 2**63 - 1, 2**63, 2**64, 10**25))


def _a_field_more(pick: Pick, event: Event) -> None:
    event[pick.choice(FIELDS)] = pick.choice(("1", "x", None, 1, "BTC-USD", "limit", "0"))


def _a_field_less(pick: Pick, event: Event) -> None:
    event.pop(_name(pick, event), None)


def _a_name_spelled_otherwise(pick: Pick, event: Event) -> None:
    name = _name(pick, event)
    value = event.pop(name, None)
    event[pick.choice((name.upper(), f"{name} ", f"{name}\x00", name[:-1], ""))] = value


_CHANGES: Final[tuple[Change, ...]] = (
    _another_value, _a_number, _its_text_as_a_number, _another_text, _another_length,
    _a_character_more, _another_amount, _another_amount, _another_time, _another_type,
    _another_version, _another_revision, _a_field_more, _a_field_less, _a_name_spelled_otherwise,
)  # fmt: skip


# -- changes to a record's bytes

_TOKENS: Final = (
    b"1e400", b"-1e400", b"NaN", b"Infinity", b"-Infinity", b"-0", b"-0.0", b"00", b"01", b"1.",
    b".5", b"+1", b"0x1", b"1e0", b"1E+0", b"1.0", b"true", b"false", b"null", b"nul", b"[]", b"{}",
    b"[1]", b'{"a":1}', b'""', b'"1"', b"'1'", b"9" * 19, b"9" * 20, b"9" * 400, b"1" * 5000,
    b"18446744073709551616", b"18446744073709551617", b"9223372036854775808", b"0.1e1",
    b'"\\u0031"', b'"\\ud800"', b'"\\ud834\\udd1e"', b'"\\udd1e\\ud834"', b'"\\x31"', b'"\xff"',
    b'"\xed\xa0\x80"', b'"\xc0\xb1"', b'"\xf4\x90\x80\x80"', b'"\t"', b'"\x00"', b'"\\u0000"',
    b"\xd9\xa1", b"", b" ", b"[" * 40 + b"]" * 40, b'"a" "b"', b'"a",',
)  # fmt: skip
_DEEP: Final = (b"[" * 3000, b'{"a":' * 3000, b"[" * 3000 + b"]" * 3000)
_WRAPPINGS: Final = (
    (b"\xef\xbb\xbf", b""), (b"", b"x"), (b"", b"{}"), (b"", b"\x00"), (b"", b","), (b"[", b"]"),
    (b" \t\r\n", b"\n \t\r"), (b"\x0b", b""), (b"\x0c", b""), (b"\xc2\xa0", b""), (b"", b"\xff"),
    (b"", b"//x"), (b"/**/", b""), (b"", b"null"), (b'"', b'"'), (b"\x00", b""), (b"", b"\xe2\x80"),
    (b'{"event":', b"}"), (b"", b" " * 200),
)  # fmt: skip
_SPACES: Final = (
    b" ",
    b"\t",
    b"\n",
    b"\r",
    b"\x0b",
    b"\x0c",
    b"\x00",
    b"\xc2\xa0",
    b"\xe2\x80\xa8",
)


def _at(pick: Pick, value: bytes) -> int:
    return pick.randrange(len(value) + 1)


def _flip_a_bit(pick: Pick, value: bytes) -> bytes:
    if not value:
        return b"\x01"
    at = pick.randrange(len(value))
    return value[:at] + bytes([value[at] ^ (1 << pick.randrange(8))]) + value[at + 1 :]


def _cut(pick: Pick, value: bytes) -> bytes:
    return value[: _at(pick, value)]


def _insert(pick: Pick, value: bytes) -> bytes:
    at = _at(pick, value)
    return value[:at] + pick.randbytes(pick.randint(1, 3)) + value[at:]


def _remove(pick: Pick, value: bytes) -> bytes:
    at = _at(pick, value)
    return value[:at] + value[at + pick.randint(1, 4) :]


def _repeat_a_part(pick: Pick, value: bytes) -> bytes:
    first, last = sorted((_at(pick, value), _at(pick, value)))
    return value[:last] + value[first:]


def _sign(pick: Pick, value: bytes) -> bytes:
    at = _at(pick, value)
    return (
        value[:at]
        + bytes([pick.choice(b'{}[]",:\\0123456789eE.+-tfn \x00\x1f\x7f\x80\xff')])
        + (value[at + pick.randrange(2) :])
    )


def _fields_of(value: bytes) -> list[bytes]:
    """Return the fields of an object as they are written; commas in texts part them too."""
    return value[1:-1].split(b", ")


def _name_twice(pick: Pick, value: bytes) -> bytes:
    fields = _fields_of(value)
    name, _, old = pick.choice(fields).partition(b": ")
    spelled = name.replace(b"e", b"\\u0065", pick.randrange(2))
    new = pick.choice((old, b'"1"', b"1", b"null", b"{}"))
    fields.insert(pick.randrange(len(fields) + 1), spelled + b": " + new)
    return b"{" + b", ".join(fields) + b"}"


def _raw_token(pick: Pick, value: bytes) -> bytes:
    fields = _fields_of(value)
    at = pick.randrange(len(fields))
    token = pick.choice(_DEEP if pick.randrange(60) == 0 else _TOKENS)
    fields[at] = fields[at].partition(b": ")[0] + b": " + token
    return b"{" + b", ".join(fields) + b"}"


def _version_token(pick: Pick, value: bytes) -> bytes:
    return value.replace(b'"version": 1', pick.choice(VERSIONS), 1)


def _escape(pick: Pick, value: bytes) -> bytes:
    """Write letters as escapes, in names and texts alike: most of them mean the same."""
    letter = pick.choice(b"eotad1_")
    escape = pick.choice((b"\\u%04x", b"\\u%04X", b"\\U%04x", b"\\u%03x", b"\\x%02x")) % letter
    return value.replace(bytes([letter]), escape, pick.randint(1, 3))


def _spaces(pick: Pick, value: bytes) -> bytes:
    return value.replace(pick.choice((b", ", b": ")), pick.choice(_SPACES).join((b",", b"")), 1)


def _space(pick: Pick, value: bytes) -> bytes:
    mark = pick.choice((b",", b":", b"{", b"}"))
    return value.replace(mark, mark + pick.choice(_SPACES), pick.randint(1, 3))


def _wrap(pick: Pick, value: bytes) -> bytes:
    before, after = pick.choice(_WRAPPINGS)
    return before + value + after


def _another_encoding(pick: Pick, value: bytes) -> bytes:
    text = value.decode("utf-8", "replace")
    return text.encode(pick.choice(("utf-16", "utf-16-le", "utf-32", "utf-7", "cp1252")), "replace")


def _fields_shuffled(pick: Pick, value: bytes) -> bytes:
    fields = _fields_of(value)
    pick.shuffle(fields)
    return b"{" + b", ".join(fields) + b"}"


_EDITS: Final[tuple[Edit, ...]] = (
    _flip_a_bit, _flip_a_bit, _cut, _insert, _remove, _repeat_a_part, _sign, _sign, _name_twice,
    _raw_token, _raw_token, _version_token, _escape, _escape, _spaces, _space, _wrap,
    _another_encoding, _fields_shuffled,
)  # fmt: skip


# -- records


def _written(event: Event, *, escaped: bool) -> bytes:
    try:
        return json.dumps(event, ensure_ascii=escaped).encode()
    except UnicodeEncodeError:  # a lone surrogate has only an escape
        return json.dumps(event).encode()


@dataclass(slots=True)
class _Sent:
    """A record before it is placed; `partition` None is that of its key."""

    topic: str
    key: bytes | None
    value: bytes | None
    partition: int | None = None


def _misplace(pick: Pick, sent: _Sent) -> None:
    key = sent.key or b""
    match pick.randrange(5):
        case 0:
            sent.topic = pick.choice(TOPICS)
        case 1:
            sent.key = pick.choice(
                (None, b"", key.upper(), key + b" ", key + b"\x00", b"\xff", b"bob")
            )
        case 2:
            sent.key = pick.choice(_ACCOUNTS).encode()
        case 3:
            sent.value = pick.choice(RAW_VALUES)
        case _:
            sent.partition = pick.randrange(PARTITIONS)


def _record(pick: Pick, before: list[Event], *, mutated: bool) -> _Sent:
    """Return a valid record, or one with a mutation or two, which may leave it valid.

    A third of them are made of an event that was there before.
    """
    if before and pick.randrange(3) == 0:
        event = pick.choice(before) | {"event_id": "again"}
    else:
        event = _valid(pick)
        before.append(dict(event))
    topic, key = TOPIC_OF[str(event["type"])], str(event["account"]).encode()
    ways = pick.choice((1, 1, 1, 2, 4, 3, 5)) if mutated else 0
    if ways & 1:
        pick.choice(_CHANGES)(pick, event)
        if pick.randrange(4) == 0:  # the key follows the account
            key = str(event.get("account")).encode("utf-8", "replace")
    sent = _Sent(topic, key, _written(event, escaped=pick.randrange(8) == 0))
    if ways & 2:
        assert sent.value is not None
        sent.value = pick.choice(_EDITS)(pick, sent.value)
    if ways & 4:
        _misplace(pick, sent)
    return sent


def _log(seed: int, mutated: int, untouched: int) -> list[Placed]:
    pick = random.Random(seed)
    kinds = [True] * mutated + [False] * untouched
    pick.shuffle(kinds)
    next_offset: Counter[tuple[str, int]] = Counter()
    before: list[Event] = []
    log = []
    for kind in kinds:
        sent = _record(pick, before, mutated=kind)
        partition = sent.partition
        if partition is None:
            partition = partition_of(sent.key or b"", PARTITIONS)
        slot = (sent.topic, partition)
        log.append(Placed(*slot, next_offset[slot], sent.key, sent.value))
        next_offset[slot] += 1
    return log


@dataclass(frozen=True)
class Fuzz:
    """The records, and what the reference makes of them."""

    log: list[Placed]
    verdicts: list[Verdict]
    naive: Reference


@pytest.fixture(scope="module")
def fuzz() -> Fuzz:
    print(f"FUZZ_SEED={SEED}")
    log = _log(SEED, MUTATED, UNTOUCHED)
    naive = Reference(PARTITIONS)
    return Fuzz(log, [naive.apply(*placed) for placed in log], naive)


def _disagreements(
    log: Sequence[Placed], found: Sequence[str], expected: Sequence[str]
) -> list[str]:
    """Return the first few records judged differently, with the seed that repeats them."""
    lines = [
        f"{mine}, but the reference says {theirs}: {placed.topic}:{placed.partition} "
        f"key={placed.key!r} value={placed.value!r}"[:2000]
        for placed, mine, theirs in zip(log, found, expected, strict=True)
        if mine != theirs
    ]
    return [f"FUZZ_SEED={SEED}: {len(lines)} disagreements", *lines[:5]] if lines else []


def _folded(log: Sequence[Placed]) -> tuple[dict[int, Partition], list[str]]:
    """Return the states that the records lead to, and each record's verdict."""
    partitions = {number: Partition(number, MemoryStore(), ORIGIN) for number in range(PARTITIONS)}
    verdicts: list[str] = []
    for placed in log:
        partitions[placed.partition].apply(
            placed.topic, [placed], None, lambda _t, _r, _e, verdict: verdicts.append(verdict)
        )
    for partition in partitions.values():
        partition.freeze()
        partition.settle()
    return partitions, verdicts


def test_the_fold_judges_mutated_records_as_the_reference_does(fuzz: Fuzz) -> None:
    partitions, verdicts = _folded(fuzz.log)
    assert not _disagreements(fuzz.log, verdicts, fuzz.verdicts)
    for number, partition in partitions.items():
        assert partition.counts == fuzz.naive.counts_of_partition(number)
        found = {
            account: {asset: tuple(map(Decimal, texts)) for asset, texts in rows.items()}
            for account, rows in partition.balances()
        }
        assert found == fuzz.naive.balances_of_partition(number)


def test_the_mutated_records_are_worth_the_time(fuzz: Fuzz) -> None:
    """Every verdict is met often on every topic, so that agreement means something."""
    assert len(fuzz.log) == MUTATED + UNTOUCHED
    for tally in fuzz.naive.counts().values():
        assert min(tally.values()) > 400, (SEED, fuzz.naive.counts())


def _accepts(accept: Callable[[bytes], object], value: bytes) -> bool:
    try:
        accept(value)
    except InvalidRecord:
        return False
    return True


def test_the_door_accepts_the_mutated_values_that_the_stream_accepts(fuzz: Fuzz) -> None:
    """What `ledger publish` takes is valid in exactly one topic, and nothing else is."""
    for placed in fuzz.log:
        value = placed.value
        if value is not None:
            try:
                topics = [parse(value)[0]]
            except InvalidRecord:
                topics = []
            found = [topic for topic in TOPICS if _accepts(DECODERS[topic], value)]
            assert found == topics, (SEED, value)


@pytest.mark.integration
def test_a_worker_folds_mutated_records_as_the_reference_does(
    settings: Settings, tmp_path: Path, fuzz: Fuzz
) -> None:
    """It never stops; and what it could not apply is in `dead-letters` once, byte for byte."""
    cluster_of(settings).ensure_topics()
    producer = raw_producer(settings)
    with worker(settings, tmp_path / "worker.log") as process:
        for start in range(0, len(fuzz.log), 20_000):
            for placed in fuzz.log[start : start + 20_000]:
                topic = settings.topic(placed.topic)
                producer.produce(topic, placed.value, placed.key, placed.partition)
            assert producer.flush(60) == 0
        published = eventually(lambda: published_at_end(settings), 120)
        assert process.poll() is None
        process.terminate()
        assert process.wait(30) == 0
    assert_published_equals_reference(settings, published, fuzz.naive)
    letters = Counter(
        (source, headers["key"], value, headers["reason"])
        for source, value, headers in read_dead_letters(settings)
    )
    expected = Counter(
        (f"{p.topic}:{p.partition}:{p.offset}".encode(), p.key, p.value, verdict.encode())
        for p, verdict in zip(fuzz.log, fuzz.verdicts, strict=True)
        if verdict in ("invalid", "conflict")
    )
    assert letters == expected
