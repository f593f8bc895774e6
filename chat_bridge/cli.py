"""The command `chat-bridge`: run the bridge, read rooms."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import sys
from typing import Annotated, NoReturn

import typer
from rich.text import Text

from chat_bridge import bridge
from chat_bridge.amqp import connect
from chat_bridge.errors import ConnectionLost
from chat_bridge.history import Entry, Rooms
from chat_bridge.listing import RoomSummary, room_names, summaries
from chat_bridge.names import parse_room
from ledger import console
from ledger.errors import UnreachableError
from ledger.settings import Settings, load_settings
from ledger.stack import amqp_endpoint, endpoints, kafka_endpoint

_LONGEST_PAUSE_S = 5.0

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
    console.run(app, "chat-bridge")


@app.command("run")
def run_(
    once: Annotated[
        bool, typer.Option("--once", help="Post all there is now, then exit; a server must be up.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Post each trade into its instrument's room and each fill into its account's room.

    Runs until SIGTERM or Ctrl-C, and waits for servers that are down. Start a second one to take
    over when the first fails: each gets a share of the partitions.
    """
    _log_to_stderr()
    settings = load_settings()
    kafka, amqp = kafka_endpoint(settings), amqp_endpoint(settings)
    tally = asyncio.run(bridge.run(settings, kafka, amqp, once=once))
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
    last: Annotated[int, typer.Option("--last", min=0, help="Begin with so many messages.")] = 10,
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
    """Show the last messages of a room, and go on live until Ctrl-C."""
    name = parse_room(room)
    settings = load_settings()
    amqp = amqp_endpoint(settings)
    if follow is None:
        follow = sys.stdout.isatty() and not as_json
    if not follow:
        entries = asyncio.run(_history(settings, amqp, name, last))
        if as_json:
            console.print_json({"room": name, "messages": [entry.document() for entry in entries]})
        else:
            for entry in entries:
                _show(entry, as_json=False)
        return
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_follow(settings, amqp, name, last, as_json=as_json))


@app.command()
def rooms(as_json: AsJson = False) -> None:
    """List the rooms, how many messages each holds, and the last of them."""
    settings = load_settings()
    where = endpoints(settings) if settings.amqp is None else None
    amqp = amqp_endpoint(settings)
    management = where.management if where else settings.amqp_management
    names = room_names(settings, amqp, management)
    found = asyncio.run(_summaries(settings, amqp, names))
    if as_json:
        console.print_json({"rooms": [summary.as_json() for summary in found]})
    elif found:
        rows = []
        for summary in found:
            when, text = summary.last.line() if summary.last else ("", "")
            rows.append((summary.room, f"{summary.messages:,}", when, text))
        console.print_table("Rooms", ("room", "messages", "last", ""), rows, right=("messages",))
    else:
        console.say(
            "There are no rooms yet: the first fill that 'chat-bridge run' posts makes one."
        )


async def _history(settings: Settings, amqp: str, room: str, last: int) -> list[Entry]:
    async with await connect(amqp, settings.topic("chat-tail")) as connection:
        reader = Rooms(connection, settings)
        if last == 0:
            await reader.newest(room)  # it has to exist all the same
        return await reader.last(room, last)


async def _follow(
    settings: Settings, amqp: str, room: str, last: int, *, as_json: bool
) -> NoReturn:
    """Show the last messages and all that follow, over lost connections too."""
    next_offset: int | None = None
    pause_s = 0.5
    while True:
        try:
            async with await connect(amqp, settings.topic("chat-tail")) as connection:
                reader = Rooms(connection, settings)
                if next_offset is None:
                    next_offset = 0
                    entries = await reader.last(room, max(last, 1))
                    if entries:
                        next_offset = entries[-1].offset + 1
                    for entry in entries if last else []:
                        _show(entry, as_json=as_json)
                async with reader.reading(room, next_offset) as live:
                    while True:
                        entries = await live.more()
                        pause_s = 0.5
                        for entry in entries:
                            if entry.offset >= next_offset:
                                _show(entry, as_json=as_json)
                                next_offset = entry.offset + 1
        except (ConnectionLost, UnreachableError) as error:
            if next_offset is None:
                raise
            console.warn(f"{error} Trying again in {pause_s:.1f} s.")
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)


async def _summaries(settings: Settings, amqp: str, names: list[str]) -> list[RoomSummary]:
    async with await connect(amqp, settings.topic("chat-rooms")) as connection:
        return await summaries(Rooms(connection, settings), names)


def _show(entry: Entry, *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps(entry.document(), ensure_ascii=False) + "\n")
        sys.stdout.flush()
        return
    when, text = entry.line()
    console.out.print(Text.assemble((when, "dim"), "  " if when else "", text))


def _log_to_stderr() -> None:
    """Log what the bridge says; the clients' own logs only repeat what it then says in a sentence.

    They also print tracebacks, which nobody is to see.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    ours = logging.getLogger("chat_bridge")
    ours.setLevel(logging.INFO)
    ours.addHandler(handler)
    for name in ("aiokafka", "aio_pika", "aiormq", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
