"""`python -m tests.chaos`: seeds one after the other, a line of result each."""

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
from pathlib import Path

from tests.chaos.mischief import Tempo
from tests.chaos.run import Outcome, Shape, run


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the seeds that are asked for; return 1 if anything differed."""
    options = _options(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that everything is stopped
    shape = Shape(
        events=options.events,
        tempo=Tempo(options.seconds),
        workers=options.workers,
        partitions=options.partitions,
        processes=options.processes,
    )
    began = time.monotonic()
    failed = []
    exits = events = snapshots = 0
    for seed in options.seeds:
        outcome = _one(seed, shape, options.keep)
        exits += len(outcome.exits)
        events += outcome.verdict.records
        snapshots += outcome.verdict.snapshots
        if outcome.differences:
            failed.append(seed)
    print(
        f"{len(options.seeds)} seeds, {events} events, {snapshots} snapshots checked, {exits} "
        f"exits by themselves, {time.monotonic() - began:.0f} s: "
        + (f"seeds {failed} DIFFER" if failed else "all exact"),
        flush=True,
    )
    return 1 if failed else 0


def _one(seed: int, shape: Shape, keep: bool) -> Outcome:
    directory = Path(tempfile.mkdtemp(prefix=f"chaos-{seed}-"))
    print(f"seed {seed} begins in {directory}", flush=True)
    try:
        outcome = run(seed, shape, directory)
    except Exception:  # noqa: BLE001 - the next seed is worth running
        outcome = Outcome(seed)
        outcome.differences.append(f"the run itself failed: {traceback.format_exc()}")
    except BaseException:
        print(f"seed {seed} was interrupted; see {directory}", flush=True)
        raise
    print(outcome, flush=True)
    for (code, sentence), times in Counter((e.code, e.sentence) for e in outcome.exits).items():
        print(f"  {times} x ended by itself ({code}): {sentence}", flush=True)
    for difference in outcome.differences:
        print(f"  DIFFERS: {difference}", flush=True)
    if outcome.differences or keep:
        print(f"  kept: {directory}", flush=True)
    else:
        shutil.rmtree(directory, ignore_errors=True)
    return outcome


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument(
        "--seeds", type=parse_seeds, default=parse_seeds("1-20"), help="such as 1-20 or 3,7"
    )
    parser.add_argument("--events", type=int, default=Shape.events)
    parser.add_argument("--seconds", type=float, default=Shape.tempo.seconds, help="of mischief")
    parser.add_argument("--workers", type=int, default=Shape.workers)
    parser.add_argument("--partitions", type=int, default=Shape.partitions)
    parser.add_argument("--processes", type=int, default=Shape.processes, help="to verify in")
    parser.add_argument("--keep", action="store_true", help="keep data and logs of all seeds")
    return parser.parse_args(arguments)


def parse_seeds(text: str) -> list[int]:
    """Return the seeds that a person named, such as `1-20` or `3,7`."""
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


if __name__ == "__main__":
    sys.exit(main())
