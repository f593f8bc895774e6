"""How fast the bridge posts into rooms beside a bare publish loop, and how soon a fill is there.

*Throughput*: 20,000 fills, every second a taker's, so 30,000 messages, are in Kafka before a
`chat-bridge run` without any state and rooms is started. Its own counter of confirmed messages is
read twenty times a second; the rate is that between the first reading above zero and the first of
all messages, so starting, joining the group and making the first rooms are left out (`whole_s` has
them). In turn with it, in the same RabbitMQ, the *bare loop*: aio-pika publishes the very same
messages, read back from the rooms, to as many stream queues made before, with 100 publisher
confirms outstanding.

*Latency*: with a bridge running and all rooms made, fills are produced at a steady 500 a second;
a client in a process of its own reads the public rooms. Measured is the time from the call of
`produce`, and from Kafka's acknowledgement, to the arrival of the fill's message at that client.

A local stack of its own is started (or what LEDGER_KAFKA and LEDGER_AMQP name is used). One JSON
line per round is appended to bench/results.jsonl, unless `--try`.

    python bench/rooms.py [--fills 20000] [--rounds 3] [--seconds 60] [--only throughput|latency]
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import aio_pika
import msgspec
import pika
from common import record
from confluent_kafka import Message, Producer
from pydantic import SecretStr

from ledger.events import FILLS
from ledger.kafka import Cluster
from ledger.settings import Settings
from ledger.stack import Endpoints, down, up
from tests.rooms_chaos.rooms import Found, Rooms
from tests.support import environment

PARTITIONS = 8
ACCOUNTS = 96
INSTRUMENTS = ("BTC-USD", "ETH-USD", "SOL-USD", "XRP-USD")
WINDOW = 100
POLL_S = 0.05
PATIENCE_S = 300.0
TAKERS = 2  # every so many fills one is the taker's, and makes a second message

BRIDGE = "bridge"
BARE = "bare loop"
CONFIRMED = re.compile(rb"^chat_bridge_confirmed_total\{[^}]*\} (\S+)$", re.M)

Result = dict[str, Any]


@contextmanager
def stack() -> Iterator[tuple[Endpoints, Path]]:
    """Yield Kafka and RabbitMQ, named ones or our own, and a directory."""
    with tempfile.TemporaryDirectory(prefix="ledger-bench-") as name:
        base = Settings(state_dir=Path(name) / "stack")
        try:
            yield up(base, print), Path(name)
        finally:
            down(base, print)


class Ledger:
    """A ledger of one round: topics and rooms of its own, a bridge without state."""

    def __init__(self, found: Endpoints, directory: Path, name: str) -> None:
        self.settings = Settings(
            kafka=found.kafka,
            amqp=SecretStr(found.amqp),
            amqp_management=found.management,
            topic_prefix=f"bench{os.getpid()}-{name}-",
            partitions=PARTITIONS,
            state_dir=directory / name,
        )
        Cluster(found.kafka, self.settings).ensure_topics()
        assert found.management is not None, "LEDGER_AMQP_MANAGEMENT is needed, too"
        self.rooms = Rooms(found.amqp, found.management, self.settings.topic_prefix)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._metrics_port = free.getsockname()[1]

    def producer(self) -> Producer:
        return Producer(
            {
                "bootstrap.servers": self.settings.kafka,
                "enable.idempotence": True,
                "partitioner": "murmur2_random",
                "linger.ms": 0,
                "log_level": 2,
            }
        )

    def publish(self, count: int) -> None:
        """Have fills in Kafka."""
        producer = self.producer()
        topic = self.settings.topic(FILLS)
        for number in range(count):
            producer.produce(topic, *fill(number))
            producer.poll(0)
        assert producer.flush(60) == 0

    @contextmanager
    def bridge(self) -> Iterator[subprocess.Popen[bytes]]:
        """Run a bridge."""
        self.settings.state_dir.mkdir(parents=True, exist_ok=True)
        words = ["run", "--metrics-port", str(self._metrics_port)]
        with (self.settings.state_dir / "bridge.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "chat_bridge", *words],
                env=environment(self.settings),
                stdout=log,
                stderr=log,
            )
        try:
            yield process
        finally:
            process.terminate()
            process.wait(20)

    def confirmed(self) -> int:
        """Return how many messages the bridge says are confirmed; 0 where it does not answer."""
        try:
            url = f"http://127.0.0.1:{self._metrics_port}/metrics"
            with urllib.request.urlopen(url, timeout=5) as answer:
                return int(sum(map(float, CONFIRMED.findall(answer.read()))))
        except OSError:
            return 0

    def await_confirmed(self, least: int) -> tuple[float, int]:
        """Return when at least so many messages were confirmed, and how many they were then."""
        deadline = time.monotonic() + PATIENCE_S
        while (confirmed := self.confirmed()) < least:
            assert time.monotonic() < deadline, f"{confirmed} of {least} messages are confirmed"
            time.sleep(POLL_S)
        return time.monotonic(), confirmed


def fill(number: int) -> tuple[bytes, bytes]:
    """Return value and key of a fill; accounts and instruments take turns."""
    account = f"acct-{number // TAKERS % ACCOUNTS:04d}"
    event = {
        "type": "order_filled",
        "version": 1,
        "event_id": f"E{number:09d}",
        "fill_id": f"F{number:09d}",
        "trade_id": f"T{number:09d}",
        "order_id": f"O{number // 7:09d}",
        "account": account,
        "instrument": INSTRUMENTS[number // TAKERS % len(INSTRUMENTS)],
        "side": "buy" if number % 3 else "sell",
        "price": f"{(number * 7919 % 10**6 + 1) / 100:.2f}",
        "quantity": f"{(number * 104_729 % 10**6 + 1) / 10_000:.4f}",
        "fee": "0.125",
        "fee_asset": "USD",
        "liquidity": "taker" if number % TAKERS == 0 else "maker",
        "occurred_at": f"2026-11-26T{number // 3_600_000 % 24:02d}:"
        f"{number // 60_000 % 60:02d}:{number // 1000 % 60:02d}.{number % 1000:03d}Z",
    }
    return msgspec.json.encode(event), account.encode()


# -- throughput


def throughput(found: Endpoints, directory: Path, number: int, fills: int) -> Iterator[Result]:
    """Run one round of both; yield what each did."""
    ledger = Ledger(found, directory, f"throughput-{number}")
    messages = fills + fills // TAKERS
    ledger.publish(fills)
    started = time.monotonic()
    with ledger.bridge():
        first_at, first = ledger.await_confirmed(1)
        last_at, last = ledger.await_confirmed(messages)
    assert last == messages, f"{last} messages of {messages}"
    assert first < last, "too few fills: all of them were confirmed at once"
    posted = ledger.rooms.read(ledger.rooms.counts())
    ledger.rooms.forget()
    together = in_order(posted)
    assert len(together) == messages
    seconds = last_at - first_at
    yield {
        "what": f"rooms, {BRIDGE}",
        "messages": messages,
        "rooms": len(posted),
        "seconds": round(seconds, 3),
        "rate": round((last - first) / seconds),
        "whole_s": round(last_at - started, 3),
    }
    bare = Ledger(found, directory, f"bare-{number}")
    seconds = asyncio.run(bare_loop(bare.settings, together))
    counts = bare.rooms.counts()
    assert len(counts) == len(posted)
    bare.rooms.forget()
    yield {
        "what": f"rooms, {BARE}",
        "messages": messages,
        "rooms": len(counts),
        "seconds": round(seconds, 3),
        "rate": round(messages / seconds),
        "window": WINDOW,
        "mean_bytes": round(statistics.mean(len(message.body) for message in together)),
    }


def in_order(rooms: dict[str, list[Found]]) -> list[Found]:
    """Return the messages of all rooms by the records that made them, 500 of a partition in turn.

    So does the bridge get them: interleaved as to rooms, a stretch of each partition at a time.
    """

    def place(message: Found) -> tuple[int, int, int, str]:
        _, partition, offset, place = str(message.properties.message_id).split(":")
        return int(offset) // 500, int(partition), int(offset), place

    return sorted((message for found in rooms.values() for message in found), key=place)


async def bare_loop(settings: Settings, messages: Iterable[Found]) -> float:
    """Publish messages with confirms; return the seconds from the first one to the last confirm."""
    assert settings.amqp is not None
    ready = [
        (
            str(found.routing_key),
            aio_pika.Message(
                found.body,
                content_type=found.properties.content_type,
                delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
                message_id=found.properties.message_id,
                timestamp=found.properties.timestamp,
                type=found.properties.type,
            ),
        )
        for found in messages
    ]
    async with await aio_pika.connect(settings.amqp.get_secret_value()) as connection:
        channel = await connection.channel(publisher_confirms=True)
        name = settings.topic("chat.rooms")
        exchange = await channel.declare_exchange(name, aio_pika.ExchangeType.TOPIC, durable=True)
        for room in dict.fromkeys(room for room, _ in ready):
            queue = await channel.declare_queue(
                settings.topic(room), durable=True, arguments={"x-queue-type": "stream"}
            )
            await queue.bind(exchange, room)
        window = asyncio.Semaphore(WINDOW)

        async def publish(room: str, message: aio_pika.Message) -> None:
            try:
                await exchange.publish(message, room)
            finally:
                window.release()

        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for room, message in ready:
                await window.acquire()
                group.create_task(publish(room, message))
        return time.monotonic() - began


# -- latency


def latency(found: Endpoints, directory: Path, rate: int, seconds: float) -> Iterator[Result]:
    """Produce fills at a steady rate; yield how long they took to be in their public rooms."""
    ledger = Ledger(found, directory, "latency")
    warm = TAKERS * ACCOUNTS
    ledger.publish(warm)
    with ledger.bridge():
        ledger.await_confirmed(warm + warm // TAKERS)
        fills = int(rate * seconds)
        expected = len([n for n in range(warm, warm + fills) if n % TAKERS == 0])
        names = [ledger.settings.topic(f"room.{name}") for name in INSTRUMENTS]
        ours, theirs = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        reader = context.Process(target=read_live, args=(found.amqp, names, expected, theirs))
        reader.start()
        assert ours.poll(60), "the reader does not start"
        ours.recv()
        feed = Feed(ledger, rate)
        feed.run(warm, fills)
        assert ours.poll(PATIENCE_S), "the reader did not get everything"
        arrived: dict[str, float] = ours.recv()
        reader.join(20)
    ledger.rooms.forget()
    for what, since in (("produced", feed.produced), ("acknowledged", feed.acknowledged)):
        found_ms = sorted((arrived[name] - since[name]) * 1000 for name in arrived)
        yield {
            "what": f"rooms, latency since {what}",
            "messages": len(found_ms),
            "fills_s": rate,
            "seconds": seconds,
            "median_ms": round(statistics.median(found_ms), 1),
            "p99_ms": round(found_ms[len(found_ms) * 99 // 100], 1),
            "max_ms": round(found_ms[-1], 1),
        }


class Feed:
    """Produces fills at a steady rate, and knows when each was produced and acknowledged."""

    def __init__(self, ledger: Ledger, rate: int) -> None:
        self.produced: dict[str, float] = {}
        self.acknowledged: dict[str, float] = {}
        self._producer = ledger.producer()
        self._topic = ledger.settings.topic(FILLS)
        self._rate = rate
        self._ended = threading.Event()

    def run(self, first: int, count: int) -> None:
        """Produce, and return when all is acknowledged."""
        poller = threading.Thread(target=self._poll)  # or acknowledgements would be seen late
        poller.start()
        began = time.monotonic()
        for number in range(count):
            time.sleep(max(0.0, began + number / self._rate - time.monotonic()))
            self._produce(first + number)
        assert self._producer.flush(60) == 0
        self._ended.set()
        poller.join()

    def _produce(self, number: int) -> None:
        produced_at = time.monotonic()

        def acknowledged(error: Any, message: Message) -> None:
            assert error is None, error
            name = f"{FILLS}:{message.partition()}:{message.offset()}:room"
            self.acknowledged[name] = time.monotonic()
            self.produced[name] = produced_at

        self._producer.produce(self._topic, *fill(number), on_delivery=acknowledged)

    def _poll(self) -> None:
        while not self._ended.is_set():
            self._producer.poll(0.1)


def read_live(url: str, queues: list[str], expected: int, to: Connection) -> None:
    """Read what comes into rooms; send word when ready, and at the end when each arrived.

    The clock is the system's monotonic one, which all processes share.
    """
    arrived: dict[str, float] = {}
    connection = pika.BlockingConnection(pika.URLParameters(url))
    channel = connection.channel()
    channel.basic_qos(prefetch_count=500)

    def received(_: Any, method: Any, properties: Any, body: bytes) -> None:
        arrived[properties.message_id] = time.monotonic()
        if len(arrived) % 50 == 0:
            channel.basic_ack(method.delivery_tag, multiple=True)

    for queue in queues:
        channel.basic_consume(queue, received, arguments={"x-stream-offset": "next"})
    to.send(None)
    deadline = time.monotonic() + PATIENCE_S
    while len(arrived) < expected and time.monotonic() < deadline:
        connection.process_data_events(time_limit=1)
    connection.close()
    to.send(arrived)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fills", type=int, default=20_000, help="for throughput")
    parser.add_argument("--rounds", type=int, default=3, help="of throughput")
    parser.add_argument("--rate", type=int, default=500, help="fills a second for latency")
    parser.add_argument("--seconds", type=float, default=60.0, help="of latency")
    parser.add_argument("--only", choices=["throughput", "latency"])
    parser.add_argument("--try", dest="is_trial", action="store_true", help="record nothing")
    options = parser.parse_args()
    results: list[Result] = []
    with stack() as (found, directory):
        for result in run_all(options, found, directory):
            print(result, f"load {os.getloadavg()[0]:.1f}", flush=True)
            results.append(result)
            if not options.is_trial:
                record(result)
    print_tables(results)


def run_all(options: argparse.Namespace, found: Endpoints, directory: Path) -> Iterator[Result]:
    if options.only != "latency":
        for number in range(options.rounds):
            yield from throughput(found, directory, number, options.fills)
    if options.only != "throughput":
        yield from latency(found, directory, options.rate, options.seconds)


def print_tables(results: list[Result]) -> None:
    rates = {
        name: statistics.median(r["rate"] for r in results if r["what"] == f"rooms, {name}")
        for name in (BARE, BRIDGE)
        if any(r["what"] == f"rooms, {name}" for r in results)
    }
    if rates:
        print("\n| what | messages/s, median | of bare loop |\n|---|---:|---:|")
    for name, rate in rates.items():
        print(f"| {name} | {rate:,.0f} | {rate / rates[BARE]:.2f} |")
    delays = [result for result in results if "p99_ms" in result]
    if delays:
        print("\n| what | messages | median ms | 99th percentile ms | worst ms |")
        print("|---|---:|---:|---:|---:|")
    for result in delays:
        names = ("what", "messages", "median_ms", "p99_ms", "max_ms")
        print("|", " | ".join(str(result[name]) for name in names), "|")


if __name__ == "__main__":
    main()
