"""The records that are measured with, and what they add up to; the same each time.

- *fills*: those of the peers' comparison, byte for byte: fills of about 320 bytes, 10,000
  accounts, 4 instruments, orders that nobody knows.
- *mixed*: orders, fills and transfers as 10 : 4 : 1. Orders are placed, amended now and then,
  filled in parts and cancelled; some are left open, and hold something.
- *many fills*, *deposits*: as many as one likes, made quickly.

As a program it compares the sums of the first two with `tests/reference.py`, the naive ledger:

    python bench/workloads.py [--events 30000]
"""

from __future__ import annotations

import argparse
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal

import numpy as np
from books import ADJUSTMENTS, CLEARING, EXTERNAL, FEES, Books, Rows, require_equal
from common import PARTITIONS

from tests.reference import Reference, partition_of

ORDERS, FILLS, TRANSFERS = "orders", "fills", "transfers"
ACCOUNTS = 10_000
BASES = ("BTC", "ETH", "SOL", "XRP")

Record = tuple[str, bytes, bytes]
"""Topic, key and value."""

_FILL_FORM = (
    b'{"type":"order_filled","version":1,"event_id":"E%09d","fill_id":"F%09d","trade_id":"T%09d",'
    b'"order_id":"O%09d","account":"%b","instrument":"%b-USD","side":"%b","price":"%d.%02d",'
    b'"quantity":"%d.%04d","fee":"%b%d.%03d","fee_asset":"USD","liquidity":"%b",'
    b'"occurred_at":"2026-11-23T%02d:%02d:%02d.%03d000Z"}'
)


