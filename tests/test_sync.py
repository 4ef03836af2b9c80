"""SyncProducer: publishing from threads, without an event loop."""

import asyncio
import contextvars
import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from pulsecart import (
    BrokerUnavailable,
    Catalog,
    InvalidEvent,
    Limits,
    MessageTooLarge,
    Producer,
    SizeLimit,
    SyncProducer,
    TransportClosed,
    UnknownEventType,
    unordered,
)
from pulsecart.events import OrderPlaced
from pulsecart.testing import strict_pubsub
from pulsecart.transports import EmulatorTransport, MemoryTransport

TOPIC = OrderPlaced.topic
SECONDS = 30


def order(number=1, user_id="u1"):
    return OrderPlaced(user_id=user_id, order_id=f"o{number}", payload={"n": number})


def run(program, *, timeout=SECONDS, **options):
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=timeout, check=False, **options
    )


@pytest.fixture
def server():
    """Run a strict Pub/Sub server in a thread of its own, since the tests block theirs."""
    with SyncServer() as server:
        yield server


class SyncServer:
    def __enter__(self):
        self._ready, self._done = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self._thread.start()
        assert self._ready.wait(SECONDS)
        return self

    def __exit__(self, *error):
        self._done.set()
        self._thread.join(SECONDS)

    async def _serve(self):
        async with strict_pubsub([TOPIC]) as self.strict:
            self._ready.set()
            await asyncio.to_thread(self._done.wait)

    @property
    def host(self):
        return self.strict.host

    def transport(self):
        return EmulatorTransport(project="test", host=self.host)


def test_publish_returns_the_receipt():
    """An event is published when publish returns, and the receipt is the one of a Producer."""
    transport = MemoryTransport()
    with SyncProducer(transport) as producer:
        receipt = producer.publish(order())
    (message,) = transport.messages
    assert (receipt.topic, receipt.message_id, receipt.event_id) == (TOPIC, "1", message.attributes["event_id"])
    assert message.json()["order_id"] == "o1"


def test_prepared_event_is_published():
    """What Producer.prepare returns can be published."""
    transport = MemoryTransport()
    prepared = Producer(transport).prepare(order())
    with SyncProducer(transport) as producer:
        assert producer.publish(prepared).event_id == prepared.event_id


def test_options_are_those_of_producer():
    """Catalog, clock, ids, ordering, size limit and observer are passed on."""
    transport = MemoryTransport()
    ids = iter(["id-1", "id-2", "id-3"])
    options = {"catalog": Catalog([]), "new_event_id": lambda: next(ids), "ordering": {TOPIC: unordered}}
    with SyncProducer(transport, **options) as producer:
        assert producer.publish(order()).event_id == "id-1"
    assert transport.messages[0].ordering_key == ""
    with (
        SyncProducer(transport, size_limit=SizeLimit("small", data=10, total=1000)) as producer,
        pytest.raises(MessageTooLarge),
    ):
        producer.publish(order())
    with pytest.raises(TypeError, match="limit"):
        SyncProducer(transport, limit=1)


def test_errors_of_publish_are_raised():
    """Errors of the event and of the broker reach the thread that publishes, with the event id for a retry."""

    async def outage(message):
        raise BrokerUnavailable("away")

    with SyncProducer(MemoryTransport(outage)) as producer:
        with pytest.raises(InvalidEvent, match="/payload/n"):
            producer.publish(order(float("nan")))
        with pytest.raises(BrokerUnavailable, match="away") as raised:
            producer.publish(order())
    assert raised.value.event_id.startswith("evt_")


class FailsToOpen(MemoryTransport):
    async def __aenter__(self):
        raise UnknownEventType("no credentials")


def test_error_of_opening_is_raised_by_the_constructor():
    """A transport that does not open fails where it is opened, and leaves no thread behind."""
    with pytest.raises(UnknownEventType, match="no credentials"):
        SyncProducer(FailsToOpen())
    assert not [thread for thread in threading.enumerate() if thread.name == "pulsecart" and thread.is_alive()]


class FailsToClose(MemoryTransport):
    async def __aexit__(self, *error):
        raise TimeoutError("it hangs")


def test_error_of_closing_is_raised_by_close():
    """What a transport raises when it is closed is raised by close, each time, also a TimeoutError of its own."""
    producer = SyncProducer(FailsToClose())
    for _ in range(2):
        with pytest.raises(TimeoutError, match="it hangs"):
            producer.close()


class Hangs(MemoryTransport):
    async def __aexit__(self, *error):
        await asyncio.Event().wait()


