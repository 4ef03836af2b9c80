"""JSON Schema 2020-12 of event classes, from the types and validators that judge events.

Each schema accepts what `structure` accepts, as far as JSON Schema can say it. The rest is added to the descriptions:
lengths in bytes, how numbers and times are written, and validators that are functions, by their docstring.
"""

import inspect
import re
from collections.abc import Callable, Iterable
from datetime import date, datetime
from decimal import Decimal
from enum import EnumType
from functools import cache, partial
from math import isfinite
from typing import Any, cast, get_args
from uuid import UUID

import attrs
import msgspec

from pulsecart.errors import DefinitionError
from pulsecart.events.base import Event, at_most, non_empty
from pulsecart.events.codec import decode
from pulsecart.events.faults import below
from pulsecart.events.fieldtypes import AsReceived, UtcDatetime, fields_of, read_type
from pulsecart.events.lazy import decode_value
from pulsecart.events.structure import faults

__all__ = ["DIALECT", "Definitions", "body_schema", "check", "example", "json_line", "json_text"]

DIALECT = "https://json-schema.org/draft/2020-12/schema"

Schema = dict[str, Any]

_TIME = "With an offset; digits finer than a microsecond are cut off, and there is no second 60."

_SCALARS: dict[Any, tuple[Schema, str]] = {
    str: ({"type": "string"}, ""),
    bool: ({"type": "boolean"}, ""),
    int: ({"type": "integer"}, "Written without fraction and exponent."),
    Decimal: ({"type": "number"}, ""),
    float: ({"type": "number", "format": "double"}, ""),
    datetime: ({"type": "string", "format": "date-time", "maxLength": 64}, _TIME),
    UtcDatetime: ({"type": "string", "format": "date-time", "maxLength": 64}, f"{_TIME} Years 1 to 9999 in UTC."),
    date: ({"type": "string", "format": "date"}, ""),
    UUID: ({"type": "string", "format": "uuid"}, ""),
    Any: ({}, ""),
    AsReceived: ({"type": "object"}, ""),
}
"""The schema of a scalar, and what it cannot say."""

_BOUNDS = {">=": "minimum", ">": "exclusiveMinimum", "<=": "maximum", "<": "exclusiveMaximum"}
_NUMBERS = ("integer", "number")
_LENGTHS = {"string": "Length", "array": "Items", "object": "Properties"}

# What Python's regular expressions and those of JSON Schema (ECMA-262) read differently, or only Python has.
_PYTHON_ONLY = re.compile(r"\\[AZdDwWsSbB]|\(\?[^:=!<]|\(\?<[^=!]|[*+?}]\+")


def json_text(value: Any) -> bytes:
    """Write a document as JSON, numbers exact, indented."""
    return msgspec.json.format(_encoder.encode(value), indent=2)


def json_line(value: Any) -> str:
    """Write a document as JSON in one line, numbers exact."""
    return _encoder.encode(value).decode()


_encoder = msgspec.json.Encoder(decimal_format="number")


def check(cls: type) -> None:
    """Check that the schema of an event class can be made, and that the examples of its fields are valid.

    Validators do not run if no field has an example. Raises `DefinitionError`, naming class and field.
    """
    Definitions("#/$defs/").event(cls)
    _example(cls, only_stated=True)


def _body_schema(cls: Any) -> Schema:
    definitions = Definitions("#/$defs/")
    schema = {"$schema": DIALECT, **definitions.event(cls)}
    if shown := example(cls):
        schema["examples"] = [shown]
    return schema | ({"$defs": definitions.schemas} if definitions.schemas else {})


body_schema: Callable[[type], Schema] = cache(_body_schema)
"""Return the JSON Schema of a body for an event class: pure JSON values, numbers as `int` and `Decimal`.

Raises `DefinitionError`, naming class and field, if it cannot be made.
"""


