"""Snapshots in a directory and in a bucket: whole or not there, checked, streamed, thinned."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import threading
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from moto.server import ThreadedMotoServer

from ledger import buckets, states
from ledger import snapshots as module
from ledger.agents.owned import open_state
from ledger.buckets import Bucket
from ledger.errors import ConfigurationError, StateError, TopicError
from ledger.objects import Directory, StorageError, objects_at
from ledger.projections.entries import META_KEY, joined_key, split_key
from ledger.projections.partition import Origin, Partition, Record
from ledger.rocks import RocksStore
from ledger.seal import sealed_writer
from ledger.settings import Settings, load_settings
from ledger.snapshots import SnapshotError, SnapshotFile, Snapshots, superfluous
from ledger.store import MemoryStore
from tests.support import BITSTAMP, eventually, lines_of, publish, published_at_end, worker
from tests.test_worker import assert_published_equals_reference, reference_of

ORIGIN = Origin("cluster", {"orders": "o", "fills": "f", "transfers": "t"}, 1)
OTHER = Origin("cluster", {"orders": "o", "fills": "f", "transfers": "another"}, 1)

on_one_place = hypothesis_settings(suppress_health_check=list(HealthCheck))


class Deposit(msgspec.Struct):
    """A record of a deposit."""

    offset: int
    account: str

    @property
    def key(self) -> bytes:
        return self.account.encode()

    @property
    def value(self) -> bytes:
        fields = {
            "type": "deposited",
            "version": 1,
            "event_id": "e",
            "account": self.account,
            "occurred_at": "2026-01-01T00:00:00Z",
            "transfer_id": f"x{self.offset}",
            "asset": "USD",
            "amount": "1",
        }
        return json.dumps(fields).encode()


class State:
    """A partition that deposits are made in."""

    def __init__(self, origin: Origin = ORIGIN) -> None:
        self.store = MemoryStore()
        self.partition = Partition(0, self.store, origin)

    def to(self, records: int) -> State:
        """Go on to so many records."""
        first = self.partition.watermark["transfers"]
        deposits: list[Record] = [Deposit(n, f"a{n % 50}") for n in range(first, records)]
        self.partition.apply("transfers", deposits)
        self.partition.freeze()
        self.partition.settle()
        return self

    def write(self, snapshots: Snapshots) -> SnapshotFile:
        return snapshots.write(self.partition.header(), self.store.scan())


def contents(store: Any) -> dict[bytes, bytes]:
    return dict(store.scan())


# -- the two kinds of place


@pytest.fixture(scope="module")
def s3_server() -> Iterator[str]:
    """The URL of a server that speaks S3."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    _, port = server.get_host_and_port()
    yield f"http://127.0.0.1:{port}"
    server.stop()


