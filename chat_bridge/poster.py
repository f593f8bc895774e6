"""Puts messages into rooms: declares the rooms, publishes, and waits for RabbitMQ's confirms."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Sequence
from typing import Final

from aio_pika import DeliveryMode, ExchangeType
from aio_pika.abc import AbstractChannel, AbstractConnection
from aio_pika.exceptions import ChannelPreconditionFailed
from aiormq.exceptions import (
    ChannelAccessRefused,
    ChannelNotFoundEntity,
    ConnectionInternalError,
)
from pamqp import commands as spec

from chat_bridge.amqp import connect, lost_connections, user_of
from chat_bridge.errors import ConnectionLost, RoomBroken, RoomError
from chat_bridge.history import Rooms
from chat_bridge.messages import Message
from chat_bridge.names import EXCHANGE, SAY_EXCHANGE, exchange_of, retention_of, routing_keys_of
from chat_bridge.ownership import Ownership
from chat_bridge.publisher import Letter, Publisher
from chat_bridge.survey import Surveyor
from ledger.settings import Settings

_CLOSE_TIMEOUT_S: Final = 1.0
APP_ID: Final = "chat-bridge"
_IS_DOWN: Final = "down or inaccessible"


async def is_broken(url: str, settings: Settings, room: str) -> bool:
    """Return whether RabbitMQ still fails at a room's queue, asked on a connection of its own.

    Raises:
        UnreachableError: RabbitMQ does not answer.
        ConnectionLost: the connection broke for another reason.
    """
    with lost_connections():
        connection = await connect(url, settings.topic(APP_ID))
        try:
            channel = await connection.channel(publisher_confirms=False)
            await channel.declare_queue(settings.topic(room), passive=True)
        except ConnectionInternalError:
            return True
        except ChannelNotFoundEntity as error:
            return _IS_DOWN in str(error)
        finally:
            await connection.close()
    return False


class Poster:
    """A connection that publishes; after an error it is of no more use.

    A confirm says that every queue bound to the routing key has the message, a return that there
    is none. Neither says that the *room* is among them, so each room is declared and bound on this
    connection before the first message to it.

    Attributes:
        ownership: the partitions whose messages this connection may publish.
        surveyor: reads on this connection what the bridge has posted before.
    """

    def __init__(self, connection: AbstractConnection, settings: Settings, user: str) -> None:
        self._connection = connection
        self._settings = settings
        self._user = user
        self._rooms: set[str] = set()
        self._channel: AbstractChannel
        self.publisher: Publisher
        self.ownership = Ownership(connection, settings)
        self.surveyor = Surveyor(Rooms(connection, settings), user)

    @classmethod
    async def open(cls, url: str, settings: Settings) -> Poster:
        """Return a poster whose exchanges are declared.

        Raises:
            UnreachableError: RabbitMQ does not answer.
            RoomError: one exists as something else.
        """
        poster = cls(await connect(url, settings.topic(APP_ID)), settings, user_of(url))
        try:
            await poster._declare_exchanges()
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

    async def _declare_exchanges(self) -> None:
        with lost_connections():
            self._channel = await self._connection.channel(
                publisher_confirms=True, on_return_raises=True
            )
            for name in map(self._settings.topic, (EXCHANGE, SAY_EXCHANGE)):
                try:
                    await self._channel.declare_exchange(name, ExchangeType.TOPIC, durable=True)
                except ChannelPreconditionFailed as error:
                    raise RoomError(
                        name,
                        "an exchange of this name exists, but it is no durable topic exchange.",
                    ) from error
                except ChannelAccessRefused as error:
                    raise RoomError(
                        name,
                        f"RabbitMQ does not let the user '{self._user}' of LEDGER_AMQP declare it. "
                        "The bridge needs a user with all rights, such as the local stack's.",
                    ) from error
            self.publisher = Publisher(
                await self._channel.get_underlay_channel(), self._settings.topic(EXCHANGE)
            )

    async def declare(self, rooms: Iterable[str]) -> None:
        """Make sure that each room exists and is bound, once on this connection.

        Raises:
            RoomError: a queue of that name exists that is no stream or has other limits.
            RoomBroken: RabbitMQ has lost the queue; the poster is of no more use.
            ConnectionLost: the connection broke.
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
                except (ConnectionInternalError, ChannelNotFoundEntity) as error:
                    raise RoomBroken(room, name) from error
                except ChannelPreconditionFailed as error:
                    raise RoomError(
                        room,
                        f"the queue {name} exists, but not as this bridge declares it ({error}). "
                        "Delete that queue, or move what uses it to another name.",
                    ) from error
                for key in routing_keys_of(room):
                    await queue.bind(self._settings.topic(exchange_of(key)), key)
            self._rooms.add(room)

    def forget(self, room: str) -> None:
        """Declare a room anew, and read it anew, before the next message to it."""
        self._rooms.discard(room)
        self.surveyor.forget(room)

    async def post(self, messages: Sequence[Message]) -> None:
        """Publish messages in this order; return when RabbitMQ has confirmed every one.

        Raises:
            MessageReturned: a room is gone; some messages after it may have been taken.
            MessageRefused: RabbitMQ could not store a message; likewise.
            RoomError: a room cannot be declared.
            ConnectionLost: the connection broke; which messages were taken is not known.
        """
        await self.declare(dict.fromkeys(message.room for message in messages))
        with lost_connections():
            await self.publisher.publish([self._letter(message) for message in messages])

    def _letter(self, message: Message) -> Letter:
        properties = spec.Basic.Properties(
            content_type="application/json",
            content_encoding="utf-8",
            delivery_mode=DeliveryMode.PERSISTENT,
            headers={**message.headers()},
            message_id=message.message_id,
            timestamp=message.moment(),
            message_type=message.type,
            user_id=self._user,
            app_id=APP_ID,
        )
        return Letter(message.room, message.body(), properties)
