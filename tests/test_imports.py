import subprocess
import sys

import pytest

HEAVY = (
    "starlette",
    "uvicorn",
    "httptools",
    "httpx",
    "click",
    "dotenv",
    "google",
    "grpc",
    "requests",
    "structlog",
    "opentelemetry",
    "opentelemetry.sdk",
)


def loaded_by(statement: str) -> set[str]:
    """Return the heavy packages that a new Python process has loaded after a statement."""
    program = f"{statement}\nimport sys\nprint(*(name for name in {HEAVY!r} if name in sys.modules))"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


@pytest.mark.parametrize(
    "statement",
    [
        "import pulsecart",
        "import pulsecart.events, pulsecart.producer",
        "from pulsecart.transports import MemoryTransport, EmulatorTransport\nMemoryTransport()",
        "from pulsecart.transports import EmulatorTransport\nEmulatorTransport(project='p', host='h:1')",
    ],
)
def test_core_and_unopened_transports_load_nothing_heavy(statement):
    """The core, the memory transport and a transport that is not open load neither HTTP nor Google's packages."""
    assert loaded_by(statement) == set()


def test_service_on_memory_does_not_load_google():
    """A service on the memory transport starts without google and grpc."""
    statement = (
        "from pulsecart.app import create_app\nfrom pulsecart.serve.settings import Settings\n"
        "create_app(Settings(transport='memory'))"
    )
    assert not loaded_by(statement) & {"google", "grpc", "uvicorn", "opentelemetry.sdk"}


def test_unknown_name_of_telemetry_is_an_attribute_error():
    """Lazy imports raise AttributeError for unknown names."""
    with pytest.raises(ImportError, match="EventIdMaker"):
        from pulsecart.telemetry import EventIdMaker  # noqa: F401


def test_unknown_transport_is_an_attribute_error():
    """Lazy imports of transports raise AttributeError for unknown names."""
    with pytest.raises(ImportError, match="KafkaTransport"):
        from pulsecart.transports import KafkaTransport  # noqa: F401
