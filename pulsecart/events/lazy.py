"""Objects and arrays of a JSON document that are decoded when they are first read.

Most payloads are only passed on. As a slice of the body they cost nothing to build and little memory to hold.
"""

from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any

import msgspec

__all__ = ["JsonArray", "JsonObject", "decode_value"]

decode_value = msgspec.json.Decoder(float_hook=Decimal).decode
"""Decode any JSON value: a number without fraction and exponent to an `int`, any other to a `Decimal`."""


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
