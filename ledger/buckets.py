"""The files of `ledger.objects` in a bucket of an object store.

A module of its own, because obstore takes memory: who keeps files in a directory does without.
"""

from __future__ import annotations

import contextlib
import io
import re
import tempfile
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import cached_property
from typing import IO, Final, TypeVar

import obstore
from obstore.exceptions import BaseError
from obstore.store import ObjectStore, from_url

from ledger.objects import Listed, NotThereError, StorageError

_PART_BYTES: Final = 16 << 20
"""Of an object put in parts: S3 takes 10,000 of them."""
_PARTS_AT_ONCE: Final = 4
_READ_BYTES: Final = 1 << 20
_RETRIES: Final = 4
_RETRY_S: Final = 20
_LONGEST_REASON: Final = 300

_T = TypeVar("_T")


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
