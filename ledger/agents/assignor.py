"""Which worker gets which partition.

The three topics are co-partitioned: a partition number is assigned whole, all topics together. It
goes to the worker whose local state of it is freshest, as far as that leaves no worker with two
partitions more than another.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from aiokafka.coordinator.assignors.abstract import AbstractPartitionAssignor
from aiokafka.coordinator.protocol import (
    ConsumerProtocolMemberAssignment,
    ConsumerProtocolMemberMetadata,
)

from ledger.errors import TopicError

Progress = dict[int, int]
"""Partition to how many records (summed over topics) a worker's local state has applied."""

_VERSION: Final = 0


def distribute(partitions: int, progress: Mapping[str, Progress]) -> dict[str, list[int]]:
    """Return which partitions each member gets.

    Args:
        partitions: how many there are.
        progress: for each member what it has of each partition; nothing counts as 0.
    """
    members = sorted(progress)
    most = -(-partitions // len(members))
    load: dict[str, list[int]] = {member: [] for member in members}
    left = set(range(partitions))
    freshest_first = sorted(
        (-progress[member].get(partition, 0), partition, member)
        for member in members
        for partition in range(partitions)
    )
    for behind, partition, member in freshest_first:
        if partition in left and behind < 0 and len(load[member]) < most:
            load[member].append(partition)
            left.discard(partition)
    for partition in sorted(left):
        load[min(members, key=lambda member: (len(load[member]), member))].append(partition)
    while True:
        fullest = max(members, key=lambda member: len(load[member]))
        emptiest = min(members, key=lambda member: len(load[member]))
        if len(load[fullest]) - len(load[emptiest]) < 2:
            return {member: sorted(found) for member, found in load.items()}
        load[emptiest].append(load[fullest].pop())


class LedgerAssignor(AbstractPartitionAssignor):
    """aiokafka's view of `distribute`."""

    name = "ledger"

    def __init__(self, progress: Callable[[], Progress]) -> None:
        self._progress = progress

    def metadata(self, topics: Iterable[str]) -> ConsumerProtocolMemberMetadata:
        """Return what this member tells the group's leader."""
        told = json.dumps({"progress": self._progress()}).encode()
        return ConsumerProtocolMemberMetadata(_VERSION, sorted(topics), told)

    def assign(self, cluster: Any, members: Mapping[str, Any]) -> dict[str, Any]:
        """Return the assignment of all members (called on the group's leader)."""
        topics = sorted({topic for member in members.values() for topic in member.subscription})
        counts = {topic: len(cluster.partitions_for_topic(topic) or ()) for topic in topics}
        if len(set(counts.values())) != 1:
            raise TopicError(f"The input topics differ in their number of partitions: {counts}.")
        if not counts[topics[0]]:
            # An empty share for everybody would look like health.
            raise TopicError(f"The broker knows no partitions of the topics {', '.join(topics)}.")
        progress = {member: _told(metadata.user_data) for member, metadata in members.items()}
        shares = distribute(counts[topics[0]], progress)
        return {
            member: ConsumerProtocolMemberAssignment(_VERSION, [(t, share) for t in topics], b"")
            for member, share in shares.items()
        }

    def on_assignment(self, assignment: Any) -> None:
        """Nothing to remember."""


def _told(user_data: bytes | None) -> Progress:
    told = json.loads(user_data or b"{}").get("progress", {})
    return {int(partition): int(applied) for partition, applied in told.items()}
