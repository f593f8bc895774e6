"""What differs between a partition's published tables and its state rebuilt from the topics."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from ledger.continuity import claim_of, require_continuous
from ledger.events import INPUT_TOPICS, RULES_VERSION
from ledger.kafka import BALANCES, Cluster
from ledger.projections.accounts import Texts
from ledger.projections.partition import Counts, Origin, require_same_partitions
from ledger.published import PublishedPartition

Kind = Literal["rules_version", "topic_ids", "mark", "state_digest", "counts", "row"]
"""What differs: what the tables were made by or from, a mark missing beside rows, the state's
digest or counts, or one row."""

_TOTALS: Final = ("debits", "credits", "hold")


@dataclass(frozen=True)
class Difference:
    """One thing of which tables and topics say otherwise; None where one side has nothing."""

    partition: int
    kind: Kind
    published: Any
    rebuilt: Any
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
            "rebuilt": self.rebuilt,
        }


def refusals(number: int, found: PublishedPartition, origin: Origin) -> Iterator[Difference]:
    """Yield why tables cannot be compared at all: made by other rules or from other topics.

    Raises:
        TopicError: the topics had another number of partitions when the tables were made.
    """
    mark = found.mark
    if mark is None:
        if found.accounts:
            rows = f"{len(found.accounts)} accounts in {BALANCES}:{number} without a mark"
            yield Difference(number, "mark", rows, None)
        return
    if mark.rules_version != RULES_VERSION:
        yield Difference(number, "rules_version", mark.rules_version, RULES_VERSION)
    if mark.topic_ids != origin.topic_ids:
        yield Difference(number, "topic_ids", mark.topic_ids, origin.topic_ids)
    else:
        require_same_partitions(mark.partitions, origin.partitions)
    if set(mark.watermark) != set(INPUT_TOPICS):
        yield Difference(number, "mark", mark.watermark, None)


def require_comparable_continuous(
    cluster: Cluster, published: Mapping[int, PublishedPartition], origin: Origin
) -> None:
    """Check that the topics hold the records that tables were made of, where they can be compared.

    Raises:
        LostRecords: they do not; then what the tables say cannot be told from the topics.
    """
    require_continuous(
        cluster,
        [
            claim_of(found.mark, number, origin)
            for number, found in published.items()
            if found.mark is not None and not list(refusals(number, found, origin))
        ],
    )


def differences(
    number: int,
    found: PublishedPartition,
    state_digest: str,
    counts: Counts,
    rows: Iterable[tuple[str, Texts]],
) -> Iterator[Difference]:
    """Yield what differs between tables and the state rebuilt at their mark, row by row.

    Args:
        number: the partition.
        found: its tables; their mark was not refused.
        state_digest: of the rebuilt state.
        counts: of the rebuilt state.
        rows: the rebuilt accounts.
    """
    mark = found.mark
    assert mark is not None
    if mark.state_digest != state_digest:
        yield Difference(number, "state_digest", mark.state_digest, state_digest)
    if mark.counts != counts:
        rebuilt = {topic: dict(verdicts) for topic, verdicts in counts.items()}
        yield Difference(number, "counts", mark.counts, rebuilt)
    unseen = dict(found.accounts)
    for account, texts in rows:
        yield from _rows_differ(number, account, unseen.pop(account, {}), texts)
    for account, texts in unseen.items():
        yield from _rows_differ(number, account, texts, {})


def _rows_differ(
    number: int, account: str, published: Texts, rebuilt: Texts
) -> Iterator[Difference]:
    if published == rebuilt:
        return
    for asset in sorted(published.keys() | rebuilt.keys()):
        if published.get(asset) != rebuilt.get(asset):
            yield Difference(
                number, "row", _row(published, asset), _row(rebuilt, asset), account, asset
            )


def _row(texts: Texts, asset: str) -> dict[str, str] | None:
    return dict(zip(_TOTALS, texts[asset], strict=True)) if asset in texts else None
