"""Publishing with confirms, many messages with one write.

aiormq publishes one message at a time: a lock, a future and a wake-up of the writer for each. Its
channel is told of many at once here, so that the bridge with all its work is faster than a bare
loop of that (`bench/rooms.py`); frames, confirms and returns stay the library's.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Final

import aiormq
from aiormq.abc import ChannelFrame, FrameType
from aiormq.exceptions import DeliveryError, PublishError
from pamqp import commands as spec
from pamqp.body import ContentBody
from pamqp.header import ContentHeader

from chat_bridge.errors import ConnectionLost, MessageRefused, MessageReturned, MessageTooLarge
from ledger.errors import LedgerError

WINDOW: Final = 512
"""How many messages may be unconfirmed at a time."""
_AT_ONCE: Final = 128
_PATIENCE_S: Final = 60.0
_TICK_S: Final = 5.0
_TOO_LARGE: Final = re.compile(r"message size \d+ is larger than (?:configured )?max size (\d+)")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Letter:
    """A message as it is published."""

    routing_key: str
    body: bytes
    properties: spec.Basic.Properties


class Publisher:
    """A channel in confirm mode that nothing else publishes on; after an error it is of no use.

    Attributes:
        published: how many messages were sent so far.
        confirmed: how many of them RabbitMQ has confirmed.
        returned: how many of them came back, for want of a queue.
        refused: how many of them RabbitMQ could not store.
    """

    def __init__(self, channel: aiormq.abc.AbstractChannel, exchange: str) -> None:
        assert isinstance(channel, aiormq.Channel)
        self._channel = channel
        self._exchange = exchange
        self._failures: list[BaseException] = []
        self._moved = asyncio.Event()
        self.published = 0
        self.confirmed = 0
        self.returned = 0
        self.refused = 0
        channel.closing.add_done_callback(self._note_closing)

    async def publish(self, letters: Sequence[Letter]) -> None:
        """Publish in this order; return when RabbitMQ has confirmed every one.

        While RabbitMQ takes nothing because of its memory or disk, this waits.

        Raises:
            MessageReturned: no queue is bound to a routing key; others after it may be taken.
            MessageRefused: RabbitMQ could not store a message; others after it may be taken.
            MessageTooLarge: one is larger than RabbitMQ takes; others may be taken.
            ConnectionLost: the connection broke; which messages were taken is not known.
        """
        left = iter(letters)
        while batch := list(islice(left, _AT_ONCE)):
            await self._until_unconfirmed(WINDOW - len(batch))
            await self._send(batch)
        await self._until_unconfirmed(0)

    async def _send(self, letters: list[Letter]) -> None:
        channel = self._channel
        frames: list[FrameType | ContentBody] = []
        for letter in letters:
            channel.delivery_tag += 1
            confirmation = channel.loop.create_future()
            confirmation.add_done_callback(partial(self._note, letter))
            channel.confirmations[channel.delivery_tag] = confirmation
            message_id = letter.properties.message_id
            assert message_id is not None
            channel.message_id_delivery_tag[message_id] = channel.delivery_tag
            frames += (
                spec.Basic.Publish(
                    exchange=self._exchange, routing_key=letter.routing_key, mandatory=True
                ),
                ContentHeader(properties=letter.properties, body_size=len(letter.body)),
                *_frames(letter.body, channel.max_content_size),
            )
        self.published += len(letters)
        written = channel.create_future()
        await channel.write_queue.put(
            ChannelFrame.marshall(
                frames=frames, channel_number=channel.number, drain_future=written
            )
        )
        try:
            await written
        except Exception as error:  # the library rejects it with whatever has closed the channel
            raise _why_closed(error) from error

    def _note_closing(self, closing: asyncio.Future[object]) -> None:
        self._failures.append(_why_closed(None if closing.cancelled() else closing.exception()))
        self._moved.set()

    def _note(self, letter: Letter, confirmation: asyncio.Future[object]) -> None:
        """Hear what became of a message."""
        message_id = letter.properties.message_id
        assert message_id is not None
        self._channel.message_id_delivery_tag.pop(message_id, None)
        error = confirmation.exception()
        if error is None:
            self.confirmed += 1
        elif isinstance(error, PublishError):
            self.returned += 1
            self._failures.append(MessageReturned(letter.routing_key, message_id))
        elif isinstance(error, DeliveryError):
            self.refused += 1
            self._failures.append(MessageRefused(letter.routing_key, message_id))
        else:
            self._failures.append(_why_closed(error))
        self._moved.set()

    async def _until_unconfirmed(self, most: int) -> None:
        """Wait until at most so many messages are unconfirmed, or one has failed."""
        began = time.monotonic()
        confirmed = self.confirmed
        blocked = False
        while not self._failures and self.published - self.confirmed > most:
            self._moved.clear()
            try:
                async with asyncio.timeout(_TICK_S):
                    await self._moved.wait()
            except TimeoutError:
                if await self.is_blocked():
                    began = time.monotonic()
                    if not blocked:
                        blocked = True
                        log.warning("RabbitMQ takes no messages: its memory or disk is short.")
                elif self.confirmed > confirmed:
                    began, confirmed = time.monotonic(), self.confirmed
                elif time.monotonic() - began > _PATIENCE_S:
                    raise ConnectionLost("RabbitMQ", "it confirms nothing") from None
        if self._failures:
            # That a room is gone is worth more to know than that others were lost after it.
            raise min(self._failures, key=lambda error: isinstance(error, ConnectionLost))
        if blocked:
            log.info("RabbitMQ takes messages again.")

    async def is_blocked(self) -> bool:
        """Return whether RabbitMQ has said that it takes no messages for now."""
        try:
            async with asyncio.timeout(0):
                await self._channel.connection.ready()
        except TimeoutError:
            return True
        return False


def _why_closed(error: BaseException | None) -> LedgerError:
    too_large = _TOO_LARGE.search(str(error))
    if too_large is not None:
        return MessageTooLarge(int(too_large[1]))
    return ConnectionLost("RabbitMQ", "the connection was closed")


def _frames(body: bytes, longest: int) -> list[ContentBody]:
    return [ContentBody(body[at : at + longest]) for at in range(0, len(body), longest)]