class Definitions:
    """The schemas of classes in one document, which refer to each other by name.

    `ref` is where they are in the document. With `published` they describe the data of messages: every field is there,
    and further ones may come.
    """

    def __init__(self, ref: str, *, published: bool = False) -> None:
        self._ref = ref
        self._published = published
        self._names: dict[tuple[type, bool], str] = {}
        self.schemas: dict[str, Schema] = {}
        """The schemas by name, of all classes that `refer` was asked for, and those in them."""

    def refer(self, cls: type, *, event: bool = False) -> Schema:
        """Return a reference to the schema of a class, which is added to `schemas`.

        As an `event`, it has an `event_type`; as the class of a field it has none.
        """
        if (cls, event) not in self._names:
            name = cls.__name__
            if name in self.schemas:
                name = re.sub(r"[^A-Za-z0-9._-]", "_", f"{cls.__module__}.{cls.__qualname__}.{len(self.schemas)}")
            self._names[cls, event] = name
            self.schemas[name] = {}  # holds the name, for a class that contains itself
            self.schemas[name] = self.event(cls) if event else self._object(cls)
        return {"$ref": self._ref + self._names[cls, event]}

    def event(self, cls: type[Event]) -> Schema:
        """Return the schema of an event class, with its `event_type`."""
        schema = self._object(cls)
        schema["properties"] = {"event_type": {"const": cls.event_type}, **schema["properties"]}
        schema["required"] = ["event_type", *schema["required"]]
        if cls.payload_members:
            if fields_of(cls)["payload"] is not AsReceived:
                raise DefinitionError(f"{_name(cls)}.payload: it has a class; describe the fields there, not in @event")
            members = {name: _documented(each, f"{_name(cls)}.payload") for name, each in cls.payload_members.items()}
            schema["properties"]["payload"] |= {"properties": members, "additionalProperties": True}
        schema["x-topic"] = cls.topic
        return schema

    def _object(self, cls: type) -> Schema:
        fields = fields_of(cls)
        shown = [a for a in attrs.fields(cls) if self._published or a.name in fields]
        text = cls.__doc__ or ""
        schema: Schema = {
            "title": cls.__name__,
            **({"description": inspect.cleandoc(text)} if text else {}),
            "type": "object",
            "properties": {a.name: self._field(cls, a, fields.get(a.name, a.type or Any)) for a in shown},
            "required": [a.name for a in shown if self._published or a.default is attrs.NOTHING],
        }
        return schema if self._published else schema | {"additionalProperties": False}

    def _field(self, cls: type, attribute: "attrs.Attribute[Any]", type_: Any) -> Schema:
        where = f"{_name(cls)}.{attribute.name}"
        documented = _documented(attribute.metadata, where)
        if attribute.converter and self._published:
            return documented  # a converter returns any type
        try:
            schema, notes = self._type(type_)
            if attribute.validator and not attribute.converter:  # it sees what the converter returns
                notes += _restrict(schema, attribute.validator)
            default = attribute.default
            if not (default in (attrs.NOTHING, None) or isinstance(default, _FACTORY) or self._published):
                schema["default"] = _json(default)
        except (TypeError, ValueError) as error:
            raise DefinitionError(f"{where}: its JSON Schema cannot be made: {error}") from error
        description = " ".join([*filter(None, [documented.pop("description", ""), *notes])])
        if "$ref" in schema:  # nothing may stand next to a reference in older dialects
            schema = {"allOf": [schema]}
        return ({"description": description} if description else {}) | schema | documented

    def _type(self, type_: Any) -> tuple[Schema, list[str]]:
        """Return the schema of a type, and what it cannot say."""
        kind, inner = read_type(type_)
        match kind:
            case "scalar":
                schema, note = _SCALARS[inner]
                return dict(schema), [note]
            case "enum":
                return {"enum": [member.value for member in inner]}, []
            case "literal":
                return {"enum": list(get_args(inner))}, []
            case "object":
                return self.refer(inner), []
            case "tagged":
                return self._union(inner.tag, inner.classes.values()), []
        schema, notes = self._type(inner)
        match kind:
            case "optional":
                return {"anyOf": [schema, {"type": "null"}]}, notes
            case "dict":
                return {"type": "object", "additionalProperties": schema}, notes
            case _:
                return {"type": "array", "items": schema}, notes

    def _union(self, tag: str, classes: Iterable[type]) -> Schema:
        # The field may have a default in its class; in a union it is required.
        return {"oneOf": [{"allOf": [self.refer(cls)], "required": [tag]} for cls in dict.fromkeys(classes)]}


