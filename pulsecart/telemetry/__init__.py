"""OpenTelemetry traces and metrics, and logs.

`tracing` and `metrics` are what the code that does the work calls: they need only OpenTelemetry's API, and do nothing
where nobody has set it up. `export` sets it up for the service; a host with a TracerProvider of its own gives it
`EventIdGenerator` and `EventSampler`, which are imported, with the SDK, when they are first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pulsecart.telemetry.sampling import EventIdGenerator, EventSampler

__all__ = ["EventIdGenerator", "EventSampler"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("pulsecart.telemetry.sampling"), name)
