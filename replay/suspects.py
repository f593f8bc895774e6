"""Which records must have been changed, by the facts in which a snapshot and the topics differ."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any, Final, Literal, NamedTuple

import msgspec

from ledger.events import FILLS, INPUT_TOPICS, ORDERS, TRANSFERS
from ledger.projections.entries import (
    AMENDMENT_KIND,
    BALANCES_KIND,
    FILL_KIND,
    META_KEY,
    ORDER_KIND,
    TRANSFER_KIND,
    Amended,
    Execution,
    Fact,
    Transfer,
    split_key,
)
from ledger.projections.orders import Order
from ledger.projections.partition import Header, Partition
from replay.findings import Disagreement

_LONGEST_TEXT: Final = 500

_ENTRIES: Final[dict[str, tuple[str, tuple[str, ...]]]] = {
    BALANCES_KIND: ("balances", ()),
    ORDER_KIND: ("order", ("order_id",)),
    FILL_KIND: ("fill", ("order_id", "fill_id")),
    AMENDMENT_KIND: ("amendment", ("order_id", "revision")),
    TRANSFER_KIND: ("transfer", ("transfer_id",)),
}
"""What a person calls an entry, and its ids; see `ledger.projections.entries`."""

_decode_execution = msgspec.json.Decoder(Execution).decode
_decode_amended = msgspec.json.Decoder(Amended).decode
_decode_transfer = msgspec.json.Decoder(Transfer).decode


class Suspect(NamedTuple):
    """The offset of a record that is not the one that a snapshot was made of.

    Attributes:
        fact: what the snapshot keeps of the record; None where it has nothing from this offset, or
            something else than the topics say.
    """

    topic: str
    offset: int
    type: str
    account: str
    ids: dict[str, str]
    fact: Fact | None

    def disagreement(self, record: Literal["changed", "removed"], text: str | None) -> Disagreement:
        """Return what to say of it; `text` is the record as it is now."""
        said = None if self.fact is None else _named(self.fact)
        return Disagreement(self.type, self.account, self.ids, said, text, self.offset, record)


Differing = tuple[bytes, bytes | None, bytes | None]
"""A key, the snapshot's value and the rebuilt one."""

_Identity = tuple[str, ...]


def differing_entries(
    snapshot: Iterable[tuple[bytes, bytes]], rebuilt: Iterable[tuple[bytes, bytes]]
) -> Iterator[Differing]:
    """Yield the entries that differ; both come in order of their keys."""
    left = (entry for entry in snapshot if entry[0] != META_KEY)
    right = (entry for entry in rebuilt if entry[0] != META_KEY)
    one, other = next(left, None), next(right, None)
    while one is not None or other is not None:
        if other is None or (one is not None and one[0] < other[0]):
            assert one is not None
            yield one[0], one[1], None
            one = next(left, None)
        elif one is None or other[0] < one[0]:
            yield other[0], None, other[1]
            other = next(right, None)
        else:
            if one[1] != other[1]:
                yield one[0], one[1], other[1]
            one, other = next(left, None), next(right, None)


def suspects_of(differing: Iterable[Differing]) -> Iterator[Suspect]:
    """Yield the records that must have been changed, removed or added, by the facts they made."""
    for _, entries in groupby(differing, key=lambda entry: split_key(entry[0])[0]):
        stated: dict[_Identity, Suspect] = {}
        rebuilt: dict[_Identity, Suspect] = {}
        for key, one, other in entries:
            stated.update(_facts(key, one))
            rebuilt.update(_facts(key, other))
        for identity in stated.keys() | rebuilt.keys():
            was, now = stated.get(identity), rebuilt.get(identity)
            if was is not None and (now is None or was.offset <= now.offset):
                # An unchanged record would still be the first of its identity.
                if now is None or was.fact != now.fact:
                    yield was
            else:
                # Had this record been there, the snapshot would have it.
                assert now is not None
                yield now._replace(fact=None)


