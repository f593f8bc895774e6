"""Puts messages into rooms: declares the rooms, publishes, and waits for RabbitMQ's confirms."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Sequence
from typing import Final

import aio_pika
from aio_pika import DeliveryMode, ExchangeType
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractExchange
from aio_pika.exceptions import (
    ChannelPreconditionFailed,
    DeliveryError,
    PublishError,
)

from chat_bridge.amqp import connect, lost_connections
from chat_bridge.errors import ConnectionLost, RoomError
from chat_bridge.messages import Message
from chat_bridge.names import EXCHANGE, retention_of
from ledger.settings import Settings

WINDOW: Final = 256
"""How many messages may be unconfirmed at a time."""
CONFIRM_TIMEOUT_S: Final = 60.0
_CLOSE_TIMEOUT_S: Final = 1.0
APP_ID: Final = "chat-bridge"


class Poster:
    """A connection that publishes; after an error it is of no more use.

    A confirm says that every queue bound to the routing key has the message, a return that there
    is none. Neither says that the *room* is among them, so each room is declared and bound on this
    connection before the first message to it.
    """

    def __init__(self, connection: AbstractConnection, settings: Settings) -> None:
        self._connection = connection
        self._settings = settings
        self._rooms: set[str] = set()
        self._channel: AbstractChannel
        self._exchange: AbstractExchange

    @classmethod
    async def open(cls, url: str, settings: Settings) -> Poster:
        """Return a poster whose exchange is declared.

        Raises:
            UnreachableError: RabbitMQ does not answer.
            RoomError: the exchange exists as something else.
        """
        poster = cls(await connect(url, settings.topic(APP_ID)), settings)
        try:
            await poster._declare_exchange()
        except BaseException:
            await poster.close()
            raise
        return poster

    @property
    def is_closed(self) -> bool:
        """Whether the connection or its channel has ended."""
        return self._connection.is_closed or self._channel.is_closed

    async def close(self) -> None:
        """Close the connection; whether or not RabbitMQ hears of it, this ends soon."""
        with contextlib.suppress(ConnectionLost), lost_connections():
            async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                await self._connection.close()

    async def _declare_exchange(self) -> None:
        name = self._settings.topic(EXCHANGE)
        with lost_connections():
            self._channel = await self._connection.channel(
                publisher_confirms=True, on_return_raises=True
            )
            try:
                self._exchange = await self._channel.declare_exchange(
                    name, ExchangeType.TOPIC, durable=True
                )
            except ChannelPreconditionFailed as error:
                raise RoomError(
                    name, "an exchange of this name exists, but it is no durable topic exchange."
                ) from error

    async def declare(self, rooms: Iterable[str]) -> None:
        """Make sure that each room exists and is bound, once on this connection.

        Raises:
            RoomError: a queue of that name exists that is no stream or has other limits.
        """
        for room in rooms:
            if room in self._rooms:
                continue
            name = self._settings.topic(room)
            with lost_connections():
                try:
                    queue = await self._channel.declare_queue(
                        name, durable=True, arguments={**retention_of(room).arguments()}
                    )
                    await queue.bind(self._exchange, room)
                except ChannelPreconditionFailed as error:
                    raise RoomError(
                        room,
                        f"the queue {name} exists, but not as this bridge declares it ({error}). "
                        "Delete that queue, or move what uses it to another name.",
                    ) from error
            self._rooms.add(room)

    async def post(self, messages: Sequence[Message]) -> None:
        """Publish messages in this order; return when RabbitMQ has confirmed every one.

        Raises:
            RoomError: a message was returned or refused; some after it may have been taken.
            ConnectionLost: the connection broke; which messages were taken is not known.
        """
        await self.declare(dict.fromkeys(message.room for message in messages))
        window = asyncio.Semaphore(WINDOW)
        tasks: list[asyncio.Task[None]] = []
        failures: list[BaseException] = []

        def note(task: asyncio.Task[None]) -> None:
            window.release()
            if task.cancelled():
                failures.append(ConnectionLost("RabbitMQ", "the connection was closed"))
            elif (error := task.exception()) is not None:
                failures.append(error)

        try:
            for message in messages:
                await window.acquire()
                if failures:
                    break
                # Tasks begin in the order in which they are made, and the channel's lock is fair:
                # so messages reach RabbitMQ in this order.
                task = asyncio.create_task(self._publish(message))
                task.add_done_callback(note)
                tasks.append(task)
            if tasks:
                await asyncio.wait(tasks)
        finally:
            for task in tasks:
                task.cancel()
        if failures:
            # What a room refused is worth more to know than that others were lost after it.
            raise min(failures, key=lambda failure: not isinstance(failure, RoomError))

    async def _publish(self, message: Message) -> None:
        if self.is_closed:
            raise ConnectionLost("RabbitMQ", "the connection was closed")
        with lost_connections():
            try:
                await self._exchange.publish(
                    aio_pika.Message(
                        message.body(),
                        content_type="application/json",
                        content_encoding="utf-8",
                        delivery_mode=DeliveryMode.PERSISTENT,
                        message_id=message.message_id,
                        timestamp=message.moment(),
                        type=message.type,
                        app_id=APP_ID,
                    ),
                    routing_key=message.room,
                    mandatory=True,
                    timeout=CONFIRM_TIMEOUT_S,
                )
            except PublishError as error:
                raise RoomError(
                    message.room,
                    f"RabbitMQ returned {message.message_id}: no queue is bound to the room's "
                    "name. Was it deleted just now? Start the bridge again, it makes it anew.",
                ) from error
            except DeliveryError as error:
                raise RoomError(
                    message.room,
                    f"RabbitMQ refused {message.message_id} (nack). See its log for why, "
                    "then start the bridge again.",
                ) from error
