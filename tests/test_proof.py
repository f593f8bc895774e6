"""`replay verify`: snapshots proven from genesis; tampering and loss found and located."""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from confluent_kafka import TopicPartition
from hypothesis import given
from hypothesis import strategies as st

from ledger import digests
from ledger.errors import MissingRecords, UnreadableRecords
from ledger.events import INPUT_TOPICS
from ledger.kafka import Batch, KafkaRecord, Slot
from ledger.projections.entries import META_KEY
from ledger.projections.partition import APPLIED, Header, Origin, Partition, Watermark
from ledger.rebuild import Rebuilder, Stores
from ledger.settings import Settings
from ledger.snapshots import SnapshotFile, Snapshots
from ledger.store import MemoryStore
from replay import proof
from replay.findings import Finding, PartitionProof, Proof
from replay.proof import Read, cost, prove, prove_partition
from replay.state import temporary_states
from tests.broker import OwnBroker, own_broker
from tests.strategies import Placed, edits, placed_logs
from tests.support import cluster_of, eventually, raw_producer

ORIGIN = Origin("cluster", {"orders": "o", "fills": "f", "transfers": "t"}, 1)
NOWHERE = dict.fromkeys(INPUT_TOPICS, 0)

# --- logs in memory -------------------------------------------------------------------------------


@dataclass
class Log:
    """The three topics of the only partition, which a test may change after snapshots were made."""

    records: dict[str, list[KafkaRecord]] = field(
        default_factory=lambda: {topic: [] for topic in INPUT_TOPICS}
    )
    earliest: Watermark = field(default_factory=lambda: dict(NOWHERE))
    ends: Watermark = field(default_factory=lambda: dict(NOWHERE))
    damaged: dict[str, int] = field(default_factory=dict)

    def add(self, topic: str, value: bytes, key: bytes = b"alice", *, gap: int = 0) -> int:
        offset = self.ends[topic] + gap
        self.records[topic].append(KafkaRecord(offset, key, value))
        self.ends[topic] = offset + 1
        return offset

    def change(self, topic: str, offset: int, value: bytes) -> None:
        self.records[topic] = [
            KafkaRecord(offset, r.key, value) if r.offset == offset else r
            for r in self.records[topic]
        ]

    def remove(self, topic: str, offset: int) -> None:
        self.records[topic] = [r for r in self.records[topic] if r.offset != offset]

    def reader(self, chunk: int = 3) -> Read:
        def read(spans: Mapping[Slot, tuple[int, int]]) -> Iterator[Batch]:
            for (topic, partition), (start, end) in spans.items():
                if start == end:
                    continue
                assert self.earliest[topic] <= start <= end <= self.ends[topic]
                damaged = self.damaged.get(topic, end)
                wanted = [r for r in self.records[topic] if start <= r.offset < min(end, damaged)]
                for place in range(0, len(wanted), chunk):
                    piece = wanted[place : place + chunk]
                    yield Batch(topic, partition, piece, piece[-1].offset + 1)
                yield Batch(topic, partition, [], max(start, min(end, damaged)))
                if damaged < end:
                    raise UnreadableRecords(topic, partition, damaged, "it fails its check sum")

        return read

    def fold(self, watermark: Watermark) -> tuple[Partition, MemoryStore, dict[str, set[int]]]:
        """Return the state at a watermark, and the offsets of the records that were applied."""
        applied: dict[str, set[int]] = {topic: set() for topic in INPUT_TOPICS}

        def observe(topic: str, record: Any, event: Any, verdict: str) -> None:
            if verdict == APPLIED:
                applied[topic].add(record.offset)

        store = MemoryStore()
        partition = Partition(0, store, ORIGIN)
        for topic, offset in watermark.items():
            before = [r for r in self.records[topic] if r.offset < offset]
            partition.apply(topic, before, offset, observe)
        partition.freeze()
        partition.settle()
        return partition, store, applied

    def prove(
        self, snapshots: Snapshots, chunk: int = 3, stores: Stores | None = None
    ) -> PartitionProof:
        return prove_partition(
            self.reader(chunk),
            snapshots,
            snapshots.of_partition(0),
            0,
            ORIGIN,
            self.earliest,
            self.ends,
            stores,
        )


def at(orders: int = 0, fills: int = 0, transfers: int = 0) -> Watermark:
    return {"orders": orders, "fills": fills, "transfers": transfers}


