"""The doors: what people and programs hand in is validated by pydantic before it is published.

The models are made from the event classes (`ledger.events`), so there is one definition of each
event; what passes here is what the stream accepts. JSON Schemas come from the same models.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec
from msgspec import UNSET
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, create_model

from ledger.codec import DECODERS, topic_of
from ledger.errors import InvalidRecord
from ledger.events import INPUT_TOPICS, TOPIC_OF_TYPE, TYPES_OF_TOPIC, AnyEvent, Event, event_type


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def _model(cls: type[Event]) -> type[BaseModel]:
    name = event_type(cls)
    fields: dict[str, Any] = {"type": (Literal[name], ...)}
    for field_name, hint in get_type_hints(cls, include_extras=True).items():
        if get_origin(hint) is not Annotated and msgspec.UnsetType in get_args(hint):
            # No default in the schema: an absent field is absent, and null is refused.
            fields[field_name] = (get_args(hint)[0], Field(default_factory=lambda: UNSET))
        else:
            fields[field_name] = (_bounded(hint), ...)
    return create_model(cls.__name__, __base__=_Model, __doc__=cls.__doc__, **fields)


def _bounded(hint: Any) -> Any:
    """Return the type with msgspec's bounds said in pydantic's words."""
    for extra in getattr(hint, "__metadata__", ()):
        if isinstance(extra, msgspec.Meta):
            return Annotated[get_args(hint)[0], Field(ge=extra.ge, le=extra.le)]
    return hint


@cache
def models() -> Mapping[str, type[BaseModel]]:
    """Return the pydantic model of each event type."""
    return MappingProxyType({event_type(cls): _model(cls) for cls in TOPIC_OF_TYPE})


def parse(line: bytes) -> tuple[str, AnyEvent]:
    """Return the topic of an event given as JSON, and the event.

    Raises:
        InvalidRecord: it is no valid event; `detail` names the field and what it should be.
    """
    try:
        parsed = json.loads(line, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise InvalidRecord("json", f"not JSON in UTF-8: {error}") from error
    if not isinstance(parsed, dict):
        raise InvalidRecord("form", "must be a JSON object")
    name = parsed.get("type")
    topic = topic_of(name) if isinstance(name, str) else None
    if topic is None:
        known = ", ".join(models())
        raise InvalidRecord("type", f"type: must be one of {known} (found {name!r:.80})")
    try:
        models()[str(name)].model_validate_json(line)
    except ValidationError as error:
        raise InvalidRecord("form", _first_sentence(error)) from error
    return topic, DECODERS[topic](line)


def _no_constant(constant: str) -> object:
    raise ValueError(f"{constant} is not JSON")


def _first_sentence(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"]) or "event"
    if first["type"] == "extra_forbidden":
        return f"{where}: no such field"
    if first["type"] == "missing":
        return f"{where}: is missing"
    message = first["msg"].removeprefix("Value error, ")
    return f"{where}: {message} (found {first['input']!r:.80})"


def json_schemas() -> dict[str, dict[str, Any]]:
    """Return the JSON Schema of each event type, and of each input topic as a whole."""
    schemas: dict[str, dict[str, Any]] = {}
    for name, model in models().items():
        schemas[name] = model.model_json_schema()
    for topic in INPUT_TOPICS:
        members = tuple(models()[event_type(cls)] for cls in TYPES_OF_TOPIC[topic])
        union: Any = members[0]
        for member in members[1:]:
            union = union | member
        adapter: TypeAdapter[Any] = TypeAdapter(Annotated[union, Field(discriminator="type")])
        schemas[topic] = adapter.json_schema()
    return schemas


def write_schemas(directory: Path) -> None:
    """Write every schema to `NAME.schema.json` in a directory."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, schema in json_schemas().items():
        text = json.dumps(schema, indent=2, sort_keys=True) + "\n"
        (directory / f"{name}.schema.json").write_text(text, encoding="utf-8")
