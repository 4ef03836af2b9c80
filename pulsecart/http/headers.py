"""Header values that are lists, or have parameters, some of them in quotes (RFC 9110, sections 5.6.1 to 5.6.6)."""

import re

__all__ = ["split", "unquoted"]

_PARTS = {separator: re.compile(rf'(?:[^{separator}"]++|"(?:[^"\\]++|\\.)*+"?)++') for separator in ",;"}
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')


def split(value: str, separator: str) -> list[str]:
    """Return the parts of a value that are not empty, without the spaces around them.

    The separator, a comma or a semicolon, does not count in a quoted string.
    """
    return [part for found in _PARTS[separator].findall(value) if (part := found.strip(" \t"))]


def unquoted(value: str) -> str:
    """Return what a quoted string says; another value as it is."""
    match = _QUOTED.fullmatch(value)
    return re.sub(r"\\(.)", r"\1", match[1]) if match else value
