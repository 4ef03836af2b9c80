"""The guard: whatever a transport of others does, callers are answered in time, and the operator gets a line."""

import asyncio
import contextvars
import json
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from pulsecart import (
    BrokerRefused,
    BrokerUnavailable,
    Limits,
    Message,
    Overloaded,
    Producer,
    PulsecartError,
    SettingsError,
    TransportClosed,
)
from pulsecart import guard as guards
from pulsecart.events import OrderPlaced
from pulsecart.guard import Guarded, guarded
from pulsecart.serve.settings import Settings
from pulsecart.telemetry import logs
from pulsecart.transports import EmulatorTransport, MemoryTransport
from tests.http.client import ingest, problem, served
from tests.transports.messages import TOPICS, message

pytestmark = pytest.mark.anyio

DEADLINE = 0.2
LIMITS = Limits(deadline=DEADLINE)
SOON = DEADLINE + 3 * guards.GRACE + 1.0
"""Seconds within which a call that hangs must have ended, on a machine that is busy."""

SETTINGS = Settings(environment="prod", auth="none", publish_deadline=DEADLINE)


class Plain:
    """A transport without abilities; tests replace what it does."""

    async def publish(self, _message):
        return "1"

    async def check(self, _topics):
        return []

    async def aclose(self):
        pass

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        await self.aclose()


async def hang(*_: Any) -> Any:
    await asyncio.Event().wait()


async def hang_on(*_: Any) -> Any:
    """Ignore every cancellation."""
    while True:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(3600)


async def spin(*_: Any) -> Any:
    """Hang without a future to cancel."""
    while True:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(0)


async def hang_in_a_task(*_: Any) -> Any:
    """Wait for a task that ignores its first cancellations."""

    async def stubborn() -> None:
        for _ in range(5):
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(1)

    await asyncio.create_task(stubborn())


async def hang_when_closed(*_: Any) -> Any:
    """Wait in a `finally`, and in another one when the coroutine is closed."""
    try:
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(3600)
    finally:
        await asyncio.sleep(3600)


class OwnError(Exception):
    def __init__(self, code: int, place: str) -> None:
        super().__init__(f"secret: {code} {place}")


def raising(error: BaseException) -> Callable[..., Any]:
    async def fail(*_: Any) -> Any:
        raise error

    return fail


def returning(answer: Any) -> Callable[..., Any]:
    async def answering(*_: Any) -> Any:
        await asyncio.sleep(0)
        return answer

    return answering


async def answer_twice(*_: Any) -> Any:
    future = asyncio.get_running_loop().create_future()
    future.set_result("1")
    future.set_result("2")
    return await future


async def cancel_itself(*_: Any) -> Any:
    raise asyncio.CancelledError


async def cancel_itself_later(*_: Any) -> Any:
    await asyncio.sleep(0)
    raise asyncio.CancelledError


async def wait_for_something_else(*_: Any) -> Any:
    class Foreign:
        def __await__(self):
            yield "what asyncio does not know"

    await Foreign()


def raise_at_once(*_: Any) -> Any:
    raise OSError("not even a coroutine")


WRONG = {
    "hangs": hang,
    "ignores its cancellation": hang_on,
    "spins": spin,
    "waits for a stubborn task": hang_in_a_task,
    "cannot be closed": hang_when_closed,
    "raises": raising(ConnectionError("secret")),
    "raises an error of its own": raising(OwnError(7, "x")),
    "raises what ends processes": raising(SystemExit(3)),
    "raises what stops generators": raising(GeneratorExit()),
    "raises an event's error": raising(PulsecartError("secret")),
    "raises a timeout": raising(TimeoutError()),
    "raises at once": raise_at_once,
    "cancels itself": cancel_itself,
    "cancels itself later": cancel_itself_later,
    "answers twice": answer_twice,
    "answers with two ids": returning(["1", "2"]),
    "answers nothing": returning(None),
    "answers with an empty id": returning(""),
    "answers with bytes": returning(b"1"),
    "is no coroutine": lambda *_: "1",
    "waits for something else": wait_for_something_else,
}


def made(publish: Callable[..., Any]) -> Plain:
    transport = Plain()
    transport.publish = publish
    return transport


async def soon(awaitable: Any, seconds: float = SOON) -> Any:
    """Await, but fail the test if it takes too long. What hangs on is left behind."""
    task = asyncio.ensure_future(awaitable)
    done, _ = await asyncio.wait([task], timeout=seconds)
    assert done, "it hangs"
    return task.result()


