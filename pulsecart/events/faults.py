"""How faults are located and worded, and how many of them are told."""

from pulsecart.suggest import nearest

__all__ = ["MAX_FAULTS", "below", "nearest", "shortened"]

MAX_FAULTS = 100
"""How many faults one error lists: more would help nobody, and cost the time of an answer."""

_MAX_NAME = 200


def shortened(name: str) -> str:
    """Return a name that a body brought, cut to a length that is fit for a message."""
    return name if len(name) <= _MAX_NAME else name[:_MAX_NAME] + "…"


def below(pointer: str, name: str | int) -> str:
    """Return the JSON pointer (RFC 6901, section 3) to a member of what another one points to."""
    return f"{pointer}/{shortened(str(name)).replace('~', '~0').replace('/', '~1')}"
