"""The command `demo`: every part of the ledger on real data, each step the command it names."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Final

import typer

from ledger import console
from ledger.cli.shared import AsJson
from ledger.errors import InputError
from ledger.settings import Settings, load_settings

PREFIX: Final = "demo."
"""Added to the topic prefix, so that a ledger of one's own is not touched. Always the same: in a
second run everything is there already, and its events are counted as duplicates."""

_MODULES: Final = {"ledger": "ledger.cli", "replay": "replay.cli", "chat-bridge": "chat_bridge.cli"}
_STOP_TIMEOUT_S: Final = 15.0
_APPLY_TIMEOUT_S: Final = "120"
_LOG_LINES: Final = 5


@dataclass(frozen=True)
class _Step:
    """A command that was run, and how it ended."""

    command: str
    exit_code: int


@dataclass
class _Demo:
    """The demonstration as it goes on; the steps' exit codes decide how it ends."""

    environment: dict[str, str]
    as_json: bool
    steps: list[_Step] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        return max(step.exit_code for step in self.steps)

    def step(self, what: str, *command: str) -> int:
        """Say what is done, run a command as a person would, and return its exit code."""
        console.err.print()
        console.err.print(f"[bold]{what}[/]")
        console.err.print(f"[cyan]$[/] {_shown(command)}")
        sys.stdout.flush()
        # With --json, stdout is for the one document at the end.
        output = sys.stderr if self.as_json else None
        code = subprocess.run(_argv(command), env=self.environment, stdout=output).returncode
        self.steps.append(_Step(_shown(command), code))
        return code


def demo(
    workers: Annotated[int, typer.Option(min=1, max=8, help="How many workers to start.")] = 2,
    as_json: AsJson = False,
) -> None:
    """Show all of it on real data: publish, tables, rooms, replay, check.

    Starts the local stack unless servers are named, and workers, which it stops at the end; the
    stack goes on running. Uses topics of its own, so run it again: the second time every event is
    a duplicate and no balance changes. The exit code is that of the worst step.
    """
    data = demo_data()
    settings = load_settings()
    environment = {**os.environ, "LEDGER_TOPIC_PREFIX": settings.topic_prefix + PREFIX}
    run = _Demo(environment, as_json)
    if run.step("The stack: a Kafka broker and a RabbitMQ", "ledger", "up"):
        raise typer.Exit(console.COULD_NOT_RUN)
    logs = settings.state_dir / "demo"
    with _workers(workers, environment, logs):
        _publish(run, data)
        _look(run)
        _prove(run)
    _end(run, settings, logs)


def demo_data() -> Path:
    """Return where the demonstration's data are: in a checkout, or in an installed package.

    Raises:
        InputError: neither has them.
    """
    here = Path(__file__).resolve()
    for directory in (here.parents[2] / "data", here.parents[1] / "demo_data"):
        if (directory / "bitstamp").is_dir():
            return directory
    raise InputError("The demonstration's data are not here; run it in a checkout of the project.")


def _publish(run: _Demo, data: Path) -> None:
    wait = ("--wait", "--timeout", _APPLY_TIMEOUT_S)
    files = [_relative(data / "bitstamp" / f"{t}.jsonl") for t in ("transfers", "orders", "fills")]
    run.step("One hour of a real order book (Bitstamp, 2015)", "ledger", "publish", *files, *wait)
    export = _relative(data / "hyperliquid" / "fills.csv")
    run.step(
        "What two wallets did on Hyperliquid, from the venue's own export",
        "ledger", "import", "hyperliquid", export, "--publish", *wait,
    )  # fmt: skip


def _look(run: _Demo) -> None:
    run.step("What a trader has, as the workers published it", "ledger", "balances", "trader-64")
    run.step("Fees that were taken, to the last digit", "ledger", "balances", "@fees")
    run.step("The wallets and the system accounts", "ledger", "balances", "--asset", "USDC")
    run.step("The trader's open orders", "ledger", "orders", "trader-64", "--open")
    run.step("Every fill into its chat room, once", "chat-bridge", "run", "--once")
    run.step("The room's last lines", "chat-bridge", "tail", "BTC-USD", "--last", "5")


def _prove(run: _Demo) -> None:
    run.step(
        "All of it again from the topics alone, compared with every row of the tables",
        "replay", "--from-offset", "earliest", "--base", "genesis", "--verify",
        "--account", "@fees",
    )  # fmt: skip
    run.step("Books, tables, flags", "ledger", "check")


def _end(run: _Demo, settings: Settings, logs: Path) -> None:
    if run.as_json:
        passed = run.exit_code == console.FINE
        console.print_json({"passed": passed, "steps": [asdict(step) for step in run.steps]})
    console.err.print()
    failed = [step.command for step in run.steps if step.exit_code]
    if failed:
        for log in sorted(logs.glob("worker-*.log")):
            last = log.read_text(errors="replace").splitlines()[-_LOG_LINES:]
            console.say("\n".join([f"{log}:", *last]))
        console.err.print(f"[bold red]Not everything went well:[/] {', '.join(failed)}")
    else:
        console.err.print(
            "[bold green]Everything holds:[/] the books balance, tables match topics."
        )
    if settings.kafka is None or settings.amqp is None:
        console.say("The stack goes on running; 'ledger down' stops it.")
    prefix = run.environment["LEDGER_TOPIC_PREFIX"]
    console.say(f"To look around in what is here, set LEDGER_TOPIC_PREFIX={prefix}")
    if run.exit_code:
        raise typer.Exit(run.exit_code)


@contextmanager
def _workers(number: int, environment: dict[str, str], logs: Path) -> Iterator[None]:
    """Run worker processes, which end with the context."""
    logs.mkdir(parents=True, exist_ok=True)
    console.err.print(f"\n[bold]Workers[/]\n[cyan]$[/] ledger worker   [dim]({number} of them)[/]")
    running: list[subprocess.Popen[bytes]] = []
    try:
        for one in range(number):
            with (logs / f"worker-{one}.log").open("wb") as log:
                running.append(
                    subprocess.Popen(
                        _argv(("ledger", "worker")), env=environment, stdout=log, stderr=log
                    )
                )
        yield
    finally:
        for process in running:
            process.terminate()
        for process in running:
            try:
                process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _argv(command: Sequence[str]) -> list[str]:
    """Return how to run one of our commands with this Python, wherever its scripts are."""
    name, *arguments = command
    return [sys.executable, "-c", f"from {_MODULES[name]} import main; main()", *arguments]


def _shown(command: Sequence[str]) -> str:
    return shlex.join(command)


def _relative(path: Path) -> str:
    """Return a path as a person in this directory would write it."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
