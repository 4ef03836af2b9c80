"""The whole contract of transports, against a real server."""

from functools import partial

import pytest
from pulsecart_nats import NatsTransport

from pulsecart.testing import Delivered, Outage, TransportContract


class TestNats(TransportContract):
    @pytest.fixture
    async def transport(self, server) -> NatsTransport:
        await server.create(*self.topics)
        return NatsTransport(server.url)

    @pytest.fixture
    def delivered(self, server) -> Delivered:
        return partial(server.messages, *self.topics)

    @pytest.fixture
    def outage(self, server) -> Outage:
        return server.outage


class TestNatsWithItsOwnLimit(TestNats):
    """NATS counts headers, too."""

    largest = 1_000_000

    @pytest.fixture
    def max_payload(self) -> int:
        return 1_048_576
