"""The command `chat-bridge`: run the bridge, read rooms, talk in them, say who may."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import sys
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any, NoReturn

import typer
from rich.text import Text

from chat_bridge import bridge
from chat_bridge.access import Access
from chat_bridge.amqp import connect
from chat_bridge.errors import ConnectionLost
from chat_bridge.history import Entry, Rooms
from chat_bridge.listing import ListedRoom, RoomSummary, listed_rooms, summaries
from chat_bridge.names import parse_account, parse_room
from chat_bridge.session import Options
from chat_bridge.speech import keep_pace, saying, send, url_of_speaker
from chat_bridge.text import harmless_json
from ledger import console, times
from ledger.errors import InputError, UnreachableError
from ledger.positions import moment_ms
from ledger.settings import Settings, load_settings
from ledger.stack import amqp_endpoint, kafka_endpoint
from ledger.stack.addresses import management_endpoint

_LONGEST_PAUSE_S = 5.0
_DEFAULT_LAST = 10

app = typer.Typer(
    help="Posts trades and fills into rooms in RabbitMQ, and reads rooms.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]


def main() -> NoReturn:
    """Run the command line; the exit code is 0, 1 or 2, and never is there a traceback."""
    # Their own logs only repeat, with tracebacks, what is then said in a sentence.
    for name in ("aiokafka", "aio_pika", "aiormq", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    console.run(app, "chat-bridge")


@app.command("run")
def run_(
    once: Annotated[
        bool, typer.Option("--once", help="Post all there is now, then exit; a server must be up.")
    ] = False,
    since: Annotated[
        str | None,
        typer.Option(
            help="Never post records that were published before this time (RFC 3339, or 'now') and "
            "are not posted yet.",
            show_default=False,
        ),
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            help="Post what was there before the start at no more than so many messages a second.",
            show_default=False,
        ),
    ] = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=65535,
            help="Answer /metrics for Prometheus on this port of loopback.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Post each trade into its instrument's room and each fill into its account's room.

    Runs until SIGTERM or Ctrl-C, and waits for servers that are down. Start a second one to take
    over when the first fails: each gets a share of the partitions.
    """
    _log_to_stderr()
    settings = load_settings()
    since_ms: int | None = None
    if since is not None:
        since_ms = int(time.time() * 1000) if since == "now" else moment_ms(since, "--since")
    options = Options(once=once, since_ms=since_ms, rate=rate)
    kafka, amqp = kafka_endpoint(settings), amqp_endpoint(settings)
    tally = asyncio.run(bridge.run(settings, kafka, amqp, options, metrics_port))
    if as_json:
        console.print_json(tally.as_json())
    else:
        console.say(
            f"Read {tally.records:,} records; posted {tally.trades:,} trades, "
            f"{tally.fills:,} fills and {tally.busts:,} busts."
        )


@app.command()
def tail(
    room: Annotated[str, typer.Argument(help="BTC-USD, room.BTC-USD or account.ACCOUNT.")],
    last: Annotated[
        int | None,
        typer.Option(min=0, help="Begin with so many messages.  [default: 10]", show_default=False),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Begin with what happened at this time (RFC 3339) instead.",
            show_default=False,
        ),
    ] = None,
    follow: Annotated[
        bool | None,
        typer.Option(
            "--follow/--no-follow",
            help="Go on live. Default: on a terminal without --json.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print one JSON document; with --follow, one for each line."),
    ] = False,
) -> None:
    """Show the last messages of a room, or those since a time, and go on live until Ctrl-C."""
    name = parse_room(room)
    start = _start(last, since)
    settings = load_settings()
    amqp = amqp_endpoint(settings)
    if follow is None:
        follow = sys.stdout.isatty() and not as_json
    with contextlib.suppress(KeyboardInterrupt) if follow else contextlib.nullcontext():
        asyncio.run(_tail(settings, amqp, name, start, follow=follow, as_json=as_json))


@app.command()
def rooms(as_json: AsJson = False) -> None:
    """List the rooms: how many messages each holds, how many read it now, and its last message."""
    settings = load_settings()
    amqp = amqp_endpoint(settings)
    listed = listed_rooms(settings, amqp, management_endpoint(settings))
    found = asyncio.run(_summaries(settings, amqp, listed))
    if as_json:
        console.print_json({"rooms": [summary.as_json() for summary in found]})
    elif found:
        rows = []
        for summary in found:
            when, text = summary.last.line() if summary.last else ("", "")
            rows.append((summary.room, f"{summary.messages:,}", summary.members, when, text))
        console.print_table(
            "Rooms",
            ("room", "messages", "members", "last", ""),
            rows,
            right=("messages", "members"),
        )
    else:
        console.say(
            "There are no rooms yet: the first fill that 'chat-bridge run' posts makes one."
        )


