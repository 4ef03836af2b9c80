"""The Pub/Sub emulator: a real broker on this machine, without credentials."""

from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from pulsecart.errors import TransportClosed
from pulsecart.limits import Limits
from pulsecart.message import Message

if TYPE_CHECKING:
    from pulsecart.transports.publisher import Publisher

__all__ = ["EmulatorTransport"]

_DEFAULT = Limits()


class EmulatorTransport:
    """Publishes to a Pub/Sub emulator at `host`, such as `127.0.0.1:8085`.

    Messages of one topic and ordering key are sent in order, one request at a time; what comes
    meanwhile shares the next.
    """

    def __init__(self, *, project: str, host: str, limits: Limits = _DEFAULT) -> None:
        self._project = project
        self._host = host
        self._limits = limits
        self._publisher: Publisher | None = None

    async def publish(self, message: Message) -> str:
        """Publish one message; see `Transport.publish`."""
        return await self._open().publish(message)

    async def check(self, topics: Iterable[str]) -> list[str]:
        """Return the topics that are missing; see `Transport.check`."""
        return await self._open().check(topics)

    async def create_topics(self, topics: Iterable[str]) -> None:
        """Create topics. One that is there already is left as it is. Raises `BrokerUnavailable`."""
        await self._open().create_topics(topics)

    async def aclose(self) -> None:
        """Let what is in flight end, for some seconds, and close the channel."""
        publisher, self._publisher = self._publisher, None
        if publisher is not None:
            await publisher.aclose()

    async def __aenter__(self) -> Self:
        if self._publisher is not None:
            raise RuntimeError("the emulator transport is open already")
        # Imported only now, since google's packages take most of a second to load.
        from pulsecart.transports.publisher import open_emulator

        self._publisher = open_emulator(self._host, project=self._project, limits=self._limits)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def _open(self) -> "Publisher":
        if self._publisher is None:
            raise TransportClosed("the emulator transport is not open; use it inside `async with`")
        return self._publisher
