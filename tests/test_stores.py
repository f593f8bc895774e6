"""One conformance suite for every store."""

from __future__ import annotations

import contextlib
import random
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ledger import rocks
from ledger.errors import DamagedState, StateError, StateInUse
from ledger.rocks import RocksStore, stored_bytes
from ledger.store import MemoryStore, PastStore, Store, note_replaced
from tests.support import eventually

KEYS = st.binary(min_size=1, max_size=4)
CHANGES = st.dictionaries(KEYS, st.none() | st.binary(max_size=8), max_size=6)


@pytest.fixture(params=["memory", "rocksdb"])
def new_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], Store]]:
    opened: list[RocksStore] = []

    def make() -> Store:
        if request.param == "memory":
            return MemoryStore()
        opened.append(RocksStore(tmp_path / str(len(opened))))
        return opened[-1]

    yield make
    for store in opened:
        store.close()


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches=st.lists(CHANGES, max_size=6), prefix=st.binary(max_size=2))
def test_a_store_is_a_sorted_mapping(
    new_store: Callable[[], Store], batches: list[dict[bytes, bytes | None]], prefix: bytes
) -> None:
    store, model = new_store(), dict[bytes, bytes]()
    for changes in batches:
        store.write(changes)
        for key, value in changes.items():
            if value is None:
                model.pop(key, None)
            else:
                model[key] = value
        assert list(store.scan()) == sorted(model.items())
        assert list(store.scan(prefix)) == sorted(
            (key, value) for key, value in model.items() if key.startswith(prefix)
        )
        for key in changes:
            assert store.get(key) == model.get(key)
            assert store.get_many([key, b"zzzzz", key]) == [model.get(key), None, model.get(key)]


def test_a_scan_does_not_see_what_is_written_meanwhile(tmp_path: Path) -> None:
    store = RocksStore(tmp_path)
    store.write({b"a": b"1", b"b": b"1"})
    entries = store.scan()
    assert next(entries) == (b"a", b"1")
    store.write({b"b": b"2", b"c": b"2"})
    assert list(entries) == [(b"b", b"1")]
    store.close()


def test_rocksdb_keeps_what_was_written_and_lets_go_of_its_lock(tmp_path: Path) -> None:
    store = RocksStore(tmp_path)
    store.write({b"a": b"1"})
    with pytest.raises(StateInUse, match="is in use"):
        RocksStore(tmp_path)
    store.close()
    again = RocksStore(tmp_path)
    assert again.get(b"a") == b"1"
    again.close()


