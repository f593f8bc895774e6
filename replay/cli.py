"""The command `replay`: rebuild state from the topics alone, and compare."""

from __future__ import annotations

from typing import Annotated, NoReturn

import typer

from ledger import console
from ledger.continuity import require_tables_continuous
from ledger.kafka import Cluster
from ledger.projections.partition import Origin
from ledger.published import PublishedPartition, read_published, require_unchanged
from ledger.rebuild import Base, Rebuilder
from ledger.settings import load_settings
from ledger.snapshots import Snapshots
from ledger.stack import kafka_endpoint
from replay.document import document
from replay.engine import known_snapshots, refuse_loss
from replay.engine import replay as run_replay
from replay.request import Request, Span, span_of
from replay.results import Replay, Shown
from replay.tables import show
from replay.verify import Verification, published_watermarks
from replay.verify import verify as compare

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    subcommand_metavar="",
)


def main() -> NoReturn:
    """Run the command line; the exit code is 0, 1 or 2, and never is there a traceback."""
    console.run(app, "replay")


@app.callback(invoke_without_command=True)
def replay(
    context: typer.Context,
    from_offset: Annotated[
        list[str] | None,
        typer.Option(
            help="First record to replay: N (in every partition), TOPIC=N, TOPIC:PARTITION=N or "
            "'earliest'; repeatable, or joined by commas. The most specific wins. "
            "Default: earliest.",
            metavar="POSITION",
            show_default=False,
        ),
    ] = None,
    to_offset: Annotated[
        list[str] | None,
        typer.Option(
            help="Where to stop, before that record; the same forms. Default: the end as of now.",
            metavar="POSITION",
            show_default=False,
        ),
    ] = None,
    from_time: Annotated[
        str | None,
        typer.Option(
            help="Instead of --from-offset: the first records at or after this time of Kafka's, "
            "such as 2015-05-01T00:30:00Z.",
            metavar="TIME",
            show_default=False,
        ),
    ] = None,
    to_time: Annotated[
        str | None,
        typer.Option(
            help="Instead of --to-offset: stop before the first records at or after this time.",
            metavar="TIME",
            show_default=False,
        ),
    ] = None,
    base: Annotated[
        Base,
        typer.Option(
            help="The state before the first record: from the newest snapshot that is not beyond "
            "it and the records between; from all records since offset 0; or none, as if the log "
            "began there.",
        ),
    ] = "snapshot",
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Replay to what the workers have published, and compare; exit code 1 if it "
            "differs.",
        ),
    ] = False,
    account: Annotated[
        list[str] | None,
        typer.Option(
            help="Show only this account; repeatable.", metavar="ACCOUNT", show_default=False
        ),
    ] = None,
    asset: Annotated[
        list[str] | None,
        typer.Option(help="Show only this asset; repeatable.", metavar="ASSET", show_default=False),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document on stdout.")
    ] = False,
) -> None:
    """Rebuild the ledger's state from the topics, beside the running system.

    It joins no consumer group, commits nothing and publishes nothing. Exit codes: 0 fine, 1 the
    books do not balance or --verify found a difference, 2 it could not run.
    """
    if context.invoked_subcommand is not None:
        return
    request = Request(from_offset or (), from_time, to_offset or (), to_time, base, verify)
    request.check()
    settings = load_settings()
    cluster = Cluster(kafka_endpoint(settings), settings)
    result, verification = _run(cluster, request)
    shown = Shown(account or (), asset or ())
    if as_json:
        console.print_json(document(result, shown, verification))
    else:
        show(result, shown, verification)
    if not result.is_balanced or (verification is not None and not verification.match):
        raise typer.Exit(console.DIFFERENT)


def _run(cluster: Cluster, request: Request) -> tuple[Replay, Verification | None]:
    origin = require_unchanged(cluster, cluster.origin())
    published = None
    if request.verify:
        published = _read_published(cluster, origin)
    else:
        require_tables_continuous(cluster, origin)
    snapshots = Snapshots(cluster.settings.snapshot_dir, cluster.settings.topic_prefix)
    # What was published or kept is listed before asking for the ends: it cannot be beyond them.
    known = (
        known_snapshots(snapshots, range(origin.partitions)) if request.base == "snapshot" else []
    )
    rebuilder = Rebuilder(cluster, origin, warn=console.warn)
    ends = rebuilder.ends()
    refuse_loss(snapshots, known, origin, ends)
    marks = None if published is None else published_watermarks(published, origin)
    span = span_of(request, rebuilder, ends, marks)
    result = _replay(cluster, origin, rebuilder, span, request.base)
    if published is None:
        return result, None
    return result, compare(published, result.partitions, origin, ends)


def _read_published(cluster: Cluster, origin: Origin) -> dict[int, PublishedPartition]:
    with console.progress("Reading the published tables", None) as move:
        return read_published(cluster, range(origin.partitions), move)


def _replay(
    cluster: Cluster, origin: Origin, rebuilder: Rebuilder, span: Span, base: Base
) -> Replay:
    total = rebuilder.cost(span.start, span.end, base)
    with console.progress("Replaying", total) as move:
        return run_replay(cluster, origin, span, base, console.warn, move)
