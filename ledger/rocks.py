"""The durable store: one RocksDB for each partition, changes and watermark in one write batch.

RocksDB need not keep a log of its own: the topics are the log. After a kill a store is as it was
after an earlier batch, and what came later is folded again: at most what memory buffers.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import resource
import shutil
import threading
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import rocksdict

from ledger._fold import put_all
from ledger.errors import DamagedState, StateError, StateInUse
from ledger.store import Changes

logger = logging.getLogger(__name__)

_MARKER = "DAMAGED"
_SIGNS_OF_DAMAGE = ("Corruption", "No such file", "checksum")
_SIGNS_OF_USE = ("lock hold by current process", "/LOCK: Resource temporarily unavailable")
_REBUILT = "It has to be rebuilt from a snapshot or the topics."

_CACHE_BYTES = 4 << 20
_BLOCK_BYTES = 1000
_INDEX_RESTART_INTERVAL = 8
_BUFFER_BYTES = 2 << 20
_BUFFERS = 96
"""Of one store; when so many wait, RocksDB writes them to a file by itself."""
_BUFFERED_BYTES = 18 << 20
_LARGE_BUFFERED_BYTES = 192 << 20
_BUFFERED_SHARE = 3
"""All stores together may have this part of what is in files beyond a small state."""
_SMALL_STATE_BYTES = 128 << 20
_READ_AHEAD_BYTES = 256 << 10
_RUNS = 16
_RUNS_AT_REST = 4
_OPEN_FILES = 1_000

# Shared by all stores of a process. (RocksDB's default cache alone is 32 MiB a database.)
_CACHE = rocksdict.Cache(_CACHE_BYTES)


class _Memory:
    """Memory for what was written and is not in files yet, of all stores of a process together.

    It grows with what is in files, within bounds: the larger a state, the more it costs to write
    many small files, to merge them, and to look through them for a key.
    """

    def __init__(self) -> None:
        self._files: WeakKeyDictionary[RocksStore, int] = WeakKeyDictionary()  # bytes in files
        self._lock = threading.Lock()

    def share(self, store: RocksStore, files: int) -> int:
        """Take note of how much a store has in files; return what it may have in memory."""
        with self._lock:
            self._files[store] = files
            beyond = max(0, sum(self._files.values()) - _SMALL_STATE_BYTES)
            together = min(_BUFFERED_BYTES + beyond // _BUFFERED_SHARE, _LARGE_BUFFERED_BYTES)
            return together // len(self._files)

    def forget(self, store: RocksStore) -> None:
        """Forget a store that is closed."""
        with self._lock:
            self._files.pop(store, None)


_MEMORY = _Memory()


def _options() -> Any:
    options = rocksdict.Options(raw_mode=True)
    options.create_if_missing(True)
    # A batch is in order of its keys: it costs a third in a buffer that is new. They are written to
    # files together; see `_write_file`.
    options.set_write_buffer_size(_BUFFER_BYTES)
    options.set_max_write_buffer_number(_BUFFERS)
    options.set_min_write_buffer_number_to_merge(_BUFFERS)
    # Few entries change again soon, and those all over the keys: what is large is seldom rewritten.
    options.set_compaction_style(rocksdict.DBCompactionStyle.universal())
    options.set_level_zero_file_num_compaction_trigger(_RUNS)
    options.set_level_zero_slowdown_writes_trigger(3 * _RUNS)
    options.set_level_zero_stop_writes_trigger(4 * _RUNS)
    options.set_compaction_readahead_size(_READ_AHEAD_BYTES)
    # Most look-ups are for keys that are not there: filters spare the search, also in memory.
    options.set_memtable_whole_key_filtering(True)
    options.set_memtable_prefix_bloom_ratio(0.03)  # some 20 bits a key
    # A file that is opened anew for a look-up costs ten of them.
    options.set_max_open_files(_OPEN_FILES)
    options.set_keep_log_file_num(2)
    options.set_compression_type(rocksdict.DBCompressionType.lz4())
    table = rocksdict.BlockBasedOptions()
    table.set_block_cache(_CACHE)
    table.set_block_size(_BLOCK_BYTES)
    table.set_index_block_restart_interval(_INDEX_RESTART_INTERVAL)
    table.set_bloom_filter(10, False)
    options.set_block_based_table_factory(table)
    return options


def _reading() -> Any:
    # What is likely to be asked for again, the fold keeps: to cache its blocks is a third of the
    # cost of a look-up.
    options = rocksdict.ReadOptions()
    options.fill_cache(False)  # type: ignore[call-arg]  # the stubs lack its argument
    return options


def stored_bytes(directory: Path) -> int:
    """Return how much is in the files of the stores in a directory, and in those below it."""
    found = 0
    for file in directory.rglob("*.sst"):
        with contextlib.suppress(FileNotFoundError):  # compacted away meanwhile
            found += file.stat().st_size
    return found


def allow_open_files() -> None:
    """Let this process have as many files open as it may: those of large states are many."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


