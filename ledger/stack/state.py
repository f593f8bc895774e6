"""What is known of the local stack: `stack/stack.json` in the state directory, and its lock."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from ledger.errors import StackError
from ledger.settings import Settings
from ledger.stack.process import Process

LOCK_TIMEOUT_S = 900.0


class KafkaRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The broker: its ports, and its process unless it was stopped."""

    port: int
    controller_port: int
    process: Process | None = None


class RabbitRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """RabbitMQ and its port mapper: their ports, and their processes unless stopped."""

    port: int
    management_port: int
    stream_port: int
    distribution_port: int
    epmd_port: int
    process: Process | None = None
    epmd: Process | None = None


class StackRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The content of `stack.json`. Ports are kept after a stop and used again if still free."""

    version: int = 1
    kafka: KafkaRecord | None = None
    rabbitmq: RabbitRecord | None = None


class StackDirectory:
    """The stack's place on disk: configuration, data, logs, passwords and the record."""

    def __init__(self, settings: Settings) -> None:
        """Name the directory; nothing is created before `create`."""
        self.path = settings.state_dir.resolve() / "stack"

    @property
    def record_file(self) -> Path:
        """Where the record is kept."""
        return self.path / "stack.json"

    def create(self) -> None:
        """Make the directory, readable by its owner only.

        Raises:
            StackError: it cannot be made or written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise StackError(
                f"{self.path} cannot be created ({error.strerror}): set LEDGER_STATE_DIR to a "
                "directory that you can write."
            ) from error

    def read(self) -> StackRecord:
        """Return the record; an empty one if there is none.

        Raises:
            StackError: the file is there and cannot be used.
        """
        try:
            return msgspec.json.decode(self.record_file.read_bytes(), type=StackRecord)
        except (FileNotFoundError, NotADirectoryError):
            return StackRecord()
        except (msgspec.DecodeError, OSError) as error:
            raise StackError(
                f"{self.record_file} cannot be read ({error}); delete it and run 'ledger up'."
            ) from error

    def write(self, record: StackRecord) -> None:
        """Replace the record in one step."""
        write_private(self.record_file, msgspec.json.format(msgspec.json.encode(record), indent=2))

    @contextlib.contextmanager
    def locked(self, on_wait: Callable[[], None]) -> Iterator[None]:
        """Hold the directory's lock, so that starts and stops happen one after the other.

        Raises:
            StackError: another process keeps it for longer than a slow installation takes.
        """
        with (self.path / "lock").open("w") as handle:
            deadline = time.monotonic() + LOCK_TIMEOUT_S
            waiting = False
            while True:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError as error:
                    if time.monotonic() > deadline:
                        raise StackError(
                            f"Another 'ledger up' or 'ledger down' has held {self.path / 'lock'} "
                            f"for {LOCK_TIMEOUT_S:.0f} s."
                        ) from error
                if not waiting:
                    on_wait()
                    waiting = True
                time.sleep(0.1)
            yield


def write_private(path: Path, content: bytes) -> None:
    """Write a file that only its owner can read, in one step: never half of it is seen."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.new")
    temporary.unlink(missing_ok=True)
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as handle:
        handle.write(content)
        handle.flush()
        os.fsync(handle.fileno())
    temporary.rename(path)
