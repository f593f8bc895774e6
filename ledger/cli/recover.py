"""The command `recover`: accepting the topics as they are after records were lost."""

from __future__ import annotations

from typing import Annotated

import typer

from ledger import console
from ledger.cli.shared import AsJson, confirm, connect
from ledger.continuity import require_topics
from ledger.errors import LostRecords
from ledger.recovery import Recovery
from ledger.settings import load_settings


def recover(
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show what contradicts the topics.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Discard what was made of records that the topics do not hold any more.

    For after a worker or a replay stopped because records are gone or replaced, and the topics
    cannot be brought back from a copy. Workers must not run. When they start again they rebuild
    the tables from the newest state or snapshot that matches the topics, else from their start.
    Topics that are gone are created anew.
    """
    cluster = connect(load_settings())
    try:
        require_topics(cluster)
    except LostRecords as lost:
        if dry_run:
            raise
        console.warn(lost.what_happened)
        if not yes:
            confirm("Create what is missing anew?", "create the topic anew", "Nothing was changed.")
        cluster.ensure_topics()
    recovery = Recovery(cluster, cluster.origin())
    found = recovery.contradictions()
    discarding = bool(found) and not dry_run
    if found and not as_json:
        console.print_table(
            "Made of records that the topics do not hold",
            ("what", "where", "why"),
            ((one.kind, one.place, one.reason) for one in found),
        )
    if discarding:
        if not yes:
            confirm(f"Discard these {len(found)}?", "discard them", "Nothing was discarded.")
        recovery.discard(found)
    if as_json:
        console.print_json(
            {"contradictions": [one.as_json() for one in found], "discarded": discarding}
        )
    elif not found:
        console.out.print("Everything that is kept matches the topics.")
    elif discarding:
        console.out.print("Discarded. Start the workers; they rebuild the tables.")
