"""The bridge between the real Kafka and the real RabbitMQ, its rooms read by another client."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import aio_pika
import pytest
from confluent_kafka import ConsumerGroupTopicPartitions, Producer, TopicPartition

from chat_bridge.bridge import Bridge
from chat_bridge.errors import MessageReturned
from chat_bridge.identity import Identity
from chat_bridge.messages import Message
from chat_bridge.poster import Poster
from chat_bridge.session import Options
from ledger.events import FILLS
from ledger.projections.partition import Origin
from ledger.settings import Settings
from ledger.store import MemoryStore
from tests.support import BITSTAMP, cluster_of, environment, eventually, lines_of, publish, running
from tests.test_bridge_messages import BUST, FILL, records

pytestmark = pytest.mark.integration

ONCE = Options(once=True)
FILLS_FILE = next(path for path in BITSTAMP if path.stem == FILLS)


def chat_bridge(settings: Settings, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the command to its end; nothing may ever print a traceback."""
    done = subprocess.run(
        [sys.executable, "-m", "chat_bridge", *words],
        env=environment(settings),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def post_all(settings: Settings, options: Options = ONCE) -> dict[str, int]:
    """Run a bridge once, in this process, and return what it did."""
    assert settings.kafka is not None
    assert settings.amqp is not None
    here = Bridge(settings, settings.kafka, settings.amqp.get_secret_value(), options)
    return asyncio.run(here.run()).as_json()


def bridge(
    settings: Settings, log: Path, *words: str
) -> AbstractContextManager[subprocess.Popen[bytes]]:
    """Run a bridge that goes on."""
    return running(settings, log, "chat_bridge", "run", *words)


def rooms_of(settings: Settings, names: set[str]) -> dict[str, list[dict[str, Any]]]:
    """Return each room's history as a plain AMQP client sees it; what comes late is waited for."""
    assert settings.amqp is not None
    url = settings.amqp.get_secret_value()

    async def history(connection: Any, name: str) -> list[dict[str, Any]]:
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=1000)
        queue = await channel.get_queue(settings.topic_prefix + name)
        inbox: asyncio.Queue[Any] = asyncio.Queue()
        await queue.consume(inbox.put, arguments={"x-stream-offset": "first"})
        found: list[dict[str, Any]] = []
        while True:
            try:
                message = await asyncio.wait_for(inbox.get(), 1.5)
            except TimeoutError:
                await channel.close()
                return found
            await message.ack()
            assert message.delivery_mode == aio_pika.DeliveryMode.PERSISTENT
            assert message.routing_key == name
            body = json.loads(message.body)
            assert (message.message_id, message.type) == (body["message_id"], body["type"])
            found.append(body)

    async def all_of_them() -> dict[str, list[dict[str, Any]]]:
        async with await aio_pika.connect(url) as connection:
            found = await asyncio.gather(*(history(connection, name) for name in sorted(names)))
            return dict(zip(sorted(names), found, strict=True))

    return asyncio.run(all_of_them())


def expected(lines: list[bytes], settings: Settings) -> dict[str, Counter[str]]:
    """Return which fill ids belong into which room, said without the bridge's own code."""
    wanted: dict[str, Counter[str]] = {}
    for line in lines:
        event = json.loads(line)
        wanted.setdefault(f"account.{event['account']}", Counter())[event["fill_id"]] += 1
        if event["liquidity"] == "taker":
            wanted.setdefault(f"room.{event['instrument']}", Counter())[event["trade_id"]] += 1
    return wanted


def assert_posted_once(settings: Settings, lines: list[bytes]) -> None:
    """Each taker's fill is once in the public room, each fill once in its account's, in order."""
    wanted = expected(lines, settings)
    found = rooms_of(settings, set(wanted))
    for name, bodies in found.items():
        field = "trade_id" if name.startswith("room.") else "fill_id"
        assert Counter(body[field] for body in bodies) == wanted[name], name
        offsets: dict[str, int] = {}
        for body in bodies:
            topic, partition, offset, _ = body["message_id"].split(":")
            assert topic == FILLS
            assert int(offset) > offsets.get(partition, -1), f"{name} is out of order"
            offsets[partition] = int(offset)


