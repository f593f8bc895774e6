"""Compares the tables that workers published with what the topics say (contract, section 7)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ledger.events import INPUT_TOPICS, RULES_VERSION
from ledger.positions import Watermarks
from ledger.projections.accounts import Texts
from ledger.projections.partition import Origin
from ledger.published import Mark, PublishedPartition
from replay.results import PartitionReplay

Kind = Literal["rules_version", "topic_ids", "mark", "state_digest", "counts", "row"]
"""What differs: what the tables were made by or from, the partition's mark, or one row.

`mark` is a mark that is missing beside rows, or names other topics than the input topics.
"""

_TOTALS = ("debits", "credits", "hold")


@dataclass(frozen=True)
class Difference:
    """One thing of which tables and topics say otherwise; None where one side has nothing."""

    partition: int
    kind: Kind
    published: Any
    replayed: Any
    account: str | None = None
    asset: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the difference as `--json` prints it."""
        where = {} if self.account is None else {"account": self.account, "asset": self.asset}
        return {
            "partition": self.partition,
            "kind": self.kind,
            **where,
            "published": self.published,
            "replayed": self.replayed,
        }


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
        comparable = tables.mark is not None and not list(_refused(number, tables.mark, origin))
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
        if tables.mark is None:
            if tables.accounts:
                rows = f"{len(tables.accounts)} accounts without a mark"
                found.differences.append(Difference(number, "mark", rows, None))
            else:
                found.unpublished.append(number)
            continue
        refused = list(_refused(number, tables.mark, origin))
        if refused:
            found.differences.extend(refused)
            continue
        found.compared.append(number)
        after = replayed[number].after
        compared |= tables.accounts.keys() | after.keys()
        found.differences.extend(_marks_differ(tables.mark, replayed[number]))
        found.differences.extend(_rows_differ(number, tables.accounts, after))
    return Verification(
        found.compared, found.unpublished, len(compared), found.lag_records, found.differences
    )


def _refused(number: int, mark: Mark, origin: Origin) -> Iterator[Difference]:
    """Yield why tables cannot be compared: made by other rules or from other topics."""
    if mark.rules_version != RULES_VERSION:
        yield Difference(number, "rules_version", mark.rules_version, RULES_VERSION)
    if mark.topic_ids != origin.topic_ids:
        yield Difference(number, "topic_ids", mark.topic_ids, origin.topic_ids)
    if set(mark.watermark) != set(INPUT_TOPICS):
        yield Difference(number, "mark", mark.watermark, None)


def _marks_differ(mark: Mark, replayed: PartitionReplay) -> Iterator[Difference]:
    number = replayed.partition
    if mark.state_digest != replayed.state_digest:
        yield Difference(number, "state_digest", mark.state_digest, replayed.state_digest)
    if mark.counts != replayed.counts:
        yield Difference(number, "counts", mark.counts, replayed.counts)


def _rows_differ(
    number: int, published: Mapping[str, Texts], replayed: Mapping[str, Texts]
) -> Iterator[Difference]:
    for account in sorted(published.keys() | replayed.keys()):
        left, right = published.get(account, {}), replayed.get(account, {})
        for asset in sorted(left.keys() | right.keys()):
            if left.get(asset) != right.get(asset):
                yield Difference(
                    number, "row", _row(left, asset), _row(right, asset), account, asset
                )


def _row(texts: Texts, asset: str) -> dict[str, str] | None:
    return dict(zip(_TOTALS, texts[asset], strict=True)) if asset in texts else None


def _lag(marks: Watermarks, ends: Watermarks) -> int:
    return sum(
        max(0, ends[number][topic] - marks[number][topic])
        for number in marks
        for topic in INPUT_TOPICS
    )