def keep(snapshots: Snapshots, log: Log, *watermarks: Watermark) -> list[SnapshotFile]:
    kept = []
    for watermark in watermarks:
        partition, store, _ = log.fold(watermark)
        kept.append(snapshots.write(partition.header(), store.scan()))
    return kept


def forge(
    snapshots: Snapshots,
    file: SnapshotFile,
    entries: Callable[[dict[bytes, bytes]], object] = lambda entries: None,
    header: Callable[[Header], Header] = lambda header: header,
    origin: Origin = ORIGIN,
) -> None:
    """Write a snapshot anew with other entries or another header, so that it adds up."""
    found, store = snapshots.read(file, origin)
    changed = {key: value for key, value in store.scan() if key != META_KEY}
    entries(changed)
    total = digests.total_of(changed.items())
    Path(file.path).unlink()
    forged = header(msgspec.structs.replace(found, total=f"{total:x}"))
    assert snapshots.write(forged, sorted(changed.items())) == file


def event(kind: str, number: int, **fields: object) -> bytes:
    common = {
        "type": kind,
        "version": 1,
        "event_id": f"e{number}",
        "account": "alice",
        "occurred_at": "2024-01-01T00:00:00Z",
    }
    return json.dumps({**common, **fields}).encode()


def deposit(number: int, amount: str = "1") -> bytes:
    return event("deposited", number, transfer_id=f"x{number}", asset="USD", amount=amount)


def order(number: int) -> bytes:
    return event(
        "order_placed",
        number,
        order_id=f"o{number}",
        instrument="BTC-USD",
        side="buy",
        order_type="limit",
        quantity="5",
        limit_price="2",
    )


def fill(number: int, order_number: int) -> bytes:
    return event(
        "order_filled",
        number,
        fill_id=f"f{number}",
        trade_id=f"t{number}",
        order_id=f"o{order_number}",
        instrument="BTC-USD",
        side="buy",
        price="2",
        quantity="0.1",
        fee="0",
        fee_asset="USD",
        liquidity="maker",
    )


def some_log() -> Log:
    """Ten orders, thirty fills of the first of them, and twenty deposits."""
    log = Log()
    for number in range(10):
        log.add("orders", order(number))
    for number in range(30):
        log.add("fills", fill(number, 0))
    for number in range(20):
        log.add("transfers", deposit(number))
    return log


@pytest.fixture
def snapshots(tmp_path: Path) -> Snapshots:
    return Snapshots(tmp_path / "snapshots", "")


def failures(found: PartitionProof) -> list[Finding]:
    return [finding for finding in found.findings if not finding.is_note]


def only(found: PartitionProof) -> Finding:
    """Return the only finding, which is a sentence."""
    (finding,) = found.findings
    assert finding.sentence.endswith(".")
    assert "\n" not in finding.sentence
    json.dumps(finding.as_json())
    return finding


# --- what holds for any log -----------------------------------------------------------------------


def log_of(placed: Iterable[Placed]) -> Log:
    log = Log()
    for record in placed:
        log.records[record.topic].append(KafkaRecord(record.offset, record.key, record.value))
        log.ends[record.topic] = record.offset + 1
    return log


def watermarks_within(ends: Watermark) -> st.SearchStrategy[Watermark]:
    return st.fixed_dictionaries({topic: st.integers(0, end) for topic, end in ends.items()})


@given(st.data())
def test_every_snapshot_of_an_unchanged_log_is_proven(data: st.DataObject) -> None:
    log = log_of(data.draw(placed_logs(partitions=1)))
    marks = data.draw(st.lists(watermarks_within(log.ends), max_size=5))
    with tempfile.TemporaryDirectory() as place:
        snapshots = Snapshots(Path(place), "")
        kept = keep(snapshots, log, *marks)
        found = log.prove(snapshots, data.draw(st.sampled_from((1, 2, 100))))
    assert found.findings == []
    assert found.unproven == []
    assert found.base == "genesis"
    assert {one.name for one in found.proven} == {file.name for file in kept}
    for one in found.proven:
        assert one.state_digest == log.fold(one.watermark)[0].state_digest()


