"""The fold's own reading of records: it never accepts what the codec refuses, and reads the same.

`ledger._fold.is_sure` says which records the fold takes without asking `ledger.codec`. It may leave
any record to the codec, so it has to be right in one direction only; but it is to know the usual
ones, or the fold would not be quick.
"""

from __future__ import annotations

import json
import string
from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle
from typing import Final, NamedTuple

import pytest
from hypothesis import event as note
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger._fold import is_sure
from ledger.codec import DECODERS
from ledger.errors import InvalidRecord
from ledger.projections.entries import META_KEY
from ledger.projections.partition import INVALID, Origin, Partition
from ledger.store import MemoryStore
from tests.strategies import TOPIC_OF

Field = tuple[str, str]
"""The name of a field and the JSON of its value."""
Texts = Mapping[str, Sequence[str]]
"""Values of fields by their names, as JSON."""


class Shape(NamedTuple):
    """What an event of a type has: fields that must be there, fields that may be."""

    required: tuple[str, ...]
    optional: tuple[str, ...] = ()


def quoted(*texts: str) -> tuple[str, ...]:
    return tuple(f'"{text}"' for text in texts)


EVERY: Final = ("version", "event_id", "account", "occurred_at")
PLACED: Final = (*EVERY, "order_id", "instrument", "side", "order_type")
MOVED: Final = (*EVERY, "transfer_id", "asset", "amount")
EXECUTED: Final = (*EVERY, "fill_id", "trade_id", "order_id", "instrument")
TRADED: Final = (*EXECUTED, "side", "price", "quantity", "fee", "fee_asset", "liquidity")
SHAPES: Final[Mapping[str, Sequence[Shape]]] = {
    "order_placed": (
        Shape((*PLACED, "limit_price", "quantity"), ("reserve",)),
        Shape((*PLACED, "limit_price", "reserve"), ("quantity",)),
        Shape((*PLACED, "quantity"), ("reserve",)),
        Shape((*PLACED, "reserve"), ("quantity",)),
    ),
    "order_amended": (
        Shape((*EVERY, "order_id", "revision", "quantity"), ("limit_price", "reserve")),
        Shape((*EVERY, "order_id", "revision", "limit_price"), ("quantity", "reserve")),
        Shape((*EVERY, "order_id", "revision", "reserve"), ("quantity", "limit_price")),
    ),
    "order_cancelled": (Shape((*EVERY, "order_id", "reason"), ("instrument",)),),
    "order_rejected": (Shape((*EVERY, "order_id", "reason")),),
    "order_filled": (Shape(TRADED, ("quote_quantity",)),),
    "fill_busted": (Shape((*EXECUTED, "reason")),),
    "deposited": (Shape(MOVED),),
    "withdrawn": (Shape(MOVED, ("fee",)),),
    "adjusted": (Shape((*MOVED, "reason")),),
}

IDS: Final = quoted("1", " ", "~" * 128, "".join(string.punctuation.replace("\\", "").split('"')))
LARGEST: Final = f"{'9' * 20}.{'9' * 18}"
POSITIVE: Final = quoted("1", "0.5", "1.0", "1.50", f"0.{'0' * 17}1", "9" * 20, LARGEST)
UNSIGNED: Final = (*POSITIVE, *quoted("0", "0.0", f"0.{'0' * 18}"))
SIGNED: Final = (*UNSIGNED, *quoted("-1", "-0.5", f"-{LARGEST}"))
INSTRUMENTS: Final = quoted("BTC-USD", "@1-@1", f"{'A' * 32}-{'_' * 32}")
ASSETS: Final = quoted("USD", "@107", "_", "z" * 32)
PLAIN: Final[Texts] = {
    "version": ("1",),
    "event_id": IDS,
    "account": quoted("alice", "desk:7_x-Y", "a" * 128, "0"),
    "occurred_at": quoted(
        "2015-05-01T00:00:06.337Z",
        "1000-01-01t00:00:00z",
        "8999-12-28T23:59:59.999999999999999999999+23:59",
        "2024-02-28T12:30:45-00:00",
    ),
    "order_id": IDS,
    "fill_id": IDS,
    "trade_id": IDS,
    "transfer_id": IDS,
    "instrument": INSTRUMENTS,
    "side": quoted("buy", "sell"),
    "liquidity": quoted("maker", "taker"),
    "revision": ("1", "2", "9" * 18),
    "quantity": POSITIVE,
    "price": POSITIVE,
    "limit_price": POSITIVE,
    "reserve": UNSIGNED,
    "quote_quantity": UNSIGNED,
    "fee_asset": ASSETS,
    "asset": ASSETS,
    "reason": quoted("user", " ", "r" * 1024),
}
"""Values that the fold knows by itself; some more depend on the type of the event."""

