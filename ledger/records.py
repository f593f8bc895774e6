"""aiokafka's reading of record batches, made to bear header names that are not UTF-8, and quick.

Kafka does not check them, and aiokafka raises in the middle of a batch: one such record would stop
its partition for good. The batch is then read by aiokafka's slower reader in Python, which can be
told how to decode.

A Python object for each record costs as much as folding it. So a worker is given whole batches
(`read_blocks`), which aiokafka has checked and decompressed, and the fold finds keys and values in
them; a record that is refused is read again, in full, by aiokafka.

Private API of aiokafka 0.14.0, as in `ledger.agents.chunked`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from operator import attrgetter
from typing import Any

from aiokafka.consumer import fetcher
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import _DefaultRecordBatchPy
from aiokafka.record.memory_records import _MemoryRecordsPy

from ledger import _fold
from ledger.projections.partition import Packed


def read_records() -> None:
    """Let this process's consumers yield records, whatever their headers are called."""
    fetcher.MemoryRecords = _Records


def read_blocks() -> None:
    """Let this process's consumers yield `Block`s instead of records."""
    fetcher.MemoryRecords = _Blocks
    fetcher.PartitionRecords = _PartitionBlocks


class _Records(_MemoryRecordsPy):
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


class _Blocks(_MemoryRecordsPy):
    """The batches in the answer to a fetch, each of which yields itself."""

    def next_batch(self) -> Any:
        """Return the next batch of records."""
        raw: Any = self._next_slice
        batch: Any = super().next_batch()
        if batch is None or not batch.is_control_batch:
            return batch and Block(batch, raw)
        if not batch.validate_crc():
            raise CorruptRecordException(f"The batch at offset {batch.base_offset} is damaged.")
        return batch


class Block(_Batch):
    """A batch of records, as one record; its offset is that of the last of them."""

    @property
    def offset(self) -> int:
        """The last offset of the batch."""
        return int(self._batch.next_offset) - 1

    def __iter__(self) -> Iterator[Any]:
        return iter([self])

    @cached_property
    def records(self) -> dict[int, Any]:
        """The records of the batch by their offset, one object each."""
        return {record.offset: record for record in super().__iter__()}

    def pack_into(self, packed: _fold.Records) -> None:
        """Add the records of the batch to others.

        Raises:
            CorruptRecordException: they are not in the form that Kafka writes, or damaged.
        """
        if self.magic < 2:  # no Kafka of these years writes such batches
            raise CorruptRecordException(f"The batch at offset {self.base_offset} is of old form.")
        payload: bytes | None = None
        if self.compression_type:
            if not self.validate_crc():
                raise CorruptRecordException(f"The batch at offset {self.base_offset} is damaged.")
            batch: Any = _DefaultRecordBatchPy(self._raw)
            batch._maybe_uncompress()
            payload = bytes(batch._buffer)
        try:
            packed.add(self._raw, payload)
        except ValueError as error:
            raise CorruptRecordException(
                f"The batch at offset {self.base_offset} cannot be read: {error}."
            ) from error


class _PartitionBlocks(fetcher.PartitionRecords):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._check_crcs = False  # that is done, much quicker, when blocks are packed

    def _consumer_record(self, tp: Any, record: Block) -> Block:
        return record


def packed(blocks: Sequence[Block], start: int, end: int | None = None) -> Packed:
    """Return the records of one partition's batches, from an offset to before another.

    Raises:
        UnreadableBatch: a batch is damaged, or not in the form that Kafka writes.
    """
    records = _fold.Records(start, end)
    for place, block in enumerate(blocks):
        try:
            block.pack_into(records)
        except CorruptRecordException as error:
            before = Packed(records, partial(_full, records, blocks[:place]))
            raise UnreadableBatch(int(block.base_offset), before, str(error)) from error
    return Packed(records, partial(_full, records, blocks))


def _full(records: _fold.Records, blocks: Sequence[Block], place: int) -> Any:
    offset = records.offset(place)
    block = blocks[bisect_left(blocks, offset, key=attrgetter("offset"))]
    return block.records[offset]


class UnreadableBatch(CorruptRecordException):
    """A batch is damaged, or not in the form that Kafka writes.

    Attributes:
        base_offset: its first offset.
        before: the records before it.
    """

    def __init__(self, base_offset: int, before: Packed, detail: str) -> None:
        super().__init__(detail)
        self.base_offset = base_offset
        self.before = before


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