@pytest.mark.parametrize("publish", WRONG.values(), ids=WRONG.keys())
async def test_whatever_a_transport_does_is_503_in_time(publish, order_json, caplog):
    """The caller gets a retryable 503 without details, and the operator one error with the transport's name."""
    async with served(made(publish), SETTINGS) as client:
        response = await soon(ingest(client, order_json(event_id="mine")))
        document = problem(response, 503, "broker-unavailable")
        assert document["event_id"] == "mine"
        assert document["timestamp"]
        assert response.headers["retry-after"] == "1"
        assert "secret" not in response.text
        assert (await client.get("/livez")).status_code == 200
    (line,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "The transport Plain " in line.getMessage()
    assert "secret" not in line.getMessage()


@pytest.mark.parametrize(("answer", "returned"), [(None, "NoneType"), (1, "int"), ("", "''")])
async def test_result_that_is_no_message_id_is_named(answer, returned, caplog):
    """The log says what `publish` has returned, since no line of the transport has failed."""
    with pytest.raises(BrokerUnavailable):
        await Producer(made(returning(answer))).publish(OrderPlaced(user_id="u", order_id="o", payload={}))
    assert f"failed to publish: TypeError: publish() returned {returned} in place of a message id" in caplog.text


@pytest.mark.parametrize("publish", WRONG.values(), ids=WRONG.keys())
async def test_users_of_the_library_have_the_same_promises(publish):
    """A Producer raises BrokerUnavailable in time, with the event and with what was raised."""
    producer = Producer(made(publish), limits=LIMITS)
    with pytest.raises(BrokerUnavailable, match="the transport (did not|failed to) publish") as caught:
        await soon(producer.publish(OrderPlaced(user_id="u", order_id="o", payload={}, event_id="mine")))
    assert caught.value.event_id == "mine"
    assert caught.value.__cause__ is not None


async def test_lines_are_limited_like_others(capsys, order_json):
    """Of many failures one line is logged, which says where the transport failed."""
    handler = logs.Handler()
    handler.addFilter(logs.Flood())
    handler.setFormatter(logs.formatter("p"))
    logger = logging.getLogger("pulsecart.transports")
    logger.addHandler(handler)
    try:
        async with served(made(raise_at_once), SETTINGS) as client:
            await asyncio.gather(*(ingest(client, order_json()) for _ in range(20)))
    finally:
        logger.removeHandler(handler)
    logs.flush()
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    (line,) = [line for line in lines if line["message"].startswith("The transport")]
    assert line["severity"] == "ERROR"
    assert line["message"].startswith("The transport Plain failed to publish: OSError in ")
    assert "test_guard.py, line" in line["message"]


async def test_publish_error_passes_unchanged():
    """What a transport says by a PublishError reaches the caller, and is no error in the log."""
    producer = Producer(made(raising(BrokerRefused("no such topic", "details", retry_after=7))))
    with pytest.raises(BrokerRefused, match="no such topic") as caught:
        await producer.publish(OrderPlaced(user_id="u", order_id="o", payload={}))
    assert (caught.value.log_detail, caught.value.retry_after) == ("details", 7)


async def test_confirmation_at_the_last_moment_counts():
    """A transport that answers when it is cancelled at the deadline has published the message."""

    async def late(_message):
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(3600)
        return "at last"

    task = asyncio.current_task()
    assert await Guarded(made(late), limits=LIMITS).publish(message(1)) == "at last"
    assert task.cancelling() == 0


async def test_cleaning_up_after_the_deadline_is_waited_for():
    """A transport has some time to clean up when it is cancelled."""
    cleaned = []

    async def careful(_message):
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0.01)
            cleaned.append(1)

    with pytest.raises(BrokerUnavailable):
        await Guarded(made(careful), limits=LIMITS).publish(message(1))
    assert cleaned == [1]


async def test_failure_of_a_task_is_raised_in_the_transport():
    """What a task raises, and what it returns, reaches the transport that waits for it."""

    async def fail():
        await asyncio.sleep(0)
        raise ConnectionError

    async def publish(_message):
        try:
            await asyncio.create_task(fail())
        except ConnectionError:
            return await asyncio.create_task(asyncio.sleep(0, "2"))

    assert await Guarded(made(publish)).publish(message(1)) == "2"


async def test_timeouts_inside_a_transport_work():
    """A timeout of the transport's own ends what it waits for, and nothing else."""

    async def publish(_message):
        try:
            async with asyncio.timeout(0.01):
                await asyncio.sleep(3600)
        except TimeoutError:
            return await asyncio.wait_for(asyncio.sleep(0, "2"), 5)

    assert await Guarded(made(publish)).publish(message(1)) == "2"


async def test_transport_runs_in_the_task_and_context_of_the_caller():
    """A transport sees the task and the context variables of its caller, also after it has waited."""
    variable = contextvars.ContextVar("variable")
    seen = []

    async def publish(_message):
        for _ in range(2):
            seen.append((asyncio.current_task(), variable.get()))
            await asyncio.sleep(0)
        return "1"

    variable.set("x")
    await Guarded(made(publish)).publish(message(1))
    assert seen == [(asyncio.current_task(), "x")] * 2


