"""The Faust app of the stream worker: `ledger worker`, or `faust -A ledger.app worker`."""

from __future__ import annotations

import logging
import sys
import time

from ledger.agents.worker import LedgerApp, create_app
from ledger.memory import live_long
from ledger.rocks import allow_open_files, stored_bytes
from ledger.settings import Settings, load_settings
from ledger.stack import kafka_endpoint
from ledger.supervisor import LOG_FORMAT, stop_without_parent

_REPEATED_AFTER_S = 30.0


class _Sparingly(logging.Filter):
    """Lets through only now and then what aiokafka says many times a second."""

    def __init__(self) -> None:
        super().__init__()
        self._said_at: dict[tuple[str, str], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a record is to be logged."""
        if not record.name.startswith("aiokafka"):
            return True
        now = time.monotonic()
        what = (record.name, str(record.msg))
        if now - self._said_at.get(what, -_REPEATED_AFTER_S) < _REPEATED_AFTER_S:
            return False
        self._said_at[what] = now
        return True


def run_worker(settings: Settings, log_level: str = "info", *, parent: int | None = None) -> None:
    """Run one stream worker until it is told to stop; does not return.

    Args:
        settings: what it was told.
        log_level: of what goes to stderr.
        parent: the pid of its supervisor; it stops when that has gone.

    Raises:
        ConfigurationError: no Kafka is named and the local stack does not run.
    """
    import uvloop

    live_long(stored_bytes(settings.worker_dir))
    allow_open_files()
    if parent is not None:
        stop_without_parent(parent)
    uvloop.install()
    application = create_app(settings, kafka_endpoint(settings))
    logging.basicConfig(level=log_level.upper(), format=LOG_FORMAT, stream=sys.stderr)
    for handler in logging.getLogger().handlers:
        handler.addFilter(_Sparingly())
    for noisy in ("faust", "mode", "aiokafka"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    worker = application.Worker(
        loglevel=log_level, override_logging=False, redirect_stdouts=False, quiet=True
    )
    worker.spinner = None  # nothing but results goes to stdout
    worker.execute_from_commandline()


def __getattr__(name: str) -> LedgerApp:
    """Make the app when Faust's command line asks for it, not when a test imports the module."""
    if name == "app":
        settings = load_settings()
        return create_app(settings, kafka_endpoint(settings))
    raise AttributeError(name)
