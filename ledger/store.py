"""Where a partition's entries are kept: what the fold asks of a store, and the store in memory.

Keys are made so that what is read together lies together; see `ledger.projections.entries`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from heapq import merge
from operator import itemgetter
from typing import Protocol

from ledger._fold import MemoryStore

__all__ = ["Changes", "MemoryStore", "PastStore", "Store", "note_replaced"]


class Changes(Protocol):
    """Entries to be put by their key, None for those to be deleted. A dict is such."""

    def items(self) -> Iterable[tuple[bytes, bytes | None]]:
        """Return the keys and values; may be called again."""
        ...


class Store(Protocol):
    """Sorted bytes to bytes. `ledger.rocks.RocksStore` is the durable one."""

    def get(self, key: bytes) -> bytes | None:
        """Return the value of a key, or None."""
        ...

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the value of each key, or None."""
        ...

    def scan(self, prefix: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """Yield the entries whose key begins with `prefix`, in key order."""
        ...

    def write(self, changes: Changes) -> None:
        """Put every entry, delete those whose value is None: all of it or nothing."""
        ...


class PastStore:
    """What a store held before it was changed, seen through the values that were replaced since.

    It is read only, and right as long as every later change is noted in `replaced` first.
    """

    def __init__(self, store: Store, replaced: Store) -> None:
        """See a store's past.

        Args:
            store: as it is now.
            replaced: the value before of each key that changed; empty where there was none.
        """
        self._store = store
        self._replaced = replaced

    def get(self, key: bytes) -> bytes | None:
        """Return the value that a key had, or None."""
        value = self._replaced.get(key)
        return self._store.get(key) if value is None else value or None

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the value that each key had, or None."""
        return list(map(self.get, keys))

    def scan(self, prefix: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """Yield the entries that there were whose key begins with `prefix`, in key order."""
        last = None
        # Of two entries with one key, `merge` yields that of the first iterator first.
        for key, value in merge(
            self._replaced.scan(prefix), self._store.scan(prefix), key=itemgetter(0)
        ):
            if key != last and value:
                yield key, value
            last = key

    def write(self, changes: Changes) -> None:
        """Refuse: nobody changes the past."""
        raise AssertionError(f"the past was to be changed: {dict(changes.items())}")


def note_replaced(store: Store, changes: Changes, replaced: Store) -> None:
    """Note in `replaced` what `store` holds of keys that are about to be changed, for `PastStore`.

    What was noted before stays.
    """
    keys = [key for key, _ in changes.items()]
    new = [key for key, noted in zip(keys, replaced.get_many(keys), strict=True) if noted is None]
    before = zip(new, store.get_many(new), strict=True)
    replaced.write({key: value or b"" for key, value in before})
