"""Event ids, and the trace ids derived from them.

A generated event id is `evt_` followed by 32 lowercase hex digits: 48 bits of Unix milliseconds, the
digit `0`, and 76 random bits. These 128 bits are also the OpenTelemetry trace id of the event. The `0`
is at the position of a UUID's version. No UUID has version 0, so `evt_` followed by a UUID's hex digits
is not mistaken for a generated id.
"""

import hashlib
import os
import re
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta

__all__ = ["is_generated", "made_at", "new_event_id", "trace_id_of"]

_OURS = re.compile(r"evt_([0-9a-f]{12}0[0-9a-f]{19})")
_NO_TRACE = "0" * 32  # not a valid trace id (W3C Trace Context, 3.2.2.3)

# Random digits for the next ids. Asking the system for those of each id took 7 % of the CPU time of an event. They come
# from the system because with a predictable generator a caller could use the ids of other callers' next events, which
# consumers would then drop as duplicates.
_digits: list[str] = []
_STOCK = 400

with suppress(AttributeError):  # Windows has no fork
    os.register_at_fork(after_in_child=_digits.clear)


def _draw_digits() -> str:
    """Return 19 random hex digits, and add more to the stock."""
    drawn = os.urandom(10 * _STOCK).hex()
    first, *others = (drawn[start : start + 19] for start in range(0, len(drawn), 20))
    _digits.extend(others)
    return first


def new_event_id() -> str:
    """Return a new event id. Ids sort by the millisecond in which they were generated."""
    milliseconds = time.time_ns() // 1_000_000
    try:
        digits = _digits.pop()
    except IndexError:
        digits = _draw_digits()
    return f"evt_{milliseconds:012x}0{digits}"


def is_generated(event_id: str) -> bool:
    """Return whether an event id has the form of a generated one."""
    return bool(_OURS.fullmatch(event_id))


def trace_id_of(event_id: str) -> str:
    """Return the trace id of an event, 32 lowercase hex digits.

    These are the digits of the id if it has the form of a generated id, otherwise the first 16 bytes of its SHA-256.
    So the trace of an event can be found by any event id.
    """
    match = _OURS.fullmatch(event_id)
    if match and match[1] != _NO_TRACE:
        return match[1]
    return hashlib.sha256(event_id.encode()).hexdigest()[:32]


def made_at(event_id: str) -> datetime | None:
    """Return when an event id was generated, to the millisecond.

    Returns None if the id has another form, or a time after the year 9999.
    """
    match = _OURS.fullmatch(event_id)
    if not match or match[1] == _NO_TRACE:
        return None
    try:
        return datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=int(match[1][:12], 16))
    except OverflowError:
        return None
