"""JSON in and out, with nothing lost: numbers keep their exact decimal value.

In, a number without fraction and exponent is an `int`, any other a `decimal.Decimal`. The limits: one object of at
most 1000 fields, nested at most 128 deep, integers of at most 4300 digits, exponents within Decimal's range.
"""

import re
from collections import Counter
from collections.abc import Callable
from decimal import DecimalException
from functools import partial
from itertools import accumulate, repeat
from operator import add, call
from typing import Any

import attrs
import msgspec
from attrs import evolve

from pulsecart.errors import DefinitionError, Fault, InvalidEvent, MalformedBody
from pulsecart.events.base import Event, describe
from pulsecart.events.faults import MAX_FAULTS, below
from pulsecart.events.lazy import JsonArray, JsonObject, decode_unsigned, decode_value, outside_strings, without_escapes
from pulsecart.events.structure import faults, refused, structure
from pulsecart.events.write import Path, only_from_body, pointer_of, unstructure, written

__all__ = ["MAX_DEPTH", "MAX_NAMES", "Document", "decode", "encode", "encode_made"]

MAX_DEPTH = 128
"""How deep objects and arrays may be nested; the body itself counts as one."""

MAX_NAMES = 1000
"""How many fields a body may have at the top level."""


class _Name(str):
    """A name that is equal only to itself, so that a dict keeps a repeated one."""

    __slots__ = ()
    __eq__ = object.__eq__
    __hash__ = object.__hash__


_Members = dict[_Name, msgspec.Raw]
_decode_members = msgspec.json.Decoder(_Members, dec_hook=call).decode
_decode_raw = msgspec.json.Decoder(msgspec.Raw).decode
_SHORTEST_MEMBER = len(b'"":0,')
_BY_FIRST_BYTE: dict[int, Callable[[msgspec.Raw], Any]] = {
    ord("{"): JsonObject,
    ord("["): JsonArray,
    ord("-"): decode_value,
}


class Document(dict[str, Any]):
    """The members of a JSON object that was received. None of its values was made in Python."""


def decode(raw: bytes) -> Document:
    """Read one JSON object (RFC 8259). Objects and arrays in it are checked, but decoded only when they are read.

    Raises `MalformedBody` if it is not one, or if reading it would lose something.
    """
    try:
        members = _members(raw)
        _require_exact(raw)
        document = Document(
            {
                str(name): _BY_FIRST_BYTE.get(memoryview(value)[0], decode_unsigned)(value)
                for name, value in members.items()
            }
        )
    except (msgspec.DecodeError, UnicodeDecodeError, DecimalException, RecursionError) as error:
        raise MalformedBody(_explain(raw, error)) from None
    if len(document) < len(members):
        repeated = [name for name, count in Counter(map(str, members)).items() if count > 1]
        raise MalformedBody(
            "The event names a field twice, and only one value could be kept.",
            [Fault(below("", name), "duplicate", "is there more than once") for name in repeated[:MAX_FAULTS]],
        )
    return document


def _members(raw: bytes) -> _Members:
    decode_members = _decode_members
    if len(raw) > MAX_NAMES * _SHORTEST_MEMBER:
        # Long enough to have too many: count them, and stop at the limit.
        names = repeat(_Name, MAX_NAMES)
        decode_members = msgspec.json.Decoder(_Members, dec_hook=lambda _, name: next(names)(name)).decode
    try:
        return decode_members(raw)
    except StopIteration:
        raise MalformedBody(f"The event has more than {MAX_NAMES:,} fields at the top level.") from None
    except msgspec.ValidationError:
        value = _decode_raw(raw)
        got = "an array" if memoryview(value)[0] == ord("[") else describe(decode_value(value))
        raise MalformedBody(f"The event is {got}; send one JSON object for each event.") from None


def encode(event: Event) -> bytes:
    """Write an event that was made from a body as one JSON object, `event_type` first.

    An untyped payload is written as it was received. Raises `DefinitionError` if the event's class has put a value
    there that JSON has no form for: a body has none, so the caller is not at fault.
    """
    try:
        return _encoder.encode({"event_type": event.event_type} | unstructure(event))
    except (TypeError, ValueError, RecursionError) as error:
        raise DefinitionError(
            f"{type(event).__qualname__} made an event that cannot be written as JSON: {error}"
        ) from error


