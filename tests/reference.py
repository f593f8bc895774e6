"""A naive reference ledger: the contract's rules written down once more, sharing no code.

It keeps every accepted record and folds nothing on arrival: each question is answered by walking
over the records from the beginning. So it cannot depend on how the topics interleaved, and each
rule of the contract is one short piece of code. Amounts are Decimals under ``EXACT``, a context
that raises rather than rounds; whoever computes with its answers must do so under it too::

    with localcontext(EXACT):
        balance = credits - debits

Where the contract leaves a choice, the choice is named next to the rule.
"""

import json
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Context, Decimal, DivisionByZero, Inexact, InvalidOperation, localcontext
from functools import cache
from typing import Literal, NamedTuple

Verdict = Literal["applied", "duplicate", "conflict", "invalid"]

TOPICS = ("orders", "fills", "transfers")
VERDICTS: tuple[Verdict, ...] = ("applied", "duplicate", "conflict", "invalid")
FLAGS = (
    "order_unknown",
    "overfilled",
    "order_mismatch",
    "fill_after_cancel",
    "overdrawn",
    "bust_without_fill",
    "one_sided_trade",
)
SYSTEM_ACCOUNTS = ("@clearing", "@fees", "@external", "@adjustments")
EXACT = Context(prec=1000, traps=[Inexact, InvalidOperation, DivisionByZero])
ZERO = Decimal(0)


# Partitions: Kafka's default partitioner.


def murmur2(data: bytes) -> int:
    """The unsigned 32-bit murmur2 hash of `data`, as org.apache.kafka.common.utils.Utils has it."""
    mask, m = 0xFFFFFFFF, 0x5BD1E995
    h = (0x9747B28C ^ len(data)) & mask
    whole = len(data) - len(data) % 4
    for start in range(0, whole, 4):
        k = int.from_bytes(data[start : start + 4], "little")
        k = (k * m) & mask
        k ^= k >> 24
        k = (k * m) & mask
        h = ((h * m) & mask) ^ k
    if whole < len(data):
        h ^= int.from_bytes(data[whole:], "little")
        h = (h * m) & mask
    h ^= h >> 13
    h = (h * m) & mask
    return h ^ (h >> 15)


@cache
def partition_of(key: bytes, partitions: int) -> int:
    """The partition, 0 to `partitions` - 1, that Kafka's default partitioner gives to `key`."""
    return (murmur2(key) & 0x7FFFFFFF) % partitions


# Time.

Instant = tuple[datetime, str]

_TIME = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})[Tt]([0-9]{2}):([0-9]{2}):([0-9]{2})(?:\.([0-9]+))?"
    r"(?:[Zz]|([+-])([01][0-9]|2[0-3]):([0-5][0-9]))"
)


def instant_of(text: str) -> Instant:
    """The moment an RFC 3339 text names: whole seconds in UTC, then the fraction's digits.

    Trailing zeros are dropped from the digits, so that instants compare exactly as tuples.
    Raises ValueError or OverflowError where the text names none.
    """
    match = _TIME.fullmatch(text)
    if match is None:
        raise ValueError(text)
    year, month, day, hour, minute, second, fraction, sign, zone_hour, zone_minute = match.groups()
    local = datetime(  # noqa: DTZ001 (the zone is taken off below)
        int(year), int(month), int(day), int(hour), int(minute), int(second)
    )
    if sign is not None:
        east = timedelta(hours=int(zone_hour), minutes=int(zone_minute))
        local = local - east if sign == "+" else local + east
    return local, (fraction or "").rstrip("0")


# Section 2: what a valid record is.


class InvalidRecordError(Exception):
    """A record that the contract calls invalid."""


@dataclass(slots=True)
class Record:
    """One accepted record: where it stood and its fields, texts and amounts apart."""

    topic: str
    partition: int
    offset: int
    occurred_at: str
    text: dict[str, str]
    amount: dict[str, Decimal]
    revision: int  # 0 where the type has none

    @property
    def type(self) -> str:
        return self.text["type"]

    def content(self) -> tuple[dict[str, str], dict[str, Decimal], int]:
        """Everything but event_id and occurred_at; Decimals are equal by value, `1` = `1.0`."""
        return self.text, self.amount, self.revision


