"""How the types of fields are read from JSON: one table for structuring, for writing, and for describing events."""

import types
from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from enum import Enum
from functools import cache
from typing import Any, NewType, Union, get_args, get_origin

import attrs

from pulsecart.errors import DefinitionError
from pulsecart.events.base import Event

__all__ = ["AsReceived", "UtcDatetime", "classes_in", "fields_of", "read_type"]

UtcDatetime = NewType("UtcDatetime", datetime)
"""The type of an event's `timestamp`."""

AsReceived = NewType("AsReceived", object)
"""The type of an untyped payload: an object that is published as it was received."""

_SCALARS = {str, bool, int, Decimal, float, datetime, UtcDatetime, Any, AsReceived}

# The two optional fields of every event. In the class, None means "not yet enriched". A body omits them: a null is as
# wrong there as in any other string.
_READ_AS = {"event_id": str, "timestamp": UtcDatetime}


def _read_type(type_: Any) -> tuple[str, Any]:
    """Return how a type is read (`scalar`, `enum`, `object`, `list`, `dict` or `optional`), and the type inside it."""
    if type_ in _SCALARS:
        return "scalar", type_
    if isinstance(type_, type) and issubclass(type_, Enum) and {type(m.value) for m in type_} <= {str, int}:
        return "enum", type_
    if isinstance(type_, type) and attrs.has(type_):
        return "object", type_
    origin, args = get_origin(type_) or type_, get_args(type_)
    if origin is list:
        return "list", args[0] if args else Any
    if origin is dict and (not args or args[0] is str):
        return "dict", args[1] if args else Any
    if origin in (Union, types.UnionType) and len(args) == 2 and type(None) in args:
        return "optional", args[0] if args[1] is type(None) else args[1]
    raise DefinitionError(
        f"the type {type_!r} has no strict reading from JSON; use str, bool, int, Decimal, float, datetime, "
        "an Enum of strings or integers, X | None, list[X], dict[str, X] or an attrs class"
    )


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
    elif kind in ("list", "dict", "optional"):
        _find_classes(inner, where, found)
