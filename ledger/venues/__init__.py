"""Venues whose own exports can be imported; a new one is a module here and a line in `VENUES`.

A reader is pure: it is handed the file's lines and yields events, the same ones every time, so that
importing a file twice only makes duplicates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

from ledger.events import AnyEvent
from ledger.venues import hyperliquid

Reader = Callable[[Path, Iterable[bytes]], Iterator[AnyEvent]]
"""Of a file's name (for messages) and its lines as they are on disk: valid events, in order.

Raises InputError (`FILE:LINE: what is wrong; what to do`) at the first line that it cannot use.
"""

VENUES: Final[Mapping[str, Reader]] = {"hyperliquid": hyperliquid.events}
"""For each venue's name, as `ledger import` takes it, the reader of its export."""