_ACCOUNT = re.compile(r"[A-Za-z0-9_:-]{1,128}")
_ASSET = re.compile(r"[A-Za-z0-9@_]{1,32}")
_INSTRUMENT = re.compile(r"[A-Za-z0-9@_]{1,32}-[A-Za-z0-9@_]{1,32}")
_ID = re.compile(r"[ -~]{1,128}")
_REASON = re.compile(r"[^\ud800-\udfff]{1,1024}")
_AMOUNT = re.compile(r"-?(0|[1-9][0-9]{0,19})(\.[0-9]{1,18})?")

_TEXTS = {
    "type": re.compile("[a-z_]+"),
    "event_id": _ID,
    "account": _ACCOUNT,
    "order_id": _ID,
    "fill_id": _ID,
    "trade_id": _ID,
    "transfer_id": _ID,
    "instrument": _INSTRUMENT,
    "asset": _ASSET,
    "fee_asset": _ASSET,
    "side": re.compile("buy|sell"),
    "order_type": re.compile("limit|market"),
    "liquidity": re.compile("maker|taker"),
    "reason": _REASON,
}
_AMOUNTS = ("quantity", "limit_price", "reserve", "price", "quote_quantity", "fee", "amount")
_MORE_THAN_ZERO = ("price", "quantity", "limit_price")
_NOT_NEGATIVE = ("reserve", "quote_quantity")

_COMMON = {"type", "version", "event_id", "account", "occurred_at"}


class Shape(NamedTuple):
    """The topic of an event type and its fields beside the common ones."""

    topic: str
    required: set[str]
    optional: set[str]


_SHAPES = {
    "order_placed": Shape(
        "orders",
        {"order_id", "instrument", "side", "order_type"},
        {"quantity", "limit_price", "reserve"},
    ),
    "order_amended": Shape(
        "orders", {"order_id", "revision"}, {"quantity", "limit_price", "reserve"}
    ),
    "order_cancelled": Shape("orders", {"order_id", "reason"}, {"instrument"}),
    "order_rejected": Shape("orders", {"order_id", "reason"}, set()),
    "order_filled": Shape(
        "fills",
        {"fill_id", "trade_id", "order_id", "instrument", "side", "price", "quantity"}
        | {"fee", "fee_asset", "liquidity"},
        {"quote_quantity"},
    ),
    "fill_busted": Shape(
        "fills", {"fill_id", "order_id", "trade_id", "instrument", "reason"}, set()
    ),
    "deposited": Shape("transfers", {"transfer_id", "asset", "amount"}, set()),
    "withdrawn": Shape("transfers", {"transfer_id", "asset", "amount"}, {"fee"}),
    "adjusted": Shape("transfers", {"transfer_id", "asset", "amount", "reason"}, set()),
}


def _require(condition: bool, reason: str) -> None:
    if not condition:
        raise InvalidRecordError(reason)


def _refuse_constant(name: str) -> object:
    raise InvalidRecordError(f"{name} is not JSON")


def _integer(digits: str) -> int | None:
    """The integer; None, which no field takes, for one beyond anything a field can hold."""
    return int(digits) if len(digits) <= 30 else None


def _each_once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    if len(dict(pairs)) < len(pairs):
        raise InvalidRecordError("a name is given twice")
    return dict(pairs)


def _fields(value: bytes | None) -> dict[str, object]:
    if value is None:
        raise InvalidRecordError("no value")
    try:
        fields: object = json.loads(
            value.decode("utf-8"),
            parse_constant=_refuse_constant,
            parse_int=_integer,
            object_pairs_hook=_each_once,
        )
    except (ValueError, RecursionError) as error:
        raise InvalidRecordError("not JSON in UTF-8") from error
    if not isinstance(fields, dict):
        raise InvalidRecordError("not an object")
    return fields


def _whole(fields: dict[str, object], name: str) -> int:
    value = fields[name]
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidRecordError(f"{name} is not an integer")
    return value


def _string(fields: dict[str, object], name: str) -> str:
    value = fields[name]
    if not isinstance(value, str):
        raise InvalidRecordError(f"{name} is not a string")
    return value


