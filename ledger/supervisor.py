"""Keeps several workers running: `ledger worker --supervise N`.

A worker that was killed cannot leave its consumer group, and the group would wait for it until its
session ends. The supervisor knows at once that its child is dead, and leaves for it: the others get
its partitions within a second or two.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, Final

from aiokafka.client import AIOKafkaClient, CoordinationType
from aiokafka.errors import KafkaError, NoError, UnknownMemberIdError, for_code
from aiokafka.protocol.admin import DescribeGroupsRequest
from aiokafka.protocol.group import LeaveGroupRequest
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_fixed

from ledger.settings import Settings
from ledger.stack import kafka_endpoint

logger = logging.getLogger(__name__)

LOG_FORMAT: Final = "%(asctime)s %(levelname)s %(message)s"
"""Of the supervisor and its workers, whose lines go to the same stderr."""

FIRST_PAUSE_S: Final = 0.5
LONGEST_PAUSE_S: Final = 30.0
RAN_WELL_S: Final = 60.0
"""A worker that ran so long before it ended is started again after the first pause."""
STOP_S: Final = 10.0
"""How long a worker may take to stop before it is killed; it needs less than 5."""
_REMOVE_S: Final = 3.0  # the session of a dead member ends after 6 by itself
_LOOK_S: Final = 0.05
_PARENT_LOOK_S: Final = 0.5
_MOST_OF_CLIENT_ID: Final = 160  # with what makes it unique it must still be a client id


@dataclass
class _Child:
    """A worker process. Its client id is its alone, so that the group's member is found by it."""

    number: int
    client_id: str
    process: subprocess.Popen[bytes]
    started_at: float = field(default_factory=time.monotonic)

    @property
    def name(self) -> str:
        return f"worker {self.number} (pid {self.process.pid})"


def supervise(settings: Settings, workers: int) -> int:
    """Run workers until SIGTERM or SIGINT; return the exit code, 0 when all stopped well.

    Raises:
        ConfigurationError: no Kafka is named and the local stack does not run.
    """
    kafka_endpoint(settings)
    return asyncio.run(_Supervisor(settings).run(workers))


def pause_s(failures: int) -> float:
    """Return how long to wait after a worker ended, by how often it did so in a row (from 1)."""
    return min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(failures - 1, 10))


