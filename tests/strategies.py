"""Hypothesis strategies for small, hostile event logs; independent of the ledger's code.

A log is what some producers might have sent: few accounts, orders, fills and assets, so that
records meet; the same event again in other words, or with other content; records that are broken
in every way the contract names. Nearly every draw is therefore interesting, and small.
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from tests.reference import TOPICS
from tests.reference import partition_of as partition_of

T = TypeVar("T")
V = TypeVar("V")
Event = dict[str, object]


class Sent(NamedTuple):
    """A record as a producer sends it."""

    topic: str
    key: bytes | None
    value: bytes | None


class Placed(NamedTuple):
    """A record as it stands in the log: the arguments of ``Reference.apply``."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None


TOPIC_OF = {
    "order_placed": "orders",
    "order_amended": "orders",
    "order_cancelled": "orders",
    "order_rejected": "orders",
    "order_filled": "fills",
    "fill_busted": "fills",
    "deposited": "transfers",
    "withdrawn": "transfers",
    "adjusted": "transfers",
}


def weighted(*choices: tuple[int, SearchStrategy[V]]) -> SearchStrategy[V]:
    """One of the strategies, each as often as the number before it says (one_of has no weights)."""
    table = [strategy for weight, strategy in choices for _ in range(weight)]
    return st.integers(0, len(table) - 1).flatmap(table.__getitem__)


# Valid fields. A value named several times is drawn more often.

ACCOUNTS = ("alice", "bob", "desk:7_x-Y")
ORDER_IDS = ("o1", "o1", "o2")
FILL_IDS = ("f1", "f2", "f3")
TRADE_IDS = ("t1", "t2")
TRANSFER_IDS = ("x1", "x2", "x3")
INSTRUMENTS = ("BTC-USD", "BTC-USD", "BTC-USD", "BTC-USD", "ETH-USD", "USD-BTC", "@1-@1")
ASSETS = ("USD", "USD", "BTC", "BTC", "ETH")
SIDES = ("buy", "sell")
TINY = "0.000000000000000001"
HUGE = "99999999999999999999.999999999999999999"
POSITIVE = ("1", "2", "3", "1.5", "0.5", "10", "1.0", "1.50", "2.000", "0.25", TINY, HUGE)
NOT_NEGATIVE = (*POSITIVE, "0", "0", "-0", "0.00")
SIGNED = (*NOT_NEGATIVE, "-1", "-1.0", "-0.5", f"-{TINY}", f"-{HUGE}")
NOT_ZERO = (*POSITIVE, "-1", "-1.0", "-0.5", "-3", f"-{TINY}", f"-{HUGE}")
REVISIONS = (1, 2, 3, 2**63 - 1)
REASONS = ("user", "user", "done", "käufer\n\u0000", "𝄞", "r" * 1024)
TIMES = (
    "2024-01-01T00:00:00Z",
    "2024-01-01t01:00:00.000+01:00",  # the same moment
    "2024-01-01T00:00:00.1Z",
    "2023-12-31T23:00:00.10z",
    "2024-01-01T00:00:01-00:00",
    "2024-01-01T00:00:00.00000000000000000001Z",
    "2024-02-29T23:59:59.999999999+23:59",
    "0001-01-01T00:00:00Z",
    "9999-12-31T23:59:59.9999999Z",
)


def _event(
    type_: str,
    required: dict[str, Sequence[object]],
    optional: dict[str, Sequence[object]] | None = None,
) -> SearchStrategy[Event]:
    """Events of one type, whose fields are each one of the values named."""
    always: dict[str, Sequence[object]] = {
        "type": (type_,),
        "version": (1,),
        "event_id": ("e1", "e2"),
        "account": (*ACCOUNTS[:1] * 3, *ACCOUNTS),
        "occurred_at": TIMES,
        **required,
    }
    return st.fixed_dictionaries(
        {name: st.sampled_from(values) for name, values in always.items()},
        optional={name: st.sampled_from(values) for name, values in (optional or {}).items()},
    )


