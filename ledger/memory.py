"""How a process takes memory from the system, and gives it back.

Measured with `make bench`; of other systems than Linux with glibc nothing is asked.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
from typing import Final

from ledger._fold import give_back_memory_after

_M_TRIM_THRESHOLD: Final = -1  # these are of malloc.h
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8
_PR_SET_THP_DISABLE: Final = 41  # of prctl.h

_KEPT_BYTES: Final = 16 << 20
_MAPPED_BYTES: Final = 8 << 20
_LARGE_STATE_BYTES: Final = 256 << 20
_ARENAS: Final = 4
_FREE_MS: Final = 10
_LARGE_STATE_FREE_MS: Final = 2_000


def live_long(state_bytes: int) -> None:
    """Take no more memory, nor time to look after it, than the work of a server needs.

    All threads allocate from one arena, because RocksDB's would keep apart what they have freed.
    What is large but needed again and again is not given back each time, nor what the fold frees
    for some milliseconds; after a flush, that is much, and the next is some time away. (Of a large
    state the next flush comes before two seconds are over, and needs all of it.) And Python does
    not look for garbage among what it imported.

    Args:
        state_bytes: how much is on disk. With much, each record makes RocksDB allocate, and its
            threads would wait for each other: some arenas then cost 40 MiB and save a twentieth
            of the time.
    """
    _use_small_pages()
    is_large = state_bytes >= _LARGE_STATE_BYTES
    library = ctypes.CDLL(None)
    with contextlib.suppress(AttributeError):
        library.mallopt(_M_ARENA_MAX, _ARENAS if is_large else 1)
        library.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
        library.mallopt(_M_MMAP_THRESHOLD, _MAPPED_BYTES)
    give_back_memory_after(_LARGE_STATE_FREE_MS if is_large else _FREE_MS)
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def live_shortly() -> None:
    """Keep what memory there is until the process ends, which is soon."""
    _use_small_pages()
    give_back_memory_after(-1)


def _use_small_pages() -> None:
    # Most of a huge page would be empty, and a new one takes long to clear: a replay of 1,000,000
    # fills spent a fifth of its time in that.
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_THP_DISABLE, 1, 0, 0, 0)
