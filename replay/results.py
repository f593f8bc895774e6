"""What a replay found. States are read where they are: they may be larger than memory."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cached_property
from heapq import merge
from itertools import groupby
from operator import itemgetter
from types import TracebackType
from typing import Final, Self

from ledger._fold import BalanceSums
from ledger.amounts import ZERO, subtract
from ledger.digests import ledger_digest
from ledger.events import INPUT_TOPICS
from ledger.journal import is_system
from ledger.partitioner import partition_of
from ledger.positions import Watermarks
from ledger.projections.entries import TOTALS_PREFIX, split_key
from ledger.projections.partition import Counts, Partition, Watermark
from ledger.published import Total, Totals, add_counts, totals
from ledger.store import Store

NOTHING = Total(ZERO, ZERO, ZERO)


@dataclass(frozen=True)
class PartitionReplay:
    """One partition's replay.

    Attributes:
        base: path of the snapshot or state that it began with, or `genesis` or `empty`.
        start: the watermark from which records count as replayed.
        before: the state there.
        after: the state where it stopped.
        replaced: what changed in between, as it was before; None where nothing was before.
        is_ledgers: whether this is the ledger's own state: not with base `empty`, and not where
            other records than the topics' were folded.
        records_read: per topic, those between base and start included.
    """

    base: str
    start: Watermark
    before: Partition
    after: Partition
    replaced: Store | None
    is_ledgers: bool
    records_read: dict[str, int]

    @property
    def partition(self) -> int:
        """The partition's number."""
        return self.after.number

    @property
    def watermark(self) -> Watermark:
        """Where it stopped."""
        return self.after.watermark

    @property
    def counts(self) -> Counts:
        """The verdicts on all records before the watermark."""
        return self.after.counts

    @property
    def state_digest(self) -> str:
        """The digest (hex) of the state where it stopped."""
        return self.after.state_digest()

    @property
    def log_digests(self) -> dict[str, str] | None:
        """Per topic the log digest (hex); None where it would not be the ledger's."""
        return self.after.log_digests if self.is_ledgers else None

    @property
    def records_replayed(self) -> dict[str, int]:
        """Per topic how many records were folded from `start` on."""
        return {
            topic: sum(self.after.counts[topic].values()) - sum(self.before.counts[topic].values())
            for topic in INPUT_TOPICS
        }

    def changed(self) -> Iterator[str]:
        """Yield the accounts whose totals changed, in order; some may have changed back."""
        if self.replaced is None:
            for account, _ in self.after.balances():
                yield account
            return
        for key, _ in self.replaced.scan(TOTALS_PREFIX):
            account, _, _ = split_key(key)
            if account:
                yield account


@dataclass(frozen=True)
class Change:
    """One account's totals of one asset at the start and at the end of a replay."""

    account: str
    asset: str
    before: Total
    after: Total

    @property
    def balance(self) -> Decimal:
        """By how much the balance changed."""
        return subtract(self.after.balance, self.before.balance)

    @property
    def hold(self) -> Decimal:
        """By how much the hold changed."""
        return subtract(self.after.hold, self.before.hold)


@dataclass(frozen=True)
class Shown:
    """Which accounts and assets a person asked to see; none named means all."""

    accounts: Collection[str] = ()
    assets: Collection[str] = ()

    def __contains__(self, row: tuple[str, str]) -> bool:
        account, asset = row
        return (not self.accounts or account in self.accounts) and (
            not self.assets or asset in self.assets
        )


ALL: Final = Shown()