@app.command()
def say(
    room: Annotated[str, typer.Argument(help="A public room: BTC-USD or room.BTC-USD.")],
    text: Annotated[str, typer.Argument(help="One line; at most 1,000 characters.")],
    speaker: Annotated[
        str,
        typer.Option(
            "--as",
            metavar="NAME",
            help="An account with access, or the user of LEDGER_AMQP.",
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Say something in a public room, and wait until RabbitMQ has confirmed it."""
    said = saying(room, text, speaker)
    settings = load_settings()
    url = url_of_speaker(settings, amqp_endpoint(settings), speaker)
    keep_pace(settings, speaker)
    asyncio.run(send(settings, url, said))
    if as_json:
        _print_json({"room": said.room, **said.document()})
    else:
        console.say(f"Said in {said.room} as {said.speaker}.")


@app.command()
def grant(
    account: Annotated[str, typer.Argument(help="The account, such as trader-67.")],
    as_json: AsJson = False,
) -> None:
    """Let an account read public rooms and its own, and talk; print the AMQP URL for it.

    Makes the account's user in RabbitMQ, or gives it a new password: then the old one is no longer
    taken, and what is connected with it is cut off.
    """
    granted = _access().grant(parse_account(account))
    if as_json:
        console.print_json(granted.as_json())
        return
    if granted.renewed:
        console.say(f"{account} has a new password: the old one is no longer taken.")
    else:
        console.say(f"{account} may read public rooms and account.{account}, and talk.")
    console.say("This URL has the password. Give it to nobody but the account's owner:")
    sys.stdout.write(granted.url + "\n")


@app.command()
def revoke(
    account: Annotated[str, typer.Argument(help="The account, such as trader-67.")],
    as_json: AsJson = False,
) -> None:
    """Take an account's access away: delete its user in RabbitMQ, and cut its connections."""
    revoked = _access().revoke(parse_account(account))
    if as_json:
        console.print_json({"account": account, "revoked": revoked})
    elif revoked:
        console.say(f"{account} has no access any more.")
    else:
        console.say(f"{account} had no access.")


def _access() -> Access:
    settings = load_settings()
    return Access(settings, amqp_endpoint(settings), management_endpoint(settings))


_Start = int | times.Instant
"""With which messages to begin: so many of the last, or those since a moment."""


def _start(last: int | None, since: str | None) -> _Start:
    if since is None:
        return _DEFAULT_LAST if last is None else last
    if last is not None:
        raise InputError("--last and --since: use one of them.")
    try:
        return times.instant(since.strip())
    except ValueError as error:
        raise InputError(f"--since: {error} (found {since!r:.80}).") from error


async def _history(rooms: Rooms, room: str, start: _Start) -> AsyncIterator[Entry]:
    """Yield the messages with which to begin."""
    if isinstance(start, tuple):
        async for entries in rooms.since(room, start):
            for entry in entries:
                yield entry
    else:
        for entry in await rooms.last(room, start):
            yield entry


async def _tail(
    settings: Settings, amqp: str, room: str, start: _Start, *, follow: bool, as_json: bool
) -> None:
    """Show a room's messages from a start on, and live over lost connections, too."""
    next_offset: int | None = None
    pause_s = 0.5
    while True:
        try:
            async with await connect(amqp, settings.topic("chat-tail")) as connection:
                reader = Rooms(connection, settings)
                if next_offset is None:
                    if not follow:
                        await _show_all(room, _history(reader, room, start), as_json=as_json)
                        return
                    newest = await reader.newest(room)
                    end = newest.offset + 1 if newest else 0
                    async for entry in _history(reader, room, start):
                        if entry.offset < end:  # what comes meanwhile is read again, live
                            _show(entry, as_json=as_json)
                    next_offset = end
                async with reader.reading(room, next_offset) as live:
                    while True:
                        found = await live.more()
                        pause_s = 0.5
                        for entry in found:
                            if entry.offset >= next_offset:
                                _show(entry, as_json=as_json)
                                next_offset = entry.offset + 1
        except (ConnectionLost, UnreachableError) as error:
            if next_offset is None:
                raise
            console.warn(f"{error} Trying again in {pause_s:.1f} s.")
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)


async def _show_all(room: str, entries: AsyncIterator[Entry], *, as_json: bool) -> None:
    if as_json:
        _print_json({"room": room, "messages": [entry.document() async for entry in entries]})
    else:
        async for entry in entries:
            _show(entry, as_json=False)


async def _summaries(settings: Settings, amqp: str, listed: list[ListedRoom]) -> list[RoomSummary]:
    async with await connect(amqp, settings.topic("chat-rooms")) as connection:
        return await summaries(Rooms(connection, settings), listed)


def _show(entry: Entry, *, as_json: bool) -> None:
    if as_json:
        _print_json(entry.document(), indented=False)
        sys.stdout.flush()
        return
    when, text = entry.line()
    console.out.print(Text.assemble((when, "dim"), "  " if when else "", text))


def _print_json(document: Any, *, indented: bool | None = None) -> None:
    """Print JSON in which nothing that people said can steer a terminal."""
    indent = 2 if indented is not False and sys.stdout.isatty() else None
    text = json.dumps(document, indent=indent, ensure_ascii=False)
    sys.stdout.write(harmless_json(text) + "\n")


def _log_to_stderr() -> None:
    """Log what the bridge says."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    ours = logging.getLogger("chat_bridge")
    ours.setLevel(logging.INFO)
    ours.addHandler(handler)