def as_line(event: dict[str, Any]) -> bytes:
    return json.dumps(event).encode()


def test_a_real_hour_is_in_its_rooms_exactly_once(settings: Settings) -> None:
    publish(settings, lines_of(BITSTAMP))
    lines = list(lines_of([FILLS_FILE]))
    run = chat_bridge(settings, "run", "--once", "--json")
    assert run.returncode == 0, run.stderr
    done = json.loads(run.stdout)
    assert done == dict.fromkeys(done, 0) | {
        "records": 270,
        "trades": 135,
        "fills": 270,
        "messages": 405,
        "published": 405,
        "sessions": 1,
    }
    assert_posted_once(settings, lines)
    assert post_all(settings)["messages"] == 0
    assert_posted_once(settings, lines)

    shown_rooms = chat_bridge(settings, "rooms", "--json")
    assert shown_rooms.returncode == 0, shown_rooms.stderr
    listed = json.loads(shown_rooms.stdout)["rooms"]
    counts = {room["room"]: room["messages"] for room in listed}
    wanted = {name: sum(ids.values()) for name, ids in expected(lines, settings).items()}
    assert counts == wanted
    assert counts["room.BTC-USD"] == 135
    shown = chat_bridge(settings, "tail", "BTC-USD", "--last", "3")
    assert [line.split("  ")[1] for line in shown.stdout.splitlines()] == ["BTC-USD"] * 3
    tail = json.loads(chat_bridge(settings, "tail", "BTC-USD", "--last", "200", "--json").stdout)
    assert tail["room"] == "room.BTC-USD"
    assert [message["stream_offset"] for message in tail["messages"]] == list(range(135))
    one = json.loads(chat_bridge(settings, "tail", "room.BTC-USD", "--last", "1", "--json").stdout)
    assert one["messages"] == tail["messages"][-1:]


def test_duplicates_conflicts_and_busts_end_up_as_the_tables_have_them(settings: Settings) -> None:
    other = FILL | {"account": "bob", "fill_id": "f9", "liquidity": "maker", "side": "buy"}
    early = BUST | {"account": "bob", "fill_id": "f9"}
    publish(settings, map(as_line, [FILL, FILL, early]))
    assert post_all(settings)["messages"] == 2
    publish(settings, map(as_line, [FILL, FILL | {"price": "1"}, other, BUST, BUST]))
    done = post_all(settings)
    wanted = {"records": 5, "trades": 0, "fills": 1, "busts": 3, "messages": 4}
    assert {name: done[name] for name in wanted} == wanted
    found = rooms_of(settings, {"room.BTC-USD", "account.alice", "account.bob"})
    kinds = {name: [body["type"] for body in bodies] for name, bodies in found.items()}
    assert kinds == {
        "room.BTC-USD": ["trade", "bust"],
        "account.alice": ["fill", "bust"],
        "account.bob": ["fill", "bust"],
    }


def test_what_was_posted_is_not_posted_again_when_the_state_is_lost(settings: Settings) -> None:
    publish(settings, [as_line(FILL)])
    assert post_all(settings)["messages"] == 2
    shutil.rmtree(settings.state_dir)
    publish(settings, map(as_line, [FILL | {"event_id": "again"}, FILL | {"fill_id": "f2"}]))
    assert post_all(settings)["messages"] == 2
    found = rooms_of(settings, {"account.alice"})["account.alice"]
    assert [body["fill_id"] for body in found] == ["f1", "f2"]


