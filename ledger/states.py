"""States on disk: made, replaced and removed so that half of one is never taken for a whole."""

from __future__ import annotations

import contextlib
import itertools
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from ledger.objects import keep_on_disk
from ledger.rocks import RocksStore

_BATCH: Final = 20_000


def restored_path(path: Path) -> Path:
    """Return where a state is made that will be put at `path`."""
    return path.with_suffix(".restored")


def make_state(path: Path, entries: Iterable[tuple[bytes, bytes]]) -> None:
    """Make a state of entries, safe on the disk, at `restored_path(path)`; all of it or nothing.

    Raises:
        StateError: it cannot be written; or whatever the entries raise.
    """
    directory = restored_path(path)
    shutil.rmtree(directory, ignore_errors=True)
    left = iter(entries)
    try:
        with contextlib.closing(RocksStore(directory)) as store:
            while batch := dict(itertools.islice(left, _BATCH)):
                store.write(batch)
            store.flush()
        for written in directory.iterdir():
            keep_on_disk(written)
        keep_on_disk(directory)
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise


def put_in_place(path: Path) -> None:
    """Put the state that `make_state` made in the place of the one at `path`; neither is open."""
    remove_state(path)
    restored_path(path).rename(path)
    keep_on_disk(path.parent)


def remove_state(path: Path) -> None:
    """Remove a state at once: half of one, left by a kill, would be taken for damaged."""
    with contextlib.suppress(FileNotFoundError):
        path.rename(_removed(path))
    shutil.rmtree(_removed(path), ignore_errors=True)


def tidy(path: Path) -> None:
    """Remove what a kill left beside a state, of making or removing one."""
    shutil.rmtree(restored_path(path), ignore_errors=True)
    shutil.rmtree(_removed(path), ignore_errors=True)


def _removed(path: Path) -> Path:
    return path.with_suffix(".removed")
