"""Short runs of chaos; `make chaos` has the long ones."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.chaos.mischief import Tempo
from tests.chaos.run import Shape, run

pytestmark = pytest.mark.integration

SHORT = Shape(
    events=16_000,
    tempo=Tempo(12.0, between_s=(0.5, 1.5), calm_s=(1.5, 3.0), burst=(1, 3)),
    must=("kill_broker", "kill", "wipe"),
    processes=1,
)


@pytest.mark.parametrize("seed", [1, random.randrange(1_000_000)], ids=["fixed", "random"])
def test_whatever_is_killed_or_paused_all_that_is_left_is_exact(seed: int, tmp_path: Path) -> None:
    print(f"seed {seed}")
    outcome = run(seed, SHORT, tmp_path)
    print(outcome)
    assert outcome.differences == []
    if seed == 1:  # of another plan there may be no time for all
        assert outcome.done["kill_broker"] >= 1
    assert outcome.verdict.records > SHORT.events * 0.9
    assert outcome.verdict.marks > 0  # whether a snapshot was due between two kills is chance
