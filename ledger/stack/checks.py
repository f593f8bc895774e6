"""Asks servers whether they work, with the protocols that their clients use."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import socket
import threading
import urllib.request
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from aio_pika.abc import AbstractChannel

ChannelTask = Callable[["AbstractChannel"], Awaitable[None]]


def kafka_cluster_id(bootstrap: str, timeout_s: float) -> str | None:
    """Return the id of the cluster that answers with at least one live broker, else None."""
    from confluent_kafka import KafkaException
    from confluent_kafka.admin import AdminClient

    if not any(_accepts(server) for server in bootstrap.split(",")):
        return None
    configuration: dict[str, Any] = {
        "bootstrap.servers": bootstrap,
        "socket.timeout.ms": max(100, int(timeout_s * 1000)),
        "reconnect.backoff.max.ms": 250,
        "log_level": 0,
        "error_cb": lambda _: None,  # without one librdkafka prints each error
    }
    try:
        admin = AdminClient(configuration)
        metadata = admin.list_topics(timeout=timeout_s)
    except KafkaException:
        return None
    return str(metadata.cluster_id) if metadata.brokers and metadata.cluster_id else None


def _accepts(server: str) -> bool:
    """Return whether `host:port` accepts connections: a refusal is quicker than librdkafka is."""
    host, _, port = server.strip().rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=2):
            return True
    except (OSError, ValueError):
        return False


def amqp_problem(url: str, timeout_s: float) -> str | None:
    """Return None if a connection with this URL opens a channel, else what is wrong in a line."""
    return _with_channel(url, timeout_s, _nothing)


def make_and_delete_stream(url: str, name: str, timeout_s: float) -> str | None:
    """Return None once a stream of this name was declared and deleted, else what went wrong."""

    async def make_and_delete(channel: AbstractChannel) -> None:
        queue = await channel.declare_queue(
            name, durable=True, arguments={"x-queue-type": "stream"}
        )
        await queue.delete(if_unused=False, if_empty=False)

    return _with_channel(url, timeout_s, make_and_delete)


def _with_channel(url: str, timeout_s: float, task: ChannelTask) -> str | None:
    problem: list[str | None] = [f"no answer within {timeout_s:.0f} s"]

    def run() -> None:
        problem[0] = asyncio.run(_open_channel(url, timeout_s, task))

    # A thread of its own, because the caller may be inside an event loop.
    thread = threading.Thread(target=run, name="amqp-check", daemon=True)
    thread.start()
    thread.join(timeout_s + 2)
    return problem[0]


async def _open_channel(url: str, timeout_s: float, task: ChannelTask) -> str | None:
    import aio_pika

    logging.getLogger("aiormq.connection").addFilter(_silent)
    try:
        async with asyncio.timeout(timeout_s):
            connection = await aio_pika.connect(url)
            try:
                await task(await connection.channel())
            finally:
                await connection.close()
    except TimeoutError:
        return f"no answer within {timeout_s:.0f} s"
    except (aio_pika.exceptions.AMQPError, OSError, ValueError) as error:
        return " ".join(str(error).split()) or type(error).__name__
    finally:
        logging.getLogger("aiormq.connection").removeFilter(_silent)
    return None


def _silent(_: logging.LogRecord) -> bool:
    """Drop a log record: that a server does not answer is this module's result, not its log."""
    return False


async def _nothing(_: AbstractChannel) -> None:
    return None


def management_answers(management: str, amqp: str, timeout_s: float) -> bool:
    """Return whether the management page knows its node, asked with the user of the AMQP URL."""
    try:
        return bool(_management(management, amqp, "overview", timeout_s).get("node"))
    except (URLError, OSError, ValueError):
        return False


def has_lost_queues(management: str, amqp: str, timeout_s: float) -> bool:
    """Return whether RabbitMQ names a queue as down, or fails while it lists its queues."""
    try:
        queues = _management(management, amqp, "queues?columns=name,state", timeout_s)
    except HTTPError as error:
        return error.code == 500
    except (URLError, OSError, ValueError):
        return False
    return any(queue.get("state") == "down" for queue in queues)


def _management(management: str, amqp: str, path: str, timeout_s: float) -> Any:
    parts = urlsplit(amqp)
    user = f"{unquote(parts.username or 'guest')}:{unquote(parts.password or 'guest')}"
    request = urllib.request.Request(f"{management.rstrip('/')}/api/{path}")
    request.add_header("Authorization", "Basic " + base64.b64encode(user.encode()).decode())
    # No proxy: the page is on this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=timeout_s) as answer:
        return json.load(answer)
