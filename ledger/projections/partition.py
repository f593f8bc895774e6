"""The fold: one partition's records become its state. Worker, replay and tests all run this.

State is a pure function of which records were applied, not of how the three topics interleaved.
Nothing here waits, logs or reads a clock; what is stored, and where, is the caller's business:
`apply` changes entries in memory, `freeze` gathers what changed, `settle` writes it to the store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Final, Literal, Protocol

import msgspec

from ledger import digests
from ledger.amounts import add, subtract
from ledger.codec import DECODERS
from ledger.errors import DamagedState, InvalidRecord, RefusedState, TopicError
from ledger.events import (
    INPUT_TOPICS,
    RULES_VERSION,
    Adjusted,
    AnyEvent,
    Deposited,
    Event,
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
from ledger.journal import JournalEntry, fill_entry, notional_of, reversed_entry, transfer_entry
from ledger.projections.accounts import (
    Account,
    Texts,
    decode_texts,
    encode_texts,
)
from ledger.projections.entries import (
    BALANCES_KIND,
    META_KEY,
    ORDER_KIND,
    Amended,
    Closed,
    Execution,
    Fact,
    Fill,
    Transfer,
    amended_fact,
    amendment_key,
    amendments_key,
    balances_key,
    bust_fact,
    closed_fact,
    fill_fact,
    fill_key,
    order_key,
    placed_fact,
    same_content,
    split_key,
    transfer_fact,
    transfer_key,
)
from ledger.projections.orders import INLINE, Order
from ledger.store import Store

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


@dataclass(frozen=True)
class Frozen:
    """What changed since the last freeze, and the state that it led to; immutable."""

    partition: int
    watermark: Watermark
    counts: Counts
    state_digest: str
    log_digests: dict[str, str] | None
    tips: Tips
    changes: dict[bytes, bytes | None]
    accounts: dict[str, Texts]
    rejected: list[Rejected]


@dataclass
class _Loose:
    """An entry that is written once, or seldom, and not cached: a transfer, a later fill."""

    value: Fact | Execution
    element: int = 0


_encode = msgspec.json.Encoder().encode
_decode_execution = msgspec.json.Decoder(Execution).decode
_decode_transfer = msgspec.json.Decoder(Transfer).decode
_decode_amended = msgspec.json.Decoder(Amended).decode
_decode_header = msgspec.json.Decoder(Header).decode


class Partition:
    """The state of one partition number across the three input topics."""

    def __init__(
        self,
        number: int,
        store: Store,
        partition_of: Callable[[bytes, int], int],
        origin: Origin,
        *,
        start: Watermark | None = None,
    ) -> None:
        """Open the state that `store` holds, or an empty one.

        Args:
            number: the partition.
            store: holds this partition's entries and nothing else.
            partition_of: of a key and a number of partitions, the partition it belongs to.
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
        self._partition_of = partition_of
        self._accounts: dict[str, Account] = {}
        self._orders: dict[str, Order] = {}
        self._loose: dict[str, _Loose] = {}
        self._dirty_accounts: dict[str, Account] = {}
        self._dirty_orders: dict[str, Order] = {}
        self._pending: dict[bytes, bytes | None] = {}
        self._rejected: list[Rejected] = []
        self._conflict = ""
        self.is_dirty = False  # whether records were applied since the last freeze
        self._handlers: dict[type[Event], Callable[..., Verdict]] = {
            OrderPlaced: self._placed,
            OrderAmended: self._amended,
            OrderCancelled: self._closed,
            OrderRejected: self._closed,
            OrderFilled: self._filled,
            FillBusted: self._busted,
            Deposited: self._transferred,
            Withdrawn: self._transferred,
            Adjusted: self._transferred,
        }
        self.watermark: Watermark = dict.fromkeys(INPUT_TOPICS, 0)
        self.counts: Counts = {t: dict.fromkeys(VERDICTS, 0) for t in INPUT_TOPICS}
        self._chains: dict[str, bytes] | None = dict.fromkeys(INPUT_TOPICS, digests.GENESIS)
        self.tips: Tips = {}
        self._total = 0
        stored = store.get(META_KEY)
        if stored is not None:
            self._restore(read_header(stored))
        elif start is not None:
            self.watermark.update(start)
            if any(start.values()):
                self._chains = None

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
        self._total = int(header.total, 16)

    # -- reading

    @property
    def log_digests(self) -> dict[str, str] | None:
        """For each topic the digest (hex) of all records before the watermark."""
        if self._chains is None:
            return None
        return {topic: digest.hex() for topic, digest in self._chains.items()}

    def state_digest(self) -> str:
        """Return the digest of the last frozen state."""
        return digests.state_digest(
            {
                "rules_version": RULES_VERSION,
                "partition": self.number,
                "partitions": self.origin.partitions,
                "watermark": self.watermark,
                "counts": self.counts,
            },
            self._total,
        )

    def balances(self) -> Iterator[tuple[str, Texts]]:
        """Yield each account's totals as of the last settled freeze, accounts in order."""
        for key, value in self._store.scan():
            account, kind, _ = split_key(key)
            if kind == BALANCES_KIND and account:
                yield account, decode_texts(value)

    def balances_of(self, accounts: Iterable[str]) -> Iterator[tuple[str, Texts]]:
        """Yield the totals of some accounts as of the last settled freeze."""
        for account in accounts:
            value = self._store.get(balances_key(account).encode())
            yield account, decode_texts(value) if value is not None else {}

    def orders(self, account: str | None = None) -> Iterator[Order]:
        """Yield the orders (of one account) as of the last settled freeze, in order of key."""
        prefix = b"" if account is None else order_key(account, "").encode()
        for key, value in self._store.scan(prefix):
            owner, kind, order_id = split_key(key)
            if kind == ORDER_KIND and owner:
                yield Order.decode(owner, order_id, value)

    def execution(self, account: str, order_id: str, fill_id: str) -> Execution:
        """Return a fill and its bust as of now, both None where they are not known."""
        return self._execution(self._order(account, order_id), fill_id)

    def executions(self, order: Order) -> Iterator[tuple[str, Execution]]:
        """Yield all fills and busts of an order by their fill id."""
        yield from order.fills.items()
        if order.more_fills:
            for key, value in self._scan(fill_key(order.account, order.order_id, "")):
                yield key.rpartition(b"\0")[2].decode(), _decode_execution(value)

    def amendments(self, order: Order) -> Iterator[tuple[int, Amended]]:
        """Yield all amendments of an order by their revision."""
        yield from order.amendments.items()
        if order.more_amendments:
            for key, value in self._scan(amendments_key(order.account, order.order_id)):
                yield int(key.rpartition(b"\0")[2]), _decode_amended(value)

    def transfers(self, account: str) -> Iterator[tuple[str, Transfer]]:
        """Yield the transfers of an account by their id, as of the last settled freeze."""
        for key, value in self._store.scan(transfer_key(account, "").encode()):
            yield split_key(key)[2], _decode_transfer(value)

    # -- applying

    def apply(
        self,
        topic: str,
        records: Iterable[Record],
        next_offset: int | None = None,
        observe: Observer | None = None,
    ) -> None:
        """Apply records of one topic in offset order.

        Args:
            topic: one of the input topics, without prefix.
            records: of this partition, each at or after the watermark; offsets may have holes
                (transaction markers).
            next_offset: the position after them, if it is beyond the last one's offset + 1.
            observe: told of each record's verdict.
        """
        decode = DECODERS[topic]
        handlers = self._handlers
        tally = self.counts[topic]
        position = self.watermark[topic]
        chains = self._chains
        digest = chains[topic] if chains is not None else None
        link = digests.chain
        record: Record | None = None
        for record in records:
            offset, key, value = record.offset, record.key, record.value
            if offset < position:
                raise AssertionError(
                    f"{topic}:{self.number}: offset {offset} was applied before (next: {position})"
                )
            position = offset + 1
            if digest is not None:
                digest = link(digest, offset, key, value)
            event: AnyEvent | None = None
            try:
                event = decode(value)
                self._check_key(key, event.account)
            except InvalidRecord as invalid:
                event = None
                verdict: Verdict = INVALID
                self._rejected.append(Rejected(topic, record, INVALID, str(invalid)))
            else:
                verdict = handlers[type(event)](event, offset)
                if verdict is CONFLICT:
                    self._rejected.append(Rejected(topic, record, CONFLICT, self._conflict))
            tally[verdict] += 1
            if observe is not None:
                observe(topic, record, event, verdict)
        if next_offset is not None:
            position = max(position, next_offset)
        if position != self.watermark[topic]:
            self.is_dirty = True
        self.watermark[topic] = position
        if chains is not None and digest is not None:
            chains[topic] = digest
        if record is not None:
            self.tips[topic] = tip_of(record.offset, record.key, record.value)

    def _check_key(self, key: bytes | None, account: str) -> None:
        if key is None:
            raise InvalidRecord("key", "the record has no key; it must be the account")
        if key != account.encode():
            raise InvalidRecord("key", f"the key is not the account '{account}'")
        # An account in memory was checked before: its key cannot belong elsewhere.
        if account not in self._accounts:
            right = self._partition_of(key, self.origin.partitions)
            if right != self.number:
                raise InvalidRecord("partition", f"the key belongs to partition {right}")

    def _judge(self, stored: Fact, new: Fact, event: Event) -> Verdict:
        """Return the verdict on a record whose identity is already known."""
        if same_content(stored, new):
            return DUPLICATE
        self._conflict = (
            f"another {event_type(type(event))} with this identity stands "
            f"at offset {stored.offset} and says otherwise"
        )
        return CONFLICT

    def _placed(self, event: OrderPlaced, offset: int) -> Verdict:
        order = self._order(event.account, event.order_id)
        fact = placed_fact(event, offset)
        if order.placed is not None:
            return self._judge(order.placed, fact, event)
        order.placed = fact
        # Fills that came before the order now count.
        if order.fills:
            for _, execution in self.executions(order):
                fill = execution.fill
                if fill is not None and execution.bust is None and order.counts(fill):
                    order.count(fill)
        self._changed(order)
        return APPLIED

    def _amended(self, event: OrderAmended, offset: int) -> Verdict:
        order = self._order(event.account, event.order_id)
        fact = amended_fact(event, offset)
        key = amendment_key(event.account, event.order_id, event.revision)
        known: Fact | None = order.amendments.get(event.revision)
        if known is None and order.more_amendments:
            known = self._loose_fact(key, _decode_amended)
        if known is not None:
            return self._judge(known, fact, event)
        if len(order.amendments) < INLINE:
            order.amendments[event.revision] = fact
        else:
            order.more_amendments += 1
            self._loose[key] = _Loose(fact)
        order.amend(event.revision, fact)
        self._changed(order)
        return APPLIED

    def _closed(self, event: OrderCancelled | OrderRejected, offset: int) -> Verdict:
        order = self._order(event.account, event.order_id)
        fact = closed_fact(event, offset)
        known: Closed | None
        cancel = type(event) is OrderCancelled
        known = order.cancelled if cancel else order.rejected
        if known is not None:
            return self._judge(known, fact, event)
        if cancel:
            order.cancelled = fact
        else:
            order.rejected = fact
        self._changed(order)
        return APPLIED

    def _filled(self, event: OrderFilled, offset: int) -> Verdict:
        order = self._order(event.account, event.order_id)
        execution = self._execution(order, event.fill_id)
        fact = fill_fact(event, offset)
        if execution.fill is not None:
            return self._judge(execution.fill, fact, event)
        execution.fill = fact
        entry = entry_of_fill(event.account, fact)
        self._post(entry)
        if execution.bust is not None:
            self._post(reversed_entry(entry))
        elif order.counts(fact):
            order.count(fact)
        self._keep(order, event.fill_id, execution)
        return APPLIED

    def _busted(self, event: FillBusted, offset: int) -> Verdict:
        order = self._order(event.account, event.order_id)
        execution = self._execution(order, event.fill_id)
        fact = bust_fact(event, offset)
        if execution.bust is not None:
            return self._judge(execution.bust, fact, event)
        execution.bust = fact
        fill = execution.fill
        if fill is not None:
            self._post(reversed_entry(entry_of_fill(event.account, fill)))
            if order.counts(fill):
                order.discount(fill)
        self._keep(order, event.fill_id, execution)
        return APPLIED

    def _transferred(self, event: TransferEvent, offset: int) -> Verdict:
        key = transfer_key(event.account, event.transfer_id)
        fact = transfer_fact(event, offset)
        known = self._loose_fact(key, _decode_transfer)
        if known is not None:
            return self._judge(known, fact, event)
        self._loose[key] = _Loose(fact)
        self._post(transfer_entry(event))
        return APPLIED

    # -- entries in memory

    def _post(self, entry: JournalEntry) -> None:
        for debit, credit, asset, amount in entry:
            row = self._account(debit).row(asset)
            row.debits = add(row.debits, amount)
            row = self._account(credit).row(asset)
            row.credits = add(row.credits, amount)

    def _account(self, name: str) -> Account:
        """Return an account that is about to change."""
        account = self._accounts.get(name)
        if account is None:
            key = balances_key(name)
            value = self._load(key)
            if value is None:
                account = Account(name)
            else:
                account = Account.decode(name, value)
                account.element = digests.element(key.encode(), value)
            self._accounts[name] = account
        self._dirty_accounts[name] = account
        return account

    def _order(self, account: str, order_id: str) -> Order:
        key = order_key(account, order_id)
        order = self._orders.get(key)
        if order is None:
            value = self._load(key)
            if value is None:
                order = Order.new(account, order_id)
            else:
                order = Order.decode(account, order_id, value)
                order.element = digests.element(key.encode(), value)
            self._orders[key] = order
        return order

    def _changed(self, order: Order) -> None:
        """Note that an order changed, and let its account's hold follow."""
        self._dirty_orders[order.key] = order
        if order.placed is None:
            return
        hold = order.hold()
        if hold != order.held:
            asset = order.hold_asset()
            assert asset is not None
            row = self._account(order.account).row(asset)
            row.hold = add(row.hold, subtract(hold, order.held))
            order.held = hold

    def _execution(self, order: Order, fill_id: str) -> Execution:
        """Return the fill and bust known under an id, both None where there are none."""
        execution = order.fills.get(fill_id)
        if execution is None and order.more_fills:
            key = fill_key(order.account, order.order_id, fill_id)
            loose = self._loose.get(key)
            if loose is not None:
                assert isinstance(loose.value, Execution)
                return loose.value
            value = self._load(key)
            if value is not None:
                return _decode_execution(value)
        return execution or Execution()

    def _keep(self, order: Order, fill_id: str, execution: Execution) -> None:
        if fill_id not in order.fills:
            key = fill_key(order.account, order.order_id, fill_id)
            if execution.fill is None or execution.bust is None:  # it is new
                if len(order.fills) < INLINE:
                    order.fills[fill_id] = execution
                else:
                    order.more_fills += 1
                    self._loose[key] = _Loose(execution)
            elif key not in self._loose:
                stored = self._load(key)
                assert stored is not None
                self._loose[key] = _Loose(execution, digests.element(key.encode(), stored))
        self._changed(order)

    def _loose_fact(self, key: str, decode: Callable[[bytes], Fact]) -> Fact | None:
        """Return the fact that is an entry of its own, or None."""
        loose = self._loose.get(key)
        if loose is not None:
            assert isinstance(loose.value, Fact)
            return loose.value
        value = self._load(key)
        return None if value is None else decode(value)

    def _load(self, key: str) -> bytes | None:
        raw = key.encode()
        if raw in self._pending:
            return self._pending[raw]
        return self._store.get(raw)

    def _scan(self, prefix: str) -> Iterator[tuple[bytes, bytes]]:
        """Yield the entries below a prefix, what is not yet stored included."""
        raw = prefix.encode()
        newer: dict[bytes, bytes | None] = {
            key: value for key, value in self._pending.items() if key.startswith(raw)
        }
        newer.update(
            (key.encode(), _encode(loose.value))
            for key, loose in self._loose.items()
            if key.startswith(prefix)
        )
        for key, value in self._store.scan(raw):
            if key not in newer:
                yield key, value
        for key, kept in newer.items():
            if kept is not None:
                yield key, kept

    # -- freezing and settling

    def freeze(self) -> Frozen:
        """Return what changed since the last freeze; it must be settled before the next."""
        assert not self._pending, "the last freeze is not settled"
        changes: dict[bytes, bytes | None] = {}
        element = digests.element
        added = removed = 0
        accounts: dict[str, Texts] = {}
        for name, account in self._dirty_accounts.items():
            texts = accounts[name] = account.texts()
            key = balances_key(name).encode()
            value = changes[key] = encode_texts(texts)
            removed += account.element
            account.element = 0 if value is None else element(key, value)
            added += account.element
        for name, order in self._dirty_orders.items():
            key = name.encode()
            value = changes[key] = order.encode()
            removed += order.element
            order.element = element(key, value)
            added += order.element
        for name, loose in self._loose.items():
            key = name.encode()
            value = changes[key] = _encode(loose.value)
            removed += loose.element
            added += element(key, value)
        self._total = digests.combine(self._total, added, removed)
        self._dirty_accounts.clear()
        self._dirty_orders.clear()
        self._loose.clear()
        rejected, self._rejected = self._rejected, []
        self.is_dirty = False
        changes[META_KEY] = _encode(self.header())
        self._pending = changes
        return Frozen(
            partition=self.number,
            watermark=dict(self.watermark),
            counts={topic: dict(tally) for topic, tally in self.counts.items()},
            state_digest=self.state_digest(),
            log_digests=self.log_digests,
            tips=dict(self.tips),
            changes=changes,
            accounts=accounts,
            rejected=rejected,
        )

    def settle(self) -> None:
        """Write the last freeze to the store, in one batch, and forget what need not be cached."""
        if self._pending:
            self._store.write(self._pending)
            self._pending = {}
        self._evict()

    def _evict(self) -> None:
        if len(self._orders) > len(self._dirty_orders):
            kept = {
                key: order
                for key, order in self._orders.items()
                if key in self._dirty_orders or order.held
            }
            self._orders = kept if len(kept) <= CACHED_ENTRIES else dict(self._dirty_orders)
        if len(self._accounts) > CACHED_ENTRIES:
            self._accounts = dict(self._dirty_accounts)

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
            total=f"{self._total:x}",
        )


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


def entry_of_fill(account: str, fill: Fill) -> JournalEntry:
    """Return the journal entry of a stored fill."""
    quantity = Decimal(fill.quantity)
    notional = notional_of(fill.price, fill.quantity, fill.quote_quantity)
    fee = Decimal(fill.fee)
    return fill_entry(account, fill.instrument, fill.side, quantity, notional, fee, fill.fee_asset)
