"""The audit behind `ledger check`: do the books balance, and do the tables say what the topics say.

One rebuild serves both questions. It stops at the watermark that each partition's tables were
published at, compares them row by row, and goes on to the end of the topics for the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from ledger import digests
from ledger.amounts import plain
from ledger.comparison import (
    Difference,
    differences,
    refusals,
    require_comparable_continuous,
)
from ledger.continuity import claim_of
from ledger.events import INPUT_TOPICS
from ledger.flags import Flag, Tally, all_cases, tally
from ledger.kafka import Cluster
from ledger.positions import Watermarks
from ledger.projections.partition import Counts, Origin, Partition
from ledger.published import (
    PublishedPartition,
    add_counts,
    conservation,
    read_published,
    totals,
)
from ledger.rebuild import Base, Rebuilder, watermarks_json

DIFFERENCES_SHOWN: Final = 100
"""How many differences are kept to be shown; all are counted."""


@dataclass
class Tables:
    """How the published tables compare with the topics.

    Attributes:
        compared: the partitions whose tables were compared, at their own watermark.
        unpublished: the partitions that have records but no tables yet.
        behind_records: how many offsets of the topics no table covers yet.
        count: how many differences there are; the first ones are in `differences`.
    """

    compared: list[int] = field(default_factory=list)
    unpublished: list[int] = field(default_factory=list)
    behind_records: int = 0
    count: int = 0
    differences: list[Difference] = field(default_factory=list)

    def add(self, differences: Iterator[Difference]) -> None:
        """Count differences, and keep the first."""
        for difference in differences:
            self.count += 1
            if len(self.differences) < DIFFERENCES_SHOWN:
                self.differences.append(difference)

    @property
    def match(self) -> bool:
        """Whether nothing differs. Tables that are behind still match."""
        return self.count == 0


@dataclass(frozen=True)
class Audit:
    """What the audit found; everything but `tables` holds at `watermarks`, the topics' ends."""

    watermarks: Watermarks
    state_digest: str
    conservation: dict[str, str]
    tables: Tables
    flags: dict[Flag, Tally]
    counts: Counts

    @property
    def balanced(self) -> bool:
        """Whether debits equal credits in every asset."""
        return all(rest == "0" for rest in self.conservation.values())

    @property
    def passed(self) -> bool:
        """Whether books and tables are right; flags do not count."""
        return self.balanced and self.tables.match

    def as_json(self) -> dict[str, Any]:
        """Return what `ledger check --json` prints of it."""
        return {
            "passed": self.passed,
            "books": {"balanced": self.balanced, "conservation": self.conservation},
            "tables": {
                "match": self.tables.match,
                "partitions": len(self.tables.compared),
                "unpublished": self.tables.unpublished,
                "behind_records": self.tables.behind_records,
                "difference_count": self.tables.count,
                "differences": [one.as_json() for one in self.tables.differences],
            },
            "flags": {flag: found.as_json(flag) for flag, found in self.flags.items()},
            "counts": self.counts,
            "watermarks": watermarks_json(self.watermarks),
            "state_digest": self.state_digest,
        }


class Auditor:
    """Prepares and runs one audit of a ledger."""

    def __init__(self, cluster: Cluster, rebuilder: Rebuilder, origin: Origin) -> None:
        self._cluster = cluster
        self._rebuilder = rebuilder
        self._origin = origin

    def run(self, base: Base = "snapshot") -> Audit:
        """Return what is right and what is not.

        Args:
            base: with `snapshot`, what is before the newest snapshot is taken from it; with
                `genesis`, every record is read.

        Raises:
            LostRecords: the tables were made of records that the topics do not hold, or records
                that are needed are gone.
        """
        published = read_published(self._cluster, range(self._origin.partitions))
        for number, found in published.items():
            if found.mark is not None:
                claim_of(found.mark, number, self._origin)
        require_comparable_continuous(self._cluster, published, self._origin)
        ends = self._rebuilder.ends()
        tables = Tables()
        start = self._start(published, ends, tables)

        def compare(partition: Partition) -> None:
            if partition.number in tables.compared:
                tables.add(
                    differences(
                        partition.number,
                        published[partition.number],
                        partition.state_digest(),
                        partition.counts,
                        partition.balances(),
                    )
                )

        rebuilt = self._rebuilder.rebuild(start, ends, base, at_start=compare).partitions
        partitions = list(rebuilt.values())
        sums = totals(row for partition in partitions for row in partition.balances())
        return Audit(
            watermarks=ends,
            state_digest=digests.ledger_digest(one.state_digest() for one in partitions),
            conservation={asset: plain(rest) for asset, rest in conservation(sums).items()},
            tables=tables,
            flags=tally(all_cases(partitions)),
            counts=add_counts(partition.counts for partition in partitions),
        )

    def _start(
        self, published: Mapping[int, PublishedPartition], ends: Watermarks, tables: Tables
    ) -> Watermarks:
        """Return where to compare: at each mark, or at the end where there is nothing to compare.

        What can be said of the tables without the topics' records is noted in `tables`.
        """
        start: Watermarks = {}
        for number, found in published.items():
            start[number] = ends[number]
            mark = found.mark
            refused = list(refusals(number, found, self._origin))
            tables.add(iter(refused))
            if mark is None or refused:
                behind = sum(ends[number].values())
                if behind and not refused:
                    tables.unpublished.append(number)
            else:
                start[number] = dict(mark.watermark)
                tables.compared.append(number)
                behind = sum(ends[number][t] - mark.watermark[t] for t in INPUT_TOPICS)
            tables.behind_records += behind
        return start
