"""Decoded JSON into event classes, strictly and with every fault at once.

cattrs structures each event, with hooks that take away its coercions, and stops at the first fault.
Only then is the value walked a second time, to explain everything that is wrong with it.
"""

from collections.abc import Callable, Container, Iterable
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum
from functools import cache
from math import isinf
from re import ASCII, IGNORECASE
from re import compile as regex
from typing import Any, TypeVar, cast, get_args
from uuid import UUID

import attrs
import msgspec
from attrs import evolve
from cattrs import Converter
from cattrs.errors import ForbiddenExtraKeysError
from cattrs.gen import make_dict_structure_fn, override

from pulsecart.errors import DefinitionError, Fault, InvalidEvent
from pulsecart.events.base import Event, FieldError, describe, id_of
from pulsecart.events.faults import MAX_FAULTS, MAX_HINTS, below, refusal
from pulsecart.events.fieldtypes import AsReceived, Tagged, UtcDatetime, classes_in, fields_of, read_type
from pulsecart.events.lazy import JsonArray, JsonObject, repeated_names, repeats_names
from pulsecart.events.write import written
from pulsecart.suggest import nearest

__all__ = ["check_defaults", "faults", "known", "prepare", "refused", "structure"]

EventT = TypeVar("EventT", bound=Event)
Hook = Callable[[Any, Any], Any]


def structure(fields: dict[str, Any], cls: type[EventT]) -> EventT:
    """Make an event of its decoded fields (all but `event_type`).

    Raises `InvalidEvent` with every fault, up to `MAX_FAULTS`.
    """
    try:
        return cast(EventT, _hook(cls)(fields, cls))
    except (ValueError, TypeError, KeyError, ForbiddenExtraKeysError):
        found = faults(fields, cls)
        if not found:
            raise
    detail = f"The event is not a valid {cls.event_type!r} event."
    raise InvalidEvent(detail, found, event_type=cls.event_type, event_id=id_of(fields))


def faults(fields: dict[str, Any], cls: type[Event], *, unknown: bool = True, made: bool = False) -> list[Fault]:
    """Return what is wrong with an event's decoded fields, up to `MAX_FAULTS`.

    Without `unknown`, a field that the class does not have is no fault. If the event was `made` already, only types are
    compared, and not those of fields with a converter, whose results can have any type.
    """
    found: list[Fault] = []
    _explain_object(fields, cls, found, unknown=unknown, made=made)
    return found[:MAX_FAULTS]


def prepare(cls: type[Event]) -> None:
    """Build what `structure` needs for a class, so that errors and cost occur at startup, not with the first event.

    Raises `DefinitionError` if the type of a field cannot be read strictly.
    """
    name = f"{cls.__module__}.{cls.__qualname__}"
    classes_in(cls)
    payload = attrs.fields_dict(cls)["payload"]
    if payload != attrs.fields_dict(Event)["payload"] and read_type(payload.type or Any)[0] not in (
        "object",
        "tagged",
        "dict",
    ):
        raise DefinitionError(f"{name}.payload: a payload is an object: type it with an attrs class or dict[str, X]")
    try:
        _hook(cls)
    except RecursionError:
        raise DefinitionError(f"{name}: a class contains itself; make that X | None, or a list") from None


def check_defaults(cls: type[Event]) -> None:
    """Check that the default of each field is a value that the field may have: no validator sees what is not sent.

    Factories, and defaults that a converter changes, are not checked. Raises `DefinitionError`.
    """
    for part, where in classes_in(cls).items():
        types = fields_of(part)
        common = attrs.fields_dict(Event) if issubclass(part, Event) else {}  # what is missing there is generated
        for attribute in attrs.fields(part):
            name, default = attribute.name, attribute.default
            is_value = default is not attrs.NOTHING and not isinstance(default, attrs.Factory)  # type: ignore[arg-type]
            if not is_value or attribute.converter or name not in types or name in common:
                continue
            try:
                _hook(types[name])(_as_json(default), types[name])
            except (ValueError, TypeError) as error:
                raise DefinitionError(f"{where}.{name}: its default is not valid: {refusal(error).message}") from error
            try:
                if attribute.validator:
                    attribute.validator(object.__new__(part), attribute, default)
            except (ValueError, TypeError) as error:
                message = refusal(error, "", default).message
                hint = "; put the validator into attrs.validators.optional()" if default is None else ""
                raise DefinitionError(f"{where}.{name}: its default is not valid: {message}{hint}") from error
            except AttributeError:
                pass  # the validator looks at another field, which is not there


