"""The emulator transport: the contract on the strict server and on the real emulator, and how it handles failures."""

import asyncio
import gc
import os
import socket
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import grpc
import pytest

from pulsecart import (
    Aborted,
    Batching,
    BrokerRefused,
    BrokerUnavailable,
    Limits,
    Message,
    MessageRefused,
    Overloaded,
    TransportClosed,
)
from pulsecart.ports import Load, Unobserved
from pulsecart.testing import Delivered, Outage, StrictPubsub, TransportContract, strict_pubsub
from pulsecart.transports import EmulatorTransport
from tests.faults.proxy import Proxy, proxy
from tests.subscriber import Subscriber, subscriber
from tests.transports.messages import TOPICS, confirmed_by, message

DEADLINE = 0.5


@pytest.fixture(params=["rest", "grpc"])
def wire(request) -> str:
    return request.param


@pytest.fixture
async def server() -> AsyncIterator[StrictPubsub]:
    async with strict_pubsub(TOPICS) as service:
        yield service


@pytest.fixture
async def transport(server, wire) -> AsyncIterator[EmulatorTransport]:
    async with EmulatorTransport(
        wire=wire, project="test", host=server.host, limits=Limits(deadline=DEADLINE)
    ) as opened:
        yield opened


class ContractBehindAProxy(TransportContract):
    @pytest.fixture
    def outage(self, passes: Proxy) -> Outage:
        @asynccontextmanager
        async def is_away() -> AsyncIterator[None]:
            await passes.refuse()
            yield
            await passes.listen()

        return is_away


class TestContractOnTheStrictServer(ContractBehindAProxy):
    @pytest.fixture
    async def passes(self, server) -> AsyncIterator[Proxy]:
        async with proxy(server.host) as passing:
            yield passing

    @pytest.fixture
    def transport(self, passes, wire) -> EmulatorTransport:
        return EmulatorTransport(wire=wire, project="test", host=passes.address)

    @pytest.fixture
    def delivered(self, server) -> Delivered:
        return lambda: confirmed_by(server)


@pytest.mark.emulator
class TestContractOnTheEmulator(ContractBehindAProxy):
    @pytest.fixture
    def project(self) -> str:
        return f"p-{uuid.uuid4().hex[:12]}"

    @pytest.fixture
    async def passes(self) -> AsyncIterator[Proxy]:
        async with proxy(os.environ["PUBSUB_EMULATOR_HOST"]) as passing:
            yield passing

    @pytest.fixture
    def client(self, project) -> Iterator[Subscriber]:
        with subscriber(os.environ["PUBSUB_EMULATOR_HOST"], project) as opened:
            for topic in TOPICS:
                opened.create_topic(topic)
            opened.subscribe(TOPICS)
            yield opened

    @pytest.fixture
    def transport(self, client, passes, project, wire) -> EmulatorTransport:
        return EmulatorTransport(wire=wire, project=project, host=passes.address)

    @pytest.fixture
    def delivered(self, client) -> Delivered:
        found: list[Message] = []

        async def pull() -> list[Message]:
            for topic in TOPICS:
                found.extend(await asyncio.to_thread(client.pull, topic, 0))
            return found

        return pull


pytestmark = pytest.mark.anyio


async def test_key_has_one_request_in_flight(server, transport):
    """While a request of a key is in flight, its next message waits; other keys do not wait."""
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
async def test_transient_failure_is_retried(server, transport, status):
    """A failure that may be temporary is retried within the deadline, and the caller does not notice it."""
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
async def test_permanent_failure_is_raised_at_once(server, transport, status, error):
    """A permanent failure is not retried, is raised as the right class, and does not block the key."""
    server.script.append(grpc.StatusCode[status])
    with pytest.raises(error, match=rf"topic contract-a.* \({status}\)$") as caught:
        await transport.publish(message(1))
    assert caught.value.log_detail == f"topic contract-a: {status}: as the script says"
    assert len(server.requests) == 1
    assert await transport.publish(message(2))


async def test_missing_topic_is_named(transport):
    """Publishing to a topic that does not exist raises BrokerRefused with the topic's name."""
    with pytest.raises(BrokerRefused, match="no-such-topic"):
        await transport.publish(message(1, topic="no-such-topic"))


