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
    "cryptography",
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
        "import pulsecart.testing",
    ],
)
def test_core_and_unopened_transports_load_nothing_heavy(statement):
    """The core, the memory transport and a transport that is not open load neither HTTP nor Google's packages."""
    assert loaded_by(statement) == set()


def test_package_loads_its_names_on_first_access():
    """The package alone loads next to nothing: every run of pytest imports it. All public names are there, lazily."""
    program = (
        "import pulsecart, sys\nassert not {'attrs', 'cattrs', 'msgspec', 'asyncio'} & set(sys.modules)\n"
        "from pulsecart import *\nassert {'Producer', 'SyncProducer', 'event', 'GRPC_LIMIT'} <= set(globals())"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_service_on_memory_does_not_load_google():
    """A service on the memory transport starts without google and grpc."""
    statement = (
        "from pulsecart.app import create_app\nfrom pulsecart.serve.settings import Settings\n"
        "create_app(Settings(transport='memory'))"
    )
    assert not loaded_by(statement) & {"google", "grpc", "uvicorn", "opentelemetry.sdk"}


def test_strict_server_loads_grpc_and_certificates_on_use():
    """The strict server loads neither gRPC nor what makes certificates until they are used."""
    statement = (
        "import asyncio\nfrom pulsecart.testing import strict_pubsub\n"
        "async def serve():\n    async with strict_pubsub(['t']): pass\n"
        "asyncio.run(serve())"
    )
    assert loaded_by(statement) == {"httptools"}


def test_unknown_name_of_testing_is_an_attribute_error():
    """Lazy imports of the testing kit raise AttributeError for unknown names."""
    with pytest.raises(ImportError, match="strict_kafka"):
        from pulsecart.testing import strict_kafka  # noqa: F401


def test_publishing_by_rest_does_not_load_grpc_or_google():
    """A service on the emulator, by REST, publishes without google and grpc."""
    statement = (
        "import asyncio\nfrom pulsecart.app import create_app\nfrom pulsecart.serve.settings import Settings\n"
        "app = create_app(Settings(transport='emulator', emulator_host='127.0.0.1:1', publish_deadline=0.1))\n"
        "async def live():\n    async with app.router.lifespan_context(app): pass\n"
        "asyncio.run(live())"
    )
    assert "starlette" in loaded_by(statement)
    assert not loaded_by(statement) & {"google", "grpc"}


def test_unknown_name_of_telemetry_is_an_attribute_error():
    """Lazy imports raise AttributeError for unknown names."""
    with pytest.raises(ImportError, match="EventIdMaker"):
        from pulsecart.telemetry import EventIdMaker  # noqa: F401


def test_unknown_transport_is_an_attribute_error():
    """Lazy imports of transports raise AttributeError for unknown names."""
    with pytest.raises(ImportError, match="KafkaTransport"):
        from pulsecart.transports import KafkaTransport  # noqa: F401