AMOUNTS_AT_LIMITS: Final = (
    *SIGNED,
    *quoted(
        "9" * 21, "1" + "0" * 20, f"1.{'0' * 19}", f"{'9' * 21}.1", f"-{'9' * 21}", "-0", "-0.0",
        "00", "01", "-01", "00.5", ".5", "-.5", "1.", "-1.", "-", "", ".", "+1", "--1", "1e0",
        "1E5", "1e-1", "1.1.1", "1,5", "1 ", " 1", "1_0", "0x1", "NaN", "Infinity", "\u0661",
    ),
    "1", "1.0", "-1", "null", "true",
)  # fmt: skip
TIMES_AT_LIMITS: Final = quoted(
    *(f"2023-{month:02}-{day:02}T00:00:00Z" for month in range(14) for day in (0, 28, 29, 30, 31)),
    *(f"{year}-02-29T00:00:00Z" for year in (1900, 2000, 2023, 2024)),
    *(f"{year}-06-15T00:00:00Z" for year in ("0000", "0999", "1000", "8999", "9000", "9999")),
    "9999-12-31T23:59:59-23:59", "0001-01-01T00:00:00+23:59", "0001-01-01T00:00:00Z",
    "2016-12-31T23:59:60Z", "2016-12-28T23:59:60Z", "2023-01-01T24:00:00Z", "2023-01-01T23:60:00Z",
    "2023-01-32T00:00:00Z", "2023-01-01T00:00:00", "2023-01-01T00:00:00.Z", "2023-01-01T00:00:00.1",
    "2023-01-01T00:00:00,1Z", "2023-01-01T00:00Z", "2023-01-01 00:00:00Z", "2023-01-01",
    "2023-01-01T00:00:00+24:00", "2023-01-01T00:00:00+00:60", "2023-01-01T00:00:00+0000",
    "2023-01-01T00:00:00+00", "2023-01-01T00:00:00+00:0", "2023-01-01T00:00:00+00:000",
    "2023-01-01T00:00:00ZZ", "2023-01-01T00:00:00Z ", " 2023-01-01T00:00:00Z", "", "Z",
    "2023-1-01T00:00:00Z", "12023-01-01T00:00:00Z", "-2023-01-01T00:00:00Z", "2023-01-01T0:00:00Z",
    "2023/01/01T00:00:00Z", "2023-01-01T00.00.00Z", "2023-01-01T00:00:0xZ", "202a-01-01T00:00:00Z",
)  # fmt: skip
NUMBERS_AT_LIMITS: Final = (
    "0", "1", "2", "01", "10", "-1", "-0", "+1", "1.0", "1e0", "1E0", "1.5", "1 ", '"1"', "null",
    "true", "", "{}", "[1]", "0x1", "1_0", "9" * 18, "9" * 19, "9" * 400,
    str(2**63 - 1), str(2**63),
)  # fmt: skip
NAMES_AT_LIMITS: Final = (
    *quoted(
        "", "x", "x" * 128, "x" * 129, "a b", "\u00e4", "\x7f", "\\u0041", "\\n", "\\", "a\\", "\t",
        "\n", "\0", "\ud7ff", "\\ud800", "BTC", "BTC-", "-USD", "BTC-USD-X", "BTC_USD", "BTC/USD",
        f"{'A' * 33}-USD", f"USD-{'A' * 33}", "A" * 32, "A" * 33, "r" * 1024, "r" * 1025, "@", "@a",
        "a.b", "a-b", "a:b", "buy", "Buy", "sell", "limit", "market", "stop", "maker", "taker",
        *SHAPES,
    ),
    "1", "null", "[]", "{}", "true", '"', "'x'", "",
)  # fmt: skip
AT_LIMITS: Final = (
    *AMOUNTS_AT_LIMITS,
    *TIMES_AT_LIMITS,
    *NUMBERS_AT_LIMITS,
    *NAMES_AT_LIMITS,
)

