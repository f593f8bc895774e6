"""What the commands share: reaching Kafka, common options, and results for people."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Annotated, Final

import typer

from ledger import console
from ledger.errors import InputError, UnreachableError
from ledger.kafka import Cluster
from ledger.memory import live_shortly
from ledger.positions import Watermarks
from ledger.projections.partition import Counts, Origin, Watermark
from ledger.rebuild import Rebuilder, Rebuilt, watermarks_json
from ledger.settings import Settings
from ledger.stack import kafka_endpoint
from ledger.stack.checks import kafka_cluster_id

CONNECT_TIMEOUT_S: Final = 5.0

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]


def connect(settings: Settings) -> Cluster:
    """Return the cluster that the settings name, or the local stack's.

    Raises:
        ConfigurationError: none is named and the local stack does not run.
        UnreachableError: nothing answers, after some seconds at most.
    """
    bootstrap = kafka_endpoint(settings)
    if kafka_cluster_id(bootstrap, CONNECT_TIMEOUT_S) is None:
        raise UnreachableError("Kafka", bootstrap, "it does not answer")
    return Cluster(bootstrap, settings)


def rebuilder_of(
    cluster: Cluster, origin: Origin, progress: Callable[[int], None] | None = None
) -> Rebuilder:
    """Return what rebuilds state from the cluster's topics; `progress` is told of offsets read."""
    live_shortly()  # and not at every start: servers that a command starts would inherit it
    return Rebuilder(cluster, origin, warn=console.warn, progress=progress)


def state_at(cluster: Cluster, origin: Origin, end: Watermarks, *, quiet: bool) -> Rebuilt:
    """Return the state of the partitions in `end`, with a progress bar unless `quiet`."""
    cost = rebuilder_of(cluster, origin).cost(end, end, "snapshot")
    with console.progress("Reading records", cost, quiet=quiet) as move:
        return rebuilder_of(cluster, origin, move).at(end)


def confirm(question: str, purpose: str, otherwise: str) -> None:
    """Ask a person, and go on only with a yes.

    Args:
        question: what is asked.
        purpose: what `--yes` is for, where nobody can be asked.
        otherwise: what a no means.

    Raises:
        InputError: the answer is no, or there is no terminal.
    """
    if not sys.stdin.isatty():
        raise InputError(f"Nobody can be asked here; add --yes to {purpose}.")
    if not typer.confirm(question, err=True):
        raise InputError(otherwise)


def counts_line(counts: Counts) -> str:
    """Return counts as one line for people."""
    parts = []
    for topic, tally in counts.items():
        verdicts = ", ".join(f"{number} {verdict}" for verdict, number in tally.items() if number)
        parts.append(f"{topic}: {verdicts or 'none'}")
    return " · ".join(parts)


def watermark_line(marks: Mapping[int, Watermark]) -> str:
    """Return watermarks as one line for people: the sum of a topic's partitions."""
    return ", ".join(
        f"{topic} {sum(offsets.values())}" for topic, offsets in watermarks_json(marks).items()
    )