class RocksStore:
    """A `ledger.store.Store` in a directory of its own."""

    def __init__(self, directory: Path, *, keeps_log: bool = False) -> None:
        """Open or create the store.

        Args:
            directory: where it is.
            keeps_log: whether a kill loses nothing: for what the topics alone do not say.

        Raises:
            StateInUse: it is open already, here or in another process.
            DamagedState: it is damaged.
            StateError: it cannot be read or written.
        """
        self.directory = directory
        self._writing = rocksdict.WriteOptions()
        # The stubs take this property for a method.
        self._writing.disable_wal = not keeps_log  # type: ignore[method-assign, assignment]
        if (directory / _MARKER).exists():
            raise DamagedState(f"The state in {directory} was found damaged. {_REBUILT}")
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._runs = _RUNS
            options = _options()
            # Without the latter, a database that is there already is opened with defaults.
            self._db: Any = rocksdict.Rdict(str(directory), options, {"default": options})
            self._db.set_read_options(_reading())
            _MEMORY.share(self, self._number_of("total-sst-files-size"))
        except Exception as error:  # rocksdict raises plain exceptions of its own making
            if any(sign in str(error) for sign in _SIGNS_OF_USE):
                raise StateInUse(
                    f"The state in {directory} is in use ({error}). Wait for that process to end."
                ) from error
            raise self._trouble(error) from error

    def _trouble(self, error: Exception) -> StateError:
        """Return what RocksDB's error means."""
        if any(sign in str(error) for sign in _SIGNS_OF_DAMAGE):
            return DamagedState(f"The state in {self.directory} is damaged ({error}). {_REBUILT}")
        return StateError(
            f"The state in {self.directory} cannot be used ({error}). Mend that, for example free "
            "some space, and start again: it goes on where it stopped."
        )

    def _number_of(self, name: str) -> int:
        return self._db.property_int_value(f"rocksdb.{name}") or 0

    def _write_file(self) -> None:
        """Let what is in memory become a file if it is too much; wait where it is twice that."""
        share = _MEMORY.share(self, self._number_of("total-sst-files-size"))
        buffered = self._number_of("cur-size-all-mem-tables")
        if buffered >= 2 * share:
            self._db.flush(True)
        elif buffered >= share and not self._number_of("num-running-flushes"):
            self._db.flush(False)

    def merge_files(self, *, at_rest: bool) -> None:
        """Have files merged as soon as there are a few, or not before they are many.

        Each file that a key is looked for in takes time, and merging them a core. So a store that
        is at rest has few, and one that has work puts it off. RocksDB's own threads do it.

        Raises:
            StateError: that cannot be set.
        """
        runs = _RUNS_AT_REST if at_rest else _RUNS
        if runs == self._runs:
            return
        try:
            self._db.set_options({"level0_file_num_compaction_trigger": str(runs)})
        except Exception as error:
            raise self._trouble(error) from error
        self._runs = runs

    def mark_damaged(self) -> None:
        """Note in the directory that the store is damaged, so that no one opens it again.

        Raises:
            StateError: that cannot be noted.
        """
        try:
            (self.directory / _MARKER).touch()
        except OSError as error:
            raise self._trouble(error) from error

    def get(self, key: bytes) -> bytes | None:
        """Return the value of a key, or None.

        Raises:
            DamagedState: the block that has it is damaged.
        """
        try:
            value: bytes | None = self._db.get(key)
        except Exception as error:
            raise self._trouble(error) from error
        return value

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the value of each key, or None.

        Raises:
            DamagedState: a block that has one is damaged.
        """
        try:
            values: list[bytes | None] = self._db.get(list(keys))
        except Exception as error:
            raise self._trouble(error) from error
        return values

    def scan(self, prefix: bytes = b"") -> Generator[tuple[bytes, bytes], None, None]:
        """Yield the entries whose key begins with `prefix`, in key order.

        They are those at the time of the first step: later writes are not seen. The database
        stays locked while an iterator of it lives.

        Raises:
            DamagedState: a block is damaged; the entries so far are not all there are.
        """
        entries = self._db.snapshot().iter()
        entries.seek(prefix)
        while entries.valid():
            key = entries.key()
            if not key.startswith(prefix):
                return
            yield key, entries.value()
            entries.next()
        try:
            entries.status()  # at a damaged block an iterator just ends
        except Exception as error:
            raise self._trouble(error) from error

    def write(self, changes: Changes) -> None:
        """Put every entry, delete those whose value is None, in one atomic batch.

        Raises:
            StateError: it cannot be written; nothing of it was.
        """
        batch = rocksdict.WriteBatch(raw_mode=True)
        put_all(changes.items(), batch.put, batch.delete)
        try:
            self._write_file()
            self._db.write(batch, self._writing)
        except Exception as error:
            raise self._trouble(error) from error

    def flush(self) -> None:
        """Bring everything that was written to disk, where a kill or a power loss leaves it.

        Raises:
            StateError: it cannot be written.
        """
        try:
            self._db.flush()
        except Exception as error:
            raise self._trouble(error) from error

    def close(self) -> None:
        """Close the store and let go of its lock.

        What was written is brought to disk if there is room; who must know calls `flush` before.
        """
        database, self._db = self._db, None
        if database is not None:
            _MEMORY.forget(self)
            try:
                database.close()
            except Exception as error:  # noqa: BLE001 - what is not on disk is folded again
                logger.info("The state in %s was not closed in order: %s", self.directory, error)
            del database
            gc.collect(0)

    def destroy(self) -> None:
        """Close the store and remove it from disk."""
        self.close()
        shutil.rmtree(self.directory)
