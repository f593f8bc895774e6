"""A replay's results as tables for people."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final

from rich.markup import escape

from ledger.amounts import plain
from ledger.comparison import Difference
from ledger.console import harmless, out, print_table
from ledger.events import INPUT_TOPICS
from ledger.positions import format_positions
from ledger.projections.partition import VERDICTS
from ledger.statement import running
from replay.assertions import Outcome
from replay.causes import entries_of_span, orders_of_span
from replay.findings import Proof
from replay.results import Change, PartitionReplay, Replay, Shown, totals_of
from replay.verify import Verification
from replay.whatif import WhatIf

ROWS: Final = 20
"""Rows of a table; of the others it is only said that there are some: they can be millions."""

_DIGEST_CHARACTERS: Final = 12
_MORE: Final = "--json shows all."


def show(replay: Replay, shown: Shown, verification: Verification | None) -> None:
    """Print what was done and what came out."""
    _partitions(replay)
    _counts(replay)
    _changes(replay, shown)
    if shown.accounts or shown.assets:
        _balances(replay, shown)
    _digests(replay)
    if verification is not None:
        _verification(verification)
    _conservation(replay)


def _partitions(replay: Replay) -> None:
    parts = list(replay.partitions.values())
    print_table(
        "Records read",
        ["partition", "base", *INPUT_TOPICS],
        [
            *([part.partition, _base(part), *_read(part)] for part in parts),
            ["all", "", *(f"{sum(p.records_read[t] for p in parts):,}" for t in INPUT_TOPICS)],
        ],
        right=["partition", *INPUT_TOPICS],
    )
    out.print(
        f"Read {replay.records_read:,} records, replayed {replay.records_replayed:,} of them, "
        f"in {replay.seconds:.2f} s: {replay.rate:,.0f} records/s."
    )
    directories = {p.base.rpartition("/")[0] for p in parts if _is_snapshot(p)}
    for directory in sorted(directories):
        out.print(f"Snapshots in {escape(directory)}")


def _is_snapshot(part: PartitionReplay) -> bool:
    return part.base not in ("genesis", "empty")


def _base(part: PartitionReplay) -> str:
    """Return the base in a word, a snapshot by the offsets in its name."""
    if not _is_snapshot(part):
        return part.base
    return Path(part.base).stem.partition("-")[2]


def _read(part: PartitionReplay) -> list[str]:
    return [f"{part.records_read[topic]:,}" for topic in INPUT_TOPICS]


def _counts(replay: Replay) -> None:
    print_table(
        "Verdicts up to the watermark",
        ["topic", *VERDICTS],
        [[topic, *(f"{tally[v]:,}" for v in VERDICTS)] for topic, tally in replay.counts.items()],
        right=VERDICTS,
    )


_CHANGE_COLUMNS: Final = ("account", "asset", "balance", "change", "hold", "change of hold")


def _changes(replay: Replay, shown: Shown) -> None:
    where = " shown here" if shown.accounts or shown.assets else ""
    nothing = f"The replayed records changed no balance and no hold{where}."
    _print_changes("What the replayed records changed", replay.changes(shown), nothing)


def _print_changes(title: str, changes: Iterable[Change], nothing: str) -> None:
    rows = (
        [
            change.account,
            change.asset,
            plain(change.after.balance),
            _signed(plain(change.balance)),
            plain(change.after.hold),
            _signed(plain(change.hold)),
        ]
        for change in changes
    )
    _print_first(title, _CHANGE_COLUMNS, rows, _CHANGE_COLUMNS[2:], nothing)


def show_what_if(what_if: WhatIf, differences: Iterable[Change]) -> None:
    """Print which rules held, and what would be otherwise by them."""
    print_table("What if", ["rule", "records"], what_if.matched.items(), right=["records"])
    nothing = "No balance and no hold would differ."
    _print_changes("What would differ from what was", differences, nothing)


def show_diff(replay: Replay, shown: Shown) -> None:
    """Print what the records of a span changed, and of accounts that were named, which records."""
    _changes(replay, shown)
    for account in sorted(shown.accounts):
        _entries(f"Entries of {account}", replay, account, shown)
        changes = [o for part in replay.parts_of(account) for o in orders_of_span(part, account)]
        _print_first(
            f"Orders of {account}",
            ["order", "asset", "held", "holds", "records"],
            [
                [
                    change.order_id,
                    change.asset or "",
                    plain(change.before),
                    plain(change.after),
                    ", ".join(
                        f"{e.type} {e.topic}:{e.partition}:{e.fact.offset}" for e in change.events
                    ),
                ]
                for change in changes
            ],
            right=["held", "holds"],
        )
    out.print(f"From {format_positions(replay.start)}")
    out.print(f"to {format_positions(replay.watermarks)}")


def show_entries(replay: Replay, account: str) -> None:
    """Print the entries of a span with the account's balances before, between and after."""
    _entries(f"Statement of {account}", replay, account, Shown())
    out.print(f"From {format_positions(replay.start)}")
    out.print(f"to {format_positions(replay.watermarks)}")


