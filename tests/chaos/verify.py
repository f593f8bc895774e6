"""Proof of a whole run: each partition's, in several processes, and what concerns all of them."""

from __future__ import annotations

import multiprocessing
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import Final

from confluent_kafka import Consumer, ConsumerGroupTopicPartitions, TopicPartition

from ledger.events import INPUT_TOPICS
from ledger.kafka import DEAD_LETTERS, Cluster, Slot
from ledger.settings import Settings
from tests.chaos.feed import Acknowledged
from tests.chaos.fleet import Worker
from tests.chaos.partition import Proof, Task, prove
from tests.support import cluster_of

_MOST_NAMED: Final = 5


@dataclass
class Verdict:
    """What all proofs say together."""

    differences: list[str] = field(default_factory=list)
    records: int = 0
    snapshots: int = 0
    marks: int = 0
    stores: int = 0
    letters: int = 0


def verify(
    settings: Settings,
    workers: Iterable[Worker],
    *,
    acknowledged: Acknowledged | None = None,
    uncertain: Mapping[int, int] | None = None,
    processes: int = 1,
) -> Verdict:
    """Return what comparing everything says; the workers must have ended.

    Args:
        settings: of the ledger, with the broker.
        workers: whose local states are compared.
        acknowledged: what must be in the topics; None if that is not in question.
        uncertain: checksums of records that may be in the topics or not.
        processes: how many to compare in; 1 is this one.
    """
    cluster = cluster_of(settings)
    stores = [(w.name, number, path) for w in workers for number, path in w.stores()]
    tasks = [
        Task(
            settings,
            number,
            None
            if acknowledged is None
            else {topic: acknowledged.get((topic, number), {}) for topic in INPUT_TOPICS},
            uncertain or {},
            [(name, path) for name, where, path in stores if where == number],
        )
        for number in range(cluster.origin().partitions)
    ]
    if processes == 1:
        proofs = list(map(prove, tasks))
    else:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(processes, context) as executor:
            proofs = list(executor.map(prove, tasks))
    verdict = Verdict()
    for proof in proofs:
        verdict.differences += proof.differences
        verdict.records += proof.records
        verdict.snapshots += proof.snapshots
        verdict.marks += proof.marks
        verdict.stores += proof.stores
    _compare_letters(cluster, proofs, verdict)
    return verdict


def _compare_letters(cluster: Cluster, proofs: list[Proof], verdict: Verdict) -> None:
    """Look for exactly one dead letter of each record that the reference refuses."""
    expected = {key: letter for proof in proofs for key, letter in proof.letters.items()}
    found = read_letters(cluster)
    verdict.letters = len(found)
    times = Counter(key for key, _, _ in found)
    twice = [key for key, count in times.items() if count > 1]
    for what, keys in (
        ("are there more than once", twice),
        ("are missing", list(expected.keys() - times.keys())),
        ("are of records that were applied", list(times.keys() - expected.keys())),
        (
            "do not have their record's bytes, or another reason",
            [k for k, reason, v in found if k in expected and expected[k] != (reason, v)],
        ),
    ):
        if keys:
            named = ", ".join(sorted(keys)[:_MOST_NAMED])
            verdict.differences.append(f"{len(keys)} dead letters {what}: {named}")


def read_letters(cluster: Cluster) -> list[tuple[str, str, bytes | None]]:
    """Return key, reason and value of all committed dead letters."""
    slot: Slot = (DEAD_LETTERS, 0)
    end = cluster.ends([slot])[slot]
    consumer = Consumer(
        {
            "bootstrap.servers": cluster.bootstrap,
            "group.id": "chaos",  # never joined
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
        }
    )
    consumer.assign([TopicPartition(cluster.settings.topic(DEAD_LETTERS), 0, 0)])
    found = []
    try:
        while end > 0:
            message = consumer.poll(10)
            assert message is not None, "the dead letters cannot be read"
            if message.error():
                break
            headers: dict[str, str | bytes | None] = dict(message.headers() or [])
            reason = headers["reason"]
            assert isinstance(reason, bytes)
            found.append(((message.key() or b"").decode(), reason.decode(), message.value()))
    finally:
        consumer.close()
    return found


def uncommitted(cluster: Cluster) -> dict[Slot, tuple[int, int]]:
    """Return, where they differ, the consumer group's committed offset and the topics' end."""
    settings = cluster.settings
    slots = [(t, n) for t in INPUT_TOPICS for n in range(cluster.origin().partitions)]
    ends = cluster.ends(slots)
    asked = [TopicPartition(settings.topic(topic), number) for topic, number in slots]
    group = f"{settings.topic_prefix}ledger"
    answer = cluster.admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(group, asked)])
    committed = answer[group].result().topic_partitions or []
    offsets = {(str(each.topic), each.partition): each.offset for each in committed}
    return {
        slot: (offsets[settings.topic(slot[0]), slot[1]], end)
        for slot, end in ends.items()
        if offsets[settings.topic(slot[0]), slot[1]] != end
    }
