"""The command `schemas`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ledger import console
from ledger.cli.shared import AsJson
from ledger.errors import InputError
from ledger.intake import json_schemas, write_schemas


def schemas(
    directory: Annotated[
        Path | None,
        typer.Argument(
            metavar="DIR",
            help="Where to write NAME.schema.json for each event type and topic; it is created. "
            "Without it, all schemas go to stdout as one JSON document.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write the JSON Schemas of the events."""
    if directory is None:
        console.print_json(json_schemas())
        return
    try:
        write_schemas(directory)
    except OSError as error:
        raise InputError(f"{directory}: cannot be written ({error.strerror}).") from error
    names = sorted(f"{name}.schema.json" for name in json_schemas())
    if as_json:
        console.print_json({"directory": str(directory), "files": names})
    else:
        console.out.print(f"Wrote {len(names)} schemas to {directory}.", markup=False)
