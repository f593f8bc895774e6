"""What a person asked to have replayed, and which records that means on this cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ledger.errors import InputError
from ledger.positions import EARLIEST, LATEST, Watermarks, Word, parse_positions, require_order
from ledger.projections.partition import Watermark
from ledger.rebuild import Base, Rebuilder


@dataclass(frozen=True)
class Request:
    """The options that say which records are replayed, and on what."""

    from_offsets: Sequence[str] = ()
    from_time: str | None = None
    to_offsets: Sequence[str] = ()
    to_time: str | None = None
    base: Base = "snapshot"
    verify: bool = False

    def check(self) -> None:
        """Check that the options agree with each other, before anything is asked of a server.

        Raises:
            InputError: they do not; it says why.
        """
        for end, offsets, time in (
            ("from", self.from_offsets, self.from_time),
            ("to", self.to_offsets, self.to_time),
        ):
            if offsets and time is not None:
                raise InputError(
                    f"--{end}-offset and --{end}-time both say the same thing: give one of them."
                )
        if self.verify and (self.to_offsets or self.to_time is not None):
            raise InputError(
                "--verify replays to exactly the watermark that the workers have published, so "
                "--to-offset and --to-time cannot be given with it."
            )
        if self.verify and self.base == "empty":
            raise InputError(
                "--verify compares with tables made of all records, which base 'empty' leaves "
                "out: use --base snapshot or --base genesis with it."
            )


@dataclass(frozen=True)
class Span:
    """For each partition the watermarks where a replay starts and stops."""

    start: Watermarks
    end: Watermarks


def span_of(
    request: Request,
    rebuilder: Rebuilder,
    ends: Watermarks,
    published: Mapping[int, Watermark] | None = None,
) -> Span:
    """Return which records a request means.

    Args:
        request: what was asked.
        rebuilder: asked where the topics begin, and about times.
        ends: where the topics end; records that come later are not replayed.
        published: with `--verify`, the watermarks to stop at.

    Raises:
        InputError: a position or time cannot be used, or some partition's end is before its start.
    """
    latest = ends if published is None else {n: dict(mark) for n, mark in published.items()}
    limits = rebuilder.limits(latest)
    beyond = "" if published is None else " (with --verify, the end is what workers published)"

    def place(side: str, offsets: Sequence[str], time: str | None, unnamed: Word) -> Watermarks:
        if time is not None:
            return rebuilder.at_time(time, latest, f"--{side}-time")
        return parse_positions(offsets, limits, unnamed, f"--{side}-offset{beyond}")

    span = Span(
        place("from", request.from_offsets, request.from_time, EARLIEST),
        place("to", request.to_offsets, request.to_time, LATEST),
    )
    require_order(span.start, span.end)
    return span