_FACTORY: Any = attrs.Factory  # a class, though typed as a function


def _documented(metadata: Any, where: str) -> Schema:
    """Return what `described` says of a field."""
    schema: Schema = {}
    if text := metadata.get("description"):
        if not isinstance(text, str):
            raise DefinitionError(f"{where}: its description must be a string")
        schema["description"] = text
    if "example" in metadata:
        try:
            schema["examples"] = [_json(metadata["example"])]
        except (TypeError, ValueError) as error:
            raise DefinitionError(f"{where}: its example has no form in JSON: {error}") from error
    return schema


def _json(value: Any) -> Any:
    """Return the JSON value that a Python value is written as."""
    return decode_value(_encoder.encode(value))


def _restrict(schema: Schema, validator: Any) -> list[str]:
    """Add what a validator demands to the schema of a type, and return what JSON Schema cannot say."""
    if isinstance(validator, partial) and validator.func is at_most:
        (limit,) = validator.args
        _bound(schema, "maxLength", limit)  # a character has at least one byte
        return [f"At most {limit:,} bytes of UTF-8."]
    if validator is non_empty:
        _bound(schema, "minLength", 1)
        return []
    if not attrs.has(type(validator)):
        text = inspect.getdoc(getattr(validator, "func", validator)) or ""  # func: of a partial
        return [text.partition("\n\n")[0]] if text else []
    return _restrict_as_attrs(schema, validator)


def _restrict_as_attrs(schema: Schema, validator: Any) -> list[str]:
    # attrs' own validators are attrs classes. A null has no length and cannot be compared, so `some` has no null.
    parts = attrs.asdict(validator, recurse=False)
    some = schema["anyOf"][0] if "anyOf" in schema else schema
    kind = some.get("type", "")
    match parts:
        case {"_validators": tuple() | list() as all_of}:
            return [note for each in all_of for note in _restrict(schema, each)]
        case {"validator": inner} if len(parts) == 1:  # optional()
            return _restrict(some, inner)
        case {"bound": int() | float() | Decimal() as bound, "compare_op": op} if kind in _NUMBERS and isfinite(bound):
            _bound(schema, _BOUNDS[op], bound)
        case {"min_length": length} if kind in _LENGTHS:
            _bound(schema, f"min{_LENGTHS[kind]}", length)
        case {"max_length": length} if kind in _LENGTHS:
            _bound(schema, f"max{_LENGTHS[kind]}", length)
        case {"pattern": re.Pattern() as pattern, "match_func": match_func} if kind == "string" and _is_portable(
            pattern
        ):
            anchored = {"fullmatch": "^(?:{})$", "match": "^(?:{})"}.get(match_func.__name__, "{}")
            _bound(schema, "allOf", [*schema.get("allOf", ()), {"pattern": anchored.format(pattern.pattern)}])
        case {"options": tuple() | list() | set() | frozenset() | EnumType() as options} if "format" not in some:
            _bound(schema, "enum", sorted(map(_json, options), key=_encoder.encode), keep_null=True)
        case {"member_validator": member, "iterable_validator": whole} if kind == "array":
            return [*(_restrict(schema, whole) if whole else ()), *_restrict(some["items"], member)]
        case {"type": _} if len(parts) == 1:  # instance_of(), which the type says
            return []
        case _:
            return [f"Must pass {validator!r}."]
    return []


