"""Where a bridge keeps its state, so that several bridges can share one state directory."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from typing import Final, Self

from ledger.errors import StateError
from ledger.settings import Settings

_MOST_BRIDGES: Final = 1000


class Slot:
    """The first numbered directory that no other bridge holds, for as long as this one lives.

    The lock is the operating system's: it goes with the process, however that ends.
    """

    def __init__(self, root: Path) -> None:
        """Take a slot.

        Raises:
            StateError: all are taken.
        """
        for number in range(_MOST_BRIDGES):
            directory = root / str(number)
            directory.mkdir(parents=True, exist_ok=True)
            handle = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(handle)
                continue
            except OSError:
                os.close(handle)
                raise
            self.number = number
            self.directory = directory
            self._handle = handle
            return
        raise StateError(f"All {_MOST_BRIDGES} places for a bridge's state in {root} are taken.")

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Take a slot in the state directory of the settings."""
        return cls(settings.state_dir / settings.topic("bridge"))

    def partition(self, number: int) -> Path:
        """Return the directory of one partition's state."""
        return self.directory / f"p{number}"

    def release(self) -> None:
        """Let another bridge have the slot."""
        with contextlib.suppress(OSError):
            os.close(self._handle)
