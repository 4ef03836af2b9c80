"""Finds the name that a misspelled one was probably meant to be."""

import difflib
from collections.abc import Iterable

__all__ = ["closest", "nearest"]

_MAX_NAME = 200
"""Longer names are not compared: it would take too long, and nobody mistypes them."""


def closest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that is most like this one, if any is."""
    matches = difflib.get_close_matches(name, known, n=1) if len(name) <= _MAX_NAME else []
    return matches[0] if matches else None


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the closest known name, or an empty string."""
    match = closest(name, known)
    return f"; did you mean {match!r}?" if match else ""
