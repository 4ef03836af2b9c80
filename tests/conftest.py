"""What more than one folder of tests needs."""

import json
from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Any, request: pytest.FixtureRequest) -> None:
    """Run each test without this machine's settings, and outside the checkout, where a `.env` may lie."""
    if not request.node.get_closest_marker("emulator"):
        monkeypatch.delenv("PUBSUB_EMULATOR_HOST", raising=False)
    for variable in ("ENVIRONMENT", "GCP_PROJECT_ID", "PORT", "K_SERVICE", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def order() -> Callable[..., dict[str, Any]]:
    """Make a sound `order.placed`, with some fields changed; None leaves one out."""

    def make(**changes: Any) -> dict[str, Any]:
        fields = {"event_type": "order.placed", "user_id": "u1", "order_id": "o1", "payload": {"total": 1}}
        return {name: value for name, value in (fields | changes).items() if value is not ...}

    return make


@pytest.fixture
def order_json(order: Callable[..., dict[str, Any]]) -> Callable[..., bytes]:
    return lambda **changes: json.dumps(order(**changes)).encode()
