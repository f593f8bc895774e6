"""States that a replay keeps on disk: later runs or workers go on with them."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Final

import msgspec

from ledger.errors import InputError, StateInUse
from ledger.events import RULES_VERSION
from ledger.objects import keep_on_disk
from ledger.positions import Watermarks, format_positions
from ledger.projections.partition import Origin
from ledger.rebuild import Base, Entries
from ledger.rocks import RocksStore
from ledger.settings import Settings
from ledger.states import make_state, put_in_place, tidy

_ABOUT: Final = "replay.json"
_LOCK: Final = "lock"


class About(msgspec.Struct, frozen=True):
    """What a directory's states are: which replay they belong to, wherever it ends."""

    rules_version: int
    origin: Origin
    base: str
    start: str


class StateFiles:
    """The stores of partitions in a directory (a `ledger.rebuild.Stores`)."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._stores: dict[Path, RocksStore] = {}

    def path(self, number: int) -> Path:
        """Return where a partition's state is."""
        return self.directory / f"p{number}"

    def store(self, number: int) -> RocksStore:
        """Return a partition's store, with what an earlier run left in it."""
        path = self.path(number)
        if path not in self._stores:
            tidy(path)
        return self._open(path)

    def restored(self, number: int, entries: Entries) -> RocksStore:
        """Return a partition's store with the entries of a snapshot; if they fail, it is empty."""
        path = self.path(number)
        make_state(path, entries)
        if path in self._stores:
            self._stores.pop(path).close()
        put_in_place(path)
        return self._open(path)

    def replaced(self, number: int) -> RocksStore:
        """Return the store for what a partition's entries were at the start.

        It keeps a log, so that no kill leaves it behind the store whose past it is.
        """
        return self._open(self.directory / f"p{number}-before", keeps_log=True)

    def _open(self, path: Path, *, keeps_log: bool = False) -> RocksStore:
        if path not in self._stores:
            self._stores[path] = RocksStore(path, keeps_log=keeps_log)
        return self._stores[path]

    def flush(self) -> None:
        """Bring to disk what was settled, where later runs find it.

        Raises:
            StateError: it cannot be written.
        """
        # The past first: at no moment may what is on disk of a store be ahead of its past.
        for path in sorted(self._stores, key=lambda path: not path.name.endswith("-before")):
            self._stores[path].flush()

    def close(self) -> None:
        """Close all stores; what was settled stays."""
        for store in self._stores.values():
            store.close()
        self._stores = {}


@contextlib.contextmanager
def temporary_states() -> Iterator[StateFiles]:
    """Give states in a directory that is removed in the end; TMPDIR says where it is."""
    with tempfile.TemporaryDirectory(prefix="replay-", ignore_cleanup_errors=True) as directory:
        states = StateFiles(Path(directory))
        with contextlib.closing(states):
            yield states


def claim_directory(
    directory: Path, origin: Origin, base: Base, start: Watermarks, partitions: Iterable[int]
) -> IO[str]:
    """Return the lock on a directory that holds, or from now on will hold, this replay's states.

    Raises:
        InputError: it holds another replay's, or something else, or cannot be used.
        StateInUse: another process uses it.
    """
    named = {number: start[number] for number in sorted(partitions)}
    about = About(RULES_VERSION, origin, base, format_positions(named))
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = _lock(directory)
        try:
            _check(directory, about)
        except BaseException:
            lock.close()
            raise
    except OSError as error:
        raise InputError(f"{directory} cannot be used for states: {error}.") from error
    return lock


def _lock(directory: Path) -> IO[str]:
    lock = (directory / _LOCK).open("a")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.close()
        raise StateInUse(f"Another replay works in {directory}. Wait for its end.") from error
    return lock


def _check(directory: Path, about: About) -> None:
    file = directory / _ABOUT
    if file.exists():
        try:
            found = msgspec.json.decode(file.read_bytes(), type=About)
        except msgspec.DecodeError as error:
            raise InputError(f"{file} is damaged ({error}). Use another directory.") from error
        for name in About.__struct_fields__:
            there, wanted = getattr(found, name), getattr(about, name)
            if there != wanted:
                raise InputError(
                    f"{directory} holds the states of another replay: its {name} is {there}, this "
                    f"one's is {wanted}. Use another directory, or the same options."
                )
        return
    unfinished = file.with_suffix(".new")  # a kill or a full disk may leave it
    if any(path.name not in (_LOCK, unfinished.name) for path in directory.iterdir()):
        raise InputError(f"{directory} holds something else than states. Use another directory.")
    unfinished.write_bytes(msgspec.json.encode(about))
    keep_on_disk(unfinished)
    unfinished.rename(file)
    keep_on_disk(directory)


class WorkerStates:
    """A state directory that is being made for workers to start from."""

    def __init__(self, directory: Path, settings: Settings, workers: int) -> None:
        """Name the directory; nothing is made yet.

        Args:
            directory: what will be the workers' `LEDGER_STATE_DIR`.
            settings: have the topics' prefix.
            workers: how many will share it.

        Raises:
            InputError: there is something of workers already.
        """
        self._places = directory / settings.topic("worker")
        self._workers = workers
        self.unfinished = directory / f".{settings.topic('worker')}-unfinished"
        if self._places.exists():
            raise InputError(f"{self._places} is there already. Name another directory.")

    def finish(self, numbers: Iterable[int]) -> None:
        """Put the states of partitions, all closed, where workers look for them: all or none.

        Raises:
            InputError: the directory cannot be written.
            StateInUse: another replay makes them meanwhile.
        """
        try:
            with _lock(self.unfinished):
                made = self.unfinished / "places"
                shutil.rmtree(made, ignore_errors=True)  # what a kill left
                for number in numbers:
                    place = made / str(number % self._workers)
                    place.mkdir(parents=True, exist_ok=True)
                    (self.unfinished / f"p{number}").rename(place / f"p{number}")
                    keep_on_disk(place)
                keep_on_disk(made)
                made.rename(self._places)
                keep_on_disk(self._places.parent)
                shutil.rmtree(self.unfinished)
        except OSError as error:
            raise InputError(f"{self._places} cannot be written: {error}.") from error
