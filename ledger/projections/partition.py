"""One partition's state: records are folded into it, and it is read. Everything runs this one.

The fold itself, what a record does to the entries of a state, is compiled (`fold/`, in Rust): state
is a pure function of which records were applied, not of how the three topics interleaved. Here are
the position, the counts and the digests that go with it. Nothing waits, logs or reads a clock; what
is stored, and where, is the caller's business: `apply` changes entries in memory, `freeze` gathers
what changed, `settle` writes it to the store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Literal, NamedTuple, Protocol

import msgspec

from ledger import _fold, digests
from ledger.codec import DECODERS
from ledger.errors import DamagedState, InvalidRecord, RefusedState, TopicError
from ledger.events import INPUT_TOPICS, RULES_VERSION, AnyEvent
from ledger.projections.accounts import Texts, decode_texts
from ledger.projections.entries import (
    META_KEY,
    ORDER_KIND,
    TOTALS_PREFIX,
    Amended,
    Execution,
    Transfer,
    amendments_key,
    balances_key,
    fill_key,
    order_key,
    split_key,
    transfer_key,
)
from ledger.projections.orders import Order
from ledger.store import MemoryStore, Store

Verdict = Literal["applied", "duplicate", "conflict", "invalid"]
APPLIED: Final = "applied"
DUPLICATE: Final = "duplicate"
CONFLICT: Final = "conflict"
INVALID: Final = "invalid"
VERDICTS: Final[tuple[Verdict, ...]] = (APPLIED, DUPLICATE, CONFLICT, INVALID)

Watermark = dict[str, int]
"""For each input topic the offset of the next record to apply."""
Counts = dict[str, dict[str, int]]
"""For each input topic how many records had which verdict."""

CACHED_ENTRIES: Final = 20_000
"""How many unchanged accounts, and how many open orders, stay decoded in memory."""


class Record(Protocol):
    """What the fold reads of a Kafka record."""

    @property
    def offset(self) -> int:
        """Its position in the partition."""
        ...

    @property
    def key(self) -> bytes | None:
        """Its key."""
        ...

    @property
    def value(self) -> bytes | None:
        """Its value."""
        ...


class Packed(NamedTuple):
    """Records of one partition, in offset order, that need not have an object each.

    Attributes:
        records: what the fold reads of them.
        full: returns one of them as its client has it, by its place.
    """

    records: _fold.Records | Sequence[Record]
    full: Callable[[int], Record]

    @classmethod
    def of(cls, records: Iterable[Record]) -> Packed:
        """Return records that have an object each."""
        found = list(records)
        return cls(found, found.__getitem__)


Observer = Callable[[str, Record, AnyEvent | None, Verdict], None]
"""Told of each record: topic, record, its event (None if invalid), verdict."""


@dataclass(frozen=True)
class Rejected:
    """A record that was not applied: invalid, or in conflict with one applied before."""

    topic: str
    record: Record
    reason: str
    detail: str


class Origin(msgspec.Struct, frozen=True):
    """Where records came from: state of one Kafka cluster or topic is never used for another."""

    cluster_id: str = ""
    topic_ids: dict[str, str] = {}
    partitions: int = 1


class Tip(msgspec.Struct, frozen=True):
    """The last record applied of a topic, to notice when its offset is used for another one.

    Attributes:
        offset: of the record.
        digest: SHA-256 (hex) of it, made as the first link of a log digest is.
    """

    offset: int
    digest: str


Tips = dict[str, Tip]
"""For each input topic the last record applied; topics of which none was are not there."""


class Header(msgspec.Struct, kw_only=True):
    """What is stored of a partition beside its entries."""

    rules_version: int
    partition: int
    origin: Origin
    watermark: Watermark
    counts: Counts
    log_digests: dict[str, str] | None
    tips: Tips
    total: str  # the sum of the entries' elements, hex


class Frozen:
    """What changed since the last freeze, and the state that it led to; immutable.

    It is what a store writes (`ledger.store.Changes`). What takes time, digests above all, is not
    made before it is asked for, and may be in another thread while the partition goes on.

    Attributes:
        partition: the number of the partition.
        watermark: the position that the state belongs to.
        counts: of the records before it.
        log_digests: of them; None for a state that begins in the middle of the log.
        tips: the last of them.
        rejected: those of them since the last freeze that were not applied.
    """

    def __init__(self, header: Header, rejected: list[Rejected], frozen: _fold.Frozen) -> None:
        """Hold a copy of a header, but for the sum of entries, and the entries that changed."""
        self.partition = header.partition
        self.watermark: Watermark = dict(header.watermark)
        self.counts: Counts = {topic: dict(tally) for topic, tally in header.counts.items()}
        self.log_digests = header.log_digests
        self.tips: Tips = dict(header.tips)
        self.rejected = rejected
        self._header = msgspec.structs.replace(
            header, watermark=self.watermark, counts=self.counts, tips=self.tips
        )
        self._frozen = frozen

    @cached_property
    def total(self) -> int:
        """The sum of the entries' elements (see `ledger.digests`)."""
        return digests.from_bytes(self._frozen.total())

    @cached_property
    def state_digest(self) -> str:
        """The digest of the state."""
        return digests.state_digest(
            state_header(self.partition, self._header.origin, self.watermark, self.counts),
            self.total,
        )

    def items(self) -> Iterator[tuple[bytes, bytes | None]]:
        """Return the header, and the entries to store by their key, in order (None: to delete)."""
        return self._frozen.entries(META_KEY, self._encoded_header())

    def write_to(self, store: Store) -> None:
        """Write the entries and the header to a store, in one batch."""
        if isinstance(store, MemoryStore):
            self._frozen.write_into(store, META_KEY, self._encoded_header())
        else:
            store.write(self)

    def _encoded_header(self) -> bytes:
        return _encode(msgspec.structs.replace(self._header, total=f"{self.total:x}"))

    def rows(self) -> Iterator[list[dict[str, Any]]]:
        """Yield what is published of the accounts that changed, `key` and `value` each, in lists.

        They can be as many as records, and are large: those of a list are gone before the next.
        """
        return self._frozen.rows(_encode(self.watermark))

    def changed_accounts(self) -> set[str]:
        """Return the names of the accounts that changed."""
        return {name for name, _ in self._frozen.accounts()}

    @cached_property
    def accounts(self) -> dict[str, Texts]:
        """The totals of the accounts that changed; nothing where all are zero."""
        return {
            name: {} if value is None else decode_texts(value)
            for name, value in self._frozen.accounts()
        }


