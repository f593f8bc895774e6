"""Fixtures of all tests: Hypothesis profiles, and one real Kafka and RabbitMQ per test run."""

from __future__ import annotations

import decimal
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings

from ledger.settings import Settings
from ledger.stack import Endpoints, down, up
from tests.support import settings_on

hypothesis_settings.register_profile(
    "default",
    deadline=None,
    max_examples=60,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
hypothesis_settings.register_profile(
    "thorough", parent=hypothesis_settings.get_profile("default"), max_examples=2_000
)
hypothesis_settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A developer's own ledger is never touched by a test."""
    for name in list(os.environ):
        if name.startswith("LEDGER_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def _nothing_is_rounded_by_accident() -> Iterator[None]:
    """Arithmetic in the thread's own context, rather than the exact one, fails when it rounds."""
    with decimal.localcontext() as context:
        context.traps[decimal.Inexact] = True
        yield


def pytest_configure(config: pytest.Config) -> None:
    """Give all processes of a run (pytest-xdist) the same servers, which end with it.

    A developer who runs tests again and again names a directory in TEST_STACK: the servers are
    started there the first time and go on running ('ledger down' with it as LEDGER_STATE_DIR).
    """
    if not os.environ.get("TEST_STACK"):  # nor is this a process of a parallel run
        directory = tempfile.mkdtemp(prefix="test-stack-")
        os.environ["TEST_STACK"] = directory
        config.add_cleanup(lambda: _end_stack(directory))


def _end_stack(directory: str) -> None:
    del os.environ["TEST_STACK"]
    down(Settings(state_dir=Path(directory)), lambda _: None)
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def stack() -> Endpoints:
    """A real Kafka broker and a real RabbitMQ, started where they do not run yet."""
    directory = Path(os.environ["TEST_STACK"]).resolve()
    return up(Settings(state_dir=directory), lambda line: print(line, file=sys.stderr))


@pytest.fixture
def settings(stack: Endpoints, tmp_path: Path) -> Settings:
    """Settings of a ledger of this test's own on the running stack."""
    return settings_on(stack, tmp_path, 8)