@pytest.mark.parametrize("publish", [hang, hang_in_a_task, hang_on])
async def test_cancelled_caller_is_cancelled(publish):
    """A caller that is cancelled stays so, at the latest at the deadline."""
    task = asyncio.create_task(Guarded(made(publish), limits=LIMITS).publish(message(1)))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await soon(task)


async def test_keyboard_interrupt_is_not_caught():
    """Ctrl+C passes, wherever it arrives."""
    with pytest.raises(KeyboardInterrupt):
        await Guarded(made(raising(KeyboardInterrupt()))).publish(message(1))


async def test_messages_in_flight_are_limited():
    """Beyond `max_messages` in flight, a message is rejected at once."""
    transport = Guarded(made(hang), limits=Limits(deadline=DEADLINE, max_messages=3))
    tasks = [asyncio.create_task(transport.publish(message(n))) for n in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded, match="3 messages are in flight"):
        await transport.publish(message(4))
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [BrokerUnavailable] * 3
    with pytest.raises(BrokerUnavailable):
        await transport.publish(message(5))


def array(count: int, user: str = "") -> bytes:
    """Return an array of events, each of another user or all of one."""
    fields = {"event_type": "order.placed", "order_id": "o", "payload": {}}
    return json.dumps([fields | {"user_id": user or f"u{n}", "event_id": f"e{n}"} for n in range(count)]).encode()


async def post_array(client: Any, body: bytes) -> Any:
    return await client.post("/events/batch", content=body, headers={"Content-Type": "application/json"})


@pytest.mark.parametrize("user", ["", "one"])
async def test_array_waits_for_room(user):
    """An array's events wait while as many messages as the limit are in flight, and none is in flight above it."""
    most, now, order = 0, 0, []

    async def publish(sent):
        nonlocal most, now
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.001)
        now -= 1
        order.append(sent.attributes["event_id"])
        return sent.attributes["event_id"]

    settings = Settings(environment="prod", auth="none", max_messages=3)
    async with served(made(publish), settings) as client:
        answers = await soon(asyncio.gather(*(post_array(client, array(20, user)) for _ in range(2))), 20)
    assert [answer.json()["accepted"] for answer in answers] == [20, 20]
    assert most == (2 if user else 3)
    if user:
        assert list(dict.fromkeys(order)) == [f"e{n}" for n in range(20)]


@pytest.mark.parametrize("publish", [hang_on, raise_at_once, returning(None)])
async def test_array_is_answered_in_time(publish):
    """A batch on a transport that fails is a 503 that lists each event, in the time of two deadlines."""
    async with served(made(publish), SETTINGS) as client:
        response = await soon(post_array(client, array(5)), 2 * SOON)
    assert response.status_code == 503
    assert response.json()["type"] == "batch-incomplete"
    assert [result["type"] for result in response.json()["results"]] == ["broker-unavailable"] * 5


async def test_array_that_waits_for_room_ends_at_close(monkeypatch):
    """What waits for room when the transport closes, or is cancelled, leaves the room to others."""
    monkeypatch.setattr(guards, "DRAIN_SECONDS", 0.05)
    transport = Guarded(made(hang), limits=Limits(deadline=0.5, max_messages=1))
    publishing = asyncio.create_task(transport.publish(message(1)))
    rooms = [asyncio.create_task(transport.room(message(n))) for n in range(3)]
    await asyncio.sleep(0)
    rooms[0].cancel()
    await soon(rooms[1])
    assert isinstance((await asyncio.gather(publishing, return_exceptions=True))[0], BrokerUnavailable)
    await soon(rooms[2])
    publishing = asyncio.create_task(transport.publish(message(2)))
    await asyncio.sleep(0)
    waiting = asyncio.create_task(transport.room(message(3)))
    await asyncio.sleep(0)
    await transport.aclose()
    with pytest.raises(TransportClosed):
        await waiting
    with pytest.raises(BrokerUnavailable):
        await publishing


async def test_close_waits_for_messages_in_flight():
    """Messages in flight are confirmed before the transport is closed; further ones are rejected."""
    gate, events = asyncio.Event(), []

    class Watched(Plain):
        async def publish(self, _message):
            await gate.wait()
            events.append("published")
            return "1"

        async def aclose(self):
            events.append("closed")

    async with Guarded(Watched()) as transport:
        tasks = [asyncio.create_task(transport.publish(message(n))) for n in range(2)]
        await asyncio.sleep(0)
        closing = asyncio.create_task(transport.aclose())
        await asyncio.sleep(0)
        with pytest.raises(TransportClosed):
            await transport.publish(message(3))
        gate.set()
        await closing
        assert await asyncio.gather(*tasks) == ["1", "1"]
        assert events == ["published", "published", "closed"]
    async with transport:
        assert await transport.publish(message(4)) == "1"