_ORDER = {"order_id": ORDER_IDS, "instrument": INSTRUMENTS, "side": SIDES}
_LIMIT = {"order_type": ("limit",), "limit_price": POSITIVE}
_MARKET = {"order_type": ("market",)}
_PLACED: list[SearchStrategy[Event]] = [
    _event("order_placed", {**_ORDER, **_LIMIT, "quantity": POSITIVE}),
    _event("order_placed", {**_ORDER, **_MARKET, "quantity": POSITIVE}),
    _event("order_placed", {**_ORDER, **_LIMIT, "reserve": NOT_NEGATIVE}, {"quantity": POSITIVE}),
    _event("order_placed", {**_ORDER, **_MARKET, "reserve": NOT_NEGATIVE}, {"quantity": POSITIVE}),
]
_REVISED = {"order_id": ORDER_IDS, "revision": REVISIONS}
_AMENDED: list[SearchStrategy[Event]] = [
    _event(
        "order_amended",
        {**_REVISED, "quantity": POSITIVE},
        {"limit_price": POSITIVE, "reserve": NOT_NEGATIVE},
    ),
    _event("order_amended", {**_REVISED, "limit_price": POSITIVE}, {"reserve": NOT_NEGATIVE}),
    _event("order_amended", {**_REVISED, "reserve": NOT_NEGATIVE}),
]
_FILLED: SearchStrategy[Event] = _event(
    "order_filled",
    {
        **_ORDER,
        "fill_id": FILL_IDS,
        "trade_id": TRADE_IDS,
        "price": POSITIVE,
        "quantity": POSITIVE,
        "fee": SIGNED,
        "fee_asset": ASSETS,
        "liquidity": ("maker", "taker"),
    },
    {"quote_quantity": NOT_NEGATIVE},
)
_BUSTED: SearchStrategy[Event] = _event(
    "fill_busted",
    {
        "order_id": ORDER_IDS,
        "fill_id": FILL_IDS,
        "trade_id": TRADE_IDS,
        "instrument": INSTRUMENTS,
        "reason": REASONS,
    },
)
_CANCELLED: SearchStrategy[Event] = _event(
    "order_cancelled", {"order_id": ORDER_IDS, "reason": REASONS}, {"instrument": INSTRUMENTS}
)
_REJECTED: SearchStrategy[Event] = _event(
    "order_rejected", {"order_id": ORDER_IDS, "reason": REASONS}
)
_TRANSFER = {"transfer_id": TRANSFER_IDS, "asset": ASSETS}
_TRANSFERS: list[SearchStrategy[Event]] = [
    _event("deposited", {**_TRANSFER, "amount": POSITIVE}),
    _event("withdrawn", {**_TRANSFER, "amount": POSITIVE}, {"fee": NOT_NEGATIVE}),
    _event("adjusted", {**_TRANSFER, "amount": NOT_ZERO, "reason": REASONS}),
]


def events() -> SearchStrategy[Event]:
    """Valid events of every type, as the fields of their JSON object."""
    return weighted(
        (5, st.one_of(_PLACED)),
        (7, _FILLED),
        (3, _BUSTED),
        (2, st.one_of(_AMENDED)),
        (1, _CANCELLED),
        (1, _REJECTED),
        (4, st.one_of(_TRANSFERS)),
    )


# Spellings: the same event in other words.


def _dumped(event: Event) -> bytes:
    return json.dumps(event, ensure_ascii=False).encode()


def _escaped(event: Event) -> bytes:
    return json.dumps(event, indent=1).replace("order", "\\u006frder").encode()


def _backwards(event: Event) -> bytes:
    return b"\r\n\t " + _dumped(dict(reversed(event.items()))) + b" \n"


SPELLINGS: tuple[Callable[[Event], bytes], ...] = (_dumped, _escaped, _backwards)

AMOUNTS = ("price", "quantity", "limit_price", "reserve", "quote_quantity", "fee", "amount")