def test_a_store_that_another_process_has_open_is_in_use(tmp_path: Path) -> None:
    RocksStore(tmp_path).close()
    source = (
        "import sys; from pathlib import Path; from ledger.rocks import RocksStore; "
        "store = RocksStore(Path(sys.argv[1])); print('open', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", source, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"open\n"
        with pytest.raises(StateInUse, match="is in use"):
            RocksStore(tmp_path)
        other.kill()
    RocksStore(tmp_path).close()


def test_a_lock_that_cannot_be_had_for_another_reason_is_not_in_use(tmp_path: Path) -> None:
    RocksStore(tmp_path).close()
    (tmp_path / "LOCK").unlink()
    (tmp_path / "LOCK").mkdir()
    with pytest.raises(StateError, match=r"cannot be used .*LOCK") as raised:
        RocksStore(tmp_path)
    assert type(raised.value) is StateError


def test_a_damaged_database_is_refused_with_its_place(tmp_path: Path) -> None:
    store = RocksStore(tmp_path)
    store.write({b"a": b"1"})
    store.close()
    (tmp_path / "CURRENT").write_bytes(b"garbage\n")
    with pytest.raises(StateError, match=str(tmp_path)):
        RocksStore(tmp_path)


def test_a_damaged_block_is_told_from_other_trouble(tmp_path: Path) -> None:
    store = RocksStore(tmp_path)
    store.write({f"{number:05}".encode(): b"x" * 100 for number in range(2_000)})
    store._db.flush()
    store.close()
    (table,) = tmp_path.glob("*.sst")
    content = bytearray(table.read_bytes())
    for place in range(len(content) // 3, len(content) // 2, 100):
        content[place] ^= 0x55
    table.write_bytes(content)
    again = RocksStore(tmp_path)
    with pytest.raises(DamagedState, match=f"{tmp_path} is damaged"):
        list(again.scan())
    with pytest.raises(DamagedState):
        list(map(again.get, (f"{number:05}".encode() for number in range(2_000))))
    again.mark_damaged()
    again.close()
    with pytest.raises(DamagedState, match="was found damaged"):
        RocksStore(tmp_path)


def test_a_write_that_finds_no_room_is_no_damage(tmp_path: Path) -> None:
    """A limit on the size of files fails writes as a full disk does; nothing of them is stored."""
    store = RocksStore(tmp_path)
    store.write({b"a": b"1"})
    store.flush()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        store.write({b"a": b"2", b"b": random.Random(1).randbytes(1_000_000)})
        with pytest.raises(StateError, match="free some space") as raised:
            store.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert type(raised.value) is StateError
    store.close()
    again = RocksStore(tmp_path)
    assert list(again.scan()) == [(b"a", b"1")]
    again.close()


def test_a_store_that_is_opened_again_has_its_filters(tmp_path: Path) -> None:
    """Found by measuring: each look-up for a key that was not there read a block from disk."""

    def memory_of_tables(store: RocksStore) -> int:
        return store._number_of("estimate-table-readers-mem")

    with contextlib.closing(RocksStore(tmp_path)) as store:
        store.write({f"{number:08}".encode(): b"" for number in range(100_000)})
        store.flush()
        before = memory_of_tables(store)
    with contextlib.closing(RocksStore(tmp_path)) as again:
        again.get(b"x")
        assert memory_of_tables(again) == before > 100_000


def files(store: RocksStore) -> int:
    return len(store._db.live_files())


def test_the_larger_a_state_the_more_may_be_in_memory(tmp_path: Path) -> None:
    """Of what is in files beyond 128 MiB a third, beside 18 MiB, for all stores together."""

    def share(store: RocksStore, files_mib: int) -> float:
        return rocks._MEMORY.share(store, files_mib << 20) / (1 << 20)

    with contextlib.closing(RocksStore(tmp_path / "one")) as one:
        assert share(one, 0) == share(one, 128) == 18
        assert share(one, 128 + 30) == 28
        assert share(one, 10_000) == 192
        with contextlib.closing(RocksStore(tmp_path / "other")) as other:
            assert share(one, 100) == 9
            assert share(other, 28 + 60) == 19
        assert share(one, 100) == 18


def test_what_is_too_much_for_memory_becomes_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(store: RocksStore, batches: int) -> None:
        for _ in range(batches):
            store.write({random.randbytes(8): random.randbytes(1 << 20)})

    with contextlib.closing(RocksStore(tmp_path)) as store:
        write(store, 16)  # eight buffers
        assert files(store) == 0
        write(store, 4)
        eventually(lambda: files(store) == 1)
        assert 18 << 20 < stored_bytes(tmp_path) < 21 << 20  # one file of all
        monkeypatch.setattr(rocks, "_BUFFERED_BYTES", 4 << 20)
        write(store, 5)
        eventually(lambda: files(store) == 2)


def test_files_that_are_written_too_slowly_are_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    number_of = RocksStore._number_of

    def always_writing(store: RocksStore, name: str) -> int:
        return 1 if name == "num-running-flushes" else number_of(store, name)

    monkeypatch.setattr(RocksStore, "_number_of", always_writing)
    with contextlib.closing(RocksStore(tmp_path)) as store:
        for _ in range(30):
            store.write({random.randbytes(8): random.randbytes(1 << 20)})
        assert files(store) == 0
        for _ in range(8):
            store.write({random.randbytes(8): random.randbytes(1 << 20)})
        assert files(store) == 1


def test_a_store_at_rest_has_few_files(tmp_path: Path) -> None:
    rng = random.Random(1)
    written: dict[bytes, bytes] = {}

    def write_files(store: RocksStore, count: int) -> None:
        for _ in range(count):
            changes = {rng.randbytes(2): rng.randbytes(8) for _ in range(100)}
            written.update(changes)
            store.write(changes)
            store.flush()

    def merges(store: RocksStore) -> bool:
        return any(map(store._number_of, ("compaction-pending", "num-running-compactions")))

    with contextlib.closing(RocksStore(tmp_path)) as store:
        write_files(store, 12)
        assert files(store) == 12
        store.merge_files(at_rest=True)
        eventually(lambda: files(store) <= 4 and not merges(store))
        store.merge_files(at_rest=False)
        before = files(store)
        write_files(store, 8)
        assert files(store) == before + 8
        assert dict(store.scan()) == written


@pytest.mark.parametrize("keeps_log", [False, True])
def test_a_kill_leaves_what_was_flushed_and_no_half_of_a_batch(
    tmp_path: Path, keeps_log: bool
) -> None:
    """Each batch has one number under two keys, and is so large that memory holds few of them."""
    script = """
import os, sys
from pathlib import Path
from ledger.rocks import RocksStore
store = RocksStore(Path(sys.argv[1]), keeps_log=sys.argv[2] == "True")
for number in range(60):
    value = str(number).encode()
    store.write({b"a": value, b"filler": os.urandom(1 << 20), b"z": value})
    if number == 5:
        store.flush()
os._exit(1)
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path), str(keeps_log)])
    assert done.returncode == 1
    with contextlib.closing(RocksStore(tmp_path)) as again:
        found = again.get(b"a")
        assert found is not None
        assert found == again.get(b"z")
        assert int(found) == 59 if keeps_log else int(found) >= 5


def test_a_place_that_cannot_be_a_directory_is_no_damage(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StateError, match=r"file/state cannot be used") as raised:
        RocksStore(tmp_path / "file" / "state")
    assert type(raised.value) is StateError


PAST_KEYS = st.sampled_from([b"\0a", b"a\0o1", b"\0b", b"\0", b"c"])
PAST_CHANGES = st.dictionaries(PAST_KEYS, st.one_of(st.none(), st.binary(min_size=1, max_size=2)))


@given(st.lists(PAST_CHANGES, max_size=4), st.lists(PAST_CHANGES, max_size=4))
def test_the_past_is_seen_as_it_was(
    before: list[dict[bytes, bytes | None]], after: list[dict[bytes, bytes | None]]
) -> None:
    store, replaced = MemoryStore(), MemoryStore()
    for changes in before:
        store.write(changes)
    then = dict(store.scan())
    for changes in after:
        note_replaced(store, changes, replaced)
        store.write(changes)
    past = PastStore(store, replaced)
    for prefix in (b"", b"\0", b"a", b"a\0", b"b", b"x"):
        wanted = sorted((k, v) for k, v in then.items() if k.startswith(prefix))
        assert list(past.scan(prefix)) == wanted
    for key in (b"\0a", b"a\0o1", b"\0b", b"\0", b"c", b"x"):
        assert past.get(key) == then.get(key)
    with pytest.raises(AssertionError, match="past"):
        past.write({b"a": b""})


def test_a_scan_of_a_store_in_memory_notices_that_something_is_written() -> None:
    store = MemoryStore({b"a": b"1", b"b": b"1", b"\0a": b"1"})
    scan = store.scan()
    assert next(scan) == (b"\0a", b"1")
    store.write({b"\0a": b"2"})
    assert next(scan) == (b"a", b"1")
    store.write({b"a": b"2"})
    with pytest.raises(RuntimeError, match="something was written"):
        next(scan)


# Some of these fill what the store takes of memory at a time, 1 MiB, or are larger.
SIZES = st.sampled_from([0, 1, 100_000, 300_000, 600_000, 1_048_568, 1_500_000])
LARGE_CHANGES = st.dictionaries(st.sampled_from([b"a", b"b", b"c", b"d"]), st.none() | SIZES)


@settings(max_examples=50, deadline=None)
@given(batches=st.lists(LARGE_CHANGES, max_size=12))
def test_a_store_in_memory_moves_what_is_left_of_large_entries(
    batches: list[dict[bytes, int | None]],
) -> None:
    store, model = MemoryStore(), dict[bytes, bytes]()
    for number, sizes in enumerate(batches):
        for key, size in sizes.items():
            store.write({key: None if size is None else bytes([number]) * size})
            if size is None:
                model.pop(key, None)
            else:
                model[key] = bytes([number]) * size
        assert list(store.scan()) == sorted(model.items())
        assert store.get_many([b"a", b"b", b"c", b"d"]) == [
            model.get(key) for key in (b"a", b"b", b"c", b"d")
        ]


def test_a_store_in_memory_gives_room_to_what_replaces_other_entries() -> None:
    store = MemoryStore({b"stays%d" % number: bytes(1_000) for number in range(1_000)})
    before = psutil.Process().memory_info().rss
    for number in range(300):  # 1 MB each
        store.write({b"goes%d" % key: bytes([number % 256]) * 10_000 for key in range(100)})
    assert psutil.Process().memory_info().rss - before < 50_000_000
    assert all(value == bytes(1_000) for _, value in store.scan(b"stays"))
    assert {value[0] for _, value in store.scan(b"goes")} == {299 % 256}
