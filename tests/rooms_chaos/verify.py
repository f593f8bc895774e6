"""Rooms as they were read, compared with what must be in them."""

from __future__ import annotations

import calendar
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from tests.reference import instant_of
from tests.rooms_chaos.expected import Wanted
from tests.rooms_chaos.rooms import Found

_MOST_NAMED: Final = 5
_PERSISTENT: Final = 2


@dataclass
class Verdict:
    """What was compared, and how many messages are not as they must be."""

    rooms: int = 0
    messages: int = 0
    duplicates: int = 0
    missing: int = 0
    strangers: int = 0
    disorder: int = 0
    wrong: int = 0
    differences: list[str] = field(default_factory=list)


def compare(
    wanted: Mapping[str, Sequence[Wanted]], found: Mapping[str, Sequence[Found]], exchange: str
) -> Verdict:
    """Return what comparing each room says.

    Args:
        wanted: room to messages, those of one partition in order.
        found: room to messages as they were read.
        exchange: with its prefix, through which they must have come.
    """
    verdict = Verdict(rooms=len(wanted), messages=sum(map(len, wanted.values())))
    for room in sorted(wanted.keys() | found.keys()):
        _compare_room(room, wanted.get(room, ()), found.get(room), exchange, verdict)
    return verdict


def _compare_room(
    room: str,
    wanted: Sequence[Wanted],
    found: Sequence[Found] | None,
    exchange: str,
    verdict: Verdict,
) -> None:
    if found is None or not wanted:
        verdict.differences.append(f"{room} {'is not there' if wanted else 'should not be there'}")
        found = found or ()
    by_id = {message.message_id: message for message in wanted}
    ids = [str(message.properties.message_id) for message in found]
    times = Counter(ids)
    twice = [each for each, count in times.items() if count > 1]
    missing = [each for each in by_id if each not in times]
    strangers = [each for each in times if each not in by_id]
    disorder = _out_of_order(wanted, ids)
    wrong = []
    for message in found:
        target = by_id.get(str(message.properties.message_id))
        if target is not None:
            wrong += [
                f"{target.message_id} ({what})" for what in _faults(room, target, message, exchange)
            ]
    verdict.duplicates += sum(times[each] - 1 for each in twice)
    verdict.missing += len(missing)
    verdict.strangers += len(strangers)
    verdict.disorder += len(disorder)
    verdict.wrong += len(wrong)
    for what, named in (
        ("are there more than once", twice),
        ("are missing", missing),
        ("belong nowhere or not here", strangers),
        ("come before what they must follow", disorder),
        ("say something else", wrong),
    ):
        if named:
            some = ", ".join(named[:_MOST_NAMED])
            verdict.differences.append(f"{room}: {len(named)} messages {what}: {some}")


def _out_of_order(wanted: Sequence[Wanted], ids: Sequence[str]) -> list[str]:
    """Return messages that have one before them, of their partition, that must follow them."""
    place = {message.message_id: (message.partition, n) for n, message in enumerate(wanted)}
    furthest: dict[int, int] = {}
    late = []
    for each in dict.fromkeys(ids):  # a message's first time is its place
        if each not in place:
            continue
        partition, number = place[each]
        if number < furthest.get(partition, -1):
            late.append(each)
        furthest[partition] = max(number, furthest.get(partition, -1))
    return late


def _faults(room: str, wanted: Wanted, found: Found, exchange: str) -> list[str]:
    """Return what is wrong with one message."""
    try:
        body = json.loads(found.body.decode())
    except ValueError:
        return ["no JSON in UTF-8"]
    text = body.pop("text", None)
    faults = [
        f"{name}: {body.get(name)!r} and not {wanted.body.get(name)!r}"
        for name in sorted(body.keys() | wanted.body.keys())
        if body.get(name) != wanted.body.get(name)
    ]
    if not isinstance(text, str) or not text.isprintable():
        faults.append("text is no line")
    elif not all(word in text for word in wanted.words):
        faults.append("text leaves something out")
    properties = found.properties
    held: dict[str, tuple[Any, Any]] = {
        "routing key": (found.routing_key, room),
        "exchange": (found.exchange, exchange),
        "delivery mode": (properties.delivery_mode, _PERSISTENT),
        "type property": (properties.type, wanted.body["type"]),
        "content type": (properties.content_type, "application/json"),
        "timestamp property": (properties.timestamp, _seconds(wanted.body["timestamp"])),
    }
    return faults + [
        f"{name}: {have!r} and not {want!r}" for name, (have, want) in held.items() if have != want
    ]


def _seconds(time: str) -> int:
    return calendar.timegm(instant_of(time)[0].timetuple())
