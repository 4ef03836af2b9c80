"""Compares expected values with those of an event, and says where they differ."""

from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

import attrs

__all__ = ["differences", "shown"]

_SHOWN_CHARACTERS = 200

_NOTHING = object()


def shown(value: Any) -> str:
    """Return the representation of a value, cut to a length that fits into a message."""
    text = repr(dict(value)) if isinstance(value, Mapping) else repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"


def differences(expected: Any, actual: Any, path: str = "") -> Iterator[str]:
    """Yield a line for each place at which two values differ, in objects, arrays and attrs classes."""
    if isinstance(expected, Mapping) and isinstance(actual, Mapping):
        for name in {**expected, **actual}:
            below = f"{path}.{name}" if path else str(name)
            yield from differences(expected.get(name, _NOTHING), actual.get(name, _NOTHING), below)
    elif _is_array(expected) and _is_array(actual) and len(expected) == len(actual):
        for index, pair in enumerate(zip(expected, actual, strict=True)):
            yield from differences(*pair, f"{path}[{index}]")
    elif attrs.has(type(expected)) and type(expected) is type(actual):
        yield from differences(_fields(expected), _fields(actual), path)
    elif actual is _NOTHING:
        yield f"{path}: expected {shown(expected)}, but it is missing"
    elif expected is _NOTHING:
        yield f"{path}: not expected, but it is {shown(actual)}"
    elif not _equal(expected, actual):
        yield f"{path}: expected {shown(expected)}, got {shown(actual)}"


def _is_array(value: Any) -> bool:
    return isinstance(value, (list, tuple))


def _fields(instance: Any) -> dict[str, Any]:
    return attrs.asdict(instance, recurse=False)


def _equal(expected: Any, actual: Any) -> bool:
    if isinstance(expected, bool) is not isinstance(actual, bool) and isinstance(expected, (bool, int, float, Decimal)):
        return False  # Python's True is 1, JSON's true is not
    if isinstance(expected, float) and isinstance(actual, Decimal):
        return Decimal(repr(expected)) == actual
    return bool(expected == actual)
