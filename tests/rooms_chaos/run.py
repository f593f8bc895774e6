"""One seed: feed, bridges and mischief on running servers, from the beginning to the verdict."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from confluent_kafka import ConsumerGroupTopicPartitions, KafkaException
from pydantic import SecretStr

from ledger.errors import LedgerError
from tests.chaos.feed import Feed
from tests.chaos.fleet import Exit, Fleet, Worker
from tests.chaos.mischief import Tempo
from tests.rooms_chaos.expected import Wanted, expected
from tests.rooms_chaos.fills import FILLS, Fills, stored
from tests.rooms_chaos.mischief import KINDS, RoomsMischief, deeds
from tests.rooms_chaos.proxy import Proxy, proxies
from tests.rooms_chaos.rooms import Rooms
from tests.rooms_chaos.servers import Servers
from tests.rooms_chaos.verify import Verdict, compare
from tests.support import cluster_of, command

_GROUP: Final = "chat-bridge"
_EXCHANGE: Final = "chat.rooms"
_FEED_S: Final = 60.0  # how long the feed may go on after the mischief
_SETTLE_S: Final = 120.0
_REFILL_S: Final = 60.0
_BRIDGES: Final = 2
_TEMPO: Final = Tempo(95.0, between_s=(0.5, 2.5), calm_s=(3.0, 7.0))


@dataclass(frozen=True)
class Shape:
    """How large a run is.

    Attributes:
        fills: records to produce; of some the transactions are aborted.
        tempo: of mischief; records are produced as long as it lasts.
        partitions: of the topics.
        must: what is done at least once; rooms are deleted only if it is named here.
    """

    fills: int = 20_500
    tempo: Tempo = _TEMPO
    partitions: int = 8
    must: tuple[str, ...] = KINDS


@dataclass
class Outcome:
    """What came of a seed; `str` of it is the line that is printed."""

    seed: int
    verdict: Verdict = field(default_factory=Verdict)
    records: int = 0
    aborted: int = 0
    done: Counter[str] = field(default_factory=Counter)
    exits: list[Exit] = field(default_factory=list)
    phases: dict[str, float] = field(default_factory=dict)

    @property
    def differences(self) -> list[str]:
        """What is wrong, in a sentence each."""
        return self.verdict.differences

    @property
    def seconds(self) -> float:
        """How long all of it took."""
        return sum(self.phases.values())

    def __str__(self) -> str:
        verdict = self.verdict
        deeds_ = ", ".join(f"{kind} {count}" for kind, count in sorted(self.done.items()))
        phases = ", ".join(f"{name} {spent:.0f}" for name, spent in self.phases.items())
        return (
            f"seed {self.seed}: {self.records} records (+{self.aborted} aborted); {deeds_}; "
            f"{self.seconds:.0f} s ({phases}); {verdict.messages} messages in {verdict.rooms} "
            f"rooms: {verdict.duplicates} duplicates, {verdict.missing} missing, "
            f"{verdict.disorder} out of order, {verdict.strangers} strangers, {verdict.wrong} "
            f"wrong; exits by themselves {len(self.exits)}; "
            + ("exact" if not self.differences else f"{len(self.differences)} DIFFERENCES")
        )


class Bridge(Worker):
    """One bridge's place."""

    def start(self, *module: str) -> None:
        """Start the bridge."""
        super().start(*(module or ("chat_bridge", "run")))


def run(seed: int, shape: Shape, servers: Servers, directory: Path) -> Outcome:
    """Return what came of a seed; logs are left in `directory`."""
    with proxies(_BRIDGES, lambda: servers.rabbit.port) as lines:
        return _Run(seed, shape, servers, lines, directory).run()


