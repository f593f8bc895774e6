"""One life of the bridge's connections: what it owns, what it has read of the rooms, what it posts.

The order of every step is: publish, confirms, settle the state, commit the offset. So what is
settled is in its rooms, and what is committed is settled. After a crash in between, records are
read again, and their messages are posted unless the rooms' histories have them.

Before a session posts anything of a partition it owns it (`ownership`). Before it posts the first
message of a partition into a room, it looks (`survey`) what the room holds of it: messages from
that one on were posted by an earlier session, and are not posted again; if any before it are
missing, the room was deleted or reset, and the partition is folded again from its beginning, which
posts to this room all that it lacks, in order. The rooms that nothing is posted to are looked at in
the background.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from heapq import merge
from typing import Final, TypeVar

import msgspec
from aiolimiter import AsyncLimiter
from confluent_kafka import KafkaException

from chat_bridge.errors import ConnectionLost, RoomBroken
from chat_bridge.identity import Expected, Skipped, StoredIdentity
from chat_bridge.messages import Message
from chat_bridge.metrics import Tally
from chat_bridge.poster import Poster, is_broken
from chat_bridge.source import Chunk, Source
from chat_bridge.survey import Anchor, Finding
from ledger.errors import InputError, MissingRecords, TopicError
from ledger.events import FILLS, INPUT_TOPICS
from ledger.kafka import Cluster
from ledger.letters import dead_letter
from ledger.places import Place
from ledger.projections.partition import Origin
from ledger.settings import Settings

_IDLE_S: Final = 0.25
_STALLED_S: Final = 60.0
_LOOKS_AT_ONCE: Final = 8
_PATROL_PAUSE_S: Final = 30.0
_PATROL_SHARE: Final = 0.2
"""Of one's time that looking at rooms in the background may take."""
_PACED_MESSAGES: Final = 100

_A = TypeVar("_A")
_R = TypeVar("_R")

log = logging.getLogger(__name__)


class NothingPublished(TopicError):  # noqa: N818 - not an error for who can wait
    """The input topics do not exist yet."""


class _Interrupted(Exception):  # noqa: N818 - a step that is left for whoever goes on
    pass


@dataclass(frozen=True)
class Options:
    """How a bridge was told to post.

    Attributes:
        once: stop when all there is now is posted, and give up where a server is down.
        since_ms: records older than this (milliseconds since 1970, Kafka's time stamp) that were
            not posted yet are never posted; None for all.
        rate: most messages a second of records that were there before the bridge; None for any.
    """

    once: bool = False
    since_ms: int | None = None
    rate: float | None = None


class _Committed(msgspec.Struct, omit_defaults=True):
    """What is committed beside an offset: it outlives the state on disk."""

    skipped: Skipped = []


@dataclass
class _Share:
    """One partition that this session owns.

    Attributes:
        committed: the group's offset.
        first_offset: of the records that Kafka still has.
        backlog_end: where the partition ended when it became ours: nobody else can have posted
            what comes after that.
        anchors: for each room that was looked at, a message of ours in it.
    """

    identity: StoredIdentity
    committed: int
    first_offset: int
    backlog_end: int
    anchors: dict[str, Anchor | None] = field(default_factory=dict)


