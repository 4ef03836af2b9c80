"""Decoded JSON into event classes, strictly and with every fault at once; and back.

cattrs structures each event, with hooks that take away its coercions, and stops at the first fault.
Only then is the value walked a second time, to explain all that is wrong with it.
"""

import types
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from functools import cache
from math import isinf
from re import ASCII
from re import compile as regex
from typing import Any, NewType, TypeVar, Union, cast, get_args, get_origin

import attrs
from attrs import evolve
from cattrs import Converter
from cattrs.errors import ForbiddenExtraKeysError
from cattrs.fns import identity
from cattrs.gen import make_dict_structure_fn, make_dict_unstructure_fn, override

from pulsecart.errors import DefinitionError, Fault, InvalidEvent
from pulsecart.events.base import Event, FieldError, describe, id_of
from pulsecart.events.faults import MAX_FAULTS, below, nearest
from pulsecart.events.lazy import JsonArray, JsonObject

__all__ = ["faults", "prepare", "structure", "unstructure"]

EventT = TypeVar("EventT", bound=Event)
Hook = Callable[[Any, Any], Any]


def structure(fields: dict[str, Any], cls: type[EventT]) -> EventT:
    """Make an event of its decoded fields (all but `event_type`).

    Raises `InvalidEvent` with every fault, up to `MAX_FAULTS`.
    """
    try:
        return cast(EventT, _hook(cls)(fields, cls))
    except (ValueError, TypeError, KeyError, ForbiddenExtraKeysError) as error:
        found = faults(fields, cls)
        if not found:
            # No field is at fault by itself: the class's own __attrs_post_init__ or converter refused.
            if not isinstance(error, (ValueError, TypeError)):
                raise
            found = [_refusal(error)]
    detail = f"The body is not a valid {cls.event_type!r} event."
    raise InvalidEvent(detail, found, event_type=cls.event_type, event_id=id_of(fields))


def faults(fields: dict[str, Any], cls: type[Event], *, unknown: bool = True) -> list[Fault]:
    """Return what is wrong with an event's decoded fields, up to `MAX_FAULTS`.

    Without `unknown`, a field that the class does not have is no fault.
    """
    found: list[Fault] = []
    _explain_object(fields, cls, found, unknown=unknown)
    return found[:MAX_FAULTS]


def prepare(cls: type[Event]) -> None:
    """Build what `structure` needs for a class, so that start, not the first event, pays and fails.

    Raises `DefinitionError` where the type of a field cannot be read strictly.
    """
    name = f"{cls.__module__}.{cls.__qualname__}"
    _require_readable(cls, name, set())
    payload = attrs.fields_dict(cls)["payload"]
    if payload != attrs.fields_dict(Event)["payload"] and _inner(payload.type or Any)[0] not in ("object", "dict"):
        raise DefinitionError(f"{name}.payload: a payload is an object: type it with an attrs class or dict[str, X]")
    try:
        _hook(cls)
    except RecursionError:
        raise DefinitionError(f"{name}: a class is a part of itself; make that X | None, or a list") from None
    _converter.get_unstructure_hook(cls)


# Scalars. JSON decodes to these types exactly (numbers to int and Decimal), and no value is turned
# into another kind: "3" is no number, null is no string, true is no 1.


def _string(value: Any, _type: Any = None) -> str:
    if type(value) is not str:
        raise FieldError(f"expected a string, got {describe(value)}", "wrong-type")
    return value


def _boolean(value: Any, _type: Any = None) -> bool:
    if type(value) is not bool:
        raise FieldError(f"expected true or false, got {describe(value)}", "wrong-type")
    return value


def _integer(value: Any, _type: Any = None) -> int:
    if type(value) is not int:
        got = "a number with a fraction or an exponent" if type(value) is Decimal else describe(value)
        raise FieldError(f"expected an integer, got {got}", "wrong-type")
    return value


def _number(value: Any, _type: Any = None) -> Decimal:
    if type(value) is Decimal:
        return value
    if type(value) is int:
        return Decimal(value)
    raise FieldError(f"expected a number, got {describe(value)}", "wrong-type")


def _binary64(value: Any, _type: Any = None) -> float:
    number = float(_number(value))
    if isinf(number):
        raise FieldError("is too large for a 64-bit floating-point number", "out-of-range")
    return number


# RFC 3339, section 5.6. datetime.fromisoformat() reads more than that, so the form is checked first.
_RFC3339 = regex(r"\d{4}-\d\d-\d\d[Tt ]([01]\d|2[0-3]):\d\d:\d\d(\.\d+)?([Zz]|[+-]([01]\d|2[0-3]):[0-5]\d)", ASCII)
_LONGEST_TIMESTAMP = 64


def _timestamp(value: Any, _type: Any = None) -> datetime:
    """Read a time of RFC 3339 with an offset. Digits finer than a microsecond are cut off."""
    text = _string(value)
    if len(text) > _LONGEST_TIMESTAMP or not _RFC3339.fullmatch(text):
        raise FieldError("expected a time of RFC 3339 with an offset, such as 2026-01-31T12:00:00Z")
    try:
        return datetime.fromisoformat(text.upper())
    except ValueError as error:
        leap = ", and a leap second cannot be represented: send second 59" if text[17:19] == "60" else ""
        raise FieldError(f"is not a time: {error}{leap}", "out-of-range") from None