def _respelled_amount(text: str) -> str:
    """The same amount with one zero more at its end, or, where none fits, as it is."""
    whole, point, fraction = text.partition(".")
    return f"{whole}.{fraction}0" if len(fraction) < 18 else whole + point + fraction


def _respelled(event: Event) -> Event:
    """The same content in other text; event_id and occurred_at, which are not content, differ."""
    same = {
        name: _respelled_amount(str(value)) if name in AMOUNTS else value
        for name, value in event.items()
    }
    if same["type"] == "withdrawn":
        same.setdefault("fee", "0.0")
    return same | {"event_id": "again", "occurred_at": "2024-06-01T12:00:00Z"}


# Breaking: what makes a record invalid, or nearly so.

BAD_VALUES: tuple[object, ...] = (
    None, True, False, 0, 1, 1.0, 1.5, 2, -1, 2**63, 10**40, [], {}, ["1"], "", " ", "1",
)  # fmt: skip
BAD_AMOUNTS = (
    "+1", "01", "1.", ".5", "1e3", "1E3", "-", "--1", "1_000", "1,5", " 1", "1 ", "1\n", "NaN",
    "Infinity", "0x1", "１", "٣", "-1", "0", "0.0", "-0", "00", "1.0000000000000000000",
    "100000000000000000000", "0.1234567890123456789",
)  # fmt: skip
BAD_TIMES = (
    "2024-01-01T00:00:00", "2024-01-01", "2024-01-01 00:00:00Z", "2024-01-01T00:00Z",
    "2024-01-01T00:00:00.Z", "2024-01-01T00:00:00,5Z", "2024-02-30T00:00:00Z",
    "2023-02-29T00:00:00Z", "2024-13-01T00:00:00Z", "2024-00-01T00:00:00Z",
    "2016-12-31T23:59:60Z", "2024-01-01T24:00:00Z", "2024-01-01T00:60:00Z",
    "2024-01-01T00:00:00+24:00", "2024-01-01T00:00:00+01:60", "2024-01-01T00:00:00+0100",
    "2024-01-01T00:00:00+01", "0000-01-01T00:00:00Z", "0001-01-01T00:00:00+00:01",
    "9999-12-31T23:59:59-00:01", "20240101T000000Z", "2024-W01-1T00:00:00Z",
    "２０２４-01-01T00:00:00Z", "2024-01-01T00:00:00Z\n", "1704067200", "10000-01-01T00:00:00Z",
    "0001-01-01T23:59:00+23:59", "9999-12-31T00:00:59-23:59",  # the last two are valid
)  # fmt: skip
BAD_TEXTS = (
    "", "é", "a b", "a\n", "a\u0000", "\u007f", "a" * 128, "a" * 129, "r" * 1025, "@fees",
    "@clearing", "BTC", "-USD", "BTC-", "BTC-USD-X", "BTC/USD", "a" * 32, "a" * 33, "BUY", "buy ",
    "Limit", "\ud800", "x\udc00y",
)  # fmt: skip
TYPES = (*TOPIC_OF, "order_replaced", "", "Deposited", "deposited ")
FIELDS = (
    "type", "version", "event_id", "account", "occurred_at", "order_id", "instrument", "side",
    "order_type", "quantity", "limit_price", "reserve", "revision", "reason", "fill_id",
    "trade_id", "price", "quote_quantity", "fee", "fee_asset", "liquidity", "transfer_id", "asset",
    "amount", "note",
)  # fmt: skip
RAW_VALUES: tuple[bytes | None, ...] = (
    None, b"", b" ", b"{}", b"[]", b"null", b"1", b'"deposited"', b"{", b"\xff\xfe{\x00}\x00",
    b'{"type": "deposited"}', b"[" * 5000, b'{"a":' * 5000, b"NaN", b"\x00",
)  # fmt: skip

Change = Callable[[Event], Event]
Edit = Callable[[bytes], bytes]


def _with_field(name: str, value: object) -> Change:
    return lambda event: event | {name: value}


def _with_one_of_its_fields(number: int, value: object) -> Change:
    return lambda event: event | {list(event)[number % len(event)]: value}


