"""The events of the three input topics: one definition each (contract, section 2).

The classes are msgspec structs, decoded from a record in about a microsecond. Each field's type
carries a `Form`, from which the stream's checks (`ledger.codec`), the pydantic models at the doors
and the JSON Schemas (`ledger.intake`) are all made.

Amounts and times keep the text in which they came: a fact is stored as it was stated.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from ledger import times

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
    from pydantic.json_schema import JsonSchemaValue
    from pydantic_core import CoreSchema

VERSION: Final = 1
RULES_VERSION: Final = 4
"""Raised when a record would be judged or posted differently; older state is then rebuilt."""

ORDERS: Final = "orders"
FILLS: Final = "fills"
TRANSFERS: Final = "transfers"
INPUT_TOPICS: Final = (ORDERS, FILLS, TRANSFERS)

_ASSET = r"[A-Za-z0-9@_]{1,32}"
_UNSIGNED = r"(?:0|[1-9][0-9]{0,19})(?:\.[0-9]{1,18})?"
_AMOUNT = r"-?" + _UNSIGNED
# Times of which no date is to be looked at: days that every month has, years far from the ends.
_SURE_TIME = times.RFC3339.replace(
    "[0-9]{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12][0-9]|3[01])",
    "[1-8][0-9]{3}-(?:0[1-9]|1[0-2])-(?:0[1-9]|1[0-9]|2[0-8])",
)


@dataclass(frozen=True)
class Form:
    """What the text of a field must look like.

    `pattern` must match the whole text, then `check` (if any) may refuse it with a ValueError.
    `sure` is a narrower pattern for which `check` is known to pass; the stream tries it first.
    """

    expected: str
    pattern: str
    sure: str = ""
    check: Callable[[str], object] | None = None
    schema_format: str = ""

    def verify(self, text: str) -> str:
        """Return `text`.

        Raises:
            ValueError: it does not have this form; the message says what is expected.
        """
        if re.fullmatch(self.pattern, text) is None:
            raise ValueError(f"must be {self.expected}")
        if self.check is not None:
            self.check(text)
        return text

    def __get_pydantic_core_schema__(
        self, source: type[Any], handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        from pydantic_core import core_schema

        return core_schema.no_info_after_validator_function(self.verify, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        more = {"format": self.schema_format} if self.schema_format else {}
        described = {"pattern": f"^(?:{self.pattern})$", "description": self.expected}
        return {**handler(schema), **described, **more}


def _positive(text: str) -> None:
    if Decimal(text) <= 0:
        raise ValueError("must be greater than 0")


def _not_negative(text: str) -> None:
    if Decimal(text) < 0:
        raise ValueError("must not be negative")


def _not_zero(text: str) -> None:
    if Decimal(text) == 0:
        raise ValueError("must not be 0")


def _decimal(sign: str, sure: str, check: Callable[[str], object] | None) -> Form:
    expected = f"{sign}a decimal string of at most 20 integer and 18 fraction digits"
    return Form(expected, _AMOUNT, sure, check)


_IDENTIFIER = Form("1 to 128 printable ASCII characters", r"[ -~]{1,128}")

Account = Annotated[str, Form("1 to 128 of A-Z a-z 0-9 _ : -", r"[A-Za-z0-9_:-]{1,128}")]
Asset = Annotated[str, Form("1 to 32 of A-Z a-z 0-9 @ _", _ASSET)]
Instrument = Annotated[str, Form("BASE-QUOTE, two assets joined by one '-'", f"{_ASSET}-{_ASSET}")]
Identifier = Annotated[str, _IDENTIFIER]
Reason = Annotated[str, Form("1 to 1,024 characters", r"(?s:.){1,1024}", r"[^\n]{1,1024}")]
Time = Annotated[
    str,
    Form(
        "an RFC 3339 time with a zone, such as 2015-05-01T00:00:06.337Z",
        times.RFC3339,
        _SURE_TIME,
        times.instant,
        "date-time",
    ),
]
Amount = Annotated[str, _decimal("", "", None)]
PositiveAmount = Annotated[str, _decimal("above 0, ", rf"(?=[0-9.]*[1-9]){_UNSIGNED}", _positive)]
UnsignedAmount = Annotated[str, _decimal("0 or above, ", _UNSIGNED, _not_negative)]
NonZeroAmount = Annotated[str, _decimal("not 0, ", rf"-?(?=[0-9.]*[1-9]){_UNSIGNED}", _not_zero)]
Revision = Annotated[int, Meta(ge=1, le=2**63 - 1)]

Side = Literal["buy", "sell"]
OrderType = Literal["limit", "market"]
Liquidity = Literal["maker", "taker"]


class Event(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True, tag_field="type"):
    """What every event says. `occurred_at` is the venue's time, not Kafka's."""

    version: Literal[1]
    event_id: Identifier
    account: Account
    occurred_at: Time


class OrderPlaced(Event, frozen=True, tag="order_placed"):
    """An order was accepted. `quantity` is in base; `reserve` the most it may use of its asset."""

    order_id: Identifier
    instrument: Instrument
    side: Side
    order_type: OrderType
    quantity: PositiveAmount | UnsetType = UNSET
    limit_price: PositiveAmount | UnsetType = UNSET
    reserve: UnsignedAmount | UnsetType = UNSET


class OrderAmended(Event, frozen=True, tag="order_amended"):
    """New totals for an order; what is absent stays. The highest `revision` naming a term wins."""

    order_id: Identifier
    revision: Revision
    quantity: PositiveAmount | UnsetType = UNSET
    limit_price: PositiveAmount | UnsetType = UNSET
    reserve: UnsignedAmount | UnsetType = UNSET


class OrderCancelled(Event, frozen=True, tag="order_cancelled"):
    """An order was closed for ever. Venues name the instrument here too, so it may be given."""

    order_id: Identifier
    reason: Reason
    instrument: Instrument | UnsetType = UNSET


class OrderRejected(Event, frozen=True, tag="order_rejected"):
    """An order was refused; it never was open."""

    order_id: Identifier
    reason: Reason


class OrderFilled(Event, frozen=True, tag="order_filled"):
    """One account's side of a trade. `fee` above 0 is paid, below 0 is a rebate.

    `quote_quantity` is what the venue settled; where absent it is exactly price times quantity.
    """

    fill_id: Identifier
    trade_id: Identifier
    order_id: Identifier
    instrument: Instrument
    side: Side
    price: PositiveAmount
    quantity: PositiveAmount
    fee: Amount
    fee_asset: Asset
    liquidity: Liquidity
    quote_quantity: UnsignedAmount | UnsetType = UNSET


class FillBusted(Event, frozen=True, tag="fill_busted"):
    """The venue took a fill back; it may come before the fill."""

    fill_id: Identifier
    order_id: Identifier
    trade_id: Identifier
    instrument: Instrument
    reason: Reason


class Deposited(Event, frozen=True, tag="deposited"):
    """An account received an asset from outside."""

    transfer_id: Identifier
    asset: Asset
    amount: PositiveAmount


class Withdrawn(Event, frozen=True, tag="withdrawn"):
    """An account sent an asset outside, and paid `fee` in the same asset for it."""

    transfer_id: Identifier
    asset: Asset
    amount: PositiveAmount
    fee: UnsignedAmount | UnsetType = UNSET


class Adjusted(Event, frozen=True, tag="adjusted"):
    """An operator corrected a balance; above 0 the account gains."""

    transfer_id: Identifier
    asset: Asset
    amount: NonZeroAmount
    reason: Reason


OrderEvent = OrderPlaced | OrderAmended | OrderCancelled | OrderRejected
FillEvent = OrderFilled | FillBusted
TransferEvent = Deposited | Withdrawn | Adjusted
AnyEvent = OrderEvent | FillEvent | TransferEvent

TYPES_OF_TOPIC: Final[Mapping[str, tuple[type[Event], ...]]] = {
    ORDERS: (OrderPlaced, OrderAmended, OrderCancelled, OrderRejected),
    FILLS: (OrderFilled, FillBusted),
    TRANSFERS: (Deposited, Withdrawn, Adjusted),
}
TOPIC_OF_TYPE: Final[Mapping[type[Event], str]] = {
    cls: topic for topic, classes in TYPES_OF_TOPIC.items() for cls in classes
}


def event_type(cls: type[Event]) -> str:
    """Return the `type` that an event of this class carries."""
    return str(cls.__struct_config__.tag)


def contradiction(event: Event) -> str | None:
    """Return what two fields of an event say against each other, or None."""
    if type(event) is OrderPlaced:
        if event.quantity is UNSET and event.reserve is UNSET:
            return "quantity: may only be absent when reserve is given"
        if event.order_type == "limit" and event.limit_price is UNSET:
            return "limit_price: a limit order needs one"
        if event.order_type == "market" and event.limit_price is not UNSET:
            return "limit_price: a market order has none"
    elif (
        type(event) is OrderAmended
        and event.quantity is UNSET
        and event.limit_price is UNSET
        and event.reserve is UNSET
    ):
        return "quantity, limit_price, reserve: an amendment names at least one"
    return None


def split_instrument(instrument: str) -> tuple[str, str]:
    """Return base and quote asset."""
    base, _, quote = instrument.partition("-")
    return base, quote