def _utc_timestamp(value: Any, _type: Any = None) -> datetime:
    try:
        return _timestamp(value).astimezone(UTC)
    except OverflowError:
        raise FieldError("is outside the years 1 to 9999 in UTC", "out-of-range") from None


def _anything(value: Any, _type: Any = None) -> Any:
    return value.value if type(value) in (JsonObject, JsonArray) else value


def _as_received(value: Any, _type: Any = None) -> Any:
    return value


_Utc = NewType("_Utc", datetime)
_Payload = NewType("_Payload", object)

_SCALARS: dict[Any, Hook] = {
    str: _string,
    bool: _boolean,
    int: _integer,
    Decimal: _number,
    float: _binary64,
    datetime: _timestamp,
    _Utc: _utc_timestamp,
    Any: _anything,
    _Payload: _as_received,
}

# The two optional fields of every event. Their classes say `None` for "not yet enriched"; a body
# leaves them out, and a null in a body is as wrong there as in any string.
_READ_AS = {"event_id": str, "timestamp": _Utc}


# Types made of types.


def _read_type(type_: Any) -> tuple[str, Any]:
    """Say how a type is read from JSON, and the type inside it, where there is one."""
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


_inner: Callable[[Any], tuple[str, Any]] = cache(_read_type)


def _resolved(cls: type) -> type:
    """Return the class, with annotations that are strings made types, and Annotated[X, …] made X."""
    return attrs.resolve_types(cls, include_extras=False)


@cache
def _fields(cls: type) -> dict[str, Any]:
    """Return the types of the fields that a body may have for an attrs class, by name."""
    fields = {a.name: a.type or Any for a in attrs.fields(_resolved(cls)) if a.init}
    if issubclass(cls, Event):
        fields |= _READ_AS
        if fields["payload"] is Any:
            fields["payload"] = _Payload
    return fields


def _require_readable(type_: Any, where: str, seen: set[type]) -> None:
    try:
        kind, inner = _inner(type_)
        fields = _fields(inner) if kind == "object" and inner not in seen else {}
    except Exception as error:  # an annotation that is a string can raise whatever Python can
        raise DefinitionError(f"{where}: {error}") from error
    if kind == "object":
        seen.add(inner)
        for name, field_type in fields.items():
            _require_readable(field_type, f"{where}.{name}", seen)
    elif kind in ("list", "dict", "optional"):
        _require_readable(inner, where, seen)


def _make_hook(type_: Any) -> Hook:
    kind, inner = _inner(type_)
    return _HOOKS[kind](inner)


# The function that structures a value of a type. Containers ask for that of their items only when they run: a type
# may contain itself.
_hook: Callable[[Any], Hook] = cache(_make_hook)


def _enum_hook(cls: type[Enum]) -> Hook:
    # Keyed by kind too: to Python 1, 1.0 and True are the same key.
    members = {(type(member.value), member.value): member for member in cls}
    allowed = ", ".join(repr(member.value) for member in cls)

    def hook(value: Any, _type: Any) -> Enum:
        if type(value) not in (str, int) or (type(value), value) not in members:
            raise FieldError(f"expected one of {allowed}")
        return members[type(value), value]

    return hook


def _list_hook(item: Any) -> Hook:
    def hook(value: Any, _type: Any) -> list[Any]:
        structure_item = _hook(item)
        return [structure_item(element, item) for element in _array(value)]

    return hook


def _dict_hook(item: Any) -> Hook:
    def hook(value: Any, _type: Any) -> dict[str, Any]:
        structure_item = _hook(item)
        return {key: structure_item(element, item) for key, element in _object(value).items()}

    return hook


def _optional_hook(some: Any) -> Hook:
    def hook(value: Any, _type: Any) -> Any:
        return None if value is None else _hook(some)(value, some)

    return hook


def _object_hook(cls: type) -> Hook:
    overrides: Any = {name: override(struct_hook=_hook(type_)) for name, type_ in _fields(cls).items()}
    generated: Hook = make_dict_structure_fn(
        cls, _converter, _cattrs_forbid_extra_keys=True, _cattrs_detailed_validation=False, **overrides
    )

    def hook(value: Any, _type: Any) -> Any:
        return generated(_object(value), cls)

    return hook


def _object(value: Any) -> dict[str, Any]:
    value = value.value if type(value) is JsonObject else value
    if type(value) is not dict:
        raise FieldError(f"expected an object, got {describe(value)}", "wrong-type")
    return value


def _array(value: Any) -> list[Any]:
    value = value.value if type(value) is JsonArray else value
    if type(value) is not list:
        raise FieldError(f"expected an array, got {describe(value)}", "wrong-type")
    return value


_HOOKS: dict[str, Callable[[Any], Hook]] = {
    "scalar": _SCALARS.__getitem__,
    "enum": _enum_hook,
    "object": _object_hook,
    "list": _list_hook,
    "dict": _dict_hook,
    "optional": _optional_hook,
}