@pytest.fixture
def bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a new bucket that the environment leads to."""
    for name in list(os.environ):
        if name.startswith("AWS_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ENDPOINT", s3_server)
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "tests")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "tests")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    name = f"b{uuid.uuid4().hex}"
    with urllib.request.urlopen(urllib.request.Request(f"{s3_server}/{name}", method="PUT")):
        return name


@pytest.fixture(params=["directory", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path | str:
    """A directory, or the URL of a place in a bucket."""
    if request.param == "directory":
        return tmp_path / "some" / "snapshots"
    return f"s3://{request.getfixturevalue('bucket')}/some/path"


@pytest.fixture
def snapshots(place: Path | str) -> Snapshots:
    return Snapshots(place, "")


def bytes_of(snapshots: Snapshots, name: str) -> bytes:
    with snapshots._objects.reading(name) as file:
        return file.read()


def put(snapshots: Snapshots, name: str, data: bytes) -> None:
    with snapshots._objects.writing(name) as file:
        file.write(data)


def names(snapshots: Snapshots) -> list[str]:
    return sorted(listed.name for listed in snapshots._objects.names())


# -- files, in either place


def test_a_file_is_there_whole_or_not_at_all(place: Path | str) -> None:
    files = objects_at(place)
    assert files.names() == []

    def fail(error: Exception) -> None:
        with files.writing("one") as file:
            file.write(b"half")
            raise error

    with pytest.raises(ZeroDivisionError):
        fail(ZeroDivisionError())
    with pytest.raises(StorageError, match="No space left"):
        fail(OSError(28, "No space left"))
    assert files.names() == []
    with files.writing("one") as file:
        file.write(b"first")
        assert [listed.name for listed in files.names() if listed.name == "one"] == []
    (first,) = files.names()
    with pytest.raises(ZeroDivisionError):
        fail(ZeroDivisionError())
    assert files.names() == [first]
    with files.writing("one") as file:
        file.write(b"second, and longer")
    (second,) = files.names()
    assert (second.name, second != first) == ("one", True)
    with files.reading("one") as file:
        assert (file.read(6), file.seek(-6, io.SEEK_END), file.read()) == (b"second", 12, b"longer")
        assert (file.seek(8), file.read(3), file.tell()) == (8, b"and", 11)
    files.rename("one", "two")
    assert [listed.name for listed in files.names()] == ["two"]
    with pytest.raises(StorageError, match="one cannot be read"), files.reading("one"):
        pass
    files.delete("one")
    files.delete("two")
    assert files.names() == []


def test_a_file_of_several_parts_is_read_back(place: Path | str, monkeypatch: Any) -> None:
    monkeypatch.setattr(buckets, "_PART_BYTES", 5 << 20)
    data = os.urandom(11 << 20)
    files = objects_at(place)
    with files.writing("large") as file:
        file.write(data)
    with files.reading("large") as file:
        assert file.read() == data


def test_an_upload_that_fails_in_the_middle_is_given_up(
    s3_server: str, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buckets, "_PART_BYTES", 5 << 20)

    class Torn(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell() >= 5 << 20:
                raise OSError(5, "the disk is gone")
            return super().read(size)

    files = Bucket(f"s3://{bucket}/path")
    torn: IO[bytes] = Torn(bytes(11 << 20))
    with pytest.raises(StorageError, match="the disk is gone"):
        files._ask("it", "written", lambda: files._put("large", torn))
    assert files.names() == []
    with urllib.request.urlopen(f"{s3_server}/{bucket}?uploads") as answer:
        assert b"<UploadId>" not in answer.read()


def test_another_ledgers_files_in_the_same_place_are_not_seen(place: Path | str) -> None:
    mine, other = Snapshots(place, ""), Snapshots(place, "other-")
    file = State().to(3).write(mine)
    assert other.of_partition(0) == []
    elsewhere = State().to(4).write(other)
    assert "other-snapshots/p00000-" in elsewhere.path
    assert mine.of_partition(0) == [file]
    assert mine.of_partition(1) == []


def test_what_killed_writers_left_is_removed_after_an_hour(tmp_path: Path) -> None:
    snapshots = Snapshots(tmp_path, "")
    State().to(3).write(snapshots)
    for name, age_s in ((".p00000-old", 3700), (".p00000-new", 60), (".p00001-old", 3700)):
        (tmp_path / name).write_bytes(b"half")
        os.utime(tmp_path / name, (time.time() - age_s,) * 2)
    snapshots.thin(0, 8, ORIGIN)
    assert names(snapshots)[:2] == [".p00000-new", ".p00001-old"]
    assert len(names(snapshots)) == 3


def test_a_snapshot_in_a_directory_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def noting_fsync(handle: int) -> None:
        done.append("fsync " + Path(os.readlink(f"/proc/self/fd/{handle}")).name[:6])
        fsync(handle)

    def noting_replace(path: Path, target: Path) -> Path:
        done.append("replace")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", noting_fsync)
    monkeypatch.setattr(Path, "replace", noting_replace)
    State().to(3).write(Snapshots(tmp_path / "places", ""))
    assert done == ["fsync .p0000", "replace", "fsync places"]


# -- a snapshot


def test_a_snapshot_gives_the_state_back(snapshots: Snapshots, place: Path | str) -> None:
    state = State().to(120)
    file = state.write(snapshots)
    assert file.name == "p00000-orders=0-fills=0-transfers=120.parquet"
    assert file.path == f"{place}/{file.name}"
    header, store = snapshots.read(file, ORIGIN)
    assert header == state.partition.header()
    assert contents(store) == contents(state.store)
    again = Partition(0, store, ORIGIN)
    assert again.state_digest() == state.partition.state_digest()
    later = state.to(130).write(snapshots)
    assert snapshots.of_partition(0) == [later, file]
    limit = {"orders": 0, "fills": 0, "transfers": 125}
    assert snapshots.at_or_below(0, limit) == [file]
    snapshots.set_aside(later)
    assert snapshots.of_partition(0) == [file]
    assert f"set-aside-1-{later.name}" in names(snapshots)


def test_a_snapshot_set_aside_never_takes_anothers_place(snapshots: Snapshots) -> None:
    state = State().to(20)
    for _ in range(3):
        snapshots.set_aside(state.write(snapshots))
    kept = [name for name in names(snapshots) if name.startswith("set-aside-")]
    assert len(kept) == 3
    assert snapshots.of_partition(0) == []


def test_its_header_comes_last_and_only_when_the_entries_add_up(snapshots: Snapshots) -> None:
    state = State().to(120)
    with snapshots.open(state.write(snapshots), ORIGIN) as (_, entries):
        keys = [key for key, _ in entries]
    assert keys[-1] == META_KEY
    assert META_KEY not in keys[:-1]
    assert keys[:-1] == sorted(keys[:-1])


def test_the_same_snapshot_is_left_alone_unless_it_is_damaged(
    snapshots: Snapshots, place: Path | str
) -> None:
    state = State().to(20)
    file = state.write(snapshots)
    before = snapshots._objects.names()
    assert state.write(snapshots) == file
    assert state.write(Snapshots(place, "")) == file
    assert snapshots._objects.names() == before
    put(snapshots, file.name, bytes_of(snapshots, file.name)[:-1])
    state.write(snapshots)
    assert contents(snapshots.read(file, ORIGIN)[1]) == contents(state.store)


def test_a_snapshot_with_a_damaged_body_is_written_anew_by_whoever_found_it(
    snapshots: Snapshots, place: Path | str
) -> None:
    """Found by review: its footer is whole, so it was left there for ever."""
    state = State().to(20)
    file = state.write(snapshots)
    rewritten(snapshots, file, with_another_value)
    with pytest.raises(SnapshotError, match="do not add up"):
        snapshots.read(file, ORIGIN)
    state.write(snapshots)
    for reader in (snapshots, Snapshots(place, "")):
        assert contents(reader.read(file, ORIGIN)[1]) == contents(state.store)
    before = snapshots._objects.names()
    state.write(snapshots)
    assert snapshots._objects.names() == before


def test_snapshots_found_damaged_do_not_count_among_the_kept(snapshots: Snapshots) -> None:
    files = [State().to(records).write(snapshots) for records in (4, 5, 39, 40)]
    for file in files[2:]:
        rewritten(snapshots, file, with_another_value)
        with pytest.raises(SnapshotError):
            snapshots.read(file, ORIGIN)
    snapshots.thin(0, 1, ORIGIN)  # the newest of these is the one of 5 records
    assert snapshots.of_partition(0) == files[::-1]


class Failing:
    """Reads of a place that fail now, as those of a disk or a bucket may."""

    def __init__(self, snapshots: Snapshots, error: Exception) -> None:
        self.error: Exception | None = error
        self._reading = snapshots._objects.reading
        snapshots._objects.reading = self.reading  # type: ignore[method-assign]

    @contextlib.contextmanager
    def reading(self, name: str) -> Iterator[IO[bytes]]:
        failing = self

        class Torn(io.BytesIO):
            def read(self, size: int | None = -1, /) -> bytes:
                if failing.error is not None:
                    raise failing.error
                return super().read(size)

        with self._reading(name) as file:
            yield Torn(file.read())


@pytest.mark.parametrize(
    "error",
    [OSError(5, "Input/output error"), PermissionError(13, "Denied"), StorageError("It is away.")],
    ids=lambda error: type(error).__name__,
)
def test_trouble_with_a_place_is_told_from_damage_and_is_not_remembered(
    snapshots: Snapshots, error: Exception
) -> None:
    """Found by review: one failed read marked a snapshot damaged for the life of the process."""
    files = [State().to(records).write(snapshots) for records in (4, 5, 40)]
    failing = Failing(snapshots, error)
    with pytest.raises(StorageError) as raised:
        snapshots.read(files[0], ORIGIN)
    assert type(raised.value) is StorageError
    snapshots.thin(0, 1, ORIGIN)  # what cannot be told to be superfluous stays
    assert snapshots.of_partition(0) == files[::-1]
    failing.error = None
    snapshots.read(files[0], ORIGIN)
    before = snapshots._objects.names()
    State().to(4).write(snapshots)
    assert snapshots._objects.names() == before
    snapshots.thin(0, 1, ORIGIN)
    assert snapshots.of_partition(0) == [files[2], files[0]]


def test_two_writers_of_one_snapshot_leave_one_that_is_whole(place: Path | str) -> None:
    ready = threading.Barrier(4)
    errors: list[BaseException] = []

    def write() -> None:
        try:
            state, snapshots = State().to(300), Snapshots(place, "")
            ready.wait(10)
            state.write(snapshots)
            snapshots.thin(0, 1, ORIGIN)
        except BaseException as error:  # noqa: BLE001 - told below
            errors.append(error)

    writers = [threading.Thread(target=write) for _ in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(30)
    assert errors == []
    snapshots = Snapshots(place, "")
    (file,) = snapshots.of_partition(0)
    assert names(snapshots) == [file.name]
    assert contents(snapshots.read(file, ORIGIN)[1]) == contents(State().to(300).store)


def test_other_programs_can_read_it(snapshots: Snapshots) -> None:
    state = State().to(120)
    file = state.write(snapshots)
    data = bytes_of(snapshots, file.name)
    table = pq.read_table(pa.BufferReader(data))
    assert table.column_names == ["account", "kind", "id", "value"]
    alike = {
        (
            f"\0{row['account']}"
            if row["kind"] == "b"
            else f"{row['account']}\0{row['kind']}{row['id']}"
        ).encode(): row["value"].encode()
        for row in table.to_pylist()
    }
    assert {META_KEY: contents(state.store)[META_KEY], **alike} == contents(state.store)
    metadata = table.schema.metadata
    stored = metadata[b"ledger.header"]
    assert json.loads(stored)["watermark"]["transfers"] == 120
    assert metadata[b"ledger.header_sha256"].decode() == hashlib.sha256(stored).hexdigest()
    assert metadata[b"ledger.state_digest"].decode() == state.partition.state_digest()
    assert json.loads(metadata[b"ledger.log_digests"]) == state.partition.log_digests


def test_a_snapshot_of_other_topics_is_refused(snapshots: Snapshots) -> None:
    file = State().to(5).write(snapshots)
    with pytest.raises(SnapshotError, match="of other topics or rules"):
        snapshots.read(file, OTHER)
    grown = Origin(ORIGIN.cluster_id, ORIGIN.topic_ids, 2)
    with pytest.raises(TopicError, match="had 1 partitions"):
        snapshots.read(file, grown)


def test_a_snapshot_under_anothers_name_is_refused(snapshots: Snapshots) -> None:
    file = State().to(5).write(snapshots)
    for name in (
        "p00000-orders=0-fills=0-transfers=6.parquet",
        "p00000-orders=0-fills=5-transfers=0.parquet",
        "p00001-orders=0-fills=0-transfers=5.parquet",
    ):
        put(snapshots, name, bytes_of(snapshots, file.name))
        wrong = snapshots._file(name)
        assert wrong is not None
        with pytest.raises(SnapshotError, match="does not hold what its name says"):
            snapshots.read(wrong, ORIGIN)


def test_a_snapshot_that_was_removed_meanwhile_is_refused(snapshots: Snapshots) -> None:
    state = State().to(5)
    file = state.write(snapshots)
    with snapshots.open(file, ORIGIN) as (_, entries):
        snapshots._objects.delete(file.name)
        try:
            found = dict(entries)
        except SnapshotError:
            found = contents(state.store)  # what was begun may also be read to its end
        assert found == contents(state.store)
    with pytest.raises(SnapshotError, match="cannot be read"):
        snapshots.read(file, ORIGIN)


# -- damage


@on_one_place
@given(data=st.data())
def test_a_truncated_snapshot_is_refused(snapshots: Snapshots, data: st.DataObject) -> None:
    state = State().to(40)
    file = state.write(snapshots)
    whole = bytes_of(snapshots, file.name)
    length = data.draw(st.integers(0, len(whole) - 1))
    put(snapshots, file.name, whole[:length])
    with pytest.raises(SnapshotError, match="cannot be read"):
        snapshots.read(file, ORIGIN)


@on_one_place
@given(data=st.data())
def test_flipped_bits_are_found(snapshots: Snapshots, data: st.DataObject) -> None:
    file = State().to(40).write(snapshots)
    damaged = bytearray(bytes_of(snapshots, file.name))
    flips = st.dictionaries(
        st.integers(0, len(damaged) - 1), st.integers(1, 255), min_size=1, max_size=3
    )
    for position, mask in data.draw(flips).items():
        damaged[position] ^= mask
    put(snapshots, file.name, bytes(damaged))
    with pytest.raises(SnapshotError, match="cannot be read"):
        snapshots.read(file, ORIGIN)


def test_any_one_flipped_byte_is_found(tmp_path: Path) -> None:
    snapshots = Snapshots(tmp_path, "")
    file = State().to(3).write(snapshots)
    whole = bytes_of(snapshots, file.name)
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        Path(file.path).write_bytes(damaged)
        with pytest.raises(SnapshotError, match="cannot be read"):
            snapshots.read(file, ORIGIN)


def test_a_valid_parquet_file_that_was_not_sealed_is_refused(snapshots: Snapshots) -> None:
    file = State().to(40).write(snapshots)
    table = pq.read_table(pa.BufferReader(bytes_of(snapshots, file.name)))
    written = io.BytesIO()
    pq.write_table(table, written)
    put(snapshots, file.name, written.getvalue())
    with pytest.raises(SnapshotError, match="its bytes are not those that were written"):
        snapshots.read(file, ORIGIN)


def rewritten(
    snapshots: Snapshots, file: SnapshotFile, change: Callable[[pa.Table], pa.Table]
) -> None:
    """Put another valid and sealed Parquet file in a snapshot's place."""
    table = change(pq.read_table(pa.BufferReader(bytes_of(snapshots, file.name))))
    written = io.BytesIO()
    with sealed_writer(written, table.schema) as writer:
        writer.write_table(table)
    put(snapshots, file.name, written.getvalue())


