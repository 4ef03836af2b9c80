"""Event ids and the trace ids they carry.

An event id of ours is `evt_` and 32 lowercase hex digits: 48 bits of Unix milliseconds, the digit
`0`, and 76 random bits. The 128 bits are also the OpenTelemetry trace id of the event. The `0`
stands where a UUID has its version, and no UUID version is 0, so `evt_` with a UUID's hex digits
is told apart.
"""

import hashlib
import os
import re
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta

__all__ = ["made_at", "new_event_id", "trace_id_of"]

_OURS = re.compile(r"evt_([0-9a-f]{12}0[0-9a-f]{19})")
_NO_TRACE = "0" * 32  # W3C Trace Context, 3.2.2.3: all zero is not a trace id

# Random digits for the next ids. To ask the system for each id's took 7 % of an event's CPU time. A generator that can
# be foretold would let a caller take the ids of others' next events, which consumers would then drop as duplicates.
_digits: list[str] = []
_STOCK = 400

with suppress(AttributeError):  # Windows has no fork
    os.register_at_fork(after_in_child=_digits.clear)


def _draw_digits() -> str:
    """Return 19 random hex digits, and put more into the stock."""
    drawn = os.urandom(10 * _STOCK).hex()
    first, *others = (drawn[start : start + 19] for start in range(0, len(drawn), 20))
    _digits.extend(others)
    return first


def new_event_id() -> str:
    """Return a new event id; ids sort by the millisecond they were made in."""
    milliseconds = time.time_ns() // 1_000_000
    try:
        digits = _digits.pop()
    except IndexError:
        digits = _draw_digits()
    return f"evt_{milliseconds:012x}0{digits}"


def trace_id_of(event_id: str) -> str:
    """Return the trace id of an event, 32 lowercase hex digits.

    It is the id's own digits where the id has the form above, otherwise the first 16 bytes of its
    SHA-256, so that whoever holds an event id, of whatever form, holds its trace.
    """
    match = _OURS.fullmatch(event_id)
    if match and match[1] != _NO_TRACE:
        return match[1]
    return hashlib.sha256(event_id.encode()).hexdigest()[:32]


def made_at(event_id: str) -> datetime | None:
    """Return when an event id of ours was made, to the millisecond; None for another form, or a time past year 9999."""
    match = _OURS.fullmatch(event_id)
    if not match or match[1] == _NO_TRACE:
        return None
    try:
        return datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=int(match[1][:12], 16))
    except OverflowError:
        return None
