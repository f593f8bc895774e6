"""The stream's decoder: a record's bytes become a checked event in about two microseconds.

msgspec checks the shape; the texts are joined and matched by one regular expression a type. Only
where that does not match is each field looked at on its own, to accept the rare and name the bad.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import reduce
from operator import attrgetter, or_
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec
from msgspec import UNSET

from ledger.errors import InvalidRecord
from ledger.events import (
    INPUT_TOPICS,
    TOPIC_OF_TYPE,
    TYPES_OF_TOPIC,
    AnyEvent,
    Event,
    Form,
    OrderAmended,
    OrderPlaced,
    contradiction,
    event_type,
)

_SEPARATOR = "\n"
# These need a look at two fields together.
_CROSS_CHECKED: frozenset[type[Event]] = frozenset({OrderPlaced, OrderAmended})


def field_forms(cls: type[Event]) -> dict[str, tuple[Form, bool]]:
    """Return, for each text field of an event class, its form and whether it may be absent."""
    forms: dict[str, tuple[Form, bool]] = {}
    for name, hint in get_type_hints(cls, include_extras=True).items():
        optional = get_origin(hint) is not Annotated and msgspec.UnsetType in get_args(hint)
        annotated = get_args(hint)[0] if optional else hint
        for extra in get_args(annotated)[1:]:
            if isinstance(extra, Form):
                forms[name] = (extra, optional)
    return forms


def refuse_repeated_names(value: bytes) -> dict[str, Any]:
    """Return a JSON object's fields.

    Raises:
        InvalidRecord: a name stands in it twice; which value counts would be up to the reader.
        ValueError: it is not JSON.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields = dict(pairs)
        if len(fields) < len(pairs):
            raise InvalidRecord("form", "a field is given twice")
        return fields

    fields: dict[str, Any] = json.loads(value, object_pairs_hook=once)
    return fields


def _choices(cls: type[Event]) -> list[str]:
    hints = get_type_hints(cls)
    return [n for n, hint in hints.items() if get_origin(hint) is Literal and n != "version"]


_CHOICES = {cls: _choices(cls) for cls in TOPIC_OF_TYPE}


class _Checker:
    """Checks the texts of one event class."""

    def __init__(self, cls: type[Event]) -> None:
        self._forms = field_forms(cls)
        required = {name: form for name, (form, optional) in self._forms.items() if not optional}
        self._texts: Callable[[Any], tuple[str, ...]] = attrgetter(*required)
        # No sure pattern matches the separator, so a text that holds one makes the match fail.
        self._sure = re.compile(
            _SEPARATOR.join(f"(?:{form.sure or form.pattern})" for form in required.values())
        ).fullmatch
        self._optional = [
            (name, re.compile(form.sure or form.pattern).fullmatch)
            for name, (form, optional) in self._forms.items()
            if optional
        ]
        self._crossed = cls in _CROSS_CHECKED
        # Two quotes around each name and each text, those of `type` included.
        texts = len(required) + 1
        numbers = len(cls.__struct_fields__) - len(self._forms) - len(_CHOICES[cls])
        self._quotes = 2 * (2 * (texts + len(_CHOICES[cls])) + numbers)

    def __call__(self, event: Event, value: bytes) -> None:
        if self._sure(_SEPARATOR.join(self._texts(event))) is None:
            self._one_by_one(event)
        quotes = self._quotes
        for name, sure in self._optional:
            text = getattr(event, name)
            if text is not UNSET:
                quotes += 4
                if sure(text) is None:
                    self._one_by_one(event)
        if value.count(b'"') != quotes:
            # There are escaped quotes, or a name is given twice and readers may differ.
            refuse_repeated_names(value)
        if self._crossed:
            problem = contradiction(event)
            if problem is not None:
                raise InvalidRecord("form", problem)

    def _one_by_one(self, event: Event) -> None:
        for name, (form, _) in self._forms.items():
            text = getattr(event, name)
            if text is not UNSET:
                try:
                    form.verify(text)
                except ValueError as error:
                    raise InvalidRecord("form", f"{name}: {error}") from error


class _Typed(msgspec.Struct):
    type: str


_TYPE = msgspec.json.Decoder(_Typed)
_CHECKERS: dict[type[Event], _Checker] = {cls: _Checker(cls) for cls in TOPIC_OF_TYPE}


_TOPIC_OF_NAME = {event_type(cls): topic for cls, topic in TOPIC_OF_TYPE.items()}


def _decoder(topic: str) -> Callable[[bytes | None], AnyEvent]:
    decoder: msgspec.json.Decoder[AnyEvent] = msgspec.json.Decoder(
        reduce(or_, TYPES_OF_TOPIC[topic])
    )
    read = decoder.decode

    def decode(value: bytes | None) -> AnyEvent:
        if value is None:
            raise InvalidRecord("json", "the record has no value")
        try:
            event = read(value)
        except msgspec.ValidationError as error:
            raise _why(topic, value, error) from error
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise InvalidRecord("json", f"not JSON in UTF-8: {error}") from error
        _CHECKERS[type(event)](event, value)
        return event

    return decode


def _why(topic: str, value: bytes, error: msgspec.ValidationError) -> InvalidRecord:
    """Return the verdict on a record that is JSON but no event of `topic`."""
    try:
        found = _TYPE.decode(value).type
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return InvalidRecord("form", _sentence(error))
    right = topic_of(found)
    if right is None:
        return InvalidRecord("type", f"'{found[:64]}' is no type of event")
    if right != topic:
        return InvalidRecord("topic", f"'{found}' events belong to the topic '{right}'")
    return InvalidRecord("form", _sentence(error))


def _sentence(error: msgspec.ValidationError) -> str:
    """Return msgspec's message with the field first, as all our messages have it."""
    message, _, path = str(error).partition(" - at `$.")
    return f"{path.rstrip('`')}: {message}" if path else message


DECODERS: dict[str, Callable[[bytes | None], AnyEvent]] = {t: _decoder(t) for t in INPUT_TOPICS}
"""For each topic: bytes of a record's value to a checked event, or `InvalidRecord`."""


def topic_of(event_type: str) -> str | None:
    """Return the topic of the events of a `type`, or None where there is no such type."""
    return _TOPIC_OF_NAME.get(event_type)


encode: Callable[[Event], bytes] = msgspec.json.Encoder().encode
"""An event as the JSON that the topics hold."""
