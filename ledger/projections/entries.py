"""How state is stored: the keys of its entries and the facts in their values.

A value is JSON, an array where a fact has fixed fields (their order is that of the classes here).
Facts keep the texts of the event that stated them and the offset of its record; `event_id` is not
kept. Changing anything here changes every state digest and needs a new `RULES_VERSION`.

| key | value |
|---|---|
| ``ACCOUNT \\0 b`` | totals: asset to debits, credits, hold |
| ``ACCOUNT \\0 o ORDER`` | an order: its facts, terms, running sums, first fills and amendments |
| ``ACCOUNT \\0 f ORDER \\0 FILL`` | a fill and its bust, beyond an order's first ones |
| ``ACCOUNT \\0 a ORDER \\0 REVISION`` | an amendment, beyond an order's first ones |
| ``ACCOUNT \\0 t TRANSFER`` | a transfer |
| ``\\0 meta`` | the header: watermark, counts, digests, where the records came from |
"""

from __future__ import annotations

from typing import Final, Literal

from msgspec import UNSET, Struct

from ledger.amounts import canonical
from ledger.events import (
    Adjusted,
    Deposited,
    FillBusted,
    OrderAmended,
    OrderCancelled,
    OrderFilled,
    OrderPlaced,
    OrderRejected,
    TransferEvent,
    Withdrawn,
    event_type,
)

META_KEY: Final = b"\0meta"
BALANCES_KIND: Final = "b"
ORDER_KIND: Final = "o"
FILL_KIND: Final = "f"
AMENDMENT_KIND: Final = "a"
TRANSFER_KIND: Final = "t"

TransferType = Literal["deposited", "withdrawn", "adjusted"]


def balances_key(account: str) -> str:
    """Return the key of an account's totals."""
    return f"{account}\0b"


def order_key(account: str, order_id: str) -> str:
    """Return the key of an order."""
    return f"{account}\0o{order_id}"


def fill_key(account: str, order_id: str, fill_id: str) -> str:
    """Return the key of a fill that an order no longer holds itself."""
    return f"{account}\0f{order_id}\0{fill_id}"


def amendment_key(account: str, order_id: str, revision: int) -> str:
    """Return the key of an amendment that an order no longer holds itself."""
    return f"{amendments_key(account, order_id)}{revision:020d}"


def amendments_key(account: str, order_id: str) -> str:
    """Return how the keys of all such amendments of an order begin."""
    return f"{account}\0a{order_id}\0"


def transfer_key(account: str, transfer_id: str) -> str:
    """Return the key of a transfer."""
    return f"{account}\0t{transfer_id}"


def split_key(key: bytes) -> tuple[str, str, str]:
    """Return account, kind and identity (whose parts are separated by zero bytes) of a key."""
    account, _, rest = key.decode().partition("\0")
    return account, rest[:1], rest[1:]


class Fact(Struct, array_like=True, frozen=True, gc=False):
    """What every stored fact has: the offset of its record and the venue's time."""

    offset: int
    occurred_at: str


class Placed(Fact, frozen=True):
    """The terms with which an order was placed."""

    instrument: str
    side: Literal["buy", "sell"]
    order_type: Literal["limit", "market"]
    quantity: str | None
    limit_price: str | None
    reserve: str | None


class Amended(Fact, frozen=True):
    """What one amendment named."""

    quantity: str | None
    limit_price: str | None
    reserve: str | None


class Closed(Fact, frozen=True):
    """A cancel or a rejection."""

    reason: str
    instrument: str | None


class Fill(Fact, frozen=True):
    """One side of a trade."""

    trade_id: str
    instrument: str
    side: Literal["buy", "sell"]
    price: str
    quantity: str
    quote_quantity: str | None
    fee: str
    fee_asset: str
    liquidity: Literal["maker", "taker"]


class Bust(Fact, frozen=True):
    """The venue's word that a fill does not stand."""

    trade_id: str
    instrument: str
    reason: str


