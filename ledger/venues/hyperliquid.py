"""Hyperliquid: the CSV of a wallet's fills becomes `order_filled` events and opening positions.

What the export says and what is made of it:

* The account is the wallet in lower case. A perpetual `HYPE` trades as `HYPE-USDC`, the spot pair
  number 107 as `@107-USDC`, and a spot pair named `PURR/USDC` as `@PURR-USDC`: a spot balance never
  mixes with the perpetual of the same name.
* The venue settles price x size; `Size USD` is that rounded to cents and is not used.
* The fee is in the quote asset, but in the base asset for spot buys.
* `Timestamp IST` is to the minute, in Indian time, and stays so: `2024-12-02T22:50:00+05:30`.
* `Trade ID` and `Timestamp` come in shortened scientific notation and are not used. A fill is known
  by its coin, order and start position (`fill_id`). `trade_id` is *derived* from account and
  `fill_id`: the other side is not in the file and could not be matched, so each trade has one side.
* An export begins in the middle of a wallet's life. Where the first `Start Position` of a coin is
  not 0, an `adjusted` event with the reason "opening position" comes before its first fill. Its
  `transfer_id` is the coin's alone: of a second file that continues the first, the ledger refuses
  the opening (a conflict) and does not count the position twice.
* The export has no orders, and none are invented: the ledger flags their fills "order unknown".

`Start Position` is printed to 10 significant digits, so an opening position may be that far off.
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Final

from ledger.amounts import canonical, plain
from ledger.codec import DECODERS, encode
from ledger.errors import InputError, InvalidRecord
from ledger.events import TOPIC_OF_TYPE, VERSION, Adjusted, AnyEvent, Liquidity, OrderFilled, Side

COLUMNS: Final = (
    "Account",
    "Coin",
    "Execution Price",
    "Size Tokens",
    "Side",
    "Timestamp IST",
    "Start Position",
    "Order ID",
    "Crossed",
    "Fee",
)
"""The columns that are read; others may be there, in any order."""
OPENING_POSITION: Final = "opening position"

_QUOTE = "USDC"
_WALLET = re.compile(r"0x[0-9a-f]{40}")
_ORDER_ID = re.compile(r"[0-9]{1,20}")
_NUMBER = re.compile(
    r"[+-]?(?:[0-9]{1,40}(?:\.[0-9]{0,40})?|\.[0-9]{1,40})(?:[Ee][+-]?[0-9]{1,2})?"
)
_AMOUNT = re.compile(r"-?(?:0|[1-9][0-9]{0,19})(?:\.[0-9]{1,18})?")
_IST_MINUTE = re.compile(r"([0-9]{1,2})-([0-9]{1,2})-([0-9]{4}) ([0-9]{1,2}):([0-9]{2})")
_SIDES: dict[str, Side] = {"BUY": "buy", "SELL": "sell"}
_LIQUIDITY: dict[str, Liquidity] = {"TRUE": "taker", "FALSE": "maker"}


def events(path: Path, lines: Iterable[bytes]) -> Iterator[AnyEvent]:
    """Yield the events of an export, in the file's order; the same file gives the same events.

    Args:
        path: the file's name, for messages; it is not opened.
        lines: the file's lines as they are on disk, UTF-8, with or without CRLF.

    Raises:
        InputError: a line cannot be used; the message begins with `FILE:LINE:`.
    """
    line = 1
    try:
        rows = _rows(path, lines)
        line, names = next(rows, (1, []))
        positions = _positions(names)
        export = _Export()
        for line, fields in rows:
            if len(fields) != len(names):
                raise _Unusable(
                    f"has {len(fields)} fields where the header has {len(names)}; "
                    "export the file again."
                )
            values = {column: fields[at].strip() for column, at in positions.items()}
            yield from export.events(values, "\0".join(fields), line)
    except _Unusable as problem:
        raise InputError(f"{path}:{line}: {problem}") from problem


class _Unusable(Exception):  # noqa: N818 - becomes an InputError, with the line
    """What is wrong with the line being read, and what to do."""


def _rows(path: Path, lines: Iterable[bytes]) -> Iterator[tuple[int, list[str]]]:
    """Yield the CSV's rows that are not blank, each with the number of its last line."""
    reader = csv.reader(_decoded(path, lines), strict=True)
    try:
        for fields in reader:
            if any(fields):
                yield reader.line_num, fields
    except csv.Error as error:
        raise InputError(
            f"{path}:{max(reader.line_num, 1)}: is not CSV ({error}); export the file again."
        ) from error


