"""Finds the line of a server's log that says why it did not start."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

_TROUBLE = re.compile(r"\b(ERROR|FATAL|error|Error|Exception|BOOT FAILED|failed|crash)\b|Exception")
_FRAME = re.compile(r"^(at |\.\.\. \d+ more|[=*+-]+$)")
_LAST_BYTES = 65_536


def set_aside(log: Path) -> None:
    """Keep the log of the start before under another name: each start has one of its own."""
    if log.exists():
        log.replace(log.with_name(f"{log.stem}.before{log.suffix}"))


def last_meaningful_line(logs: Sequence[Path]) -> str:
    """Return the newest line that speaks of an error, else the last line, else a remark.

    Args:
        logs: files in the order in which they are searched; those that do not exist are empty.
    """
    last = ""
    for log in logs:
        lines = [line for line in _tail(log) if not _FRAME.match(line)]
        troubles = [line for line in lines if _TROUBLE.search(line)]
        if troubles:
            return troubles[-1][:400]
        last = last or (lines[-1][:400] if lines else "")
    return last or "its log is empty"


def _tail(log: Path) -> list[str]:
    try:
        with log.open("rb") as handle:
            handle.seek(max(0, log.stat().st_size - _LAST_BYTES))
            text = handle.read().decode(errors="replace")
    except OSError:
        return []
    return [" ".join(line.split()) for line in text.splitlines() if line.strip()]