@given(st.data())
def test_changed_and_removed_records_are_found_where_they_are(data: st.DataObject) -> None:
    log = log_of(data.draw(placed_logs(partitions=1, max_size=16).filter(bool)))
    original = replace(log, records=dict(log.records))
    marks = data.draw(st.lists(watermarks_within(log.ends), min_size=1, max_size=4))
    everything = [(topic, r) for topic in INPUT_TOPICS for r in log.records[topic]]
    chosen = st.sampled_from(everything)
    removed: Touched = {topic: set() for topic in INPUT_TOPICS}
    changed: Touched = {topic: set() for topic in INPUT_TOPICS}
    ruined: Touched = {topic: set() for topic in INPUT_TOPICS}
    with tempfile.TemporaryDirectory() as place:
        snapshots = Snapshots(Path(place), "")
        files = {file.name: file for file in keep(snapshots, log, *marks)}
        for topic, record in data.draw(st.lists(chosen, max_size=3, unique_by=id)):
            offset, how = record.offset, data.draw(st.sampled_from(("remove", "ruin", "edit", "x")))
            value = b"ruined"
            if how == "edit":
                value = data.draw(edits())(record.value or b"{}")
            elif how == "x":
                value = data.draw(chosen)[1].value or b"null"
            if how == "remove":
                log.remove(topic, offset)
                removed[topic].add(offset)
            elif value != record.value:
                log.change(topic, offset, value)
                changed[topic].add(offset)
            if how in ("remove", "ruin"):
                ruined[topic].add(offset)
        found = log.prove(snapshots)

    touched = {topic: removed[topic] | changed[topic] for topic in INPUT_TOPICS}
    watermarks = [file.watermark for file in files.values()]
    assert {one.name for one in found.proven} == {
        file.name
        for file in files.values()
        if not any(offset < file.watermark[t] for t in INPUT_TOPICS for offset in touched[t])
    }
    assert {*found.unproven, *(one.name for one in found.proven)} == files.keys()
    assert sorted((f.kind, f.topic, f.first_offset, f.last_offset) for f in found.findings) == [
        ("log_differs", topic, start, end - 1)
        for topic in sorted(INPUT_TOPICS)
        for start, end in stretches(watermark[topic] for watermark in watermarks)
        if any(start <= offset < end for offset in touched[topic])
    ]
    for finding in found.findings:
        assert finding.topic is not None
        assert finding.snapshot is not None
        named = {one.offset: one.record for one in finding.disagreements}
        assert len(named) == len(finding.disagreements)
        # No record is named that was not touched...
        for named_offset, became in named.items():
            assert named_offset in (removed if became == "removed" else changed)[finding.topic]
        # ... and the only one is, if it was applied and is not an event any more. (Of several, one
        # may take the identity of another one.)
        _, _, applied = original.fold(files[finding.snapshot].watermark)
        if sum(map(len, touched.values())) == 1 and ruined[finding.topic] & applied[finding.topic]:
            assert named


Touched = dict[str, set[int]]


def stretches(offsets: Iterable[int]) -> list[tuple[int, int]]:
    """Return what lies between the offsets, and before the first."""
    limits = sorted({0, *offsets})
    return list(itertools.pairwise(limits))


# --- what is said ---------------------------------------------------------------------------------


def test_a_changed_record_is_named_with_what_it_was_and_what_it_is(snapshots: Snapshots) -> None:
    log = some_log()
    marks = [at(transfers=offset) for offset in (5, 10, 15, 20)]
    _, second, third, last = keep(snapshots, log, *marks)
    log.change("transfers", 7, deposit(7, "100"))
    found = log.prove(snapshots)
    finding = only(found)
    assert finding.sentence == (
        f"transfers:0: offsets 5 to 9 do not hold all the records that snapshot {second.path} was "
        "made of: offset 7 was changed (deposited, account alice, transfer_id x7); 2 later "
        "snapshots cannot be proven either."
    )
    assert finding.as_json() == {
        "kind": "log_differs",
        "partition": 0,
        "snapshot": second.name,
        "topic": "transfers",
        "first_offset": 5,
        "last_offset": 9,
        "sentence": finding.sentence,
        "disagreements": [
            {
                "kind": "deposited",
                "account": "alice",
                "transfer_id": "x7",
                "offset": 7,
                "record": "changed",
                "snapshot": {
                    "offset": 7,
                    "occurred_at": "2024-01-01T00:00:00Z",
                    "type": "deposited",
                    "asset": "USD",
                    "amount": "1",
                },
                "topics": deposit(7, "100").decode(),
            }
        ],
        "more": 0,
    }
    assert [one.watermark["transfers"] for one in found.proven] == [5]
    assert found.unproven == [second.name, third.name, last.name]