@dataclass(frozen=True)
class Replay:
    """The replay of the whole ledger, and how long its reading and applying took; close it."""

    partitions: Mapping[int, PartitionReplay]
    seconds: float
    resources: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.resources.close()

    @property
    def start(self) -> Watermarks:
        """Where records began to count as replayed."""
        return {number: part.start for number, part in self.partitions.items()}

    @property
    def watermarks(self) -> Watermarks:
        """Where the replay stopped."""
        return {number: dict(part.watermark) for number, part in self.partitions.items()}

    @property
    def counts(self) -> Counts:
        """The counts over all partitions."""
        return add_counts(part.counts for part in self.partitions.values())

    @property
    def state_digest(self) -> str:
        """The ledger's digest (hex)."""
        return ledger_digest(self.partitions[n].state_digest for n in sorted(self.partitions))

    @cached_property
    def conservation(self) -> dict[str, Decimal]:
        """Per asset, credits less debits over all accounts: 0 where the books balance."""
        sums = BalanceSums()
        for part in self.partitions.values():
            for _, entry in part.after.balance_entries():
                sums.add(entry)
        return {asset: Decimal(rest) for asset, rest in sums.sums()}

    @property
    def is_balanced(self) -> bool:
        """Whether debits equal credits in every asset."""
        return not any(self.conservation.values())

    @property
    def records_read(self) -> int:
        """How many records were read over all partitions."""
        return sum(sum(part.records_read.values()) for part in self.partitions.values())

    @property
    def records_replayed(self) -> int:
        """How many records were replayed, also by runs that this one went on from."""
        return sum(sum(part.records_replayed.values()) for part in self.partitions.values())

    @property
    def rate(self) -> float:
        """Records read per second."""
        return self.records_read / self.seconds if self.seconds > 0 else 0.0

    def rows(self, shown: Shown = ALL) -> Iterator[tuple[str, str, Total]]:
        """Yield account, asset and totals at the end, in order; system accounts are added up."""
        for found in self._totals(shown):
            for (account, asset), total in found.items():
                if (account, asset) in shown:
                    yield account, asset, total

    def _totals(self, shown: Shown) -> Iterator[Totals]:
        """Yield the totals of each account, in order; those that are named are looked up."""
        if shown.accounts:
            for account in sorted(set(shown.accounts)):
                yield totals_of(account, (part.after for part in self.parts_of(account)))
            return
        found = merge(
            *(part.after.balances() for part in self.partitions.values()), key=itemgetter(0)
        )
        for _, group in groupby(found, key=itemgetter(0)):
            yield totals(group)

    def changes(self, shown: Shown = ALL) -> Iterator[Change]:
        """Yield what the replayed records changed, in order of account and asset."""
        found: Iterable[str] = sorted(set(shown.accounts)) or merge(
            *(part.changed() for part in self.partitions.values())
        )
        for account, _ in groupby(found):
            parts = self.parts_of(account)
            old = totals_of(account, (part.before for part in parts))
            new = totals_of(account, (part.after for part in parts))
            for key in sorted(old.keys() | new.keys()):
                change = Change(*key, old.get(key, NOTHING), new.get(key, NOTHING))
                if key in shown and change.before != change.after:
                    yield change

    def parts_of(self, account: str) -> list[PartitionReplay]:
        """Return the partitions that know an account: a system account has a part in each."""
        if is_system(account) or len(self.partitions) == 1:
            return list(self.partitions.values())
        (some, *_) = self.partitions.values()
        return [self.partitions[partition_of(account.encode(), some.after.origin.partitions)]]


def totals_of(account: str, states: Iterable[Partition]) -> Totals:
    """Return an account's totals, added up over partitions' states, in order of assets."""
    return totals(row for state in states for row in state.balances_of([account]))


def differences(actual: Replay, other: Replay, shown: Shown = ALL) -> Iterator[Change]:
    """Yield where two replays end otherwise, in order; `before` is of the actual one."""
    found = merge(
        ((row[:2], 0, row[2]) for row in actual.rows(shown)),
        ((row[:2], 1, row[2]) for row in other.rows(shown)),
        key=itemgetter(0, 1),
    )
    for (account, asset), group in groupby(found, key=itemgetter(0)):
        sides = {side: total for _, side, total in group}
        change = Change(account, asset, sides.get(0, NOTHING), sides.get(1, NOTHING))
        if change.before != change.after:
            yield change
