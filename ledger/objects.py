"""Files that are there complete or not at all: in a directory, or in a bucket of an object store.

A directory's files are put under their name only when they are safe from a power loss. A bucket's
are put in one request, or in parts that the store joins at the end; nobody sees a part.
"""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, Protocol

from ledger.errors import StateError

_ABANDONED_S: Final = 3600.0


class StorageError(StateError):
    """A directory or bucket, or a file in it, cannot be used; it says which and why."""


class NotThereError(StorageError):
    """A file does not exist, or no longer."""


@dataclass(frozen=True)
class Listed:
    """A file's name, and a text that is another one when the file has been replaced."""

    name: str
    version: str


class Objects(Protocol):
    """A flat set of named files. Every method raises StorageError where it cannot do its work."""

    def address(self, name: str) -> str:
        """Return the path or URL of a file, for people."""
        ...

    def names(self) -> list[Listed]:
        """Return the files that are there, in no order."""
        ...

    def writing(self, name: str) -> contextlib.AbstractContextManager[IO[bytes]]:
        """Return a file to write to. It appears under its name, replacing another, at the end.

        If the block ends with an error, nothing appears.
        """
        ...

    def reading(self, name: str) -> contextlib.AbstractContextManager[IO[bytes]]:
        """Return a file to read and seek in."""
        ...

    def delete(self, name: str) -> None:
        """Remove a file, if it is there."""
        ...

    def rename(self, name: str, new: str) -> None:
        """Give a file another name."""
        ...

    def delete_abandoned(self, start: str) -> None:
        """Remove what killed writers left of files whose name begins with `start`."""
        ...


def objects_at(place: Path | str) -> Objects:
    """Return the files at a directory's path or a bucket's URL; nothing is asked of it yet."""
    if isinstance(place, Path):
        return Directory(place)
    from ledger.buckets import Bucket

    return Bucket(place)


class Directory:
    """`Objects` in a local directory, which is made when it is first written to."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def address(self, name: str) -> str:
        """Return the path of a file."""
        return str(self._directory / name)

    def names(self) -> list[Listed]:
        """Return the files that are there, in no order."""
        found = []
        try:
            with os.scandir(self._directory) as entries:
                for entry in entries:
                    with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                        status = entry.stat()
                        version = f"{status.st_ino}-{status.st_mtime_ns}-{status.st_size}"
                        found.append(Listed(entry.name, version))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise self._trouble(error) from error
        return found

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[IO[bytes]]:
        """Return a file to write to; it has its name only when it is safe on the disk."""
        unfinished = self._directory / f".{name}.{uuid.uuid4().hex}"
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            try:
                with unfinished.open("xb") as file:
                    yield file
                    file.flush()
                    os.fsync(file.fileno())
                unfinished.replace(self._directory / name)
            finally:
                unfinished.unlink(missing_ok=True)
            keep_on_disk(self._directory)
        except OSError as error:
            raise self._trouble(error) from error

    @contextlib.contextmanager
    def reading(self, name: str) -> Iterator[IO[bytes]]:
        """Return a file to read and seek in."""
        try:
            file = (self._directory / name).open("rb")
        except FileNotFoundError as error:
            raise NotThereError(f"{self.address(name)} cannot be read: {error}.") from error
        except OSError as error:
            raise StorageError(f"{self.address(name)} cannot be read: {error}.") from error
        with file:
            yield file

    def delete(self, name: str) -> None:
        """Remove a file, if it is there."""
        try:
            (self._directory / name).unlink(missing_ok=True)
        except OSError as error:
            raise self._trouble(error) from error

    def rename(self, name: str, new: str) -> None:
        """Give a file another name."""
        try:
            (self._directory / name).rename(self._directory / new)
            keep_on_disk(self._directory)
        except OSError as error:
            raise self._trouble(error) from error

    def delete_abandoned(self, start: str) -> None:
        """Remove unfinished files that nobody has written to for an hour."""
        for unfinished in self._directory.glob(f".{start}*"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - unfinished.stat().st_mtime > _ABANDONED_S:
                    unfinished.unlink()

    def _trouble(self, error: OSError) -> StorageError:
        return StorageError(f"The directory {self._directory} cannot be used: {error}.")


def keep_on_disk(path: Path) -> None:
    """Wait until a file, or the names in a directory, are safe from a power loss."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
