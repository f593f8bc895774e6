"""The naive reference with digests: which entries a partition's state has, written down once more.

The form of entries is that of `ledger/projections/entries.py` and `orders.py`, the digests are
those of the contract (section 4) and ARCHITECTURE; nothing here uses the ledger's code for them.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, localcontext
from typing import Any, Final

from blake3 import blake3

from ledger.events import RULES_VERSION
from tests.chaos.naive import NaivePartition
from tests.reference import EXACT, TOPICS, Balances, Order

_INLINE: Final = 16  # fills, and amendments, that an order holds itself
_TERMS: Final = ("quantity", "limit_price", "reserve")
_PLACED: Final = ("instrument", "side", "order_type", *_TERMS)
_CLOSED: Final = ("reason", "instrument")
_FILLED: Final = (
    "trade_id", "instrument", "side", "price", "quantity", "quote_quantity", "fee", "fee_asset",
    "liquidity",
)  # fmt: skip
_BUSTED: Final = ("trade_id", "instrument", "reason")
_TRANSFERRED: Final = ("type", "asset", "amount", "fee", "reason")
_ELEMENT_BYTES: Final = 256

Fields = dict[str, Any]
Facts = list[tuple[int, bytes]]
"""The records that stand, of one order: offset and value, those of a topic in order."""


@dataclass(frozen=True)
class Answer:
    """What the reference says of a partition at a watermark.

    `orders` are those of accounts of which a record came since the last answer.
    """

    state_digest: str
    log_digests: dict[str, str]
    counts: dict[str, dict[str, int]]
    balances: Balances
    orders: dict[str, dict[str, Order]]


class NaiveState(NaivePartition):
    """One partition's records so far, and the digests that follow from them."""

    def __init__(self, number: int, partitions: int) -> None:
        super().__init__(number, partitions)
        self._chains = dict.fromkeys(TOPICS, bytes(32))
        self._facts: defaultdict[tuple[str, str], Facts] = defaultdict(list)
        self._changed: set[tuple[str, str]] = set()  # orders, since the last answer
        self._rows: Balances = {}  # as of the last answer
        self._elements: dict[tuple[str, ...], int] = {}
        self._total = 0

    def apply(self, topic: str, offset: int, key: bytes | None, value: bytes | None) -> None:
        """Take in a record; those of a topic come in order."""
        self._chains[topic] = link(self._chains[topic], offset, key, value)
        before = self._counts[topic, "applied"]
        super().apply(topic, offset, key, value)
        if self._counts[topic, "applied"] == before or value is None:
            return
        fields = json.loads(value)
        account = fields["account"]
        if topic == "transfers":
            name = fields["transfer_id"]
            entry = (
                f"{account}\0t{name}",
                [offset, fields["occurred_at"], *_told(fields, _TRANSFERRED)],
            )
            self._put(("t", account, name), [entry])
        else:
            order = account, fields["order_id"]
            self._facts[order].append((offset, value))
            self._changed.add(order)

    def answer(self, watermark: Mapping[str, int]) -> Answer:
        """Return what follows from the records so far, which are those before the watermark."""
        balances = self.balances()
        for account in balances.keys() | self._rows.keys():
            row = balances.get(account)
            if row != self._rows.get(account):
                self._put(("b", account), [] if row is None else [(f"\0{account}", _texts(row))])
        self._rows = balances
        for account, order_id in self._changed:
            entries = order_entries(account, order_id, self._facts[account, order_id])
            self._put(("o", account, order_id), entries)
        accounts = sorted({account for account, _ in self._changed})
        self._changed.clear()
        return Answer(
            self._state_digest(watermark),
            {topic: digest.hex() for topic, digest in self._chains.items()},
            self.counts(),
            balances,
            {account: self._by_key[account.encode()].orders(account) for account in accounts},
        )

    def _put(self, owner: tuple[str, ...], entries: Iterable[tuple[str, object]]) -> None:
        """Let these be all entries of an order, an account's totals or a transfer."""
        element = sum(_element(key.encode(), _json(value)) for key, value in entries)
        self._total += element - self._elements.get(owner, 0)
        self._elements[owner] = element

    def _state_digest(self, watermark: Mapping[str, int]) -> str:
        header = _json(
            {
                "counts": self.counts(),
                "partition": self._number,
                "partitions": self._partitions,
                "rules_version": RULES_VERSION,
                "watermark": dict(watermark),
            },
            in_order=True,
        )
        total = self._total % 2 ** (8 * _ELEMENT_BYTES)
        return hashlib.sha256(
            b"ledger-state\0" + _sized(header) + total.to_bytes(_ELEMENT_BYTES, "little")
        ).hexdigest()