class Session:
    """One life of both connections: all of it ends with the first error."""

    def __init__(
        self,
        settings: Settings,
        kafka: str,
        amqp: str,
        place: Place,
        tally: Tally,
        options: Options,
        stopping: asyncio.Event,
        largest_bytes: int | None,
        broken: set[str],
    ) -> None:
        self._settings = settings
        self._amqp = amqp
        self._place = place
        self._tally = tally
        self._options = options
        self._stopping = stopping
        self._largest_bytes = largest_bytes
        self._broken = broken  # rooms that nothing can be posted to for now
        self._source = Source(kafka, settings, self._let_go)
        self._cluster = Cluster(kafka, settings)
        self._at_once = max(1, min(_PACED_MESSAGES, int(options.rate or _PACED_MESSAGES)))
        self._limiter = (
            AsyncLimiter(self._at_once, self._at_once / options.rate) if options.rate else None
        )
        self._poster: Poster
        self._origin: Origin
        # Held while records are in hand: partitions are given away between steps only.
        self._hands = asyncio.Lock()
        self._shares: dict[int, _Share] = {}
        self._posted: dict[str, set[str]] = {}  # by room, what is there and still to come by
        self._suspects: set[str] = set()
        self._patrol: asyncio.Task[None] | None = None
        self._unfillable: set[tuple[int, str]] = set()  # Kafka has removed what they lost
        self._looked_at = 0  # rooms, by the patrol
        self._patrolled = asyncio.Event()
        self._epoch = 0
        self._closing = contextlib.AsyncExitStack()

    async def start(self) -> None:
        """Connect to both servers and join the group.

        Raises:
            UnreachableError: one of them does not answer.
            NothingPublished: there are no topics yet.
            TopicError: the topics are not what the ledger needs.
        """
        self._closing.push_async_callback(self._drop_shares)
        self._closing.push_async_callback(self._source.close)
        # First, because it fails fast and can be cancelled, which a thread cannot.
        await self._source.connect()
        self._origin = await _in_thread(_origin, self._cluster)
        self._poster = await Poster.open(self._amqp, self._settings)
        self._closing.push_async_callback(self._poster.close)
        self._tally.sessions += 1
        self._source.join()

    async def close(self) -> None:
        """Leave both servers; nothing that is in hand is stored."""
        await self._closing.aclose()

    def lags(self) -> dict[int, int]:
        """Return how many records of each partition are not in the rooms yet."""
        found = {}
        for number, share in list(self._shares.items()):  # asked by another thread
            end = self._source.end(number)
            if end is not None:
                found[number] = max(0, end - share.identity.settled)
        return found

    async def ends(self) -> dict[int, int]:
        """Return the end offset of each partition of `fills` now."""
        slots = [(FILLS, number) for number in range(self._origin.partitions)]
        ends = await _in_thread(self._cluster.ends, slots)
        return {number: end for (_, number), end in ends.items()}

    async def serve(self) -> None:
        """Post until told to stop, or `once` all there is now is posted by the group.

        Raises:
            ConnectionLost: a server went away.
            MessageReturned: a room went away.
            MessageRefused: RabbitMQ could not store a message.
            MessageTooLarge: RabbitMQ never takes a message.
            RoomError: a queue is not what a room should be.
            RoomBroken: RabbitMQ fails at a room's queue; or `once` it did so until the end.
            MissingRecords: records are gone that are still needed.
        """
        ends = await self.ends() if self._options.once else None
        last_news, looked_at = time.monotonic(), self._looked_at
        while not self._stopping.is_set():
            if self._epoch != self._source.epoch:
                await self._take_over()
            # Before reading: what was read of a partition that is folded again is of no use.
            await self._look_at_suspects()
            chunks = await self._source.read(self._shares, _IDLE_S)
            async with self._hands:
                moved = False
                if self._epoch == self._source.epoch:
                    with contextlib.suppress(_Interrupted):
                        moved = await self._step(chunks)
            if self._poster.is_closed:
                raise ConnectionLost("RabbitMQ", "the connection was closed")
            if self._patrol is not None and self._patrol.done():
                self._patrol.result()
            if moved or looked_at != self._looked_at:
                last_news, looked_at = time.monotonic(), self._looked_at
            if ends is not None:
                if not moved and await self._is_done(ends):
                    return
                if time.monotonic() - last_news > _STALLED_S:
                    raise ConnectionLost("Kafka", f"no progress for {_STALLED_S:.0f} s")

    async def _step(self, chunks: list[Chunk]) -> bool:
        """Post what was read, settle, commit; return whether anything moved."""
        made: dict[int, list[Message]] = {}
        records = 0
        for chunk in chunks:
            share = self._shares[chunk.partition]
            if chunk.next_offset > share.identity.next_offset:
                messages = share.identity.read(chunk.records, chunk.next_offset)
                made[chunk.partition] = [
                    message for message in messages if message.room not in self._broken
                ]
                records += len(chunk.records)
        await self._poster.declare(
            dict.fromkeys(message.room for messages in made.values() for message in messages)
        )
        for partition, rooms in (await self._look(made)).items():
            if await self._refill(partition, rooms):
                del made[partition]  # they come by again
        await self._post(list(merge(*made.values(), key=Message.instant)))
        await self._bury()
        for share in self._shares.values():
            share.identity.settle()
        moved = await self._commit()
        self._tally.records += records
        return bool(records or moved)

    async def _post(self, messages: list[Message]) -> None:
        """Post what is not in its room yet."""
        lacking = [message for message in messages if not self._is_posted(message)]
        self._tally.avoided += len(messages) - len(lacking)
        publisher, tally = self._poster.publisher, self._tally
        published, returned, refused = publisher.published, publisher.returned, publisher.refused
        try:
            if self._limiter is None:
                await self._poster.post(lacking)
                tally.count(lacking)
            else:
                await self._post_paced(lacking, self._limiter)
        finally:
            tally.published += publisher.published - published
            tally.returned += publisher.returned - returned
            tally.refused += publisher.refused - refused

    async def _post_paced(self, messages: list[Message], limiter: AsyncLimiter) -> None:
        """Post a few at a time; only those that were waiting when the session began are held up."""
        for at in range(0, len(messages), self._at_once):
            batch = messages[at : at + self._at_once]
            old = [one for one in batch if one.offset < self._shares[one.partition].backlog_end]
            await limiter.acquire(len(old))
            if self._epoch != self._source.epoch or self._stopping.is_set():
                raise _Interrupted
            await self._poster.post(batch)
            self._tally.count(batch)

    async def _bury(self) -> None:
        """Send dead letters of what cannot be published, before it counts as done."""
        for number, share in self._shares.items():
            for rejected in share.identity.unpublishable:
                log.warning("%s:%d: %s.", self._source.topic, number, rejected.detail)
                await self._source.bury(dead_letter(number, rejected))
                self._tally.unpublishable += 1

    def _is_posted(self, message: Message) -> bool:
        """Return whether a room had a message before; asked once for each."""
        ids = self._posted.get(message.room)
        if ids is None or message.message_id not in ids:
            return False
        ids.discard(message.message_id)
        if not ids:
            del self._posted[message.room]
        return True

    async def _commit(self) -> bool:
        """Commit what is settled and was not committed yet; return whether there was any."""
        moved = {
            number: share
            for number, share in self._shares.items()
            if share.identity.settled > share.committed
        }
        await self._source.commit(
            {
                number: (share.identity.settled, _text(share.identity.skipped))
                for number, share in moved.items()
            }
        )
        for share in moved.values():
            share.committed = share.identity.settled
        return bool(moved)

    async def _is_done(self, ends: dict[int, int]) -> bool:
        """Return whether the whole group has committed up to `ends`, and our rooms are whole."""
        if self._epoch == 0 or self._epoch != self._source.epoch:
            return False
        committed = await self._source.committed(ends)
        if any(committed[number][0] < end for number, end in ends.items()):
            return False
        if any(share.identity.settled < ends[number] for number, share in self._shares.items()):
            return False
        if not self._patrolled.is_set() or self._suspects:
            return False
        for room in self._broken:
            raise RoomBroken(room, self._settings.topic(room))
        return True

    # -- looking into rooms

    async def _look(self, made: Iterable[int]) -> dict[int, dict[str, Expected]]:
        """Look into the rooms that partitions' messages are the first for in this session.

        Returns:
            By partition, rooms that seem to have lost messages, and what they should hold.
        """
        unread = [
            (number, room, expected)
            for number in made
            for room, expected in self._shares[number].identity.take_unread().items()
            if room not in self._broken
            and (expected.span is not None or expected.before < self._shares[number].backlog_end)
        ]
        limit = asyncio.Semaphore(_LOOKS_AT_ONCE)

        async def look_back(number: int, room: str, expected: Expected) -> Finding:
            async with limit:
                with _declared(room):
                    return await self._poster.surveyor.look_back(room, number, expected)

        tasks = [asyncio.create_task(look_back(*what)) for what in unread]
        try:
            findings = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
        lacking: dict[int, dict[str, Expected]] = {}
        for (number, room, expected), finding in zip(unread, findings, strict=True):
            self._note(number, room, expected, finding)
            if finding.posted:
                self._posted.setdefault(room, set()).update(finding.posted)
            if not finding.is_complete and (number, room) not in self._unfillable:
                lacking.setdefault(number, {})[room] = expected
        return lacking

    def _note(self, number: int, room: str, expected: Expected, finding: Finding) -> None:
        """Remember where to look next time; of a room without our messages there is nothing yet."""
        if finding.anchor is not None or expected.span is not None:
            self._shares[number].anchors[room] = finding.anchor

    async def _look_at_suspects(self) -> None:
        """Look closer at rooms that seem to have lost messages, while nothing is in hand."""
        async with self._hands:
            # Of a partition that is folded again, not all is known yet.
            if not self._suspects or not self._is_past_what_was_posted():
                return
            due, self._suspects = self._suspects, set()
            self._broken -= due
            lacking: dict[int, dict[str, Expected]] = {}
            for room in sorted(due):
                self._poster.forget(room)
                await self._poster.declare([room])
                with _declared(room):
                    found = await self._look_now(room, self._shares)
                for number, expected in found.items():
                    lacking.setdefault(number, {})[room] = expected
            for number, rooms in lacking.items():
                await self._refill(number, rooms)

    async def _look_now(self, room: str, numbers: Iterable[int]) -> dict[int, Expected]:
        """Return which partitions seem to have lost messages of a room, and what it should hold.

        Raises:
            InputError: there is no such room.
        """
        expected = {
            number: one
            for number in numbers
            if (one := self._shares[number].identity.expected(room)).span is not None
        }
        findings = await self._poster.surveyor.look(room, expected)
        for number, finding in findings.items():
            self._note(number, room, expected[number], finding)
        return {
            number: expected[number]
            for number, finding in findings.items()
            if not finding.is_complete and (number, room) not in self._unfillable
        }

    async def _patrol_rooms(self) -> None:
        """Look at all rooms, again and again, and suspect those that seem to have lost messages."""
        while True:
            # Of a partition that is folded again, not all rooms are known yet.
            refilled = self._tally.refilled
            is_all = self._is_past_what_was_posted()
            rooms = {room for share in self._shares.values() for room in share.identity.rooms()}
            for room in sorted(rooms - self._broken):
                began = time.monotonic()
                if not await self._seems_whole(room):
                    self._suspects.add(room)
                self._looked_at += 1
                if not self._options.once:
                    took = time.monotonic() - began
                    await asyncio.sleep(took / _PATROL_SHARE - took)
            for room in sorted(self._broken):
                if not await is_broken(self._amqp, self._settings, room):
                    self._suspects.add(room)
            is_all = is_all and refilled == self._tally.refilled and not self._suspects
            if is_all:
                self._patrolled.set()
            await asyncio.sleep(_PATROL_PAUSE_S if is_all else _IDLE_S)

    def _is_past_what_was_posted(self) -> bool:
        return all(share.identity.is_past_what_was_posted for share in self._shares.values())

    async def _seems_whole(self, room: str) -> bool:
        """Return whether a room holds what it should, read while others post to it."""
        # What is expected is settled, so it is there; what comes meanwhile stands behind it.
        unseen = []
        try:
            for number, share in self._shares.items():
                if room not in share.anchors:
                    unseen.append(number)
                    continue
                anchor = share.anchors[room]
                if anchor is not None and not await self._poster.surveyor.stands(room, anchor):
                    return False
            await self._poster.declare([room])
            return not await self._look_now(room, unseen)
        except InputError:
            return False

    async def _refill(self, number: int, rooms: Mapping[str, Expected]) -> bool:
        """Fold a partition again from its beginning, to post what rooms lack; nothing is in hand.

        Returns:
            Whether it is; not where all is there, in another order, or Kafka has removed records.
        """
        share = self._shares[number]
        identity = share.identity
        lost_from = dict(identity.refilled) if not identity.is_past_what_was_posted else {}
        for room, expected in rooms.items():
            found = await self._lost_from(number, room, expected)
            if found is not None:
                lost_from[room] = found
        if not lost_from:
            return False
        names = ", ".join(sorted(lost_from))
        if share.first_offset > 0:
            self._unfillable |= {(number, room) for room in lost_from}
            log.warning(
                "%s lost messages of %s:%d, which cannot all be posted again: the records before "
                "offset %d are gone.",
                names,
                self._source.topic,
                number,
                share.first_offset,
            )
            return False
        # Should this be interrupted, whoever goes on knows from the offset what was posted.
        await self._commit()
        log.warning(
            "%s lost messages of %s:%d: reading it again from offset 0 to post what is missing.",
            names,
            self._source.topic,
            number,
        )
        identity.remove()
        share.identity = StoredIdentity(number, self._place.partition(number), self._origin)
        share.identity.refill(lost_from, identity)
        for room in lost_from:
            share.anchors.pop(room, None)
        self._source.start_at({number: 0})
        self._tally.refilled += len(lost_from)
        return True

    async def _lost_from(self, number: int, room: str, expected: Expected) -> int | None:
        """Return the offset from which on a room may lack messages, None where it lacks none.

        What it holds is not posted again, and what grew too old is not missing.
        """
        identity = self._shares[number].identity
        with _declared(room):
            held = await self._poster.surveyor.all_of(room, number)
        span = expected.span
        known = [
            offset
            for offset in held.offsets.values()
            if offset < expected.before and not identity.is_skipped(offset)
        ]
        if held.is_cut:
            lost_from = min(held.offsets.values()) if held.offsets else None
        else:
            lost_from = None if span is not None and len(known) == span.count else 0
        come_by_from = 0 if lost_from is not None else expected.before
        # What was noted before may be of a room that is no more.
        self._posted[room] = {
            message_id
            for message_id in self._posted.get(room, ())
            if not message_id.startswith(f"{FILLS}:{number}:")
        } | {one for one, offset in held.offsets.items() if offset >= come_by_from}
        return lost_from

    # -- partitions come and go

    async def _let_go(self) -> None:
        """Wait until nothing is in hand, close the state, and let others have the partitions."""
        async with self._hands:
            await self._drop_shares()
            with contextlib.suppress(ConnectionLost):  # then they are free already
                await self._poster.ownership.keep([])

    async def _drop_shares(self) -> None:
        if self._patrol is not None:
            self._patrol.cancel()
            await asyncio.wait({self._patrol})
            if not self._patrol.cancelled():
                self._patrol.exception()  # the connection's, which is told elsewhere
            self._patrol = None
        for share in self._shares.values():
            share.identity.close()
        self._shares.clear()
        self._posted.clear()
        self._suspects.clear()
        self._patrolled.clear()

    async def _take_over(self) -> None:
        """Own the partitions that the group has given us, and read on where they were left."""
        async with self._hands:
            epoch = self._source.epoch
            await self._drop_shares()
            numbers = self._source.assigned()
            if not await self._own(numbers, epoch):
                return
            slots = [(FILLS, number) for number in numbers]
            earliest = await _in_thread(self._cluster.earliest, slots)
            ends = await _in_thread(self._cluster.ends, slots)
            committed = await self._source.committed(numbers)
            since = await self._since(numbers)
            if epoch != self._source.epoch:
                return
            for number in numbers:
                offset, text = committed[number]
                identity = StoredIdentity(number, self._place.partition(number), self._origin)
                share = _Share(identity, offset, earliest[FILLS, number], ends[FILLS, number])
                self._shares[number] = share
                identity.largest_bytes = self._largest_bytes
                identity.skip(_skipped(text))
                self._place_in_log(share)
                if since is not None and identity.posted_until < since[number]:
                    identity.skip([(identity.posted_until, since[number])])
            self._poster.surveyor.begin(
                {n: s.identity.posted_until for n, s in self._shares.items()}
            )
            self._source.start_at({n: s.identity.next_offset for n, s in self._shares.items()})
            self._epoch = epoch
            self._patrol = asyncio.create_task(self._patrol_rooms())
        log.info("Partitions of %s: %s.", self._source.topic, _listed(numbers))

    async def _own(self, numbers: list[int], epoch: int) -> bool:
        """Return whether the partitions are ours to post, after waiting for their last owner."""
        began = time.monotonic()
        pause_s = _IDLE_S
        await self._poster.ownership.keep(numbers)  # not a share that was gone before we had it
        while True:
            held = await self._poster.ownership.take(numbers)
            if epoch != self._source.epoch or self._stopping.is_set():
                return False
            if not held:
                return True
            if pause_s == _IDLE_S:
                log.info("Partitions %s: waiting for the bridge that had them.", _listed(held))
            if self._options.once and time.monotonic() - began > _STALLED_S:
                raise ConnectionLost("RabbitMQ", "another bridge does not let go of its partitions")
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 1.5, 2.0)

    async def _since(self, numbers: list[int]) -> dict[int, int] | None:
        """Return from where on records are wanted that were not posted yet, None for all."""
        since_ms = self._options.since_ms
        if since_ms is None:
            return None
        slots = [(FILLS, number) for number in numbers]
        found = await _in_thread(lambda slots: self._cluster.at_time(slots, since_ms), slots)
        return {number: offset for (_, number), offset in found.items()}

    def _place_in_log(self, share: _Share) -> None:
        """Decide from where a partition is folded, and from where it is posted."""
        identity = share.identity
        folded = identity.next_offset
        furthest = max(folded, share.committed)
        for offset, is_missing in (
            (folded, folded < share.first_offset),
            (furthest, furthest > share.backlog_end),
        ):
            if is_missing:
                raise MissingRecords(
                    FILLS, identity.number, offset, share.first_offset, share.backlog_end
                )
        # Behind the commit, the state was lost or is another bridge's older one: fold silently.
        # Ahead of it, a crash came between settling and committing: all that was confirmed.
        identity.posted_until = furthest
        if folded < share.committed:
            log.info(
                "%s:%d: folding offsets %d to %d, which were posted before.",
                self._source.topic,
                identity.number,
                folded,
                share.committed - 1,
            )


