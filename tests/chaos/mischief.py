"""What is done to workers and broker: a plan made of the seed alone, and its execution."""

from __future__ import annotations

import heapq
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.broker import OwnBroker
from tests.chaos.fleet import Fleet, Worker

SESSION_S: Final = 6.0  # a worker that is silent for longer loses its partitions
_POLL_S: Final = 0.05

WEIGHTS: Final = {
    "kill": 20,
    "kill_and_wait": 10,
    "kill_two": 8,
    "wipe": 10,
    "pause": 10,
    "pause_about_session": 6,
    "pause_past_session": 10,
    "pause_two_past_session": 6,
    "terminate": 12,
    "join": 6,
    "kill_broker": 8,
    "pause_broker": 6,
}
KINDS: Final = tuple(WEIGHTS)


@dataclass(frozen=True)
class Step:
    """One thing to do, `after_s` the last one.

    `victims` are the workers' numbers in the order in which they are considered, `seconds` is how
    long whatever is done lasts.
    """

    after_s: float
    kind: str
    victims: tuple[int, ...]
    seconds: float


@dataclass(frozen=True)
class Tempo:
    """How deeds follow each other: some in a burst, then calm in which partitions are taken.

    Attributes:
        seconds: how long all of it lasts.
        between_s: least and most seconds between the deeds of a burst.
        calm_s: least and most seconds between bursts.
        burst: least and most deeds in a burst.
    """

    seconds: float
    between_s: tuple[float, float] = (1.0, 4.0)
    calm_s: tuple[float, float] = (5.0, 11.0)
    burst: tuple[int, int] = (2, 6)


def plan(seed: object, workers: int, tempo: Tempo, must: Sequence[str]) -> list[Step]:
    """Return what to do: everything in `must`, as far as there is time, and more by chance."""
    rng = random.Random(f"mischief of {seed}")
    delays = _delays(rng, tempo)
    kinds = [*must, *rng.choices(KINDS, list(WEIGHTS.values()), k=len(delays))][: len(delays)]
    rng.shuffle(kinds)
    return [
        Step(delay, kind, tuple(rng.sample(range(workers), workers)), _duration(rng, kind))
        for delay, kind in zip(delays, kinds, strict=True)
    ]


def _delays(rng: random.Random, tempo: Tempo) -> list[float]:
    delays: list[float] = []
    while True:
        for number in range(rng.randint(*tempo.burst)):
            span = tempo.calm_s if number == 0 else tempo.between_s
            delays.append(rng.uniform(*span))
            if sum(delays) > tempo.seconds:
                return delays[:-1]


def _duration(rng: random.Random, kind: str) -> float:
    low, high = {
        "pause": (0.2, 4.0),
        "pause_about_session": (SESSION_S - 1.0, SESSION_S + 0.5),
        "pause_past_session": (SESSION_S + 0.5, SESSION_S + 4.0),
        "pause_two_past_session": (SESSION_S + 0.5, SESSION_S + 2.0),
        "kill_and_wait": (1.0, 9.0),
        "kill_two": (0.0, 4.0),
        "wipe": (0.0, 4.0),
        "terminate": (0.0, 3.0),
        "kill_broker": (0.0, 4.0),
        "pause_broker": (0.5, 9.0),
    }.get(kind, (0.0, 0.0))
    return rng.uniform(low, high) if rng.random() < 0.8 else low


