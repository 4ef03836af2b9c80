"""OpenTelemetry traces and metrics, and logs.

`Telemetry` is the observer that reports to the providers that the host, or `export` for the service, has set. A host
with a TracerProvider of its own gives it `EventIdGenerator` and `EventSampler`. Each is imported when it is first asked
for: the latter two need the SDK.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pulsecart.telemetry.observer import Telemetry
    from pulsecart.telemetry.sampling import EventIdGenerator, EventSampler

__all__ = ["EventIdGenerator", "EventSampler", "Telemetry"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "observer" if name == "Telemetry" else "sampling"
    return getattr(import_module(f"pulsecart.telemetry.{module}"), name)