def _decoded(path: Path, lines: Iterable[bytes]) -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise InputError(
                f"{path}:{number}: is not UTF-8 ({error.reason}); save the export as CSV in UTF-8."
            ) from error


def _positions(names: list[str]) -> dict[str, int]:
    """Return where each column that is read stands in the header."""
    if not names:
        raise _Unusable(f"the file is empty; expected a header with {', '.join(COLUMNS)}.")
    header = [name.strip() for name in names]
    for column in COLUMNS:
        if header.count(column) != 1:
            what = "is missing" if column not in header else "is there more than once"
            raise _Unusable(
                f"the column '{column}' {what} (found: {', '.join(header):.200}); "
                "export the fills with the venue's own column names."
            )
    return {column: header.index(column) for column in COLUMNS}


@dataclass(frozen=True)
class _Market:
    """Where a coin trades."""

    base: str
    quote: str
    is_spot: bool

    @property
    def instrument(self) -> str:
        return f"{self.base}-{self.quote}"

    def fee_asset(self, side: Side) -> str:
        return self.base if self.is_spot and side == "buy" else self.quote


@dataclass(frozen=True)
class _Seen:
    """A fill that was read before: where, and the whole of its row."""

    line: int
    row: bytes


class _Export:
    """One export, read from its first line to its last."""

    def __init__(self) -> None:
        self._latest: dict[tuple[str, str], str] = {}  # time of an account's last fill of a coin
        self._seen: dict[tuple[str, str], _Seen] = {}

    def events(self, values: Mapping[str, str], whole: str, line: int) -> Iterator[AnyEvent]:
        """Yield the events of one row: `values` are its columns, `whole` all that it says."""
        account = values["Account"].lower()
        if _WALLET.fullmatch(account) is None:
            raise _wrong("Account", values, "a wallet: 0x and 40 hexadecimal digits")
        market = _market(values)
        side = _SIDES.get(values["Side"].upper())
        if side is None:
            raise _wrong("Side", values, "BUY or SELL")
        liquidity = _LIQUIDITY.get(values["Crossed"].upper())
        if liquidity is None:
            raise _wrong("Crossed", values, "TRUE or FALSE")
        order_id = values["Order ID"]
        if _ORDER_ID.fullmatch(order_id) is None:
            raise _wrong("Order ID", values, "a whole number with all its digits")
        occurred_at = _time(values)
        start = canonical(_amount("Start Position", values))
        fill_id = f"{market.base}:{order_id}:{start}"
        mark = _digest(account, fill_id)

        is_first = (account, market.base) not in self._latest
        if not self._is_repeated(account, fill_id, whole, line):
            self._check_order(account, market, occurred_at)
        if is_first and start != "0":
            yield _valid(
                Adjusted(
                    version=VERSION,
                    event_id=f"hyperliquid:opening:{mark}",
                    account=account,
                    occurred_at=occurred_at,
                    transfer_id=f"hyperliquid:opening:{market.base}",
                    asset=market.base,
                    amount=start,
                    reason=OPENING_POSITION,
                )
            )
        yield _valid(
            OrderFilled(
                version=VERSION,
                event_id=f"hyperliquid:fill:{mark}",
                account=account,
                occurred_at=occurred_at,
                fill_id=fill_id,
                trade_id=f"derived:{mark}",
                order_id=order_id,
                instrument=market.instrument,
                side=side,
                price=_positive("Execution Price", values),
                quantity=_positive("Size Tokens", values),
                fee=_amount("Fee", values),
                fee_asset=market.fee_asset(side),
                liquidity=liquidity,
            )
        )

    def _check_order(self, account: str, market: _Market, occurred_at: str) -> None:
        """Refuse a file sorted newest first: its opening positions would be wrong."""
        latest = self._latest.get((account, market.base), "")
        if occurred_at < latest:  # one zone and one width, so the texts sort as the times do
            raise _Unusable(
                f"this fill of {market.base} ({occurred_at}) is older than the one before it "
                f"({latest}); sort the export by time, oldest first."
            )
        self._latest[account, market.base] = occurred_at

    def _is_repeated(self, account: str, fill_id: str, whole: str, line: int) -> bool:
        """Return whether the same row was read before: the ledger will see a duplicate.

        Raises:
            _Unusable: another row has this identity; the ledger would take two fills for one.
        """
        row = _Seen(line, hashlib.sha256(whole.encode()).digest())
        first = self._seen.setdefault((account, fill_id), row)
        if first.row != row.row:
            raise _Unusable(
                f"has the Coin, Order ID and Start Position of line {first.line} but is another "
                "fill, and the export has nothing else to tell them apart; take one of them out "
                "and publish it with an id of its own."
            )
        return first is not row