def test_a_removed_record_is_named_and_its_hole_is_no_proof_by_itself(
    snapshots: Snapshots,
) -> None:
    log = some_log()
    log.add("fills", fill(30, 0), gap=1)
    keep(snapshots, log, at(10, 20), at(10, 32))
    log.remove("fills", 22)
    finding = only(log.prove(snapshots))
    assert "offset 22 is gone (order_filled, account alice, order_id o0, fill_id f22)" in (
        finding.sentence
    )
    assert "no record is at offsets 22, 30 (a transaction's marker makes such a hole, too)" in (
        finding.sentence
    )
    assert [one.record for one in finding.disagreements] == ["removed"]


def test_a_record_that_moves_facts_between_entries_is_the_only_one_named(
    snapshots: Snapshots,
) -> None:
    """An order holds its first 16 fills itself: without the first, the 17th moves there."""
    log = some_log()
    keep(snapshots, log, log.ends)
    log.remove("fills", 0)
    finding = only(log.prove(snapshots))
    assert [(one.offset, one.ids) for one in finding.disagreements] == [
        (0, {"order_id": "o0", "fill_id": "f0"})
    ]


def test_a_change_that_no_fact_shows_is_found_between_two_snapshots(snapshots: Snapshots) -> None:
    log = some_log()
    keep(snapshots, log, at(transfers=5), at(transfers=10))
    log.change("transfers", 7, deposit(7).replace(b"e7", b"e8"))
    finding = only(log.prove(snapshots))
    assert (finding.kind, finding.first_offset, finding.last_offset) == ("log_differs", 5, 9)
    assert "no fact tells which" in finding.sentence


def test_a_change_that_no_fact_shows_is_exact_where_a_snapshot_ends(snapshots: Snapshots) -> None:
    log = some_log()
    keep(snapshots, log, at(transfers=5), at(transfers=8))
    log.change("transfers", 7, deposit(7).replace(b"e7", b"e8"))
    finding = only(log.prove(snapshots))
    assert finding.sentence.endswith("was made of: offset 7 was changed.")
    (one,) = finding.disagreements
    assert (one.kind, one.offset, one.record) == ("record", 7, "changed")


def test_an_added_record_is_named(snapshots: Snapshots) -> None:
    log = Log()
    log.add("transfers", deposit(0))
    log.add("transfers", b"invalid")
    log.add("transfers", deposit(2))
    keep(snapshots, log, log.ends)
    log.change("transfers", 1, deposit(1))
    (one,) = only(log.prove(snapshots)).disagreements
    assert (one.offset, one.record, one.snapshot) == (1, "changed", None)
    assert one.topics == deposit(1).decode()


def test_each_changed_stretch_is_found_and_those_between_are_not(snapshots: Snapshots) -> None:
    log = some_log()
    keep(snapshots, log, *(at(transfers=offset) for offset in (5, 10, 15, 20)))
    log.change("transfers", 3, b"x")
    log.change("transfers", 17, b"x")
    found = log.prove(snapshots)
    assert [(f.first_offset, f.last_offset) for f in found.findings] == [(0, 4), (15, 19)]
    assert [[one.offset for one in f.disagreements] for f in found.findings] == [[3], [17]]
    assert found.proven == []


def test_a_topic_that_ends_too_early_names_the_facts_that_are_lost(snapshots: Snapshots) -> None:
    log = some_log()
    first, _, last = keep(snapshots, log, at(10, 20, 20), at(10, 24, 20), log.ends)
    log.records["fills"] = log.records["fills"][:22]
    log.ends["fills"] = 22
    found = log.prove(snapshots)
    assert [one.name for one in found.proven] == [first.name]
    finding = only(found)
    assert (finding.kind, finding.topic, finding.first_offset, finding.last_offset) == (
        "log_truncated",
        "fills",
        22,
        29,
    )
    assert finding.snapshot == last.name
    assert "the topic ends at offset 22" in finding.sentence
    assert f"8 facts of snapshot {last.path}, beginning at offset 22," in finding.sentence
    assert [one.offset for one in finding.disagreements] == [*range(22, 30)]


def test_beside_a_topic_that_ends_too_early_others_are_still_compared(
    snapshots: Snapshots,
) -> None:
    log = some_log()
    keep(snapshots, log, log.ends)
    log.ends["fills"] = 22
    log.records["fills"] = log.records["fills"][:22]
    log.change("transfers", 4, b"x")
    found = log.prove(snapshots)
    assert [(f.kind, f.topic) for f in found.findings] == [
        ("log_truncated", "fills"),
        ("log_differs", "transfers"),
    ]
    assert [one.offset for one in found.findings[1].disagreements] == [4]


