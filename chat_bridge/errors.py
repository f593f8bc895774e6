"""What can go wrong between Kafka and the rooms, beyond the ledger's own errors."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from ledger.errors import LedgerError


class RoomError(LedgerError):
    """A room did not take a message or is not what the bridge needs; it has to stop."""

    def __init__(self, room: str, detail: str) -> None:
        self.room = room
        super().__init__(f"{room}: {detail}")


class ConnectionLost(LedgerError):  # noqa: N818 - what happened, not what is wrong
    """A server went away in the middle; everything unsettled is read again after a new start."""

    def __init__(self, server: str, detail: str) -> None:
        self.server = server
        super().__init__(f"{server} was lost ({detail}).")


class RoomBroken(LedgerError):  # noqa: N818 - what it is
    """RabbitMQ has an entry of a room's queue but not the queue; everything else can go on."""

    def __init__(self, room: str, queue: str) -> None:
        self.room = room
        super().__init__(
            f"{room}: RabbitMQ has lost the queue {queue} in a crash, and cannot make it anew. Its "
            "messages wait until it is mended (docs/rooms.md says how)."
        )


class MessageReturned(LedgerError):  # noqa: N818 - what happened, not what is wrong
    """RabbitMQ found no queue for a message: its room is gone, and has to be made anew."""

    def __init__(self, room: str, message_id: str) -> None:
        self.room = room
        super().__init__(f"{room}: its queue is gone (RabbitMQ returned {message_id}).")


class MessageRefused(LedgerError):  # noqa: N818 - what happened, not what is wrong
    """RabbitMQ could not store a message; some after it may have been stored."""

    def __init__(self, room: str, message_id: str) -> None:
        self.room = room
        super().__init__(f"{room}: RabbitMQ refused {message_id} (nack); see its log for why.")


class MessageTooLarge(LedgerError):  # noqa: N818 - what happened, not what is wrong
    """RabbitMQ takes no message of this size, and has closed the channel; it goes elsewhere."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        super().__init__(f"RabbitMQ takes no message of more than {limit_bytes} bytes.")


@contextmanager
def stray_cancellation(server: str) -> Iterator[None]:
    """Raise `ConnectionLost` for a cancellation that nobody asked of this task.

    Both clients cancel what waits on a dying connection, and so cancel whoever awaits it; let
    through, that would end the process as if it had been told to stop.
    """
    try:
        yield
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise ConnectionLost(server, "the connection was closed") from None