def test_transport_that_never_closes_does_not_hang_close(monkeypatch):
    """Close gives up after a bounded time, and says so."""
    monkeypatch.setattr("pulsecart.sync.CLOSE_SECONDS", 0.2)
    producer = SyncProducer(Hangs())
    with pytest.raises(TimeoutError, match=r"did not close within 0.2 s"):
        producer.close()


def test_closed_producer_refuses_events():
    """After close, publish raises TransportClosed with the event; closing again is not an error."""
    producer = SyncProducer(MemoryTransport())
    producer.close()
    producer.close()
    with pytest.raises(TransportClosed, match="the SyncProducer is closed") as raised:
        producer.publish(order())
    assert raised.value.event_type == "order.placed"


def test_many_threads_share_a_producer(server):
    """Threads publish at the same time over one transport, each user's events in order."""
    with SyncProducer(server.transport()) as producer, ThreadPoolExecutor(8) as pool:

        def publish(user):
            return [producer.publish(order(n, user)).message_id for n in range(25)]

        ids = [message_id for each in pool.map(publish, "abcdefgh") for message_id in each]
    assert len(set(ids)) == 200
    for user in "abcdefgh":
        numbers = [json.loads(m.data)["payload"]["n"] for m in server.strict.confirmed if m.ordering_key == user]
        assert numbers == list(range(25))


def test_context_of_the_caller_is_kept():
    """What a transport or observer reads from context variables, such as the current span, is the caller's."""
    variable = contextvars.ContextVar("variable")
    seen = []

    async def note(message):
        seen.append((variable.get(), threading.current_thread().name))

    with SyncProducer(MemoryTransport(note)) as producer:
        variable.set("the caller's")
        producer.publish(order())
    assert seen == [("the caller's", "pulsecart")]


class Gated(MemoryTransport):
    """Publishes events of the user `slow` when the gate is open."""

    def __init__(self):
        self.gate = threading.Event()
        self.waiting = threading.Event()
        super().__init__(self._wait)

    async def _wait(self, message):
        if message.ordering_key == "slow":
            self.waiting.set()
            while not self.gate.is_set():
                await asyncio.sleep(0.01)


def publish_until_closed(producer):
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        producer.publish(order())


def test_close_waits_for_events_in_flight():
    """Events that other threads are publishing are confirmed before the transport is closed; others are refused."""
    transport = Gated()
    producer = SyncProducer(transport)
    with ThreadPoolExecutor(2) as pool:
        publishing = pool.submit(producer.publish, order(user_id="slow"))
        assert transport.waiting.wait(SECONDS)
        closing = pool.submit(producer.close)
        with pytest.raises(TransportClosed):
            publish_until_closed(producer)
        transport.gate.set()
        assert publishing.result(SECONDS).event_type == "order.placed"
        closing.result(SECONDS)


def test_event_that_is_not_confirmed_when_the_time_to_close_is_over_fails(monkeypatch):
    """Its caller gets a BrokerUnavailable with the event id, since it may have been published; it does not hang."""
    monkeypatch.setattr("pulsecart.guard.DRAIN_SECONDS", 0.1)
    transport = Gated()
    producer = SyncProducer(transport)
    with ThreadPoolExecutor(1) as pool:
        publishing = pool.submit(producer.publish, order(user_id="slow"))
        assert transport.waiting.wait(SECONDS)
        producer.close()
        with pytest.raises(BrokerUnavailable, match="closed before the broker confirmed") as raised:
            publishing.result(SECONDS)
    assert raised.value.event_id


class Leaves(MemoryTransport):
    keeps_deadline = True

    async def publish(self, message):
        sys.exit(3)


def test_transport_that_ends_the_thread_does_not_hang_callers():
    """If a transport raises SystemExit, callers and later ones get errors, and close raises it."""
    producer = SyncProducer(Leaves())
    with pytest.raises((SystemExit, BrokerUnavailable)):
        producer.publish(order())
    with pytest.raises(SystemExit):
        producer.close()
    with pytest.raises(TransportClosed):
        producer.publish(order())


class Strange:
    """A transport of someone else, which publishes for ever."""

    async def publish(self, message):
        await asyncio.Event().wait()

    async def aclose(self):
        pass

    async def __aenter__(self):
        return self

    async def __aexit__(self, *error):
        pass


def test_transport_that_hangs_is_guarded():
    """The deadline of `limits` applies to transports that do not keep one."""
    with (
        SyncProducer(Strange(), limits=Limits(deadline=0.1)) as producer,
        pytest.raises(BrokerUnavailable, match=r"did not publish within 0.1 s"),
    ):
        producer.publish(order())


