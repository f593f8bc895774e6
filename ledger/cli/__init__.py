"""The command `ledger`: the stack, workers, events in, tables and proofs out."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated, NoReturn

import typer

from ledger import console
from ledger.cli.accounts import balances, orders, show_statement
from ledger.cli.check import check
from ledger.cli.dead_letters import redrive, show_dead_letters
from ledger.cli.demo import demo
from ledger.cli.publishing import import_app, publish
from ledger.cli.recover import recover
from ledger.cli.schemas import schemas
from ledger.cli.stack import down, status, up
from ledger.cli.worker import worker

app = typer.Typer(
    help="An event-sourced trading ledger: Kafka topics in, exact double-entry balances out.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        console.out.print(f"ledger {version('ledger')}")
        raise typer.Exit


@app.callback()
def _ledger(
    show_version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """An event-sourced trading ledger: Kafka topics in, exact double-entry balances out.

    Settings come from the environment (LEDGER_KAFKA, LEDGER_AMQP, LEDGER_TOPIC_PREFIX, …) or from
    the file that LEDGER_CONFIG names. Exit codes: 0 fine, 1 a check found a difference, 2 it could
    not run.
    """


app.command("up")(up)
app.command("down")(down)
app.command("status")(status)
app.command("worker")(worker)
app.command("publish")(publish)
app.add_typer(import_app, name="import")
app.command("balances")(balances)
app.command("orders")(orders)
app.command("statement")(show_statement)
app.command("check")(check)
app.command("dead-letters")(show_dead_letters)
app.command("redrive")(redrive)
app.command("recover")(recover)
app.command("schemas")(schemas)
app.command("demo")(demo)


def main() -> NoReturn:
    """Run the command line; the exit code is 0, 1 or 2, and there never is a traceback."""
    console.run(app, "ledger")