def without_a_row(table: pa.Table) -> pa.Table:
    return pa.concat_tables([table.slice(0, 3), table.slice(4)])


def with_a_row_twice(table: pa.Table) -> pa.Table:
    return pa.concat_tables([table, table.slice(3, 1)])


def with_another_value(table: pa.Table) -> pa.Table:
    values = table["value"].to_pylist()
    values[0], values[-1] = values[-1], values[0]
    return table.set_column(3, "value", pa.array(values, pa.string()))


def with_a_null(table: pa.Table) -> pa.Table:
    values = table["value"].to_pylist()
    return table.set_column(3, "value", pa.array([None, *values[1:]], pa.string()))


def with_another_column(table: pa.Table) -> pa.Table:
    return table.append_column("more", table["id"])


@pytest.mark.parametrize(
    "change",
    [without_a_row, with_a_row_twice, with_another_value, with_a_null, with_another_column],
)
def test_other_entries_in_a_valid_file_are_refused(
    snapshots: Snapshots, change: Callable[[pa.Table], pa.Table]
) -> None:
    file = State().to(40).write(snapshots)
    rewritten(snapshots, file, lambda table: table)
    snapshots.read(file, ORIGIN)
    rewritten(snapshots, file, change)
    with pytest.raises(SnapshotError):
        snapshots.read(file, ORIGIN)


