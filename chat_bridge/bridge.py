"""The bridge: sessions between `fills` and the rooms, one after the other, until it is stopped."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from typing import Final

from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
    stop_after_attempt,
    stop_never,
    wait_exponential_jitter,
)

from chat_bridge.errors import (
    ConnectionLost,
    MessageRefused,
    MessageReturned,
    MessageTooLarge,
    RoomBroken,
)
from chat_bridge.metrics import Tally, serve_metrics
from chat_bridge.session import NothingPublished, Options, Session
from ledger.errors import UnreachableError
from ledger.places import Place, take_place
from ledger.settings import Settings

STOP_WITHIN_S: Final = 3.0
"""After a signal, what is in hand gets so long to be confirmed; then it is left for next time."""
_SHORTEST_PAUSE_S: Final = 0.5
_LONGEST_PAUSE_S: Final = 10.0

log = logging.getLogger(__name__)


class Bridge:
    """Sessions, one after the other, until it is told to stop."""

    def __init__(self, settings: Settings, kafka: str, amqp: str, options: Options) -> None:
        """Name the servers; `run` does the work.

        Args:
            settings: prefix and state directory.
            kafka: bootstrap servers.
            amqp: RabbitMQ's URL.
            options: how to post.
        """
        self._settings = settings
        self._kafka = kafka
        self._amqp = amqp
        self._options = options
        self._stopping = asyncio.Event()
        self._session: Session | None = None
        self._largest_bytes: int | None = None
        self._broken: set[str] = set()
        self.tally = Tally()

    def stop(self) -> None:
        """Ask it to finish what is in hand and return."""
        self._stopping.set()

    def lags(self) -> dict[int, int]:
        """Return how many records of each of its partitions are not in the rooms yet."""
        session = self._session  # asked by another thread
        return session.lags() if session is not None else {}

    async def run(self) -> Tally:
        """Post until stopped, and return what was done.

        Raises:
            LedgerError: something that a new connection does not mend; and with `once` anything.
        """
        place = take_place(self._settings.state_dir / self._settings.topic("bridge"))
        work = asyncio.create_task(self._work(place))
        signalled = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait({work, signalled}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                await asyncio.wait({work}, timeout=STOP_WITHIN_S)
            if not work.done():
                log.warning("What was in hand is not confirmed yet; it is left for the next start.")
                work.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await work
            else:
                work.result()
        finally:
            signalled.cancel()
            work.cancel()
            place.release()
        return self.tally

    async def _work(self, place: Place) -> None:
        pause_s = _SHORTEST_PAUSE_S
        while not self._stopping.is_set():
            session = await self._open(place)
            if session is None:
                return
            before = self.tally.messages
            self._session = session
            try:
                await session.serve()
                return
            except MessageTooLarge as error:
                log.warning("%s What would be larger becomes a dead letter.", error)
                self._largest_bytes = error.limit_bytes
            except RoomBroken as error:
                if self._options.once and error.room in self._broken:
                    raise
                log.error("%s", error)
                self._broken.add(error.room)
            except (MessageReturned, MessageRefused) as error:
                if self._options.once and pause_s > _LONGEST_PAUSE_S:
                    raise
                log.warning("%s Reading the rooms again.", error)
            except (ConnectionLost, UnreachableError) as error:
                if self._options.once:
                    raise
                log.warning("%s Starting again.", error)
            finally:
                self._session = None
                await session.close()
            await self._pause(min(pause_s, _LONGEST_PAUSE_S))
            pause_s = _SHORTEST_PAUSE_S if self.tally.messages > before else pause_s * 2

    async def _open(self, place: Place) -> Session | None:
        """Return a started session, or None when told to stop before there was one."""
        once = self._options.once
        retrying = AsyncRetrying(
            retry=retry_if_exception_type((UnreachableError, ConnectionLost, NothingPublished)),
            wait=wait_exponential_jitter(multiplier=0.5, max=_LONGEST_PAUSE_S, jitter=0.5),
            stop=stop_after_attempt(1) if once else stop_never,
            sleep=self._pause,
            before_sleep=_say_why,
            reraise=True,
        )
        async for attempt in retrying:
            if self._stopping.is_set():
                return None
            with attempt:
                session = Session(
                    self._settings,
                    self._kafka,
                    self._amqp,
                    place,
                    self.tally,
                    self._options,
                    self._stopping,
                    self._largest_bytes,
                    self._broken,
                )
                try:
                    await session.start()
                except BaseException:
                    await session.close()
                    raise
                return session
        return None

    async def _pause(self, seconds: float) -> None:
        """Wait, or less long when told to stop."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()


async def run(
    settings: Settings, kafka: str, amqp: str, options: Options, metrics_port: int | None = None
) -> Tally:
    """Run a bridge that SIGTERM and SIGINT stop, and return what it did."""
    bridge = Bridge(settings, kafka, amqp, options)
    if metrics_port is not None:
        serve_metrics(metrics_port, bridge.tally, bridge.lags)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, bridge.stop)
    try:
        return await bridge.run()
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


def _say_why(state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    wait_s = state.next_action.sleep if state.next_action else 0
    log.warning("%s Trying again in %.1f s.", error, wait_s)
