"""Files that are there complete or not at all: in a directory, or in a bucket of an object store.

A directory's files are put under their name only when they are safe from a power loss. A bucket's
are put in one request, or in parts that the store joins at the end; nobody sees a part.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import IO, Final, Protocol, TypeVar

import obstore
from obstore.exceptions import BaseError
from obstore.store import ObjectStore, from_url

from ledger.errors import StateError

_ABANDONED_S: Final = 3600.0
_PART_BYTES: Final = 16 << 20
"""Of an object put in parts: S3 takes 10,000 of them."""
_PARTS_AT_ONCE: Final = 4
_READ_BYTES: Final = 1 << 20
_RETRIES: Final = 4
_RETRY_S: Final = 20
_LONGEST_REASON: Final = 300

_T = TypeVar("_T")


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
    return Directory(place) if isinstance(place, Path) else Bucket(place)


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


class Bucket:
    """`Objects` below a URL of an object store: `s3://`, `gs://` or `az://`.

    Who we are, and where the store is, comes from the environment variables that the store's own
    tools use (`AWS_…`, `GOOGLE_…`, `AZURE_…`). What a killed writer leaves are parts of an upload
    that nobody sees; a rule of the bucket removes them (S3: `AbortIncompleteMultipartUpload`).
    """

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")

    @cached_property
    def _store(self) -> ObjectStore:
        return from_url(
            self._url,
            retry_config={"max_retries": _RETRIES, "retry_timeout": timedelta(seconds=_RETRY_S)},
        )

    def address(self, name: str) -> str:
        """Return the URL of a file."""
        return f"{self._url}/{name}"

    def names(self) -> list[Listed]:
        """Return the files that are there, in no order."""
        listing = self._ask(self._url, "listed", lambda: obstore.list_with_delimiter(self._store))
        return [
            Listed(found["path"], found["e_tag"] or f"{found['last_modified']}-{found['size']}")
            for found in listing["objects"]
        ]

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[IO[bytes]]:
        """Return a nameless local file to write to, which is then put into the bucket."""
        try:
            with tempfile.TemporaryFile() as file:
                yield file
                file.seek(0)
                self._ask(self.address(name), "written", lambda: self._put(name, file))
        except OSError as error:
            raise StorageError(
                f"{self.address(name)} cannot be made in {tempfile.gettempdir()}: {error}. "
                "Free some space there, or name another directory in TMPDIR."
            ) from error

    def _put(self, name: str, file: IO[bytes]) -> None:
        obstore.put(self._store, name, file, chunk_size=_PART_BYTES, max_concurrency=_PARTS_AT_ONCE)

    @contextlib.contextmanager
    def reading(self, name: str) -> Iterator[IO[bytes]]:
        """Return a file whose parts are fetched when they are read."""
        place = self.address(name)
        found = self._ask(place, "read", lambda: obstore.head(self._store, name))

        def fetch(start: int, length: int) -> memoryview:
            return self._ask(
                place,
                "read",
                lambda: memoryview(
                    obstore.get_range(self._store, name, start=start, length=length)
                ),
            )

        with io.BufferedReader(_Fetched(fetch, found["size"]), _READ_BYTES) as file:
            yield file

    def delete(self, name: str) -> None:
        """Remove a file, if it is there."""
        with contextlib.suppress(NotThereError):
            self._ask(self.address(name), "removed", lambda: obstore.delete(self._store, name))

    def rename(self, name: str, new: str) -> None:
        """Give a file another name."""
        self._ask(self.address(name), "renamed", lambda: obstore.rename(self._store, name, new))

    def delete_abandoned(self, start: str) -> None:
        """Do nothing: see the class."""

    def _ask(self, what: str, done: str, question: Callable[[], _T]) -> _T:
        try:
            return question()
        except FileNotFoundError as error:
            raise NotThereError(f"{what} cannot be {done}: it is not there.") from error
        except (BaseError, OSError, ValueError) as error:
            raise StorageError(
                f"{what} cannot be {done}: {_reason(error)}. Check the bucket, and the "
                "credentials, region and endpoint in the environment."
            ) from error


class _Fetched(io.RawIOBase):
    """An object as a file: its bytes are fetched when they are read."""

    def __init__(self, fetch: Callable[[int, int], memoryview], size: int) -> None:
        self._fetch = fetch
        self._size = size
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if origin + offset < 0:
            raise ValueError("a position before the beginning")
        self._position = origin + offset
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # any buffer, there
        wanted = min(len(buffer), self._size - self._position)
        if wanted <= 0:
            return 0
        found = self._fetch(self._position, wanted)
        buffer[: len(found)] = found
        self._position += len(found)
        return len(found)


def _reason(error: Exception) -> str:
    """Return what an object store said, as a part of a sentence."""
    said = str(error).partition("\n\nDebug source")[0]
    plain = " ".join(re.sub(r"<[^>]*>", " ", said).split())
    return plain[:_LONGEST_REASON].rstrip(". ")


def keep_on_disk(path: Path) -> None:
    """Wait until a file, or the names in a directory, are safe from a power loss."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