def _entries(title: str, replay: Replay, account: str, shown: Shown) -> None:
    parts = replay.parts_of(account)
    opening = {
        asset: total.balance
        for (_, asset), total in totals_of(account, (part.before for part in parts)).items()
    }
    rows = [
        ["", "opening balance", asset, "", "", plain(balance), ""]
        for asset, balance in opening.items()
        if (account, asset) in shown
    ]
    rows += [
        [
            entry.occurred_at,
            entry.type,
            posting.asset,
            plain(posting.debit) if posting.debit else "",
            plain(posting.credit) if posting.credit else "",
            plain(balance),
            f"{entry.topic}:{entry.partition}:{entry.offset}",
        ]
        for entry, posting, balance in running(entries_of_span(parts, account), account, opening)
        if (account, posting.asset) in shown
    ]
    columns = ["occurred_at", "type", "asset", "debit", "credit", "balance", "position"]
    if rows:
        print_table(title, columns, rows, right=["debit", "credit", "balance"])
    else:
        out.print(f"No entries of {escape(harmless(account))}.")


def show_proof(proof: Proof) -> None:
    """Print what was proven of snapshots, and what was found."""
    print_table(
        "Snapshots",
        ["partition", "proven from", "proven", "not proven", "newest proven"],
        [
            [
                part.partition,
                part.base or "",
                len(part.proven),
                len(part.unproven),
                part.proven[-1].name if part.proven else "",
            ]
            for part in proof.partitions.values()
        ],
        right=["partition", "proven", "not proven"],
    )
    for finding in proof.findings:
        colour = "yellow" if finding.is_note else "bold red"
        out.print(f"[{colour}]{finding.kind}[/]: {escape(harmless(finding.sentence))}")
    proven = sum(len(part.proven) for part in proof.partitions.values())
    if proof.match:
        out.print(f"[green]All is proven[/]: {proven:,} snapshots.")
    else:
        out.print("[bold red]Snapshots and topics do not agree.[/]")


def show_outcomes(outcomes: Sequence[Outcome]) -> None:
    """Print the assertions that do not hold, and how many do."""
    failed = [outcome for outcome in outcomes if not outcome.holds]
    if failed:
        print_table(
            "Do not hold",
            ["where", "assertion", "found"],
            [[o.assertion.place, o.assertion.text, plain(o.found)] for o in failed],
            right=["found"],
        )
    colour = "bold red" if failed else "green"
    out.print(f"[{colour}]{len(outcomes) - len(failed)} of {len(outcomes)} assertions hold.[/]")


def _balances(replay: Replay, shown: Shown) -> None:
    columns = ["account", "asset", "balance", "hold", "available", "debits", "credits"]
    found = (total.as_json(account, asset) for account, asset, total in replay.rows(shown))
    rows = ([row[column] for column in columns] for row in found)
    nothing = "No such account and asset in the ledger."
    _print_first("Balances", columns, rows, columns[2:], nothing)


