"""The JSON documents of `replay`, and the manifest of its tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from ledger.amounts import plain
from ledger.events import INPUT_TOPICS, RULES_VERSION
from ledger.journal import is_system
from ledger.positions import format_positions
from ledger.projections.partition import Origin, Partition
from ledger.published import Total
from ledger.rebuild import watermarks_json
from replay.causes import entries_of_span, orders_of_span
from replay.results import Change, PartitionReplay, Replay, Shown, totals_of
from replay.verify import Verification
from replay.whatif import WhatIf


def document(
    replay: Replay,
    shown: Shown,
    verification: Verification | None,
    what_if: WhatIf | None,
    differences: Iterable[Change] | None,
) -> dict[str, Any]:
    """Return the document; amounts are plain decimal strings.

    Args:
        replay: what to say.
        shown: which rows of balances and changes.
        verification: with `--verify`, what it found.
        what_if: the rules of a what-if.
        differences: with it, how what is shown ends otherwise than what really was.
    """
    result: dict[str, Any] = {
        "balances": [total.as_json(account, asset) for account, asset, total in replay.rows(shown)],
        "watermarks": watermarks_json(replay.watermarks),
        **_proofs(replay),
        "from": watermarks_json(replay.start),
        "to": watermarks_json(replay.watermarks),
        "records_read": _per_topic(replay, lambda part: part.records_read),
        "records_replayed": _per_topic(replay, lambda part: part.records_replayed),
        "seconds": round(replay.seconds, 3),
        "rate": round(replay.rate, 1),
        "changed": [_change(change) for change in replay.changes(shown)],
    }
    if verification is not None:
        result["verify"] = verification.as_json()
    if what_if is not None:
        result["what_if"] = {
            "rules": what_if.describe(),
            "matched": dict(what_if.matched),
            "differences": [_change(change) for change in differences or ()],
        }
    return result


def diff_document(replay: Replay, shown: Shown) -> dict[str, Any]:
    """Return what `replay diff --json` prints: each change with the records behind it."""
    return {
        "from": watermarks_json(replay.start),
        "to": watermarks_json(replay.watermarks),
        "records_replayed": _per_topic(replay, lambda part: part.records_replayed),
        "changed": [
            {**_change(change), **_causes(replay, change, shown)}
            for change in replay.changes(shown)
        ],
    }


def _causes(replay: Replay, change: Change, shown: Shown) -> dict[str, Any]:
    account, asset = change.account, change.asset
    if is_system(account) and account not in shown.accounts:
        return {"entries": None, "orders": []}
    parts = replay.parts_of(account)
    return {
        "entries": [
            entry.as_json()
            for entry in entries_of_span(parts, account)
            if any((p.account, p.asset) == (account, asset) for p in entry.postings)
        ],
        "orders": [
            order.as_json()
            for part in parts
            for order in orders_of_span(part, account)
            if order.asset == asset
        ],
    }


def statement_document(replay: Replay, account: str) -> dict[str, Any]:
    """Return what `replay statement --json` prints."""
    parts = replay.parts_of(account)
    return {
        "account": account,
        "from": watermarks_json(replay.start),
        "to": watermarks_json(replay.watermarks),
        "opening": _rows(account, (part.before for part in parts)),
        "entries": [entry.as_json() for entry in entries_of_span(parts, account)],
        "closing": _rows(account, (part.after for part in parts)),
    }


def _rows(account: str, states: Iterable[Partition]) -> list[dict[str, str]]:
    return [total.as_json(*key) for key, total in totals_of(account, states).items()]


def manifest(
    replay: Replay, origin: Origin, shown: Shown, what_if: WhatIf | None
) -> dict[str, Any]:
    """Return what the tables of a replay are of; it is the same for the same state."""
    return {
        "rules_version": RULES_VERSION,
        "cluster_id": origin.cluster_id,
        "topic_ids": origin.topic_ids,
        "partitions": origin.partitions,
        "from": watermarks_json(replay.start),
        "to": watermarks_json(replay.watermarks),
        "watermark": format_positions(replay.watermarks),
        **_proofs(replay),
        "only_accounts": sorted(shown.accounts),
        "only_assets": sorted(shown.assets),
        "what_if": None if what_if is None else what_if.describe(),
    }


def _proofs(replay: Replay) -> dict[str, Any]:
    return {
        "counts": replay.counts,
        "state_digest": replay.state_digest,
        "partition_digests": {str(n): part.state_digest for n, part in replay.partitions.items()},
        "log_digest": _log_digests(replay),
        "conservation": {asset: plain(rest) for asset, rest in replay.conservation.items()},
        "base": {str(n): part.base for n, part in replay.partitions.items()},
    }


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
