"""Replay from any offset: a few random watermarks; `python -m tests.watermarks` has many."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from ledger.events import INPUT_TOPICS
from ledger.positions import format_positions
from ledger.settings import Settings
from tests.watermarks.choice import increasing, independent
from tests.watermarks.ledgers import (
    ends_of,
    publish_generated,
    publish_hour,
    read_plainly,
    snapshots_of,
    with_snapshots,
)
from tests.watermarks.proof import Prover, Task
from tests.watermarks.run import prove_ledger

pytestmark = pytest.mark.integration

SEED = random.randrange(1_000_000)


@pytest.fixture
def small(settings: Settings) -> Settings:
    """A ledger with few partitions, whose workers write snapshots often."""
    return with_snapshots(settings.model_copy(update={"partitions": 4}), 0.2)


def test_bases_processes_and_chunks_agree_with_the_reference_about_the_hour(
    small: Settings, tmp_path: Path
) -> None:
    print(f"seed {SEED}")
    publish_hour(small, tmp_path / "worker.log", pieces=3)
    outcome = prove_ledger(small, SEED, independent, count=3, commands=0)
    assert outcome.proof.differences == []
    assert outcome.proof.records == 11_432
    assert outcome.from_snapshot >= 1


def test_bases_processes_and_chunks_agree_with_the_reference_about_generated_events(
    small: Settings, tmp_path: Path
) -> None:
    print(f"seed {SEED}")
    publish_generated(small, tmp_path / "worker.log", SEED, 5_000, 3.0)
    outcome = prove_ledger(small, SEED, increasing, count=5, commands=1)
    assert outcome.proof.differences == []
    assert outcome.proof.records > 4_000  # some are in transactions that were aborted
    assert outcome.from_snapshot >= 1
    _assert_a_record_that_the_reference_does_not_see_is_noticed(small)


def _assert_a_record_that_the_reference_does_not_see_is_noticed(settings: Settings) -> None:
    ends = ends_of(settings)
    (chain, *_) = increasing(random.Random(SEED), ends, snapshots_of(settings), 1)
    records = read_plainly(settings, [(topic, 0) for topic in INPUT_TOPICS])
    del records["fills", 0][-1]
    found = Prover(Task(settings, SEED, (0,), [chain]), records).prove()
    assert found.differences
    for sentence in found.differences:
        assert f"seed {SEED}, watermark {format_positions(ends)}: partition 0 replayed" in sentence