def decode(
    topic: str, partition: int, offset: int, key: bytes | None, value: bytes | None, partitions: int
) -> Record:
    """The record at `topic`, `partition`, `offset`; raises InvalidRecordError if it is none."""
    fields = _fields(value)
    _require(fields.keys() >= _COMMON, "a common field is missing")
    _require(_whole(fields, "version") == 1, "another version")
    shape = _SHAPES.get(_string(fields, "type"))
    if shape is None:
        raise InvalidRecordError("unknown type")
    _require(shape.topic == topic, "a type of another topic")
    names = fields.keys() - _COMMON
    _require(names >= shape.required, "a field is missing")
    _require(names <= shape.required | shape.optional, "a field is unknown")

    text: dict[str, str] = {}
    amount: dict[str, Decimal] = {}
    for name in fields.keys() - {"version", "revision", "occurred_at"}:
        string = sys.intern(_string(fields, name))
        if name in _AMOUNTS:
            _require(_AMOUNT.fullmatch(string) is not None, f"{name} is not an amount")
            amount[name] = Decimal(string)
        else:
            _require(_TEXTS[name].fullmatch(string) is not None, f"{name} is malformed")
            text[name] = string
    occurred_at = _string(fields, "occurred_at")
    try:
        instant_of(occurred_at)
    except (ValueError, OverflowError) as error:
        raise InvalidRecordError("occurred_at is no time") from error
    revision = _whole(fields, "revision") if "revision" in shape.required else 0

    type_ = text["type"]
    for name in _MORE_THAN_ZERO:
        _require(name not in amount or amount[name] > 0, f"{name} is not above zero")
    for name in _NOT_NEGATIVE:
        _require(name not in amount or amount[name] >= 0, f"{name} is below zero")
    if type_ == "order_placed":
        is_limit = text["order_type"] == "limit"
        _require(("limit_price" in amount) == is_limit, "limit_price is for limit orders")
        _require("quantity" in amount or "reserve" in amount, "neither quantity nor reserve")
    if type_ == "order_amended":
        _require(1 <= revision < 2**63, "revision out of range")
        _require(len(amount) > 0, "nothing amended")
    if type_ in ("deposited", "withdrawn"):
        _require(amount["amount"] > 0, "amount is not above zero")
    if type_ == "adjusted":
        _require(amount["amount"] != 0, "amount is zero")
    if type_ == "withdrawn":
        amount.setdefault("fee", ZERO)
        _require(amount["fee"] >= 0, "fee is below zero")

    _require(key == text["account"].encode(), "the key is not the account")
    _require(partition == partition_of(key or b"", partitions), "not the key's partition")
    del text["event_id"]
    return Record(topic, partition, offset, occurred_at, text, amount, revision)


# Section 4: identity. An account's records are kept by it, so the account is not part of it here.

Identity = tuple[str, ...]


def identity_of(record: Record) -> Identity:
    """What makes two records of one account the same event."""
    text = record.text
    if record.type in ("order_placed", "order_cancelled", "order_rejected"):
        return record.type, text["order_id"]
    if record.type == "order_amended":
        return record.type, text["order_id"], str(record.revision)
    if record.type in ("order_filled", "fill_busted"):
        return record.type, text["order_id"], text["fill_id"]
    return "transfer", text["transfer_id"]


# Section 3: postings.


class Line(NamedTuple):
    """One posting; either debit or credit is zero."""

    account: str
    asset: str
    debit: Decimal
    credit: Decimal


class Entry(NamedTuple):
    """One journal entry: when and where the record stood that posted it, and its postings."""

    occurred_at: str
    topic: str
    partition: int
    offset: int
    lines: list[Line]


def _move(debited: str, credited: str, asset: str, amount: Decimal) -> list[Line]:
    """`amount` of `asset` from `debited` to `credited`; no postings if it is zero."""
    if amount == 0:
        return []
    return [Line(debited, asset, amount, ZERO), Line(credited, asset, ZERO, amount)]


def notional_of(fill: Record) -> Decimal:
    """What changed hands in the quote asset."""
    quote_quantity = fill.amount.get("quote_quantity")
    if quote_quantity is not None:
        return quote_quantity
    return fill.amount["price"] * fill.amount["quantity"]


