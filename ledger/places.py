"""Places on disk for several processes of one kind that share a state directory.

A process takes the first free place and keeps it locked until it ends, however it ends: the lock is
the operating system's. The next process finds the place free, with whatever state was left in it.
"""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import IO, Final

from ledger.errors import StateError

_MOST: Final = 1000


class Place:
    """A directory that is this process's alone."""

    def __init__(self, directory: Path, lock: IO[str]) -> None:
        self.directory = directory
        self._lock = lock

    def partition(self, number: int) -> Path:
        """Return the directory of one partition's state."""
        return self.directory / f"p{number}"

    def release(self) -> None:
        """Let another process take the place."""
        self._lock.close()


def take_place(parent: Path) -> Place:
    """Return the first directory `parent/0`, `parent/1`, … that no other process has taken.

    Raises:
        StateError: the directory cannot be written.
    """
    for number in range(_MOST):
        directory = parent / str(number)
        try:
            directory.mkdir(parents=True, exist_ok=True)
            lock = (directory / "lock").open("a")
        except OSError as error:
            raise StateError(f"The state directory {parent} cannot be used: {error}.") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            continue
        return Place(directory, lock)
    raise StateError(f"All {_MOST} places in {parent} are taken.")
