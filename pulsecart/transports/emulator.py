"""The Pub/Sub emulator: a local broker that needs no credentials."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pulsecart.limits import Limits
from pulsecart.ports import UNOBSERVED, Observer
from pulsecart.transports.pubsub.remote import RemoteTransport

if TYPE_CHECKING:
    from pulsecart.transports.pubsub.publisher import Publisher

__all__ = ["EmulatorTransport"]

_DEFAULT = Limits()


class EmulatorTransport(RemoteTransport):
    """Publishes to a Pub/Sub emulator at `host`, such as `127.0.0.1:8085`.

    An emulator loses its topics when it restarts. With `creates_topics`, publishing creates a missing topic.
    """

    def __init__(
        self,
        *,
        project: str,
        host: str,
        limits: Limits = _DEFAULT,
        creates_topics: bool = False,
        observer: Observer = UNOBSERVED,
    ) -> None:
        self._project = project
        self._host = host
        self._limits = limits
        self._creates_topics = creates_topics
        self._observer = observer

    async def create_topics(self, topics: Iterable[str]) -> None:
        """Create topics; existing ones are not changed. Raises `BrokerUnavailable`."""
        await self._open().create_topics(topics)

    async def _connect(self) -> "Publisher":
        from pulsecart.transports.pubsub.publisher import Publisher, insecure_channel

        channels = [insecure_channel(self._host) for _ in range(2)]
        return Publisher(
            channels,
            project=self._project,
            address=self._host,
            limits=self._limits,
            creates_topics=self._creates_topics,
            observer=self._observer,
        )
