"""Whole batches handed to the fold: what it finds in them is what aiokafka reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import _DefaultRecordBatchBuilderPy
from hypothesis import given
from hypothesis import strategies as st

from ledger.projections.partition import Origin, Packed, Partition
from ledger.records import Block, _Blocks, packed
from ledger.store import MemoryStore

CODECS = (0, 1, 2, 3, 4)  # none, gzip, snappy, lz4, zstd


@dataclass(frozen=True)
class Sent:
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes | None]]
    time: int


SENT = st.builds(
    Sent,
    st.none() | st.binary(max_size=8),
    st.none() | st.binary(max_size=300),
    st.lists(st.tuples(st.text(max_size=3), st.none() | st.binary(max_size=5)), max_size=2),
    st.integers(0, 2**45),
)
BATCHES = st.lists(st.tuples(st.sampled_from(CODECS), st.lists(SENT, min_size=1, max_size=5)))


def batch_of(base: int, codec: int, records: list[Sent]) -> bytes:
    builder: Any = _DefaultRecordBatchBuilderPy(
        magic=2,
        compression_type=codec,
        is_transactional=0,
        producer_id=-1,
        producer_epoch=-1,
        base_sequence=-1,
        batch_size=1 << 20,
    )
    for place, sent in enumerate(records):
        builder.append(place, sent.time, sent.key, sent.value, sent.headers)
    # A broker writes the base offset into a batch; the check sum does not cover it.
    return base.to_bytes(8, "big") + bytes(builder.build())[8:]


def blocks_of(data: bytes) -> list[Block]:
    batches = _Blocks(data)
    found = []
    while batches.has_next():
        found.append(batches.next_batch())
    return found


def read(found: Packed) -> list[Any]:
    return [found.full(place) for place in range(len(found.records))]


@given(BATCHES, st.integers(0, 30))
def test_the_records_of_batches_are_found(
    batches: list[tuple[int, list[Sent]]], start: int
) -> None:
    data, expected, offset = b"", [], 7
    for codec, records in batches:
        data += batch_of(offset, codec, records)
        expected += [(offset + place, sent) for place, sent in enumerate(records)]
        offset += len(records)
    found = packed(blocks_of(data + b"\0" * 5), start)  # an answer may end in the middle of a batch
    seen = [
        (one.offset, Sent(one.key, one.value, one.headers, one.timestamp)) for one in read(found)
    ]
    assert seen == [(place, sent) for place, sent in expected if place >= start]


@given(st.sampled_from(CODECS), st.lists(SENT, min_size=1, max_size=5), st.data())
def test_a_damaged_batch_is_never_read(
    codec: int, records: list[Sent], data: st.DataObject
) -> None:
    batch = bytearray(batch_of(0, codec, records))
    batch[data.draw(st.integers(17, len(batch) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(CorruptRecordException):
        packed(blocks_of(bytes(batch)), 0)


def test_a_record_that_is_refused_is_had_in_full() -> None:
    sent = [Sent(b"k", b"bad", [("h", b"1")], 5), Sent(None, None, [("h", None)], 6)]
    partition = Partition(0, MemoryStore(), Origin(partitions=1))
    partition.apply("fills", packed(blocks_of(batch_of(3, 4, sent)), 3), 9)
    first, second = partition.freeze().rejected
    partition.settle()
    assert partition.watermark["fills"] == 9
    for rejected, expected in ((first, sent[0]), (second, sent[1])):
        record: Any = rejected.record
        assert (record.key, record.value, record.headers) == (
            expected.key,
            expected.value,
            expected.headers,
        )
    assert [rejected.record.offset for rejected in (first, second)] == [3, 4]