def _with_its_amounts(text: str) -> Change:
    return lambda event: event | {name: text for name in AMOUNTS if name in event}


def _without_one_of_its_fields(number: int) -> Change:
    def change(event: Event) -> Event:
        names = list(event)
        names.pop(number % len(names))
        return {name: event[name] for name in names}

    return change


_NUMBERS = st.integers(0, 15)


def changes() -> SearchStrategy[Change]:
    """Changes to an event that mostly make it invalid, or another content of the same identity."""
    return st.one_of(
        st.builds(_with_one_of_its_fields, _NUMBERS, st.sampled_from(BAD_VALUES)),
        st.builds(_with_one_of_its_fields, _NUMBERS, st.sampled_from(BAD_TEXTS)),
        st.builds(_with_its_amounts, st.sampled_from(BAD_AMOUNTS)),
        st.builds(_with_field, st.sampled_from(FIELDS), st.sampled_from((None, "1", "BTC-USD"))),
        st.builds(_with_field, st.just("occurred_at"), st.sampled_from(BAD_TIMES)),
        st.builds(_with_field, st.just("type"), st.sampled_from(TYPES)),
        st.builds(_with_field, st.just("version"), st.sampled_from((1.0, True, 2, 0, "1"))),
        st.builds(_without_one_of_its_fields, _NUMBERS),
    )


def _one_changed(number: int, value: object) -> Change:
    """Another valid content under, mostly, the same identity."""

    def change(event: Event) -> Event:
        names = [name for name in ("reason", "trade_id", "side", *AMOUNTS) if name in event]
        name = names[number % len(names)]
        if name in AMOUNTS:
            return event | {name: value}
        return event | {name: "sell" if name == "side" and event[name] == "buy" else "buy"}

    return change


def _with_byte(position: int, byte: int) -> Edit:
    def edit(value: bytes) -> bytes:
        at = position % len(value)
        return value[:at] + bytes([byte]) + value[at + 1 :]

    return edit


def _without_byte(position: int) -> Edit:
    return lambda value: value[: position % len(value)] + value[position % len(value) + 1 :]


def _cut(position: int) -> Edit:
    return lambda value: value[: position % len(value)]


def _replacing(old: bytes, new: bytes) -> Edit:
    return lambda value: value.replace(old, new, 1)


def _wrapped(before: bytes, after: bytes) -> Edit:
    return lambda value: before + value + after


VERSIONS = (
    b'"version": 1.0', b'"version": 1e0', b'"version": 01', b'"version": +1', b'"version": -1',
    b'"version": NaN', b'"version": Infinity', b'"version": -Infinity, "version": 1',
    b'"version": 2, "version": 1', b'"version": 1, "version": 2', b'"version": "1"',
    b'"version": ' + b"1" * 5000, b"'version': 1", b'"version": 1,', b'"version": 1 /* one */',
)  # fmt: skip
_POSITIONS = st.integers(0, 400)


def _doubled(value: bytes) -> bytes:
    """Each name twice, saying the same: readers might differ where it does not."""
    return value[:-1] + b", " + value[1:]


def edits() -> SearchStrategy[Edit]:
    """Changes to a record's bytes; the record may be valid even then."""
    return st.one_of(
        st.builds(_with_byte, _POSITIONS, st.sampled_from(b'\x00\x1f "\\{}:,-.0129eE\xc3\xff')),
        st.builds(_without_byte, _POSITIONS),
        st.just(_doubled),
        st.builds(_cut, _POSITIONS),
        st.builds(_replacing, st.just(b'"version": 1'), st.sampled_from(VERSIONS)),
        st.builds(
            _wrapped,
            st.sampled_from((b"\xef\xbb\xbf", b"", b"[", b"\x0b", b"\xc2\xa0", b"//\n")),
            st.sampled_from((b"", b"]", b"}", b"x", b"{}", b"\x00")),
        ),
    )


# Logs. Each record is made by a step from the events before it, so that a log shrinks by steps.


