"""Text that is safe to show: nothing in a message moves the cursor or turns the line around."""

from __future__ import annotations

import re

# C0 and C1 controls, line separators, and the marks that change the direction of writing.
_HARMFUL = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def harmless(text: str) -> str:
    r"""Return `text` in one line, with what a terminal would obey written out as `\x1b`."""
    shown = _HARMFUL.sub(lambda match: _escaped(match.group()), text)
    return _LONE_SURROGATE.sub("\ufffd", shown)


def _escaped(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
