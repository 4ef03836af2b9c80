import json

import httpx
import pytest

from tests.serving import serving

ORDER = {"event_type": "order.placed", "user_id": "u1", "order_id": "o1", "payload": {}}


@pytest.mark.parametrize(
    ("package", "signals"),
    [
        ("opentelemetry.sdk", ["traces and metrics"]),
        ("opentelemetry.resourcedetector", ["traces and metrics"]),
        ("opentelemetry.exporter", ["traces", "metrics"]),
    ],
)
def test_export_without_its_extra_is_a_warning(tmp_path, package, signals):
    """If a package that exports is not installed, the log says what to install, and events are published."""
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.modules[{package!r}] = None\n")
    environment = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1",
        "PYTHONPATH": str(tmp_path),
        "PULSECART_TRANSPORT": "memory",
    }
    if package == "opentelemetry.resourcedetector":
        environment["K_SERVICE"] = "pulsecart"
    with serving(cwd=tmp_path, **environment) as served:
        assert httpx.post(f"{served.url}/events/ingest", json=ORDER).status_code == 202
        assert served.stop() == 0
    lines = [json.loads(line) for line in served.output.splitlines()]
    warnings = [line["message"] for line in lines if line["severity"] == "WARNING"]
    assert [text.partition(" are exported: ")[0] for text in warnings] == [f"No {signal}" for signal in signals]
    assert all(package in text and text.endswith("pip install 'pulsecart[otlp]'") for text in warnings)