def _wrong(column: str, values: Mapping[str, str], expected: str) -> _Unusable:
    return _Unusable(
        f"{column} must be {expected} (found {values[column]!r:.80}); correct it or export again."
    )


def _market(values: Mapping[str, str]) -> _Market:
    coin = values["Coin"]
    if coin.startswith("@"):
        market = _Market(coin, _QUOTE, is_spot=True)
    elif "/" in coin:
        base, _, quote = coin.partition("/")
        market = _Market(f"@{base}", quote, is_spot=True)
    else:
        market = _Market(coin, _QUOTE, is_spot=False)
    if re.fullmatch(r"@?[A-Za-z0-9_]{1,31}-[A-Za-z0-9@_]{1,32}", market.instrument) is None:
        raise _wrong("Coin", values, "a perpetual such as HYPE or a spot pair such as @107")
    return market


def _amount(column: str, values: Mapping[str, str]) -> str:
    """Return a number as the contract writes amounts: as given, if it is given so."""
    text = values[column]
    if _AMOUNT.fullmatch(text):
        return text
    if _NUMBER.fullmatch(text) is None:
        raise _wrong(column, values, "a decimal number such as 0.0056")
    number = Decimal(text)
    exponent = number.as_tuple().exponent
    if isinstance(exponent, int) and exponent > 0:  # 8.95E+14: the digits behind it are gone
        raise _wrong(column, values, "a number with all its digits, not a shortened one")
    result = plain(number)
    if _AMOUNT.fullmatch(result) is None:
        raise _wrong(column, values, "a number of at most 20 integer and 18 fraction digits")
    return result


def _positive(column: str, values: Mapping[str, str]) -> str:
    text = _amount(column, values)
    if Decimal(text) <= 0:
        raise _wrong(column, values, "greater than 0")
    return text


def _time(values: Mapping[str, str]) -> str:
    expected = "a time such as 02-12-2024 22:50 (day-month-year, Indian time)"
    match = _IST_MINUTE.fullmatch(values["Timestamp IST"])
    if match is None:
        raise _wrong("Timestamp IST", values, expected)
    day, month, year, hour, minute = (int(part) for part in match.groups())
    try:
        moment = datetime(year, month, day, hour, minute)  # noqa: DTZ001 - the zone is written below
    except ValueError as error:
        raise _wrong("Timestamp IST", values, expected) from error
    return moment.isoformat(timespec="seconds") + "+05:30"


def _digest(account: str, fill_id: str) -> str:
    """Return 32 hexadecimal digits for a fill, in which its account cannot be read."""
    return hashlib.sha256(f"{account} {fill_id}".encode()).hexdigest()[:32]


def _valid(event: Adjusted | OrderFilled) -> AnyEvent:
    """Return the event after the stream's own check, so that what is published is applied."""
    try:
        return DECODERS[TOPIC_OF_TYPE[type(event)]](encode(event))
    except InvalidRecord as invalid:
        raise _Unusable(f"gives no valid event ({invalid.detail}); correct it.") from invalid