class _Supervisor:
    """Starts workers, starts them again, and stops them."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stopping = asyncio.Event()

    async def run(self, workers: int) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop, number)
        logger.info("supervisor %d of %d workers", os.getpid(), workers)
        ended_well = await asyncio.gather(*map(self._keep, range(workers)))
        logger.info("supervisor stopped")
        return 0 if all(ended_well) else 2

    def _stop(self, number: signal.Signals) -> None:
        logger.info("%s: stopping the workers", number.name)
        self._stopping.set()

    async def _keep(self, number: int) -> bool:
        """Keep one worker running until told to stop; return whether it then stopped well."""
        failures = 0
        while not self._stopping.is_set():
            try:
                child = self._start(number)
            except OSError as error:  # no memory or no process left; the others go on
                failures += 1
                logger.warning("worker %d cannot be started: %s", number, error)
                await self._sleep(pause_s(failures))
                continue
            while child.process.poll() is None and not self._stopping.is_set():
                await self._sleep(_LOOK_S)
            if child.process.returncode is None:
                return await self._stop_child(child)
            ran_well = time.monotonic() - child.started_at >= RAN_WELL_S
            failures = 1 if ran_well else failures + 1
            pause = pause_s(failures)
            logger.warning(
                "%s ended with %s; another is started in %.1f s",
                child.name,
                _exit(child.process.returncode),
                pause,
            )
            until = time.monotonic() + pause
            await self._unless_stopping(self._remove_member(child))
            await self._sleep(until - time.monotonic())
        return True

    def _start(self, number: int) -> _Child:
        client_id = f"{self._settings.client_id[:_MOST_OF_CLIENT_ID]}-{uuid.uuid4().hex}"
        process = subprocess.Popen(
            [sys.executable, "-m", "ledger", "worker", "--parent", str(os.getpid())],
            env={**os.environ, "LEDGER_CLIENT_ID": client_id},
            stdin=subprocess.DEVNULL,
            process_group=0,  # Ctrl-C is for the supervisor, which asks each worker once
        )
        child = _Child(number, client_id, process)
        logger.info("%s started", child.name)
        return child

    async def _stop_child(self, child: _Child) -> bool:
        """Ask a worker to stop, and kill it when it takes too long; return whether it did."""
        process = child.process
        process.terminate()
        process.send_signal(signal.SIGCONT)  # a paused process cannot end
        deadline = time.monotonic() + STOP_S
        while process.poll() is None:
            if time.monotonic() > deadline:
                logger.warning("%s does not stop within %.0f s; killing it", child.name, STOP_S)
                process.kill()
                process.wait()
                break
            await asyncio.sleep(_LOOK_S)
        # SIGTERM ends a worker that is still importing, and has no handler yet, by itself.
        well = process.returncode in (0, -signal.SIGTERM)
        if not well:
            logger.warning("%s ended with %s", child.name, _exit(process.returncode))
            await self._remove_member(child)
        return well

    async def _remove_member(self, child: _Child) -> None:
        """Leave the group for a dead worker; what goes wrong only costs time."""
        try:
            async with asyncio.timeout(_REMOVE_S):
                bootstrap = kafka_endpoint(self._settings)
                removed = await remove_members(
                    bootstrap, f"{self._settings.topic_prefix}ledger", child.client_id
                )
        except Exception as error:  # noqa: BLE001 - it only costs time
            logger.warning(
                "the group could not be told that %s is dead, and waits for it until its session "
                "ends: %s",
                child.name,
                str(error) or "Kafka does not answer",
            )
            return
        for member in removed:
            logger.info("%s was removed from the group, member %s", child.name, member)

    async def _sleep(self, seconds: float) -> None:
        """Sleep, but no longer than until told to stop."""
        if seconds > 0:
            await self._unless_stopping(asyncio.sleep(seconds))

    async def _unless_stopping(self, work: Coroutine[Any, Any, None]) -> None:
        """Do some work; it is cancelled when told to stop."""
        tasks = [asyncio.ensure_future(work), asyncio.ensure_future(self._stopping.wait())]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        if isinstance(outcomes[0], Exception):
            raise outcomes[0]


async def remove_members(bootstrap: str, group: str, client_id: str) -> list[str]:
    """Leave a consumer group for the members with this client id, and return their member ids.

    They must be dead: one that lives would go on with what it was assigned until it is fenced.

    Raises:
        KafkaError: the coordinator refuses, or there is none.
    """
    patiently = AsyncRetrying(
        # While the cluster elects a coordinator it has none, or another than was asked.
        retry=retry_if_exception_type((KafkaError, AssertionError)),
        stop=stop_after_delay(_REMOVE_S),
        wait=wait_fixed(0.1),
        reraise=True,
    )
    members: list[str] = await patiently(_remove_members, bootstrap, group, client_id)
    return members


async def _remove_members(bootstrap: str, group: str, client_id: str) -> list[str]:
    client = AIOKafkaClient(bootstrap_servers=bootstrap, client_id="ledger-supervisor")
    try:
        await client.bootstrap()
        coordinator = await client.coordinator_lookup(CoordinationType.GROUP, group)
        described = await client.send(coordinator, DescribeGroupsRequest([group]))
        members = []
        for error_code, _, _, _, _, found, *_ in described.groups:
            _require(for_code(error_code), f"DescribeGroups of {group}")
            members += [
                member_id for member_id, client_name, *_ in found if client_name == client_id
            ]
        for member in members:
            answer = await client.send(coordinator, LeaveGroupRequest(group, member))
            error = for_code(answer.error_code)
            if error is not UnknownMemberIdError:  # else it is gone meanwhile
                _require(error, f"LeaveGroup of {member}")
        return members
    finally:
        await client.close()


def _require(error: type[KafkaError], what: str) -> None:
    if error is not NoError:
        raise error(what)


def _exit(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:  # a real-time signal without a name
        return f"signal {-code}"


def stop_without_parent(parent: int) -> None:
    """Make this process stop gracefully when its parent has gone, however that ended."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_PARENT_LOOK_S)
        logger.warning("the supervisor has gone: stopping")
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(STOP_S)
        os._exit(2)  # nobody else would end it

    threading.Thread(target=watch, name="parent", daemon=True).start()