def test_records_that_cannot_be_read_are_named_and_those_before_are_proven(
    snapshots: Snapshots,
) -> None:
    log = some_log()
    first, _ = keep(snapshots, log, at(10, 20, 20), log.ends)
    log.damaged["fills"] = 25
    found = log.prove(snapshots)
    assert [one.name for one in found.proven] == [first.name]
    finding = only(found)
    assert (finding.kind, finding.topic, finding.first_offset) == ("log_unreadable", "fills", 25)
    assert "offset 25 on cannot be read (it fails its check sum)" in finding.sentence
    assert len(finding.disagreements) == 5


def test_an_offset_that_comes_twice_is_unreadable(snapshots: Snapshots) -> None:
    """A batch's check sum does not cover its first offset."""
    log = some_log()
    first, _ = keep(snapshots, log, at(transfers=4), at(transfers=20))
    log.records["transfers"] = [
        KafkaRecord(5, r.key, r.value) if r.offset == 4 else r for r in log.records["transfers"]
    ]
    for chunk in (1, 3, 100):
        found = log.prove(snapshots, chunk)
        assert [one.name for one in found.proven] == [first.name]
        finding = only(found)
        assert (finding.kind, finding.first_offset) == ("log_unreadable", 6)
        assert "offset 5 on cannot be read (that offset comes twice)" in finding.sentence


def test_a_wrong_snapshot_of_an_unchanged_log_is_named_with_what_differs(
    snapshots: Snapshots,
) -> None:
    log = some_log()
    first, second, third = keep(snapshots, log, at(10, 20, 5), at(10, 20, 10), log.ends)
    forge(snapshots, second, lambda entries: entries.pop(b"alice\0tx7"))
    found = log.prove(snapshots)
    assert [one.name for one in found.proven] == [first.name, third.name]
    assert found.unproven == [second.name]
    finding = only(found)
    assert (finding.kind, finding.snapshot) == ("state_differs", second.name)
    assert "differing: transfer, account alice, transfer_id x7" in finding.sentence
    (one,) = finding.disagreements
    assert (one.snapshot, one.topics) == (
        None,
        [7, "2024-01-01T00:00:00Z", "deposited", "USD", "1", None, None],
    )


def test_a_wrong_header_is_named(snapshots: Snapshots) -> None:
    log = some_log()
    _, second, _ = keep(snapshots, log, at(transfers=5), at(transfers=10), at(transfers=20))

    def counted_otherwise(header: Header) -> Header:
        header.counts["transfers"]["applied"] += 1
        return header

    forge(snapshots, second, header=counted_otherwise)
    finding = only(log.prove(snapshots))
    assert finding.kind == "state_differs"
    assert [(one.kind, one.ids) for one in finding.disagreements] == [
        ("counts", {"topic": "transfers"})
    ]


def test_a_wrong_tip_is_named(snapshots: Snapshots) -> None:
    log = some_log()
    _, second = keep(snapshots, log, at(transfers=5), at(transfers=10))
    forge(snapshots, second, header=lambda header: msgspec.structs.replace(header, tips={}))
    (one,) = only(log.prove(snapshots)).disagreements
    assert (one.kind, one.snapshot) == ("tip", None)


def test_a_log_digest_that_a_later_snapshot_contradicts_is_the_snapshots_fault(
    snapshots: Snapshots,
) -> None:
    log = some_log()
    _, second, third = keep(snapshots, log, at(transfers=5), at(transfers=10), at(transfers=20))

    def other_log(header: Header) -> Header:
        assert header.log_digests is not None
        changed = {**header.log_digests, "transfers": "ab" * 32}
        return msgspec.structs.replace(header, log_digests=changed)

    forge(snapshots, second, header=other_log)
    finding = only(log.prove(snapshots))
    assert (finding.kind, finding.snapshot) == ("state_differs", second.name)
    assert f"which snapshot {third.path} vouches for" in finding.sentence


