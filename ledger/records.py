"""aiokafka's reading of record batches, made to bear header names that are not UTF-8.

Kafka does not check them, and aiokafka raises in the middle of a batch: one such record would stop
its partition for good. The batch is then read by aiokafka's slower reader in Python, which can be
told how to decode. Private API of aiokafka 0.14.0, as in `ledger.agents.chunked`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from aiokafka.record.default_records import _DefaultRecordBatchPy
from aiokafka.record.memory_records import _MemoryRecordsPy


class Records(_MemoryRecordsPy):
    """The batches in the answer to a fetch."""

    def next_batch(self) -> Any:
        """Return the next batch of records."""
        raw: Any = self._next_slice
        batch: Any = super().next_batch()
        return batch if batch is None or batch.is_control_batch else _Batch(batch, raw)


class _Batch:
    def __init__(self, batch: Any, raw: memoryview) -> None:
        self._batch = batch
        self._raw = raw

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    def __iter__(self) -> Iterator[Any]:
        try:
            return iter(list(self._batch))
        except UnicodeDecodeError:
            return iter(_Lenient(self._raw))


class _Lenient(_DefaultRecordBatchPy):
    """A batch whose header names have `\\xNN` for each byte that is not UTF-8."""

    def _maybe_uncompress(self) -> None:
        super()._maybe_uncompress()
        self._buffer: Any = _Buffer(self._buffer)


class _Buffer(bytearray):
    def __getitem__(self, place: Any) -> Any:
        found = super().__getitem__(place)
        return _Buffer(found) if isinstance(place, slice) else found

    def decode(self, encoding: str = "utf-8", errors: str = "") -> str:
        return super().decode(encoding, "backslashreplace")