@pytest.mark.parametrize("field", ["watermark", "counts", "log_digests", "total"])
@pytest.mark.parametrize("signed", [False, True])
def test_another_header_is_refused(snapshots: Snapshots, field: str, signed: bool) -> None:
    """Also one that has a right checksum of its own: the digests beside it say something else."""
    file = State().to(40).write(snapshots)
    changes: dict[str, Callable[[dict[str, Any]], Any]] = {
        "watermark": lambda header: header["watermark"].update(transfers=39),
        "counts": lambda header: header["counts"]["transfers"].update(applied=39),
        "log_digests": lambda header: header["log_digests"].update(transfers="00" * 32),
        "total": lambda header: header.update(total="7"),
    }

    def change(table: pa.Table) -> pa.Table:
        metadata = dict(table.schema.metadata)
        header = json.loads(metadata[b"ledger.header"])
        changes[field](header)
        stored = json.dumps(header).encode()
        metadata[b"ledger.header"] = stored
        if signed:
            metadata[b"ledger.header_sha256"] = hashlib.sha256(stored).hexdigest().encode()
        return table.replace_schema_metadata(metadata)

    rewritten(snapshots, file, change)
    with pytest.raises(SnapshotError):
        snapshots.read(file, ORIGIN)


@pytest.mark.parametrize("key", ["header", "header_sha256", "state_digest", "log_digests"])
def test_a_snapshot_without_one_of_its_digests_is_refused(snapshots: Snapshots, key: str) -> None:
    file = State().to(40).write(snapshots)

    def change(table: pa.Table) -> pa.Table:
        metadata = dict(table.schema.metadata)
        del metadata[f"ledger.{key}".encode()]
        return table.replace_schema_metadata(metadata)

    rewritten(snapshots, file, change)
    with pytest.raises(SnapshotError, match="cannot be read"):
        snapshots.read(file, ORIGIN)


