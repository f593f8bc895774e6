"""How state is stored: the keys of its entries and the facts in their values.

The fold writes it so (`fold/src/fact.rs`, `order.rs`, `account.rs`); this is for whoever reads it.
A value is JSON, an array where a fact has fixed fields (their order is that of the classes here).
Facts keep the texts of the event that stated them and the offset of its record; `event_id` is not
kept. Changing anything here changes every state digest and needs a new `RULES_VERSION`.

| key | value |
|---|---|
| ``\\0`` | the header: watermark, counts, digests, where the records came from |
| ``\\0 ACCOUNT`` | totals: asset to debits, credits, hold |
| ``ACCOUNT \\0 o ORDER`` | an order: its facts, terms, running sums, first fills and amendments |
| ``ACCOUNT \\0 f ORDER \\0 FILL`` | a fill and its bust, beyond an order's first ones |
| ``ACCOUNT \\0 a ORDER \\0 REVISION`` | an amendment, beyond an order's first ones |
| ``ACCOUNT \\0 t TRANSFER`` | a transfer |

The totals of all accounts lie together, so that they can be listed without all else, and what is
asked for most is dense. All else of an account lies together.
"""

from __future__ import annotations

from typing import Final, Literal

from msgspec import Struct

META_KEY: Final = b"\0"
TOTALS_PREFIX: Final = b"\0"
"""How the keys of all accounts' totals begin, and the header's, which is the first of all."""
BALANCES_KIND: Final = "b"
ORDER_KIND: Final = "o"
FILL_KIND: Final = "f"
AMENDMENT_KIND: Final = "a"
TRANSFER_KIND: Final = "t"

TransferType = Literal["deposited", "withdrawn", "adjusted"]


def balances_key(account: str) -> str:
    """Return the key of an account's totals."""
    return f"\0{account}"


def order_key(account: str, order_id: str) -> str:
    """Return the key of an order."""
    return f"{account}\0o{order_id}"


def fill_key(account: str, order_id: str, fill_id: str) -> str:
    """Return the key of a fill that an order no longer holds itself."""
    return f"{account}\0f{order_id}\0{fill_id}"


def amendments_key(account: str, order_id: str) -> str:
    """Return how the keys of the amendments begin that an order no longer holds itself."""
    return f"{account}\0a{order_id}\0"


def transfer_key(account: str, transfer_id: str) -> str:
    """Return the key of a transfer."""
    return f"{account}\0t{transfer_id}"


def split_key(key: bytes) -> tuple[str, str, str]:
    """Return account, kind and identity (whose parts are separated by zero bytes) of a key."""
    account, _, rest = key.decode().partition("\0")
    return (account, rest[:1], rest[1:]) if account else (rest, BALANCES_KIND, "")


def joined_key(account: str, kind: str, identity: str) -> bytes:
    """Return the key that `split_key` gave the parts of.

    Raises:
        ValueError: there is no such key.
    """
    is_total = kind == BALANCES_KIND
    if not account or len(kind) != 1 or (is_total and identity):
        raise ValueError(f"no entry has account {account!r}, kind {kind!r} and id {identity!r}")
    return (balances_key(account) if is_total else f"{account}\0{kind}{identity}").encode()


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
