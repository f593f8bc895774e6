"""What the bridge makes of rooms that an earlier one, or somebody else, has left behind."""

from __future__ import annotations

import asyncio
import random
import shutil
import signal
import socket
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import aio_pika
import pytest
from confluent_kafka import ConsumerGroupTopicPartitions, TopicPartition

from chat_bridge.bridge import Bridge
from chat_bridge.errors import MessageTooLarge, RoomError
from chat_bridge.identity import Identity
from chat_bridge.messages import Message
from chat_bridge.names import EXCHANGE, SAY_EXCHANGE
from chat_bridge.poster import Poster
from chat_bridge.session import Options
from ledger.cli.dead_letters import read_dead_letters
from ledger.events import FILLS
from ledger.projections.partition import Record
from ledger.settings import Settings
from ledger.store import MemoryStore
from tests.support import cluster_of, eventually, lines_of, publish
from tests.test_bridge import (
    FILLS_FILE,
    ONCE,
    as_line,
    assert_posted_once,
    bridge,
    expected,
    is_committed,
    post_all,
    rooms_of,
)
from tests.test_bridge_messages import FILL
from tests.test_worker import publish_a_header_name_that_is_not_utf8

pytestmark = pytest.mark.integration


def lines_of_the_hour(count: int = 270) -> list[bytes]:
    return list(lines_of([FILLS_FILE]))[:count]


def all_messages(settings: Settings) -> list[Message]:
    """Return what belongs into the rooms, partition after partition, in order."""
    cluster = cluster_of(settings)
    origin = cluster.origin()
    ends = cluster.ends([(FILLS, number) for number in range(origin.partitions)])
    records: dict[int, list[Record]] = {number: [] for number in range(origin.partitions)}
    for batch in cluster.read({slot: (0, end) for slot, end in ends.items()}):
        records[batch.partition] += batch.records
    return [
        message
        for number, found in records.items()
        for message in Identity(number, MemoryStore(), origin).read(found, ends[FILLS, number])
    ]


def post_as_an_earlier_bridge(settings: Settings, messages: Iterable[Message]) -> None:
    """Post messages as one does that is killed before it settles anything."""
    assert settings.amqp is not None
    url = settings.amqp.get_secret_value()

    async def post() -> None:
        poster = await Poster.open(url, settings)
        await poster.post(list(messages))
        await poster.close()

    asyncio.run(post())


def with_channel(settings: Settings, work: Callable[[Any], Awaitable[None]]) -> None:
    assert settings.amqp is not None
    url = settings.amqp.get_secret_value()

    async def run() -> None:
        async with await aio_pika.connect(url) as connection:
            await work(await connection.channel())

    asyncio.run(run())


def delete_room(settings: Settings, room: str) -> None:
    async def delete(channel: Any) -> None:
        await channel.queue_delete(settings.topic_prefix + room)

    with_channel(settings, delete)


def assert_whole(settings: Settings, lines: list[bytes]) -> None:
    """Each message is in its room once, but perhaps not in order."""
    wanted = expected(lines, settings)
    for room, bodies in rooms_of(settings, set(wanted)).items():
        field = "trade_id" if room.startswith("room.") else "fill_id"
        found = sorted(body[field] for body in bodies)
        assert found == sorted(wanted[room].elements()), room


@pytest.mark.parametrize("share", [0.4, 1.0])
def test_what_a_killed_bridge_posted_is_found_and_not_posted_again(
    settings: Settings, share: float
) -> None:
    lines = lines_of_the_hour(120)
    publish(settings, lines)
    messages = all_messages(settings)
    posted = messages[: int(len(messages) * share)]
    post_as_an_earlier_bridge(settings, posted)
    done = post_all(settings)
    assert done["avoided"] == len(posted)
    assert done["messages"] == len(messages) - len(posted)
    assert_posted_once(settings, lines)


def test_what_is_missing_in_the_middle_is_posted(settings: Settings) -> None:
    lines = lines_of_the_hour(60)
    publish(settings, lines)
    messages = all_messages(settings)
    chance = random.Random(7)
    posted = [message for message in messages if chance.random() < 0.6]
    post_as_an_earlier_bridge(settings, posted)
    assert post_all(settings)["avoided"] == len(posted)
    assert_whole(settings, lines)