def _digests(replay: Replay) -> None:
    parts = list(replay.partitions.values())
    chained = all(part.log_digests is not None for part in parts)
    print_table(
        f"Digests, shortened; {_MORE}",
        ["partition", "state", *(f"log of {t}" for t in INPUT_TOPICS if chained)],
        [
            [
                part.partition,
                part.state_digest[:_DIGEST_CHARACTERS],
                *(
                    (part.log_digests or {})[t][:_DIGEST_CHARACTERS]
                    for t in INPUT_TOPICS
                    if chained
                ),
            ]
            for part in parts
        ],
        right=["partition"],
    )
    if not chained:
        out.print("No log digests: this state is not the ledger's own.")
    if any(any(mark.values()) for mark in replay.start.values()):
        out.print(f"From {format_positions(replay.start)}")
    out.print(f"Watermark {format_positions(replay.watermarks)}")
    out.print(f"State digest {replay.state_digest}")


def _verification(verification: Verification) -> None:
    compared, accounts = len(verification.compared), verification.accounts
    if verification.unpublished:
        numbers = ", ".join(map(str, verification.unpublished))
        out.print(f"Nothing was published yet, and nothing compared, of partition {numbers}.")
    if verification.lag_records:
        out.print(
            f"Not covered: {verification.lag_records:,} newer offsets of the topics, which the "
            "workers have not published yet."
        )
    for difference in verification.differences:
        if difference.kind == "rules_version":
            out.print(
                f"Partition {difference.partition} was published by rules version "
                f"{difference.published}, this is version {difference.rebuilt}: not compared. "
                "Workers of this version publish it anew."
            )
        if difference.kind == "topic_ids":
            out.print(
                f"Partition {difference.partition} was published from other topics than those "
                "that have these names now: not compared. Workers publish it anew."
            )
    if verification.differences:
        _print_first(
            "Published tables and topics differ",
            ["partition", "what", "account", "asset", "published", "rebuilt"],
            [row for difference in verification.differences for row in _rows(difference)],
            right=["partition"],
        )
        out.print("[bold red]The published tables do not match the topics.[/]")
    elif compared:
        out.print(
            f"[green]The published tables match the topics[/]: {accounts:,} accounts in {compared} "
            "partitions, digests and counts."
        )


def _rows(difference: Difference) -> Iterable[Sequence[object]]:
    """Yield a difference's rows of the table: one for each total or count that differs."""
    where = (difference.account or "", difference.asset or "")
    left, right = _flat(difference.published), _flat(difference.rebuilt)
    for name in dict.fromkeys((*left, *right)):
        if left.get(name) != right.get(name):
            what = f"{difference.kind} {name}".strip()
            yield (
                difference.partition,
                what,
                *where,
                _short(left.get(name)),
                _short(right.get(name)),
            )


def _flat(value: Any) -> dict[str, Any]:
    """Return a value's parts by their path in it."""
    if value is None or not isinstance(value, dict):
        return {"": value}
    return {
        f"{name} {path}".strip(): part
        for name, inner in value.items()
        for path, part in _flat(inner).items()
    }


def _short(value: object) -> str:
    text = "-" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:_DIGEST_CHARACTERS]}…"


def _conservation(replay: Replay) -> None:
    assets = replay.conservation
    if replay.is_balanced:
        count = f"{len(assets)} assets" if len(assets) != 1 else "1 asset"
        out.print(f"[green]The books balance[/]: debits equal credits in {count}.")
        return
    print_table(
        "Conservation",
        ["asset", "credits less debits"],
        [[asset, plain(rest)] for asset, rest in assets.items() if rest],
        right=["credits less debits"],
    )
    out.print("[bold red]The books do not balance.[/]")


def _print_first(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    right: Iterable[str],
    nothing: str | None = None,
) -> None:
    """Print the first of some rows, or a sentence, if given, where there are none."""
    first = list(islice(rows, ROWS + 1))
    if not first:
        if nothing is not None:
            out.print(nothing)
        return
    print_table(title, columns, first[:ROWS], right)
    if len(first) > ROWS:
        out.print(f"… and more; {_MORE}")


def _signed(text: str) -> str:
    return text if text.startswith("-") or text == "0" else f"+{text}"
