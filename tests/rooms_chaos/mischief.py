"""What is done to bridges, servers and the lines between them, and when."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from tests.broker import OwnBroker
from tests.chaos.fleet import Fleet, Worker
from tests.chaos.mischief import SESSION_S, Mischief, Step, Tempo, plan
from tests.rooms_chaos.proxy import CONFIRMS, DIRECTIONS, PUBLISHES, Proxy
from tests.rooms_chaos.rooms import Rooms
from tests.rooms_chaos.servers import OwnRabbit

WEIGHTS: Final = {
    "kill": 16,
    "kill_two": 8,
    "wipe": 10,
    "terminate": 8,
    "pause_past_session": 8,
    "pause_two_past_session": 4,
    "cut": 6,
    "cut_publishes": 10,
    "cut_confirms": 10,
    "lose_confirms": 12,
    "stall": 4,
    "stall_publishes": 4,
    "stall_confirms": 6,
    "refuse": 4,
    "kill_rabbit": 12,
    "stop_rabbit": 4,
    "kill_kafka": 4,
}
KINDS: Final = tuple(WEIGHTS)
ROOM_WEIGHTS: Final = {"delete_room": 12, "delete_room_unseen": 8}
ROOM_KINDS: Final = tuple(ROOM_WEIGHTS)
"""A room's queue is deleted while bridges run, or while none does."""

_SECONDS: Final = {
    "kill": (0.0, 2.0),
    "kill_two": (0.0, 2.0),
    "wipe": (0.0, 2.0),
    "terminate": (0.0, 2.0),
    "pause_past_session": (SESSION_S + 0.5, SESSION_S + 3.0),
    "pause_two_past_session": (SESSION_S + 0.5, SESSION_S + 2.0),
    "lose_confirms": (0.1, 3.0),
    "stall": (0.5, 5.0),
    "stall_publishes": (0.5, 5.0),
    "stall_confirms": (0.5, 5.0),
    "refuse": (0.5, 5.0),
    "kill_rabbit": (0.0, 3.0),
    "stop_rabbit": (0.0, 2.0),
    "kill_kafka": (0.0, 2.0),
    "delete_room_unseen": (0.2, 2.0),
}
_OF_SERVERS_AND_ROOMS: Final = {"kill_rabbit", "stop_rabbit", "kill_kafka", *ROOM_KINDS}
_RABBIT_RESTS_S: Final = 8.0
"""RabbitMQ is not ended again so soon after a start.

Of RabbitMQ 3.10.8 some streams are dead for ever ("home node ... is down or inaccessible", neither
declared nor deleted) where it is killed, stopped as soon as it is back, and killed again twice 2 s
after it is back; no bridge needs to run for that.
"""
_POLL_S: Final = 0.05
_AGAIN_S: Final = 3.0


def deeds(seed: object, bridges: int, tempo: Tempo, must: Sequence[str]) -> list[Step]:
    """Return what to do: everything in `must`, as far as there is time, and more by chance.

    Rooms are deleted only where `must` has it.
    """
    rng = random.Random(f"deeds of {seed}")
    weights = {**WEIGHTS, **{kind: ROOM_WEIGHTS[kind] for kind in ROOM_KINDS if kind in must}}
    steps = plan(seed, bridges, tempo, ())  # of which only times and victims are used
    kinds = [*must, *rng.choices(list(weights), list(weights.values()), k=len(steps))]
    kinds = kinds[: len(steps)]
    rng.shuffle(kinds)
    return [
        replace(step, kind=kind, seconds=rng.uniform(*_SECONDS.get(kind, (0.0, 0.0))))
        for step, kind in zip(steps, kinds, strict=True)
    ]