def test_what_is_settled_but_not_committed_is_not_posted_again(settings: Settings) -> None:
    publish(settings, lines_of([FILLS_FILE]))
    assert post_all(settings)["messages"] == 405
    cluster = cluster_of(settings)
    back = [TopicPartition(settings.topic(FILLS), number, 0) for number in range(8)]
    group = ConsumerGroupTopicPartitions(settings.topic("chat-bridge"), back)
    for future in cluster.admin.alter_consumer_group_offsets([group]).values():
        future.result()
    done = post_all(settings)
    assert done["messages"] == 0
    asked = ConsumerGroupTopicPartitions(settings.topic("chat-bridge"))
    for future in cluster.admin.list_consumer_group_offsets([asked]).values():
        committed = {slot.partition: slot.offset for slot in future.result().topic_partitions}
    ends = cluster.ends([(FILLS, number) for number in range(8)])
    assert committed == {number: end for (_, number), end in ends.items()}


def test_a_running_bridge_stops_in_time_and_leaves_nothing_undone(
    settings: Settings, tmp_path: Path
) -> None:
    lines = list(lines_of([FILLS_FILE]))
    publish(settings, lines[:100])
    log = tmp_path / "bridge.log"
    with bridge(settings, log) as process:
        eventually(lambda: "Partitions of" in log.read_text())
        publish(settings, lines[100:])
        eventually(lambda: is_committed(settings))
        process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        assert process.wait(10) == 0
        assert time.monotonic() - began < 5
    assert "Traceback" not in log.read_text()
    assert post_all(settings)["messages"] == 0
    assert_posted_once(settings, lines)


def is_committed(settings: Settings) -> bool:
    """Return whether the group has committed all there is."""
    cluster = cluster_of(settings)
    ends = cluster.ends([(FILLS, number) for number in range(8)])
    asked = ConsumerGroupTopicPartitions(settings.topic("chat-bridge"))
    for future in cluster.admin.list_consumer_group_offsets([asked]).values():
        committed = {slot.partition: slot.offset for slot in future.result().topic_partitions}
        return all(committed.get(number, 0) >= end for (_, number), end in ends.items())
    return False


def test_two_bridges_share_the_partitions_and_one_goes_on_alone(
    settings: Settings, tmp_path: Path
) -> None:
    lines = list(lines_of([FILLS_FILE]))
    publish(settings, lines[:60])
    one, two = tmp_path / "one.log", tmp_path / "two.log"
    with bridge(settings, one), bridge(settings, two) as second:
        eventually(lambda: sharing(one) and sharing(two))
        publish(settings, lines[60:120])
        eventually(lambda: is_committed(settings))
        second.terminate()
        assert second.wait(10) == 0
        publish(settings, lines[120:])
        eventually(lambda: is_committed(settings))
    assert_posted_once(settings, lines)


def sharing(log: Path) -> bool:
    """Return whether a bridge's newest share is half of the eight partitions."""
    shares = [line for line in log.read_text().splitlines() if "Partitions of" in line]
    return bool(shares) and shares[-1].rpartition(":")[2].count(",") == 3


def test_transactions_in_the_topic_leave_no_trace_in_the_rooms(settings: Settings) -> None:
    publish(settings, [as_line(FILL)])
    producer = Producer(
        {
            "bootstrap.servers": settings.kafka,
            "partitioner": "murmur2_random",
            "transactional.id": settings.topic("test"),
        }
    )
    producer.init_transactions(30)
    for fill_id, commit in (("lost", False), ("kept", True), ("lost too", False)):
        producer.begin_transaction()
        event = FILL | {"fill_id": fill_id}
        producer.produce(settings.topic(FILLS), as_line(event), event["account"].encode())
        if commit:
            producer.commit_transaction(30)
        else:
            producer.flush(30)
            producer.abort_transaction(30)
    assert post_all(settings)["fills"] == 2
    assert is_committed(settings)
    assert post_all(settings)["records"] == 0
    found = rooms_of(settings, {"account.alice"})["account.alice"]
    assert [body["fill_id"] for body in found] == ["f1", "kept"]


