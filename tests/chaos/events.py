"""Mixed events, made quickly: orders, fills and transfers about 10 : 4 : 1, and what goes wrong.

Few accounts are hot, many are cold. Facts come before the facts they are about, again after any
distance in other words, in contradiction, broken, or where they do not belong.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from typing import Final, NamedTuple

from tests.strategies import BAD_AMOUNTS, HUGE, RAW_VALUES, TINY

ANY_PARTITION: Final = -1  # the producer's partitioner decides


class Sent(NamedTuple):
    """A record to produce."""

    topic: str
    partition: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, str | bytes | None]] | None = None


class _Order(NamedTuple):
    account: bytes
    order_id: bytes
    instrument: bytes
    side: bytes


_HOT_ACCOUNTS: Final = 12
_HOT_SHARE: Final = 0.3
_BUSY_ORDERS: Final = 6  # that get more fills and amendments than an order keeps itself
_BUSY_SHARE: Final = 0.06
_EARLY_SHARE: Final = 0.05  # of fills, cancels and busts: before what they are about
_DUPLICATE_SHARE: Final = 0.025
_CONFLICT_SHARE: Final = 0.004
_INVALID_SHARE: Final = 0.006
_POOL: Final = 4096

_HEAD = b'{"type":"%b","version":1,"event_id":"e%d","account":"%b","occurred_at":"%b",'
_PLACED = _HEAD + (
    b'"order_id":"%b","instrument":"%b","side":"%b","order_type":"%b","quantity":"%b"%b}'
)
_AMENDED = _HEAD + b'"order_id":"%b","revision":%d,%b}'
_ENDED = _HEAD + b'"order_id":"%b","reason":"%b"}'
_FILLED = _HEAD + (
    b'"fill_id":"%b","trade_id":"t%d","order_id":"%b","instrument":"%b","side":"%b","price":"%b",'
    b'"quantity":"%b"%b,"fee":"%b","fee_asset":"%b","liquidity":"%b"}'
)
_BUSTED = _HEAD + (
    b'"fill_id":"%b","order_id":"%b","trade_id":"t%d","instrument":"%b","reason":"user"}'
)
_TRANSFERRED = _HEAD + b'"transfer_id":"x%d","asset":"%b","amount":"%b"%b}'

_INSTRUMENTS: Final = (b"BTC-USD", b"BTC-USD", b"BTC-USD", b"ETH-USD", b"ETH-BTC", b"@7-USDC")
_ASSETS: Final = (b"USD", b"USD", b"BTC", b"ETH", b"USDC")
_SIDES: Final = (b"buy", b"sell")
_REASONS: Final = (b"user", b"expired", b"self_trade", b"done")
_TOPICS: Final = ("orders", "fills", "transfers")


def _amounts(rng: random.Random) -> list[bytes]:
    """Return positive amounts of all lengths; the extremes are seldom."""
    found = [TINY, HUGE]
    while len(found) < _POOL:
        digits = rng.choice((0, 1, 2, 2, 3, 5, 8, 8, 18))
        whole = rng.randrange(10 ** rng.randint(1, 5))
        fraction = f".{rng.randrange(10**digits):0{digits}d}" if digits else ""
        text = f"{whole}{fraction}"
        if text.strip("0."):
            found.append(text)
    return [text.encode() for text in found]


def _times(rng: random.Random) -> list[bytes]:
    return [
        f"2026-03-{rng.randint(1, 28):02d}T{rng.randrange(24):02d}:{rng.randrange(60):02d}:"
        f"{rng.randrange(60):02d}.{rng.randrange(1000):03d}Z".encode()
        for _ in range(_POOL)
    ]


class Traffic:
    """An endless stream of records to produce, the same for the same seed."""

    def __init__(self, seed: object, events: int, partitions: int) -> None:
        """Prepare the stream.

        Args:
            seed: of all its choices.
            events: about how many will be taken; says what is far apart, and how many accounts.
            partitions: of the topics.
        """
        rng = self._rng = random.Random(f"events of {seed}")
        self._random = rng.random
        self._events = events
        self._partitions = partitions
        self._hot = [b"desk-%d" % number for number in range(_HOT_ACCOUNTS)]
        self._cold = [b"trader:%05d" % number for number in range(max(100, events // 20))]
        self._amounts = _amounts(rng)
        self._times = _times(rng)
        self._number = 0
        self._orders = [self._new_order() for _ in range(50)]
        self._busy = self._orders[:_BUSY_ORDERS]
        self._fills: list[tuple[_Order, bytes, int]] = []
        self._later: list[tuple[int, int, Sent]] = []
        self._breakers: list[Callable[[Sent], Sent]] = [
            lambda sent: sent._replace(value=None),
            lambda sent: sent._replace(value=rng.choice(RAW_VALUES)),
            lambda sent: sent._replace(key=None, partition=rng.randrange(partitions)),
            lambda sent: sent._replace(key=rng.choice((b"", b"\xff", b"nobody", self._account()))),
            lambda sent: sent._replace(partition=rng.randrange(partitions)),
            lambda sent: sent._replace(topic=rng.choice(_TOPICS)),
            self._with_a_bad_amount,
            lambda sent: _edited(sent, b'"version":1,', b'"version":2,'),
            lambda sent: _edited(sent, b'"version":1,', b'"version":1,"version":1,'),
            lambda sent: _edited(sent, b'"version":1,', b'"version":1,"note":"x",'),
            lambda sent: _edited(sent, b'"version":1,', b""),
            lambda sent: sent._replace(value=(sent.value or b"")[: rng.randrange(60)]),
            lambda sent: sent._replace(value=(sent.value or b"") + b" " * 50_000 + b"}"),
        ]

    def take(self, count: int) -> list[Sent]:
        """Return the next records."""
        return [self._next() for _ in range(count)]

    # -- choices

    def _account(self) -> bytes:
        names = self._hot if self._random() < _HOT_SHARE else self._cold
        return names[int(self._random() * len(names))]

    def _amount(self) -> bytes:
        # The first two are the extremes: once in some ten thousand, so that sums stay readable.
        return self._amounts[int(self._random() * _POOL) or int(self._random() * _POOL)]

    def _new_order(self) -> _Order:
        self._number += 1
        instrument = _INSTRUMENTS[int(self._random() * len(_INSTRUMENTS))]
        side = _SIDES[self._random() < 0.5]
        return _Order(self._account(), b"o%d" % self._number, instrument, side)

    def _some_order(self) -> _Order:
        if self._random() < _BUSY_SHARE:
            if self._random() < 0.002:
                self._busy[int(self._random() * _BUSY_ORDERS)] = self._orders[-1]
            return self._busy[int(self._random() * _BUSY_ORDERS)]
        if self._random() < 0.8:
            return self._orders[-1 - int(self._random() * min(len(self._orders), 400))]
        return self._orders[int(self._random() * len(self._orders))]

    def _distance(self) -> int:
        chance = self._random()
        most = 40 if chance < 0.5 else 4000 if chance < 0.85 else self._events
        return 1 + int(self._random() * most)

    def _defer(self, sent: Sent) -> None:
        heapq.heappush(self._later, (self._number + self._distance(), self._number, sent))

    def _head(self, kind: bytes, account: bytes) -> tuple[bytes, int, bytes, bytes]:
        return kind, self._number, account, self._times[self._number % _POOL]

    # -- records

    def _next(self) -> Sent:
        self._number += 1
        if self._later and self._later[0][0] <= self._number:
            return heapq.heappop(self._later)[2]
        chance = self._random()
        if chance < 10 / 15:
            sent = self._order_event()
        elif chance < 14 / 15:
            sent = self._fill_event()
        else:
            sent = self._transfer()
        chance = self._random()
        if chance < _DUPLICATE_SHARE:
            self._defer(_respelled(sent))
        elif chance < _DUPLICATE_SHARE + _CONFLICT_SHARE:
            self._defer(_contradicted(sent))
        elif chance < _DUPLICATE_SHARE + _CONFLICT_SHARE + _INVALID_SHARE:
            self._defer(sent)
            breaker = self._breakers[int(self._random() * len(self._breakers))]
            return breaker(sent)._replace(headers=[("trace", b"%d" % self._number)])
        return sent

    def _order_event(self) -> Sent:
        chance = self._random()
        if chance < 0.54:
            order = self._new_order()
            self._orders.append(order)
            return self._placed(order)
        if chance < 0.78:
            order = self._some_order()
            if self._random() < _EARLY_SHARE:
                order = self._early_order()
            kind = b"order_cancelled" if self._random() < 0.9 else b"order_rejected"
            reason = _REASONS[int(self._random() * len(_REASONS))]
            head = self._head(kind, order.account)
            return _sent("orders", order.account, _ENDED % (*head, order.order_id, reason))
        return self._amended(self._some_order())

    def _early_order(self) -> _Order:
        """Return an order that is placed only later."""
        order = self._new_order()
        self._orders.append(order)
        self._defer(self._placed(order))
        return order

    def _placed(self, order: _Order) -> Sent:
        more, kind = b"", b"market"
        if self._random() < 0.8:
            more, kind = b',"limit_price":"%b"' % self._amount(), b"limit"
        if self._random() < 0.2:
            more += b',"reserve":"%b"' % self._amount()
        head = self._head(b"order_placed", order.account)
        names = order.order_id, order.instrument, order.side, kind
        return _sent("orders", order.account, _PLACED % (*head, *names, self._amount(), more))

    def _amended(self, order: _Order) -> Sent:
        # A market order may be given a limit price: it is a term like any other.
        name = (b"quantity", b"limit_price", b"reserve")[int(self._random() * 3)]
        terms = b'"%b":"%b"' % (name, self._amount())
        head = self._head(b"order_amended", order.account)
        revision = 1 + int(self._random() * (50 if self._random() < 0.1 else 1_000_000))
        return _sent("orders", order.account, _AMENDED % (*head, order.order_id, revision, terms))

    def _fill_event(self) -> Sent:
        if self._fills and self._random() < 0.04:
            number = int(self._random() * min(len(self._fills), 5000))
            return self._busted(*self._fills[-1 - number])
        order = self._early_order() if self._random() < _EARLY_SHARE else self._some_order()
        fill_id = b"f%d" % self._number
        trade = self._number // 2
        sent = self._filled(order, fill_id, trade)
        if self._random() < 0.02:
            self._defer(sent)
            return self._busted(order, fill_id, trade)
        self._fills.append((order, fill_id, trade))
        return sent

    def _filled(self, order: _Order, fill_id: bytes, trade: int) -> Sent:
        instrument, side = order.instrument, order.side
        if self._random() < 0.01:  # does not count towards its order
            instrument, side = _INSTRUMENTS[-1], _SIDES[self._random() < 0.5]
        base, _, quote = instrument.partition(b"-")
        settled = b',"quote_quantity":"%b"' % self._amount() if self._random() < 0.3 else b""
        fee = self._amount() if self._random() < 0.8 else b"0"
        if self._random() < 0.15:
            fee = b"-" + fee
        liquidity = b"maker" if self._random() < 0.5 else b"taker"
        value = _FILLED % (
            *self._head(b"order_filled", order.account),
            fill_id,
            trade,
            order.order_id,
            instrument,
            side,
            self._amount(),
            self._amount(),
            settled,
            fee,
            base if self._random() < 0.3 else quote,
            liquidity,
        )
        return _sent("fills", order.account, value)

    def _busted(self, order: _Order, fill_id: bytes, trade: int) -> Sent:
        head = self._head(b"fill_busted", order.account)
        names = fill_id, order.order_id, trade, order.instrument
        return _sent("fills", order.account, _BUSTED % (*head, *names))

    def _transfer(self) -> Sent:
        account = self._account()
        chance = self._random()
        amount, more = self._amount(), b""
        if chance < 0.6:
            kind = b"deposited"
        elif chance < 0.85:
            kind = b"withdrawn"
            more = b',"fee":"%b"' % self._amount() if chance < 0.75 else b""
        else:
            kind, more = b"adjusted", b',"reason":"user"'
            amount = b"-" + amount if chance < 0.93 else amount
        asset = _ASSETS[int(self._random() * len(_ASSETS))]
        value = _TRANSFERRED % (*self._head(kind, account), self._number, asset, amount, more)
        return _sent("transfers", account, value)

    def _with_a_bad_amount(self, sent: Sent) -> Sent:
        bad = self._rng.choice(BAD_AMOUNTS).replace("\n", "\\n").encode()
        for name in (b'"quantity":"', b'"amount":"', b'"reserve":"'):
            if name in (sent.value or b""):
                return _edited(sent, name, name + bad)
        return _edited(sent, b'"order_id":"', b'"order_id":1,"was":"')


def _sent(topic: str, account: bytes, value: bytes) -> Sent:
    return Sent(topic, ANY_PARTITION, account, value)


def _edited(sent: Sent, old: bytes, new: bytes) -> Sent:
    return sent._replace(value=(sent.value or b"").replace(old, new, 1))


def _respelled(sent: Sent) -> Sent:
    """Return the same content in other words."""
    again = _edited(sent, b'"event_id":"', b'"event_id":"again-')
    again = _edited(again, b'"version":1,', b' "version" : 1 ,\n')
    return _edited(again, b'.5"', b'.50"')


def _contradicted(sent: Sent) -> Sent:
    """Return, mostly, another content under the same identity."""
    for old, new in (
        (b'"reason":"user"', b'"reason":"other"'),
        (b'"liquidity":"maker"', b'"liquidity":"taker"'),
        (b'"quantity":"', b'"quantity":"1'),
        (b'"amount":"', b'"amount":"1'),
        (b'"reserve":"', b'"reserve":"1'),
        (b'"limit_price":"', b'"limit_price":"1'),
    ):
        if old in (sent.value or b""):
            return _edited(sent, old, new)
    return sent
