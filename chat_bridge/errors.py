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
