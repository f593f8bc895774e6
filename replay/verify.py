"""Compares the tables that workers published with what the topics say (contract, section 7)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ledger.comparison import Difference, differences, refusals
from ledger.events import INPUT_TOPICS
from ledger.positions import Watermarks
from ledger.projections.partition import Origin
from ledger.published import PublishedPartition
from replay.results import PartitionReplay


@dataclass(frozen=True)
class Verification:
    """What comparing found.

    Attributes:
        compared: the partitions that were compared.
        unpublished: the partitions of which nothing was published.
        accounts: how many accounts were compared; a system account counts once.
        lag_records: how many offsets of the topics the published tables do not cover yet.
    """

    compared: list[int] = field(default_factory=list)
    unpublished: list[int] = field(default_factory=list)
    accounts: int = 0
    lag_records: int = 0
    differences: list[Difference] = field(default_factory=list)

    @property
    def match(self) -> bool:
        """Whether nothing differs."""
        return not self.differences

    def as_json(self) -> dict[str, Any]:
        """Return the verification as `--json` prints it."""
        return {
            "match": self.match,
            "partitions": len(self.compared),
            "accounts": self.accounts,
            "unpublished": self.unpublished,
            "lag_records": self.lag_records,
            "differences": [difference.as_json() for difference in self.differences],
        }


def published_watermarks(published: Mapping[int, PublishedPartition], origin: Origin) -> Watermarks:
    """Return how far each partition's tables go; 0 where they are not comparable with `origin`."""
    marks: Watermarks = {}
    for number, tables in published.items():
        comparable = tables.mark is not None and not list(refusals(number, tables, origin))
        marks[number] = (
            dict(tables.mark.watermark)
            if comparable and tables.mark is not None
            else dict.fromkeys(INPUT_TOPICS, 0)
        )
    return marks


def verify(
    published: Mapping[int, PublishedPartition],
    replayed: Mapping[int, PartitionReplay],
    origin: Origin,
    ends: Watermarks,
) -> Verification:
    """Return how the published tables compare with a replay to `published_watermarks`.

    Args:
        published: the tables.
        replayed: the same partitions, rebuilt from the topics.
        origin: the topics that they were rebuilt from.
        ends: the topics' ends, to tell what the tables do not cover yet.
    """
    found = Verification(lag_records=_lag(published_watermarks(published, origin), ends))
    compared: set[str] = set()
    for number, tables in sorted(published.items()):
        refused = list(refusals(number, tables, origin))
        found.differences.extend(refused)
        if refused:
            continue
        if tables.mark is None:
            found.unpublished.append(number)
            continue
        found.compared.append(number)
        rebuilt = replayed[number]
        rows = dict(rebuilt.after.balances())
        compared |= tables.accounts.keys() | rows.keys()
        found.differences.extend(
            differences(number, tables, rebuilt.state_digest, rebuilt.counts, rows.items())
        )
    return Verification(
        found.compared, found.unpublished, len(compared), found.lag_records, found.differences
    )


def _lag(marks: Watermarks, ends: Watermarks) -> int:
    return sum(
        max(0, ends[number][topic] - marks[number][topic])
        for number in marks
        for topic in INPUT_TOPICS
    )
