"""The command `worker`."""

from __future__ import annotations

import logging
import sys
from typing import Annotated, Final

import typer

from ledger.settings import load_settings

_MOST_WORKERS: Final = 64


def worker(
    supervise: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=_MOST_WORKERS,
            help="Run so many worker processes, and start those again that end.",
        ),
    ] = None,
    parent: Annotated[
        int | None,
        typer.Option(
            min=1,
            hidden=True,
            help="Stop when the process with this pid is no longer the parent.",
        ),
    ] = None,
) -> None:
    """Run one stream worker until SIGTERM or Ctrl-C. Start several to scale.

    It applies the records of the input topics, publishes tables and dead letters, and writes
    snapshots. Missing topics are created.
    """
    settings = load_settings()
    if supervise is not None:
        from ledger.supervisor import LOG_FORMAT
        from ledger.supervisor import supervise as run_supervisor

        logging.basicConfig(level=logging.INFO, format=LOG_FORMAT, stream=sys.stderr)
        logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # what it says is raised, too
        raise typer.Exit(run_supervisor(settings, supervise))
    # Faust takes a second to import; the other commands do not need it.
    from ledger.app import run_worker

    run_worker(settings, parent=parent)
