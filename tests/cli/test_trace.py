import os

import pytest

from pulsecart import trace_id_of
from tests.serving import run


def test_trace_prints_the_trace_of_an_event(tmp_path):
    """The trace id, the time of an id that pulsecart made, and the address, here by a template from .env."""
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
def test_trace_of_other_ids_has_no_time(tmp_path, event_id):
    """An id in another form, or with a time out of range, has a trace id only."""
    result = run("trace", event_id, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (0, trace_id_of(event_id) + "\n")


def test_trace_url_without_placeholder_is_an_error(tmp_path):
    """A template without a placeholder for the trace id is rejected."""
    result = run("trace", "mine", cwd=tmp_path, env=os.environ | {"PULSECART_TRACE_URL": "http://localhost/"})
    assert result.returncode == 2
    assert "PULSECART_TRACE_URL" in result.stderr


@pytest.mark.parametrize("event_id", [b"", b" ", b"x" * 1025, b"\xff"])
def test_invalid_event_id_is_an_error(tmp_path, event_id):
    """An id that is empty, too long or not UTF-8 is rejected without a traceback."""
    result = run("trace", os.fsdecode(event_id), cwd=tmp_path)
    assert result.returncode == 2
    assert "an event id has 1 to 1024 bytes of UTF-8" in result.stderr


def test_trace_accepts_blanks_and_dashes(tmp_path):
    """Blanks around an id are removed, and an id that begins with a dash is not taken for an option."""
    assert run("trace", " mine\n", cwd=tmp_path).stdout == trace_id_of("mine") + "\n"
    assert run("trace", "-x", cwd=tmp_path).stdout == trace_id_of("-x") + "\n"
