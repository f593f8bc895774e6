"""The command `replay`: rebuild state from the topics alone, compare, prove and export it."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final, NoReturn

import typer

from ledger import console
from ledger.errors import InputError
from ledger.journal import is_system
from ledger.memory import live_shortly
from ledger.partitioner import partition_of
from ledger.positions import format_positions, require_order
from ledger.rebuild import Base
from ledger.rocks import allow_open_files
from ledger.settings import Settings, load_settings
from ledger.statement import statement
from replay import options, proof
from replay.assertions import evaluate, parse
from replay.document import diff_document, document, manifest, statement_document
from replay.engine import Job
from replay.engine import replay as run_replay
from replay.export import (
    BALANCES,
    JOURNAL,
    ORDERS,
    Form,
    balance_rows,
    export,
    journal_rows,
    order_rows,
    require_new,
    require_writable,
)
from replay.request import Request, Span, span_of
from replay.results import Replay, Shown, differences
from replay.state import WorkerStates, temporary_states
from replay.tables import (
    show,
    show_diff,
    show_entries,
    show_outcomes,
    show_proof,
    show_what_if,
)
from replay.topics import Topics
from replay.verify import published_watermarks
from replay.verify import verify as compare
from replay.whatif import WhatIf

_WATERMARK: Final = (
    "N, TOPIC=N or TOPIC:PARTITION=N (next offsets, joined by commas; partitions not named stand "
    "at their end), 'earliest', 'latest', 'snapshot', a snapshot's name, or an RFC 3339 time."
)

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    subcommand_metavar="",
)


def main() -> NoReturn:
    """Run the command line; the exit code is 0, 1 or 2, and never is there a traceback."""
    # So that temporary states are removed.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    allow_open_files()
    live_shortly()
    console.run(app, "replay")


@app.callback(invoke_without_command=True)
def replay(
    context: typer.Context,
    from_offset: options.FromOffset = None,
    to_offset: options.ToOffset = None,
    from_time: options.FromTime = None,
    to_time: options.ToTime = None,
    base: options.BaseState = "snapshot",
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Replay to what the workers have published, and compare; exit code 1 if it "
            "differs.",
        ),
    ] = False,
    account: options.Accounts = None,
    asset: options.Assets = None,
    threads: options.Threads = None,
    state: options.State = None,
    into: options.Into = None,
    workers: options.Workers = None,
    out: options.Out = None,
    form: options.Format = None,
    journal: options.Journal = False,
    plot: options.Plot = None,
    fees: options.Fees = None,
    ignore_account: options.IgnoreAccount = None,
    without_event: options.WithoutEvent = None,
    as_json: options.AsJson = False,
) -> None:
    """Rebuild the ledger's state from the topics, beside the running system.

    It joins no consumer group, commits nothing and publishes nothing. Exit codes: 0 fine, 1 the
    books do not balance or --verify found a difference, 2 it could not run.
    """
    if context.invoked_subcommand is not None:
        return
    request = Request(from_offset or (), from_time, to_offset or (), to_time, base, verify)
    request.check()
    shown = Shown(account or (), asset or ())
    what_if = None
    if fees is not None or ignore_account or without_event:
        what_if = WhatIf.from_options(fees, ignore_account or (), without_event or ())
    _check_outputs(out, form, journal, plot, account or [])
    _check_what_if(what_if, verify, state)
    settings = load_settings()
    for_workers = _states_for_workers(into, workers, settings, state, base, what_if)

    topics = Topics(settings)
    published = topics.published() if verify else None
    if published is None:
        topics.require_tables()
    ends = topics.ends(base)
    marks = None if published is None else published_watermarks(published, topics.origin)
    job = topics.job(span_of(request, topics.rebuilder, ends, marks), base)
    directory = state if for_workers is None else for_workers.unfinished
    with _replayed(topics, job, what_if, threads, directory) as (result, actual):
        verification = None
        if published is not None:
            verification = compare(published, result.partitions, topics.origin, ends)
        differing = None if actual is None else list(differences(actual, result, shown))
        if as_json:
            console.print_json(document(result, shown, verification, what_if, differing))
        else:
            show(result, shown, verification)
            if what_if is not None and differing is not None:
                show_what_if(what_if, differing)
        if out is not None:
            _export(out, form or "parquet", journal, result, shown, job, what_if)
        if plot is not None and account:
            _plot(plot, account[0], result, shown)
        balanced = result.is_balanced
    if for_workers is not None:
        for_workers.finish(range(topics.origin.partitions))
        console.say(f"Made: start workers with LEDGER_STATE_DIR={into}.")
    for rule in [] if what_if is None else what_if.unmatched():
        console.warn(f"{rule} matched no record.")
    if not balanced or (verification is not None and not verification.match):
        raise typer.Exit(console.DIFFERENT)


def _check_outputs(
    out: Path | None, form: Form | None, journal: bool, plot: Path | None, accounts: list[str]
) -> None:
    """Check what can be checked before a replay that may take long."""
    if out is not None:
        require_new(out)
    elif form is not None or journal:
        raise InputError("--format and --journal are about the tables of --out: give that, too.")
    if plot is not None:
        from replay.plot import format_of  # takes long to import

        format_of(plot)
        require_writable(plot.absolute().parent)
        if len(accounts) != 1:
            raise InputError("--plot draws one account: name it with --account.")


def _states_for_workers(
    into: Path | None,
    workers: int | None,
    settings: Settings,
    state: Path | None,
    base: Base,
    what_if: WhatIf | None,
) -> WorkerStates | None:
    if into is None:
        if workers is not None:
            raise InputError("--workers says how many share the directory of --into: give that.")
        return None
    if state is not None:
        raise InputError("--into and --state both say where states are kept: give one of them.")
    if base == "empty" or what_if is not None:
        raise InputError(
            "Workers start from the ledger's own states: --into cannot be given with --base empty "
            "or in a what-if."
        )
    return WorkerStates(into, settings, workers or 1)


def _check_what_if(what_if: WhatIf | None, verify: bool, state: Path | None) -> None:
    if what_if is not None and verify:
        raise InputError(
            "--verify compares with what was published, which is the ledger by its own rules: "
            "leave --fees, --ignore-account and --without-event out."
        )
    if what_if is not None and state is not None:
        raise InputError("--state keeps the ledger's own states: leave it out of a what-if.")


@contextmanager
def _replayed(
    topics: Topics, job: Job, what_if: WhatIf | None, threads: int | None, state: Path | None
) -> Iterator[tuple[Replay, Replay | None]]:
    """Give the replay that was asked for; of a what-if, also the one of what really was."""
    total = topics.rebuilder.cost(job.span.start, job.span.end, job.base)

    def run(what: str, one: Job) -> Replay:
        with console.progress(what, total) as move:
            return run_replay(
                one, threads=threads, directory=state, warn=console.warn, progress=move
            )

    with run("Replaying", job) as actual:
        if what_if is None:
            yield actual, None
        else:
            with run("Replaying, what if", job.with_rules(what_if)) as result:
                yield result, actual


def _export(
    out: Path,
    form: Form,
    with_journal: bool,
    result: Replay,
    shown: Shown,
    job: Job,
    what_if: WhatIf | None,
) -> None:
    states = [part.after for part in result.partitions.values()]
    tables = {BALANCES: balance_rows(result.rows(), shown), ORDERS: order_rows(states, shown)}
    if with_journal:
        tables[JOURNAL] = journal_rows(states, result.start, shown)
    files = export(out, form, tables, manifest(result, job.origin, shown, what_if))
    console.say(f"Written: {', '.join(str(file) for file in files)}.")


def _plot(path: Path, account: str, result: Replay, shown: Shown) -> None:
    from replay.plot import plot  # takes long to import

    states = [part.after for part in result.parts_of(account)]
    plot(
        path,
        account,
        statement(states, account),
        format_positions(result.watermarks),
        shown.assets,
    )
    console.say(f"Written: {path}.")


@app.command()
def diff(
    first: Annotated[str, typer.Argument(metavar="FROM", help=_WATERMARK)],
    second: Annotated[str, typer.Argument(metavar="TO", help="The same, not before FROM.")],
    account: options.Accounts = None,
    asset: options.Assets = None,
    threads: options.Threads = None,
    as_json: options.AsJson = False,
) -> None:
    """Show what changed between two positions: per account and asset, and by which records.

    Entries of a system account, of which there are as many as of all others together, are shown
    where it is named with --account.
    """
    topics = Topics(load_settings())
    topics.require_tables()
    ends = topics.ends("snapshot")
    at, limits = topics.rebuilder.watermarks_at, topics.rebuilder.limits(ends)
    span = Span(at([first], limits, "FROM"), at([second], limits, "TO"))
    require_order(span.start, span.end, "Give the earlier position first.")
    shown = Shown(account or (), asset or ())
    with _replayed(topics, topics.job(span, "snapshot"), None, threads, None) as (result, _):
        if as_json:
            console.print_json(diff_document(result, shown))
        else:
            show_diff(result, shown)


@app.command("statement")
def show_statement(
    account: Annotated[str, typer.Argument(help="A customer's or a system account.")],
    from_offset: options.FromOffset = None,
    to_offset: options.ToOffset = None,
    from_time: options.FromTime = None,
    to_time: options.ToTime = None,
    as_json: options.AsJson = False,
) -> None:
    """Show what the records of a span posted to an account, and its balances before and after.

    In order of the events' own time, with the position of each record.
    """
    request = Request(from_offset or (), from_time, to_offset or (), to_time)
    request.check()
    topics = Topics(load_settings())
    topics.require_tables()
    job = topics.job(span_of(request, topics.rebuilder, topics.ends("snapshot")), request.base)
    if not is_system(account):
        job = job.part([partition_of(account.encode(), topics.origin.partitions)])
    with _replayed(topics, job, None, 1, None) as (result, _):
        if as_json:
            console.print_json(statement_document(result, account))
        else:
            show_entries(result, account)


@app.command()
def verify(as_json: options.AsJson = False) -> None:
    """Prove every snapshot from the topics' first records, and find what was tampered with.

    State and log digests of each snapshot are compared with what the records give. Exit codes: 0
    all is proven, 1 something is damaged, differs or is missing, 2 it could not run.
    """
    topics = Topics(load_settings())
    numbers = range(topics.origin.partitions)
    total = proof.cost(topics.snapshots, numbers)
    with temporary_states() as states, console.progress("Proving snapshots", total) as move:
        found = proof.prove(topics.cluster, topics.origin, topics.snapshots, numbers, move, states)
    if as_json:
        console.print_json(found.as_json())
    else:
        show_proof(found)
    if not found.match:
        raise typer.Exit(console.DIFFERENT)


@app.command("assert")
def assert_(
    file: Annotated[Path, typer.Argument(help="Of lines: ACCOUNT ASSET = AMOUNT at POSITION.")],
    as_json: options.AsJson = False,
) -> None:
    """Check what a file says of balances against the topics.

    A line is `ACCOUNT ASSET [balance|hold|available|debits|credits] = AMOUNT [at POSITION|TIME]`.
    Exit codes: 0 all lines hold, 1 some do not, 2 it could not run.
    """
    try:
        # What is no UTF-8 is refused by its line, as everything else is.
        with file.open(encoding="utf-8-sig", errors="replace") as lines:
            assertions = parse(lines, str(file))
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}).") from error
    if not assertions:
        raise InputError(f"{file}: there is no assertion in it.")
    topics = Topics(load_settings())
    topics.require_tables()
    ends = topics.ends("snapshot")
    with console.progress("Checking assertions", None):
        outcomes = evaluate(assertions, topics.rebuilder, ends, topics.origin.partitions)
    failed = [outcome for outcome in outcomes if not outcome.holds]
    if as_json:
        console.print_json(
            {
                "passed": not failed,
                "count": len(outcomes),
                "failed": len(failed),
                "assertions": [outcome.as_json() for outcome in outcomes],
            }
        )
    else:
        show_outcomes(outcomes)
    if failed:
        raise typer.Exit(console.DIFFERENT)
