"""The JSON document of `replay --json`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ledger.amounts import plain
from ledger.events import INPUT_TOPICS
from ledger.published import Total
from ledger.rebuild import watermarks_json
from replay.results import Change, PartitionReplay, Replay, Shown
from replay.verify import Verification


def document(replay: Replay, shown: Shown, verification: Verification | None) -> dict[str, Any]:
    """Return the document; amounts are plain decimal strings."""
    result: dict[str, Any] = {
        "balances": [total.as_json(*row) for row, total in replay.after.items() if row in shown],
        "watermarks": watermarks_json(replay.watermarks),
        "counts": replay.counts,
        "state_digest": replay.state_digest,
        "log_digest": _log_digests(replay),
        "conservation": {asset: plain(rest) for asset, rest in replay.conservation.items()},
        "base": {str(n): part.base for n, part in replay.partitions.items()},
        "from": watermarks_json(replay.start),
        "to": watermarks_json(replay.watermarks),
        "records_read": _per_topic(replay, lambda part: part.records_read),
        "records_replayed": _per_topic(replay, lambda part: part.records_replayed),
        "seconds": round(replay.seconds, 3),
        "rate": round(replay.rate, 1),
        "changed": [
            _change(change)
            for change in replay.changes()
            if (change.account, change.asset) in shown
        ],
        "partition_digests": {str(n): part.state_digest for n, part in replay.partitions.items()},
    }
    if verification is not None:
        result["verify"] = verification.as_json()
    return result


def _log_digests(replay: Replay) -> dict[str, dict[str, str]] | None:
    digests = {n: part.log_digests for n, part in replay.partitions.items()}
    if any(chains is None for chains in digests.values()):
        return None
    return {
        topic: {str(n): chains[topic] for n, chains in digests.items() if chains is not None}
        for topic in INPUT_TOPICS
    }


def _per_topic(
    replay: Replay, of: Callable[[PartitionReplay], dict[str, int]]
) -> dict[str, dict[str, int]]:
    return {
        topic: {str(n): of(part)[topic] for n, part in replay.partitions.items()}
        for topic in INPUT_TOPICS
    }


def _change(change: Change) -> dict[str, Any]:
    return {
        "account": change.account,
        "asset": change.asset,
        "before": _amounts(change.before),
        "after": _amounts(change.after),
        "change": {"balance": plain(change.balance), "hold": plain(change.hold)},
    }


def _amounts(total: Total) -> dict[str, str]:
    row = total.as_json("", "")
    return {name: row[name] for name in ("balance", "hold", "available", "debits", "credits")}