def _bound(schema: Schema, keyword: str, bound: Any, *, keep_null: bool = False) -> None:
    """Set a keyword; of two bounds the stricter one counts."""
    if "anyOf" in schema and not keep_null:
        schema |= schema.pop("anyOf")[0]
    match keyword[:3]:
        case "min" | "max":
            stricter = max if keyword[:3] == "min" else min
            schema[keyword] = stricter(schema.get(keyword, bound), bound)
        case _:
            schema[keyword] = bound


def _is_portable(pattern: "re.Pattern[str]") -> bool:
    return not pattern.flags & ~(re.UNICODE | re.ASCII) and not _PYTHON_ONLY.search(pattern.pattern)


# Examples.

_SAMPLES: dict[Any, Any] = {
    str: "text",
    bool: True,
    int: 1,
    Decimal: 1,
    float: 1,
    datetime: "2026-01-31T12:00:00Z",
    date: "2026-01-31",
    UUID: "0e3f4c9a-5b1d-4f6e-8a7b-9c0d1e2f3a4b",
    Any: "text",
}


_OF_EVERY_EVENT = {below("", attribute.name) for attribute in attrs.fields(Event)}


def _example(cls: Any, *, only_stated: bool = False) -> dict[str, Any] | None:
    examples = _Examples()
    try:
        document = {"event_type": cls.event_type, **examples.of_event(cls)}
        if only_stated and not examples.stated.keys() - _OF_EVERY_EVENT:
            return None
        fields = decode(_encoder.encode(document))
        del fields["event_type"]
        found = faults(fields, cls)
    except Exception:  # noqa: BLE001 (of the class's own code, which may raise anything for a value made up here)
        return None
    for fault in found:
        for pointer, where in examples.stated.items():
            if f"{fault.pointer}/".startswith(f"{pointer}/"):
                raise DefinitionError(f"{where}: its example is not valid: {fault.message}")
    return None if found else cast("dict[str, Any]", _json(document))


example: Callable[[type], dict[str, Any] | None] = cache(_example)
"""Return a body for an event class: the examples of its fields, and simple values for required fields without one.

None if that is no valid event. Raises `DefinitionError` if the example of a field is the reason.
"""


class _Examples:
    def __init__(self) -> None:
        self.stated: dict[str, str] = {}
        """By pointer, the fields whose example is their own."""

    def of_event(self, cls: type[Event]) -> dict[str, Any]:
        document = self._of_object(cls, "", ())
        members = {name: each["example"] for name, each in cls.payload_members.items() if "example" in each}
        return document | ({"payload": members} if members else {})

    def _of_object(self, cls: type, pointer: str, within: tuple[type, ...]) -> dict[str, Any]:
        document = {}
        for name, type_ in fields_of(cls).items():
            attribute, place = attrs.fields_dict(cls)[name], below(pointer, name)
            if "example" in attribute.metadata:
                self.stated[place] = f"{_name(cls)}.{name}"
                document[name] = attribute.metadata["example"]
            elif attribute.default is attrs.NOTHING:
                document[name] = self._of_type(type_, place, (*within, cls))
        return document

    def _of_type(self, type_: Any, pointer: str, within: tuple[type, ...]) -> Any:
        kind, inner = read_type(type_)
        match kind:
            case "scalar":
                return _SAMPLES.get(inner, {})
            case "enum":
                return next(iter(inner)).value
            case "literal":
                return get_args(inner)[0]
            case "object":
                return self._of_object(inner, pointer, within)
            case "tagged":
                # A class that it is within would not end.
                tag, cls = min(inner.classes.items(), key=lambda item: item[1] in within)
                return {**self._of_object(cls, pointer, within), inner.tag: tag}
            case "list" | "tuple":
                endless = read_type(inner)[1] in within
                return [] if endless else [self._of_type(inner, below(pointer, 0), within)]
            case _:
                return {} if kind == "dict" else None


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
