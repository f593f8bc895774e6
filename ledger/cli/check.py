"""The command `check`."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from ledger import console
from ledger.check import Audit, Auditor
from ledger.cli.dead_letters import read_dead_letters, reasons
from ledger.cli.shared import AsJson, connect, counts_line, rebuilder_of, watermark_line
from ledger.continuity import require_topics
from ledger.flags import ID_NAMES, Tally
from ledger.published import require_unchanged
from ledger.settings import load_settings


def check(
    base: Annotated[
        Literal["snapshot", "genesis"],
        typer.Option(help="Begin with snapshots, or read every record (slower, trusts nothing)."),
    ] = "snapshot",
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 1 for flags and dead letters, too.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check the books, the published tables, flags and dead letters.

    The books: debits equal credits in each asset, over all accounts, at the end of the topics. The
    tables: each partition's published rows are what its records give at the same watermark. Exits
    with 1 where either is wrong. Flags and dead letters are warnings. No worker needs to run.
    """
    cluster = connect(load_settings())
    require_topics(cluster)
    origin = require_unchanged(cluster, cluster.origin())
    with console.progress("Reading records", None, quiet=as_json) as move:
        audit = Auditor(cluster, rebuilder_of(cluster, origin, move), origin).run(base)
        dead = reasons(read_dead_letters(cluster))
    if as_json:
        dead_letters = {"count": sum(dead.values()), "reasons": dead}
        console.print_json({**audit.as_json(), "dead_letters": dead_letters, "strict": strict})
    else:
        _print(audit, dead)
    warned = bool(dead) or any(found.count for found in audit.flags.values())
    if not audit.passed or (strict and warned):
        raise typer.Exit(console.DIFFERENT)


def _print(audit: Audit, dead: dict[str, int]) -> None:
    tables = audit.tables
    assets = len(audit.conservation)
    rows = [
        (
            "books",
            _verdict(audit.balanced),
            f"debits equal credits in each of {assets} assets"
            if audit.balanced
            else ", ".join(f"{asset} is off by {rest}" for asset, rest in _unbalanced(audit)),
        ),
        (
            "tables",
            _verdict(tables.match),
            f"{len(tables.compared)} partitions compared, {tables.count} differences",
        ),
    ]
    if tables.unpublished:
        numbers = ", ".join(map(str, tables.unpublished))
        rows.append(("", "warning", f"no tables are published yet of partitions {numbers}"))
    if tables.behind_records:
        rows.append(("", "warning", f"the tables are {tables.behind_records} records behind"))
    rows += [
        (f"flag {flag}", "warning", f"{found.count}, such as {_example(ID_NAMES[flag], found)}")
        for flag, found in audit.flags.items()
        if found.count
    ]
    rows += [(f"dead letters, {reason}", "warning", str(number)) for reason, number in dead.items()]
    console.print_table("Check", ("what", "verdict", "detail"), rows)
    if tables.differences:
        console.print_table(
            f"Differences (the first {len(tables.differences)} of {tables.count})",
            ("partition", "what", "account", "asset", "published", "rebuilt"),
            (
                (one.partition, one.kind, one.account or "", one.asset or "", one.published,
                 one.rebuilt)
                for one in tables.differences
            ),
        )  # fmt: skip
    console.say(f"Watermark: {watermark_line(audit.watermarks)}.")
    console.say(f"Records: {counts_line(audit.counts)}.")
    console.say(f"State digest: {audit.state_digest}")


def _verdict(good: bool) -> str:
    return "fine" if good else "WRONG"


def _unbalanced(audit: Audit) -> list[tuple[str, str]]:
    return [(asset, rest) for asset, rest in audit.conservation.items() if rest != "0"]


def _example(names: tuple[str, ...], found: Tally) -> str:
    return ", ".join(f"{name} {text}" for name, text in zip(names, found.examples[0], strict=True))