HOSTILE: Final = ' \t\n\r"\\{}[]:,.-+/@_0129eEaZTz\x00\x1f\x7f\xa0\xe4\u2028'
"""What takes a character's place, or comes between two."""


def values_of(kind: str, shape: Shape, name: str) -> Sequence[str]:
    """Return the plain values of a field of an event."""
    if name == "order_type":
        return quoted("limit" if "limit_price" in shape.required else "market")
    if name == "fee":
        return SIGNED if kind == "order_filled" else UNSIGNED
    if name == "amount":
        signs = ("", "-") if kind == "adjusted" else ("",)
        return tuple(f'"{sign}{text[1:]}' for text in POSITIVE for sign in signs)
    return PLAIN[name]


def written(fields: Sequence[Field], blanks: Sequence[str] = ("",)) -> bytes:
    """Return the JSON of fields; `blanks` stand in turn wherever white space may."""
    places = cycle(blanks)
    parts = [f'{next(places)}"{name}"{next(places)}:{next(places)}{text}' for name, text in fields]
    body = ",".join(f"{part}{next(places)}" for part in parts)
    return f"{next(places)}{{{body}}}{next(places)}".encode()


def is_accepted(topic: str, value: bytes) -> bool:
    try:
        DECODERS[topic](value)
    except InvalidRecord:
        return False
    return True


def require_no_more_than_the_codec(topic: str, value: bytes) -> bool:
    """Return whether the fold takes a record without the codec, which must then take it, too."""
    sure = is_sure(topic, value)
    assert not sure or is_accepted(topic, value), f"{topic}: {value!r}"
    return sure


def usual(kind: str, shape: Shape) -> list[Field]:
    """Return the event of a shape that has everything, with the first of all plain values."""
    names = (*shape.required, *shape.optional)
    return [("type", f'"{kind}"'), *((n, values_of(kind, shape, n)[0]) for n in names)]


SHAPES_OF_KINDS: Final = [(kind, shape) for kind, shapes in SHAPES.items() for shape in shapes]


@st.composite
def plain_events(draw: st.DrawFn) -> tuple[str, list[Field]]:
    """A topic, and the fields of an event that the fold knows by itself."""
    kind, shape = draw(st.sampled_from(SHAPES_OF_KINDS))
    names = [*shape.required, *(name for name in shape.optional if draw(st.booleans()))]
    fields = [(name, draw(st.sampled_from(values_of(kind, shape, name)))) for name in names]
    return TOPIC_OF[kind], draw(st.permutations([("type", f'"{kind}"'), *fields]))


@st.composite
def mutated_events(draw: st.DrawFn) -> tuple[str, bytes]:
    """A topic, and a record that is nearly an event, or still is one."""
    topic, fields = draw(plain_events())
    for _ in range(draw(st.integers(0, 2))):
        place = draw(st.integers(0, len(fields) - 1))
        name, text = fields[place]
        change = draw(st.sampled_from(("value", "repeat", "drop", "name", "other")))
        if change == "value":
            fields[place] = (name, draw(st.sampled_from(AT_LIMITS)))
        elif change == "repeat":
            again = (name, draw(st.sampled_from((text, *AT_LIMITS))))
            fields.insert(draw(st.integers(0, len(fields))), again)
        elif change == "drop" and len(fields) > 1:
            del fields[place]
        elif change == "name":
            names = (*PLAIN, "order_type", "amount", "fee", "Type", "typ\\u0065", "", "x", "\u00e4")
            fields[place] = (draw(st.sampled_from(names)), text)
        elif change == "other":
            topic = draw(st.sampled_from(sorted(DECODERS)))
    blanks = st.sampled_from(("", "", "", " ", "  ", "\t", "\n", "\r", "\x0b", "\x00", "\xa0"))
    value = written(fields, draw(st.lists(blanks, min_size=1, max_size=4)))
    for _ in range(draw(st.integers(0, 2))):
        value = edited(
            value,
            draw(st.integers(0, len(value))),
            draw(st.sampled_from((0, 1))),
            draw(st.sampled_from(("", *HOSTILE))).encode(),
        )
    return topic, value