def test_a_message_that_no_queue_takes_is_an_error(settings: Settings) -> None:
    assert settings.amqp is not None
    url = settings.amqp.get_secret_value()
    messages: list[Message] = Identity(0, MemoryStore(), Origin("c", {}, 1)).read(records(FILL), 1)

    async def scenario() -> None:
        poster = await Poster.open(url, settings)
        await poster.post(messages)
        async with await aio_pika.connect(url) as connection:
            channel = await connection.channel()
            await channel.queue_delete(settings.topic_prefix + "account.alice")
        with pytest.raises(MessageReturned, match=r"account.alice: .*returned fills:0:0:account"):
            await poster.post(messages)
        await poster.close()

    asyncio.run(scenario())


def test_a_room_whose_name_is_taken_stops_the_bridge_with_a_sentence(settings: Settings) -> None:
    assert settings.amqp is not None
    url = settings.amqp.get_secret_value()

    async def squat() -> None:
        async with await aio_pika.connect(url) as connection:
            channel = await connection.channel()
            await channel.declare_queue(settings.topic_prefix + "account.alice", durable=True)

    asyncio.run(squat())
    publish(settings, [as_line(FILL)])
    done = chat_bridge(settings, "run", "--once")
    assert done.returncode == 2
    assert "account.alice: the queue" in done.stderr
    assert not is_committed(settings)


def test_a_room_is_followed_live(settings: Settings) -> None:
    publish(settings, [as_line(FILL)])
    post_all(settings)
    with subprocess.Popen(
        [sys.executable, "-m", "chat_bridge", "tail", "account.alice", "--follow", "--json"],
        # Whoever runs the tests in the background of a shell has it ignored, and so would this.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        env=environment(settings),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["fill_id"] == "f1"
        publish(settings, [as_line(FILL | {"fill_id": "f2"})])
        post_all(settings)
        assert json.loads(process.stdout.readline())["fill_id"] == "f2"
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
        assert process.stderr is not None
        assert process.stderr.read() == b""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "--once"], "nothing was published yet"),
        (["tail", "BTC-USD"], "There is no room 'room.BTC-USD'"),
        (["tail", "BTC USD"], "is no room's name"),
    ],
)
def test_what_is_not_there_is_said_in_one_line(
    settings: Settings, words: list[str], said: str
) -> None:
    done = chat_bridge(settings, *words)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_no_rooms_yet_is_fine(settings: Settings) -> None:
    done = chat_bridge(settings, "rooms", "--json")
    assert (done.returncode, json.loads(done.stdout)) == (0, {"rooms": []})


@pytest.mark.parametrize("down", ["kafka", "amqp", "amqp_management"])
def test_a_server_that_is_down_is_named_without_its_password(settings: Settings, down: str) -> None:
    publish(settings, [as_line(FILL)])
    address = {
        "kafka": "127.0.0.1:1",
        "amqp": "amqp://ledger:hidden@127.0.0.1:1/",
        "amqp_management": "http://127.0.0.1:1",
    }[down]
    env = environment(settings) | {f"LEDGER_{down.upper()}": address}
    words = ["rooms"] if down == "amqp_management" else ["run", "--once"]
    done = subprocess.run(
        [sys.executable, "-m", "chat_bridge", *words],
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "cannot be reached" in done.stderr
    assert "127.0.0.1:1" in done.stderr
    assert "hidden" not in done.stderr
    assert "Traceback" not in done.stderr


def test_a_bridge_waits_for_servers_and_still_stops_in_time(
    settings: Settings, tmp_path: Path
) -> None:
    log = tmp_path / "bridge.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "chat_bridge", "run"],
            env=environment(settings) | {"LEDGER_KAFKA": "127.0.0.1:1"},
            stdout=output,
            stderr=output,
        )
    try:
        eventually(lambda: log.read_text().count("Trying again") > 1)
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(5) == 0
    finally:
        process.kill()
        process.wait()
    assert "Traceback" not in log.read_text()
