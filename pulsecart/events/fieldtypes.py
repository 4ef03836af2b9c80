"""How the types of fields are read from JSON: one table for structuring, for writing, and for describing events."""

import types
from collections.abc import Callable, Mapping
from datetime import date, datetime
from decimal import Decimal
from enum import Enum
from functools import cache
from typing import Any, Literal, NewType, Union, get_args, get_origin
from uuid import UUID

import attrs

from pulsecart.errors import DefinitionError
from pulsecart.events.base import Event

__all__ = ["AsReceived", "Tagged", "UtcDatetime", "classes_in", "fields_of", "read_type"]

UtcDatetime = NewType("UtcDatetime", datetime)
"""The type of an event's `timestamp`."""

AsReceived = NewType("AsReceived", object)
"""The type of an untyped payload: an object that is published as it was received."""

_SCALARS: set[Any] = {str, bool, int, Decimal, float, datetime, date, UUID, UtcDatetime, Any, AsReceived}

# The two optional fields of every event. In the class, None means "not yet enriched". A body omits them: a null is as
# wrong there as in any other string.
_READ_AS = {"event_id": str, "timestamp": UtcDatetime}


@attrs.frozen
class Tagged:
    """A union of attrs classes, and the `Literal` field whose value tells them apart."""

    tag: str
    classes: Mapping[Any, type]
    """The class for each value of the field."""


def _read_type(type_: Any) -> tuple[str, Any]:
    """Return how a type is read, and the type inside it.

    The kinds are `scalar`, `enum`, `literal`, `object`, `tagged`, `list`, `tuple`, `dict` and `optional`.
    """
    type_ = _without_names(type_)
    if type_ in _SCALARS:
        return "scalar", type_
    if isinstance(type_, type) and issubclass(type_, Enum) and {type(m.value) for m in type_} <= {str, int}:
        return "enum", type_
    if isinstance(type_, type) and attrs.has(type_):
        return "object", type_
    origin, args = get_origin(type_) or type_, get_args(type_)
    if origin is Literal and {type(value) for value in args} <= {str, int, bool, type(None)}:
        return "literal", type_
    if origin is list:
        return "list", args[0] if args else Any
    if origin is tuple and args[1:] == (...,):
        return "tuple", args[0]
    if origin is dict and (not args or args[0] is str):
        return "dict", args[1] if args else Any
    if origin in (Union, types.UnionType):
        return _read_union([arg for arg in args if arg is not type(None)], optional=type(None) in args)
    raise DefinitionError(f"the type {type_!r} {_NOT_READ}")


_NOT_READ = (
    "has no strict reading from JSON; use str, bool, int, Decimal, float, datetime, date, UUID, an Enum of strings or "
    "integers, a Literal, X | None, list[X], tuple[X, ...], dict[str, X], an attrs class or a union of attrs classes"
)


def _read_union(members: list[Any], *, optional: bool) -> tuple[str, Any]:
    if optional:
        return "optional", Union[tuple(members)]  # noqa: UP007 (its members are known only here)
    if all(isinstance(member, type) and attrs.has(member) for member in members):
        return "tagged", _tagged(members)
    raise DefinitionError(f"the type {' | '.join(map(repr, members))} {_NOT_READ}")


def _without_names(type_: Any) -> Any:
    """Return the type that a `NewType` names."""
    while isinstance(type_, NewType) and type_ not in _SCALARS:
        type_ = type_.__supertype__
    return type_


def _tagged(classes: list[type]) -> Tagged:
    """Find the first field that is a `Literal` of strings in each class, with other values in each."""
    for name in fields_of(classes[0]):
        types = [_without_names(fields_of(cls).get(name)) for cls in classes]
        pairs = [(tag, cls) for cls, type_ in zip(classes, types, strict=True) for tag in _tags(type_)]
        if all(map(_tags, types)) and len(dict(pairs)) == len(pairs):
            return Tagged(name, dict(pairs))
    names = ", ".join(cls.__qualname__ for cls in classes)
    raise DefinitionError(
        f"nothing tells {names} apart in JSON: give each a field of the same name with values of its own, such as "
        "kind: Literal['card'] in one and kind: Literal['invoice'] in the other"
    )


def _tags(type_: Any) -> tuple[str, ...]:
    values = get_args(type_) if get_origin(type_) is Literal else ()
    return values if all(type(value) is str for value in values) else ()


read_type: Callable[[Any], tuple[str, Any]] = cache(_read_type)


def _fields_of(cls: type) -> dict[str, Any]:
    """Return the types of the fields that JSON may have for an attrs class, by name."""
    # Annotations that are strings become types, and Annotated[X, …] becomes X.
    resolved = attrs.resolve_types(cls, include_extras=False)
    fields = {a.name: a.type or Any for a in attrs.fields(resolved) if a.init}
    if issubclass(cls, Event):
        fields |= _READ_AS
        if fields["payload"] is Any:
            fields["payload"] = AsReceived
    return fields


# Typed as a plain function: to mypy, a class of slotted instances is not hashable.
fields_of: Callable[[type], dict[str, Any]] = cache(_fields_of)


def _classes_in(cls: type) -> dict[type, str]:
    """Return the attrs classes that an attrs class is made of, itself first, each with the place it was found at.

    Raises `DefinitionError` if a field has a type that cannot be read strictly.
    """
    found: dict[type, str] = {}
    _find_classes(cls, f"{cls.__module__}.{cls.__qualname__}", found)
    return found


classes_in: Callable[[type], dict[type, str]] = cache(_classes_in)


def _find_classes(type_: Any, where: str, found: dict[type, str]) -> None:
    try:
        kind, inner = read_type(type_)
        fields = fields_of(inner) if kind == "object" and inner not in found else {}
    except Exception as error:  # evaluating an annotation that is a string can raise anything
        raise DefinitionError(f"{where}: {error}") from error
    if kind == "object":
        found.setdefault(inner, where)
        for name, field_type in fields.items():
            _find_classes(field_type, f"{where}.{name}", found)
    elif kind == "tagged":
        for cls in inner.classes.values():
            _find_classes(cls, where, found)
    elif kind not in ("scalar", "enum", "literal"):
        _find_classes(inner, where, found)
