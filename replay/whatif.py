"""What-if: the rules by which a second state is folded from other records than the topics hold.

The fold is not touched. It is given records that were rewritten here: of the same offset and key,
and left out or with another value. What follows from a fill or an event (holds, reversals, flags)
then follows from the rewritten one.

- An account is ignored: its events are left out.
- An event is named by its `event_id` or by the position `TOPIC:PARTITION:OFFSET` of its record.
  What is written like a position is one, so an `event_id` of that form cannot be named as such.
- A fee schedule states the fees of fills anew. They are charged in the quote asset.

A record that is left out is as if it had never been there: a later one of the same identity, so
far a duplicate or a conflict, is then the first. Records that are no valid events under their
account's key stay as they are, for the fold to refuse; only by its position is one left out.
"""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Context, Decimal, InvalidOperation
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ledger.amounts import multiply, plain
from ledger.codec import DECODERS, encode, field_forms
from ledger.errors import InputError, InvalidRecord
from ledger.events import (
    FILLS,
    INPUT_TOPICS,
    Account,
    Amount,
    AnyEvent,
    Event,
    Instrument,
    OrderFilled,
    split_instrument,
)
from ledger.journal import is_system, notional_of
from ledger.kafka import KafkaRecord

_POSITION: Final = re.compile(rf"(?:{'|'.join(INPUT_TOPICS)}):(?:0|[1-9][0-9]*):(?:0|[1-9][0-9]*)")
_FORMS: Final = field_forms(Event)
_TOO_LARGE: Final = Decimal(10**20)
# A fee is rounded because its schedule says so; all else in the ledger is exact.
_ROUNDED: Final = Context(prec=200, rounding=ROUND_HALF_EVEN, traps=[InvalidOperation])


class _Named(msgspec.Struct):
    event_id: str = ""


_NAMED: Final = msgspec.json.Decoder(_Named)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class FeeEntry(_Strict):
    """The fees of the fills of an account, of an instrument, of both, or of all others.

    Attributes:
        account: whose fills; None means anyone's.
        instrument: fills of what; None means anything.
        maker: the rate where liquidity was provided, as a fraction of the notional; below 0 it is
            a rebate.
        taker: the rate where it was taken.
        decimals: how many digits after the point a fee has; it is rounded half to even.
    """

    account: Account | None = None
    instrument: Instrument | None = None
    maker: Amount
    taker: Amount
    decimals: Annotated[int, Field(ge=0, le=18)] = 18

    def fee_of(self, fill: OrderFilled) -> Decimal:
        """Return what a fill costs, in its quote asset."""
        rate = self.maker if fill.liquidity == "maker" else self.taker
        notional = notional_of(fill.price, fill.quantity, fill.quote_quantity)
        unit = Decimal((0, (1,), -self.decimals))
        return multiply(Decimal(rate), notional).quantize(unit, context=_ROUNDED)


class _File(_Strict):
    fee: Annotated[list[FeeEntry], Field(min_length=1)]


@dataclass(frozen=True)
class FeeSchedule:
    """Fee entries, no two for the same fills; people number them from 1.

    The most specific one holds: that of account and instrument, then of the account, then of the
    instrument, then of neither.
    """

    entries: tuple[FeeEntry, ...]

    @cached_property
    def _numbers(self) -> dict[tuple[str | None, str | None], int]:
        return {(e.account, e.instrument): n for n, e in enumerate(self.entries, 1)}

    def number_for(self, fill: OrderFilled) -> int | None:
        """Return the number of the entry that holds for a fill, or None where none does."""
        for key in (
            (fill.account, fill.instrument),
            (fill.account, None),
            (None, fill.instrument),
            (None, None),
        ):
            number = self._numbers.get(key)
            if number is not None:
                return number
        return None


