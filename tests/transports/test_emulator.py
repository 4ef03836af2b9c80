"""The emulator transport: its contract on the strict server and on the real emulator, and its faults."""

import asyncio
import os
import socket
import uuid
from collections.abc import AsyncIterator

import grpc
import pytest
from google.pubsub_v1.types import PublishResponse

from pulsecart import BrokerRefused, BrokerUnavailable, Message, MessageRefused, TransportClosed
from pulsecart.transports import EmulatorTransport
from tests.strict_server import StrictServer, strict_server
from tests.subscriber import subscriber
from tests.transports.contract import TOPICS, Opened, TransportContract, message

DEADLINE = 0.5


@pytest.fixture
async def server() -> AsyncIterator[StrictServer]:
    async with strict_server(TOPICS) as service:
        yield service


@pytest.fixture
async def transport(server) -> AsyncIterator[EmulatorTransport]:
    async with EmulatorTransport(project="test", host=server.host, deadline=DEADLINE) as opened:
        yield opened


class TestContractOnTheStrictServer(TransportContract):
    @pytest.fixture
    async def opened(self, server) -> AsyncIterator[Opened]:
        async def published(topic: str, _count: int) -> list[Message]:
            return [
                Message(topic=topic, data=m.data, attributes=dict(m.attributes), ordering_key=m.ordering_key)
                for request in server.requests
                for m in request.messages
                if request.topic == f"projects/test/topics/{topic}"
            ]

        async with EmulatorTransport(project="test", host=server.host) as opened:
            yield Opened(opened, published)


@pytest.mark.emulator
class TestContractOnTheEmulator(TransportContract):
    @pytest.fixture
    async def opened(self) -> AsyncIterator[Opened]:
        host = os.environ["PUBSUB_EMULATOR_HOST"]
        project = f"p-{uuid.uuid4().hex[:12]}"
        async with EmulatorTransport(project=project, host=host) as opened:
            await opened.create_topics(TOPICS)
            with subscriber(host, project) as client:
                client.subscribe(TOPICS)

                async def published(topic: str, count: int) -> list[Message]:
                    return await asyncio.to_thread(client.pull, topic, count)

                yield Opened(opened, published)


pytestmark = pytest.mark.anyio


async def test_one_request_at_a_time_for_a_key(server, transport):
    """While a key's request is in flight its next waits, and other keys do not."""
    gate = asyncio.Event()
    server.script.append(gate)
    first = asyncio.create_task(transport.publish(message(1, "a")))
    await server.received(1)
    second = asyncio.create_task(transport.publish(message(2, "a")))
    await transport.publish(message(3, "b"))
    assert [m.ordering_key for m in server.messages] == ["a", "b"]
    gate.set()
    await asyncio.gather(first, second)
    assert server.most_in_flight == {"a": 1, "b": 1}


@pytest.mark.parametrize(
    "status",
    ["ABORTED", "CANCELLED", "DEADLINE_EXCEEDED", "INTERNAL", "RESOURCE_EXHAUSTED", "UNAVAILABLE", "UNKNOWN"],
)
async def test_a_passing_failure_is_tried_again(server, transport, status):
    """What may pass by itself is retried within the deadline, and the caller never hears of it."""
    server.script.append(grpc.StatusCode[status])
    assert await transport.publish(message(1))
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("status", "error"),
    [
        ("INVALID_ARGUMENT", MessageRefused),
        ("NOT_FOUND", BrokerRefused),
        ("PERMISSION_DENIED", BrokerRefused),
        ("UNAUTHENTICATED", BrokerRefused),
        ("FAILED_PRECONDITION", BrokerUnavailable),
        ("DATA_LOSS", BrokerUnavailable),
    ],
)
async def test_a_lasting_failure_is_told_at_once(server, transport, status, error):
    """A refusal is not retried, says whose fault it is, and leaves the key free."""
    server.script.append(grpc.StatusCode[status])
    with pytest.raises(error, match="topic contract-a.*as the test's script says"):
        await transport.publish(message(1))
    assert len(server.requests) == 1
    assert await transport.publish(message(2))


async def test_a_missing_topic_is_the_operators_matter(transport):
    """Publishing to a topic that does not exist names the topic."""
    with pytest.raises(BrokerRefused, match="no-such-topic"):
        await transport.publish(message(1, topic="no-such-topic"))