@pytest.mark.parametrize("is_state_lost", [False, True])
def test_a_deleted_room_gets_its_whole_history_back(
    settings: Settings, is_state_lost: bool
) -> None:
    lines = lines_of_the_hour(80)
    publish(settings, lines)
    post_all(settings)
    delete_room(settings, "room.BTC-USD")
    private = next(room for room in expected(lines, settings) if room.startswith("account."))
    delete_room(settings, private)
    if is_state_lost:
        shutil.rmtree(settings.state_dir)
    done = post_all(settings)
    wanted = expected(lines, settings)
    assert done["messages"] == wanted["room.BTC-USD"].total() + wanted[private].total()
    assert_posted_once(settings, lines)
    assert post_all(settings)["messages"] == 0


def test_a_refill_that_was_cut_short_is_finished(settings: Settings) -> None:
    lines = lines_of_the_hour(80)
    publish(settings, lines)
    post_all(settings)
    delete_room(settings, "room.BTC-USD")
    trades = [one for one in all_messages(settings) if one.room == "room.BTC-USD"]
    post_as_an_earlier_bridge(settings, trades[: len(trades) // 2])
    post_all(settings)
    assert_posted_once(settings, lines)


def test_a_room_that_was_reset_unnoticed_gets_the_beginning_of_its_history_back(
    settings: Settings,
) -> None:
    lines = lines_of_the_hour(80)
    publish(settings, lines)
    post_all(settings)
    delete_room(settings, "room.BTC-USD")
    trades = [one for one in all_messages(settings) if one.room == "room.BTC-USD"]
    post_as_an_earlier_bridge(settings, trades[-5:])
    post_all(settings)
    assert_whole(settings, lines)


def test_a_room_in_another_order_is_not_taken_for_one_that_lost_messages(
    settings: Settings,
) -> None:
    """Found by review: so it stands after RabbitMQ has refused a message."""
    publish(settings, [as_line(FILL | {"fill_id": f"f{n}"}) for n in range(3)])
    first, second, third = (one for one in all_messages(settings) if one.type == "fill")
    post_as_an_earlier_bridge(settings, [first, third, second])
    done = post_all(settings)
    assert (done["fills"], done["avoided"], done["refilled"]) == (0, 3, 0)


def test_a_room_deleted_under_a_running_bridge_is_filled_anew_in_order(
    settings: Settings, tmp_path: Path
) -> None:
    lines = lines_of_the_hour(120)
    publish(settings, lines[:60])
    log = tmp_path / "bridge.log"
    with bridge(settings, log):
        eventually(lambda: is_committed(settings))
        delete_room(settings, "room.BTC-USD")
        publish(settings, lines[60:])
        eventually(lambda: is_committed(settings))
        eventually(lambda: "Reading the rooms again" in log.read_text())
    post_all(settings)
    assert_posted_once(settings, lines)
    assert "Traceback" not in log.read_text()


def test_a_room_whose_loss_another_binding_hides_is_filled_anew(settings: Settings) -> None:
    lines = lines_of_the_hour(60)
    publish(settings, lines[:30])
    post_all(settings)

    async def hide(channel: Any) -> None:
        queue = await channel.declare_queue(settings.topic_prefix + "mine", durable=True)
        await queue.bind(settings.topic(EXCHANGE), "room.BTC-USD")
        await channel.queue_delete(settings.topic("room.BTC-USD"))

    with_channel(settings, hide)
    publish(settings, lines[30:])
    post_all(settings)
    assert_posted_once(settings, lines)


def test_nobody_can_forge_what_the_bridge_takes_for_its_own(settings: Settings) -> None:
    publish(settings, [as_line(FILL)])
    post_all(settings)
    publish(settings, [as_line(FILL | {"fill_id": "f2", "trade_id": "t2"})])
    forged = all_messages(settings)[2]
    assert forged.room == "room.BTC-USD"

    async def forge(channel: Any) -> None:
        exchange = await channel.get_exchange(settings.topic(SAY_EXCHANGE))
        message = aio_pika.Message(
            forged.body(),
            message_id=forged.message_id,
            type=forged.type,
            headers={**forged.headers()},
            user_id="ledger",
            app_id="chat-bridge",
            delivery_mode=2,
        )
        await exchange.publish(message, routing_key="say.BTC-USD")

    with_channel(settings, forge)
    done = post_all(settings)
    assert (done["messages"], done["avoided"]) == (2, 0)


def test_a_bridge_of_another_user_refuses_to_post_everything_twice(settings: Settings) -> None:
    publish(settings, [as_line(FILL)])
    (message, *_) = all_messages(settings)

    async def post(channel: Any) -> None:
        queue = await channel.declare_queue(
            settings.topic(message.room),
            durable=True,
            arguments={
                "x-queue-type": "stream",
                "x-max-age": "365D",
                "x-max-length-bytes": 4 << 30,
                "x-stream-max-segment-size-bytes": 64 << 20,
            },
        )
        exchange = await channel.declare_exchange(settings.topic(EXCHANGE), "topic", durable=True)
        await queue.bind(exchange, message.room)
        await exchange.publish(
            aio_pika.Message(
                message.body(), message_id=message.message_id, headers={**message.headers()}
            ),
            routing_key=message.room,
        )

    with_channel(settings, post)
    with pytest.raises(RoomError, match=r"was posted by RabbitMQ's user 'None'"):
        post_all(settings)


def test_history_that_nobody_wants_is_never_posted(settings: Settings) -> None:
    lines = lines_of_the_hour(90)
    publish(settings, lines[:30])
    post_all(settings)
    publish(settings, lines[30:60])
    now_ms = int(time.time() * 1000)
    assert post_all(settings, Options(once=True, since_ms=now_ms + 1))["messages"] == 0
    publish(settings, lines[60:])
    post_all(settings)
    wanted = lines[:30] + lines[60:]
    assert_posted_once(settings, wanted)
    # Nor when all is lost but what Kafka keeps.
    shutil.rmtree(settings.state_dir)
    delete_room(settings, "room.BTC-USD")
    post_all(settings)
    assert_posted_once(settings, wanted)


def test_a_lost_commit_repeats_nothing(settings: Settings) -> None:
    lines = lines_of_the_hour(90)
    publish(settings, lines)
    post_all(settings)
    shutil.rmtree(settings.state_dir)
    back = [TopicPartition(settings.topic(FILLS), number, 0) for number in range(8)]
    group = ConsumerGroupTopicPartitions(settings.topic("chat-bridge"), back)
    cluster = cluster_of(settings)
    for future in cluster.admin.alter_consumer_group_offsets([group]).values():
        future.result()
    done = post_all(settings)
    assert (done["messages"], done["avoided"]) == (0, len(all_messages(settings)))
    assert_posted_once(settings, lines)


def test_what_rabbitmq_never_takes_becomes_a_dead_letter(settings: Settings) -> None:
    assert settings.amqp is not None
    url = settings.amqp.get_secret_value()
    publish(settings, [as_line(FILL)])
    (trade, fill) = all_messages(settings)
    assert len(trade.body()) < 400 < len(fill.body())

    async def scenario() -> None:
        poster = await Poster.open(url, settings)
        with pytest.raises(MessageTooLarge) as caught:
            await poster.post([replace(trade, fields={"text": "x" * 70_000})])
        await poster.close()
        assert caught.value.limit_bytes == 65_536

    asyncio.run(scenario())
    assert settings.kafka is not None
    here = Bridge(settings, settings.kafka, url, ONCE)
    here._largest_bytes = 400  # as a session learns it
    tally = asyncio.run(here.run())
    assert (tally.trades, tally.fills, tally.unpublishable) == (1, 0, 1)
    (letter,) = read_dead_letters(cluster_of(settings))
    assert (letter.source, letter.reason) == (f"fills:{fill.partition}:0", "unpublishable")
    assert "account.alice would have" in letter.detail


def test_header_names_that_are_not_utf8_stop_no_bridge(settings: Settings) -> None:
    publish(settings, [as_line(FILL)])
    publish_a_header_name_that_is_not_utf8(settings)
    done = post_all(settings)
    assert (done["records"], done["messages"]) == (4, 2)


def test_a_backlog_is_posted_no_faster_than_told(settings: Settings) -> None:
    lines = lines_of_the_hour(160)
    publish(settings, lines)
    count = len(all_messages(settings))
    assert count > 200
    began = time.monotonic()
    assert post_all(settings, Options(once=True, rate=50))["messages"] == count
    # The first hundred go at once.
    assert time.monotonic() - began > (count - 100) / 50 - 2
    assert_posted_once(settings, lines)


def test_a_running_bridge_tells_prometheus_what_it_does(settings: Settings, tmp_path: Path) -> None:
    publish(settings, [as_line(FILL)])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path / "bridge.log"

    def metrics() -> dict[str, float]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
                lines = answer.read().decode().splitlines()
        except OSError:
            return {}
        return {line.split()[0]: float(line.split()[1]) for line in lines if line[0] != "#"}

    with bridge(settings, log, "--metrics-port", str(port)) as process:
        eventually(lambda: metrics().get('chat_bridge_confirmed_total{type="trade"}') == 1)
        eventually(lambda: sum(1 for name in metrics() if "lag_records{" in name) == 8)
        found = metrics()
        assert found["chat_bridge_published_total"] == 2
        assert found["chat_bridge_duplicates_avoided_total"] == 0
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
