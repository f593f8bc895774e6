"""A SHA-256 of a whole Parquet file within that file, so that any changed byte is found.

Parquet's own check sums leave out statistics and headers of pages. The digest is the 32 bytes
before the footer, where no reader of Parquet looks: a footer says where each part begins, and is
itself found from the end of the file.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from collections.abc import Iterator
from typing import IO, Any, Final

_DIGEST_BYTES: Final = 32
_TAIL_BYTES: Final = 8
"""The length of the footer, and the file's last four bytes."""
_PARQUET: Final = b"PAR1"
_READ_BYTES: Final = 1 << 20


@contextlib.contextmanager
def sealed_writer(file: IO[bytes], schema: Any) -> Iterator[Any]:
    """Return a Parquet writer of tables of a schema, whose file is sealed at the end."""
    import pyarrow.parquet as pq  # takes long; see `ledger.snapshots`

    sealing = _Sealing(file)
    with pq.ParquetWriter(sealing, schema, compression="zstd") as writer:
        yield writer
        sealing.hold()
    sealing.seal()


class _Sealing(io.RawIOBase):
    """Passes on what is written, and keeps back the end until the digest can stand before it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self._position = 0
        self._held = bytearray()
        self._holds = False

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def write(self, data: memoryview) -> int:  # type: ignore[override]  # any buffer, there
        if self._holds:
            self._held += data
        else:
            self._pass_on(data)
        self._position += len(data)
        return len(data)

    def hold(self) -> None:
        """Keep back what comes now, the footer being a part of it."""
        self._holds = True

    def seal(self) -> None:
        length = _footer_length(self._held[-_TAIL_BYTES:])
        self._pass_on(self._held[:-length])
        footer = self._held[-length:]
        self._digest.update(footer)
        self._file.write(self._digest.digest())
        self._file.write(footer)

    def _pass_on(self, data: bytearray | memoryview) -> None:
        self._digest.update(data)
        self._file.write(data)


def require_sealed(file: IO[bytes]) -> None:
    """Check a file against the digest in it.

    Raises:
        ValueError: it is not, to the byte, what was written.
    """
    size = file.seek(0, os.SEEK_END)
    if size < _TAIL_BYTES:
        raise ValueError("it is cut off")
    file.seek(size - _TAIL_BYTES)
    footer = _footer_length(file.read(_TAIL_BYTES))
    body = size - footer - _DIGEST_BYTES
    digest, said = hashlib.sha256(), None
    if body >= 0:
        file.seek(0)
        _take(digest, file, body)
        said = file.read(_DIGEST_BYTES)
        _take(digest, file, footer)
    if digest.digest() != said:
        raise ValueError("its bytes are not those that were written")


def _take(digest: hashlib._Hash, file: IO[bytes], length: int) -> None:
    while length:
        data = file.read(min(length, _READ_BYTES))
        if not data:
            raise ValueError("it is cut off")
        digest.update(data)
        length -= len(data)


def _footer_length(tail: bytes | bytearray) -> int:
    """Return how long a footer is, the tail included, that ends with this tail."""
    if bytes(tail[-len(_PARQUET) :]) != _PARQUET:
        raise ValueError("it does not end as a Parquet file does")
    return int.from_bytes(tail[:4], "little") + _TAIL_BYTES