# -- thinning


def at(records: int) -> SnapshotFile:
    name = f"p00000-orders=0-fills=0-transfers={records}.parquet"
    return SnapshotFile(0, {"orders": 0, "fills": 0, "transfers": records}, name, name)


def thinned(positions: list[int], kept: int) -> list[int]:
    """Return what stays of snapshots at some positions, newest first."""
    files = [at(position) for position in sorted(positions, reverse=True)]
    gone = {file.records for file in superfluous(files, kept)}
    return [file.records for file in files if file.records not in gone]


@given(
    steps=st.lists(
        st.tuples(
            st.one_of(st.integers(1, 5), st.integers(1, 100_000)),  # records until the next
            st.booleans(),  # whether thinning follows
        ),
        min_size=1,
        max_size=200,
    ),
    kept=st.integers(1, 8),
)
@example(steps=[(1, True)] * 2_000, kept=1)
@example(steps=[(1, False)] * 1_000 + [(1, True)] * 1_000, kept=8)
@example(steps=[(60_000, True)] * 1_000, kept=8)
def test_thinning_keeps_few_and_some_from_every_distance(
    steps: list[tuple[int, bool]], kept: int
) -> None:
    written: list[int] = []
    there: list[int] = []
    for records, thins in steps:
        written.append((written[-1] if written else 0) + records)
        there.append(written[-1])
        if thins:
            there = sorted(thinned(there, kept))
    there = thinned(there, kept)
    newest = written[-1]
    assert len(there) <= kept + 3 * newest.bit_length()
    assert there[:kept] == written[: -kept - 1 : -1]
    assert thinned(there, kept) == there  # nothing more goes without a newer one
    for position in written:
        distance = newest - position
        near = min(newest - other for other in there if other <= position)
        assert near == distance == 0 or near < distance * 5 / 3
    # What thinning once would have kept is there, however often it was done.
    assert set(thinned(written, kept)) <= set(there)


