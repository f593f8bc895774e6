"""What the three commands share: tables and progress for people, JSON for machines, exit codes.

Results go to stdout, everything else to stderr. Exit codes: 0 fine, 1 a check found a difference,
2 it could not run.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final, NoReturn

import typer
import typer.exceptions
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from ledger.errors import LedgerError

FINE: Final = 0
DIFFERENT: Final = 1
COULD_NOT_RUN: Final = 2
INTERRUPTED: Final = 130

DEBUG_VARIABLE: Final = "LEDGER_DEBUG"

_WIDE: Final = 10_000

# No emoji: an account may be named `:key:`.
out = Console(highlight=False, soft_wrap=True, emoji=False)
err = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)


def run(app: typer.Typer, name: str) -> NoReturn:
    """Run a command line and leave with its exit code; nobody sees a traceback."""
    # A state is many small objects without cycles; Python's default thresholds look through all
    # of them again and again, for a fifth of the time.
    gc.set_threshold(50_000, 20, 50)
    try:
        code = app(prog_name=name, standalone_mode=False)
    except LedgerError as error:
        fail(str(error))
    except typer.exceptions.TyperException as error:
        message = error.format_message()
        if "\n" in message:  # no command was named: this is the help
            sys.stderr.write(message + "\n")
            sys.exit(COULD_NOT_RUN)
        fail(f"{message.replace('Value error, ', '').removesuffix('.')}. See '{name} --help'.")
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except SystemExit as leaving:
        # Commands leave with `typer.Exit`; a 1 here is how rich and typer answer a broken pipe:
        # whoever read our output has seen enough.
        sys.exit(FINE if leaving.code == 1 else leaving.code)
    except OSError as error:
        fail(f"{error.strerror or error}: {error.filename}." if error.filename else f"{error}.")
    except Exception as error:
        if os.environ.get(DEBUG_VARIABLE):
            raise
        fail(
            f"This is a bug: {type(error).__name__}: {error}. "
            f"Set {DEBUG_VARIABLE}=1 to see where it came from."
        )
    if code == INTERRUPTED:  # with this, typer itself answers Ctrl-C
        err.print("Interrupted.")
    sys.exit(code if isinstance(code, int) else FINE)


def fail(sentence: str) -> NoReturn:
    """Say in one sentence why a command could not run, and leave with exit code 2."""
    err.print(f"[bold red]error:[/] {escape(harmless(sentence))}")
    sys.exit(COULD_NOT_RUN)


def warn(sentence: str) -> None:
    """Say something that a person should know but that stops nothing."""
    err.print(f"[yellow]warning:[/] {escape(harmless(sentence))}")


def say(sentence: str) -> None:
    """Tell a person what is being done."""
    err.print(f"[dim]{escape(harmless(sentence))}[/]")


def harmless(text: str) -> str:
    """Return text with what would move a terminal's cursor or reorder letters written out."""
    if text.isprintable():
        return text
    return "".join(
        letter
        if letter.isprintable() or letter == "\n"
        else letter.encode("unicode_escape").decode()
        for letter in text
    )


def print_json(document: Any) -> None:
    """Print one JSON document: indented on a terminal, compact elsewhere."""
    indent = 2 if sys.stdout.isatty() else None
    sys.stdout.write(json.dumps(document, indent=indent, ensure_ascii=False) + "\n")


def print_table(
    title: str, columns: Iterable[str], rows: Iterable[Iterable[object]], right: Iterable[str] = ()
) -> None:
    """Print a table; the columns named in `right` are set to the right, as numbers are.

    Nothing is cut off: on a terminal long cells are folded, elsewhere lines are as long as need be.
    """
    table = Table(title=title, title_justify="left", header_style="bold")
    numbers = set(right)
    for column in columns:
        table.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(harmless(str(cell)).replace("\n", "\\n")) for cell in row))
    where = out if out.is_terminal else Console(highlight=False, emoji=False, width=_WIDE)
    where.print(table)
    where.print()


@contextmanager
def progress(description: str, total: int | None, *, quiet: bool = False) -> Iterator[Any]:
    """Show a progress bar with rate and time left on stderr; yields a function to move it by."""
    bar = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=err,
        transient=True,
        disable=quiet or not err.is_terminal,
    )
    with bar:
        task = bar.add_task(description, total=total)
        yield lambda amount=1: bar.advance(task, amount)
