"""The pytest plugin: fixtures for tests of applications that publish events.

Every run of pytest imports this module, so it imports nothing else until a fixture is used.
"""

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pulsecart.serve.settings import Settings
    from pulsecart.testing.recording import RecordingTransport
    from pulsecart.testing.service import Service

__all__ = [
    "pulsecart_emulator",
    "pulsecart_events",
    "pulsecart_service",
    "pulsecart_settings",
    "pytest_configure",
]

ALLOW_FAILURES = "pulsecart_allow_failures"


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line(
        "markers", f"{ALLOW_FAILURES}: pulsecart_events accepts failures that the test does not expect"
    )


@pytest.fixture
def pulsecart_events(request: pytest.FixtureRequest) -> Iterator["RecordingTransport"]:
    """Return a transport that keeps what is published, for `events.assert_published(OrderPlaced, user_id="u1")`.

    After the test it fails if publishing has failed unexpectedly, unless the test is marked `pulsecart_allow_failures`.
    See `pulsecart.testing.RecordingTransport`.
    """
    from pulsecart.testing.recording import RecordingTransport

    events = RecordingTransport()
    yield events
    if request.node.get_closest_marker(ALLOW_FAILURES) is None:
        try:
            events.assert_nothing_unexpected()
        except AssertionError as error:
            pytest.fail(f"{error}\nIf this is right, mark the test with @pytest.mark.{ALLOW_FAILURES}.", pytrace=False)


@pytest.fixture
def pulsecart_settings() -> "Settings":
    """Return the settings of `pulsecart_service`; override this fixture to change them. The environment is not read."""
    from pulsecart.serve.settings import Settings

    return Settings(transport="memory", log_level="error")


@pytest.fixture
def pulsecart_service(pulsecart_events: "RecordingTransport", pulsecart_settings: "Settings") -> Iterator["Service"]:
    """Run the service on `pulsecart_events`, without a network: `.client` is a synchronous `httpx.Client`."""
    from pulsecart.testing.service import running

    with running(pulsecart_events, pulsecart_settings) as service:
        yield service


@pytest.fixture(scope="session")
def pulsecart_emulator() -> Iterator[str]:
    """Return the host:port of a Pub/Sub emulator: that of PUBSUB_EMULATOR_HOST, or gcloud's, started once in a session.

    Without gcloud the test is skipped, or fails if CI is set in the environment.
    """
    from pulsecart.testing.emulator import EmulatorMissing, emulator

    try:
        with emulator() as host:
            yield host
    except EmulatorMissing as error:
        give_up = pytest.fail if os.environ.get("CI") else pytest.skip
        give_up(f"there is no Pub/Sub emulator: {error}")
