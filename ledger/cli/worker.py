"""The command `worker`."""

from __future__ import annotations

from ledger.settings import load_settings


def worker() -> None:
    """Run one stream worker until SIGTERM or Ctrl-C. Start several to scale.

    It applies the records of the input topics, publishes tables and dead letters, and writes
    snapshots. Missing topics are created.
    """
    # Faust takes a second to import; the other commands do not need it.
    from ledger.app import run_worker

    run_worker(load_settings())
