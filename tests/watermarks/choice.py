"""Random watermarks: an offset of its own for every topic and partition, so that most of them are
interleavings that nobody ever saw.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Final

from ledger.events import INPUT_TOPICS
from ledger.positions import Watermarks
from ledger.projections.partition import Watermark

_EVERY: Final = 5  # one in so many watermarks is that of snapshots

Chain = list[Watermarks]
"""Watermarks, each at or after the one before: one fold passes all of them."""

Kept = Mapping[int, Sequence[Watermark]]
"""The watermarks of each partition's snapshots, each at or after the one before."""


def independent(rng: random.Random, ends: Watermarks, kept: Kept, count: int) -> list[Chain]:
    """Return watermarks in pairs that have nothing to do with each other.

    The second of a pair is anywhere at or after the first, which now and then is that of snapshots.
    """

    def after(lows: Watermarks) -> Watermarks:
        return {
            number: {
                topic: low[topic] + int((ends[number][topic] - low[topic]) * _share(rng, 0.15))
                for topic in INPUT_TOPICS
            }
            for number, low in lows.items()
        }

    nothing = {number: dict.fromkeys(INPUT_TOPICS, 0) for number in ends}
    chains: list[Chain] = []
    for place in range(0, count, 2):
        first = after(nothing)
        if place // 2 % (_EVERY // 2) == 1:
            first |= {number: dict(rng.choice(marks)) for number, marks in kept.items() if marks}
        chains.append([first, after(first)][: count - place])
    return chains


def increasing(rng: random.Random, ends: Watermarks, kept: Kept, count: int) -> list[Chain]:
    """Return two chains: random watermarks that lead to the end, and some of the early snapshots'.

    Each topic's partition goes its own way to the end. All are slow at first: every watermark is
    replayed from offset 0, and near ones cost less.
    """
    early = {number: marks[: len(marks) // 2 + 1] for number, marks in kept.items()}
    of_snapshots = min(count // _EVERY, *map(len, early.values()))
    anywhere: Chain = [{number: {} for number in ends} for _ in range(count - of_snapshots)]
    for number, end in ends.items():
        for topic in INPUT_TOPICS:
            bend = 2 ** rng.uniform(0.5, 2.5)
            cuts = sorted(int(end[topic] * _share(rng, 0.03) ** bend) for _ in anywhere[1:])
            for watermarks, cut in zip(anywhere, [*cuts, end[topic]], strict=True):
                watermarks[number][topic] = cut
    snapshots: Chain = [{} for _ in range(of_snapshots)]
    for number, marks in early.items():
        chosen = sorted(rng.sample(range(len(marks)), of_snapshots))
        for watermarks, place in zip(snapshots, chosen, strict=True):
            watermarks[number] = dict(marks[place])
    return [chain for chain in (anywhere, snapshots) if chain]


def _share(rng: random.Random, edge: float) -> float:
    """Return 0, 1 or, mostly, a number between them; `edge` says how often an edge."""
    return min(1.0, max(0.0, rng.uniform(-edge, 1 + edge)))
