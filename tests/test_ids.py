import hashlib
import os
import re
import subprocess
import sys
import time
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pulsecart import new_event_id, trace_id_of


def test_generated_id_has_the_documented_form():
    """A generated id is evt_, 12 hex digits, a 0 and 19 hex digits."""
    assert re.fullmatch(r"evt_[0-9a-f]{12}0[0-9a-f]{19}", new_event_id())


def test_generated_id_contains_its_time():
    """The first 48 bits are Unix milliseconds, so ids sort by time."""
    before = time.time_ns() // 1_000_000
    milliseconds = int(new_event_id()[4:16], 16)
    assert before <= milliseconds <= time.time_ns() // 1_000_000


def test_generated_ids_are_unique():
    """Ids generated within one millisecond do not collide."""
    assert len({new_event_id() for _ in range(10_000)}) == 10_000


FORK = """
import os
from pulsecart import new_event_id
new_event_id()
reads, writes = os.pipe()
if os.fork():
    os.wait()
    print(new_event_id()[17:], os.read(reads, 100).decode())
else:
    os.write(writes, new_event_id()[17:].encode())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_forked_processes_generate_different_ids():
    """A process and its fork do not use the same random digits."""
    output = subprocess.run([sys.executable, "-c", FORK], check=True, capture_output=True, text=True).stdout
    parent, child = output.split()
    assert parent != child


def test_trace_id_of_a_generated_id_is_its_digits():
    """The trace id can be read from a generated event id."""
    event_id = new_event_id()
    assert trace_id_of(event_id) == event_id.removeprefix("evt_")


@pytest.mark.parametrize(
    "event_id",
    [
        "order-4711",
        f"evt_{uuid.UUID('123e4567-e89b-42d3-a456-426614174000').hex}",
        "evt_" + "0" * 32,
        "evt_" + "A" * 12 + "0" + "a" * 19,
        "evt_" + "a" * 12 + "0" + "a" * 19 + "\n",
        "ünïcode",
    ],
)
def test_trace_id_of_any_other_id_is_its_hash(event_id):
    """The trace id of a caller's event id is from its SHA-256, also for a UUID's digits and all zeros."""
    assert trace_id_of(event_id) == hashlib.sha256(event_id.encode()).hexdigest()[:32]


@given(st.text(st.characters(codec="utf-8"), min_size=1))
def test_any_id_has_a_valid_trace_id(event_id):
    """The trace id of any event id is 32 lowercase hex digits that are not all zero."""
    trace_id = trace_id_of(event_id)
    assert re.fullmatch(r"[0-9a-f]{32}", trace_id)
    assert trace_id != "0" * 32