# The way out. Only attrs classes need to be taken apart: the JSON encoder reads all other types as they are, and
# would read attrs classes too, but by their slots: without private fields, and with cached properties.


def unstructure(event: Event) -> dict[str, Any]:
    """Return the fields of an event by name, with attrs classes inside as dicts. All else is left as it is."""
    fields: dict[str, Any] = _converter.unstructure(event)
    return fields


def _is_plain(type_: Any) -> bool:
    kind, inner = _inner(type_)
    return kind in ("scalar", "enum") or (kind != "object" and _is_plain(inner))


def _object_unstructure_hook(cls: type, converter: Converter) -> Callable[[Any], Any]:
    return make_dict_unstructure_fn(_resolved(cls), converter)


_converter = Converter(detailed_validation=False)
_converter.register_unstructure_hook_factory(attrs.has, _object_unstructure_hook)
_converter.register_unstructure_hook_factory(_is_plain, lambda _type: identity)


# The second walk. It finds a fault exactly where the first one stops, and goes on.


def _explain(value: Any, type_: Any, found: list[Fault]) -> Any:
    """Add what is wrong with a value to `found`. Where nothing is, return it structured."""
    kind, inner = _inner(type_)
    try:
        if kind == "object":
            return _explain_object(_object(value), inner, found)
        if kind == "list":
            return [_explain_member(n, each, inner, found) for n, each in enumerate(_array(value))]
        if kind == "dict":
            return {name: _explain_member(name, each, inner, found) for name, each in _object(value).items()}
        if kind == "optional":
            return None if value is None else _explain(value, inner, found)
        return _hook(type_)(value, type_)
    except FieldError as error:
        found.append(_refusal(error))


def _explain_member(name: str | int, value: Any, type_: Any, found: list[Fault]) -> Any:
    count = len(found)
    if count >= MAX_FAULTS:
        return None
    member = _explain(value, type_, found)
    # A pointer is made only where there is a fault, from the inside out.
    found[count:] = [evolve(fault, pointer=below("", name) + fault.pointer) for fault in found[count:]]
    return member


def _explain_object(value: dict[str, Any], cls: type, found: list[Fault], *, unknown: bool = True) -> Any:
    before = len(found)
    # As much of an instance as the value allows, for validators that look at their neighbours.
    instance: Any = object.__new__(cls)
    fields = _fields(cls)
    for attribute in attrs.fields(cls):
        name, count = attribute.name, len(found)
        if name in value and name in fields:
            member = _explain_member(name, value[name], fields[name], found)
        elif attribute.default is not attrs.NOTHING:
            member = _default(attribute, instance, whole=count == before)
        else:
            member = attrs.NOTHING
            if attribute.init:
                found.append(Fault(below("", name), "missing", "is required, but missing"))
        if len(found) == count and member is not attrs.NOTHING:
            _set(instance, attribute, member, found)
    _validate(value, instance, found, whole=len(found) == before)
    for name in value if unknown else ():
        if name not in fields and len(found) < MAX_FAULTS:
            known = [*fields, "event_type"] if issubclass(cls, Event) else [*fields]
            hint = nearest(name, known) or f"; the fields are {', '.join(known)}"
            found.append(Fault(below("", name), "unknown", f"is no field here{hint}"))
    return instance


_FACTORY: Any = attrs.Factory  # a class, though typed as a function


def _default(attribute: "attrs.Attribute[Any]", instance: Any, *, whole: bool) -> Any:
    default: Any = attribute.default
    if not isinstance(default, _FACTORY):
        return default
    if not default.takes_self:
        return default.factory()
    # It may look at a neighbour, which has to be there.
    return default.factory(instance) if whole else attrs.NOTHING


def _set(instance: Any, attribute: "attrs.Attribute[Any]", value: Any, found: list[Fault]) -> None:
    converter: Any = attribute.converter
    with_more: Any = attrs.Converter  # a generic class, whose attributes the stubs do not show
    try:
        if isinstance(converter, with_more):
            given = [instance] * converter.takes_self + [attribute] * converter.takes_field
            value = converter.converter(value, *given)
        elif converter is not None:
            value = converter(value)
    except (ValueError, TypeError) as error:
        found.append(_refusal(error, below("", attribute.name)))
    else:
        object.__setattr__(instance, attribute.name, value)


def _validate(value: dict[str, Any], instance: Any, found: list[Fault], *, whole: bool) -> None:
    for attribute in attrs.fields(type(instance)):
        name = attribute.name
        if attribute.validator is None or name not in value or not hasattr(instance, name):
            continue
        try:
            attribute.validator(instance, attribute, getattr(instance, name))
        except (ValueError, TypeError) as error:
            found.append(_refusal(error, below("", name)))
        except AttributeError:
            # It looks at a neighbour that is itself at fault, and can judge once that is mended.
            if whole:
                raise


def _refusal(error: Exception, pointer: str = "") -> Fault:
    # attrs' own validators put the message first, and more for programs behind it.
    message = str(error.args[0]) if error.args else type(error).__name__
    return Fault(pointer, getattr(error, "code", "invalid"), message)
