"""Real worker processes, each with a state directory of its own, and their supervisor."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from ledger.settings import Settings
from tests.support import environment

ROOT: Final = Path(__file__).parent.parent.parent
_RESTART_S: Final = 1.0  # a supervisor does not start a failed process at once
_TERMINATE_S: Final = 10.0  # half of it would do on a machine with nothing else to do
_GIVES_UP: Final = 2  # the exit code of a worker that cannot go on and says why

_TRACEBACK: Final = "Traceback (most recent call last)"
BUGS: Final = (
    "AssertionError",
    "This is a bug",
    "was lost on its way",
    "is damaged",
    "was found damaged",
    "panicked",
    "never retrieved",
    "came out of order",
)
"""What a worker's log must not have."""


@dataclass(frozen=True)
class Exit:
    """A worker that ended without being told to."""

    worker: str
    code: int
    sentence: str


class Worker:
    """One worker's place: its directory and log, and its process if it runs."""

    def __init__(self, name: str, settings: Settings, directory: Path) -> None:
        """Name the place; the process is started by `start`.

        Args:
            name: for people.
            settings: of the ledger; the state directory is replaced by one of this worker's own.
            directory: where state and log are kept.
        """
        self.name = name
        self.state_dir = directory / name
        self.log = directory / f"{name}.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.is_paused = False
        self.starts_at: float | None = None
        self._was_asked = False
        self._settings = settings.model_copy(update={"state_dir": self.state_dir})
        self._began = 0  # where the log of the running process begins

    @property
    def is_alive(self) -> bool:
        """Whether there is a process, paused or not."""
        return self.process is not None

    def start(self, *module: str) -> None:
        """Start the worker, or another module with its settings."""
        assert self.process is None
        self.starts_at = None
        self.is_paused = self._was_asked = False
        with self.log.open("ab") as output:
            self._began = output.tell()
            self.process = self._launch(output, module or ("ledger", "worker"))

    def _launch(self, output: IO[bytes], module: tuple[str, ...]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", *module],
            env={**environment(self._settings), "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # Ctrl-C is for whoever runs the fleet
        )

    def kill(self) -> None:
        """Kill the process, paused or not, and wait until it has gone."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def ask_to_end(self) -> None:
        """Ask the process to end, once."""
        if self.process is not None and not self._was_asked:
            self._was_asked = True
            self.pause(False)
            self.process.terminate()

    def terminate(self) -> int | None:
        """Ask the process to end; return its exit code, or None if it had to be killed."""
        self.ask_to_end()
        if self.process is None:
            return 0
        try:
            code = self.process.wait(_TERMINATE_S)
        except subprocess.TimeoutExpired:
            self.kill()
            return None
        self.process = None
        return code

    def pause(self, paused: bool) -> None:
        """Stop the process where it is, or let it go on."""
        if self.process is not None and self.is_paused != paused:
            self.process.send_signal(signal.SIGSTOP if paused else signal.SIGCONT)
            self.is_paused = paused

    def wipe(self) -> None:
        """Remove the local state of a worker that does not run."""
        assert self.process is None
        shutil.rmtree(self.state_dir, ignore_errors=True)

    def took_leave(self) -> Exit | None:
        """Return how the process ended, if it did by itself; it is gone then."""
        if self.process is None or self.process.poll() is None:
            return None
        code = self.process.returncode
        self.process = None
        return Exit(self.name, code, self._last_words())

    def _last_words(self) -> str:
        with self.log.open("rb") as file:
            file.seek(self._began)
            lines = file.read().decode(errors="replace").splitlines()
        said = [line for line in lines if line.startswith("error: ")]
        return (said or lines or [""])[-1]

    def lines(self) -> Iterator[str]:
        """Yield what this worker logged."""
        if self.log.exists():
            with self.log.open(errors="replace") as file:
                for line in file:
                    yield line.rstrip("\n")

    def stores(self) -> list[tuple[int, Path]]:
        """Return partition and directory of each state on this worker's disk."""
        places = self.state_dir.glob("*worker/*/p*")
        return [(int(path.name[1:]), path) for path in places if path.name[1:].isdigit()]


class Fleet:
    """Some workers, and what a supervisor does for them.

    Attributes:
        exits: those who ended by themselves, and how.
        slow: those who did not end when they were asked to.
    """

    def __init__(self, settings: Settings, directory: Path, size: int) -> None:
        self.workers = [Worker(f"worker-{n}", settings, directory) for n in range(size)]
        self.exits: list[Exit] = []
        self.slow: list[str] = []

    def supervise(self) -> None:
        """Start again what ended by itself, and what is due."""
        for worker in self.workers:
            ended = worker.took_leave()
            if ended is not None:
                self.exits.append(ended)
                worker.starts_at = time.monotonic() + _RESTART_S
            due = worker.starts_at
            if due is not None and time.monotonic() >= due and not worker.is_alive:
                worker.start()

    def terminate(self, worker: Worker) -> None:
        """Ask a worker to end, and note it if it does not."""
        code = worker.terminate()
        if code is None:
            self.slow.append(f"{worker.name} did not end within {_TERMINATE_S:.0f} s of SIGTERM")
        elif code == _GIVES_UP:
            self.exits.append(Exit(worker.name, code, "while it was asked to end"))
        elif code not in (0, -signal.SIGTERM):  # asked while Python started: nothing handles it yet
            self.exits.append(Exit(worker.name, code, "when it was asked to end"))

    def end(self) -> None:
        """Ask every worker to end, all at once, and wait for it."""
        for worker in self.workers:
            worker.starts_at = None
            worker.ask_to_end()
        for worker in self.workers:
            if worker.process is not None:
                self.terminate(worker)

    def kill(self) -> None:
        """Kill every worker."""
        for worker in self.workers:
            worker.starts_at = None
            worker.kill()

    def bugs(self) -> list[str]:
        """Return what looks like a bug in exit codes and logs, in a line each."""
        found = list(self.slow)
        found += [
            f"{exit_.worker} ended with {exit_.code}: {exit_.sentence}"
            for exit_ in self.exits
            if exit_.code != _GIVES_UP
        ]
        for worker in self.workers:
            found += [f"{worker.name}: {line}" for line in _signs_of_bugs(worker.lines())]
        return list(dict.fromkeys(found))

    def said(self, words: str) -> int:
        """Return how many log lines have certain words."""
        return sum(words in line for worker in self.workers for line in worker.lines())


def _signs_of_bugs(lines: Iterable[str]) -> Iterator[str]:
    """Yield the lines that look like a bug; a traceback is its last line."""
    in_traceback = False
    for line in lines:
        if line.startswith(_TRACEBACK):
            in_traceback = True
        elif in_traceback and not line.startswith(" "):
            in_traceback = False
            yield f"traceback: {line}"
        elif not in_traceback and any(sign in line for sign in BUGS):
            yield line