async def test_close_is_bounded(monkeypatch, caplog):
    """A transport that never closes, with a message that is never confirmed, is left after some seconds."""
    monkeypatch.setattr(guards, "DRAIN_SECONDS", 0.05)
    monkeypatch.setattr(guards, "CLOSE_SECONDS", 0.05)

    class Stuck(Plain):
        publish = hang
        aclose = hang_on
        __aexit__ = hang_on

    transport = await Guarded(Stuck(), limits=LIMITS).__aenter__()
    task = asyncio.create_task(transport.publish(message(1)))
    await asyncio.sleep(0)
    await soon(transport.aclose())
    await soon(transport.__aexit__(None, None, None))
    with pytest.raises(BrokerUnavailable):
        await task
    assert caplog.text.count("The transport Stuck did not close within 0.05 s") == 2


async def test_failure_to_close_is_logged(caplog):
    """Closing raises nothing, so that the service ends as usual."""

    class Broken(Plain):
        aclose = raise_at_once

    async with Guarded(Broken()) as transport:
        await transport.aclose()
    assert caplog.text.count("The transport Broken failed to close: OSError in") == 2


@pytest.mark.parametrize(
    ("check", "kind"),
    [
        (hang_on, BrokerUnavailable),
        (raising(OSError("secret")), BrokerUnavailable),
        (returning(None), BrokerUnavailable),
        (returning([1]), BrokerUnavailable),
        (raising(BrokerRefused("denied")), BrokerRefused),
    ],
)
async def test_check_ends_in_time(check, kind):
    """A check raises a PublishError, whatever the transport does."""
    transport = Plain()
    transport.check = check
    with pytest.raises(kind):
        await soon(Guarded(transport, limits=LIMITS).check(TOPICS))


async def test_check_that_fails_is_reported_by_readyz():
    """The service starts although the check fails, and is not ready."""
    transport = Plain()
    transport.check = raising(OSError("secret"))
    async with served(transport, SETTINGS) as client:
        response = await client.get("/readyz")
        document = problem(response, 503, "broker-unavailable")
        assert document["broker"] == "unavailable"
        assert "secret" not in response.text
        transport.check = returning(("pulsecart.user-actions",))
        assert (await client.get("/readyz")).json()["missing_topics"] == ["pulsecart.user-actions"]


@pytest.mark.parametrize(
    ("enter", "says"),
    [
        (
            raising(ConnectionRefusedError(111, "refused")),
            "failed to open: ConnectionRefusedError: [Errno 111] refused",
        ),
        (raising(ValueError()), "failed to open: ValueError"),
        (hang_on, "did not open within 0.05 s"),
    ],
)
async def test_failure_to_open_is_one_sentence(monkeypatch, enter, says):
    """It is an error of the settings, in one sentence with the name of the transport."""
    monkeypatch.setattr(guards, "OPEN_SECONDS", 0.05)

    class Unopenable(Plain):
        __aenter__ = enter

    with pytest.raises(SettingsError) as caught:
        await soon(Guarded(Unopenable(), name="nats").__aenter__())
    assert caught.value.problems == (f"the transport nats {says}",)


async def test_cancelled_opening_is_cancelled():
    """A server that gives up while the transport opens is not told that it failed."""

    class Slow(Plain):
        __aenter__ = hang

    task = asyncio.create_task(Guarded(Slow()).__aenter__())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_topics_are_created_in_development():
    """A transport that can create topics does so in development, and a failure is a warning."""

    class Admin(Plain):
        created = ()

        async def check(self, topics):
            return topics

        async def create_topics(self, topics):
            if "pulsecart.user-actions" not in topics:
                raise OSError
            Admin.created = topics

    async with served(Admin(), Settings(transport="memory")) as client:
        assert "pulsecart.user-actions" in Admin.created
        assert len((await client.get("/readyz")).json()["missing_topics"]) == 3
    Admin.created = ()
    async with served(Admin(), SETTINGS):
        assert Admin.created == ()
    with pytest.raises(BrokerUnavailable):
        await Guarded(Admin()).create_topics(["x"])
    await Guarded(Plain()).create_topics(["x"])


async def test_transports_of_pulsecart_need_no_guard():
    """A transport that keeps the deadline is used as it is; one that replaces `publish` is not."""

    async def handler(_message: Message) -> None:
        pass

    class Replaced(MemoryTransport):
        publish = hang

    class Kept(Replaced):
        keeps_deadline = True

    class NotKept(MemoryTransport):
        keeps_deadline = False

    emulator = EmulatorTransport(project="p", host="h:1")
    for transport in (MemoryTransport(), emulator, Kept(), Guarded(Plain())):
        assert guarded(transport) is transport
    for transport in (MemoryTransport(handler), Replaced(), NotKept(), Plain(), object()):
        assert guarded(transport) is not transport
