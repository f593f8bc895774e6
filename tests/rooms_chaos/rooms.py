"""Rooms as any client sees them: read to the end, counted, deleted. Not with the bridge's client.

A stream does not say where it ends. So a message of our own is put behind everything, straight into
the room's queue, and whatever comes before it is the room's history.
"""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import time
import urllib.request
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final
from urllib.error import HTTPError
from urllib.parse import unquote, urlsplit

import pika
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import AMQPError, ChannelClosedByBroker, UnroutableError
from pika.spec import Basic, BasicProperties

_ANSWER_S: Final = 10.0
_READ_S: Final = 120.0
_PREFETCH: Final = 500
_ACKNOWLEDGED_AT_ONCE: Final = 100  # fewer than the prefetch, or a room might wait for ever
_END: Final = "end-of-rooms-chaos"

logging.getLogger("pika").setLevel(logging.CRITICAL)  # it logs whatever it also raises


@dataclass(frozen=True)
class Found:
    """A message as it came out of a room."""

    body: bytes
    properties: BasicProperties
    routing_key: str | None
    exchange: str | None


class Rooms:
    """The rooms of one ledger, asked by a client with the rights of an administrator."""

    def __init__(self, url: str, management: str, prefix: str) -> None:
        self.url = url
        self._management = management
        self._prefix = prefix

    def counts(self) -> dict[str, int]:
        """Return each room there is, and about how many messages RabbitMQ says it has.

        Nothing while RabbitMQ 3.10 fails to tell, as it does at the moment when a stream is made.
        """
        parts = urlsplit(self.url)
        user = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
        page = f"{self._management}/api/queues?columns=name,type,messages"
        request = urllib.request.Request(page)
        request.add_header("Authorization", "Basic " + base64.b64encode(user.encode()).decode())
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=_ANSWER_S) as answer:
                queues = json.load(answer)
        except HTTPError as error:
            if error.code != HTTPStatus.INTERNAL_SERVER_ERROR:
                raise
            return {}
        return {
            queue["name"].removeprefix(self._prefix): int(queue.get("messages", 0))
            for queue in queues
            if queue["name"].startswith(self._prefix) and queue.get("type") == "stream"
        }

    def read(self, names: Iterable[str]) -> dict[str, list[Found]]:
        """Return everything in some rooms, from the first message on.

        A room that takes no message is left out: RabbitMQ lists it, and has lost it.
        """
        reading = _Reading(self._prefix, set(names))
        connection = self._connect()
        try:
            reading.read(connection)
        finally:
            connection.close()
        return reading.found

    def delete(self, names: Iterable[str]) -> str | None:
        """Delete the first of some rooms that exists and return it, None if there is none.

        None also where RabbitMQ does not answer.
        """
        try:
            connection = self._connect()
            try:
                for name in names:
                    queue = self._prefix + name
                    channel = connection.channel()
                    try:
                        channel.queue_declare(queue, passive=True)
                    except ChannelClosedByBroker:
                        continue
                    channel.queue_delete(queue)
                    return name
            finally:
                connection.close()
        except (AMQPError, OSError):
            return None
        return None

    def forget(self) -> None:
        """Delete all rooms and the exchange."""
        names = list(self.counts())
        connection = self._connect()
        try:
            for name in names:
                with contextlib.suppress(ChannelClosedByBroker):  # it is listed, and lost
                    connection.channel().queue_delete(self._prefix + name)
            connection.channel().exchange_delete(f"{self._prefix}chat.rooms")
        finally:
            connection.close()

    def _connect(self) -> pika.BlockingConnection:
        parameters = pika.URLParameters(self.url)
        parameters.heartbeat = 0
        parameters.socket_timeout = _ANSWER_S
        parameters.stack_timeout = _ANSWER_S
        parameters.blocked_connection_timeout = _ANSWER_S
        return pika.BlockingConnection(parameters)


class _Reading:
    """Reads several rooms at once, each up to the message that we put behind its history."""

    def __init__(self, prefix: str, names: set[str]) -> None:
        self.found: dict[str, list[Found]] = {name: [] for name in names}
        self._prefix = prefix
        self._ours = uuid.uuid4().hex
        self._unread = set(names)
        self._unacknowledged = 0

    def read(self, connection: pika.BlockingConnection) -> None:
        channel = connection.channel()
        channel.confirm_delivery()
        for name in list(self.found):
            mark = BasicProperties(type=_END, message_id=self._ours)
            try:
                channel.basic_publish("", self._prefix + name, b"", mark, mandatory=True)
            except UnroutableError:
                del self.found[name]
                self._unread.remove(name)
        channel = connection.channel()
        channel.basic_qos(prefetch_count=_PREFETCH)
        for name in self.found:
            self._consume(channel, name)
        deadline = time.monotonic() + _READ_S
        while self._unread:
            assert time.monotonic() < deadline, f"cannot be read to their ends: {self._unread}"
            connection.process_data_events(time_limit=0.5)

    def _consume(self, channel: BlockingChannel, name: str) -> None:
        def received(
            _: BlockingChannel, method: Basic.Deliver, properties: BasicProperties, body: bytes
        ) -> None:
            self._unacknowledged += 1
            if self._unacknowledged == _ACKNOWLEDGED_AT_ONCE:
                assert method.delivery_tag is not None
                channel.basic_ack(method.delivery_tag, multiple=True)
                self._unacknowledged = 0
            if properties.type == _END:
                if properties.message_id == self._ours:
                    self._unread.discard(name)
            elif name in self._unread:
                self.found[name].append(
                    Found(body, properties, method.routing_key, method.exchange)
                )

        arguments: dict[str, Any] = {"x-stream-offset": "first"}
        channel.basic_consume(self._prefix + name, received, arguments=arguments)
