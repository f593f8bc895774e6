"""The options that the commands of `replay` share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ledger.rebuild import Base
from replay.export import Form

_POSITIONS = (
    "N (in every partition), TOPIC=N, TOPIC:PARTITION=N, N also being 'earliest', 'latest' or "
    "'snapshot' (where the newest one was made), or a snapshot's name; repeatable, or joined by "
    "commas. The most specific wins."
)

FromOffset = Annotated[
    list[str] | None,
    typer.Option(
        help=f"First record to replay: {_POSITIONS} Default: earliest.",
        metavar="POSITION",
        show_default=False,
    ),
]
ToOffset = Annotated[
    list[str] | None,
    typer.Option(
        help="Where to stop, before that record; the same forms. Default: the end as of now.",
        metavar="POSITION",
        show_default=False,
    ),
]
FromTime = Annotated[
    str | None,
    typer.Option(
        help="Instead of --from-offset: the first records at or after this time of Kafka's, such "
        "as 2015-05-01T00:30:00Z.",
        metavar="TIME",
        show_default=False,
    ),
]
ToTime = Annotated[
    str | None,
    typer.Option(
        help="Instead of --to-offset: stop before the first records at or after this time.",
        metavar="TIME",
        show_default=False,
    ),
]
BaseState = Annotated[
    Base,
    typer.Option(
        help="The state before the first record: from the newest snapshot that is not beyond it "
        "and the records between; from all records since offset 0; or none, as if the log began "
        "there.",
    ),
]
Accounts = Annotated[
    list[str] | None,
    typer.Option(
        "--account",
        help="Show only this account; repeatable.",
        metavar="ACCOUNT",
        show_default=False,
    ),
]
Assets = Annotated[
    list[str] | None,
    typer.Option(
        "--asset", help="Show only this asset; repeatable.", metavar="ASSET", show_default=False
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="How many threads share the partitions. Default: one for each processor.",
        show_default=False,
    ),
]
State = Annotated[
    Path | None,
    typer.Option(
        help="Keep the states in this directory; the same replay goes on from what is there, "
        "after an interruption or when there are more records.",
        metavar="DIR",
        show_default=False,
    ),
]
Into = Annotated[
    Path | None,
    typer.Option(
        help="Make a state directory (LEDGER_STATE_DIR) that workers start from.",
        metavar="DIR",
        show_default=False,
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(min=1, help="With --into: how many will share it; default 1.", show_default=False),
]
Out = Annotated[
    Path | None,
    typer.Option(
        help="Write the state as tables (balances, orders) and a manifest to this new directory.",
        metavar="DIR",
        show_default=False,
    ),
]
Format = Annotated[
    Form | None, typer.Option("--format", help="Of --out; default: parquet.", show_default=False)
]
Journal = Annotated[
    bool,
    typer.Option("--journal", help="With --out: also the journal entries of replayed records."),
]
Plot = Annotated[
    Path | None,
    typer.Option(
        help="Draw the balance of the one --account over time; a .png or .svg file.",
        metavar="FILE",
        show_default=False,
    ),
]
Fees = Annotated[
    Path | None,
    typer.Option(
        help="What if: fills from the start on cost what this fee schedule says (TOML).",
        metavar="FILE",
        show_default=False,
    ),
]
IgnoreAccount = Annotated[
    list[str] | None,
    typer.Option(
        help="What if: this account's events from the start on were not there; repeatable.",
        metavar="ACCOUNT",
        show_default=False,
    ),
]
WithoutEvent = Annotated[
    list[str] | None,
    typer.Option(
        help="What if: this event was not there: an event_id, or TOPIC:PARTITION:OFFSET; "
        "repeatable.",
        metavar="EVENT",
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
