"""What a proof of snapshots found (`replay.proof`), as people and programs are told of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from ledger.projections.partition import Watermark

RECORD: Final = "record"
"""What a disagreement is about of which only a record's digest is known."""

Kind = Literal[
    "damaged_snapshot",
    "foreign_snapshot",
    "state_differs",
    "log_differs",
    "log_truncated",
    "log_unreadable",
    "log_gone",
    "anchor",
]
"""What was found: a file that cannot be read or does not add up; one of other topics or rules; a
wrong snapshot of unchanged topics; a changed or removed record; an end before a snapshot's
watermark; a damaged record batch; a beginning that retention removed, and what was trusted then."""

NOTES: Final = frozenset({"foreign_snapshot", "anchor"})
"""The kinds that a person should know, but that are no failure."""


@dataclass(frozen=True)
class Disagreement:
    """One thing of which a snapshot and the topics say otherwise; None where one has nothing.

    Attributes:
        kind: of a record, the type of the event that the snapshot has of it (else of the one that
            it is now), or `record` where only its digest is known; of an entry `balances`,
            `order`, `fill`, `amendment`, `transfer`; of the header `counts`, `log_digest`, `tip`.
        account: whose it is, or empty.
        ids: what else identifies it, by field name.
        snapshot: what the snapshot says.
        topics: what the topics say: the text of the record, or the rebuilt entry.
        offset: of a record.
        record: what became of it.
    """

    kind: str
    account: str
    ids: dict[str, str]
    snapshot: Any
    topics: Any
    offset: int | None = None
    record: Literal["changed", "removed"] | None = None

    def __str__(self) -> str:
        """Return it as a part of a sentence."""
        owner = [f"account {self.account}"] if self.account else []
        what = ", ".join(
            [self.kind, *owner, *(f"{name} {text}" for name, text in self.ids.items())]
        )
        if self.offset is None:
            return what
        became = "is gone" if self.record == "removed" else "was changed"
        return f"offset {self.offset} {became}" + (f" ({what})" if self.kind != RECORD else "")

    def as_json(self) -> dict[str, Any]:
        """Return it as `--json` prints it."""
        where = {} if self.offset is None else {"offset": self.offset, "record": self.record}
        owner = {"account": self.account} if self.account else {}
        return {
            "kind": self.kind,
            **owner,
            **self.ids,
            **where,
            "snapshot": self.snapshot,
            "topics": self.topics,
        }


@dataclass(frozen=True)
class Finding:
    """Something that was found of one partition, and a sentence about it.

    Attributes:
        snapshot: the name of the snapshot that shows it, if one does.
        topic: whose records it is about, if it is about records.
        first_offset: of the records among which it lies.
        last_offset: of them.
        disagreements: the first things that differ.
        more: how many more there are.
    """

    kind: Kind
    partition: int
    sentence: str
    snapshot: str | None = None
    topic: str | None = None
    first_offset: int | None = None
    last_offset: int | None = None
    disagreements: Sequence[Disagreement] = ()
    more: int = 0

    @property
    def is_note(self) -> bool:
        """Whether it is no failure."""
        return self.kind in NOTES

    def as_json(self) -> dict[str, Any]:
        """Return the finding as `--json` prints it."""
        return {
            "kind": self.kind,
            "partition": self.partition,
            "snapshot": self.snapshot,
            "topic": self.topic,
            "first_offset": self.first_offset,
            "last_offset": self.last_offset,
            "sentence": self.sentence,
            "disagreements": [one.as_json() for one in self.disagreements],
            "more": self.more,
        }


@dataclass(frozen=True)
class Proven:
    """A snapshot that holds exactly what the topics say."""

    name: str
    watermark: Watermark
    state_digest: str

    def as_json(self) -> dict[str, Any]:
        """Return it as `--json` prints it."""
        return {
            "name": self.name,
            "watermark": self.watermark,
            "state_digest": self.state_digest,
        }


@dataclass(frozen=True)
class PartitionProof:
    """What was proven of one partition's snapshots.

    Attributes:
        base: what it was proven from: `genesis`, or the name of a snapshot that was trusted; None
            where there was neither.
        proven: oldest first.
        unproven: the names of those that could be read and belong to these topics, but were not.
    """

    partition: int
    base: str | None
    proven: Sequence[Proven]
    unproven: Sequence[str]
    findings: Sequence[Finding]


@dataclass(frozen=True)
class Proof:
    """What was proven of the ledger's snapshots."""

    partitions: Mapping[int, PartitionProof]

    @property
    def findings(self) -> list[Finding]:
        """What was found, notes included, partition by partition."""
        return [finding for part in self.partitions.values() for finding in part.findings]

    @property
    def match(self) -> bool:
        """Whether nothing is damaged, differs or is missing."""
        return all(finding.is_note for finding in self.findings)

    def as_json(self) -> dict[str, Any]:
        """Return the proof as `--json` prints it."""
        parts = self.partitions.values()
        return {
            "match": self.match,
            "proven": sum(len(part.proven) for part in parts),
            "unproven": sum(len(part.unproven) for part in parts),
            "partitions": {
                str(part.partition): {
                    "base": part.base,
                    "proven": [one.as_json() for one in part.proven],
                    "unproven": list(part.unproven),
                }
                for part in parts
            },
            "findings": [finding.as_json() for finding in self.findings],
        }