def _as_json(value: Any) -> Any:
    """Return a value as it is read from JSON."""
    return _decoder.decode(_encoder.encode(written(value, [], [])))


_encoder = msgspec.json.Encoder(decimal_format="number")
_decoder = msgspec.json.Decoder(float_hook=Decimal)


def known(value: Any, type_: Any, *, tolerant: bool) -> Any:
    """Return a decoded value of a published event without what its class computes and, if `tolerant`, does not know.

    What has another type, or repeats a name, stays as it is, for `structure` to refuse.
    """
    kind, inner = read_type(type_)
    if kind in ("scalar", "enum", "literal") or value is None:
        return value
    if type(value) in (JsonObject, JsonArray) and not repeats_names(value):
        value = value.value
    if kind == "optional":
        return known(value, inner, tolerant=tolerant)
    if kind in ("list", "tuple") and type(value) is list:
        return [known(each, inner, tolerant=tolerant) for each in value]
    if type(value) is not dict:
        return value
    if kind == "dict":
        return {name: known(each, inner, tolerant=tolerant) for name, each in value.items()}
    if kind == "tagged":
        try:
            inner = _class_of(value, inner)
        except FieldError:
            return value
    types, computed = fields_of(inner), attrs.fields_dict(inner).keys() - fields_of(inner)
    return {
        name: known(each, types.get(name, Any), tolerant=tolerant)
        for name, each in value.items()
        if (name in types if tolerant else name not in computed)
    }


# Scalars. JSON decodes to these types exactly (numbers to int and Decimal), and no value is turned
# into another kind: "3" is not read as a number, null not as a string, true not as 1.


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


_FULL_DATE = regex(r"\d{4}-\d\d-\d\d", ASCII)


def _date(value: Any, _type: Any = None) -> date:
    text = _string(value)
    if not _FULL_DATE.fullmatch(text):
        raise FieldError("expected a date of RFC 3339, such as 2026-01-31")
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise FieldError(f"is not a date: {error}", "out-of-range") from None