def load_fees(path: Path) -> FeeSchedule:
    """Return the fee schedule that a TOML file states.

    Args:
        path: a file of `[[fee]]` tables with `maker` and `taker`, and optionally `account`,
            `instrument` and `decimals` (see `FeeEntry`); rates are decimal strings.

    Raises:
        InputError: it cannot be read or used; it names the file and the entry.
    """
    try:
        parsed = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}).") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is not TOML in UTF-8: {error}.") from error
    try:
        entries = _File.model_validate(parsed).fee
    except ValidationError as error:
        raise InputError(f"{path}: {_sentence(error)}.") from error
    first: dict[tuple[str | None, str | None], int] = {}
    for number, entry in enumerate(entries, 1):
        earlier = first.setdefault((entry.account, entry.instrument), number)
        if earlier != number:
            raise InputError(
                f"{path}: entry {number}: it is for the same fills as entry {earlier}; "
                "leave one of them out."
            )
    return FeeSchedule(tuple(entries))


def _sentence(error: ValidationError) -> str:
    """Return pydantic's first complaint with its place first, as all our messages have it."""
    first = error.errors(include_url=False)[0]
    place, *rest = first["loc"]
    names = [str(place)]
    if rest:
        names = [f"entry {int(rest[0]) + 1}", *map(str, rest[1:])]
    where = ": ".join(names)
    if first["type"] == "extra_forbidden":
        return f"{where}: no such key"
    if first["type"] == "missing":
        return f"{where}: is missing"
    message = first["msg"].removeprefix("Value error, ")
    return f"{where}: {message} (found {first['input']!r:.80})"


