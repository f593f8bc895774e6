"""An account's balance over time as a picture: a panel for each asset, steps at the events' time.

Drawn without a display or a person's own matplotlib settings; equal entries give equal files.
Amounts become floats here and only here, to be drawn.
"""

from __future__ import annotations

import textwrap
from collections.abc import Container, Iterable, Mapping, Sequence
from datetime import UTC
from pathlib import Path
from typing import Any, Final, Literal

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

from ledger import times
from ledger.console import harmless
from ledger.errors import InputError
from ledger.objects import Directory
from ledger.statement import Entry, running

Format = Literal["png", "svg"]

PANELS: Final = 24
"""How many assets are drawn; a picture cannot be of any height."""

_DAY_S: Final = 86_400
_FIRST_DAY: Final = -719_162.0  # the year 1 begins, in days since 1970
_LAST_DAY: Final = 2_932_897.0 - 0.5 / _DAY_S  # half a second is left of the year 9999
_SHORTEST_S: Final = 1.0

_WIDTH_IN: Final = 11.0
_HEAD_IN: Final = 1.2
_PANEL_IN: Final = 1.9
_ONLY_PANEL_IN: Final = 4.0
_EMPTY_IN: Final = 2.0
_DOTS_PER_IN: Final = 120
_TITLE_COLUMNS: Final = 80
_WATERMARK_COLUMNS: Final = 130
_WATERMARK_LINES: Final = 6
_WATERMARK_POINTS: Final = 8.0
_LABEL_POINTS: Final = 9.0

_SETTINGS: Final[Mapping[Any, Any]] = {
    "agg.path.chunksize": 10_000,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.labelsize": _LABEL_POINTS,
    "date.converter": "concise",
    "font.size": _LABEL_POINTS,
    "svg.hashsalt": "ledger",  # else ids are made by chance
    "text.parse_math": False,  # names hold what would be markup
}

_METADATA: Final[dict[Format, dict[str, Any]]] = {"png": {}, "svg": {"Date": None}}

Point = tuple[float, float]
"""Days since 1970 (UTC), and a balance."""


def format_of(path: Path) -> Format:
    """Return the format that a picture's name asks for; ask before a long replay.

    Raises:
        InputError: it is neither .png nor .svg.
    """
    suffix = path.suffix.lower()
    if suffix == ".png":
        return "png"
    if suffix == ".svg":
        return "svg"
    raise InputError(f"{path}: a plot is a .png or an .svg file; name it so.")


def plot(
    path: Path,
    account: str,
    entries: Iterable[Entry],
    watermark: str,
    assets: Container[str] = (),
) -> None:
    """Draw an account's balance of each asset over time.

    A balance is drawn from the account's first entry in the asset on; of several at one moment,
    the last counts.

    Args:
        path: the file, which appears complete or not at all; its suffix is the format.
        account: whose balance.
        entries: its statement, in order and from the beginning.
        watermark: what the state is as of, in a line.
        assets: those to draw; none named means all. Of more than `PANELS` the first are drawn.

    Raises:
        InputError: the name does not say a format.
        StorageError: the file cannot be written.
    """
    form = format_of(path)
    lines = balance_lines(entries, account)
    chosen = sorted(asset for asset in lines if not assets or asset in assets)
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_SETTINGS)
        figure = _figure(account, watermark, {name: lines[name] for name in chosen[:PANELS]})
        if len(chosen) > PANELS:
            figure.supxlabel(
                f"The first {PANELS} of {len(chosen)} assets; --asset chooses others.",
                fontsize=_LABEL_POINTS,
            )
        with Directory(path.parent).writing(path.name) as file:
            figure.savefig(file, format=form, dpi=_DOTS_PER_IN, metadata=_METADATA[form])