def encode_made(event: Event) -> bytes:
    """Write an event that was made in Python, `event_id` and `timestamp` included, as one JSON object.

    The rules for a body apply. Converters of the class have run already, and do not run again. Raises `InvalidEvent`.
    """
    invalid = partial(InvalidEvent, event_type=event.event_type, event_id=event.event_id)
    found: list[Fault] = []
    instances: list[tuple[Path, Any]] = []
    try:
        data = _encoder.encode({"event_type": event.event_type} | written(event, found, instances))
        document = {} if found else dict(decode(data))
    except MalformedBody as error:
        raise invalid(f"The event's JSON could not be read: {error.detail}", error.faults) from None
    except RecursionError:
        raise invalid(_TOO_DEEP) from None
    except (TypeError, ValueError) as error:
        raise invalid(f"The event cannot be written as JSON: {error}") from error
    if found:
        raise invalid("The event holds values that JSON cannot carry.", found[:MAX_FAULTS])
    del document["event_type"]
    if only_from_body(type(event)):
        return encode(structure(document, type(event)))
    found = faults(document, type(event), made=True) or [
        evolve(fault, pointer=pointer_of(path) + fault.pointer)
        for path, instance in instances
        for fault in refused(instance, attrs.fields_dict(type(instance)))
    ]
    if found:
        raise invalid(f"The event is not a valid {event.event_type!r} event.", found[:MAX_FAULTS])
    return data


def _as_received(value: Any) -> msgspec.Raw:
    if isinstance(value, JsonObject):
        return value.raw
    raise TypeError(f"objects of type {type(value).__qualname__} have no form in JSON")


_encoder = msgspec.json.Encoder(decimal_format="number", enc_hook=_as_received)


# What the decoder does not look at in a raw slice: UTF-8, the depth, and the size of numbers. All of it is checked
# for the body as a whole, in a few passes in C whose time grows only with the length, whatever the body.

_TOO_DEEP = f"The event is nested more than {MAX_DEPTH} deep."
_LONG_EXPONENT = b"e" + b"0" * 18
"""With fewer digits an exponent is always in the range of Decimal."""

_LONG_INTEGER = b"0" * 4300
_LONG_NUMBER = re.compile(rb"[-+.eE0-9]{20,}")
_NUMBER_SHAPES = bytes.maketrans(b"0123456789E", b"0000000000e")
_NO_BRACKETS = bytes(n for n in range(256) if n not in b'[]{}"')
_BRACKET_BITS = bytes.maketrans(b"[{]}", b"1100")
# Of eight brackets in a byte, a bit for each: how much deeper they lead, and how deep in between.
_LEVELS = [list(accumulate(1 if bit == "1" else -1 for bit in f"{byte:08b}")) for byte in range(256)]
_NET = bytes(levels[-1] % 256 for levels in _LEVELS)
_PEAK = bytes(max(0, *levels) for levels in _LEVELS)


def _require_exact(raw: bytes) -> None:
    """Raise if JSON that was only scanned could not be decoded exactly, or is nested too deep."""
    if not raw.isascii():
        raw.decode()
    if raw.count(b"{") + raw.count(b"[") > MAX_DEPTH and _depth(raw) > MAX_DEPTH:
        raise MalformedBody(_TOO_DEEP)
    shapes = raw.translate(_NUMBER_SHAPES, b"+-")
    if shapes.count(_LONG_EXPONENT) or shapes.count(_LONG_INTEGER):  # `in` takes longer for a short body
        # Numbers are suspected, maybe only in a string: decode those that are long.
        numbers = _LONG_NUMBER.findall(outside_strings(without_escapes(raw)))
        decode_value(b"[%b]" % b",".join(numbers))


def _depth(raw: bytes) -> int:
    brackets = outside_strings(without_escapes(raw).translate(_BRACKET_BITS, _NO_BRACKETS))
    size = -(-len(brackets) // 8)
    eights = int(brackets.ljust(size * 8, b"0"), 2).to_bytes(size)
    before = accumulate(memoryview(eights.translate(_NET)).cast("b"), initial=0)
    deepest: int = max(map(add, before, eights.translate(_PEAK)))
    return deepest


_LONE_SURROGATE = re.compile(rb"\\u[dD][89aAbB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89aAbB]..)\\u[dD][c-fC-F]")


def _explain(raw: bytes, error: Exception) -> str:
    if not raw:
        return "The body is empty; send one JSON object."
    if raw.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        return "The event starts with a byte order mark; send UTF-8 without one (RFC 8259, section 8.1)."
    if isinstance(error, UnicodeDecodeError):
        return "The event is not UTF-8."
    if isinstance(error, RecursionError):
        return _TOO_DEEP
    if isinstance(error, DecimalException):
        return "A number's exponent is out of range."
    if isinstance(error, msgspec.ValidationError):
        return "An integer is out of range: more than 4300 digits."
    if _LONE_SURROGATE.search(raw):
        return "A string has a lone surrogate, half of a \\u pair, which is not a character (RFC 8259, section 8.2)."
    return f"The event is not JSON: {str(error).removeprefix('JSON is malformed: ')}."
