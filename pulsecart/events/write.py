"""Events into what the JSON encoder writes: every field of every attrs class, private ones included."""

import dataclasses
from collections.abc import Callable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from functools import cache
from math import isfinite
from typing import Any
from uuid import UUID

import attrs
import msgspec
from cattrs import Converter
from cattrs.fns import identity
from cattrs.gen import make_dict_unstructure_fn

from pulsecart.errors import DefinitionError, Fault
from pulsecart.events.base import Event
from pulsecart.events.faults import below
from pulsecart.events.fieldtypes import classes_in, fields_of, read_type
from pulsecart.events.lazy import JsonObject

__all__ = ["only_from_body", "pointer_of", "prepare_writing", "unstructure", "written"]

Path = tuple[str | int, ...]
"""The names and indices that lead to a value. A pointer is made of them only if there is a fault."""


def unstructure(event: Event) -> dict[str, Any]:
    """Return the fields of an event that was made from a body, by name.

    Raises `DefinitionError` if its class has put a value there that JSON cannot carry.
    """
    return _writer(type(event))(event)


def prepare_writing(cls: type[Event]) -> None:
    """Build what `unstructure` needs for a class.

    Raises `DefinitionError` if the default of a field is a value that JSON cannot carry.
    """
    for part, where in classes_in(cls).items():
        for attribute in attrs.fields(part):
            faults: list[Fault] = []
            if attribute.converter is None:
                written(attribute.default, faults, [])
            if faults:
                raise DefinitionError(f"{where}.{attribute.name}: its default {faults[0].message}")
    _writer(cls)


def pointer_of(path: Path) -> str:
    """Return the JSON pointer for a path."""
    return "".join(below("", name) for name in path)


def written(value: Any, faults: list[Fault], instances: list[tuple[Path, Any]], path: Path = ()) -> Any:
    """Return a value with all objects in it as dicts, and add what JSON cannot carry to `faults`.

    The attrs instances in it are added to `instances`.
    """
    if lost := _lost(value):
        faults.append(Fault(pointer_of(path), "out-of-range", lost))
    if isinstance(value, msgspec.Struct):
        value = msgspec.to_builtins(value, str_keys=True, builtin_types=(Decimal, datetime, time))
    if isinstance(value, (list, tuple, set, frozenset)):
        return [written(each, faults, instances, (*path, n)) for n, each in enumerate(value)]
    if attrs.has(type(value)):
        instances.append((path, value))
    members = _members(value)
    if members is None:
        return value
    fields: dict[str, Any] = {}
    for key, each in members.items():
        name = key if type(key) is str else next(iter(msgspec.to_builtins({key: None}, str_keys=True)))
        if name in fields:
            faults.append(Fault(pointer_of((*path, name)), "duplicate", "is the name of two keys in JSON"))
        fields[name] = written(each, faults, instances, (*path, name))
    return fields


def _lost(value: Any) -> str:
    """Return what the JSON encoder would lose of a value, or an empty string."""
    if (isinstance(value, float) and not isfinite(value)) or (isinstance(value, Decimal) and not value.is_finite()):
        return "is not a finite number; JSON has no form for it"
    if isinstance(value, (datetime, time)) and (value.utcoffset() or timedelta()) % timedelta(minutes=1):
        return "has an offset with seconds, which RFC 3339 has no form for; use astimezone(UTC)"
    return ""


def _members(value: Any) -> Mapping[Any, Any] | None:
    """Return the members of a value that becomes an object; None for those that the JSON encoder writes as they are."""
    # It would write attrs classes too, but without private fields, and with cached properties.
    if isinstance(value, (Enum, JsonObject)):
        return None
    if attrs.has(type(value)):
        # A field with init=False may not have been set.
        return {a.name: getattr(value, a.name) for a in attrs.fields(type(value)) if hasattr(value, a.name)}
    if dataclasses.is_dataclass(type(value)):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    return value if isinstance(value, Mapping) else None


def _make_writer(cls: type) -> Callable[[Event], dict[str, Any]]:
    # Values from a body are of the declared types. Code that is generated for these types is several times faster.
    return _converter.get_unstructure_hook(cls) if only_from_body(cls) else _written_by_class


_writer: Callable[[type], Callable[[Event], dict[str, Any]]] = cache(_make_writer)


def _written_by_class(event: Event) -> dict[str, Any]:
    faults: list[Fault] = []
    fields: dict[str, Any] = written(event, faults, [])
    if faults:
        raise DefinitionError(f"{type(event).__qualname__} made an event that JSON cannot carry; {faults[0]}")
    return fields


def _only_from_body(cls: type) -> bool:
    return not any(
        hasattr(part, "__attrs_post_init__")
        or hasattr(part, "__attrs_init__")
        or any(a.converter or not a.init or not _is_simple(a.default) for a in attrs.fields(part))
        for part in classes_in(cls)
    )


only_from_body: Callable[[type], bool] = cache(_only_from_body)
"""Return whether all values of an event of a class are from its body, or simple defaults, and none is computed."""


_FACTORY: Any = attrs.Factory  # a class, though typed as a function


def _is_simple(default: Any) -> bool:
    if isinstance(default, _FACTORY):
        return default.factory in (list, dict, tuple)
    simple = (str, int, float, Decimal, date, UUID, Enum, type(None))  # a datetime is a date
    return default is attrs.NOTHING or isinstance(default, simple) or (type(default) is tuple and not default)


def _is_plain(type_: Any) -> bool:
    kind, inner = read_type(type_)
    return kind in ("scalar", "enum", "literal") or (kind not in ("object", "tagged") and _is_plain(inner))


def _object_hook(cls: type, converter: Converter) -> Callable[[Any], Any]:
    fields_of(cls)  # resolves annotations that are strings
    return make_dict_unstructure_fn(cls, converter)


_converter = Converter(detailed_validation=False)
_converter.register_unstructure_hook_factory(attrs.has, _object_hook)
_converter.register_unstructure_hook_factory(_is_plain, lambda _type: identity)
