"""The command `python -m replay --json`, compared with the reference for a whole ledger."""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal, localcontext
from typing import Any

from ledger.events import INPUT_TOPICS
from ledger.positions import Watermarks, format_positions
from ledger.rebuild import Base, watermarks_json
from ledger.settings import Settings
from tests.reference import EXACT
from tests.support import command
from tests.watermarks.naive import Answer, ledger_digest
from tests.watermarks.proof import differences

Rows = dict[tuple[str, str], dict[str, Decimal]]


def compare_command(
    settings: Settings,
    start: Watermarks,
    end: Watermarks,
    base: Base,
    threads: int,
    answers: Mapping[int, Answer],
) -> list[str]:
    """Return what the command says otherwise than the reference, in a sentence each.

    Args:
        settings: of the ledger.
        start: where records begin to count as replayed.
        end: where the replay stops.
        base: the state before the start.
        threads: how many the command uses.
        answers: what the reference says of each partition at the end, balances included.
    """
    arguments = [
        *("--from-offset", format_positions(start), "--to-offset", format_positions(end)),
        *("--base", base, "--threads", str(threads), "--json"),
    ]
    ran = command(settings, "replay", *arguments)
    if ran.returncode != 0:
        return [f"the command ended with {ran.returncode}: {ran.stderr.strip()}"]
    said = json.loads(ran.stdout)
    found: dict[str, dict[Any, Any]] = {
        "watermarks": said["watermarks"],
        "digests": {**said["partition_digests"], "ledger": said["state_digest"]},
        "log digests": said["log_digest"],
        "counts": said["counts"],
        "conservation": said["conservation"],
        "balances": _rows_said(said),
    }
    name = f"the command with base {base}, threads {threads}"
    return [
        f"{name}: {what}: {differences(found[what], expected)}"
        for what, expected in _expected(end, answers).items()
        if found[what] != expected
    ]


def _expected(end: Watermarks, answers: Mapping[int, Answer]) -> dict[str, dict[Any, Any]]:
    numbers = sorted(answers)
    digests = {str(number): answers[number].state_digest for number in numbers}
    rows = _rows(answers)
    return {
        "watermarks": watermarks_json(end),
        "digests": {**digests, "ledger": ledger_digest(digests.values())},
        "log digests": {
            topic: {str(number): answers[number].log_digests[topic] for number in numbers}
            for topic in INPUT_TOPICS
        },
        "counts": {
            topic: {
                verdict: sum(answer.counts[topic][verdict] for answer in answers.values())
                for verdict in answers[0].counts[topic]
            }
            for topic in INPUT_TOPICS
        },
        "conservation": dict.fromkeys((asset for _, asset in rows), "0"),
        "balances": rows,
    }


def _rows(answers: Mapping[int, Answer]) -> Rows:
    """Return the balances of all partitions; a system account has a part in each."""
    rows: Rows = {}
    with localcontext(EXACT):
        for answer in answers.values():
            for account, row in answer.balances.items():
                for asset, (debits, credits_, hold) in row.items():
                    sums = rows.setdefault((account, asset), dict.fromkeys(_NAMES, Decimal(0)))
                    balance = credits_ - debits
                    sums["debits"] += debits
                    sums["credits"] += credits_
                    sums["hold"] += hold
                    sums["balance"] += balance
                    sums["available"] += balance - hold
    return rows


_NAMES = ("balance", "hold", "available", "debits", "credits")


def _rows_said(said: Mapping[str, Any]) -> Rows:
    return {
        (row["account"], row["asset"]): {name: Decimal(row[name]) for name in _NAMES}
        for row in said["balances"]
    }
