"""`python -m tests.watermarks`: the Bitstamp hour and a generated log, a line of result each."""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from ledger.settings import Settings
from tests.broker import own_broker
from tests.watermarks.choice import increasing, independent
from tests.watermarks.ledgers import publish_generated, publish_hour, with_snapshots
from tests.watermarks.run import Outcome, prove_ledger

_PIECES: Final = 10  # of the hour
_EVENTS_PER_S: Final = 20_000
_MORE: Final = 1.02  # of the generated events: some are in transactions that are aborted
_COMMANDS: Final = 5  # watermarks of each log at which the command is run, too
_PROCESSES: Final = 2  # to compare in; the hour's are not worth one more
_MOST_NAMED: Final = 40


def main(arguments: Sequence[str] | None = None) -> int:
    """Prove both logs; return 1 if anything differed."""
    options = _options(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that everything is stopped
    directory = Path(tempfile.mkdtemp(prefix="watermarks-"))
    print(f"seed {options.seed}, in {directory}", flush=True)
    try:
        with own_broker(directory / "broker") as broker:
            outcomes = {
                name: prove_log(
                    broker.settings(directory / name, topic_prefix=f"{name}-", partitions=8),
                    options,
                )
                for name, prove_log in (("hour", _hour), ("generated", _generated))
            }
    except (KeyboardInterrupt, SystemExit):
        shutil.rmtree(directory)
        raise
    _print_table(outcomes)
    if any(outcome.proof.differences for outcome in outcomes.values()):
        print(f"kept: {directory}", flush=True)
        return 1
    shutil.rmtree(directory)
    return 0


def _hour(settings: Settings, options: argparse.Namespace) -> Outcome:
    settings = with_snapshots(settings, 0.2)
    return _prove(
        settings,
        lambda log: publish_hour(settings, log, _PIECES),
        lambda: prove_ledger(
            settings, options.seed, independent, count=options.watermarks, commands=_COMMANDS
        ),
    )


def _generated(settings: Settings, options: argparse.Namespace) -> Outcome:
    events = round(options.events * _MORE)
    seconds = max(4.0, events / _EVENTS_PER_S)
    settings = with_snapshots(settings, seconds / 20)
    return _prove(
        settings,
        lambda log: publish_generated(settings, log, options.seed, events, seconds),
        lambda: prove_ledger(
            settings,
            options.seed,
            increasing,
            count=options.watermarks,
            commands=_COMMANDS,
            processes=_PROCESSES,
        ),
    )


def _prove(
    settings: Settings, publish: Callable[[Path], None], prove: Callable[[], Outcome]
) -> Outcome:
    name = settings.topic_prefix.removesuffix("-")
    began = time.monotonic()
    settings.state_dir.mkdir()
    publish(settings.state_dir / "worker.log")
    print(f"{name}: published in {time.monotonic() - began:.0f} s", flush=True)
    outcome = prove()
    differences = outcome.proof.differences
    if outcome.from_snapshot * 2 < outcome.watermarks:
        differences.append(
            f"only {outcome.from_snapshot} of {outcome.watermarks} replays began with a snapshot"
        )
    print(f"{name}: proved in {outcome.seconds:.0f} s", flush=True)
    for difference in differences[:_MOST_NAMED]:
        print(f"  DIFFERS: {difference}", flush=True)
    return outcome


def _print_table(outcomes: dict[str, Outcome]) -> None:
    print("\n| log | records | watermarks | from a snapshot | command | seconds | result |")
    print("|---|---:|---:|---:|---:|---:|---|")
    for name, outcome in outcomes.items():
        differing = len(outcome.proof.differences)
        cells = (
            name,
            f"{outcome.proof.records:,}",
            outcome.watermarks,
            f"{outcome.from_snapshot} ({outcome.share_from_snapshot:.0%} of their partitions; "
            f"{outcome.snapshots} snapshots)",
            outcome.commands,
            f"{outcome.seconds:.0f}",
            f"{differing} DIFFERENCES" if differing else "all agree",
        )
        print("|", " | ".join(map(str, cells)), "|", flush=True)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.watermarks", description=__doc__)
    parser.add_argument("--events", type=int, default=1_000_000, help="of the generated log")
    parser.add_argument("--watermarks", type=int, default=50, help="of each log")
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