def ledger_digest(partition_digests: Iterable[str]) -> str:
    """Return the digest (hex) of a ledger whose partitions have these, in order."""
    joined = b"".join(bytes.fromhex(digest) for digest in partition_digests)
    return hashlib.sha256(b"ledger\0" + joined).hexdigest()


def link(digest: bytes, offset: int, key: bytes | None, value: bytes | None) -> bytes:
    """Return the log digest after one more record."""
    position = struct.pack(">Q", offset)
    return hashlib.sha256(digest + position + _sized(key) + _sized(value)).digest()


def order_entries(account: str, order_id: str, facts: Facts) -> Iterator[tuple[str, object]]:
    """Yield the entries of an order: its own, and those of fills and amendments beyond 16."""
    placed: list[object] | None = None
    closed: dict[str, list[object]] = {}
    amendments: dict[int, list[Any]] = {}
    executions: dict[str, list[Any]] = {}
    counting: dict[str, Fields] = {}
    terms_of: Fields = {}
    for offset, value in facts:
        fields = json.loads(value)
        kind = fields["type"]
        head = [offset, fields["occurred_at"]]
        if kind == "order_placed":
            terms_of = fields
            placed = [*head, *_told(fields, _PLACED)]
        elif kind == "order_amended":
            amendments[fields["revision"]] = [*head, *_told(fields, _TERMS)]
        elif kind == "order_filled":
            execution = executions.setdefault(fields["fill_id"], [None, None])
            execution[0] = [*head, *_told(fields, _FILLED)]
            counting[fields["fill_id"]] = fields
        elif kind == "fill_busted":
            execution = executions.setdefault(fields["fill_id"], [None, None])
            execution[1] = [*head, *_told(fields, _BUSTED)]
        else:
            closed[kind] = [*head, *_told(fields, _CLOSED)]
    terms: dict[str, list[object]] = {}
    for revision in sorted(amendments):
        for name, text in zip(_TERMS, amendments[revision][2:], strict=True):
            if text is not None:
                terms[name] = [revision, text]
    fills = [
        fill
        for fill_id, fill in counting.items()
        if executions[fill_id][1] is None
        and placed is not None
        and (fill["instrument"], fill["side"]) == (terms_of["instrument"], terms_of["side"])
    ]
    with localcontext(EXACT):
        filled = sum((Decimal(fill["quantity"]) for fill in fills), Decimal(0))
        used = sum(map(_taken, fills), Decimal(0))
    names, revisions = list(executions), list(amendments)
    stored = {name: _without_last(executions[name], [None]) for name in names}
    rest = [
        placed,
        _plain(filled),
        _plain(used),
        closed.get("order_cancelled"),
        closed.get("order_rejected"),
        *(terms.get(name) for name in _TERMS),
        {str(revision): amendments[revision] for revision in revisions[:_INLINE]},
        len(names[_INLINE:]),
        len(revisions[_INLINE:]),
    ]
    fills_held = {name: stored[name] for name in names[:_INLINE]}
    yield f"{account}\0o{order_id}", [fills_held, *_without_last(rest, [None, "0", {}, 0])]
    for name in names[_INLINE:]:
        yield f"{account}\0f{order_id}\0{name}", stored[name]
    for revision in revisions[_INLINE:]:
        yield f"{account}\0a{order_id}\0{revision:020d}", amendments[revision]


def _without_last(parts: Sequence[object], saying_nothing: Sequence[object]) -> list[object]:
    """Return the parts but for those at the end that say nothing."""
    left = list(parts)
    while left and left[-1] in saying_nothing:
        left.pop()
    return left


def _told(fields: Fields, names: Iterable[str]) -> list[object]:
    return [fields.get(name) for name in names]


def _taken(fill: Fields) -> Decimal:
    """Return what a fill took of its order's hold asset; under EXACT."""
    base, quote = fill["instrument"].split("-")
    asset, amount = base, Decimal(fill["quantity"])
    if fill["side"] == "buy":
        settled = fill.get("quote_quantity")
        asset = quote
        amount = Decimal(fill["price"]) * amount if settled is None else Decimal(settled)
    return amount + Decimal(fill["fee"]) if fill["fee_asset"] == asset else amount


def _texts(row: Mapping[str, tuple[Decimal, ...]]) -> dict[str, list[str]]:
    return {asset: [_plain(total) for total in row[asset]] for asset in sorted(row)}


def _plain(amount: Decimal) -> str:
    text = f"{amount:f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text == "-0" else text


def _json(value: object, *, in_order: bool = False) -> bytes:
    """Return JSON without spaces, names in order where that is asked for."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=in_order)
    return text.encode()


def _sized(data: bytes | None) -> bytes:
    return struct.pack(">i", -1) if data is None else struct.pack(">i", len(data)) + data


def _element(key: bytes, value: bytes) -> int:
    return int.from_bytes(blake3(_sized(key) + value).digest(_ELEMENT_BYTES), "little")