class Execution(Struct, array_like=True, gc=False):
    """A fill and its bust, either of which may come first."""

    fill: Fill | None = None
    bust: Bust | None = None


class Transfer(Fact, frozen=True):
    """A deposit, withdrawal or adjustment."""

    type: TransferType
    asset: str
    amount: str
    fee: str | None
    reason: str | None


def _given(text: str | object) -> str | None:
    return None if text is UNSET else str(text)


def placed_fact(event: OrderPlaced, offset: int) -> Placed:
    """Return what is kept of the event."""
    return Placed(
        offset,
        event.occurred_at,
        event.instrument,
        event.side,
        event.order_type,
        _given(event.quantity),
        _given(event.limit_price),
        _given(event.reserve),
    )


def amended_fact(event: OrderAmended, offset: int) -> Amended:
    """Return what is kept of the event."""
    return Amended(
        offset,
        event.occurred_at,
        _given(event.quantity),
        _given(event.limit_price),
        _given(event.reserve),
    )


def closed_fact(event: OrderCancelled | OrderRejected, offset: int) -> Closed:
    """Return what is kept of the event."""
    instrument = _given(event.instrument) if type(event) is OrderCancelled else None
    return Closed(offset, event.occurred_at, event.reason, instrument)


def fill_fact(event: OrderFilled, offset: int) -> Fill:
    """Return what is kept of the event."""
    return Fill(
        offset,
        event.occurred_at,
        event.trade_id,
        event.instrument,
        event.side,
        event.price,
        event.quantity,
        _given(event.quote_quantity),
        event.fee,
        event.fee_asset,
        event.liquidity,
    )


def bust_fact(event: FillBusted, offset: int) -> Bust:
    """Return what is kept of the event."""
    return Bust(offset, event.occurred_at, event.trade_id, event.instrument, event.reason)


def transfer_fact(event: TransferEvent, offset: int) -> Transfer:
    """Return what is kept of the event."""
    name = event_type(type(event))
    assert name in ("deposited", "withdrawn", "adjusted")
    fee = event.fee if type(event) is Withdrawn else UNSET
    reason = event.reason if type(event) is Adjusted else UNSET
    return Transfer(
        offset,
        event.occurred_at,
        name,  # type: ignore[arg-type]  # narrowed by the assertion, which mypy does not follow
        event.asset,
        event.amount,
        _given(fee),
        _given(reason),
    )


def transfer_event(fact: Transfer, account: str, transfer_id: str) -> TransferEvent:
    """Return the event again, but for its `event_id`, which is not kept."""
    common = {
        "version": 1,
        "event_id": "-",
        "account": account,
        "occurred_at": fact.occurred_at,
        "transfer_id": transfer_id,
        "asset": fact.asset,
        "amount": fact.amount,
    }
    if fact.type == "deposited":
        return Deposited(**common)  # type: ignore[arg-type]
    if fact.type == "withdrawn":
        return Withdrawn(**common, fee=UNSET if fact.fee is None else fact.fee)  # type: ignore[arg-type]
    return Adjusted(**common, reason=fact.reason or "-")  # type: ignore[arg-type]


_AMOUNTS: Final = frozenset(
    {"price", "quantity", "quote_quantity", "fee", "amount", "limit_price", "reserve"}
)


def same_content(stored: Fact, other: Fact) -> bool:
    """Return whether two facts of one identity say the same.

    `event_id`, `occurred_at` and the offset do not count; amounts are compared by value, and a
    withdrawal without a fee has a fee of 0 (contract, section 4).
    """
    return type(stored) is type(other) and _content(stored) == _content(other)


def _content(fact: Fact) -> list[str | None]:
    content: list[str | None] = []
    for name in fact.__struct_fields__[2:]:
        text: str | None = getattr(fact, name)
        if name in _AMOUNTS:
            if text is not None:
                text = canonical(text)
            elif name == "fee":
                text = "0"
        content.append(text)
    return content
