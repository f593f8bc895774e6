"""Records that were lost, replaced or deleted: workers and replays stop and say where."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import NewTopic

from ledger.continuity import Claim, Leadership, LogWatch, Position, position_of, require_continuous
from ledger.errors import MissingRecords, ReplacedRecords
from ledger.events import INPUT_TOPICS
from ledger.kafka import Cluster
from ledger.projections.partition import Partition
from ledger.rebuild import Rebuilder
from ledger.settings import Settings
from tests.broker import OwnBroker, own_broker
from tests.support import (
    cluster_of,
    command,
    eventually,
    published_at_end,
    raw_producer,
    worker,
)
from tests.test_worker import assert_published_equals_reference, reference_of

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnBroker]:
    with own_broker(tmp_path_factory.mktemp("broker")) as broker:
        yield broker


@pytest.fixture
def settings(broker: OwnBroker, tmp_path: Path) -> Settings:
    return broker.settings(tmp_path / "state", topic_prefix=f"{tmp_path.name[-8:]}-".lower())


def deposits(first: int, last: int, amount: str = "1") -> list[bytes]:
    """Return events with a number each; the accounts are spread over the partitions."""
    return [
        json.dumps(
            {
                "type": "deposited",
                "version": 1,
                "event_id": f"e{number}",
                "account": f"account-{number % 7}",
                "occurred_at": "2026-01-01T00:00:00Z",
                "transfer_id": f"x{number}-{amount}",
                "asset": "USD",
                "amount": amount,
            }
        ).encode()
        for number in range(first, last)
    ]


def publish_each(settings: Settings, lines: list[bytes]) -> None:
    """Publish transfers in small batches, so that a broker can lose the last of them."""
    cluster_of(settings).ensure_topics()
    producer = raw_producer(settings)
    for number, line in enumerate(lines):
        account = json.loads(line)["account"]
        producer.produce(settings.topic("transfers"), line, account)
        if number % 10 == 9:
            assert producer.flush(60) == 0
    assert producer.flush(60) == 0


def fold(settings: Settings, log: Path) -> None:
    """Run a worker until everything is published; its state and a snapshot stay."""
    with worker(settings, log) as process:
        eventually(lambda: published_at_end(settings))
        process.terminate()
        assert process.wait(20) == 0


def refusal(settings: Settings, log: Path) -> str:
    """Run a worker that must stop, and return its sentence."""
    with worker(settings, log) as process:
        assert process.wait(60) == 2
    return next(line for line in log.read_text().splitlines() if line.startswith("error: "))


def forget(broker: OwnBroker, settings: Settings, count: int) -> dict[int, int]:
    """Kill the broker and let it lose about `count` transfers of each partition when it starts.

    Returns how many each had before.
    """
    cluster = cluster_of(settings)
    slots = [("transfers", number) for number in range(2)]
    ends = {slot[1]: end for slot, end in cluster.ends(slots).items()}
    broker.kill()
    for number, end in ends.items():
        broker.lose(settings.topic("transfers"), number, end - count)
    broker.start()
    after = eventually(lambda: cluster_of(settings).ends(slots))
    assert all(after["transfers", number] < end for number, end in ends.items())
    return ends


def rebuilt(cluster: Cluster) -> dict[int, Partition]:
    rebuilder = Rebuilder(cluster, cluster.origin(), warn=pytest.fail)
    ends = rebuilder.ends()
    return rebuilder.rebuild(ends, ends, "genesis").partitions


def test_acknowledged_records_that_a_broker_lost_stop_worker_and_replay_until_recovered(
    broker: OwnBroker, settings: Settings, tmp_path: Path
) -> None:
    publish_each(settings, deposits(0, 100))
    fold(settings, tmp_path / "1.log")
    publish_each(settings, deposits(100, 200))
    fold(settings, tmp_path / "2.log")
    ends = forget(broker, settings, 20)

    # Its topics end too early.
    sentence = refusal(settings, tmp_path / "3.log")
    assert "error: transfers:" in sentence
    assert "the topic ends at" in sentence
    assert "ledger recover" in sentence
    ran = command(settings, "replay", "--from-offset", "earliest")
    assert ran.returncode == 2
    assert "the topic ends at" in ran.stderr

    # Then the offsets are used again, beyond where the state was.
    publish_each(settings, deposits(200, 300, "2"))
    cluster = cluster_of(settings)
    for number, end in ends.items():
        assert cluster.ends([("transfers", number)])["transfers", number] > end
    sentence = refusal(settings, tmp_path / "4.log")
    assert "holds something else than was applied to the state in" in sentence
    for arguments in (("replay", "--from-offset", "earliest"), ("ledger", "check")):
        ran = command(settings, *arguments)
        assert ran.returncode == 2, ran.stderr
        assert "holds something else than was applied to" in ran.stderr
        places = [f"transfers:{number}: offset {end - 1} " for number, end in ends.items()]
        assert any(place in ran.stderr for place in places)
    # A place without state of its own does not go on silently either: snapshots and tables tell.
    elsewhere = settings.model_copy(
        update={"state_dir": tmp_path / "elsewhere", "snapshots": tmp_path / "none"}
    )
    assert "the published tables" in refusal(elsewhere, tmp_path / "5.log")

    # A person accepts the topics as they are.
    ran = command(settings, "ledger", "recover", "--json")
    assert ran.returncode == 2
    assert "--yes" in ran.stderr
    ran = command(settings, "ledger", "recover", "--dry-run", "--json")
    found = json.loads(ran.stdout)
    assert {one["kind"] for one in found["contradictions"]} == {"state", "snapshot", "tables"}
    assert not found["discarded"]
    assert command(settings, "ledger", "recover", "--yes").returncode == 0
    with worker(settings, tmp_path / "6.log"):
        published = eventually(lambda: published_at_end(settings))
    assert "starts from snapshot" in (tmp_path / "6.log").read_text()
    assert_published_equals_reference(settings, published, reference_of(settings))
    assert command(settings, "ledger", "check").returncode == 0
    assert command(settings, "replay", "--from-offset", "earliest", "--verify").returncode == 0
    again = command(settings, "ledger", "recover", "--json").stdout
    assert json.loads(again) == {"contradictions": [], "discarded": False}


def test_a_running_worker_stops_before_it_publishes_what_the_topics_do_not_bear_out(
    broker: OwnBroker, settings: Settings, tmp_path: Path
) -> None:
    """The worker sleeps while the broker loses records and uses their offsets again."""
    publish_each(settings, deposits(0, 200))
    with worker(settings, tmp_path / "1.log") as process:
        eventually(lambda: published_at_end(settings))
        process.send_signal(signal.SIGSTOP)
        forget(broker, settings, 20)
        publish_each(settings, deposits(200, 300, "2"))
        process.send_signal(signal.SIGCONT)
        assert process.wait(60) == 2
    text = (tmp_path / "1.log").read_text()
    assert "something else than was applied to" in text
    assert published_at_end(settings) is None


def test_a_watched_log_tells_what_was_replaced_since_it_was_confirmed(
    broker: OwnBroker, settings: Settings
) -> None:
    publish_each(settings, deposits(0, 100))
    cluster = cluster_of(settings)
    leadership = [Leadership()]
    watches = {number: LogWatch(cluster, number, lambda: leadership[0]) for number in range(2)}
    half = {number: position_of(partition) for number, partition in rebuilt(cluster).items()}
    for number, watch in watches.items():
        watch.confirm(half[number], "this test")
    publish_each(settings, deposits(100, 200))
    whole = {number: position_of(partition) for number, partition in rebuilt(cluster).items()}
    forget(broker, settings, 20)
    leadership[0] = Leadership(1)
    with pytest.raises(MissingRecords):
        watches[0].confirm(whole[0], "this test")
    publish_each(settings, deposits(200, 300, "2"))
    anew = {number: position_of(partition) for number, partition in rebuilt(cluster).items()}
    for number, watch in watches.items():
        # What went on from the lost records to the new ones has a tip that is there, and yet
        # it is not what the topic holds.
        mixed = Position(anew[number].watermark, whole[number].log_digests, anew[number].tips)
        with pytest.raises(ReplacedRecords, match=f"transfers:{number}: offsets [0-9]+ to "):
            watch.confirm(mixed, "this test")
        watch.confirm(anew[number], "this test")


def test_what_came_from_an_earlier_leader_is_doubted_until_all_of_it_was_confirmed(
    broker: OwnBroker, settings: Settings
) -> None:
    """Found by review: chunks waited for the fold while the position before them was confirmed."""
    publish_each(settings, deposits(0, 100))
    cluster = cluster_of(settings)
    leadership = Leadership()
    watch = LogWatch(cluster, 0, lambda: leadership)
    half = position_of(rebuilt(cluster)[0])
    watch.confirm(half, "this test")
    publish_each(settings, deposits(100, 200))
    whole = position_of(rebuilt(cluster)[0])
    forget(broker, settings, 20)
    publish_each(settings, deposits(200, 300, "2"))
    anew = position_of(rebuilt(cluster)[0])
    leadership = Leadership(1, {"transfers": whole.watermark["transfers"]})
    watch.confirm(half, "this test")
    mixed = Position(anew.watermark, whole.log_digests, anew.tips)
    with pytest.raises(ReplacedRecords, match="transfers:0: offsets [0-9]+ to "):
        watch.confirm(mixed, "this test")


def test_a_restarted_broker_that_lost_nothing_is_waited_for(
    broker: OwnBroker, settings: Settings, tmp_path: Path
) -> None:
    publish_each(settings, deposits(0, 100))
    with worker(settings, tmp_path / "1.log") as process:
        eventually(lambda: published_at_end(settings))
        publish_each(settings, deposits(100, 150))
        broker.kill()
        broker.start()
        publish_each(settings, deposits(150, 200))
        published = eventually(lambda: published_at_end(settings), 90)
        assert process.poll() is None
    assert_published_equals_reference(settings, published, reference_of(settings))


def test_topics_created_anew_are_refused_until_recovered(
    settings: Settings, tmp_path: Path
) -> None:
    publish_each(settings, deposits(0, 100))
    cluster = cluster_of(settings)
    with worker(settings, tmp_path / "1.log") as process:
        eventually(lambda: published_at_end(settings))
        for future in cluster.admin.delete_topics([settings.topic("transfers")]).values():
            future.result()
        eventually(lambda: "transfers" not in cluster.topics(["transfers"]))
        made = cluster.admin.create_topics([NewTopic(settings.topic("transfers"), 2, 1)])
        for future in made.values():
            future.result()
        assert process.wait(60) == 2
    publish_each(settings, deposits(0, 50))
    assert "the topic was created anew" in refusal(settings, tmp_path / "2.log")
    ran = command(settings, "replay", "--from-offset", "earliest")
    assert ran.returncode == 2
    assert "transfers:0: the topic was created anew" in ran.stderr
    assert command(settings, "ledger", "recover", "--yes").returncode == 0
    with worker(settings, tmp_path / "3.log"):
        published = eventually(lambda: published_at_end(settings))
    assert_published_equals_reference(settings, published, reference_of(settings))


def test_records_that_retention_removed_are_missed_where_nothing_stands_for_them(
    settings: Settings, tmp_path: Path
) -> None:
    publish_each(settings, deposits(0, 100))
    fold(settings, tmp_path / "1.log")
    cluster = cluster_of(settings)
    ends = cluster.ends([("transfers", number) for number in range(2)])
    gone = [
        TopicPartition(settings.topic("transfers"), number, end)
        for (_, number), end in ends.items()
    ]
    for done in cluster.admin.delete_records(gone).values():
        done.result()
    publish_each(settings, deposits(100, 150))
    # The snapshots go on where the topic begins.
    fresh = settings.model_copy(
        update={"state_dir": tmp_path / "fresh", "snapshots": settings.snapshot_dir}
    )
    with worker(fresh, tmp_path / "2.log"):
        eventually(lambda: published_at_end(settings))
    assert "starts from snapshot" in (tmp_path / "2.log").read_text()
    # Without them nothing does.
    bare = settings.model_copy(
        update={"state_dir": tmp_path / "bare", "snapshots": tmp_path / "none"}
    )
    sentence = refusal(bare, tmp_path / "3.log")
    assert "are gone (earliest offset is" in sentence
    ran = command(bare, "ledger", "recover", "--yes")
    assert ran.returncode == 2
    assert "are gone (earliest offset is" in ran.stderr


def test_a_claim_about_no_records_needs_none(settings: Settings) -> None:
    cluster = cluster_of(settings)
    cluster.ensure_topics()
    require_continuous(cluster, [Claim("nothing", 0, dict.fromkeys(INPUT_TOPICS, 0), {})])
    with pytest.raises(MissingRecords, match="orders:0: the topic ends at 0"):
        require_continuous(cluster, [Claim("much", 0, {"orders": 5}, {})])
