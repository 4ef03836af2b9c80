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


def test_a_generated_id_has_the_form_of_the_contract():
    """A generated id is evt_, 12 hex digits, a 0 and 19 hex digits, within the limits of an attribute."""
    assert re.fullmatch(r"evt_[0-9a-f]{12}0[0-9a-f]{19}", new_event_id())


def test_a_generated_id_holds_the_time_it_was_made():
    """The first 48 bits are Unix milliseconds, so ids sort by time."""
    before = time.time_ns() // 1_000_000
    milliseconds = int(new_event_id()[4:16], 16)
    assert before <= milliseconds <= time.time_ns() // 1_000_000


def test_generated_ids_differ():
    """Ids made within one millisecond do not collide."""
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
def test_forked_processes_make_ids_of_their_own():
    """A process and its fork do not draw the same random digits."""
    output = subprocess.run([sys.executable, "-c", FORK], check=True, capture_output=True, text=True).stdout
    parent, child = output.split()
    assert parent != child


def test_the_trace_id_of_a_generated_id_is_its_own_digits():
    """Whoever holds the event id reads the trace id off it."""
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
def test_the_trace_id_of_another_form_is_its_hash(event_id):
    """A caller's own id, a UUID's digits and all zeros included, maps to its SHA-256."""
    assert trace_id_of(event_id) == hashlib.sha256(event_id.encode()).hexdigest()[:32]


@given(st.text(st.characters(codec="utf-8"), min_size=1))
def test_every_id_has_a_valid_trace_id(event_id):
    """Any id maps to 32 lowercase hex digits that are not all zero."""
    trace_id = trace_id_of(event_id)
    assert re.fullmatch(r"[0-9a-f]{32}", trace_id)
    assert trace_id != "0" * 32
