"""JSON in and out, with nothing lost: numbers keep their exact decimal value.

In, a number without fraction and exponent is an `int`, any other a `decimal.Decimal`. The limits:
one object, nested at most 128 deep, integers of at most 4300 digits, exponents within Decimal's range.
"""

import json
import re
from collections import Counter, deque
from collections.abc import Iterator
from decimal import Decimal, DecimalException
from itertools import islice
from math import isfinite
from typing import Any

import msgspec

from pulsecart.errors import Fault, InvalidEvent, MalformedBody
from pulsecart.events.base import Event, describe
from pulsecart.events.faults import MAX_FAULTS, below
from pulsecart.events.structure import structure, unstructure

__all__ = ["MAX_DEPTH", "decode", "encode", "require_sound"]

MAX_DEPTH = 128
"""How deep objects and arrays may be nested; the body itself counts as one."""

_decoder = msgspec.json.Decoder(float_hook=Decimal)
_encoder = msgspec.json.Encoder(decimal_format="number")


def decode(raw: bytes) -> dict[str, Any]:
    """Read one JSON object (RFC 8259).

    Raises `MalformedBody` where it is none, or where reading it would lose something.
    """
    document = _read(raw)
    if repeated := _repeated_names(raw, document):
        raise MalformedBody(
            "The body names a field twice, and only one value could be kept.",
            [Fault(below("", name), "duplicate", "is there more than once") for name in repeated[:MAX_FAULTS]],
        )
    return document


def _read(raw: bytes) -> dict[str, Any]:
    """Read one JSON object, whose names may repeat."""
    try:
        document = _decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, DecimalException, RecursionError) as error:
        raise MalformedBody(_explain(raw, error)) from None
    if type(document) is not dict:
        raise MalformedBody(f"The body is {describe(document)}; send one JSON object, one event a request.")
    # Fewer brackets than levels allowed: no need to look.
    if raw.count(b"{") + raw.count(b"[") > MAX_DEPTH and _deeper(document, MAX_DEPTH):
        raise MalformedBody(_TOO_DEEP)
    return document


def encode(event: Event) -> bytes:
    """Write an event as one JSON object, `event_type` first.

    Raises `InvalidEvent` for a value that JSON has no form for.
    """
    try:
        return _encoder.encode({"event_type": event.event_type} | unstructure(event))
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidEvent(f"The event cannot be written as JSON: {error}") from error


def require_sound(event: Event, data: bytes) -> None:
    """Hold an event made in Python, and its data, to the rules for a body: what it says must be readable.

    Raises `InvalidEvent`.
    """
    # JSON has no form for NaN and infinity; the encoder writes null, or words that are no JSON.
    if (b"null" in data or b"NaN" in data or b"Infinity" in data) and (
        lost := list(islice(_not_finite(event), MAX_FAULTS))
    ):
        raise InvalidEvent("The event holds numbers that JSON cannot carry.", lost)
    try:
        document = _read(data)  # an event's own names cannot repeat
    except MalformedBody as error:
        raise InvalidEvent(f"The event's JSON could not be read: {error.detail}", error.faults) from None
    del document["event_type"]
    structure(document, type(event))


_TOO_DEEP = f"The event is nested more than {MAX_DEPTH} deep."
_LONE_SURROGATE = re.compile(rb"\\u[dD][89aAbB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89aAbB]..)\\u[dD][c-fC-F]")
_ESCAPED_ASCII = re.compile(rb"\\u00[2-7]")
_MANY_NAMES = 32


def _explain(raw: bytes, error: Exception) -> str:
    if not raw:
        return "The body is empty; send one JSON object."
    if raw.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        return "The body starts with a byte order mark; send UTF-8 without one (RFC 8259, section 8.1)."
    if isinstance(error, UnicodeDecodeError):
        return "The body is not UTF-8."
    if isinstance(error, RecursionError):
        return _TOO_DEEP
    if isinstance(error, DecimalException):
        return "A number's exponent is out of range."
    if isinstance(error, msgspec.ValidationError):
        return "An integer is out of range: more than 4300 digits."
    if _LONE_SURROGATE.search(raw):
        return "A string has a lone surrogate, half of a \\u pair, which is no character (RFC 8259, section 8.2)."
    return f"The body is not JSON: {str(error).removeprefix('JSON is malformed: ')}."


def _deeper(document: Any, limit: int) -> bool:
    level = [document]
    for _ in range(limit):
        level = [
            child
            for container in level
            for child in (container.values() if type(container) is dict else container)
            if type(child) in (dict, list)
        ]
    return bool(level)


def _repeated_names(raw: bytes, document: dict[str, Any]) -> list[str]:
    """Return the names that the top-level object has more than once.

    Decoding keeps only the last value of a name. Parsing in pairs would show it, at several times
    the cost; but if each name stands in the body once, quoted, none can be there twice, unless
    spelled with escapes. Whatever else uses a name, a nested object say, is only suspected. Many
    names would have to be looked for many times: one parse is quicker.
    """
    if (
        len(document) <= _MANY_NAMES
        and all(raw.count(b'"%b"' % name.encode()) == 1 for name in document)
        and not _ESCAPED_ASCII.search(raw)
        and all(map(str.isascii, document))
    ):
        return []
    names = json.loads(raw, object_pairs_hook=lambda pairs: [name for name, _ in pairs], parse_int=str, parse_float=str)
    if len(names) == len(document):
        return []
    return [name for name, count in Counter(names).items() if count > 1]


def _not_finite(event: Event) -> Iterator[Fault]:
    # Pairs of a pointer and a value, of the types to which the encoder would reduce all others.
    left: deque[tuple[str, Any]] = deque(
        [("", msgspec.to_builtins(unstructure(event), str_keys=True, builtin_types=(Decimal,)))]
    )
    while left:
        pointer, value = left.popleft()
        if (isinstance(value, float) and not isfinite(value)) or (isinstance(value, Decimal) and not value.is_finite()):
            yield Fault(pointer, "out-of-range", "is not a finite number; JSON has no form for it")
        elif isinstance(value, dict):
            left.extend((below(pointer, name), each) for name, each in value.items())
        elif isinstance(value, (list, tuple)):
            left.extend((below(pointer, index), each) for index, each in enumerate(value))
