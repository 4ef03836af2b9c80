"""pulsecart validates commerce events and publishes them to Google Pub/Sub.

    async with MemoryTransport() as transport:
        receipt = await Producer(transport).ingest(body)

The names of the core, all in `pulsecart.names`, are imported on first access: every run of pytest imports this package
for its fixtures. Transports are in `pulsecart.transports`, the event classes in `pulsecart.events`, the HTTP service in
`pulsecart.app`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pulsecart.names import *  # noqa: F403

__version__: str


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version  # reading the metadata is slow, and few need it

        return version("pulsecart")
    names = import_module("pulsecart.names")
    if name != "__all__" and name not in names.__all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(names, name)