async def test_the_deadline_ends_a_broker_that_hangs(server, transport):
    """A broker that never answers is a BrokerUnavailable after the deadline, and the key goes on."""
    server.script.append(asyncio.Event())
    with pytest.raises(BrokerUnavailable, match=r"did not confirm within 0.5 s"):
        await transport.publish(message(1))
    assert await transport.publish(message(2))


async def test_the_deadline_counts_the_wait_for_the_turn(server, transport):
    """A message that waits behind a hanging one fails with it, not one deadline later."""
    server.script.extend([asyncio.Event(), asyncio.Event()])
    clock = asyncio.get_running_loop().time
    start = clock()
    failed = await asyncio.gather(*(transport.publish(message(n)) for n in range(2)), return_exceptions=True)
    assert [type(error) for error in failed] == [BrokerUnavailable, BrokerUnavailable]
    assert clock() - start < 2 * DEADLINE


async def test_an_unreachable_broker_is_unavailable_and_says_why():
    """Where nothing listens, publish fails within the deadline, with the last failure, and so does a check."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        host = f"127.0.0.1:{free.getsockname()[1]}"
    async with EmulatorTransport(project="test", host=host, deadline=DEADLINE) as transport:
        with pytest.raises(BrokerUnavailable, match="its last answer was 503"):
            await transport.publish(message(1))
        with pytest.raises(BrokerUnavailable):
            await transport.check(TOPICS)
        with pytest.raises(BrokerUnavailable):
            await transport.create_topics(TOPICS)


@pytest.mark.parametrize("count", [0, 2])
async def test_an_answer_without_our_message_id_is_no_confirmation(server, transport, count):
    """A broker that returns too few or too many ids has not confirmed."""
    server.script.append(PublishResponse(message_ids=["1"] * count))
    with pytest.raises(BrokerUnavailable, match=f"{count} message ids for one message"):
        await transport.publish(message(1))


async def test_a_caller_that_gives_up_does_not_block_its_key(server, transport):
    """A cancelled publish frees the key for the next."""
    server.script.append(asyncio.Event())
    publishing = asyncio.create_task(transport.publish(message(1)))
    await server.received(1)
    publishing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await publishing
    assert await transport.publish(message(2))


async def test_missing_topics_are_named_and_can_be_created(transport):
    """A check names what is missing; creating it twice is no error."""
    assert await transport.check([*TOPICS, "new-topic"]) == ["new-topic"]
    await transport.create_topics(["new-topic", *TOPICS])
    assert await transport.check([*TOPICS, "new-topic"]) == []


async def test_a_topic_that_may_not_be_looked_at_counts_as_there(server, transport):
    """PERMISSION_DENIED reaches the broker: the topic is unverified, not missing."""
    server.look_up = grpc.StatusCode.PERMISSION_DENIED
    assert await transport.check(TOPICS) == []


async def test_a_check_of_a_broker_that_hangs_ends(server, transport, monkeypatch):
    """A broker that accepts and never answers is unavailable to a check too."""
    monkeypatch.setattr("pulsecart.transports.publisher.CHECK_SECONDS", 0.2)
    server.look_up = asyncio.Event()
    with pytest.raises(BrokerUnavailable, match="within 0.2 s"):
        await transport.check(TOPICS)
    with pytest.raises(BrokerUnavailable, match="within 0.2 s"):
        await transport.create_topics(TOPICS)


async def test_an_unopened_transport_says_how_to_open_it():
    """Use before `async with` is an error that names the remedy."""
    with pytest.raises(TransportClosed, match="async with"):
        await EmulatorTransport(project="test", host="127.0.0.1:1").publish(message(1))


async def test_closing_while_a_message_is_retried_ends_it():
    """A publish whose transport is closed under it ends with an error of ours."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        host = f"127.0.0.1:{free.getsockname()[1]}"
    async with EmulatorTransport(project="test", host=host, deadline=30) as transport:
        publishing = asyncio.create_task(transport.publish(message(1)))
        await asyncio.sleep(0)
    with pytest.raises((TransportClosed, BrokerUnavailable)):
        await publishing


async def test_a_transport_is_opened_once(transport):
    """To open an open transport is refused: its first channel would be lost."""
    with pytest.raises(RuntimeError, match="open already"):
        await transport.__aenter__()