_encode = msgspec.json.Encoder().encode
_decode_execution = msgspec.json.Decoder(Execution).decode
_decode_transfer = msgspec.json.Decoder(Transfer).decode
_decode_amended = msgspec.json.Decoder(Amended).decode
_decode_header = msgspec.json.Decoder(Header).decode


class Partition:
    """The state of one partition number across the three input topics."""

    def __init__(
        self, number: int, store: Store, origin: Origin, *, start: Watermark | None = None
    ) -> None:
        """Open the state that `store` holds, or an empty one.

        Args:
            number: the partition.
            store: holds this partition's entries and nothing else.
            origin: the cluster and topics that records will come from.
            start: for a state that begins in the middle of the log (base `empty`); it has no log
                digests, because they would have to cover what was left out.

        Raises:
            DamagedState: the stored state is damaged.
            RefusedState: it is of other topics or another rules version.
            TopicError: the topics have another number of partitions than when it was made.
        """
        self.number = number
        self.origin = origin
        self._store = store
        self._frozen: tuple[Frozen, _fold.Frozen] | None = None  # until it is settled
        self._is_written = True  # whether the store has the last freeze
        self._rejected: list[Rejected] = []
        self.is_dirty = False  # whether records were applied since the last freeze
        self.watermark: Watermark = dict.fromkeys(INPUT_TOPICS, 0)
        self.counts: Counts = {t: dict.fromkeys(VERDICTS, 0) for t in INPUT_TOPICS}
        self._chains: dict[str, bytes] | None = dict.fromkeys(INPUT_TOPICS, digests.GENESIS)
        self.tips: Tips = {}
        total = 0
        stored = store.get(META_KEY)
        if stored is not None:
            header = read_header(stored)
            self._restore(header)
            total = int(header.total, 16)
        elif start is not None:
            self.watermark.update(start)
            if any(start.values()):
                self._chains = None
        self._fold = _fold.Fold(
            number, origin.partitions, digests.to_bytes(total), CACHED_ENTRIES, store, _judge
        )

    def _restore(self, header: Header) -> None:
        for what, found, expected in (
            ("rules version", header.rules_version, RULES_VERSION),
            ("partition", header.partition, self.number),
            ("Kafka cluster", header.origin.cluster_id, self.origin.cluster_id),
            ("topics", header.origin.topic_ids, self.origin.topic_ids),
        ):
            if found != expected:
                raise RefusedState(
                    f"The stored state of partition {self.number} belongs to another {what} "
                    f"({found}, now {expected})."
                )
        require_same_partitions(header.origin.partitions, self.origin.partitions)
        self.watermark = dict(header.watermark)
        self.counts = {topic: dict(tally) for topic, tally in header.counts.items()}
        digests_hex = header.log_digests
        self._chains = (
            None if digests_hex is None else {t: bytes.fromhex(d) for t, d in digests_hex.items()}
        )
        self.tips = dict(header.tips)

    # -- reading

    @property
    def log_digests(self) -> dict[str, str] | None:
        """For each topic the digest (hex) of all records before the watermark."""
        if self._chains is None:
            return None
        return {topic: digest.hex() for topic, digest in self._chains.items()}

    def state_digest(self) -> str:
        """Return the digest of the state, which must be frozen and settled."""
        return digests.state_digest(
            state_header(self.number, self.origin, self.watermark, self.counts),
            digests.from_bytes(self._fold.total),
        )

    def balances(self) -> Iterator[tuple[str, Texts]]:
        """Yield each account's totals as of the last settled freeze, accounts in order."""
        for account, value in self.balance_entries():
            yield account, decode_texts(value)

    def balances_of(self, accounts: Iterable[str]) -> Iterator[tuple[str, Texts]]:
        """Yield the totals of some accounts as of the last settled freeze."""
        for account, value in self.balance_entries_of(accounts):
            yield account, decode_texts(value) if value is not None else {}

    def balance_entries(self) -> Iterator[tuple[str, bytes]]:
        """Yield each account's stored entry as of the last settled freeze, accounts in order."""
        for key, value in self._store.scan(TOTALS_PREFIX):
            if key != META_KEY:
                yield key[len(TOTALS_PREFIX) :].decode(), value

    def balance_entries_of(self, accounts: Iterable[str]) -> Iterator[tuple[str, bytes | None]]:
        """Yield the stored entries of some accounts as of the last settled freeze."""
        for account in accounts:
            yield account, self._store.get(balances_key(account).encode())

    def orders(self, account: str | None = None) -> Iterator[Order]:
        """Yield the orders (of one account) as of the last settled freeze, in order of key."""
        prefix = b"" if account is None else order_key(account, "").encode()
        for key, value in self._store.scan(prefix):
            owner, kind, order_id = split_key(key)
            if kind == ORDER_KIND and owner:
                yield Order(owner, order_id, value)

    def execution(self, account: str, order_id: str, fill_id: str) -> Execution:
        """Return a fill and its bust as of now, both None where they are not known."""
        stored = self._fold.execution(account, order_id, fill_id)
        return Execution() if stored is None else _decode_execution(stored)

    def executions(self, order: Order) -> Iterator[tuple[str, Execution]]:
        """Yield all fills and busts of an order by their fill id, as of the last settled freeze."""
        yield from order.fills.items()
        if order.more_fills:
            prefix = fill_key(order.account, order.order_id, "")
            for key, value in self._store.scan(prefix.encode()):
                yield key.rpartition(b"\0")[2].decode(), _decode_execution(value)

    def amendments(self, order: Order) -> Iterator[tuple[int, Amended]]:
        """Yield all amendments of an order by their revision, as of the last settled freeze."""
        yield from order.amendments.items()
        if order.more_amendments:
            prefix = amendments_key(order.account, order.order_id)
            for key, value in self._store.scan(prefix.encode()):
                yield int(key.rpartition(b"\0")[2]), _decode_amended(value)

    def transfers(self, account: str) -> Iterator[tuple[str, Transfer]]:
        """Yield the transfers of an account by their id, as of the last settled freeze."""
        for key, value in self._store.scan(transfer_key(account, "").encode()):
            yield split_key(key)[2], _decode_transfer(value)

    # -- applying

    def apply(
        self,
        topic: str,
        records: Iterable[Record] | Packed,
        next_offset: int | None = None,
        observe: Observer | None = None,
    ) -> None:
        """Apply records of one topic in offset order.

        Args:
            topic: one of the input topics, without prefix.
            records: of this partition, each at or after the watermark; offsets may have holes
                (transaction markers).
            next_offset: the position after them, if it is beyond the last one's offset + 1.
            observe: told of each record's verdict, before the next record is applied.

        Raises:
            DamagedState: a stored entry is damaged; this state is not to be used any more.
        """
        packed = records if isinstance(records, Packed) else Packed.of(records)
        if observe is None:
            self._apply(topic, packed)
        else:
            for record in map(packed.full, range(len(packed.records))):
                (code,) = self._apply(topic, Packed.of([record]))
                verdict = VERDICTS[code]
                event = None if verdict == INVALID else DECODERS[topic](record.value)
                observe(topic, record, event, verdict)
        if next_offset is not None and next_offset > self.watermark[topic]:
            self.watermark[topic] = next_offset
            self.is_dirty = True

    def _apply(self, topic: str, packed: Packed) -> bytes:
        """Apply records and return their verdicts, a place in `VERDICTS` each."""
        if not len(packed.records):
            return b""
        chains = self._chains
        applied = self._fold.apply(
            topic,
            packed.records,
            self.watermark[topic],
            None if chains is None else chains[topic],
        )
        position, verdicts, refused, log_digest, tip = applied
        tally = self.counts[topic]
        for code, verdict in enumerate(VERDICTS):
            tally[verdict] += verdicts.count(code)
        for place, is_conflict, detail in refused:
            reason = CONFLICT if is_conflict else INVALID
            self._rejected.append(Rejected(topic, packed.full(place), reason, detail))
        self.watermark[topic] = position
        self.is_dirty = True
        if chains is not None and log_digest is not None:
            chains[topic] = log_digest
        self.tips[topic] = Tip(position - 1, tip.hex())
        return verdicts

    # -- freezing and settling

    def freeze(self, *, whole: bool = True) -> Frozen:
        """Return what changed since the last freeze; it must be settled before the next.

        Accounts change all the time. To hash and store them again and again is a waste where
        nobody looks before the end: what is not `whole` leaves them in memory. Then what the store
        has is no state before it has a whole freeze, so nothing may go on from it after a failure.
        """
        assert self._frozen is None, "the last freeze is not settled"
        changed = self._fold.freeze(whole)
        rejected, self._rejected = self._rejected, []
        self.is_dirty = False
        frozen = Frozen(self.header(), rejected, changed)
        self._frozen, self._is_written = (frozen, changed), False
        return frozen

    def write(self) -> None:
        """Write the last freeze to the store, in one batch; records may be applied meanwhile."""
        if self._frozen is not None and not self._is_written:
            self._frozen[0].write_to(self._store)
            self._is_written = True

    def settle(self) -> None:
        """Forget what need not be cached, now that the store has the last freeze; see `write`."""
        self.write()
        if self._frozen is not None:
            self._fold.settle(self._frozen[1])
            self._frozen = None

    def header(self) -> Header:
        """Return what is stored beside the entries."""
        return Header(
            rules_version=RULES_VERSION,
            partition=self.number,
            origin=self.origin,
            watermark=self.watermark,
            counts=self.counts,
            log_digests=self.log_digests,
            tips=self.tips,
            total=f"{digests.from_bytes(self._fold.total):x}",
        )