def _sent(event: Event, spelling: Callable[[Event], bytes] = _dumped) -> Sent:
    """The event in its own topic, under its own account."""
    topic = TOPIC_OF.get(str(event.get("type")), "transfers")
    try:
        value = spelling(event)
    except UnicodeEncodeError:  # a lone surrogate can be sent only as an escape
        value = _escaped(event)
    return Sent(topic, str(event.get("account")).encode("utf-8", "surrogatepass"), value)


class _Fresh(NamedTuple):
    event: Event
    spelling: Callable[[Event], bytes]

    def send(self, before: list[Event]) -> Sent:
        before.append(self.event)
        return _sent(self.event, self.spelling)


class _Related(NamedTuple):
    """An event about the order, and for a bust the fill, that an earlier event is about."""

    back: int
    event: Event
    spelling: Callable[[Event], bytes]

    def send(self, before: list[Event]) -> Sent:
        event = self.event
        if before:
            earlier = before[-1 - self.back % len(before)]
            names = {"account", "order_id", "instrument", "side", "trade_id"}
            if event["type"] != earlier["type"]:
                names.add("fill_id")
            shared = names & event.keys() & earlier.keys()
            event = event | {name: earlier[name] for name in shared}
        before.append(event)
        return _sent(event, self.spelling)


class _Again(NamedTuple):
    """An earlier event once more; or, when there is none, this one for the first time."""

    back: int
    otherwise: Event
    change: Change
    spelling: Callable[[Event], bytes]

    def send(self, before: list[Event]) -> Sent:
        if not before:
            before.append(self.otherwise)
        return _sent(self.change(before[-1 - self.back % len(before)]), self.spelling)


class _Broken(NamedTuple):
    event: Event
    change: Change

    def send(self, before: list[Event]) -> Sent:
        return _sent(self.change(self.event))


class _Edited(NamedTuple):
    event: Event
    edit: Edit

    def send(self, before: list[Event]) -> Sent:
        sent = _sent(self.event)
        return sent._replace(value=self.edit(sent.value or b""))


class _Misplaced(NamedTuple):
    """A good event in a topic or under a key that may be another's."""

    event: Event
    topic: str | None
    key: bytes | None

    def send(self, before: list[Event]) -> Sent:
        sent = _sent(self.event)
        if self.topic is not None:
            return sent._replace(topic=self.topic)
        return sent._replace(key=self.key)


class _Raw(NamedTuple):
    topic: str
    account: str
    value: bytes | None

    def send(self, before: list[Event]) -> Sent:
        return Sent(self.topic, self.account.encode(), self.value)


_Step = _Fresh | _Related | _Again | _Broken | _Edited | _Misplaced | _Raw

_KEYS = st.sampled_from((None, b"", b"alice", b"bob", b"Alice", b"alice ", b"\xff"))
_SPELLINGS = st.sampled_from(SPELLINGS)
_BACK = st.integers(0, 5)
_FRESH: SearchStrategy[_Step] = st.builds(_Fresh, events(), _SPELLINGS)
_RELATED: SearchStrategy[_Step] = st.builds(_Related, _BACK, events(), _SPELLINGS)
_DUPLICATE: SearchStrategy[_Step] = st.builds(
    _Again, _BACK, events(), st.just(_respelled), _SPELLINGS
)
_CONFLICT: SearchStrategy[_Step] = st.builds(
    _Again,
    _BACK,
    events(),
    st.builds(_one_changed, _NUMBERS, st.sampled_from(POSITIVE)),
    _SPELLINGS,
)
_VALID_STEPS = weighted((3, _FRESH), (6, _RELATED), (1, _DUPLICATE), (1, _CONFLICT))
_INVALID_STEPS: SearchStrategy[_Step] = st.one_of(
    st.builds(_Broken, events(), changes()),
    st.builds(_Edited, events(), edits()),
    st.builds(_Misplaced, events(), st.sampled_from(TOPICS), st.none()),
    st.builds(_Misplaced, events(), st.none(), _KEYS),
    st.builds(
        _Raw, st.sampled_from(TOPICS), st.sampled_from(ACCOUNTS), st.sampled_from(RAW_VALUES)
    ),
)


