"""How faults are located and worded, and how many of them an error lists."""

import re
from collections.abc import Iterator
from typing import Any

from pulsecart.errors import Fault

__all__ = ["MAX_FAULTS", "MAX_HINTS", "below", "refusal", "shortened"]

MAX_FAULTS = 100
"""How many faults one error lists. More would help nobody and delay the answer."""

MAX_HINTS = 10
"""How many faults of an event may say which field was meant. Comparing names takes most of the time of a fault."""

_MAX_NAME = 200


def shortened(name: str) -> str:
    """Return a name from a body, cut to a length that fits into a message."""
    return name if len(name) <= _MAX_NAME else name[:_MAX_NAME] + "…"


def below(pointer: str, name: str | int) -> str:
    """Return the JSON pointer (RFC 6901, section 3) to a member of the value at another pointer."""
    return f"{pointer}/{shortened(str(name)).replace('~', '~0').replace('/', '~1')}"


def refusal(error: Exception, pointer: str = "", value: Any = None) -> Fault:
    """Return the fault for what a validator, a converter or a class has raised about a value."""
    # attrs' validators put the message first, followed by objects for programs.
    message = str(error.args[0]) if error.args else type(error).__name__
    code = getattr(error, "code", "")
    return Fault(pointer, code or "invalid", message if code else _without_value(message, value))


def _without_value(message: str, value: Any) -> str:
    """Remove a value, which may be personal data, from a message of attrs or Python, and keep the rule."""
    for part in _parts(value):
        message = message.removesuffix(f": {part}")
        if (shown := repr(part)) in message:
            shown_as = r"(: | ?\((got )?| satisfied for value )"
            message = re.sub(rf"(?s){shown_as}{re.escape(shown)}(?!\w).*", "", message)
            message = message.replace(shown, "…") if isinstance(part, str) else message
    return message


def _parts(value: Any) -> Iterator[Any]:
    yield value
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, (list, tuple, set, frozenset)):
        for each in value:
            yield from _parts(each)
