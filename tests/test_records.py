"""Whole batches handed to the fold: what it finds in them is what aiokafka reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from aiokafka.record.default_records import _DefaultRecordBatchBuilderPy
from aiokafka.structs import TopicPartition
from hypothesis import given
from hypothesis import strategies as st

from ledger.projections.partition import Origin, Packed, Partition
from ledger.records import Block, UnreadableBatch, _Blocks, _PartitionBlocks, packed
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
BATCH = st.tuples(st.sampled_from(CODECS), st.lists(SENT, min_size=1, max_size=5))


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


def blocks_of(data: bytes, start: int) -> list[Block]:
    """Return what aiokafka makes of the answer to a fetch from an offset."""
    where = TopicPartition("t", 0)
    committed = 1
    return list(_PartitionBlocks(where, _Blocks(data), None, start, None, None, True, committed))


def read(found: Packed) -> list[Any]:
    return [found.full(place) for place in range(len(found.records))]


@given(st.lists(BATCH), st.integers(0, 30))
def test_the_records_of_batches_are_found(
    batches: list[tuple[int, list[Sent]]], start: int
) -> None:
    data, expected, offset = b"", [], 7
    start = min(start, 6 + len(batches[0][1])) if batches else start
    for codec, records in batches:
        data += batch_of(offset, codec, records)
        expected += [(offset + place, sent) for place, sent in enumerate(records)]
        offset += len(records)
    found = packed(
        blocks_of(data + b"\0" * 5, start), start
    )  # an answer may end in the middle of a batch
    seen = [
        (one.offset, Sent(one.key, one.value, one.headers, one.timestamp)) for one in read(found)
    ]
    assert seen == [(place, sent) for place, sent in expected if place >= start]


@given(st.lists(BATCH, min_size=1), st.data())
def test_of_a_damaged_batch_nothing_is_read_and_nothing_passed_over(
    batches: list[tuple[int, list[Sent]]], data: st.DataObject
) -> None:
    """Found by review: aiokafka passes over a batch that seems to end before the fetch."""
    place = data.draw(st.integers(0, len(batches) - 1), label="the damaged batch")
    log, offset, first_damaged = b"", 7, 0
    for number, (codec, records) in enumerate(batches):
        batch = bytearray(batch_of(offset, codec, records))
        if number == place:
            first_damaged = offset
            batch[data.draw(st.integers(16, len(batch) - 1))] ^= data.draw(st.integers(1, 255))
        log += bytes(batch)
        offset += len(records)
    # A broker's answer begins with the batch that has the offset asked for.
    start = data.draw(st.integers(7, 6 + len(batches[0][1])), label="start")
    with pytest.raises(UnreadableBatch) as raised:
        packed(blocks_of(log, start), start)
    assert raised.value.offset == max(start, first_damaged)
    before = [one.offset for one in read(raised.value.before)]
    assert before == list(range(start, first_damaged))


def test_a_record_that_is_refused_is_had_in_full() -> None:
    sent = [Sent(b"k", b"bad", [("h", b"1")], 5), Sent(None, None, [("h", None)], 6)]
    partition = Partition(0, MemoryStore(), Origin(partitions=1))
    partition.apply("fills", packed(blocks_of(batch_of(3, 4, sent), 3), 3), 9)
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