def _fill_value(
    number: int,
    order: int,
    account: bytes,
    base: bytes,
    is_buy: bool,
    price: int,
    quantity: int,
    fee: int,
) -> bytes:
    """Return a fill; price is in hundredths, quantity in 1/10,000, fee in thousandths."""
    return _FILL_FORM % (
        *(number, number, number // 2, order, account, base, b"buy" if is_buy else b"sell"),
        *divmod(price, 100),
        *divmod(quantity, 10_000),
        b"-" if fee < 0 else b"",
        *divmod(abs(fee), 1000),
        b"maker" if number % 3 else b"taker",
        *(number // 3_600_000 % 24, number // 60_000 % 60, number // 1000 % 60, number % 1000),
    )


def fills(count: int, books: Books) -> Iterator[Record]:
    """Yield the fills of the peers' comparison, and post them to the books."""
    rng = random.Random(1)
    for number in range(count):
        base = rng.choice(BASES)
        account = f"acct-{rng.randrange(ACCOUNTS):05d}"
        price, quantity, fee = rng.randrange(1, 10**6), rng.randrange(1, 10**6), rng.randrange(1000)
        is_buy, key = number % 2 == 1, account.encode()
        order = rng.randrange(count)
        value = _fill_value(number, order, key, base.encode(), is_buy, price, quantity, fee)
        yield FILLS, key, value
        books.fill(account, base, is_buy, quantity * 100, price * quantity)
        books.fee(account, fee * 1000)


# -- the mixed log


@dataclass(slots=True)
class _Order:
    """An order and what its fills took; units as in a fill, `reserve` and `used` in millionths."""

    number: int
    account: str
    base: str
    is_buy: bool
    quantity: int | None
    limit_price: int | None
    reserve: int | None
    filled: int = 0
    used: int = 0
    revision: int = 0

    @property
    def is_full(self) -> bool:
        return self.quantity is not None and self.filled >= self.quantity

    @property
    def hold(self) -> int:
        """What it holds while it is open, in millionths of its hold asset (contract, part 3)."""
        if self.reserve is not None:
            return max(0, self.reserve - max(0, self.used))
        assert self.quantity is not None
        remaining = max(0, self.quantity - self.filled)
        if not self.is_buy:
            return remaining * 100
        return 0 if self.limit_price is None else remaining * self.limit_price


class _Mix:
    """The mixed log being made: which orders are open, and the books."""

    # So 10 records are about orders, 4 are fills and 1 is a transfer, of each 15.
    _TURNS = "ooofoofooofooft"

    def __init__(self, books: Books) -> None:
        self._books = books
        self._rng = random.Random(2)
        self._open: list[_Order] = []
        self._turns = {"o": self._about_order, "f": self._fill, "t": self._transfer}

    def records(self, count: int) -> Iterator[Record]:
        for number in range(count):
            yield self._turns[self._TURNS[number % len(self._TURNS)]](number)
        for order in self._open:
            asset = "USD" if order.is_buy else order.base
            self._books.holds[order.account, asset] += order.hold

    def _event(self, kind: str, number: int, account: str, rest: str) -> Record:
        millisecond = number % 86_400_000
        topic = ORDERS if kind.startswith("order_") else TRANSFERS
        value = (
            f'{{"type":"{kind}","version":1,"event_id":"E{number:09d}","account":"{account}",'
            f'"occurred_at":"2026-11-23T{millisecond // 3_600_000:02d}:'
            f"{millisecond // 60_000 % 60:02d}:{millisecond // 1000 % 60:02d}."
            f'{millisecond % 1000:03d}000Z",{rest}}}'
        )
        return topic, account.encode(), value.encode()

    def _account(self) -> str:
        return f"acct-{self._rng.randrange(ACCOUNTS):05d}"

    def _about_order(self, number: int) -> Record:
        chance = self._rng.random()
        if chance < 0.56 or len(self._open) < 10:  # so that fills find one
            return self._place(number)
        if chance < 0.90:
            return self._cancel(number)
        return self._amend(number)

    def _place(self, number: int) -> Record:
        """An order: 1 of 8 at market, 1 of 4 with a reserve, some of both without a quantity."""
        rng = self._rng
        is_market, has_reserve = rng.random() < 0.125, rng.random() < 0.25
        needs_quantity = not (is_market and has_reserve) or rng.random() < 0.5
        order = _Order(
            number=number,
            account=self._account(),
            base=rng.choice(BASES),
            is_buy=rng.random() < 0.5,
            quantity=rng.randrange(1, 10**6) if needs_quantity else None,
            limit_price=None if is_market else rng.randrange(1, 10**6),
            reserve=rng.randrange(10**12) if has_reserve else None,
        )
        self._open.append(order)
        rest = (
            f'"order_id":"O{number:09d}","instrument":"{order.base}-USD",'
            f'"side":"{"buy" if order.is_buy else "sell"}",'
            f'"order_type":"{"market" if is_market else "limit"}"'
        )
        return self._event("order_placed", number, order.account, rest + _terms(order))

    def _amend(self, number: int) -> Record:
        """Another quantity (above what is filled), limit price or reserve, as far as it has one."""
        rng = self._rng
        order = rng.choice(self._open)
        order.revision += 1
        changed = _Order(number, order.account, order.base, order.is_buy, None, None, None)
        has = [name for name in _TERMS if getattr(order, name) is not None]
        name = rng.choice(has)
        if name == "quantity":
            order.quantity = changed.quantity = order.filled + rng.randrange(1, 10**6)
        elif name == "limit_price":
            order.limit_price = changed.limit_price = rng.randrange(1, 10**6)
        else:
            order.reserve = changed.reserve = rng.randrange(10**12)
        rest = f'"order_id":"O{order.number:09d}","revision":{order.revision}'
        return self._event("order_amended", number, order.account, rest + _terms(changed))

    def _cancel(self, number: int) -> Record:
        index = self._rng.randrange(len(self._open))
        order = self._open[index]
        self._close(index)
        rest = f'"order_id":"O{order.number:09d}","reason":"user"'
        return self._event("order_cancelled", number, order.account, rest)

    def _close(self, index: int) -> None:
        self._open[index] = self._open[-1]
        self._open.pop()

    def _fill(self, number: int) -> Record:
        """A fill of an open order: of 10 the rest of it by 4, else a part; 1 of 8 with a rebate."""
        rng = self._rng
        index = rng.randrange(len(self._open))
        order = self._open[index]
        price = order.limit_price or rng.randrange(1, 10**6)
        if order.quantity is None:
            quantity = rng.randrange(1, 10**5)
        else:
            remaining = order.quantity - order.filled
            quantity = remaining if rng.random() < 0.4 else rng.randrange(1, remaining + 1)
        fee = rng.randrange(1000) * (-1 if rng.random() < 0.125 else 1)
        order.filled += quantity
        order.used += price * quantity + fee * 1000 if order.is_buy else quantity * 100
        if order.is_full:
            self._close(index)
        account, base = order.account, order.base
        self._books.fill(account, base, order.is_buy, quantity * 100, price * quantity)
        self._books.fee(account, fee * 1000)
        key = account.encode()
        value = _fill_value(
            number, order.number, key, base.encode(), order.is_buy, price, quantity, fee
        )
        return FILLS, key, value

    def _transfer(self, number: int) -> Record:
        """A deposit by 6 of 8, else a withdrawal or an adjustment."""
        rng = self._rng
        account, asset = self._account(), rng.choice((*BASES, "USD"))
        amount, chance = rng.randrange(1, 10**10), rng.random()
        rest = f'"transfer_id":"X{number:09d}","asset":"{asset}"'
        if chance < 0.75:
            self._books.move(EXTERNAL, account, asset, amount)
            return self._event("deposited", number, account, f'{rest},"amount":"{_text(amount)}"')
        if chance < 0.875:
            fee = rng.randrange(2) * rng.randrange(10**6)
            self._books.move(account, EXTERNAL, asset, amount)
            self._books.move(account, FEES, asset, fee)
            rest += f',"amount":"{_text(amount)}"' + (f',"fee":"{_text(fee)}"' if fee else "")
            return self._event("withdrawn", number, account, rest)
        sign = rng.choice(("", "-"))
        self._books.move(
            *((account, ADJUSTMENTS) if sign else (ADJUSTMENTS, account)), asset, amount
        )
        rest += f',"amount":"{sign}{_text(amount)}","reason":"correction"'
        return self._event("adjusted", number, account, rest)


_TERMS = {"quantity": 10_000, "limit_price": 100, "reserve": 10**6}


def _terms(order: _Order) -> str:
    """Return the JSON of an order's terms, as far as it has them."""
    return "".join(
        f',"{name}":"{value // unit}.{value % unit:0{len(str(unit)) - 1}d}"'
        for name, unit in _TERMS.items()
        if (value := getattr(order, name)) is not None
    )


def _text(millionths: int) -> str:
    return f"{millionths // 10**6}.{millionths % 10**6:06d}"


def mixed(count: int, books: Books) -> Iterator[Record]:
    """Yield orders, fills and transfers, and post them to the books; at the end come the holds."""
    return _Mix(books).records(count)


@dataclass(frozen=True)
class Workload:
    """A kind of log: its topics, and what makes it."""

    name: str
    topics: tuple[str, ...]
    make: Callable[[int, Books], Iterator[Record]] = field(repr=False)


WORKLOADS = {
    one.name: one
    for one in (
        Workload("fills", (FILLS,), fills),
        Workload("mixed", (ORDERS, FILLS, TRANSFERS), mixed),
    )
}


# -- as many as one likes


_BLOCK = 100_000


def many_fills(first: int, count: int, accounts: int, clearing: Books | None) -> Iterator[Record]:
    """Yield fills at random accounts and orders, about 450,000 a second; ids count from `first`.

    Only the clearing account is posted to the books.
    """
    rng = np.random.default_rng([1, first])
    bases = [base.encode() for base in BASES]
    for start in range(first, first + count, _BLOCK):
        size = min(_BLOCK, first + count - start)
        base = rng.integers(0, len(BASES), size)
        price, quantity = rng.integers(1, 10**6, size), rng.integers(1, 10**6, size)
        is_buy = np.arange(start, start + size) % 2 == 1
        columns = (
            rng.integers(0, first + count, size).tolist(),
            rng.integers(0, accounts, size).tolist(),
            base.tolist(),
            is_buy.tolist(),
            price.tolist(),
            quantity.tolist(),
            rng.integers(0, 1000, size).tolist(),
        )
        for number, (order, account, b, buy, p, q, fee) in enumerate(
            zip(*columns, strict=True), start
        ):
            key = b"acct-%08d" % account
            yield FILLS, key, _fill_value(number, order, key, bases[b], buy, p, q, fee)
        if clearing is None:
            continue
        # A block's cash is below 10^17: its sum fits.
        for debited, total in ((is_buy, clearing.credits), (~is_buy, clearing.debits)):
            total[CLEARING, "USD"] += int((price * quantity)[debited].sum())
        for index, name in enumerate(BASES):
            of_base = base == index
            for side, total in ((is_buy, clearing.debits), (~is_buy, clearing.credits)):
                total[CLEARING, name] += int(quantity[of_base & side].sum()) * 100


def deposits(accounts: int) -> Iterator[Record]:
    """Yield one deposit to each account of `many_fills`, in no order."""
    step = 7919 if accounts % 7919 else 7907  # a prime that does not divide them visits each once
    for number in range(accounts):
        key = b"acct-%08d" % (number * step % accounts)
        yield (
            TRANSFERS,
            key,
            b'{"type":"deposited","version":1,"event_id":"D%09d","account":"%b",'
            b'"occurred_at":"2026-11-23T00:00:00Z","transfer_id":"D%09d","asset":"USD",'
            b'"amount":"%d.00"}' % (number, key, number, number % 10**6 + 1),
        )


# -- the sums against the naive ledger


def _reference_rows(records: Iterator[Record]) -> tuple[Rows, Counter[str]]:
    reference, offsets = Reference(PARTITIONS), Counter[tuple[str, int]]()
    kinds: Counter[str] = Counter()
    for topic, key, value in records:
        slot = topic, partition_of(key, PARTITIONS)
        verdict = reference.apply(*slot, offsets[slot], key, value)
        assert verdict == "applied", (verdict, value)
        offsets[slot] += 1
        kinds[value.split(b'"', 4)[3].decode()] += 1

    def millionths(amount: Decimal) -> int:
        scaled = amount.scaleb(6)
        assert scaled == int(scaled)
        return int(scaled)

    rows = {
        (account, asset): (millionths(debits), millionths(credits_), millionths(hold))
        for account, assets in reference.balances().items()
        for asset, (debits, credits_, hold) in assets.items()
    }
    kinds["(orders left open)"] = reference.open_orders()
    return rows, kinds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--events", type=int, default=30_000)
    options = parser.parse_args()
    for workload in WORKLOADS.values():
        books = Books()
        rows, kinds = _reference_rows(workload.make(options.events, books))
        require_equal(books.rows(), rows, workload.name)
        held = sum(hold > 0 for _, _, hold in rows.values())
        print(f"{workload.name}: {len(rows)} rows, {held} with a hold, {dict(kinds)}")


if __name__ == "__main__":
    main()
