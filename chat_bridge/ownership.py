"""Who may post what of a partition: whoever holds the queue `bridge.<PARTITION>`.

The queue is exclusive to the very connection that publishes. While it is there, nobody else posts
messages of the partition; when it can be taken, what its last owner published has reached the
rooms, for RabbitMQ ends a connection's channels before its queues. Kafka's group alone would not
do: a bridge that was paused for longer than its session still has messages in hand.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from aio_pika.abc import AbstractConnection
from aiormq.exceptions import ChannelLockedResource, ChannelPreconditionFailed

from chat_bridge.amqp import lost_connections
from chat_bridge.errors import RoomError
from ledger.settings import Settings

QUEUE: Final = "bridge."


class Ownership:
    """The partitions that one connection owns."""

    def __init__(self, connection: AbstractConnection, settings: Settings) -> None:
        self._connection = connection
        self._settings = settings
        self._owned: set[int] = set()

    async def take(self, partitions: Iterable[int]) -> list[int]:
        """Take what is free of the partitions; return those that other connections have.

        Raises:
            RoomError: a queue of that name exists that is no bridge's.
            ConnectionLost: the connection broke.
        """
        held = []
        with lost_connections():
            channel = await self._connection.channel(publisher_confirms=False)
            for partition in sorted(set(partitions) - self._owned):
                name = self._name(partition)
                try:
                    await channel.declare_queue(name, exclusive=True)
                    self._owned.add(partition)
                except ChannelLockedResource:
                    held.append(partition)
                    channel = await self._connection.channel(publisher_confirms=False)
                except ChannelPreconditionFailed as error:
                    raise RoomError(
                        QUEUE + str(partition),
                        f"the queue {name} exists, but it is no bridge's ({error}). Delete it.",
                    ) from error
            await channel.close()
        return held

    async def keep(self, partitions: Iterable[int]) -> None:
        """Let others have all partitions but these.

        Raises:
            ConnectionLost: the connection broke.
        """
        freed = sorted(self._owned.difference(partitions))
        if freed:
            with lost_connections():
                channel = await self._connection.channel(publisher_confirms=False)
                for partition in freed:
                    await channel.queue_delete(self._name(partition))
                    self._owned.discard(partition)
                await channel.close()

    def _name(self, partition: int) -> str:
        return self._settings.topic(f"{QUEUE}{partition}")
