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
from ledger.answers import receive_in_place
from ledger.projections.partition import Packed

_RecordsOfPartition = fetcher.PartitionRecords  # aiokafka's own


def read_records() -> None:
    """Let this process's consumers yield records, whatever their headers are called."""
    fetcher.MemoryRecords = _Records
    fetcher.PartitionRecords = _RecordsOfPartition


def read_blocks() -> None:
    """Let this process's consumers yield `Block`s instead of records."""
    fetcher.MemoryRecords = _Blocks
    fetcher.PartitionRecords = _PartitionBlocks
    receive_in_place()


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
        """Return the next batch of records; nothing of one that is damaged is believed."""
        raw: Any = self._next_slice
        problem = _fold.batch_problem(raw)
        if problem is not None:
            self._cache_next()
            return _DamagedBlock(problem)
        batch: Any = super().next_batch()
        return batch if batch.is_control_batch else Block(batch, raw)


class Block:
    """A batch of records, as one record; its offset is that of the last of them."""

    is_control_batch = False

    def __init__(self, batch: Any, raw: memoryview) -> None:
        self._batch = batch
        self._raw = raw
        # What aiokafka asks for.
        self.producer_id: int | None = batch.producer_id
        self.base_offset: int = batch.base_offset
        self.is_transactional: bool = batch.is_transactional
        self.next_offset: int = batch.next_offset
        self.offset = self.next_offset - 1

    def __iter__(self) -> Iterator[Any]:
        return iter((self,))

    @cached_property
    def records(self) -> dict[int, Any]:
        """The records of the batch by their offset, one object each."""
        return {record.offset: record for record in _Batch(self._batch, self._raw)}

    def pack_into(self, packed: _fold.Records) -> None:
        """Add the records of the batch to others.

        Raises:
            CorruptRecordException: they are not in the form that Kafka writes.
        """
        payload: bytes | None = None
        try:
            if self._batch.compression_type:
                batch: Any = _DefaultRecordBatchPy(self._raw)
                batch._maybe_uncompress()
                payload = bytes(batch._buffer)
            packed.add(self._raw, payload)
        except Exception as error:  # decompressors raise what they like
            raise CorruptRecordException(str(error)) from error


class _DamagedBlock:
    """Stands for a batch of which nothing can be believed, also not where it begins or ends."""

    producer_id = None
    is_control_batch = False
    offset = 2**62  # whatever comes before it, aiokafka does not pass it over
    next_offset = offset + 1

    def __init__(self, problem: str) -> None:
        self._problem = problem

    def __iter__(self) -> Iterator[Any]:
        return iter([self])

    def pack_into(self, packed: _fold.Records) -> None:
        raise CorruptRecordException(self._problem)


class _PartitionBlocks(fetcher.PartitionRecords):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._check_crcs = False  # `_Blocks` does, and much quicker

    def _consumer_record(self, tp: Any, record: Block) -> Block:
        return record


def packed(blocks: Sequence[Block], start: int, end: int | None = None) -> Packed:
    """Return the records of one partition's batches, from an offset to before another.

    Raises:
        UnreadableBatch: a batch is damaged, or not in the form that Kafka writes.
    """
    records = _fold.Records(start, end)
    offset = start
    for place, block in enumerate(blocks):
        try:
            block.pack_into(records)
        except CorruptRecordException as error:
            before = Packed(records, partial(_full, records, blocks[:place]))
            raise UnreadableBatch(offset, before, str(error)) from error
        offset = block.offset + 1
    return Packed(records, partial(_full, records, blocks))


def _full(records: _fold.Records, blocks: Sequence[Block], place: int) -> Any:
    offset = records.offset(place)
    block = blocks[bisect_left(blocks, offset, key=attrgetter("offset"))]
    return block.records[offset]


class UnreadableBatch(CorruptRecordException):
    """A batch is damaged, or not in the form that Kafka writes.

    Attributes:
        offset: up to where records could be read.
        before: the records before that.
        detail: what is wrong with it.
    """

    def __init__(self, offset: int, before: Packed, detail: str) -> None:
        super().__init__(detail)
        self.offset = offset
        self.before = before
        self.detail = detail


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
