"""The Pub/Sub emulator: a local broker that needs no credentials."""

from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from pulsecart.limits import Limits
from pulsecart.ports import UNOBSERVED, Observer
from pulsecart.transports.pubsub.remote import (
    API_ANSWER_BYTES,
    CALL_SECONDS,
    DEFAULT_CONNECTIONS,
    RemoteTransport,
    WireName,
)
from pulsecart.transports.registry import TransportConfig

if TYPE_CHECKING:
    from pulsecart.transports.pubsub.api import Api
    from pulsecart.transports.pubsub.publisher import Publisher
    from pulsecart.transports.pubsub.wire import Wire
    from pulsecart.transports.pubsub.wire.dial import Endpoint
    from pulsecart.transports.pubsub.wire.rest import RestWire

__all__ = ["EmulatorTransport", "from_config"]

_DEFAULT = Limits()
_SAME_NAMES: Mapping[str, str] = {}


class EmulatorTransport(RemoteTransport):
    """Publishes to a Pub/Sub emulator at `host`, such as `127.0.0.1:8085`.

    An emulator loses its topics when it restarts. With `creates_topics`, publishing creates a missing topic.

    `wire`, `connections` and `topics` are those of `PubSubTransport`.
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
        topics: Mapping[str, str] = _SAME_NAMES,
        observer: Observer = UNOBSERVED,
    ) -> None:
        self._project = project
        self._host = host
        self._wire = wire
        self._connections = connections
        self._limits = limits
        self._creates_topics = creates_topics
        self._topics = topics
        self._observer = observer

    async def create_topics(self, topics: Iterable[str]) -> None:
        """Create topics; existing ones are not changed. Raises `BrokerUnavailable`."""
        await self._open().create_topics(topics)

    @asynccontextmanager
    async def api(self, *, timeout: float = CALL_SECONDS) -> "AsyncIterator[Api]":  # noqa: ASYNC109
        """Give access to the emulator's REST API, whether this transport is open or not.

        Each answer is waited for at most `timeout` seconds.
        """
        from pulsecart.transports.pubsub.api import Api

        wire = self._make_rest(timeout, max_answer=API_ANSWER_BYTES)
        try:
            yield Api(wire)
        finally:
            await wire.aclose()

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
            names=self._topics,
        )

    def _make_wire(self) -> "Wire":
        if self._wire == "grpc":
            from pulsecart.transports.pubsub.wire.grpc import GrpcWire, insecure

            return GrpcWire(insecure(self._host), timeout=self._limits.attempt_timeout)
        return self._make_rest(self._limits.attempt_timeout)

    def _make_rest(self, timeout: float, **options: int) -> "RestWire":
        from pulsecart.transports.pubsub.wire.rest import RestWire

        return RestWire(self.endpoint(), connections=self._connections, timeout=timeout, **options)

    def endpoint(self) -> "Endpoint":
        """Return how connections for REST are made."""
        from pulsecart.transports.pubsub.wire.dial import Endpoint, split_address

        host, port = split_address(self._host)
        return Endpoint(host=host, port=port)


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
        topics=config.settings.topics,
        observer=config.observer,
    )