def test_damaged_snapshots_are_named_and_the_others_proven(snapshots: Snapshots) -> None:
    log = some_log()
    marks = [at(transfers=offset) for offset in (4, 8, 12, 16, 20)]
    flipped, cut, emptied, renamed, whole = keep(snapshots, log, *marks)
    path = Path(flipped.path)
    data = bytearray(path.read_bytes())
    footer_bytes = int.from_bytes(data[-8:-4], "little")
    data[-8 - footer_bytes - 1] ^= 1  # the end of the last page
    path.write_bytes(data)
    Path(cut.path).write_bytes(Path(cut.path).read_bytes()[:-100])
    Path(emptied.path).write_bytes(b"")
    Path(renamed.path).write_bytes(Path(whole.path).read_bytes())
    found = log.prove(snapshots)
    assert [one.name for one in found.proven] == [whole.name]
    assert found.unproven == []
    assert [(f.kind, f.snapshot) for f in found.findings] == [
        ("damaged_snapshot", file.name) for file in (flipped, cut, emptied, renamed)
    ]
    assert all(f.snapshot is not None and f.snapshot in f.sentence for f in found.findings)


def test_any_flipped_byte_of_a_snapshot_is_found(snapshots: Snapshots) -> None:
    log = some_log()
    (file,) = keep(snapshots, log, log.ends)
    path = Path(file.path)
    data = path.read_bytes()
    for place in range(0, len(data), 41):
        path.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
        assert only(log.prove(snapshots)).kind == "damaged_snapshot"


def test_a_snapshot_of_other_topics_is_a_note(snapshots: Snapshots) -> None:
    log = some_log()
    foreign, own = keep(snapshots, log, at(transfers=10), log.ends)
    other = msgspec.structs.replace(ORIGIN, topic_ids=dict.fromkeys(INPUT_TOPICS, "older"))
    forge(snapshots, foreign, header=lambda header: msgspec.structs.replace(header, origin=other))
    found = log.prove(snapshots)
    assert [(f.kind, f.snapshot, f.is_note) for f in found.findings] == [
        ("foreign_snapshot", foreign.name, True)
    ]
    assert [one.name for one in found.proven] == [own.name]
    assert Proof({0: found}).match


def test_a_snapshot_without_log_digests_proves_nothing(snapshots: Snapshots) -> None:
    log = some_log()
    (file,) = keep(snapshots, log, log.ends)
    forge(snapshots, file, header=lambda header: msgspec.structs.replace(header, log_digests=None))
    assert only(log.prove(snapshots)).kind == "damaged_snapshot"


def test_a_snapshot_that_a_worker_removes_meanwhile_is_left_out(snapshots: Snapshots) -> None:
    log = some_log()
    gone, kept = keep(snapshots, log, at(transfers=5), log.ends)
    listed = snapshots.of_partition(0)
    Path(gone.path).unlink()
    found = prove_partition(log.reader(), snapshots, listed, 0, ORIGIN, log.earliest, log.ends)
    assert found.findings == []
    assert [one.name for one in found.proven] == [kept.name]


def test_snapshots_of_other_interleavings_are_proven_from_the_newest_below_them(
    snapshots: Snapshots,
) -> None:
    log = some_log()
    keep(snapshots, log, at(5, 5, 5), at(10, 20, 5), at(5, 5, 20), at(10, 30, 5), at(6, 5, 20))
    read = log.reader()
    spans: list[tuple[Slot, tuple[int, int]]] = []

    def noted(wanted: Mapping[Slot, tuple[int, int]]) -> Iterator[Batch]:
        spans.extend(wanted.items())
        return read(wanted)

    found = prove_partition(
        noted, snapshots, snapshots.of_partition(0), 0, ORIGIN, log.earliest, log.ends
    )
    assert found.findings == []
    assert len(found.proven) == 5
    # The second fold is that of (10, 20, 5) and (10, 30, 5); it goes on from (5, 5, 5).
    assert [span for (topic, _), span in spans if topic == "orders"] == [(0, 6), (5, 10)]
    assert [span for (topic, _), span in spans if topic == "transfers"] == [(0, 20), (5, 5)]
    with temporary_states() as states:
        on_disk = prove_partition(
            read, snapshots, snapshots.of_partition(0), 0, ORIGIN, log.earliest, log.ends, states
        )
    assert on_disk == found


def test_on_disk_what_differs_is_found_as_in_memory(snapshots: Snapshots) -> None:
    log = some_log()
    keep(snapshots, log, at(5, 5, 5), at(10, 20, 5), at(5, 5, 20), at(10, 30, 5), log.ends)
    log.remove("fills", 22)
    found = log.prove(snapshots)
    assert failures(found)
    with temporary_states() as states:
        assert log.prove(snapshots, stores=states) == found


