"""The commands that send events: `publish` and `import`."""

from __future__ import annotations

import contextlib
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Annotated, Any, Final

import typer

from ledger import console
from ledger.cli.shared import AsJson, connect
from ledger.codec import encode
from ledger.continuity import require_topics
from ledger.errors import InputError
from ledger.events import INPUT_TOPICS
from ledger.kafka import Cluster
from ledger.projections.partition import Origin
from ledger.publish import (
    STDIN,
    STDIN_NAME,
    Checked,
    Sender,
    await_applied,
    check,
    lines_of,
    opened,
    require_readable,
    send,
)
from ledger.published import require_unchanged
from ledger.settings import load_settings
from ledger.venues import VENUES, Reader

DEFAULT_TIMEOUT_S: Final = 60.0
_SPOOL_BYTES: Final = 64 << 20

Files = Annotated[
    list[str] | None, typer.Argument(metavar="FILE", help="Files; '-' or none: stdin.")
]
Wait = Annotated[
    bool, typer.Option("--wait", help="Return only once the published tables have the events.")
]
Timeout = Annotated[
    float,
    typer.Option(
        min=0,
        metavar="SECONDS",
        help="With --wait: give up when the tables have not moved for so long.",
    ),
]


@dataclass
class Outcome:
    """What was published.

    Attributes:
        sender: what sent it: counts and offsets of what was acknowledged.
        skipped: how many bad lines were left out.
        refused: the files of which nothing was sent.
    """

    sender: Sender
    skipped: int = 0
    refused: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """2 if a file was refused, else 1 if lines were left out, else 0."""
        if self.refused:
            return console.COULD_NOT_RUN
        return console.DIFFERENT if self.skipped else console.FINE

    def as_json(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        offsets: dict[str, dict[str, int]] = {topic: {} for topic in INPUT_TOPICS}
        for (topic, partition), offset in sorted(self.sender.offsets.items()):
            offsets[topic][str(partition)] = offset
        return {
            "published": self.sender.sent,
            "skipped": self.skipped,
            "refused": self.refused,
            "offsets": offsets,
        }


def publish(
    files: Files = None,
    skip_invalid: Annotated[
        bool,
        typer.Option(
            "--skip-invalid", help="Send the good lines of a file with bad ones; exit with 1."
        ),
    ] = False,
    wait: Wait = False,
    timeout: Timeout = DEFAULT_TIMEOUT_S,
    as_json: AsJson = False,
) -> None:
    """Publish events: JSON Lines, each validated, sent to its topic and acknowledged.

    A bad line is reported as FILE:LINE: reason, and nothing of its file is sent; the other files
    are. Blank lines are ignored. Publishing an event twice changes nothing: it is counted as a
    duplicate. Missing topics are created.
    """
    names = files or [STDIN]
    require_readable(names)
    cluster = connect(load_settings())
    require_topics(cluster)
    origin = require_unchanged(cluster, cluster.ensure_topics())
    with Sender(cluster) as sender:
        outcome = Outcome(sender)
        for name in names:
            with opened(name) as (label, file):
                publish_file(label, file, outcome, skip_invalid=skip_invalid, quiet=as_json)
    finish(cluster, origin, outcome, wait=wait, timeout_s=timeout, as_json=as_json)


def publish_file(
    name: str, file: IO[bytes], outcome: Outcome, *, skip_invalid: bool, quiet: bool
) -> None:
    """Send a file's events, or report its bad lines; note in `outcome` what was done."""
    with console.progress(f"Checking {name}", _size(file), quiet=quiet) as move:
        checked = check(name, file, move)
    _report(checked)
    if checked.invalid and not skip_invalid:
        outcome.refused.append(name)
        return
    outcome.skipped += checked.invalid
    with console.progress(f"Sending {name}", checked.events, quiet=quiet) as move:
        send(checked, file, outcome.sender, move)
        outcome.sender.flush()


def finish(
    cluster: Cluster,
    origin: Origin,
    outcome: Outcome,
    *,
    wait: bool,
    timeout_s: float,
    as_json: bool,
) -> None:
    """Wait for the tables if asked to, print what was done, and leave with its exit code."""
    sender = outcome.sender
    if wait and sender.offsets:
        distance = sum(sender.offsets.values())
        with console.progress("Waiting for the tables", distance, quiet=as_json) as move:
            await_applied(cluster, origin.topic_ids, sender.offsets, timeout_s, move)
    if as_json:
        console.print_json(outcome.as_json())
    else:
        sent = ", ".join(f"{number} {topic}" for topic, number in sender.sent.items() if number)
        console.out.print(f"Published {sent or 'nothing'}.")
        if outcome.skipped:
            console.warn(f"{outcome.skipped} bad lines were left out.")
    if outcome.exit_code:
        raise typer.Exit(outcome.exit_code)


def _report(checked: Checked) -> None:
    """Tell of bad lines, one a line, in the form that editors and other programs know."""
    for problem in checked.problems:
        sys.stderr.write(console.harmless(str(problem)).replace("\n", "\\n") + "\n")
    more = checked.invalid - len(checked.problems)
    if more:
        sys.stderr.write(f"{checked.name}: {more} more bad lines\n")
    sys.stderr.flush()


def _size(file: IO[bytes]) -> int:
    file.seek(0, 2)
    return file.tell()


# -- import


import_app = typer.Typer(
    help="Turn a venue's own export into events. The same file gives the same events.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Out = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Write the events here, not to stdout.")
]
Send = Annotated[
    bool, typer.Option("--publish", help="Publish the events; nothing goes to stdout.")
]