def _judge(topic: str, value: bytes | None) -> dict[str, Any] | str:
    """Return the fields of the event in a record, or why there is none."""
    try:
        event = DECODERS[topic](value)
    except InvalidRecord as invalid:
        return str(invalid)
    fields: dict[str, Any] = msgspec.to_builtins(event)
    return fields


def state_header(
    number: int, origin: Origin, watermark: Watermark, counts: Counts
) -> dict[str, Any]:
    """Return what a state digest covers beside the entries."""
    return {
        "rules_version": RULES_VERSION,
        "partition": number,
        "partitions": origin.partitions,
        "watermark": watermark,
        "counts": counts,
    }


def dominates(one: Watermark, other: Watermark) -> bool:
    """Return whether `one` is at or after `other` in every topic."""
    return all(one[topic] >= offset for topic, offset in other.items())


def tip_of(offset: int, key: bytes | None, value: bytes | None) -> Tip:
    """Return what is remembered of a record when it is the last one applied."""
    return Tip(offset, digests.chain(digests.GENESIS, offset, key, value).hex())


def require_same_partitions(before: int, now: int) -> None:
    """Refuse topics whose number of partitions changed.

    Raises:
        TopicError: it did; accounts lie in other partitions than their history.
    """
    if before != now:
        raise TopicError(
            f"The input topics had {before} partitions and now have {now}: accounts have moved "
            "away from their history. Use a new topic prefix and publish the events again."
        )


def read_header(value: bytes) -> Header:
    """Return a stored header.

    Raises:
        DamagedState: it is damaged.
    """
    try:
        return _decode_header(value)
    except msgspec.DecodeError as error:
        raise DamagedState(f"The stored state's header is damaged: {error}.") from error
