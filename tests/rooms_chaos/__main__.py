"""`python -m tests.rooms_chaos`: seeds one after the other, a line of result each and a table."""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from tests.chaos.__main__ import parse_seeds
from tests.rooms_chaos.mischief import KINDS, ROOM_KINDS
from tests.rooms_chaos.run import Outcome, Shape, run
from tests.rooms_chaos.servers import Servers, own_servers

_MOST_NAMED: Final = 10


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the seeds that are asked for; return 1 if anything differed."""
    options = _options(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that everything is stopped
    shape = Shape(
        fills=options.fills,
        tempo=replace(Shape.tempo, seconds=options.seconds),
        must=(*KINDS, *ROOM_KINDS) if options.delete_rooms else KINDS,
    )
    began = time.monotonic()
    directory = Path(tempfile.mkdtemp(prefix="rooms-chaos-"))
    print(f"servers and logs are in {directory}", flush=True)
    with own_servers(directory) as servers:
        outcomes = [_one(seed, shape, servers, directory, options.keep) for seed in options.seeds]
    failed = [outcome.seed for outcome in outcomes if outcome.differences]
    _print_table(outcomes)
    print(
        f"{len(outcomes)} seeds, {time.monotonic() - began:.0f} s: "
        + (f"seeds {failed} DIFFER; kept: {directory}" if failed else "all exact"),
        flush=True,
    )
    if not failed and not options.keep:
        shutil.rmtree(directory, ignore_errors=True)
    return 1 if failed else 0


def _one(seed: int, shape: Shape, servers: Servers, directory: Path, keep: bool) -> Outcome:
    own = directory / f"seed-{seed}"
    own.mkdir()
    try:
        outcome = run(seed, shape, servers, own)
    except Exception:  # noqa: BLE001 - the next seed is worth running
        outcome = Outcome(seed)
        outcome.differences.append(f"the run itself failed: {traceback.format_exc()}")
    print(outcome, flush=True)
    for (code, sentence), times in Counter((e.code, e.sentence) for e in outcome.exits).items():
        print(f"  {times} x ended by itself ({code}): {sentence}", flush=True)
    for difference in outcome.differences[:_MOST_NAMED]:
        print(f"  DIFFERS: {difference}", flush=True)
    if outcome.differences:
        (own / "differences").write_text("\n".join(outcome.differences))
        print(f"  all {len(outcome.differences)} differences and logs: {own}", flush=True)
    elif not keep:
        shutil.rmtree(own, ignore_errors=True)
    return outcome


def _print_table(outcomes: Sequence[Outcome]) -> None:
    print("\n| seed | records | deeds | messages | twice | missing | out of order | else | s |")
    print("|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    total: Counter[str] = Counter()
    for outcome in outcomes:
        verdict = outcome.verdict
        cells = {
            "records": outcome.records,
            "deeds": sum(outcome.done.values()),
            "messages": verdict.messages,
            "twice": verdict.duplicates,
            "missing": verdict.missing,
            "disorder": verdict.disorder,
            "else": verdict.strangers + verdict.wrong,
            "seconds": round(outcome.seconds),
        }
        total.update(cells)
        print(f"| {outcome.seed} |", " | ".join(f"{cell:,}" for cell in cells.values()), "|")
    print("| all |", " | ".join(f"{cell:,}" for cell in total.values()), "|")
    done = sum((outcome.done for outcome in outcomes), Counter[str]())
    print("deeds:", ", ".join(f"{kind} {times}" for kind, times in sorted(done.items())))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.rooms_chaos", description=__doc__)
    parser.add_argument(
        "--seeds", type=parse_seeds, default=parse_seeds("1-20"), help="such as 1-20 or 3,7"
    )
    parser.add_argument("--fills", type=int, default=Shape.fills, help="records of each seed")
    parser.add_argument("--seconds", type=float, default=Shape.tempo.seconds, help="of mischief")
    parser.add_argument("--delete-rooms", action="store_true", help="delete rooms' queues, too")
    parser.add_argument("--keep", action="store_true", help="keep data and logs of all seeds")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