def test_what_retention_removed_is_named_and_the_oldest_snapshot_after_it_trusted(
    snapshots: Snapshots,
) -> None:
    log = some_log()
    before, anchor, after, last = keep(
        snapshots, log, at(5, 5, 5), at(10, 20, 5), at(10, 20, 10), log.ends
    )
    log.earliest["fills"] = 12
    log.records["fills"] = log.records["fills"][12:]
    found = log.prove(snapshots)
    assert [(f.kind, f.is_note) for f in found.findings] == [("log_gone", False), ("anchor", True)]
    gone, trusted = found.findings
    assert "fills:0: offsets 0 to 11 are gone (earliest offset is 12)" in gone.sentence
    assert anchor.path in trusted.sentence
    assert "1 snapshot before it cannot be proven" in trusted.sentence
    assert found.base == anchor.name
    assert [one.name for one in found.proven] == [after.name, last.name]
    assert found.unproven == [before.name]

    log.change("fills", 25, b"x")
    assert [f.kind for f in log.prove(snapshots).findings] == ["log_gone", "anchor", "log_differs"]


def test_without_a_snapshot_after_what_retention_removed_nothing_is_proven(
    snapshots: Snapshots,
) -> None:
    log = some_log()
    (before,) = keep(snapshots, log, at(5, 5, 5))
    log.earliest["fills"] = 12
    found = log.prove(snapshots)
    assert (found.base, found.proven, found.unproven) == (None, [], [before.name])
    assert only(found).kind == "log_gone"


def test_what_is_decoded_in_memory_is_bounded(
    snapshots: Snapshots, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proof, "_FREEZE_AFTER_RECORDS", 4)
    log = some_log()
    keep(snapshots, log, at(10, 20, 5), log.ends)
    assert len(log.prove(snapshots).proven) == 2


def test_of_many_lost_or_changed_records_the_first_are_named(
    snapshots: Snapshots, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proof, "_SUSPECTS", 12)
    log = some_log()
    for number in range(20, 60):
        log.add("transfers", deposit(number))
    keep(snapshots, log, log.ends)
    for offset in range(60):
        log.change("transfers", offset, deposit(offset, "2"))
    finding = only(log.prove(snapshots))
    assert [one.offset for one in finding.disagreements] == [*range(10)]
    assert finding.more >= 2
    assert "offset 2 was changed" in finding.sentence
    assert "more" in finding.sentence


def test_the_document_is_json(snapshots: Snapshots) -> None:
    log = some_log()
    (file,) = keep(snapshots, log, log.ends)
    found = Proof({0: log.prove(snapshots)})
    assert json.loads(json.dumps(found.as_json())) == {
        "match": True,
        "proven": 1,
        "unproven": 0,
        "partitions": {
            "0": {
                "base": "genesis",
                "proven": [
                    {
                        "name": file.name,
                        "watermark": log.ends,
                        "state_digest": log.fold(log.ends)[0].state_digest(),
                    }
                ],
                "unproven": [],
            }
        },
        "findings": [],
    }
    assert cost(snapshots, [0]) == sum(log.ends.values())


# --- a real broker's log, tampered with on its disk -----------------------------------------------


@dataclass(frozen=True)
class Case:
    """A ledger of its own on the broker: one partition, twenty deposits in a batch each."""

    settings: Settings
    files: list[SnapshotFile]

    @property
    def snapshots(self) -> Snapshots:
        return Snapshots(self.settings.snapshot_dir, self.settings.topic_prefix)

    def prove(self) -> Proof:
        cluster = cluster_of(self.settings)
        return prove(cluster, cluster.origin(), self.snapshots, [0])


NAMES = ("whole", "changed", "damaged", "removed", "cut", "deleted")


def published_case(settings: Settings) -> Case:
    cluster = cluster_of(settings)
    origin = cluster.ensure_topics()
    producer = raw_producer(settings)
    for number in range(20):
        producer.produce(settings.topic("transfers"), deposit(number), b"alice")
        assert producer.flush(30) == 0
    snapshots = Snapshots(settings.snapshot_dir, settings.topic_prefix)
    files = []
    for offset in (5, 10, 20):
        partition = Rebuilder(cluster, origin, warn=pytest.fail).at({0: at(transfers=offset)})
        state = partition.partitions[0]
        files.append(snapshots.write(state.header(), state._store.scan()))
    return Case(settings, files)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Case]]:
    """Ledgers whose topics were tampered with while the broker was stopped."""
    with own_broker(tmp_path_factory.mktemp("broker")) as broker:
        cases = {
            name: published_case(
                broker.settings(
                    tmp_path_factory.mktemp(name), partitions=1, topic_prefix=f"{name}-"
                )
            )
            for name in NAMES
        }
        broker.stop()
        tamper(broker)
        broker.start()
        deleted = cluster_of(cases["deleted"].settings)
        eventually(lambda: deleted.ends([("transfers", 0)]))
        where = TopicPartition(deleted.settings.topic("transfers"), 0, 7)
        deleted.admin.delete_records([where])[where].result(30)
        yield cases


