"""Transports of others, as a type checker sees them. Never run: `nox -s typecheck` checks it."""

from collections.abc import Iterable
from types import TracebackType

import pytest

from pulsecart import Limits, Message, Producer, Transport
from pulsecart.app import create_app
from pulsecart.guard import guarded
from pulsecart.testing import Delivered, TransportContract
from pulsecart.transports import KeyedQueues, Request, TransportConfig


class Own:
    """Parameters have names of its own, and more of them if they have defaults."""

    async def publish(self, event: Message, *, urgent: bool = False) -> str:
        return f"{event.topic}-{urgent}"

    async def check(self, names: Iterable[str]) -> list[str]:
        return list(names)

    async def aclose(self) -> None:
        pass

    async def __aenter__(self) -> None:
        pass

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        pass


class Loose(Own):
    async def __aexit__(self, *_: object) -> None:
        pass


class Incomplete:
    async def publish(self, message: Message) -> str:
        return message.topic


def from_config(config: TransportConfig) -> Transport:
    config.allow_options("path")
    queues = KeyedQueues(send, config.limits, observer=config.observer)
    del queues
    return Own() if config.options.get("path") else Loose()


async def send(request: Request) -> list[str]:
    return [request.topic for _ in request.messages]


class TestOwn(TransportContract):
    ordered = False

    @pytest.fixture
    def transport(self) -> Transport:
        return Own()

    @pytest.fixture
    def delivered(self) -> Delivered:
        return list


async def use() -> None:
    create_app(transport=Own())
    Producer(Loose(), limits=Limits(deadline=1))
    Producer(Incomplete())  # type: ignore[arg-type]
    transport = guarded(Own(), name="own")
    async with transport:
        await transport.check(["t"])
