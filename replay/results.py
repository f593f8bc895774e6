"""What a replay found: plain values, so that partitions may be replayed in several processes."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property

from ledger.amounts import ZERO, subtract
from ledger.digests import ledger_digest
from ledger.positions import Watermarks
from ledger.projections.accounts import Texts
from ledger.projections.partition import Counts, Watermark
from ledger.published import Total, Totals, add_counts, conservation, totals

NOTHING = Total(ZERO, ZERO, ZERO)


@dataclass(frozen=True)
class PartitionReplay:
    """One partition's replay.

    Attributes:
        base: path of the snapshot that it began with, or `genesis` or `empty`.
        start: the watermark from which records count as replayed.
        watermark: where it stopped.
        log_digests: per topic (hex); None for base `empty`.
        before: the accounts at `start`.
        after: the accounts at `watermark`.
        records_read: per topic, those between base and start included.
        records_replayed: per topic, from `start` on.
    """

    partition: int
    base: str
    start: Watermark
    watermark: Watermark
    counts: Counts
    state_digest: str
    log_digests: dict[str, str] | None
    before: dict[str, Texts]
    after: dict[str, Texts]
    records_read: dict[str, int]
    records_replayed: dict[str, int]


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

    accounts: Container[str] = ()
    assets: Container[str] = ()

    def __contains__(self, row: tuple[str, str]) -> bool:
        account, asset = row
        return (not self.accounts or account in self.accounts) and (
            not self.assets or asset in self.assets
        )


@dataclass(frozen=True)
class Replay:
    """The replay of the whole ledger, and how long its reading and applying took."""

    partitions: Mapping[int, PartitionReplay]
    seconds: float

    @property
    def start(self) -> Watermarks:
        """Where records began to count as replayed."""
        return {number: part.start for number, part in self.partitions.items()}

    @property
    def watermarks(self) -> Watermarks:
        """Where the replay stopped."""
        return {number: part.watermark for number, part in self.partitions.items()}

    @cached_property
    def before(self) -> Totals:
        """The totals at the start."""
        return totals(row for part in self.partitions.values() for row in part.before.items())

    @cached_property
    def after(self) -> Totals:
        """The totals at the end."""
        return totals(row for part in self.partitions.values() for row in part.after.items())

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
        return conservation(self.after)

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
        """How many of them were replayed."""
        return sum(sum(part.records_replayed.values()) for part in self.partitions.values())

    @property
    def rate(self) -> float:
        """Records read per second."""
        return self.records_read / self.seconds if self.seconds > 0 else 0.0

    def changes(self) -> Iterator[Change]:
        """Yield what the replayed records changed, in order of account and asset."""
        for account, asset in sorted(self.before.keys() | self.after.keys()):
            before = self.before.get((account, asset), NOTHING)
            after = self.after.get((account, asset), NOTHING)
            if before != after:
                yield Change(account, asset, before, after)