def test_snapshots_are_thinned_in_place(snapshots: Snapshots) -> None:
    other = State(OTHER).to(7).write(snapshots)
    damaged = State().to(8).write(snapshots)
    put(snapshots, damaged.name, b"damaged")
    state = State()
    for records in range(10, 90, 2):
        state.to(records).write(snapshots)
        snapshots.thin(0, 3, ORIGIN)
    left = [file.records for file in snapshots.of_partition(0)]
    assert left[:3] == [88, 86, 84]
    assert {other.records, damaged.records} <= set(left)  # whoever made them may want them
    own = [records for records in left if records not in (other.records, damaged.records)]
    assert own == thinned(list(range(10, 90, 2)), 3)
    assert len(own) <= 12
    assert own[-1] == 10
    for file in snapshots.of_partition(0):
        if file.records in own:
            snapshots.read(file, ORIGIN)


# -- where workers start


def start(tmp_path: Path, snapshots: Snapshots) -> tuple[int, dict[bytes, bytes]]:
    """Return how many records the state has that a worker starts with, and its entries."""
    store, partition = open_state(tmp_path / "p0", 0, ORIGIN, snapshots)
    found = contents(store)
    store.close()
    assert not (tmp_path / "p0.restored").exists()
    return sum(partition.watermark.values()), found