def tamper(broker: OwnBroker) -> None:
    seven = deposit(7)
    hundred = seven.replace(b'"amount": "1"', b'"amount": "9"')
    broker.replace("changed-transfers", 0, seven, hundred, with_crc=True)
    broker.replace("damaged-transfers", 0, seven, hundred, with_crc=False)
    broker.remove("removed-transfers", 0, 7)
    broker.lose("cut-transfers", 0, 12)


@pytest.mark.integration
def test_the_snapshots_of_a_whole_log_are_proven(cases: dict[str, Case]) -> None:
    case = cases["whole"]
    moved: list[int] = []
    cluster = cluster_of(case.settings)
    found = prove(cluster, cluster.origin(), case.snapshots, [0], moved.append)
    assert found.match
    assert found.findings == []
    assert [one.name for one in found.partitions[0].proven] == [file.name for file in case.files]
    assert sum(moved) == cost(case.snapshots, [0]) == 20


@pytest.mark.integration
@pytest.mark.parametrize(
    ("name", "record", "topics"),
    [("changed", "changed", deposit(7, "9").decode()), ("removed", "removed", None)],
)
def test_a_record_changed_or_removed_on_the_brokers_disk_is_named(
    cases: dict[str, Case], name: str, record: str, topics: str | None
) -> None:
    case = cases[name]
    found = case.prove()
    assert not found.match
    (finding,) = found.findings
    assert (finding.kind, finding.topic, finding.snapshot) == (
        "log_differs",
        "transfers",
        case.files[1].name,
    )
    assert (finding.first_offset, finding.last_offset) == (5, 9)
    (one,) = finding.disagreements
    assert (one.offset, one.record, one.topics) == (7, record, topics)
    assert [p.name for p in found.partitions[0].proven] == [case.files[0].name]


@pytest.mark.integration
def test_a_record_batch_that_fails_its_check_sum_is_named(cases: dict[str, Case]) -> None:
    found = cases["damaged"].prove()
    (finding,) = found.findings
    assert (finding.kind, finding.topic, finding.first_offset) == ("log_unreadable", "transfers", 7)
    assert "CRC32C" in finding.sentence
    assert [one.offset for one in finding.disagreements] == [*range(7, 17)]
    assert finding.more == 3
    assert len(found.partitions[0].proven) == 1
    cluster = cluster_of(cases["damaged"].settings)
    read: list[int] = []

    def read_to(end: int) -> None:
        for batch in cluster.read({("transfers", 0): (0, end)}):
            read.extend(record.offset for record in batch.records)

    with pytest.raises(UnreadableRecords, match="transfers:0: the records from offset 7 on"):
        read_to(20)
    read_to(7)
    assert read == [*range(7), *range(7)]


@pytest.mark.integration
def test_a_log_cut_on_the_brokers_disk_is_named(cases: dict[str, Case]) -> None:
    found = cases["cut"].prove()
    (finding,) = found.findings
    assert (finding.kind, finding.first_offset, finding.last_offset) == ("log_truncated", 12, 19)
    assert [one.offset for one in finding.disagreements] == [*range(12, 20)]
    assert len(found.partitions[0].proven) == 2


@pytest.mark.integration
def test_deleted_records_leave_what_a_trusted_snapshot_proves(cases: dict[str, Case]) -> None:
    case = cases["deleted"]
    found = case.prove()
    assert [f.kind for f in found.findings] == ["log_gone", "anchor"]
    assert found.partitions[0].base == case.files[1].name
    assert [one.name for one in found.partitions[0].proven] == [case.files[2].name]
    nowhere = Snapshots(case.settings.state_dir / "nowhere", "")
    cluster = cluster_of(case.settings)
    with pytest.raises(MissingRecords, match="offsets 0 to 6 are gone"):
        prove(cluster, cluster.origin(), nowhere, [0])
