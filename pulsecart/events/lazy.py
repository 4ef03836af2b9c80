"""Objects and arrays of a JSON document that are decoded when they are first read.

Most payloads are only passed on. As a slice of the body they cost nothing to build and little memory to hold.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from decimal import Decimal
from typing import Any

import msgspec

from pulsecart.events.faults import below

__all__ = [
    "JsonArray",
    "JsonObject",
    "decode_unsigned",
    "decode_value",
    "outside_strings",
    "repeated_names",
    "repeats_names",
    "without_escapes",
]

decode_unsigned = msgspec.json.Decoder(float_hook=Decimal).decode
"""Decode a JSON value as `decode_value` does, except that the sign of an integer counts as a digit."""


def decode_value(raw: bytes | msgspec.Raw) -> Any:
    """Decode any JSON value: a number without fraction and exponent to an `int`, any other to a `Decimal`."""
    try:
        return decode_unsigned(raw)
    except msgspec.ValidationError:
        with suppress(ValueError):
            return json.loads(bytes(raw), parse_float=Decimal)
        raise


class _Slice:
    __slots__ = ("_value", "raw")

    def __init__(self, raw: msgspec.Raw) -> None:
        self.raw = raw
        self._value: Any = None

    @property
    def value(self) -> Any:
        """The decoded dict or list."""
        if self._value is None:
            self._value = decode_value(self.raw)
        return self._value

    def __getitem__(self, key: Any) -> Any:
        return self.value[key]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.value)

    def __len__(self) -> int:
        return len(self.value)

    def __eq__(self, other: object) -> bool:
        return bool(self.value == (other.value if isinstance(other, _Slice) else other))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.value!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.raw,)


class JsonObject(_Slice, Mapping[str, Any]):
    """A JSON object as it was received: a read-only mapping, decoded when it is first read, published verbatim.

    Equal to any mapping with the same members; `dict(payload)` makes a dict. pulsecart has checked the JSON.
    """

    __slots__ = ()


class JsonArray(_Slice, Sequence[Any]):
    """A JSON array as it was received. No event holds one: only the document that the event is made of."""

    __slots__ = ()


def without_escapes(raw: bytes) -> bytes:
    """Return JSON in which each quote begins or ends a string."""
    return raw.replace(rb"\\", b"").replace(rb"\"", b"") if b"\\" in raw else raw


def outside_strings(text: bytes) -> bytes:
    """Return JSON that has been stripped of escapes without its strings."""
    return b"".join(text.split(b'"')[::2])


class _Pairs(list[tuple[str, Any]]):
    """The members of an object, in which a name may be repeated."""


def repeats_names(value: JsonObject | JsonArray) -> bool:
    """Return whether an object in a value has two members of one name, of which decoding keeps only the last."""
    return _count_members(bytes(value.raw)) > _count_members(msgspec.json.encode(value.value))


def repeated_names(value: JsonObject | JsonArray) -> list[str]:
    """Return pointers to the members whose names are repeated in their objects."""
    pairs = json.loads(bytes(value.raw), object_pairs_hook=_Pairs, parse_int=str)
    return list(dict.fromkeys(_repeated_names(pairs)))


def _count_members(raw: bytes) -> int:
    return outside_strings(without_escapes(raw)).count(b":")


def _repeated_names(value: Any) -> Iterator[str]:
    names: set[Any] = set()
    for name, each in value if isinstance(value, _Pairs) else enumerate(value):
        if name in names:
            yield below("", name)
        names.add(name)
        if isinstance(each, list):
            yield from (below("", name) + pointer for pointer in _repeated_names(each))