def _facts(key: bytes, value: bytes | None) -> Iterator[tuple[_Identity, Suspect]]:
    """Yield the facts in an entry by their identity (contract, section 4)."""
    if value is None:
        return
    account, kind, identity = split_key(key)
    try:
        found = list(_facts_of(kind, identity, account, value))
    except (msgspec.DecodeError, ArithmeticError, ValueError):
        return  # not what a ledger writes, whatever it adds up to
    for topic, type_, ids, fact in found:
        if fact is not None:
            named = "transfer" if topic == TRANSFERS else type_
            suspect = Suspect(topic, fact.offset, type_, account, ids, fact)
            yield (named, *ids.values()), suspect


_Stated = tuple[str, str, dict[str, str], Fact | None]
"""Topic, event type, ids, and the fact."""


def _facts_of(kind: str, identity: str, account: str, value: bytes) -> Iterator[_Stated]:
    if kind == ORDER_KIND:
        order = Order(account, identity, value)
        ids = {"order_id": identity}
        yield ORDERS, "order_placed", ids, order.placed
        yield ORDERS, "order_cancelled", ids, order.cancelled
        yield ORDERS, "order_rejected", ids, order.rejected
        for revision, amended in order.amendments.items():
            yield ORDERS, "order_amended", {**ids, "revision": str(revision)}, amended
        for fill_id, execution in order.fills.items():
            yield from _facts_of_execution({**ids, "fill_id": fill_id}, execution)
    elif kind == FILL_KIND:
        order_id, _, fill_id = identity.partition("\0")
        ids = {"order_id": order_id, "fill_id": fill_id}
        yield from _facts_of_execution(ids, _decode_execution(value))
    elif kind == AMENDMENT_KIND:
        order_id, _, padded = identity.partition("\0")
        ids = {"order_id": order_id, "revision": str(int(padded))}
        yield ORDERS, "order_amended", ids, _decode_amended(value)
    elif kind == TRANSFER_KIND:
        fact = _decode_transfer(value)
        yield TRANSFERS, fact.type, {"transfer_id": identity}, fact


def _facts_of_execution(ids: dict[str, str], execution: Execution) -> Iterator[_Stated]:
    yield FILLS, "order_filled", ids, execution.fill
    yield FILLS, "fill_busted", ids, execution.bust


def of_entry(differing: Differing) -> Disagreement:
    """Return what to say of an entry that differs."""
    key, stated, rebuilt = differing
    account, kind, identity = split_key(key)
    word, names = _ENTRIES.get(kind, (kind, ("id",)))
    ids = dict(zip(names, identity.split("\0"), strict=False))
    return Disagreement(word, account, ids, _value(stated), _value(rebuilt))


def of_header(header: Header, partition: Partition) -> Iterator[Disagreement]:
    """Yield where a snapshot's header says otherwise than the rebuilt state."""
    for topic in INPUT_TOPICS:
        said: Any = header.counts.get(topic)
        if said != partition.counts[topic]:
            yield Disagreement("counts", "", {"topic": topic}, said, partition.counts[topic])
        tips = (header.tips.get(topic), partition.tips.get(topic))
        if tips[0] != tips[1]:
            said, found = (None if tip is None else msgspec.to_builtins(tip) for tip in tips)
            yield Disagreement("tip", "", {"topic": topic}, said, found)


def _named(fact: Fact) -> dict[str, Any]:
    """Return a fact's fields by name, without those that are not given."""
    fields = {name: getattr(fact, name) for name in fact.__struct_fields__}
    return {name: text for name, text in fields.items() if text is not None}


def _value(stored: bytes | None) -> Any:
    if stored is None:
        return None
    try:
        return msgspec.json.decode(stored)
    except msgspec.DecodeError:
        return text_of(stored)


def text_of(value: bytes | None) -> str | None:
    """Return the beginning of a value as text, whatever it holds."""
    return None if value is None else value[:_LONGEST_TEXT].decode(errors="replace")