class _Run:
    def __init__(
        self, seed: int, shape: Shape, servers: Servers, lines: list[Proxy], directory: Path
    ) -> None:
        self.outcome = Outcome(seed)
        self.shape = shape
        rabbit = servers.rabbit
        self.settings = servers.kafka.settings(
            directory / "once",
            topic_prefix=f"seed{seed}-{time.time_ns():x}-",
            partitions=shape.partitions,
            amqp=SecretStr(rabbit.url),
            amqp_management=rabbit.management,
        )
        cluster_of(self.settings).ensure_topics()
        self.rooms = Rooms(rabbit.url, rabbit.management, self.settings.topic_prefix)
        traffic = Fills(seed, shape.fills, shape.partitions)
        self.feed = Feed(self.settings, traffic, seed, shape.fills, shape.tempo.seconds)
        self.fleet = Fleet(self.settings, directory, 0)
        for number, line in enumerate(lines):
            through = SecretStr(rabbit.url_through(line.port))
            own = self.settings.model_copy(update={"amqp": through})
            self.fleet.workers.append(Bridge(f"bridge-{number}", own, directory))
        by_name = {w.name: line for w, line in zip(self.fleet.workers, lines, strict=True)}
        self.mischief = RoomsMischief(
            seed, self.fleet, servers.kafka, rabbit, by_name, self.rooms, directory / "mischief.log"
        )
        self._since = time.monotonic()

    def run(self) -> Outcome:
        try:
            self._rage()
            records, ends = stored(self.settings, self.shape.partitions)
            self.outcome.records = len(records)
            wanted = expected(records, self.shape.partitions)
            self._settle(ends, wanted)
            self._phase("settling")
            self._end_bridges()
            self._phase("ending")
            self._verify(wanted)
            self._phase("verifying")
            self.rooms.forget()
        finally:
            self.feed.end()
            self.fleet.kill()
            self.mischief.await_servers()
        outcome = self.outcome
        outcome.done = self.mischief.done
        outcome.exits = self.fleet.exits
        outcome.aborted = self.feed.aborted
        outcome.differences.extend(self.fleet.bugs())
        return outcome

    def _phase(self, name: str) -> None:
        now = time.monotonic()
        self.outcome.phases[name] = now - self._since
        self._since = now

    def _rage(self) -> None:
        shape = self.shape
        for bridge in self.fleet.workers:
            bridge.start()
        self.feed.start()
        steps = deeds(self.outcome.seed, len(self.fleet.workers), shape.tempo, shape.must)
        # All of them, also where the feed ended before the last: `must` is a promise.
        self.mischief.carry_out(steps, lambda: self.feed.failure is not None)
        self.mischief.make_good()
        self._phase("mischief")
        if not self._await(lambda: not self.feed.is_alive(), _FEED_S):
            self.outcome.differences.append(
                f"the feed did not end: {self.feed.counted} of {self.feed.sent} acknowledged"
            )
        elif self.feed.failure is not None:
            self.outcome.differences.append(self.feed.failure)
        self._phase("feeding")

    def _await(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Return whether a condition came true in time; meanwhile bridges are supervised."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                return False
            self.mischief.attend()
            time.sleep(0.2)
        return True

    def _settle(self, ends: dict[int, int], wanted: dict[str, list[Wanted]]) -> None:
        """Wait until the bridges say that everything is posted, and rooms have come back."""
        if not self._await(lambda: self._committed() == ends, _SETTLE_S):
            self.outcome.differences.append(
                f"stalled: committed {self._committed()}, but the topic ends at {ends}"
            )
        sizes = {room: len(messages) for room, messages in wanted.items()}

        def are_full() -> bool:
            counts = self.rooms.counts()
            return all(counts.get(room, 0) >= size for room, size in sizes.items())

        if not self._await(are_full, _REFILL_S):
            counts = self.rooms.counts()
            short = [room for room, size in sizes.items() if counts.get(room, 0) < size]
            self.outcome.differences.append(
                f"{len(short)} rooms are not full {_REFILL_S:.0f} s after everything was "
                f"committed: {', '.join(sorted(short)[:5])}"
            )

    def _committed(self) -> dict[int, int]:
        """Return the group's committed offset of each partition that has one."""
        try:
            admin = cluster_of(self.settings).admin
            asked = ConsumerGroupTopicPartitions(self.settings.topic(_GROUP))
            answer = admin.list_consumer_group_offsets([asked])
            slots = answer[asked.group_id].result().topic_partitions or []
        except (LedgerError, KafkaException):
            return {}
        topic = self.settings.topic(FILLS)
        return {slot.partition: slot.offset for slot in slots if slot.topic == topic}

    def _end_bridges(self) -> None:
        """End the bridges; one that starts then, without any state, finds nothing to post."""
        for bridge in self.fleet.workers:
            self.fleet.terminate(bridge)
        done = command(self.settings, "chat_bridge", "run", "--once", "--json")
        if done.returncode != 0:
            self.outcome.differences.append(
                f"chat-bridge run --once ended with {done.returncode}: {done.stderr[-300:]!r}"
            )
        elif (posted := json.loads(done.stdout)["messages"]) != 0:
            self.outcome.differences.append(
                f"chat-bridge run --once posted {posted} messages after everything was committed"
            )

    def _verify(self, wanted: dict[str, list[Wanted]]) -> None:
        differences = self.outcome.differences
        found = self.rooms.read(self.rooms.counts())
        exchange = self.settings.topic(_EXCHANGE)
        self.outcome.verdict = compare(wanted, found, exchange)
        self.outcome.verdict.differences[:0] = differences
