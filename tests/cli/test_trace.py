import os

import pytest

from pulsecart import trace_id_of
from tests.serving import run


def test_trace_prints_the_trace_of_an_event(tmp_path):
    """The trace id, the time inside an id of ours, and a link where there is a template, from .env too."""
    event_id = "evt_01a208d02d4708440c6fe7ff04e1d3bb"
    (tmp_path / ".env").write_text("PULSECART_TRACE_URL=https://traces.example/{trace_id}?all\n")
    result = run("trace", event_id, cwd=tmp_path)
    assert (result.returncode, result.stdout.splitlines()) == (
        0,
        [
            "01a208d02d4708440c6fe7ff04e1d3bb",
            "made 2026-11-23T14:29:50.535Z",
            "https://traces.example/01a208d02d4708440c6fe7ff04e1d3bb?all",
        ],
    )


@pytest.mark.parametrize("event_id", ["mine", f"evt_{'0' * 32}", f"evt_{'f' * 12}0{'f' * 19}"])
def test_trace_knows_every_form_of_id(tmp_path, event_id):
    """An id of another form, or with a time that no calendar has, has a trace id and no time."""
    result = run("trace", event_id, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (0, trace_id_of(event_id) + "\n")


def test_trace_refuses_a_template_that_is_none(tmp_path):
    """A template without a place for the trace id is named."""
    result = run("trace", "mine", cwd=tmp_path, env=os.environ | {"PULSECART_TRACE_URL": "http://localhost/"})
    assert result.returncode == 2
    assert "PULSECART_TRACE_URL" in result.stderr


@pytest.mark.parametrize("event_id", [b"", b" ", b"x" * 1025, b"\xff"])
def test_trace_refuses_what_is_no_event_id(tmp_path, event_id):
    """An empty id, one that no event can have, or no text: one sentence, and no traceback."""
    result = run("trace", os.fsdecode(event_id), cwd=tmp_path)
    assert result.returncode == 2
    assert "an event id has 1 to 1024 bytes of UTF-8" in result.stderr


def test_trace_takes_an_id_as_it_was_pasted(tmp_path):
    """Blanks around an id are no part of it, and one that begins with a dash is no option."""
    assert run("trace", " mine\n", cwd=tmp_path).stdout == trace_id_of("mine") + "\n"
    assert run("trace", "-x", cwd=tmp_path).stdout == trace_id_of("-x") + "\n"
