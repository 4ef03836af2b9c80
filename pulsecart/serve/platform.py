"""Where the service runs, and which address and transport follow from that."""

from collections.abc import Mapping
from typing import Any

from pulsecart.errors import SettingsError
from pulsecart.serve.hosts import is_loopback

__all__ = ["implied_host", "implied_transport"]

_CONTAINER_MARKS = ("K_SERVICE", "KUBERNETES_SERVICE_HOST")
"""Variables that Cloud Run and Kubernetes set."""


def implied_host(environment: Mapping[str, str]) -> str:
    """Return the address to listen on if none is set: in a container nothing else would be reached."""
    return "0.0.0.0" if _in_container(environment) else "127.0.0.1"  # noqa: S104


def _in_container(environment: Mapping[str, str]) -> bool:
    return any(environment.get(mark) for mark in _CONTAINER_MARKS)


def implied_transport(values: Mapping[str, Any], environment: Mapping[str, str]) -> str:
    """Return the transport to use if none is set. Raises `SettingsError` if events could be lost.

    `values` are the settings read so far.
    """
    runs_in = values.get("environment", "dev")
    if values.get("emulator_host"):
        if runs_in == "dev":
            return "emulator"
        problem = (
            f"PUBSUB_EMULATOR_HOST is set, but ENVIRONMENT is {runs_in} and PULSECART_TRANSPORT is not set: unset "
            "PUBSUB_EMULATOR_HOST, or set PULSECART_TRANSPORT=emulator if events are meant for an emulator"
        )
        raise SettingsError([problem])
    if runs_in == "dev" and not _in_container(environment) and is_loopback(values.get("host", "127.0.0.1")):
        return "memory"
    problem = (
        "PULSECART_TRANSPORT is not set. Its default, memory, loses all events when the service stops, so it only "
        "applies in development, on a loopback address and outside a container: set it"
    )
    raise SettingsError([problem])
