"""What can go wrong between Kafka and the rooms, beyond the ledger's own errors."""

from __future__ import annotations

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
