"""Fixtures for all tests."""

import json
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import attrs
import pytest

from pulsecart.serve.settings import Settings
from pulsecart.telemetry import logs

# These have requirements of their own, which the sessions api, browser, docs and examples of nox install.
collect_ignore = [] if find_spec("schemathesis") else ["api"]
collect_ignore += [] if find_spec("selenium") else ["browser"]
collect_ignore += [] if find_spec("sphinx") and find_spec("selenium") else ["site"]
collect_ignore += [] if find_spec("flask") else ["docs"]


# A shell ignores these in its background jobs, and the processes that tests start and interrupt would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGQUIT) is signal.SIG_IGN:
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="ten times the load in the fault suite")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session", autouse=True)
async def _one_event_loop(anyio_backend: str) -> AsyncIterator[None]:
    """Keep one event loop for all tests: grpc delivers late events to the event loop of the call."""
    yield  # noqa: PT022 (the event loop runs until this fixture ends)


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Run each test without this machine's settings, and outside the checkout, which may contain a `.env`."""
    needs_emulator = request.node.get_closest_marker("emulator")
    if needs_emulator and not os.environ.get("PUBSUB_EMULATOR_HOST"):
        assert "CI" not in os.environ, "there is no emulator at PUBSUB_EMULATOR_HOST"
        pytest.skip("needs an emulator at PUBSUB_EMULATOR_HOST; nox -s emulator starts one")
    for setting in attrs.fields(Settings):
        if not (needs_emulator and setting.name == "emulator_host"):
            monkeypatch.delenv(setting.metadata["variable"], raising=False)
    telemetry = [variable for variable in os.environ if variable.startswith("OTEL_")]
    for variable in ("K_SERVICE", "KUBERNETES_SERVICE_HOST", *telemetry):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def _lines_are_written() -> Iterator[None]:
    """Write the log lines of a test before the next test, which may check its own."""
    yield
    logs.flush()


@pytest.fixture
def order() -> Callable[..., dict[str, Any]]:
    """Make a valid `order.placed` with some fields changed; `...` omits a field."""

    def make(**changes: Any) -> dict[str, Any]:
        fields = {"event_type": "order.placed", "user_id": "u1", "order_id": "o1", "payload": {"total": 1}}
        return {name: value for name, value in (fields | changes).items() if value is not ...}

    return make


@pytest.fixture
def order_json(order: Callable[..., dict[str, Any]]) -> Callable[..., bytes]:
    return lambda **changes: json.dumps(order(**changes)).encode()


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name long values by their argument: compressed ones have the time in them, and workers must agree on names."""
    return argname if isinstance(val, bytes | str) and len(val) > 60 else None