async def test_missing_topic_is_created_if_enabled(server, wire):
    """With `creates_topics`, messages to a topic that the emulator has lost are published in order."""
    async with EmulatorTransport(wire=wire, project="test", host=server.host, creates_topics=True) as transport:
        server.topics.clear()
        results = await burst(server, transport, [message(n) for n in range(5)])
    assert results == ["1", "2", "3", "4", "5"]
    assert [m.data for m in server.confirmed] == [message(n).data for n in range(5)]


async def test_topic_that_cannot_be_created_fails_at_the_deadline(server, monkeypatch, wire):
    """With `creates_topics`, a broker that answers NOT_FOUND and does not create the topic counts as unavailable."""
    monkeypatch.setattr("pulsecart.transports.pubsub.admin.CHECK_SECONDS", 0.1)
    limits = Limits(deadline=DEADLINE)
    async with EmulatorTransport(
        wire=wire, project="test", host=server.host, limits=limits, creates_topics=True
    ) as transport:
        server.topics.clear()
        server.look_up = asyncio.Event()  # to create a topic hangs
        with pytest.raises(BrokerUnavailable, match="did not confirm within 0.5 s"):
            await transport.publish(message(1))
        server.look_up = None
        assert await transport.publish(message(2))


async def test_hanging_broker_fails_at_the_deadline(server, transport):
    """A broker that never answers is BrokerUnavailable after the deadline, and the key can be published to again."""
    server.script.extend([asyncio.Event(), asyncio.Event()])  # one for each attempt
    with pytest.raises(BrokerUnavailable, match=r"did not confirm within 0.5 s"):
        await transport.publish(message(1))
    assert await transport.publish(message(2))


async def test_deadline_includes_the_wait_for_the_key(server, transport):
    """A message that waits behind a hanging one fails at its own deadline, not one deadline later."""
    server.script.extend([asyncio.Event(), asyncio.Event()])
    clock = asyncio.get_running_loop().time
    start = clock()
    failed = await asyncio.gather(*(transport.publish(message(n)) for n in range(2)), return_exceptions=True)
    assert [type(error) for error in failed] == [BrokerUnavailable, BrokerUnavailable]
    assert clock() - start < 2 * DEADLINE


async def test_unreachable_broker_fails_within_the_deadline(wire):
    """If nothing listens, publish, check and create_topics fail in time; the address is only in `log_detail`."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        host = f"127.0.0.1:{free.getsockname()[1]}"
    async with EmulatorTransport(wire=wire, project="test", host=host, limits=Limits(deadline=DEADLINE)) as transport:
        calls = transport.publish(message(1)), transport.check(TOPICS), transport.create_topics(TOPICS)
        for call in calls:
            with pytest.raises(BrokerUnavailable, match=r"broker .*\(UNAVAILABLE\)$") as caught:
                await call
            assert "127.0.0.1" not in str(caught.value)
            assert host in caught.value.log_detail


@pytest.mark.parametrize("count", [0, 2])
async def test_wrong_number_of_message_ids_is_no_confirmation(server, transport, count):
    """A broker that returns too few or too many message ids has not confirmed the message."""
    server.script.append(["1"] * count)
    with pytest.raises(BrokerUnavailable, match=f"{count} message ids for 1"):
        await transport.publish(message(1))


async def test_cancelled_publish_does_not_block_its_key(server, transport):
    """After a publish is cancelled, the key's next message is published."""
    server.script.append(asyncio.Event())
    publishing = asyncio.create_task(transport.publish(message(1)))
    await server.received(1)
    publishing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await publishing
    assert await transport.publish(message(2))


async def test_check_names_missing_topics_that_can_be_created(transport):
    """A check names missing topics; creating one that exists is not an error."""
    assert await transport.check([*TOPICS, "new-topic"]) == ["new-topic"]
    await transport.create_topics(["new-topic", *TOPICS])
    assert await transport.check([*TOPICS, "new-topic"]) == []


async def test_topic_without_permission_to_read_counts_as_existing(server, transport):
    """PERMISSION_DENIED is an answer of the broker: the topic is unverified, not missing."""
    server.look_up = grpc.StatusCode.PERMISSION_DENIED
    assert await transport.check(TOPICS) == []


