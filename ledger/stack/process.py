"""Starts server processes that outlive their parent, and stops them by pid and start time.

A pid alone names nothing: it is used again. A process is therefore its pid *and* the moment it was
started, so that nothing is ever stopped that this stack has not started. Every process also carries
a mark in its environment, which its own children inherit; stragglers are found by it.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import msgspec
import psutil

from ledger.errors import StackError
from ledger.stack.logs import last_meaningful_line

MARK_VARIABLE = "STACK_PROCESS_OF"
OPEN_FILES = 65_536
POLL_S = 0.05

# The shell starts the server in the background of a session of its own and exits: the server is
# nobody's child here, so it outlives us and leaves no zombie.
_LAUNCHER = """
ulimit -Sn "$1" 2>/dev/null
log=$2
shift 2
exec "$@" </dev/null >"$log" 2>&1 &
echo $!
"""


class Process(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A process that was started: its pid and the moment it started, as `start_moment` gives it."""

    pid: int
    started: str

    def is_running(self) -> bool:
        """Return whether this very process still runs; a zombie does not."""
        return start_moment(self.pid) == self.started

    def send(self, number: signal.Signals) -> None:
        """Send a signal to this very process; do nothing if it has gone."""
        try:
            handle = psutil.Process(self.pid)
            if self.is_running():
                handle.send_signal(number)
        except psutil.NoSuchProcess:
            return
        except psutil.AccessDenied as error:
            raise StackError(
                f"Process {self.pid} belongs to another user: run 'ledger down' as that user."
            ) from error


def start_moment(pid: int) -> str | None:
    """Return when the process with this pid was started, or None if there is none (or a zombie).

    On Linux this is the boot's id and the clock ticks since then, which no change of the system
    clock alters; elsewhere the seconds since the epoch.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except FileNotFoundError:
        return _start_moment_by_clock(pid) if not Path("/proc/self/stat").exists() else None
    except ProcessLookupError:
        return None
    fields = stat.rpartition(")")[2].split()
    state, ticks = fields[0], fields[19]
    if state in "ZX":
        return None
    return f"{_boot_id()}:{ticks}"


def launch(
    command: Sequence[str | Path],
    *,
    mark: str,
    environment: Mapping[str, str],
    directory: Path,
    console: Path,
) -> Process:
    """Return the started process, in a session of its own, with a raised limit of open files.

    Args:
        command: the program and its arguments.
        mark: what `marked` finds the process and its children by.
        environment: all of its environment.
        directory: its working directory.
        console: the file, begun anew, that takes what it prints.

    Raises:
        StackError: it could not be started or ended at once.
    """
    hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    limit = OPEN_FILES if hard_limit == resource.RLIM_INFINITY else min(hard_limit, OPEN_FILES)
    launcher = ["/bin/sh", "-c", _LAUNCHER, "sh", str(limit), str(console)]
    started = subprocess.run(
        [*launcher, *(str(part) for part in command)],
        env={**environment, MARK_VARIABLE: mark},
        cwd=directory,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        check=True,
    )
    pid = int(started.stdout)
    moment = start_moment(pid)
    if moment is None:
        raise StackError(f"{command[0]} ended at once; its output is in {console}.")
    return Process(pid, moment)


def marked(mark: str) -> list[Process]:
    """Return the running processes that carry this mark, the started ones and their children."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK_VARIABLE) != mark:
                continue
        except (psutil.Error, OSError):
            continue  # gone by now, or another user's: not ours
        moment = start_moment(process.pid)
        if moment is not None:
            found.append(Process(process.pid, moment))
    return found


def stop(processes: Iterable[Process], grace_s: float) -> None:
    """Ask the processes to end, wait, kill those that stay, and return when all have gone.

    Args:
        processes: what to stop; those that have gone are passed over.
        grace_s: how long they may take before they are killed.

    Raises:
        StackError: one is another user's, or does not go even when killed.
    """
    running = [process for process in processes if process.is_running()]

    def all_gone() -> bool:
        return not any(process.is_running() for process in running)

    for number, patience_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 10.0)):
        for process in running:
            process.send(number)
            process.send(signal.SIGCONT)  # a paused process cannot end
        if wait_until(all_gone, patience_s):
            return
    pids = ", ".join(str(process.pid) for process in running if process.is_running())
    raise StackError(f"Process {pids} does not end even when killed.")


def wait_until(condition: Callable[[], bool], timeout_s: float) -> bool:
    """Return whether the condition came true within the time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL_S)
    return True


def await_server(
    name: str,
    process: Process,
    is_ready: Callable[[], bool],
    logs: Sequence[Path],
    timeout_s: float,
) -> None:
    """Return once a server that was just launched is ready.

    Args:
        name: what people call it.
        process: the launched process; nothing is waited for once it has ended.
        is_ready: asks the server.
        logs: its logs, the most telling one first.
        timeout_s: how long it may take.

    Raises:
        StackError: it ended or did not answer in time; with the log's line and path.
    """
    ready = False

    def ready_or_gone() -> bool:
        nonlocal ready
        ready = is_ready()
        return ready or not process.is_running()

    wait_until(ready_or_gone, timeout_s)
    if not ready:
        what = "did not answer in time" if process.is_running() else "ended while starting"
        line = last_meaningful_line(logs[::-1])
        raise StackError(f"{name} {what}: {line} (log: {logs[0]})")


def server_environment(drop_prefixes: tuple[str, ...], **extra: str) -> dict[str, str]:
    """Return our environment for a server: without what would configure it by accident."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith((*drop_prefixes, "LEDGER_"))
    }
    return {**kept, **extra}


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _start_moment_by_clock(pid: int) -> str | None:
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return f"{process.create_time():.2f}"
    except psutil.Error:
        return None
