"""Fetches the broker's jars with Maven, once per user and version of `pom.xml`."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from xml.etree import ElementTree

from ledger.errors import StackError
from ledger.stack import install
from ledger.stack.install import Progress

MAVEN_TIMEOUT_S = 900.0
INVENTORY = "inventory.txt"


def kafka_jars(java: Path, fallback: Path, progress: Progress) -> Path:
    """Return a directory with every jar that the broker needs.

    Args:
        java: the Java to run Maven with.
        fallback: where to keep the jars if the user's cache directory cannot be written.
        progress: told before something is fetched.

    Raises:
        StackError: Maven is missing or failed.
    """
    pom = resources.files("ledger.stack").joinpath("pom.xml").read_bytes()
    name = f"kafka-{kafka_version(pom)}-{hashlib.sha256(pom).hexdigest()[:12]}"
    target = _cache(fallback) / name
    if _is_complete(target):
        return target
    with _locked(target.with_name(f"{name}.lock")):
        if not _is_complete(target):
            _fetch(pom, java, target, progress)
    return target


def kafka_version(pom: bytes) -> str:
    """Return the version of Kafka that a `pom.xml` pins in its properties."""
    maven = "{http://maven.apache.org/POM/4.0.0}"
    version = ElementTree.fromstring(pom).findtext(f"{maven}properties/{maven}kafka.version")
    if version is None:
        raise StackError("ledger/stack/pom.xml has no property kafka.version.")
    return version


def _fetch(pom: bytes, java: Path, target: Path, progress: Progress) -> None:
    maven = install.maven(progress)
    progress(f"Kafka: fetching its jars with Maven into {target} ...")
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f"{target.name}.") as scratch:
        pom_file = Path(scratch) / "pom.xml"
        pom_file.write_bytes(pom)
        jars = Path(scratch) / "jars"
        _run_maven(maven, java, pom_file, jars)
        (jars / INVENTORY).write_text(_inventory(jars))
        shutil.rmtree(target, ignore_errors=True)  # an incomplete one
        jars.rename(target)


def _run_maven(maven: Path, java: Path, pom_file: Path, jars: Path) -> None:
    command = [
        str(maven),
        *("-q", "-B", "-f", str(pom_file)),
        "dependency:copy-dependencies",
        "-DincludeScope=runtime",
        f"-DoutputDirectory={jars}",
    ]
    if not _is_writable(Path.home() / ".m2"):
        command.append(f"-Dmaven.repo.local={pom_file.parent / 'repository'}")
    environment = {**os.environ, "JAVA_HOME": str(java.resolve().parent.parent)}
    try:
        ran = subprocess.run(
            command,
            cwd=pom_file.parent,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=MAVEN_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise StackError(f"Maven did not end within {MAVEN_TIMEOUT_S:.0f} s.") from error
    if ran.returncode != 0 or not any(jars.glob("kafka_*.jar")):
        lines = [line.strip() for line in (ran.stdout + ran.stderr).splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("[ERROR]")]
        said = (errors or lines[-1:] or ["it said nothing"])[0].removeprefix("[ERROR]").strip()
        raise StackError(f"Maven could not fetch Kafka's jars: {said[:500]}")


def _cache(fallback: Path) -> Path:
    """Return the user's cache directory for us, or the fallback if that cannot be written."""
    configured = os.environ.get("XDG_CACHE_HOME")
    base = Path(configured) if configured and Path(configured).is_absolute() else None
    for cache in ((base or _home_cache()) / "ledger", fallback):
        try:
            cache.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(cache, os.W_OK | os.X_OK):
            return cache
    raise StackError(f"Neither the user's cache directory nor {fallback} can be written.")


def _home_cache() -> Path:
    try:
        return Path.home() / ".cache"
    except RuntimeError:  # a user without a home
        return Path(os.devnull)


def _is_writable(directory: Path) -> bool:
    existing = next(path for path in (directory, *directory.parents) if path.exists())
    return os.access(existing, os.W_OK | os.X_OK)


def _inventory(directory: Path) -> str:
    """Return name and size of every jar, so that one lost or cut short is noticed."""
    return "".join(f"{jar.name} {jar.stat().st_size}\n" for jar in sorted(directory.glob("*.jar")))


def _is_complete(directory: Path) -> bool:
    try:
        return (directory / INVENTORY).read_text() == _inventory(directory)
    except OSError:
        return False


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