async def test_check_of_a_hanging_broker_times_out(server, transport, monkeypatch):
    """A check and create_topics fail in time if the broker accepts the connection and never answers."""
    monkeypatch.setattr("pulsecart.transports.pubsub.admin.CHECK_SECONDS", 0.2)
    server.look_up = asyncio.Event()
    with pytest.raises(BrokerUnavailable, match="within 0.2 s"):
        await transport.check(TOPICS)
    with pytest.raises(BrokerUnavailable, match="within 0.2 s"):
        await transport.create_topics(TOPICS)


async def test_unopened_transport_names_async_with(wire):
    """Publishing before `async with` is an error that says how to open the transport."""
    with pytest.raises(TransportClosed, match="async with"):
        await EmulatorTransport(wire=wire, project="test", host="127.0.0.1:1").publish(message(1))


async def test_close_during_a_retry_fails_the_message(monkeypatch, wire):
    """A publish whose transport is closed meanwhile raises TransportClosed or BrokerUnavailable."""
    monkeypatch.setattr("pulsecart.transports.pubsub.publisher.DRAIN_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as free:
        host = f"127.0.0.1:{free.getsockname()[1]}"
    async with EmulatorTransport(wire=wire, project="test", host=host, limits=Limits(deadline=30)) as transport:
        publishing = asyncio.create_task(transport.publish(message(1)))
        await asyncio.sleep(0)
    with pytest.raises((TransportClosed, BrokerUnavailable)):
        await publishing


async def test_open_transport_cannot_be_opened_again(transport):
    """Opening an open transport is an error: its first channels would be lost."""
    with pytest.raises(RuntimeError, match="open already"):
        await transport.__aenter__()


async def burst(
    server: StrictPubsub, transport: EmulatorTransport, messages: list[Message]
) -> list[str | BaseException]:
    """Publish messages while the first of them is held in flight, so that the others wait behind it."""
    gate = asyncio.Event()
    server.script.append(gate)
    first = asyncio.create_task(transport.publish(messages[0]))
    await server.received(1)
    others = [asyncio.create_task(transport.publish(each)) for each in messages[1:]]
    await asyncio.sleep(0)
    gate.set()
    return await asyncio.gather(first, *others, return_exceptions=True)


async def test_waiting_messages_share_the_next_request(server, wire):
    """Messages that wait behind a request of their key form batches up to the limit, in order."""
    limits = Limits(batching={TOPICS[0]: Batching(max_messages=10)})
    async with EmulatorTransport(wire=wire, project="test", host=server.host, limits=limits) as transport:
        ids = await burst(server, transport, [message(n) for n in range(26)])
    assert [len(request.messages) for request in server.requests] == [1, 10, 10, 5]
    assert [m.data for m in server.messages] == [message(n).data for n in range(26)]
    assert ids == [str(n) for n in range(1, 27)]


async def test_batch_is_limited_in_bytes(server, wire):
    """A batch stays within its limit of bytes; a message that is larger is sent alone."""
    size = message(1).size
    limits = Limits(batching={TOPICS[0]: Batching(max_bytes=3 * size)})
    large = Message(topic=TOPICS[0], data=b"x" * 5 * size, attributes={}, ordering_key="user")
    async with EmulatorTransport(wire=wire, project="test", host=server.host, limits=limits) as transport:
        await burst(server, transport, [message(n) for n in range(5)] + [large] + [message(n) for n in range(3)])
    assert [len(request.messages) for request in server.requests] == [1, 3, 1, 1, 3]


async def test_keys_do_not_share_a_request(server, wire):
    """A request has messages of one ordering key only."""
    async with EmulatorTransport(wire=wire, project="test", host=server.host) as transport:
        calls = [message(n, f"user-{n % 3}") for n in range(60)]
        await asyncio.gather(*map(transport.publish, calls))
    assert all(len({m.ordering_key for m in request.messages}) == 1 for request in server.requests)
    assert server.most_in_flight == {"user-0": 1, "user-1": 1, "user-2": 1}


async def test_batch_waits_for_its_max_latency(server, wire):
    """With a `max_latency`, later messages share the first request; a full batch does not wait."""
    limits = Limits(
        deadline=20,
        batching={TOPICS[0]: Batching(max_latency=0.2), TOPICS[1]: Batching(max_messages=3, max_latency=10)},
    )
    async with EmulatorTransport(wire=wire, project="test", host=server.host, limits=limits) as transport:
        first = asyncio.create_task(transport.publish(message(1, "")))
        await asyncio.sleep(0)
        await asyncio.gather(transport.publish(message(2, "")), first)
        async with asyncio.timeout(5):
            await asyncio.gather(*(transport.publish(message(n, "", TOPICS[1])) for n in range(3)))
    assert [len(request.messages) for request in server.requests] == [2, 3]


async def test_full_batch_without_a_key_is_sent_at_once(server, wire):
    """Unordered messages that fill a batch do not wait for the previous request."""
    gate = asyncio.Event()
    server.script.append(gate)
    limits = Limits(batching={TOPICS[0]: Batching(max_messages=5)})
    async with EmulatorTransport(wire=wire, project="test", host=server.host, limits=limits) as transport:
        first = asyncio.create_task(transport.publish(message(0, "")))
        await server.received(1)
        await asyncio.gather(*(transport.publish(message(n, "")) for n in range(5)))
        assert not first.done()
        gate.set()
        await first


@pytest.mark.parametrize("poisoned", [[0], [49], [99], [10, 11], [3, 50, 97]])
async def test_rejected_message_fails_alone(server, transport, poisoned):
    """Only the messages that the broker rejects fail; the others of their batch are published in order."""
    server.poison = b"poison"
    messages = [message(-1)]
    for number in range(100):
        data = b"poison" if number in poisoned else message(number).data
        messages.append(Message(topic=TOPICS[0], data=data, attributes={}, ordering_key="user"))
    results = (await burst(server, transport, messages))[1:]
    assert [n for n, result in enumerate(results) if isinstance(result, MessageRefused)] == poisoned
    assert all(isinstance(result, str) for n, result in enumerate(results) if n not in poisoned)
    numbers = [int(result) for result in results if isinstance(result, str)]
    assert numbers == sorted(numbers)


async def test_refused_topic_fails_the_waiting_messages_of_the_key(server, transport):
    """NOT_FOUND fails the request and what waits on its key, each with its own error; other keys are not affected."""
    topic = f"projects/test/topics/{TOPICS[0]}"
    gates = [asyncio.Event(), asyncio.Event()]
    server.script.extend(gates)
    tasks = []
    for key in ("a", "b"):
        tasks.append(asyncio.create_task(transport.publish(message(1, key))))
        await server.received(len(tasks))
    tasks += [asyncio.create_task(transport.publish(message(2, key))) for key in ("a", "b")]
    await asyncio.sleep(0)
    server.topics.remove(topic)
    gates[0].set()
    await asyncio.wait([tasks[0], tasks[2]])
    assert not tasks[1].done()
    assert not tasks[3].done()
    server.topics.add(topic)
    gates[1].set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [BrokerRefused, str, Aborted, str]
    assert results[0] is not results[2]
    assert await transport.publish(message(3, "a"))


async def test_messages_behind_a_failed_one_fail_too(server, transport):
    """When a batch fails, waiting messages of its key fail too, so that none overtakes; then the key continues."""
    server.script.extend([grpc.StatusCode.FAILED_PRECONDITION])
    results = await burst_failing(server, transport)
    assert [type(result) for result in results] == [BrokerUnavailable] * 3
    assert len(server.requests) == 1
    assert await transport.publish(message(9))


async def burst_failing(server: StrictPubsub, transport: EmulatorTransport) -> list[str | BaseException]:
    """Publish three messages of a key concurrently: the first is sent alone, the others wait."""
    return await asyncio.gather(*(transport.publish(message(n)) for n in range(3)), return_exceptions=True)


@pytest.mark.parametrize("limits", [Limits(max_messages=2), Limits(max_bytes=8 * message(1).size)])
async def test_publish_over_a_limit_is_refused_at_once(server, limits, wire):
    """At the limit of messages or of bytes in memory, further messages are rejected until one ends."""
    gate = asyncio.Event()
    server.script.append(gate)
    async with EmulatorTransport(wire=wire, project="test", host=server.host, limits=limits) as transport:
        taken = [asyncio.create_task(transport.publish(message(n))) for n in range(2)]
        await server.received(1)
        with pytest.raises(Overloaded, match="are in flight; the limits are"):
            await transport.publish(message(3))
        gate.set()
        await asyncio.gather(*taken)
        assert await transport.publish(message(4))
    assert len(server.messages) == 3


async def test_message_over_the_limit_of_bytes_is_published_alone(server, wire):
    """A message that is larger than the limit is published if nothing else is in flight."""
    async with EmulatorTransport(wire=wire, project="test", host=server.host, limits=Limits(max_bytes=10)) as transport:
        assert await transport.publish(message(1))


async def test_cancelled_publish_does_not_affect_its_batch(server, transport):
    """A cancelled message that still waits is not sent; the others of its batch are confirmed."""
    gates = [asyncio.Event(), asyncio.Event()]
    server.script.extend(gates)
    tasks = [asyncio.create_task(transport.publish(message(0)))]
    await server.received(1)
    tasks += [asyncio.create_task(transport.publish(message(n))) for n in (1, 2, 3)]
    await asyncio.sleep(0)
    tasks[1].cancel()
    gates[0].set()
    await server.received(2)
    tasks[2].cancel()
    gates[1].set()
    assert isinstance(await tasks[3], str)
    assert [m.data for m in server.messages] == [message(n).data for n in (0, 2, 3)]


class Watching(Unobserved):
    """Keeps the objects that it watches, and the error types of failed attempts."""

    def __init__(self) -> None:
        self.watched = []
        self.failed = []

    def watch(self, loaded):
        self.watched.append(loaded)

    def attempt_failed(self, error_type):
        self.failed.append(error_type)


async def test_no_trace_of_a_key_stays(server, wire):
    """After a message is confirmed or failed, nothing is counted, and no memory kept for its key."""
    observer = Watching()
    async with EmulatorTransport(wire=wire, project="test", host=server.host, observer=observer) as transport:
        loaded = next(each for each in observer.watched if not each.load().connections)

        async def publish_for(users: range) -> None:
            calls = (transport.publish(message(1, f"user-{n}")) for n in users)
            await asyncio.gather(*calls, return_exceptions=True)
            await asyncio.sleep(0)
            gc.collect()

        server.script.append(grpc.StatusCode.INVALID_ARGUMENT)
        await publish_for(range(200))
        assert loaded.load() == Load(messages=0, bytes=0, waiting=0, oldest_age=0.0)
        server.requests.clear()
        server.confirmed.clear()
        before = len(gc.get_objects())
        await publish_for(range(200, 600))
        assert loaded.load().messages == 0
        assert len(gc.get_objects()) - before < 400 * 20  # the test's server keeps what it got


def probe_often(monkeypatch) -> None:
    """Detect outages sooner than in production."""
    monkeypatch.setattr("pulsecart.transports.pubsub.reachability.PROBE_SECONDS", 0.05)
    monkeypatch.setattr("pulsecart.transports.pubsub.reachability.QUIET_SECONDS", 0.05)
    monkeypatch.setattr("pulsecart.transports.pubsub.reachability.AWAY_SECONDS", 0.1)
    monkeypatch.setattr("pulsecart.transports.pubsub.admin.CHECK_SECONDS", 0.2)


async def away(transport) -> BrokerUnavailable:
    """Wait until the broker is known to be away, and return what a check says."""
    async with asyncio.timeout(20):
        while True:
            try:
                await transport.check([])
            except BrokerUnavailable as error:
                if "cannot be reached" in str(error):
                    return error
            await asyncio.sleep(0.02)


async def back(transport) -> None:
    """Wait until the broker is known to be back."""
    async with asyncio.timeout(20):
        while True:
            with suppress(BrokerUnavailable):
                await transport.check([])
                return
            await asyncio.sleep(0.02)


async def test_outage_fails_fast_until_the_broker_is_back(monkeypatch, wire):
    """Soon after a missed deadline, checks and all publishes but one fail at once, until the broker is back."""
    probe_often(monkeypatch)
    async with AsyncExitStack() as serving:
        host = (await serving.enter_async_context(strict_pubsub(TOPICS))).host
        async with EmulatorTransport(
            wire=wire, project="test", host=host, limits=Limits(deadline=DEADLINE)
        ) as transport:
            await transport.publish(message(1))
            await serving.aclose()
            with pytest.raises(BrokerUnavailable):
                await transport.publish(message(2))
            await away(transport)
            trial = asyncio.create_task(transport.publish(message(3)))
            await asyncio.sleep(0)
            clock = asyncio.get_running_loop().time
            for ask in (lambda: transport.publish(message(3, "other")), lambda: transport.check(TOPICS)):
                start = clock()
                with pytest.raises(BrokerUnavailable, match="cannot be reached"):
                    await ask()
                assert clock() - start < 0.1
            with pytest.raises(BrokerUnavailable, match="did not confirm"):
                await trial
            async with strict_pubsub(TOPICS, port=int(host.rpartition(":")[2])):
                await back(transport)
                assert await transport.publish(message(4))


async def test_one_hanging_key_is_no_outage(server, transport):
    """While other keys are confirmed, a key that misses its deadline does not make the broker count as away."""
    hanging = asyncio.Event()
    server.script.extend([hanging, None])
    failing = asyncio.create_task(transport.publish(message(1, "hangs")))
    await server.received(1)
    await transport.publish(message(2, "other"))
    server.script.append(hanging)  # for the second attempt
    with pytest.raises(BrokerUnavailable, match="did not confirm"):
        await failing
    assert await transport.check([]) == []
    assert await transport.publish(message(3, "hangs"))


async def test_outage_is_detected_without_traffic(monkeypatch, wire):
    """The probe detects an outage though nothing is published."""
    probe_often(monkeypatch)
    async with (
        strict_pubsub(TOPICS) as server,
        EmulatorTransport(wire=wire, project="test", host=server.host) as transport,
    ):
        assert await transport.check(TOPICS) == []
        server.look_up = asyncio.Event()  # it hangs
        await away(transport)
        assert await transport.publish(message(1))  # one at a time is published nevertheless, and its answer counts
        assert await transport.check([]) == []
        server.look_up.set()


async def test_check_fails_while_a_message_waits_too_long(server, transport):
    """When the oldest message has waited for half of the deadline, a check fails."""
    server.script.extend([asyncio.Event(), asyncio.Event()])
    publishing = asyncio.create_task(transport.publish(message(1)))
    await server.received(2)  # the second attempt comes after half the deadline
    with pytest.raises(BrokerUnavailable, match="the oldest message has waited"):
        await transport.check(TOPICS)
    with pytest.raises(BrokerUnavailable):
        await publishing


async def test_close_waits_for_messages_in_flight(server, wire):
    """Messages in flight or waiting are published before the channels close; further ones are rejected."""
    gate = asyncio.Event()
    server.script.append(gate)
    async with EmulatorTransport(wire=wire, project="test", host=server.host) as transport:
        tasks = [asyncio.create_task(transport.publish(message(n))) for n in range(3)]
        await server.received(1)
        closing = asyncio.create_task(transport.aclose())
        await asyncio.sleep(0)
        with pytest.raises(TransportClosed):
            await transport.publish(message(4))
        gate.set()
        await closing
        assert all(isinstance(result, str) for result in await asyncio.gather(*tasks))


async def test_close_does_not_wait_for_a_hanging_broker(server, monkeypatch, wire):
    """Every message that is not confirmed within the time to drain fails."""
    monkeypatch.setattr("pulsecart.transports.pubsub.publisher.DRAIN_SECONDS", 0.1)
    server.script.append(asyncio.Event())
    async with EmulatorTransport(wire=wire, project="test", host=server.host) as transport:
        tasks = [asyncio.create_task(transport.publish(message(n))) for n in range(3)]
        await server.received(1)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [BrokerUnavailable] * 3


async def test_request_that_the_server_does_not_process_is_sent_once_an_attempt():
    """A server that ends each HTTP/2 connection before its first request gets one request for each attempt.

    gRPC would send it again without a pause, and use up memory and the processor's time.
    """
    requests = 0

    async def end_each_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal requests
        writer.write(b"\0\0\0\4\0\0\0\0\0")  # SETTINGS (RFC 9113, section 6.5)
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            await reader.readexactly(24)  # the preface
            kind = b""
            while kind != b"\1":  # HEADERS
                head = await reader.readexactly(9)
                await reader.readexactly(int.from_bytes(head[:3]))
                kind = head[3:4]
            requests += 1
            writer.write(b"\0\0\x08\7\0\0\0\0\0" + bytes(8))  # GOAWAY, which says that no request was processed
            await writer.drain()
        writer.close()

    watching = Watching()
    listener = await asyncio.start_server(end_each_connection, "127.0.0.1", 0)
    host = f"127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    limits = Limits(deadline=DEADLINE)
    async with (
        listener,
        EmulatorTransport(wire="grpc", project="test", host=host, limits=limits, observer=watching) as transport,
    ):
        with pytest.raises(BrokerUnavailable):
            await transport.publish(message(1))
    assert 0 < requests <= len(watching.failed)
