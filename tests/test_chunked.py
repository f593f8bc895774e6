"""The consumer under Faust: what it must know, and must not take for trouble."""

from __future__ import annotations

import asyncio

import pytest
from aiokafka.client import AIOKafkaClient
from aiokafka.cluster import ClusterMetadata
from aiokafka.coordinator.protocol import ConsumerProtocolMemberMetadata

from ledger.agents.assignor import LedgerAssignor
from ledger.agents.chunked import _know_topics
from ledger.agents.worker import create_app
from ledger.errors import TopicError
from ledger.events import INPUT_TOPICS
from ledger.settings import Settings
from tests.support import cluster_of


def test_a_leader_that_knows_no_partitions_does_not_assign_nothing_to_everybody() -> None:
    member = ConsumerProtocolMemberMetadata(0, list(INPUT_TOPICS), b"")
    with pytest.raises(TopicError, match="knows no partitions of the topics fills, orders"):
        LedgerAssignor(dict).assign(ClusterMetadata(), {"member": member})


def test_a_worker_without_partitions_does_not_leave_its_group() -> None:
    """Found by review: to aiokafka, who fetches nothing for 1,000 s hangs."""
    app = create_app(Settings(), "127.0.0.1:9")
    assert app.conf.broker_max_poll_interval > 365 * 86_400


@pytest.mark.integration
def test_a_leader_waits_until_it_knows_the_partitions(settings: Settings) -> None:
    """Found by chaos: the one update that told of the topics failed, and none was assigned."""
    topics = [settings.topic(name) for name in INPUT_TOPICS]

    async def join() -> None:
        client = AIOKafkaClient(bootstrap_servers=settings.kafka)
        await client.bootstrap()
        try:
            await client.set_topics(topics)
            known = asyncio.ensure_future(_know_topics(client, client._maybe_wait_metadata))
            done, _ = await asyncio.wait({known}, timeout=0.5)
            assert not done
            await asyncio.get_running_loop().run_in_executor(
                None, cluster_of(settings).ensure_topics
            )
            await asyncio.wait_for(known, 10)
            found = {len(client.cluster.partitions_for_topic(topic)) for topic in topics}
            assert found == {settings.partitions}
        finally:
            await client.close()

    asyncio.run(join())
