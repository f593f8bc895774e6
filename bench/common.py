"""What the benchmarks share: a stack of their own, and where results are kept."""

from __future__ import annotations

import json
import os
import platform
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ledger.settings import Settings
from ledger.stack import down, up

PARTITIONS = 4

_RESULTS = Path(__file__).parent / "results.jsonl"
_MACHINE = {
    "at": datetime.now(UTC).isoformat(timespec="seconds"),
    "cores": os.cpu_count(),
    "python": platform.python_version(),
}


@contextmanager
def stack() -> Iterator[tuple[str, Path]]:
    """Yield the address of a broker, LEDGER_KAFKA's or one of our own, and a directory."""
    with tempfile.TemporaryDirectory(prefix="ledger-bench-") as name:
        base = Settings(
            state_dir=Path(name) / "stack",
            kafka=os.environ.get("LEDGER_KAFKA"),
            amqp="amqp://unused",
            partitions=PARTITIONS,
        )
        kafka = up(base, print).kafka
        try:
            yield kafka, Path(name)
        finally:
            down(base, print)


def record(result: dict[str, Any]) -> None:
    """Append a result, with the machine's core count, to results.jsonl."""
    with _RESULTS.open("a") as file:
        file.write(json.dumps(_MACHINE | result) + "\n")