def test_a_worker_starts_from_the_newest_snapshot(
    snapshots: Snapshots, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(states, "_BATCH", 7)
    state = State().to(40)
    state.write(snapshots)
    assert start(tmp_path, snapshots) == (40, contents(state.store))
    state.to(60).write(snapshots)
    assert start(tmp_path, snapshots) == (60, contents(state.store))
    snapshots._objects.delete(snapshots.of_partition(0)[0].name)
    assert start(tmp_path, snapshots) == (60, contents(state.store))


def test_a_snapshot_damaged_in_the_middle_gives_way_to_the_next_older(
    snapshots: Snapshots,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Of the one whose entries do not add up, batches are in the copy by then."""
    monkeypatch.setattr(states, "_BATCH", 7)
    monkeypatch.setattr(module, "_ROWS", 20)
    older = State().to(30)
    older.write(snapshots)
    changed = State().to(40).write(snapshots)
    rewritten(snapshots, changed, with_another_value)
    torn = State().to(60).write(snapshots)
    data = bytearray(bytes_of(snapshots, torn.name))
    metadata = pq.read_metadata(pa.BufferReader(bytes(data)))
    assert metadata.num_row_groups > 3
    column = metadata.row_group(3).column(3)
    data[column.dictionary_page_offset + column.total_compressed_size // 2] ^= 255
    put(snapshots, torn.name, bytes(data))
    written: list[int] = []
    write = RocksStore.write

    def noting(store: RocksStore, changes: Any) -> None:
        written.append(len(changes))
        write(store, changes)

    monkeypatch.setattr(RocksStore, "write", noting)
    assert start(tmp_path, snapshots) == (30, contents(older.store))
    assert max(written) == 7
    assert sum(written) > len(contents(older.store))
    assert f"{torn.path} cannot be read" in caplog.text
    assert f"{changed.path} is damaged: its entries do not add up. It is passed over" in caplog.text


def test_a_damaged_snapshot_leaves_the_local_state_as_it_is(
    snapshots: Snapshots, tmp_path: Path
) -> None:
    state = State().to(30)
    state.write(snapshots)
    assert start(tmp_path, snapshots) == (30, contents(state.store))
    newer = State().to(40).write(snapshots)
    rewritten(snapshots, newer, without_a_row)
    assert start(tmp_path, snapshots) == (30, contents(state.store))


def test_a_state_that_was_being_replaced_is_not_taken_for_damaged(
    snapshots: Snapshots,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Found by chaos: a worker was ended while it removed an older state, file by file."""
    start(tmp_path, snapshots)
    state = State().to(30)
    state.write(snapshots)

    def end(directory: Path, ignore_errors: bool = False) -> None:
        for manifest in directory.glob("MANIFEST-*"):
            manifest.unlink()
            raise KeyboardInterrupt

    with monkeypatch.context() as ended:
        ended.setattr("shutil.rmtree", end)
        with pytest.raises(KeyboardInterrupt):
            start(tmp_path, snapshots)
    assert start(tmp_path, snapshots) == (30, contents(state.store))
    assert "damaged" not in caplog.text
    assert {path.name for path in tmp_path.glob("p0*")} == {"p0"}


def test_a_snapshot_that_disappears_after_listing_is_passed_over(
    snapshots: Snapshots, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = State().to(30)
    state.write(snapshots)
    listed = snapshots.of_partition(0)
    monkeypatch.setattr(snapshots, "of_partition", lambda _: [at(50), at(40), *listed])
    assert start(tmp_path, snapshots) == (30, contents(state.store))


def test_a_bucket_that_cannot_be_reached_is_only_missed(
    bucket: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT", "http://127.0.0.1:1")
    snapshots = Snapshots(f"s3://{bucket}/path", "")
    assert start(tmp_path, snapshots) == (0, {})
    assert f"s3://{bucket}/path cannot be listed: " in caplog.text
    assert "It starts without snapshots." in caplog.text
    with pytest.raises(StorageError, match="Check the bucket, and the credentials"):
        State().to(3).write(snapshots)


def test_a_missing_bucket_and_a_missing_key_are_named_in_one_line(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StorageError, match="NoSuchBucket") as missing:
        Snapshots("s3://nowhere-at-all", "").of_partition(0)
    assert "\n" not in str(missing.value)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(StorageError, match="Missing AccessKeyId") as keyless:
        Snapshots(f"s3://{bucket}", "").of_partition(0)
    assert "\n" not in str(keyless.value)


def test_a_directory_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    snapshots = Snapshots(tmp_path / "file", "")
    with pytest.raises(StateError, match="file cannot be used"):
        snapshots.of_partition(0)
    with pytest.raises(StateError, match="file cannot be used"):
        State().to(3).write(snapshots)


# -- settings


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("somewhere/else", Path("somewhere/else")),
        ("file:///some/where%20else", Path("/some/where else")),
        ("s3://bucket", "s3://bucket"),
        ("s3://my.bucket-1/some/path/", "s3://my.bucket-1/some/path"),
        ("gs://bucket/path", "gs://bucket/path"),
        ("az://container/path", "az://container/path"),
    ],
)
def test_snapshots_are_kept_where_the_setting_says(
    text: str, expected: Path | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEDGER_SNAPSHOTS", text)
    assert load_settings().snapshot_dir == expected
    assert isinstance(objects_at(expected), Directory if isinstance(expected, Path) else Bucket)


def test_snapshots_are_kept_in_the_state_directory_by_default() -> None:
    assert Settings(state_dir=Path("state")).snapshot_dir == Path("state/snapshots")


@pytest.mark.parametrize(
    "text",
    [
        "memory://",
        "memory:///path",
        "http://host/path",
        "s3://",
        "s3:///path",
        "s3://key:secret@bucket/path",
        "s3://bucket/path?region=eu",
        "s3://bucket//path",
        "s3://bucket/a/../b",
        "s3://bucket/a b",
        "file://host/path",
        "file:///",
    ],
)
def test_a_place_that_cannot_be_is_refused_in_one_sentence(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEDGER_SNAPSHOTS", text)
    with pytest.raises(ConfigurationError, match=r"^LEDGER_SNAPSHOTS: [^\n]*$"):
        load_settings()


# -- a real worker


@pytest.mark.integration
def test_a_worker_without_its_state_goes_on_from_a_snapshot_in_a_bucket(
    settings: Settings, bucket: str, tmp_path: Path
) -> None:
    there = settings.model_copy(
        update={"snapshots": f"s3://{bucket}/ledger", "snapshot_interval_s": 0.2}
    )
    lines = list(lines_of(BITSTAMP))
    publish(there, lines[:5000])
    snapshots = Snapshots(there.snapshot_dir, there.topic_prefix)
    with worker(there, tmp_path / "1.log") as process:
        eventually(lambda: published_at_end(there))
        eventually(lambda: sum(len(snapshots.of_partition(n)) > 0 for n in range(8)) >= 4)
        process.kill()
        process.wait()
    assert not (there.state_dir / "snapshots").exists()
    shutil.rmtree(there.state_dir)
    publish(there, lines[5000:])
    with worker(there, tmp_path / "2.log"):
        published = eventually(lambda: published_at_end(there), 90)
    assert "starts from snapshot p0000" in (tmp_path / "2.log").read_text()
    assert_published_equals_reference(there, published, reference_of(there))


@pytest.mark.parametrize("parts", [("a", "b", ""), ("a", "o", "x"), ("a", "f", "x\0y")])
def test_a_key_has_parts_that_make_it(parts: tuple[str, str, str]) -> None:
    assert split_key(joined_key(*parts)) == parts


@pytest.mark.parametrize(
    "parts", [("a", "b", "x"), ("", "o", "x"), ("a", "", "x"), ("a", "oo", "x"), ("", "b", "")]
)
def test_what_would_make_another_entrys_key_is_refused(parts: tuple[str, str, str]) -> None:
    with pytest.raises(ValueError, match="no entry has"):
        joined_key(*parts)
