"""A real worker that kills itself: `python -m tests.crashing_worker POINT N`, at the Nth arrival.

A point lies before or after a call; the call is wrapped here, so that the ledger's own code has no
hooks. What is not on disk or with the broker by then is lost, as when a machine's process dies.
"""

from __future__ import annotations

import functools
import itertools
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from ledger.agents.chunked import ChunkedApp
from ledger.agents.owned import OwnedPartition
from ledger.agents.publisher import Publisher
from ledger.agents.worker import LedgerApp
from ledger.app import run_worker
from ledger.projections.partition import Partition
from ledger.rocks import RocksStore
from ledger.settings import load_settings
from ledger.snapshots import Snapshots

_FLUSH_S: Final = 5.0

Crash = Callable[[], None]


def _before(owner: Any, name: str, applies: Callable[..., bool] = lambda *_: True) -> Any:
    """Return how to crash before a call of `name` whose arguments apply."""

    def arm(crash: Crash) -> None:
        original = getattr(owner, name)

        @functools.wraps(original)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if applies(*args):
                crash()
            return original(*args, **kwargs)

        setattr(owner, name, wrapper)

    return arm


def _after(owner: Any, name: str, applies: Callable[..., bool] = lambda *_: True) -> Any:
    """Return how to crash after a call of `name` that succeeded."""

    def arm(crash: Crash) -> None:
        original = getattr(owner, name)

        @functools.wraps(original)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            if applies(*args):
                crash()
            return result

        setattr(owner, name, wrapper)

    return arm


def _after_await(owner: Any, name: str) -> Any:
    """Return how to crash when a coroutine has returned something true."""

    def arm(crash: Crash) -> None:
        original = getattr(owner, name)

        @functools.wraps(original)
        async def wrapper(*args: Any, **kwargs: Any) -> Any:
            result = await original(*args, **kwargs)
            if result:
                crash()
            return result

        setattr(owner, name, wrapper)

    return arm


class _Producer:
    """A transactional producer whose steps are crash points."""

    def __init__(self, producer: Any, point: str, crash: Crash) -> None:
        self._producer = producer
        self._point = point
        self._crash = crash

    def __getattr__(self, name: str) -> Any:
        return getattr(self._producer, name)

    def _at(self, point: str) -> None:
        if self._point == point:
            self._crash()

    def begin_transaction(self) -> None:
        self._at("before begin")
        self._producer.begin_transaction()
        self._at("after begin")

    def produce(self, *args: Any, **kwargs: Any) -> None:
        self._producer.produce(*args, **kwargs)
        self._at("after produce")

    def produce_batch(self, *args: Any, **kwargs: Any) -> None:
        self._producer.produce_batch(*args, **kwargs)
        self._at("after produce")

    def commit_transaction(self, *args: Any) -> None:
        if self._point == "before commit":
            self._producer.flush(_FLUSH_S)  # all of it is in the topics, and none is committed
            self._crash()
        self._producer.commit_transaction(*args)
        self._at("after commit")


def _producing(point: str) -> Any:
    def arm(crash: Crash) -> None:
        original = Publisher.__init__

        def wrapper(self: Any, *args: Any, **kwargs: Any) -> None:
            original(self, *args, **kwargs)
            self._producer = _Producer(self._producer, point, crash)

        Publisher.__init__ = wrapper  # type: ignore[method-assign]

    return arm


def _is_restoring(store: RocksStore, *_: object) -> bool:
    return store.directory.suffix == ".restored"


def _is_not_restoring(store: RocksStore, *_: object) -> bool:
    return not _is_restoring(store)


def _is_snapshot(path: Path, *_: object) -> bool:
    return ".parquet" in path.name


def _is_restored(path: Path, *_: object) -> bool:
    return path.suffix == ".restored"


POINTS: Final[dict[str, Callable[[Crash], None]]] = {
    "before acquire": _before(OwnedPartition, "acquire"),
    "after acquire": _after(OwnedPartition, "acquire"),
    "receive": _before(LedgerApp, "fold"),
    "after apply": _after(Partition, "apply"),
    "after freeze": _after(Partition, "freeze"),
    **{
        point: _producing(point)
        for point in ("before begin", "after begin", "after produce", "before commit")
    },
    "after commit": _producing("after commit"),
    "before write": _before(RocksStore, "write", _is_not_restoring),
    "after write": _after(RocksStore, "write", _is_not_restoring),
    "before offsets": _before(ChunkedApp, "commit_offsets"),
    "after offsets": _after_await(ChunkedApp, "commit_offsets"),
    "before snapshot": _before(Snapshots, "write"),
    "before snapshot's name": _before(Path, "replace", _is_snapshot),
    "after snapshot's name": _after(Path, "replace", _is_snapshot),
    "while restoring": _after(RocksStore, "write", _is_restoring),
    "before restored": _before(Path, "rename", _is_restored),
    "after restored": _after(Path, "rename", _is_restored),
}


def main() -> None:
    """Run a worker that kills itself at the point named, when it comes there the Nth time."""
    point, number = sys.argv[1], int(sys.argv[2])
    arrivals = itertools.count(1)  # threads come here too; this is atomic

    def crash() -> None:
        if next(arrivals) == number:
            sys.stderr.write(f"crash: {point}\n")
            sys.stderr.flush()
            os.kill(os.getpid(), signal.SIGKILL)

    POINTS[point](crash)
    run_worker(load_settings())


if __name__ == "__main__":
    main()