def _import_command(venue: str, reader: Reader) -> Callable[..., None]:
    def command(
        files: Files = None,
        out: Out = None,
        publish: Send = False,
        wait: Wait = False,
        timeout: Timeout = DEFAULT_TIMEOUT_S,
        as_json: AsJson = False,
    ) -> None:
        if publish and out is not None:
            raise InputError("--publish and --out cannot be given together: choose one.")
        if not publish and wait:
            raise InputError("--wait needs --publish: without it nothing is sent.")
        if as_json and not publish and out is None:
            raise InputError("--json needs --publish or --out: stdout is for the events.")
        names = files or [STDIN]
        require_readable(names)
        with imported(reader, names) as (count, file):
            if publish:
                _publish_imported(venue, file, wait=wait, timeout_s=timeout, as_json=as_json)
                return
            _write(file, out)
        if as_json:
            console.print_json({"events": count, "out": str(out)})
        elif out is not None:
            console.say(f"Wrote {count} events to {out}.")

    command.__doc__ = f"""Turn exports of {venue} into events, as JSON Lines on stdout.

    If a line cannot be used, it is named, nothing is written or sent, and the exit code is 2.
    """
    return command


@contextlib.contextmanager
def imported(reader: Reader, names: Sequence[str]) -> Iterator[tuple[int, IO[bytes]]]:
    """Yield how many events the files give, and a file of them as JSON Lines.

    Raises:
        InputError: a file or one of its lines cannot be used.
    """
    count = 0
    with tempfile.SpooledTemporaryFile(_SPOOL_BYTES) as spool:
        for name in names:
            with opened(name) as (label, file):
                path = Path(STDIN_NAME if name == STDIN else name)
                for event in reader(path, _lines(label, file)):
                    spool.write(encode(event) + b"\n")
                    count += 1
        spool.seek(0)
        yield count, spool


def _lines(name: str, file: IO[bytes]) -> Iterator[bytes]:
    for number, line in enumerate(lines_of(file), start=1):
        if line is None:
            raise InputError(f"{name}:{number}: the line is too long to be of an export.")
        yield line


def _publish_imported(
    venue: str, file: IO[bytes], *, wait: bool, timeout_s: float, as_json: bool
) -> None:
    cluster = connect(load_settings())
    require_topics(cluster)
    origin = require_unchanged(cluster, cluster.ensure_topics())
    with Sender(cluster) as sender:
        outcome = Outcome(sender)
        publish_file(f"<{venue}>", file, outcome, skip_invalid=False, quiet=as_json)
    finish(cluster, origin, outcome, wait=wait, timeout_s=timeout_s, as_json=as_json)


def _write(file: IO[bytes], out: Path | None) -> None:
    if out is None:
        sys.stdout.flush()
        for chunk in iter(lambda: file.read(1 << 20), b""):
            sys.stdout.buffer.write(chunk)
        sys.stdout.buffer.flush()
        return
    if out.is_dir():
        raise InputError(f"{out}: is a directory; name a file.")
    unfinished = out.with_name(f".{out.name}.{uuid.uuid4().hex}")
    try:
        with unfinished.open("wb") as target:
            for chunk in iter(lambda: file.read(1 << 20), b""):
                target.write(chunk)
        unfinished.replace(out)
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror}).") from error
    finally:
        unfinished.unlink(missing_ok=True)


for _venue, _reader in VENUES.items():
    import_app.command(_venue)(_import_command(_venue, _reader))