# RFC 9562, section 4. UUID() reads more than that, such as braces.
_UUID = regex(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", ASCII | IGNORECASE)


def _uuid(value: Any, _type: Any = None) -> UUID:
    text = _string(value)
    if not _UUID.fullmatch(text):
        raise FieldError("expected a UUID, such as 0e3f4c9a-5b1d-4f6e-8a7b-9c0d1e2f3a4b")
    return UUID(text)


def _anything(value: Any, _type: Any = None) -> Any:
    return _decoded(value) if type(value) in (JsonObject, JsonArray) else value


def _as_received(value: Any, _type: Any = None) -> Any:
    return value


_SCALARS: dict[Any, Hook] = {
    str: _string,
    bool: _boolean,
    int: _integer,
    Decimal: _number,
    float: _binary64,
    datetime: _timestamp,
    date: _date,
    UUID: _uuid,
    UtcDatetime: _utc_timestamp,
    Any: _anything,
    AsReceived: _as_received,
}


# Types made of types.


def _make_hook(type_: Any) -> Hook:
    kind, inner = read_type(type_)
    return _HOOKS[kind](inner)


# The function that structures a value of a type. Containers ask for that of their items only when they run: a type
# may contain itself.
_hook: Callable[[Any], Hook] = cache(_make_hook)


_CHOICES = (str, int, bool, type(None))


def _enum_hook(cls: type[Enum]) -> Hook:
    return _choice_hook([(member.value, member) for member in cls])


def _literal_hook(type_: Any) -> Hook:
    return _choice_hook([(value, value) for value in get_args(type_)])


def _choice_hook(pairs: list[tuple[Any, Any]]) -> Hook:
    # Keyed by kind too: to Python 1, 1.0 and True are the same key.
    choices = {(type(value), value): result for value, result in pairs}
    allowed = _one_of(value for value, _ in pairs)

    def hook(value: Any, _type: Any) -> Any:
        if type(value) not in _CHOICES or (type(value), value) not in choices:
            raise FieldError(allowed)
        return choices[type(value), value]

    return hook


def _one_of(values: Iterable[Any]) -> str:
    shown = (repr(value) if type(value) in (str, int) else describe(value) for value in values)
    return f"expected one of {', '.join(shown)}"


def _list_hook(item: Any) -> Hook:
    def hook(value: Any, _type: Any) -> list[Any]:
        structure_item = _hook(item)
        return [structure_item(element, item) for element in _array(value)]

    return hook


def _tuple_hook(item: Any) -> Hook:
    read_list = _list_hook(item)
    return lambda value, type_: tuple(read_list(value, type_))


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
    overrides: Any = {name: override(struct_hook=_hook(type_)) for name, type_ in fields_of(cls).items()}
    generated: Hook = make_dict_structure_fn(
        cls, _converter, _cattrs_forbid_extra_keys=True, _cattrs_detailed_validation=False, **overrides
    )

    def hook(value: Any, _type: Any) -> Any:
        return generated(value if type(value) is dict else _object(value), cls)

    return hook


def _tagged_hook(union: Tagged) -> Hook:
    def hook(value: Any, _type: Any) -> Any:
        members = _object(value)
        cls = _class_of(members, union)
        return _hook(cls)(members, cls)

    return hook


def _class_of(members: dict[str, Any], union: Tagged) -> type:
    """Return the class for an object. Raises `FieldError`, which is about the field that names it."""
    if union.tag not in members:
        raise FieldError("is required, but missing", "missing")
    tag = members[union.tag]
    if type(tag) is not str or tag not in union.classes:
        raise FieldError(_one_of(union.classes))
    return union.classes[tag]


def _object(value: Any) -> dict[str, Any]:
    value = _decoded(value) if type(value) is JsonObject else value
    if type(value) is not dict:
        raise FieldError(f"expected an object, got {describe(value)}", "wrong-type")
    return value


def _array(value: Any) -> list[Any]:
    value = _decoded(value) if type(value) is JsonArray else value
    if type(value) is not list:
        raise FieldError(f"expected an array, got {describe(value)}", "wrong-type")
    return value


def _decoded(value: JsonObject | JsonArray) -> Any:
    # Unlike an untyped payload it is not published as it was received, so a repeated name would lose a value.
    if repeats_names(value):
        raise FieldError("is there more than once", "duplicate")
    return value.value


_HOOKS: dict[str, Callable[[Any], Hook]] = {
    "scalar": _SCALARS.__getitem__,
    "enum": _enum_hook,
    "literal": _literal_hook,
    "object": _object_hook,
    "tagged": _tagged_hook,
    "list": _list_hook,
    "tuple": _tuple_hook,
    "dict": _dict_hook,
    "optional": _optional_hook,
}

_converter = Converter(detailed_validation=False)


# The second walk. It finds a fault exactly where the first one stops, and continues.


def _explain(value: Any, type_: Any, found: list[Fault], *, made: bool) -> Any:
    """Add what is wrong with a value to `found`. If nothing is, return it structured."""
    kind, inner = read_type(type_)
    try:
        if kind == "object":
            return _explain_object(_object(value), inner, found, made=made)
        if kind == "tagged":
            return _explain_tagged(_object(value), inner, found, made=made)
        if kind in ("list", "tuple"):
            each_in = enumerate(_array(value))
            members = [_explain_member(n, each, inner, found, made=made) for n, each in each_in]
            return tuple(members) if kind == "tuple" else members
        if kind == "dict":
            return {name: _explain_member(name, each, inner, found, made=made) for name, each in _object(value).items()}
        if kind == "optional":
            return None if value is None else _explain(value, inner, found, made=made)
        return _hook(type_)(value, type_)
    except FieldError as error:
        pointers = repeated_names(value)[:MAX_FAULTS] if error.code == "duplicate" else [""]
        found += [refusal(error, pointer) for pointer in pointers]


def _explain_member(name: str | int, value: Any, type_: Any, found: list[Fault], *, made: bool) -> Any:
    count = len(found)
    if count >= MAX_FAULTS:
        return None
    member = _explain(value, type_, found, made=made)
    # A pointer is made only for a fault, from the inside out.
    found[count:] = [evolve(fault, pointer=below("", name) + fault.pointer) for fault in found[count:]]
    return member


def _explain_tagged(value: dict[str, Any], union: Tagged, found: list[Fault], *, made: bool) -> Any:
    try:
        cls = _class_of(value, union)
    except FieldError as error:
        found.append(refusal(error, below("", union.tag)))
        return None
    return _explain_object(value, cls, found, made=made)


def _explain_object(
    value: dict[str, Any], cls: type, found: list[Fault], *, unknown: bool = True, made: bool = False
) -> Any:
    before = len(found)
    types, members = fields_of(cls), {}
    for attribute in attrs.fields(cls):
        name, count = attribute.name, len(found)
        if name in value and name in types:
            type_ = AsReceived if made and attribute.converter else types[name]
            member = _explain_member(name, value[name], type_, found, made=made)
            if len(found) == count:
                members[name] = member
        elif attribute.init and attribute.default is attrs.NOTHING:
            found.append(Fault(below("", name), "missing", "is required, but missing"))
    instance = None if made else _make(cls, members, found, complete=len(found) == before)
    known = [*(attrs.fields_dict(cls) if made else types)] + ["event_type"] * issubclass(cls, Event)
    for name in value if unknown else ():
        if name not in known and len(found) < MAX_FAULTS:
            hint = "" if len(found) >= MAX_HINTS else nearest(name, known) or f"; the fields are {', '.join(known)}"
            found.append(Fault(below("", name), "unknown", f"is not a known field{hint}"))
    return instance


def _make(cls: type, members: dict[str, Any], found: list[Fault], *, complete: bool) -> Any:
    """Make an instance of the values that are right, or add what the rules of the class refuse to `found`."""
    instance: Any = object.__new__(cls)
    fields, error = attrs.fields(cls), None
    if complete:
        try:
            instance.__init__(**{a.alias: members[a.name] for a in fields if a.name in members})
        except (ValueError, TypeError) as refused_by_class:
            error = refused_by_class
        else:
            return instance
    else:
        # The class needs all of its fields. Its validators can judge each value that no converter changes.
        for attribute in fields:
            if attribute.name in members and attribute.converter is None:
                object.__setattr__(instance, attribute.name, members[attribute.name])
    # Fields are set in their order, before any validator runs: a converter has refused the first that is not set.
    unset = [a.name for a in fields if (a.init or a.default is not attrs.NOTHING) and not hasattr(instance, a.name)]
    by_validators = refused(instance, members, complete=not unset)
    found += by_validators
    if error and unset:
        found.append(refusal(error, below("", unset[0]), members.get(unset[0])))
    elif error and not by_validators:
        found.append(refusal(error, "", members))
    return None


def refused(instance: Any, names: Container[str], *, complete: bool = True) -> list[Fault]:
    """Return what the validators of an attrs instance's fields refuse, for the fields of these names.

    If the instance is not `complete`, validators that look at a missing field are left out.
    """
    found = []
    for attribute in attrs.fields(type(instance)):
        name = attribute.name
        if attribute.validator is None or name not in names or not hasattr(instance, name):
            continue
        value = getattr(instance, name)
        try:
            attribute.validator(instance, attribute, value)
        except (ValueError, TypeError) as error:
            found.append(refusal(error, below("", name), value))
        except AttributeError:
            if complete:
                raise
    return found