class RoomsMischief(Mischief):
    """Carries out what `deeds` planned; bridges are killed and paused as workers are."""

    def __init__(
        self,
        seed: object,
        fleet: Fleet,
        kafka: OwnBroker,
        rabbit: OwnRabbit,
        proxies: Mapping[str, Proxy],
        rooms: Rooms,
        log: Path,
    ) -> None:
        """Name those to whom it is done.

        Args:
            seed: of what chance decides on the way.
            fleet: of the bridges.
            kafka: the broker.
            rabbit: the RabbitMQ.
            proxies: before RabbitMQ, by the name of the bridge.
            rooms: where rooms are deleted.
            log: where deeds are written down with their time.
        """
        super().__init__(fleet, kafka, log)
        self._rng = random.Random(f"chances of {seed}")
        self._rabbit = rabbit
        self._proxies = proxies
        self._rooms = rooms
        self._rabbit_is_well = True
        self._rabbit_rests_until = 0.0
        self._rabbit_restart: threading.Thread | None = None
        self._rabbit_failure: BaseException | None = None
        self._hurry = threading.Event()

    def make_good(self) -> None:
        """Let everything run again."""
        self._hurry.set()
        super().make_good()
        for proxy in self._proxies.values():
            proxy.heal()
        while not self._rabbit_is_well:
            self.attend()
            time.sleep(_POLL_S)

    def attend(self) -> None:
        """Do what is due, and what a supervisor does."""
        if self._rabbit_failure is not None:
            raise self._rabbit_failure
        super().attend()

    def await_servers(self) -> None:
        """Return when no start of a server is under way; stopping it would come too early."""
        self._hurry.set()
        self.await_broker()
        if self._rabbit_restart is not None:
            self._rabbit_restart.join()

    def _do(self, step: Step) -> None:
        if self._hurry.is_set():
            return
        before = self.done[step.kind]
        if step.kind not in _OF_SERVERS_AND_ROOMS:
            super()._do(step)
        elif getattr(self, f"_{step.kind}")(step.seconds):
            self.done[step.kind] += 1
        if self.done[step.kind] == before:  # it did not fit just now
            self._after(_AGAIN_S, lambda: self._do(step))

    # -- servers

    def _kill_kafka(self, seconds: float) -> bool:
        if not self._broker_is_well:
            return False
        self._note(f"kill_kafka for {seconds:.1f} s")
        self._kill_broker(seconds)
        return True

    def _kill_rabbit(self, seconds: float) -> bool:
        return self._restart(self._rabbit.kill, f"kill_rabbit for {seconds:.1f} s", seconds)

    def _stop_rabbit(self, seconds: float) -> bool:
        return self._restart(self._rabbit.stop, f"stop_rabbit for {seconds:.1f} s", seconds)

    def _restart(self, end: Callable[[], None], what: str, seconds: float) -> bool:
        """End RabbitMQ and start it again later, while other things go on."""
        if not self._rabbit_is_well or time.monotonic() < self._rabbit_rests_until:
            return False
        self._note(what)
        self._rabbit_is_well = False

        def restart() -> None:
            try:
                end()
                self._hurry.wait(seconds)
                self._rabbit.start()
                self._rabbit_rests_until = time.monotonic() + _RABBIT_RESTS_S
                self._rabbit_is_well = True
                self._note("RabbitMQ is back")
            except BaseException as error:  # noqa: BLE001 - raised where the thread is waited for
                self._rabbit_failure = error

        self._rabbit_restart = threading.Thread(target=restart, name="rabbit", daemon=True)
        self._rabbit_restart.start()
        return True

    # -- rooms

    def _delete_room(self, seconds: float) -> bool:
        return self._delete_one("delete_room")

    def _delete_room_unseen(self, seconds: float) -> bool:
        bridges = [worker for worker in self._fleet.workers if worker.is_alive]
        for bridge in bridges:
            bridge.kill()
            self._start_later(bridge, seconds)
        return self._delete_one("delete_room_unseen")

    def _delete_one(self, what: str) -> bool:
        if not self._rabbit_is_well:
            return False
        try:
            names = sorted(self._rooms.counts())
        except OSError:
            return False
        # A public room more often than there are such: it is the one that mixes partitions.
        public = [name for name in names if name.startswith("room.")]
        names = self._rng.sample(names, len(names))
        if self._rng.random() < 0.5:
            names = [*self._rng.sample(public, len(public)), *names]
        deleted = self._rooms.delete(names)
        if deleted is None:
            return False
        self._note(f"{what} {deleted}")
        return True

    # -- lines

    def _cut(self, bridge: Worker, seconds: float) -> None:
        self._proxies[bridge.name].cut()

    def _cut_publishes(self, bridge: Worker, seconds: float) -> None:
        self._proxies[bridge.name].cut_after(PUBLISHES, int(10 ** self._rng.uniform(0, 5)))

    def _cut_confirms(self, bridge: Worker, seconds: float) -> None:
        # A confirm has 21 bytes, and may stand for many messages.
        self._proxies[bridge.name].cut_after(CONFIRMS, int(10 ** self._rng.uniform(0, 3)))

    def _lose_confirms(self, bridge: Worker, seconds: float) -> None:
        """Let publishes through and no confirm back, then cut."""
        proxy = self._proxies[bridge.name]
        proxy.stall(CONFIRMS)

        def cut() -> None:
            proxy.cut()
            proxy.flow()

        self._after(seconds, cut)

    def _stall(self, bridge: Worker, seconds: float) -> None:
        self._stalled(bridge, seconds, *DIRECTIONS)

    def _stall_publishes(self, bridge: Worker, seconds: float) -> None:
        self._stalled(bridge, seconds, PUBLISHES)

    def _stall_confirms(self, bridge: Worker, seconds: float) -> None:
        self._stalled(bridge, seconds, CONFIRMS)

    def _stalled(self, bridge: Worker, seconds: float, *directions: str) -> None:
        proxy = self._proxies[bridge.name]
        proxy.stall(*directions)
        self._after(seconds, proxy.flow)

    def _refuse(self, bridge: Worker, seconds: float) -> None:
        proxy = self._proxies[bridge.name]
        proxy.refuse(True)
        proxy.cut()
        self._after(seconds, lambda: proxy.refuse(False))