@contextlib.contextmanager
def _declared(room: str) -> Iterator[None]:
    """Raise `ConnectionLost` where a room is gone that was declared: it was deleted since."""
    try:
        yield
    except InputError:
        raise ConnectionLost("The room", f"{room} was deleted") from None


async def _in_thread(ask: Callable[[_A], _R], argument: _A) -> _R:
    """Return what a blocking call to Kafka returns."""
    try:
        return await asyncio.to_thread(ask, argument)
    except KafkaException as error:
        raise ConnectionLost("Kafka", error.args[0].str()) from error


def _origin(cluster: Cluster) -> Origin:
    if len(cluster.topics(INPUT_TOPICS)) < len(INPUT_TOPICS):
        names = ", ".join(map(cluster.settings.topic, INPUT_TOPICS))
        raise NothingPublished(
            f"Not all of the topics {names} are at {cluster.bootstrap}: nothing was published "
            "yet. 'ledger publish' and 'ledger worker' create them."
        )
    return cluster.origin()


def _text(skipped: Skipped) -> str:
    return msgspec.json.encode(_Committed(skipped)).decode() if skipped else ""


def _skipped(text: str) -> Skipped:
    return msgspec.json.decode(text, type=_Committed).skipped if text else []


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers)) or "none (other bridges have them all)"
