"""The totals of one account: debits, credits and hold of each asset."""

from __future__ import annotations

import msgspec

Texts = dict[str, tuple[str, str, str]]
"""Asset to debits, credits and hold, as canonical texts; assets in order, rows of zeros left out.
"""

decode_texts = msgspec.json.Decoder(Texts).decode
"""The totals in a stored entry."""