def lines_of(record: Record) -> list[Line]:
    """The postings of a fill or a transfer by itself; none for other records."""
    customer = record.text["account"]
    if record.type == "order_filled":
        base, quote = record.text["instrument"].split("-")
        quantity, fee, fee_asset = (
            record.amount["quantity"],
            record.amount["fee"],
            record.text["fee_asset"],
        )
        if record.text["side"] == "buy":
            lines = _move(customer, "@clearing", quote, notional_of(record))
            lines += _move("@clearing", customer, base, quantity)
        else:
            lines = _move("@clearing", customer, quote, notional_of(record))
            lines += _move(customer, "@clearing", base, quantity)
        if fee > 0:
            lines += _move(customer, "@fees", fee_asset, fee)
        else:
            lines += _move("@fees", customer, fee_asset, -fee)
        return lines
    if record.type == "deposited":
        return _move("@external", customer, record.text["asset"], record.amount["amount"])
    if record.type == "withdrawn":
        asset = record.text["asset"]
        return _move(customer, "@external", asset, record.amount["amount"]) + _move(
            customer, "@fees", asset, record.amount["fee"]
        )
    if record.type == "adjusted":
        asset, amount = record.text["asset"], record.amount["amount"]
        if amount > 0:
            return _move("@adjustments", customer, asset, amount)
        return _move(customer, "@adjustments", asset, -amount)
    return []


def reversed_lines(lines: list[Line]) -> list[Line]:
    """The postings that undo `lines`: debit and credit exchanged."""
    return [Line(line.account, line.asset, line.credit, line.debit) for line in lines]


class Order(NamedTuple):
    """What is known of an order.

    `status` is unknown without an order_placed, whatever else names the order; then nothing is
    filled, used or held. `remaining` is None without a quantity.
    """

    status: Literal["open", "closed", "unknown"]
    filled: Decimal
    used: Decimal
    remaining: Decimal | None
    hold: Decimal
    hold_asset: str | None


UNKNOWN_ORDER = Order("unknown", ZERO, ZERO, None, ZERO, None)

Balances = dict[str, dict[str, tuple[Decimal, Decimal, Decimal]]]


class _Orders(NamedTuple):
    """An account's accepted order and fill records, sorted by what they say about which order."""

    named: set[str]
    placed: dict[str, Record]
    amended: dict[str, list[Record]]
    cancelled: dict[str, Record]
    rejected: dict[str, Record]
    fills: dict[str, list[Record]]
    busts: dict[tuple[str, str], Record]  # by order_id and fill_id


