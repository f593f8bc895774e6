"""Asks servers whether they work, with the protocols that their clients use."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
import urllib.request
from typing import Any
from urllib.error import URLError
from urllib.parse import unquote, urlsplit


def kafka_cluster_id(bootstrap: str, timeout_s: float) -> str | None:
    """Return the id of the cluster that answers with at least one live broker, else None."""
    from confluent_kafka import KafkaException
    from confluent_kafka.admin import AdminClient

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


def amqp_problem(url: str, timeout_s: float) -> str | None:
    """Return None if a connection with this URL opens a channel, else what is wrong in a line."""
    problem: list[str | None] = [f"no answer within {timeout_s:.0f} s"]

    def ask() -> None:
        problem[0] = asyncio.run(_open_channel(url, timeout_s))

    # A thread of its own, because the caller may be inside an event loop.
    thread = threading.Thread(target=ask, name="amqp-check", daemon=True)
    thread.start()
    thread.join(timeout_s + 2)
    return problem[0]


async def _open_channel(url: str, timeout_s: float) -> str | None:
    import aio_pika

    try:
        async with asyncio.timeout(timeout_s):
            connection = await aio_pika.connect(url)
            try:
                await connection.channel()
            finally:
                await connection.close()
    except TimeoutError:
        return f"no answer within {timeout_s:.0f} s"
    except (aio_pika.exceptions.AMQPError, OSError, ValueError) as error:
        return " ".join(str(error).split()) or type(error).__name__
    return None


def management_answers(management: str, amqp: str, timeout_s: float) -> bool:
    """Return whether the management page knows its node, asked with the user of the AMQP URL."""
    parts = urlsplit(amqp)
    user = f"{unquote(parts.username or 'guest')}:{unquote(parts.password or 'guest')}"
    request = urllib.request.Request(f"{management.rstrip('/')}/api/overview")
    request.add_header("Authorization", "Basic " + base64.b64encode(user.encode()).decode())
    # No proxy: the page is on this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=timeout_s) as answer:
            return bool(json.load(answer).get("node"))
    except (URLError, OSError, ValueError):
        return False
