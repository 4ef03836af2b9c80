"""The Pub/Sub emulator: a local broker that needs no credentials."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pulsecart.limits import Limits
from pulsecart.ports import UNOBSERVED, Observer
from pulsecart.transports.pubsub.remote import DEFAULT_CONNECTIONS, RemoteTransport, WireName
from pulsecart.transports.registry import TransportConfig

if TYPE_CHECKING:
    from pulsecart.transports.pubsub.publisher import Publisher
    from pulsecart.transports.pubsub.wire import Wire

__all__ = ["EmulatorTransport", "from_config"]

_DEFAULT = Limits()


class EmulatorTransport(RemoteTransport):
    """Publishes to a Pub/Sub emulator at `host`, such as `127.0.0.1:8085`.

    An emulator loses its topics when it restarts. With `creates_topics`, publishing creates a missing topic.

    `wire` and `connections` are those of `PubSubTransport`.
    """

    def __init__(  # noqa: PLR0913 (all of them are options)
        self,
        *,
        project: str,
        host: str,
        wire: WireName = "rest",
        connections: int = DEFAULT_CONNECTIONS,
        limits: Limits = _DEFAULT,
        creates_topics: bool = False,
        observer: Observer = UNOBSERVED,
    ) -> None:
        self._project = project
        self._host = host
        self._wire = wire
        self._connections = connections
        self._limits = limits
        self._creates_topics = creates_topics
        self._observer = observer

    async def create_topics(self, topics: Iterable[str]) -> None:
        """Create topics; existing ones are not changed. Raises `BrokerUnavailable`."""
        await self._open().create_topics(topics)

    async def _connect(self) -> "Publisher":
        from pulsecart.transports.pubsub.publisher import Publisher
        from pulsecart.transports.pubsub.wire.dial import split_address

        return Publisher(
            self._make_wire(),
            project=self._project,
            server=split_address(self._host),
            limits=self._limits,
            creates_topics=self._creates_topics,
            observer=self._observer,
        )

    def _make_wire(self) -> "Wire":
        if self._wire == "grpc":
            from pulsecart.transports.pubsub.wire.grpc import GrpcWire, insecure

            return GrpcWire(insecure(self._host), timeout=self._limits.attempt_timeout)
        from pulsecart.transports.pubsub.wire.dial import Endpoint, split_address
        from pulsecart.transports.pubsub.wire.rest import RestWire

        host, port = split_address(self._host)
        return RestWire(
            Endpoint(host=host, port=port), connections=self._connections, timeout=self._limits.attempt_timeout
        )


def from_config(config: TransportConfig) -> EmulatorTransport:
    """Return the transport `emulator`."""
    config.allow_options()
    return EmulatorTransport(
        project=config.project,
        host=config.settings.emulator_host,
        wire=config.settings.wire,
        connections=config.settings.connections,
        limits=config.limits,
        creates_topics=config.environment == "dev",
        observer=config.observer,
    )