def edited(value: bytes, place: int, removed: int, inserted: bytes) -> bytes:
    return value[:place] + inserted + value[place + removed :]


# -- what is certain is valid


@settings(max_examples=600)
@given(mutated_events())
def test_what_the_codec_refuses_is_never_certain(record: tuple[str, bytes]) -> None:
    topic, value = record
    sure = require_no_more_than_the_codec(topic, value)
    note("certain" if sure else "accepted" if is_accepted(topic, value) else "refused")


@pytest.mark.parametrize(("kind", "shape"), SHAPES_OF_KINDS)
def test_no_value_of_a_field_is_certain_that_the_codec_refuses(kind: str, shape: Shape) -> None:
    topic, fields = TOPIC_OF[kind], usual(kind, shape)
    for place, (name, _) in enumerate(fields):
        for text in AT_LIMITS:
            changed = [*fields[:place], (name, text), *fields[place + 1 :]]
            require_no_more_than_the_codec(topic, written(changed))
            require_no_more_than_the_codec(topic, written([*fields, (name, text)]))
        require_no_more_than_the_codec(topic, written([*fields[:place], *fields[place + 1 :]]))


@pytest.mark.parametrize("kind", SHAPES)
def test_no_change_of_one_character_is_certain_that_the_codec_refuses(kind: str) -> None:
    topic, value = TOPIC_OF[kind], written(usual(kind, SHAPES[kind][0]))
    certain = sum(require_no_more_than_the_codec(topic, changed) for changed in neighbours(value))
    assert certain > len(value)  # else nothing was looked at


def neighbours(value: bytes) -> Iterator[bytes]:
    """Yield what one character more, less or other makes of a record."""
    for place in range(len(value) + 1):
        yield edited(value, place, 1, b"")
        yield value[:place]
        for character in HOSTILE:
            yield edited(value, place, 0, character.encode())
            yield edited(value, place, 1, character.encode())


# -- what is usual is certain, and read as the codec reads it


@settings(max_examples=200)
@given(plain_events(), st.lists(st.sampled_from(("", " ", "   ")), min_size=1, max_size=4))
def test_plain_events_are_certain(event: tuple[str, list[Field]], blanks: list[str]) -> None:
    topic, fields = event
    value = written(fields, blanks)
    assert is_accepted(topic, value)
    assert is_sure(topic, value)
    assert is_sure(topic, json.dumps(json.loads(value)).encode())
    assert not any(is_sure(other, value) for other in DECODERS if other != topic)


@settings(max_examples=100)
@given(st.lists(plain_events(), min_size=1, max_size=4))
def test_the_fold_reads_what_the_codec_reads(events: list[tuple[str, list[Field]]]) -> None:
    by_itself, by_codec = (Partition(0, MemoryStore(), Origin()) for _ in range(2))
    for offset, (topic, fields) in enumerate(events):
        key = str(dict(fields)["account"]).strip('"').encode()
        value = written(fields)
        same = written(fields, ["\t"])  # JSON, too, but not plain
        assert is_sure(topic, value)
        assert not is_sure(topic, same)
        by_itself.apply(topic, [_Record(offset, key, value)])
        by_codec.apply(topic, [_Record(offset, key, same)])
    assert by_itself.counts == by_codec.counts
    assert not any(tally[INVALID] for tally in by_itself.counts.values())
    assert _entries(by_itself) == _entries(by_codec)


class _Record(NamedTuple):
    offset: int
    key: bytes
    value: bytes


def _entries(partition: Partition) -> dict[bytes, bytes | None]:
    """Return what a partition changed, but for its header: that has digests of the records."""
    found = dict(partition.freeze().items())
    del found[META_KEY]
    return found