class WhatIf:
    """The rules of one what-if, and how many records each of them matched.

    Attributes:
        matched: of each rule, as a person gave it, how many records it matched.
    """

    def __init__(
        self,
        fees: FeeSchedule | None = None,
        ignored_accounts: frozenset[str] = frozenset(),
        without_events: frozenset[str] = frozenset(),
    ) -> None:
        """Take the rules.

        Args:
            fees: fills that none of its entries is for keep the fee they have; so do all without a
                schedule.
            ignored_accounts: customers' accounts.
            without_events: event ids and positions.

        Raises:
            InputError: an account or event cannot be one; it names it.
        """
        for account in ignored_accounts:
            if is_system(account):
                raise InputError(
                    f"--ignore-account: {account!r:.80} closes the entries of all accounts and "
                    "cannot be left out; name customers' accounts."
                )
            _require_form("--ignore-account", "account", account)
        for name in without_events:
            _require_form("--without-event", "event_id", name)
        self.fees = fees
        self.ignored_accounts = ignored_accounts
        self.without_events = without_events
        self._keys = {account.encode() for account in ignored_accounts}
        self._positions = {name for name in without_events if _POSITION.fullmatch(name)}
        self._event_ids = without_events - self._positions
        entries = () if fees is None else fees.entries
        rules = [_fee_rule(number) for number in range(1, len(entries) + 1)]
        rules += [_account_rule(account) for account in sorted(ignored_accounts)]
        rules += [_event_rule(name) for name in sorted(without_events)]
        self.matched: Counter[str] = Counter(dict.fromkeys(rules, 0))

    @classmethod
    def from_options(
        cls, fees: Path | None, ignored_accounts: Iterable[str], without_events: Iterable[str]
    ) -> WhatIf:
        """Return the what-if of a command line; given no options, its rules change nothing.

        Args:
            fees: the file of a fee schedule.
            ignored_accounts: as `--ignore-account` names them.
            without_events: as `--without-event` names them.

        Raises:
            InputError: one of them cannot be used; it says why.
        """
        schedule = None if fees is None else load_fees(fees)
        return cls(schedule, frozenset(ignored_accounts), frozenset(without_events))

    def rewrite(
        self, topic: str, partition: int, records: Sequence[KafkaRecord]
    ) -> list[KafkaRecord]:
        """Return what the fold is given instead of some records; unchanged ones are the same.

        The last one may be left out, so the fold must be told the position after them.

        Args:
            topic: of the records, one of the input topics, without prefix.
            partition: of the records.
            records: in offset order.

        Raises:
            InputError: a fee would have more digits than an amount may have; it names the record.
        """
        charged = self.fees is not None and topic == FILLS
        kept = []
        for record in records:
            if charged or self._may_be_left_out(topic, partition, record):
                rewritten = self._rewritten(topic, partition, record)
                if rewritten is not None:
                    kept.append(rewritten)
            else:
                kept.append(record)
        return kept

    def unmatched(self) -> list[str]:
        """Return the rules that matched no record so far."""
        return [rule for rule, records in self.matched.items() if records == 0]

    def describe(self) -> dict[str, Any]:
        """Return the rules as JSON for a manifest; `fees` is None without a schedule."""
        fees = self.fees
        return {
            "fees": None if fees is None else [e.model_dump() for e in fees.entries],
            "ignored_accounts": sorted(self.ignored_accounts),
            "without_events": sorted(self.without_events),
        }

    def _may_be_left_out(self, topic: str, partition: int, record: KafkaRecord) -> bool:
        """Return, more quickly than by decoding a record, whether a rule may leave it out."""
        if record.key in self._keys:
            return True
        if self._positions and _position(topic, partition, record) in self._positions:
            return True
        return bool(self._event_ids) and _event_id_of(record.value) in self._event_ids

    def _rewritten(self, topic: str, partition: int, record: KafkaRecord) -> KafkaRecord | None:
        """Return what stands for a record, or None where it is left out."""
        event = _event_of(topic, record)
        position = _position(topic, partition, record)
        against = []
        if position in self._positions:
            against.append(_event_rule(position))
        if event is not None and event.event_id in self._event_ids:
            against.append(_event_rule(event.event_id))
        if event is not None and event.account in self.ignored_accounts:
            against.append(_account_rule(event.account))
        if against:
            self.matched.update(against)
            return None
        if self.fees is None or not isinstance(event, OrderFilled):
            return record
        return self._charged(self.fees, position, record, event)

    def _charged(
        self, fees: FeeSchedule, position: str, record: KafkaRecord, fill: OrderFilled
    ) -> KafkaRecord:
        """Return the record of a fill with the fee that the schedule states."""
        number = fees.number_for(fill)
        if number is None:
            return record
        self.matched[_fee_rule(number)] += 1
        fee = fees.entries[number - 1].fee_of(fill)
        _, quote = split_instrument(fill.instrument)
        if fee == Decimal(fill.fee) and fill.fee_asset == quote:
            return record
        if fee.copy_abs() >= _TOO_LARGE:
            raise InputError(
                f"{position}: by entry {number} of the fee schedule, the fee is {plain(fee)}, and "
                "an amount has at most 20 integer digits. Lower the rate, or leave the fill out "
                f"with --without-event {position}."
            )
        changed = msgspec.structs.replace(fill, fee=plain(fee), fee_asset=quote)
        return KafkaRecord(record.offset, record.key, encode(changed))


def _event_of(topic: str, record: KafkaRecord) -> AnyEvent | None:
    """Return the event of a record, or None where there is none under its account's key."""
    try:
        event = DECODERS[topic](record.value)
    except InvalidRecord:
        return None
    return event if record.key == event.account.encode() else None


def _event_id_of(value: bytes | None) -> str:
    """Return the `event_id` in a value that may be no valid event; empty where there is none."""
    try:
        return _NAMED.decode(value or b"").event_id
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""


def _require_form(option: str, field: str, text: str) -> None:
    form, _ = _FORMS[field]
    try:
        form.verify(text)
    except ValueError as error:
        raise InputError(f"{option}: {error} (found {text!r:.80}).") from error


def _position(topic: str, partition: int, record: KafkaRecord) -> str:
    return f"{topic}:{partition}:{record.offset}"


def _fee_rule(number: int) -> str:
    return f"--fees, entry {number}"


def _account_rule(account: str) -> str:
    return f"--ignore-account {account}"


def _event_rule(name: str) -> str:
    return f"--without-event {name}"