def balance_lines(entries: Iterable[Entry], account: str) -> dict[str, list[Point]]:
    """Return, by asset, an account's balance after each moment at which it changed.

    Args:
        entries: its statement, in order and from the beginning.
        account: whose balance.
    """
    lines: dict[str, list[Point]] = {}
    for entry, posting, balance in running(entries, account):
        seconds, fraction = times.instant(entry.occurred_at)
        point = (seconds + float(f"0.{fraction}")) / _DAY_S, float(balance)
        line = lines.setdefault(posting.asset, [])
        if line and line[-1][0] == point[0]:
            line.pop()
        line.append(point)
    return lines


def _figure(account: str, watermark: str, lines: dict[str, list[Point]]) -> Figure:
    panels = len(lines)
    height = max(_ONLY_PANEL_IN, _PANEL_IN * panels) if panels else _EMPTY_IN
    figure = Figure(figsize=(_WIDTH_IN, _HEAD_IN + height), layout="constrained")
    all_axes = list(figure.subplots(max(1, panels), sharex=True, squeeze=False)[:, 0])
    _head(all_axes[0], account, watermark)
    if not lines:
        all_axes[0].set_axis_off()
        all_axes[0].text(0.5, 0.5, "No entries.", ha="center", va="center", fontsize=12)
        return figure
    first = min(line[0][0] for line in lines.values())
    last = max(line[-1][0] for line in lines.values())
    margin = max(_SHORTEST_S / _DAY_S, (last - first) * 0.02)
    first, last = max(_FIRST_DAY, first - margin), min(_LAST_DAY, last + margin)
    _set_time(all_axes[-1], first, last)
    for axes, (asset, line) in zip(all_axes, lines.items(), strict=True):
        _draw(axes, asset, [*line, (last, line[-1][1])])
    return figure


def _head(axes: Axes, account: str, watermark: str) -> None:
    """Put the title above the first panel, and below it the watermark, which may need lines."""
    title = _wrapped(f"Balance of {account}", _TITLE_COLUMNS)
    said = _wrapped(f"as of {watermark}".replace(",", ", "), _WATERMARK_COLUMNS, _WATERMARK_LINES)
    axes.annotate(
        "\n".join(said),
        (0, 1),
        xytext=(0, 2.5 * _LABEL_POINTS),  # above the first panel's label
        textcoords="offset points",
        xycoords="axes fraction",
        fontsize=_WATERMARK_POINTS,
        color="dimgray",
        annotation_clip=False,
    )
    above = 3 * _LABEL_POINTS + 1.2 * _WATERMARK_POINTS * len(said)
    axes.set_title("\n".join(title), loc="left", fontsize=13, pad=above)


def _set_time(axes: Axes, first: float, last: float) -> None:
    axes.xaxis_date(UTC)
    axes.set_xlim(first, last)
    axes.set_xlabel("time (UTC)")
    # At either end of time a tick may be one step beyond it, and cannot be written as a date.
    ticks = [tick for tick in axes.xaxis.get_major_locator()() if first <= tick <= last]
    axes.xaxis.set_major_locator(FixedLocator(ticks))


def _draw(axes: Axes, asset: str, line: Sequence[Point]) -> None:
    axes.step(*zip(*line, strict=True), where="post", color="C0", linewidth=1.2)
    axes.plot(*line[0], marker=".", color="C0")
    axes.grid(alpha=0.3)
    low, high = axes.get_ylim()
    if low < 0 < high:
        axes.axhline(0, color="black", linewidth=0.6)
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.15g}"))
    # Above the axis rather than beside it: an asset's name may be longer than a panel is high.
    axes.set_ylabel(f"{asset} balance", rotation=0, ha="left", va="bottom")
    axes.yaxis.set_label_coords(0, 1.03)


def _wrapped(text: str, columns: int, lines: int | None = None) -> list[str]:
    """Return a text in lines, letters that fonts may not have written out."""
    ascii_only = harmless(text).encode("ascii", "backslashreplace").decode()
    return textwrap.wrap(ascii_only, columns, max_lines=lines, placeholder=" …")