def _send_all(steps: list[_Step]) -> list[Sent]:
    before: list[Event] = []
    return [step.send(before) for step in steps]


def _lists(steps: SearchStrategy[_Step], max_size: int) -> SearchStrategy[list[_Step]]:
    """Lists of steps, half of them long: by itself st.lists makes mostly short ones."""
    return st.lists(steps, max_size=max_size) | st.lists(
        steps, min_size=max_size // 2, max_size=max_size
    )


def event_logs(*, max_size: int = 24) -> SearchStrategy[list[Sent]]:
    """Logs of up to `max_size` records of all three topics, about a quarter of them broken."""
    steps = weighted((3, _VALID_STEPS), (1, _INVALID_STEPS))
    return _lists(steps, max_size).map(_send_all)


def valid_event_logs(*, max_size: int = 24) -> SearchStrategy[list[Sent]]:
    """The same without broken records: each is applied, a duplicate or a conflict."""
    return _lists(_VALID_STEPS, max_size).map(_send_all)


def placed(
    log: Sequence[Sent],
    partitions: int,
    *,
    gaps: Sequence[int] = (),
    shifts: Sequence[int] = (),
) -> list[Placed]:
    """The records where Kafka's partitioner puts them; a null key goes to partition 0.

    Per record, `gaps` says how many offsets are left out before it, `shifts` how many partitions
    behind its own it stands; none where they are silent.
    """
    next_offset: Counter[tuple[str, int]] = Counter()
    records = []
    for number, sent in enumerate(log):
        gap = gaps[number] if number < len(gaps) else 0
        shift = shifts[number] if number < len(shifts) else 0
        own = 0 if sent.key is None else partition_of(sent.key, partitions)
        partition = (own + shift) % partitions
        offset = next_offset[sent.topic, partition] + gap
        next_offset[sent.topic, partition] = offset + 1
        records.append(Placed(sent.topic, partition, offset, sent.key, sent.value))
    return records


def by_topic_partition(log: Sequence[Placed]) -> list[list[Placed]]:
    """The log cut into its topic partitions, each in offset order."""
    logs: dict[tuple[str, int], list[Placed]] = {}
    for record in log:
        logs.setdefault((record.topic, record.partition), []).append(record)
    return list(logs.values())


@st.composite
def placed_logs(
    draw: st.DrawFn, *, partitions: int = 8, max_size: int = 24, with_gaps: bool = True
) -> list[Placed]:
    """Placed logs in which a few records stand in a partition that is not their key's.

    With `with_gaps`, offsets have gaps, as transaction markers leave them.
    """
    log = draw(event_logs(max_size=max_size))
    size = len(log)
    gaps = st.lists(st.sampled_from((0, 0, 0, 1, 5)), min_size=size, max_size=size)
    shifts = st.lists(st.sampled_from((0,) * 15 + (1,)), min_size=size, max_size=size)
    return placed(log, partitions, gaps=draw(gaps) if with_gaps else (), shifts=draw(shifts))


def interleavings(logs: Sequence[Sequence[T]]) -> SearchStrategy[list[T]]:
    """One list of all the records of `logs` that keeps the order within each of them.

    Shrinks towards one log after the other.
    """
    size = sum(len(log) for log in logs)
    choices = st.integers(0, max(0, len(logs) - 1))
    return st.lists(choices, min_size=size, max_size=size).map(
        lambda chosen: _interleaved(logs, chosen)
    )


def _interleaved(logs: Sequence[Sequence[T]], chosen: list[int]) -> list[T]:
    taken = [0] * len(logs)
    result = []
    for choice in chosen:
        left = [number for number, log in enumerate(logs) if taken[number] < len(log)]
        number = left[choice % len(left)]
        result.append(logs[number][taken[number]])
        taken[number] += 1
    return result