class Reference:
    """The ledger's whole state, as the contract says it follows from the records applied."""

    def __init__(self, partitions: int) -> None:
        self._partitions = partitions
        self._accepted: dict[str, dict[Identity, Record]] = {}
        self._counts: Counter[tuple[str, int, Verdict]] = Counter()
        self._next_offset: dict[tuple[str, int], int] = {}

    def apply(
        self, topic: str, partition: int, offset: int, key: bytes | None, value: bytes | None
    ) -> Verdict:
        """What becomes of the record at `offset`; those of a topic partition come in order."""
        if topic not in TOPICS:
            raise ValueError(f"{topic} is no input topic")
        if offset < self._next_offset.get((topic, partition), 0):
            raise ValueError(f"{topic}:{partition}:{offset} comes out of order")
        self._next_offset[topic, partition] = offset + 1
        verdict = self._verdict(topic, partition, offset, key, value)
        self._counts[topic, partition, verdict] += 1
        return verdict

    def _verdict(
        self, topic: str, partition: int, offset: int, key: bytes | None, value: bytes | None
    ) -> Verdict:
        try:
            record = decode(topic, partition, offset, key, value, self._partitions)
        except InvalidRecordError:
            return "invalid"
        accepted = self._accepted.setdefault(record.text["account"], {})
        identity = identity_of(record)
        first = accepted.get(identity)
        if first is None:
            accepted[identity] = record
            return "applied"
        return "duplicate" if first.content() == record.content() else "conflict"

    # Counts.

    def counts(self) -> dict[str, dict[str, int]]:
        """Topic -> verdict -> number of records; every topic and verdict is there."""
        totals = {topic: {str(verdict): 0 for verdict in VERDICTS} for topic in TOPICS}
        for (topic, _, verdict), number in self._counts.items():
            totals[topic][verdict] += number
        return totals

    def counts_of_partition(self, partition: int) -> dict[str, dict[str, int]]:
        """The same for one partition."""
        return {
            topic: {verdict: self._counts[topic, partition, verdict] for verdict in VERDICTS}
            for topic in TOPICS
        }

    # Journal and balances.

    def _entries(self, account: str) -> Iterator[Entry]:
        """The journal entries of a customer account's records, unsorted.

        A reversal stands where the later of fill and bust stands, `occurred_at` included, and
        after the fill's own entry.
        """
        accepted = self._accepted.get(account, {})
        for record in accepted.values():
            lines = lines_of(record)
            if not lines:
                continue
            yield Entry(record.occurred_at, record.topic, record.partition, record.offset, lines)
            if record.type != "order_filled":
                continue
            bust = accepted.get(("fill_busted", record.text["order_id"], record.text["fill_id"]))
            if bust is not None:
                later = bust if bust.offset > record.offset else record
                yield Entry(
                    later.occurred_at,
                    later.topic,
                    later.partition,
                    later.offset,
                    reversed_lines(lines),
                )

    def journal(self, account: str) -> list[Entry]:
        """The entries with a posting to `account`, a system account or a customer's, in order.

        By occurred_at, then transfers, orders, fills, then partition and offset. Each entry has
        all its postings, those to other accounts too; postings of zero are left out, and so are
        entries that have no postings.
        """
        with localcontext(EXACT):
            customers = list(self._accepted) if account in SYSTEM_ACCOUNTS else [account]
            entries = [
                entry
                for customer in customers
                for entry in self._entries(customer)
                if any(line.account == account for line in entry.lines)
            ]
        topics = ("transfers", "orders", "fills")
        return sorted(  # stable: a reversal stays behind the entry at the same position
            entries,
            key=lambda entry: (
                instant_of(entry.occurred_at),
                topics.index(entry.topic),
                entry.partition,
                entry.offset,
            ),
        )

    def _balances(self, customers: list[str]) -> Balances:
        debits: defaultdict[tuple[str, str], Decimal] = defaultdict(Decimal)
        credits_: defaultdict[tuple[str, str], Decimal] = defaultdict(Decimal)
        holds: defaultdict[tuple[str, str], Decimal] = defaultdict(Decimal)
        with localcontext(EXACT):
            for customer in customers:
                for entry in self._entries(customer):
                    for line in entry.lines:
                        debits[line.account, line.asset] += line.debit
                        credits_[line.account, line.asset] += line.credit
                for order in self.orders(customer).values():
                    if order.hold_asset is not None:
                        holds[customer, order.hold_asset] += order.hold
        balances: Balances = {}
        for account, asset in sorted(debits.keys() | holds.keys()):
            row = debits[account, asset], credits_[account, asset], holds[account, asset]
            if any(row):
                balances.setdefault(account, {})[asset] = row
        return balances

    def balances(self) -> Balances:
        """Account -> asset -> (debits, credits, hold); rows of nothing but zeros are left out.

        System accounts are summed over the partitions.
        """
        return self._balances(list(self._accepted))

    def balances_of_partition(self, partition: int) -> Balances:
        """The same, of one partition: its customers and its share of the system accounts."""
        return self._balances(
            [
                account
                for account in self._accepted
                if partition_of(account.encode(), self._partitions) == partition
            ]
        )

    # Orders.

    def _sorted_orders(self, account: str) -> _Orders:
        found = _Orders(set(), {}, defaultdict(list), {}, {}, defaultdict(list), {})
        for record in self._accepted.get(account, {}).values():
            order_id = record.text.get("order_id")
            if order_id is None:
                continue
            found.named.add(order_id)
            if record.type == "order_placed":
                found.placed[order_id] = record
            elif record.type == "order_amended":
                found.amended[order_id].append(record)
            elif record.type == "order_cancelled":
                found.cancelled[order_id] = record
            elif record.type == "order_rejected":
                found.rejected[order_id] = record
            elif record.type == "order_filled":
                found.fills[order_id].append(record)
            else:
                found.busts[order_id, record.text["fill_id"]] = record
        return found

    def orders(self, account: str) -> dict[str, Order]:
        """Every order that a record of `account` names, by order id."""
        found = self._sorted_orders(account)
        with localcontext(EXACT):
            return {order_id: self._order(found, order_id) for order_id in sorted(found.named)}

    @staticmethod
    def _terms(found: _Orders, order_id: str) -> dict[str, Decimal]:
        """quantity, limit_price and reserve, each by the highest revision that names it."""
        terms = dict(found.placed[order_id].amount)
        for amendment in sorted(found.amended.get(order_id, []), key=lambda each: each.revision):
            terms.update(amendment.amount)
        return terms

    @staticmethod
    def _matches(placed: Record, fill: Record) -> bool:
        return (
            placed.text["instrument"] == fill.text["instrument"]
            and placed.text["side"] == fill.text["side"]
        )

    def _order(self, found: _Orders, order_id: str) -> Order:
        placed = found.placed.get(order_id)
        if placed is None:
            return UNKNOWN_ORDER
        is_buy = placed.text["side"] == "buy"
        base, quote = placed.text["instrument"].split("-")
        hold_asset = quote if is_buy else base

        filled, used = ZERO, ZERO
        for fill in found.fills.get(order_id, []):
            if (order_id, fill.text["fill_id"]) in found.busts or not self._matches(placed, fill):
                continue
            filled += fill.amount["quantity"]
            used += notional_of(fill) if is_buy else fill.amount["quantity"]
            if fill.text["fee_asset"] == hold_asset:
                used += fill.amount["fee"]
        used = max(ZERO, used)

        terms = self._terms(found, order_id)
        quantity = terms.get("quantity")
        remaining = None if quantity is None else max(ZERO, quantity - filled)
        is_closed = (
            (quantity is not None and filled >= quantity)
            or order_id in found.cancelled
            or order_id in found.rejected
        )
        if is_closed:
            hold = ZERO
        elif "reserve" in terms:
            hold = max(ZERO, terms["reserve"] - used)
        elif remaining is None:
            raise AssertionError("an order without reserve has a quantity")
        elif not is_buy:
            hold = remaining
        elif placed.text["order_type"] == "limit":
            hold = remaining * terms["limit_price"]
        else:
            hold = ZERO
        return Order("closed" if is_closed else "open", filled, used, remaining, hold, hold_asset)

    def open_orders(self) -> int:
        """How many orders are open, of all accounts."""
        return sum(
            order.status == "open"
            for account in self._accepted
            for order in self.orders(account).values()
        )

    # Flags.

    def flags(self, *, busted_too: bool = False) -> dict[str, set[tuple[str, ...]]]:
        """Flag -> its cases; every flag of FLAGS is there, mostly empty.

        order_unknown, order_mismatch, fill_after_cancel and bust_without_fill name (account,
        order_id, fill_id), overfilled (account, order_id), overdrawn (account, asset),
        one_sided_trade (instrument, trade_id). A busted fill is undone, so nothing is wrong with
        it any more; with `busted_too` the first three name busted fills as well.
        """
        cases: dict[str, set[tuple[str, ...]]] = {flag: set() for flag in FLAGS}
        sides: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
        for account in self._accepted:
            found = self._sorted_orders(account)
            filled_keys = set()
            for order_id, fills in found.fills.items():
                for fill in fills:
                    fill_key = order_id, fill.text["fill_id"]
                    filled_keys.add(fill_key)
                    is_busted = fill_key in found.busts
                    if not is_busted:
                        trade = fill.text["instrument"], fill.text["trade_id"]
                        sides[trade].add(fill.text["side"])
                    if not is_busted or busted_too:
                        for flag in self._flags_of_fill(found, order_id, fill):
                            cases[flag].add((account, *fill_key))
            for bust_key in found.busts.keys() - filled_keys:
                cases["bust_without_fill"].add((account, *bust_key))
            with localcontext(EXACT):
                for order_id in found.placed:
                    quantity = self._terms(found, order_id).get("quantity")
                    filled = self._order(found, order_id).filled
                    if quantity is not None and filled > quantity:
                        cases["overfilled"].add((account, order_id))
        for trade, present in sides.items():
            if len(present) == 1:
                cases["one_sided_trade"].add(trade)
        with localcontext(EXACT):
            for account, rows in self.balances().items():
                if account in SYSTEM_ACCOUNTS:
                    continue
                for asset, (debits, credits_, _) in rows.items():
                    balance = credits_ - debits
                    if balance < 0:
                        cases["overdrawn"].add((account, asset))
        return cases

    def _flags_of_fill(self, found: _Orders, order_id: str, fill: Record) -> Iterator[str]:
        placed = found.placed.get(order_id)
        if placed is None:
            yield "order_unknown"
        elif not self._matches(placed, fill):
            yield "order_mismatch"
        cancelled = found.cancelled.get(order_id)
        if cancelled is not None and instant_of(fill.occurred_at) > instant_of(
            cancelled.occurred_at
        ):
            yield "fill_after_cancel"
