"""Text that is safe to show: nothing in a message moves the cursor or turns the line around.

HTML is not escaped: JSON is no page, and a page that shows texts has to escape them as always.
"""

from __future__ import annotations

import json
import unicodedata
from typing import Final

# Controls (Cc), line separators (Zl, Zp), format characters (Cf: marks that change the direction of
# writing, and what nobody sees), and halves of characters (Cs), which cannot be encoded.
_HARMFUL: Final = {"Cc", "Zl", "Zp", "Cf", "Cs"}
_JOINERS: Final = "\u200c\u200d"
"""Format characters that Persian, Hindi and emoji are not written without."""
_MARKS: Final = {"Mn", "Me"}
_MOST_MARKS: Final = 4
"""So many accents may stand on one letter; hundreds run over the lines above and below."""


def harmless(text: str) -> str:
    r"""Return `text` in one line, with what a terminal would obey written out as `\x1b`."""
    if text.isascii() and text.isprintable():
        return text
    shown = []
    marks = 0
    for character in text:
        category = unicodedata.category(character)
        marks = marks + 1 if category in _MARKS else 0
        if marks > _MOST_MARKS:
            continue
        if category == "Cs":
            shown.append("\ufffd")
        elif _is_harmful(character, category):
            shown.append(_escaped(character))
        else:
            shown.append(character)
    return "".join(shown)


def is_blank(text: str) -> bool:
    """Return whether nothing of a text can be seen: no letter, digit, mark or symbol is in it."""
    return not any(unicodedata.category(character)[0] in "LNPS" for character in text)


def harmless_json(document: str) -> str:
    """Return the same JSON, with what a terminal would obey in its strings written out."""
    if document.isprintable():
        return document
    return "".join(
        json.dumps(character)[1:-1]
        if character != "\n" and _is_harmful(character, unicodedata.category(character))
        else character
        for character in document
    )


def _is_harmful(character: str, category: str) -> bool:
    return category in _HARMFUL and character not in _JOINERS


def _escaped(character: str) -> str:
    code = ord(character)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
