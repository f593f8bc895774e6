"""Draws bench/history.svg: how fast workers and replays were, run by run, from results.jsonl.

A run is what one call of `bench/throughput.py` measured with 1,000,000 uncompressed events; a point
is the ratio of two medians of it, so that machines and hours that differ can be compared. Panels:
each workload beside the bare read of its topics, and the fills beside Kafka Streams where that was
measured, too (as many processes as threads). Equal results give equal files.

    python bench/plot.py
"""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
from common import RESULTS
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

HISTORY = Path(__file__).parent / "history.svg"

EVENTS = 1_000_000
RAW_READ = "raw read"
SERIES = ("worker, 1 process", "worker, 2 processes", "replay, 1 thread", "replay, 2 threads")
STREAMS = {
    "worker, 1 process": "Kafka Streams, 1 thread",
    "worker, 2 processes": "Kafka Streams, 2 threads",
}
# What earlier results called these: the first had one workload and one process, and replays had
# processes until they had threads.
OLD_NAMES = {
    "worker": "worker, 1 process",
    "replay": "replay, 1 thread",
    "replay, 1 process": "replay, 1 thread",
    "replay, 2 processes": "replay, 2 threads",
}

SETTINGS: Mapping[Any, Any] = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 9.0,
    "grid.alpha": 0.3,
    "svg.hashsalt": "ledger",  # else ids are made by chance
}

Run = dict[tuple[str, str], float]
"""Workload and what was measured to the median rate."""


def runs(lines: Iterable[str]) -> dict[str, Run]:
    """Return, for each run in order, by when and of what it was, its median rates."""
    rates: dict[str, dict[tuple[str, str], list[float]]] = {}
    for line in lines:
        one = json.loads(line)
        events = one.get("events", one.get("fills"))
        if "rate" not in one or events != EVENTS or one.get("compression", "none") != "none":
            continue
        what = OLD_NAMES.get(one["what"], one["what"])
        if what not in (RAW_READ, *SERIES, *STREAMS.values()):
            continue
        label = one["at"][:16].replace("T", " ") + f"\n{one.get('commit') or ''}"
        run = rates.setdefault(label, defaultdict(list))
        run[one.get("workload", "fills"), what].append(one["rate"])
    return {
        label: {key: statistics.median(values) for key, values in run.items()}
        for label, run in sorted(rates.items())
    }


def panels(found: dict[str, Run]) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Return the panels: title to series, each with its points (number of the run, ratio)."""
    result: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for index, run in enumerate(found.values()):
        for (workload, what), rate in run.items():
            beside = {f"{workload}: rate, of a bare read of the same topics": RAW_READ}
            if what in STREAMS:
                beside[f"{workload}: rate, of Kafka Streams with as many threads"] = STREAMS[what]
            for title, other in beside.items():
                if what in SERIES and (workload, other) in run:
                    series = result.setdefault(title, {})
                    series.setdefault(what, []).append((index, rate / run[workload, other]))
    return dict(sorted(result.items(), key=lambda item: ("Kafka Streams" in item[0], item[0])))


def draw(found: dict[str, Run], path: Path) -> None:
    """Write the picture."""
    drawn = panels(found)
    with mpl.rc_context():
        mpl.rcdefaults()  # not a person's own
        mpl.rcParams.update(SETTINGS)
        figure = Figure(figsize=(max(7.0, 1.1 * len(found)), 3.0 * len(drawn) + 0.6))
        axes = figure.subplots(len(drawn), 1, sharex=True, squeeze=False)[:, 0]
        for axis, (title, series) in zip(axes, drawn.items(), strict=True):
            axis.set_title(title, loc="left")
            axis.set_yscale("log")
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.yaxis.set_minor_locator(NullLocator())
            for name in SERIES:
                if name in series:
                    color = f"C{SERIES.index(name)}"
                    axis.plot(*zip(*series[name], strict=True), "o-", label=name, color=color)
            axis.legend(fontsize="small")
        axes[-1].set_xticks(range(len(found)), found, rotation=30, ha="right")
        axes[-1].set_xlim(-0.5, len(found) - 0.5)
        figure.tight_layout()
        figure.savefig(path, format="svg", metadata={"Date": None})


def main() -> None:
    with RESULTS.open() as lines:
        found = runs(lines)
    assert found, f"there is no run of {EVENTS:,} events in {RESULTS.name}"
    draw(found, HISTORY)
    print(f"Written: {HISTORY.name}, {len(found)} runs.")


if __name__ == "__main__":
    main()