PROGRAM = """
import os, sys, threading, time
from pulsecart import SyncProducer
from pulsecart.events import OrderPlaced
from pulsecart.transports import EmulatorTransport, MemoryTransport

def order(n=1):
    return OrderPlaced(user_id="u1", order_id=f"o{n}", payload={"n": n})

def emulator():
    return EmulatorTransport(project="test", host=os.environ["HOST"])
"""


@pytest.mark.parametrize("made", ["producer = SyncProducer(emulator())", "SyncProducer(emulator())"])
def test_open_producer_does_not_keep_the_process_alive(server, made):
    """A program that does not close it ends at once, without a word, and its connections are closed."""
    ended = run(f"{PROGRAM}\n{made}", env=os.environ | {"HOST": server.host})
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


def test_published_and_not_closed_ends_without_a_word(server):
    """Neither the resolver's threads nor the connections of an open producer disturb the end of the process."""
    program = f"{PROGRAM}\nproducer = SyncProducer(emulator())\nprint(producer.publish(order()).message_id)"
    host = server.host.replace("127.0.0.1", "localhost")
    ended = run(program, env=os.environ | {"HOST": host})
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout
    assert len(server.strict.confirmed) == 1


@pytest.mark.parametrize("daemon", [True, False])
def test_event_in_flight_at_exit_is_published(server, daemon):
    """What a thread is publishing at the end of the main thread is confirmed, even if Python does not wait for it."""
    server.strict.latency = 1.0
    program = f"""{PROGRAM}
producer = SyncProducer(emulator())
started = threading.Event()
def publish():
    started.set()
    producer.publish(order())
threading.Thread(target=publish, daemon={daemon}).start()
started.wait()
time.sleep(0.3)  # until the event is on its way
"""
    ended = run(program, env=os.environ | {"HOST": server.host})
    assert (ended.returncode, ended.stderr) == (0, "")
    assert len(server.strict.confirmed) == 1


def test_exit_is_bounded_when_the_broker_hangs():
    """At exit, a transport that does not close is waited for a bounded time."""
    program = f"""{PROGRAM}
import asyncio, pulsecart.sync
pulsecart.sync.CLOSE_SECONDS = 0.5
class Hangs(MemoryTransport):
    async def __aexit__(self, *error):
        await asyncio.Event().wait()
SyncProducer(Hangs())
"""
    ended = run(program)
    assert ended.returncode == 0
    assert "did not close within 0.5 s" in ended.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_use_after_a_fork_is_refused():
    """In a child process publish raises an error with the remedy, close does nothing, and the child ends."""
    program = f"""{PROGRAM}
producer = SyncProducer(MemoryTransport())
producer.publish(order())
if child := os.fork():
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), producer.publish(order()).message_id)
else:
    with producer:
        try:
            producer.publish(order())
        except RuntimeError as error:
            print(error, flush=True)
    sys.exit(5)
"""
    ended = run(program, env=os.environ | {"PYTHONWARNINGS": "ignore::DeprecationWarning"})
    message, outcome = ended.stdout.splitlines()
    assert outcome == "5 2"
    assert "after a fork, open one in each process" in message
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.parametrize("blocked", ["opening", "publish"])
def test_interrupt_ends_the_wait(blocked):
    """Ctrl-C raises KeyboardInterrupt in a main thread that opens or publishes, and the process ends."""
    program = f"""{PROGRAM}
import asyncio
async def hang(*_):
    print("hangs", flush=True)
    await asyncio.sleep(2 if {blocked == "opening"} else 1000)
class Slow(MemoryTransport):
    __aenter__ = hang
producer = SyncProducer(Slow() if {blocked == "opening"} else MemoryTransport(hang))
producer.publish(order())
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"hangs\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == -signal.SIGINT
    assert errors.rstrip().endswith(b"KeyboardInterrupt")
    assert b"Exception ignored" not in errors


def test_transport_of_another_event_loop_is_refused(server):
    """A transport that an earlier asyncio.run() opened says so, and what to use: it can be neither used nor closed."""
    transport = server.transport()
    asyncio.run(transport.__aenter__())
    for call in (transport.publish, transport.check, transport.create_topics):
        with pytest.raises(RuntimeError, match="was opened on another event loop: .* pulsecart.SyncProducer"):
            asyncio.run(call([TOPIC]))
    with pytest.raises(RuntimeError, match="another event loop"):
        asyncio.run(transport.aclose())
    with pytest.raises(RuntimeError, match="another event loop"):
        SyncProducer(transport)


def test_transport_can_be_opened_again_on_another_event_loop(server):
    """A transport that was closed can be opened on another event loop."""
    transport = server.transport()

    async def publish():
        async with transport:
            return await Producer(transport).publish(order())

    assert asyncio.run(publish()).message_id != asyncio.run(publish()).message_id
    assert len(server.strict.confirmed) == 2