class Mischief:
    """Carries a plan out; what lasts overlaps with what comes next.

    Attributes:
        done: how often what was done.
    """

    def __init__(self, fleet: Fleet, broker: OwnBroker, log: Path) -> None:
        self.done: Counter[str] = Counter()
        self._fleet = fleet
        self._broker = broker
        self._log = log
        self._began = time.monotonic()
        self._later: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0
        self._broker_is_well = True
        self._broker_start: threading.Thread | None = None
        self._broker_failure: BaseException | None = None

    def carry_out(self, steps: Sequence[Step], is_over: Callable[[], bool]) -> None:
        """Do one step after the other; end early when `is_over`."""
        for step in steps:
            self._wait(step.after_s, is_over)
            if is_over():
                return
            self._do(step)

    def make_good(self) -> None:
        """Let everything run again."""
        while self._later or not self._broker_is_well:
            for _, _, follow_up in [heapq.heappop(self._later) for _ in list(self._later)]:
                follow_up()
            self.attend()
            time.sleep(_POLL_S)
        for worker in self._fleet.workers:
            worker.pause(False)

    def attend(self) -> None:
        """Do what is due, and what a supervisor does."""
        while self._later and self._later[0][0] <= time.monotonic():
            heapq.heappop(self._later)[2]()
        if self._broker_failure is not None:
            raise self._broker_failure
        self._fleet.supervise()

    def _wait(self, seconds: float, is_over: Callable[[], bool]) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until and not is_over():
            self.attend()
            time.sleep(_POLL_S)

    def _after(self, seconds: float, follow_up: Callable[[], None]) -> None:
        self._number += 1
        heapq.heappush(self._later, (time.monotonic() + seconds, self._number, follow_up))

    def _note(self, what: str) -> None:
        with self._log.open("a") as file:
            file.write(
                f"{time.strftime('%H:%M:%S')} {time.monotonic() - self._began:7.2f} {what}\n"
            )

    # -- steps

    def _do(self, step: Step) -> None:
        if step.kind in ("kill_broker", "pause_broker"):
            if not self._broker_is_well:
                return
            self._note(f"{step.kind} for {step.seconds:.1f} s")
            (self._kill_broker if step.kind == "kill_broker" else self._pause_broker)(step.seconds)
        else:
            victims = self._victims(step)
            if not victims:
                return
            names = ", ".join(worker.name for worker in victims)
            self._note(f"{step.kind} {names} for {step.seconds:.1f} s")
            for worker in victims:
                getattr(self, f"_{step.kind}")(worker, step.seconds)
        self.done[step.kind] += 1

    def _victims(self, step: Step) -> list[Worker]:
        """Return to whom the step is done; nobody where it does not fit now."""
        workers = [self._fleet.workers[number] for number in step.victims]
        if step.kind == "join":
            return [w for w in workers if not w.is_alive and w.starts_at is None][:1]
        alive = [worker for worker in workers if worker.is_alive]
        if step.kind == "kill_two":
            return alive[:2]
        if step.kind == "terminate" or step.kind.startswith("pause"):
            alive = [worker for worker in alive if not worker.is_paused]
        return alive[: 2 if step.kind == "pause_two_past_session" else 1]

    def _start_later(self, worker: Worker, seconds: float) -> None:
        worker.starts_at = time.monotonic() + seconds

    def _kill(self, worker: Worker, seconds: float) -> None:
        worker.kill()
        self._start_later(worker, seconds)

    _kill_and_wait = _kill
    _kill_two = _kill

    def _wipe(self, worker: Worker, seconds: float) -> None:
        worker.kill()
        worker.wipe()
        self._start_later(worker, seconds)

    def _terminate(self, worker: Worker, seconds: float) -> None:
        self._fleet.terminate(worker)
        self._start_later(worker, seconds)

    def _join(self, worker: Worker, seconds: float) -> None:
        worker.start()

    def _pause(self, worker: Worker, seconds: float) -> None:
        paused = worker.process
        worker.pause(True)

        def go_on() -> None:
            if worker.process is paused:
                worker.pause(False)

        self._after(seconds, go_on)

    _pause_about_session = _pause
    _pause_past_session = _pause
    _pause_two_past_session = _pause

    def _pause_broker(self, seconds: float) -> None:
        process = self._broker.process()
        self._broker_is_well = False
        process.send_signal(signal.SIGSTOP)

        def go_on() -> None:
            process.send_signal(signal.SIGCONT)
            self._broker_is_well = True

        self._after(seconds, go_on)

    def _kill_broker(self, seconds: float) -> None:
        self._broker_is_well = False
        self._broker.kill()

        def start() -> None:
            try:
                self._broker.start()
                self._broker_is_well = True
                self._note("the broker is back")
            except BaseException as error:  # noqa: BLE001 - raised where the thread is waited for
                self._broker_failure = error

        self._broker_start = threading.Thread(target=start, name="broker", daemon=True)
        self._after(seconds, self._broker_start.start)

    def await_broker(self) -> None:
        """Return when no start of the broker is under way; stopping it would come too early."""
        if self._broker_start is not None and self._broker_start.is_alive():
            self._broker_start.join()
