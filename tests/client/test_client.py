import asyncio
import os
import random
import re
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import httpx
import pytest
from attrs import frozen
from hypothesis import given
from hypothesis import strategies as st

from pulsecart import BrokerUnavailable, Event, load_catalog, trace_id_of
from pulsecart.app import create_app
from pulsecart.client import AsyncClient, Client, Failure, SendError
from pulsecart.client.documents import read
from pulsecart.events import JsonObject, OrderPlaced
from pulsecart.serve.settings import Settings
from pulsecart.transports import MemoryTransport
from tests.client.scripted import accepted, incomplete, problem, scripted
from tests.serving import serving


def orders(count, users=1, **changes):
    return [
        {"event_type": "order.placed", "user_id": f"u{n % users}", "order_id": f"o{n}", "payload": {}, **changes}
        for n in range(count)
    ]


def order_ids(call):
    return [event["order_id"] for event in call.document]


# One event


@pytest.mark.parametrize("make", [lambda fields: fields, lambda fields: OrderPlaced(**_without_type(fields))])
def test_missing_event_id_is_set_once_and_kept_in_retries(send_one, make):
    """All attempts have the same id, which the receipt names, with its trace."""
    with scripted(lambda call, n: accepted(call) if n == 2 else (None, problem(503, "overloaded"))[n]) as server:
        receipt = send_one(server.url, make(orders(1)[0]))
    assert {call.document["event_id"] for call in server.calls} == {receipt.event_id}
    assert len(server.calls) == 3
    assert {call.path for call in server.calls} == {"/events/ingest"}
    assert re.fullmatch(r"evt_[0-9a-f]{32}", receipt.event_id)
    assert (receipt.message_id, receipt.trace_id) == ("m0", trace_id_of(receipt.event_id))


def _without_type(fields):
    return {name: value for name, value in fields.items() if name != "event_type"}


def test_event_id_and_timestamp_of_the_caller_are_kept(send_one):
    """An event that has them is sent as it is."""
    moment = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    event = OrderPlaced(event_id="mine", timestamp=moment, user_id="u", order_id="o", payload={})
    with scripted(
        lambda call, n: accepted(call) if n else problem(503, "x", timestamp="2000-01-01T00:00:00Z")
    ) as server:
        assert send_one(server.url, event).event_id == "mine"
    assert {call.document["timestamp"] for call in server.calls} == {"2026-01-02T03:04:05Z"}


def test_timestamp_of_a_failed_attempt_is_kept(send_one):
    """A retry has the timestamp that the service gave the event in its 503."""
    with scripted(
        lambda call, n: accepted(call) if n else problem(503, "broker-unavailable", timestamp="2026-01-01T00:00:00Z")
    ) as server:
        send_one(server.url, orders(1)[0])
    assert [call.document.get("timestamp") for call in server.calls] == [None, "2026-01-01T00:00:00Z"]


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_retryable_status_is_retried_a_bounded_number_of_times(send_one, status):
    """After all attempts the problem is raised."""
    with (
        scripted(lambda _call, _n: problem(status, "busy")) as server,
        pytest.raises(SendError, match="It is busy") as it,
    ):
        send_one(server.url, orders(1)[0], attempts=3)
    (failure,) = it.value.failures
    assert len(server.calls) == 3
    assert it.value.retryable
    assert (failure.index, failure.problem.status, failure.problem.retryable) == (0, status, True)
    assert not failure.of_request


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 415, 422])
def test_other_statuses_are_not_retried(send_one, status):
    """A 4xx is raised at once, with all faults of the event."""
    fault = {"pointer": "/order_id", "code": "missing", "message": "is required, but missing"}
    message = f"{status} wrong: It is wrong.; /order_id: is required, but missing"
    answer = problem(status, "wrong", errors=[fault])
    with scripted(lambda _call, _n: answer) as server, pytest.raises(SendError, match=message) as it:
        send_one(server.url, orders(1)[0])
    assert len(server.calls) == 1
    assert not it.value.retryable
    assert it.value.failures[0].problem.errors[0].pointer == "/order_id"


def test_service_that_cannot_be_reached_is_retried(send_one):
    """A refused connection is a failure that names the address, and can be retried."""
    with scripted(lambda call, _n: accepted(call)) as server:
        pass
    with pytest.raises(SendError, match=r"no-answer: http://127.0.0.1:\d+ did not answer: .*ConnectError") as it:
        send_one(server.url, orders(1)[0], attempts=2)
    (failure,) = it.value.failures
    assert (failure.problem.status, failure.problem.retryable) == (0, True)
    assert failure.event_id.encode() in failure.document


@pytest.mark.parametrize(
    "reply",
    [
        (200, {}, b"<html>Welcome"),
        (202, {}, b'{"status":"accepted"}'),
        (202, {}, b"\xff"),
        (302, {"Location": "/login"}, b""),
        (404, {}, b"not here"),
        (422, {}, b'{"type":"other","status":400}'),
    ],
)
def test_answer_of_something_else_is_no_receipt(send_one, send_many, reply):
    """Only pulsecart's own 202 is a receipt: another server at the URL is an error, and is not retried."""
    with scripted(lambda _call, _n: reply) as server:
        with pytest.raises(SendError, match=f"{reply[0]} unexpected-answer"):
            send_one(server.url, orders(1)[0])
        receipts, failures = send_many(server.url, orders(2))
    assert receipts == []
    assert [failure.problem.type for failure in failures] == ["unexpected-answer"] * 2
    assert all(failure.of_request for failure in failures)
    assert len(server.calls) == 2


def test_error_page_of_a_proxy_is_retried_by_its_status(send_one):
    """A 502 that is HTML is retried like any other."""
    with scripted(lambda call, n: accepted(call) if n else (502, {}, b"<html>Bad gateway")) as server:
        send_one(server.url, orders(1)[0])
    assert len(server.calls) == 2


def test_retry_after_is_honoured(send_one):
    """A retry waits for as long as the service asks."""
    times = []

    def script(call, n):
        times.append(time.monotonic())
        return accepted(call) if n else problem(429, "rate-limited", headers={"Retry-After": "1"})

    with scripted(script) as server:
        send_one(server.url, orders(1)[0], max_wait=30)
    assert 1 <= times[1] - times[0] < 10


@pytest.mark.parametrize("retry_after", ["86400", "9" * 5000, "soon", "-1", "Fri, 31 Dec 1999 23:59:59 GMT"])
def test_retry_after_is_bounded(send_one, retry_after):
    """A wait is never longer than `max_wait`, whatever the service asks for."""
    started = time.monotonic()
    with scripted(
        lambda call, n: accepted(call) if n else problem(503, "x", headers={"Retry-After": retry_after})
    ) as server:
        send_one(server.url, orders(1)[0], max_wait=0.05)
    assert time.monotonic() - started < 20


def test_key_is_sent_as_bearer_token_and_not_shown(send_one):
    """The key is in a header, and neither in errors nor in the client's text."""
    key = "pck_" + "x" * 43
    with scripted(lambda _call, _n: problem(401, "unauthenticated")) as server, pytest.raises(SendError) as it:
        send_one(server.url, orders(1)[0], key=key)
    assert server.calls[0].headers["authorization"] == f"Bearer {key}"
    with Client(server.url, key=key) as client:
        assert key not in f"{client!r} {it.value!r} {it.value.failures}"


@pytest.mark.parametrize("key", ["", "pck_secret\n", "pck secret", "pck_sécret", "pck_secret\x7f"])
def test_key_that_no_header_can_carry_is_refused_without_showing_it(key):
    """A key with a line break, as read from a file, is named as the problem, but not repeated."""
    with pytest.raises(ValueError, match="the key must be printable ASCII") as it:
        Client("http://localhost", key=key)
    assert "pck" not in str(it.value)


@pytest.mark.parametrize(
    "url",
    ["localhost:8000", "ftp://localhost", "http://", "", "http://user:secret@host", "http://h?q=1", "http://h:x", None],
)
def test_url_that_cannot_work_is_refused(url):
    """The message says what a URL is like, and does not repeat a password."""
    with pytest.raises(ValueError, match="the URL must be the address of the service") as it:
        Client(url)
    assert "secret" not in str(it.value)


@pytest.mark.parametrize("options", [{"attempts": 0}, {"batch_events": 0}, {"batch_bytes": 0}, {"max_wait": -1}])
def test_limits_must_be_possible(options):
    """Limits that would send nothing are refused."""
    with pytest.raises(ValueError, match="must be at least 1"):
        Client("http://localhost", **options)


def test_path_of_the_url_is_kept(send_one):
    """The service may be mounted below a path."""
    with scripted(lambda call, _n: accepted(call)) as server:
        send_one(server.url + "/pulse/", orders(1)[0])
    assert server.calls[0].path == "/pulse/events/ingest"


# Documents


def test_numbers_keep_their_value(send_one):
    """A Decimal is sent as a number with the same digits, as is JSON that is given as bytes or was received."""
    payload = b'{"total":89.90,"big":123456789012345678901234567890}'
    received = load_catalog().structure(
        {"event_type": "order.placed", "user_id": "u", "order_id": "o", "payload": JsonObject_of(payload)}
    )
    exact = {"total": Decimal("89.90"), "big": 123456789012345678901234567890}
    event = orders(1)[0]
    text = b' {"event_type":"order.placed","user_id":"u","order_id":"o","payload":%b}' % payload
    with scripted(lambda call, _n: accepted(call)) as server:
        for each in (received, event | {"payload": exact}, event | {"payload": JsonObject_of(payload)}, text):
            send_one(server.url, each)
    assert all(payload in call.body for call in server.calls)


def JsonObject_of(raw):  # noqa: N802 (as the class)
    import msgspec

    return JsonObject(msgspec.Raw(raw))


@frozen(kw_only=True)
class Undeclared(Event):
    pass


@pytest.mark.parametrize(
    ("event", "message"),
    [
        ({"payload": {"x": float("nan")}}, r"422 invalid-event: .*/payload/x: is not a finite number"),
        ({"payload": {"x": object()}}, r"422 invalid-event: .*objects of type object have no form in JSON"),
        ({"payload": {"x": "\ud800"}}, r"422 invalid-event: The event cannot be written as JSON"),
        (b"{", r"400 malformed-body: The event is not JSON"),
        (b'{"a":1,"a":2}', r"400 malformed-body: .*/a: is there more than once"),
        (b"\xff", r"400 malformed-body"),
        ("text", r"422 invalid-event: The event is a str: JSON is given as bytes"),
        (Undeclared(user_id="u", payload={}), r"Undeclared is not declared"),
    ],
)
def test_event_without_a_form_in_json_costs_its_neighbours_nothing(send_many, event, message):
    """What cannot be sent fails alone, without a request."""
    before, after = orders(2)
    with scripted(lambda call, _n: accepted(call)) as server:
        receipts, (failure,) = send_many(server.url, [before, event, after])
        with pytest.raises(SendError, match=message):
            Client(server.url).send(event)
    assert len(receipts) == 2
    assert failure.index == 1
    assert failure.event is event
    assert failure.document == (event if isinstance(event, bytes) else b"")
    assert re.search(message, str(failure.problem))
    assert len(server.calls) == 1


names = st.text(st.characters(exclude_categories=["Cs"]))


@given(
    event=st.dictionaries(names.filter(lambda name: name != "event_id"), st.integers() | names, max_size=4),
    timestamp=names.filter(bool),
)
def test_members_are_added_to_any_object(event, timestamp):
    """An object with an id and a timestamp added has all its members, and these two."""
    import json

    raw = json.dumps(event, indent=1).encode()
    document = read(raw, 7, lambda index: f"id-{index}")
    document.keep(timestamp)
    assert json.loads(document.raw) == {"timestamp": timestamp, "event_id": "id-7"} | event


# Many events


def test_batches_are_split_by_number(send_many):
    """No request has more than `batch_events` events, and all arrive in order."""
    with scripted(lambda call, _n: accepted(call)) as server:
        receipts, failures = send_many(server.url, orders(7), batch_events=3)
    assert [len(call.ids) for call in server.calls] == [3, 3, 1]
    assert [receipt.event_id for receipt in receipts] == [id_ for call in server.calls for id_ in call.ids]
    assert failures == ()
    assert {call.path for call in server.calls} == {"/events/batch"}


@given(sizes=st.lists(st.integers(0, 600), min_size=1, max_size=20))
def test_batches_are_split_by_size(sizes):
    """No request has more than `batch_bytes` bytes, an event alone included."""
    events = [orders(1)[0] | {"payload": {"x": "x" * size}} for size in sizes]
    answers = httpx.MockTransport(lambda request: _mock(request, bodies))
    bodies: list[bytes] = []
    with httpx.Client(transport=answers) as http:
        client = Client("http://localhost", batch_bytes=700, http_client=http)
        outcomes = [outcome for batch in client.send_batches(events) for outcome in batch]
    assert len(outcomes) == len(sizes)
    assert all(len(body) <= 700 for body in bodies)
    for size, outcome in zip(sizes, outcomes, strict=True):
        if isinstance(outcome, Failure):
            assert size > 500
            assert outcome.problem.type == "body-too-large"
            assert "the limit is 700" in outcome.problem.detail


def _mock(request, bodies):
    import json

    bodies.append(request.content)
    results = [{"index": n, "message_id": "m"} for n in range(len(json.loads(request.content)))]
    return httpx.Response(202, json={"results": results})


def test_nothing_is_sent_for_no_events(send_many):
    """An empty iterable makes no request: the service rejects empty arrays."""
    with scripted(lambda call, _n: accepted(call)) as server:
        assert send_many(server.url, []) == ([], ())
    assert server.calls == []


def test_only_failed_events_are_sent_again_in_order(send_many):
    """A retry has the retryable failures only, under the ids and timestamps they got; others have their outcome."""
    moment = "2026-01-01T00:00:00Z"
    aborted = {"type": "aborted"}
    invalid = {"status": 422, "type": "invalid-event"}

    def script(call, n):
        if n == 0:
            return incomplete(call, {1: {"timestamp": moment}, 2: invalid, 3: aborted | {"timestamp": moment}})
        return accepted(call)

    with scripted(script) as server:
        receipts, (failure,) = send_many(server.url, orders(5))
    first, second = server.calls
    assert order_ids(second) == ["o1", "o3"]
    assert second.ids == [first.ids[1], first.ids[3]]
    assert [event["timestamp"] for event in second.document] == [moment, moment]
    assert [receipt.event_id for receipt in receipts] == [first.ids[n] for n in (0, 1, 3, 4)]
    assert [receipt.message_id for receipt in receipts] == [None, "m0", "m1", None]
    assert [receipt.trace_id for receipt in receipts] == [trace_id_of(receipt.event_id) for receipt in receipts]
    assert (failure.index, failure.problem.type, failure.problem.retryable) == (2, "invalid-event", False)


def test_next_batch_waits_for_retries(send_many):
    """An event of a later batch is not sent before the earlier ones are published."""
    with scripted(lambda call, n: accepted(call) if n != 0 else incomplete(call, {0: {}})) as server:
        send_many(server.url, orders(4), batch_events=2)
    assert [order_ids(call) for call in server.calls] == [["o0", "o1"], ["o0"], ["o2", "o3"]]


def test_nothing_of_a_user_overtakes_an_event_that_failed(send_many):
    """When an event is given up, the later ones of its user are not sent, and those of others are."""

    def script(call, _n):
        failures = {n: {} for n, id_ in enumerate(order_ids(call)) if id_ == "o0"}
        failures |= {n: {"type": "aborted"} for n, id_ in enumerate(order_ids(call)) if id_ == "o2" and failures}
        return incomplete(call, failures) if failures else accepted(call)

    with scripted(script) as server:
        receipts, failures = send_many(server.url, orders(8, users=2), batch_events=4, attempts=2)
    assert [order_ids(call) for call in server.calls] == [["o0", "o1", "o2", "o3"], ["o0", "o2"], ["o5", "o7"]]
    assert len(receipts) == 4
    assert [failure.index for failure in failures] == [0, 2, 4, 6]
    assert [failure.problem.type for failure in failures] == ["broker-unavailable", *["aborted"] * 3]
    assert all(failure.problem.retryable for failure in failures)
    assert not any(failure.of_request for failure in failures)


def test_failures_can_be_sent_again(send_many):
    """The documents of failures have the ids of the first attempt, and are in order."""
    with scripted(lambda call, n: accepted(call) if n else incomplete(call, {0: {}, 1: {"type": "aborted"}})) as server:
        receipts, failures = send_many(server.url, orders(3), attempts=1)
        again, none = send_many(server.url, [failure.document for failure in failures])
    assert len(receipts) == 1
    assert none == ()
    assert [receipt.event_id for receipt in again] == server.calls[0].ids[:2]


def test_defect_holds_up_nobody(send_many):
    """An event that fails with 500 is retried, but its user's later events are sent: it may fail for ever."""

    def script(call, _n):
        failures = {
            n: {"status": 500, "type": "internal-error"} for n, id_ in enumerate(order_ids(call)) if id_ == "o0"
        }
        return incomplete(call, failures) if failures else accepted(call)

    with scripted(script) as server:
        receipts, (failure,) = send_many(server.url, orders(3), batch_events=2, attempts=3)
    assert [order_ids(call) for call in server.calls] == [["o0", "o1"], ["o0"], ["o0"], ["o2"]]
    assert len(receipts) == 2
    assert failure.problem.type == "internal-error"


def test_aborted_attempts_do_not_count(send_many):
    """Events that the service aborted were not sent, so progress of one event a request gets all through."""

    def script(call, _n):
        failures = {n: {"type": "aborted"} if n > 1 else {} for n in range(1, len(call.ids))}
        return incomplete(call, failures) if failures else accepted(call)

    with scripted(script) as server:
        receipts, failures = send_many(server.url, orders(10), attempts=2)
    assert (len(receipts), failures) == (10, ())
    assert [len(call.ids) for call in server.calls] == list(range(10, 0, -1))


def test_truncated_list_of_failures(send_many):
    """What a truncated list leaves open is sent again: nothing is taken for published that may not be."""
    invalid = {"status": 422, "type": "invalid-event"}

    def script(call, _n):
        failures = {n: invalid for n, id_ in enumerate(order_ids(call)) if int(id_[1:]) % 2}
        return incomplete(call, failures, most=3) if failures else accepted(call)

    with scripted(script) as server:
        receipts, failures = send_many(server.url, orders(10), attempts=1)
    assert [failure.index for failure in failures] == [1, 3, 5, 7, 9]
    assert len(receipts) == 5
    assert [order_ids(call) for call in server.calls] == [[f"o{n}" for n in range(10)], ["o6", "o7", "o8", "o9"]]


@pytest.mark.parametrize("results", [[], [{"index": 2}], [{"index": 1}, {"index": 0}], [{"index": -1}], "no"])
def test_results_that_fit_no_event_are_no_receipt(send_many, results):
    """An answer whose list of failures makes no sense is not taken for success."""
    with scripted(lambda _call, _n: problem(422, "batch-incomplete", results=results)) as server:
        receipts, failures = send_many(server.url, orders(2))
    assert receipts == []
    assert len(failures) == 2


def test_batch_that_is_too_large_for_the_service_is_halved(send_many):
    """A service or proxy with a smaller limit gets smaller batches; an event that is too large fails alone."""

    def script(call, _n):
        if len(call.ids) > 2:
            return 413, {}, b"<html>Too large"
        return problem(413, "body-too-large") if order_ids(call) == ["o1"] else accepted(call)

    with scripted(script) as server:
        receipts, failures = send_many(server.url, orders(4, users=4))
    assert [order_ids(call) for call in server.calls] == [["o0", "o1", "o2", "o3"], ["o0", "o1"], ["o2", "o3"]]
    assert (len(receipts), failures) == (4, ())
    with scripted(
        lambda call, _n: accepted(call) if order_ids(call) == ["o0"] else problem(413, "too-large")
    ) as server:
        receipts, (failure,) = send_many(server.url, orders(2))
    assert len(receipts) == 1
    assert (failure.index, failure.of_request) == (1, False)


def test_array_that_the_service_cannot_read_is_halved(send_many):
    """If the service is stricter than the client, the one malformed element fails alone."""

    def script(call, _n):
        return problem(400, "malformed-body") if "o5" in order_ids(call) else accepted(call)

    with scripted(script) as server:
        receipts, (failure,) = send_many(server.url, orders(8))
    assert len(receipts) == 7
    assert (failure.index, failure.problem.type, failure.of_request) == (5, "malformed-body", False)


def test_service_gone_midway(send_many):
    """Each event has a receipt or a failure that can be sent again. Once it is away, a batch gets one attempt."""
    with scripted(lambda call, n: accepted(call) if n == 0 else None) as server:
        receipts, failures = send_many(server.url, orders(10, users=10), batch_events=2, attempts=3)
    assert len(receipts) == 2
    assert [failure.index for failure in failures] == list(range(2, 10))
    assert all(failure.problem.retryable and failure.of_request for failure in failures)
    assert len(server.calls) == 1 + 3 + 1 + 1 + 1


def test_service_that_returns_gets_all_attempts_again(send_many):
    """After an answer, a batch is retried as usual."""
    with scripted(lambda call, n: accepted(call) if n in (2, 5) else problem(503, "overloaded")) as server:
        receipts, failures = send_many(server.url, orders(6, users=6), batch_events=2, attempts=2)
    assert len(failures) == 2 + 2
    assert len(receipts) == 2
    assert [order_ids(call)[0] for call in server.calls] == ["o0", "o0", "o2", "o4", "o4"]


def test_refused_key_fails_each_batch_without_retries(send_many):
    """A 401 is not retried."""
    with scripted(lambda _call, _n: problem(401, "unauthenticated")) as server:
        receipts, failures = send_many(server.url, orders(4), batch_events=2)
    assert receipts == []
    assert {failure.problem.type for failure in failures} == {"unauthenticated"}
    assert len(server.calls) == 2


def test_receipts_arrive_while_events_are_made():
    """Events are taken from the iterable a batch at a time, so it can be longer than memory."""
    taken = []

    def events():
        for event in orders(6):
            taken.append(event)
            yield event

    with scripted(lambda call, _n: accepted(call)) as server, Client(server.url, batch_events=2) as client:
        receipts = client.send_many(events())
        next(receipts)
        assert len(taken) == 2
        assert len(list(receipts)) == 5


def test_events_from_an_asynchronous_iterable():
    """The asynchronous client also takes events that are awaited."""

    async def events():
        for event in orders(3):
            await asyncio.sleep(0)
            yield event

    async def send(url):
        async with AsyncClient(url) as client:
            return [receipt async for receipt in client.send_many(events())]

    with scripted(lambda call, _n: accepted(call)) as server:
        assert len(asyncio.run(send(server.url))) == 3


def test_http_client_of_the_caller_is_not_closed():
    """An HTTP client that is given is used as it is, and stays open."""

    async def send(url):
        async with httpx.AsyncClient(headers={"X-Mine": "1"}) as http:
            async with AsyncClient(url, http_client=http) as client:
                await client.send(orders(1)[0])
            assert not http.is_closed

    with scripted(lambda call, _n: accepted(call)) as server:
        asyncio.run(send(server.url))
        with httpx.Client(headers={"X-Mine": "1"}) as http:
            with Client(server.url, http_client=http) as client:
                client.send(orders(1)[0])
            assert not http.is_closed
    assert [call.headers["x-mine"] for call in server.calls] == ["1", "1"]


# The real service


def test_service_in_this_process():
    """The client works on the ASGI application itself, with a batch of which some are invalid."""

    async def send():
        app = create_app(Settings(transport="memory"))
        http = httpx.AsyncClient(transport=httpx.ASGITransport(app))
        async with http, app.router.lifespan_context(app), AsyncClient("http://localhost", http_client=http) as client:
            one = await client.send(orders(1)[0])
            try:
                return one, [receipt async for receipt in client.send_many([*orders(2), orders(1, order_id="")[0]])]
            except SendError as error:
                return one, error

    one, error = asyncio.run(send())
    assert one.message_id == "1"
    (failure,) = error.failures
    assert (failure.index, failure.problem.status, failure.problem.type) == (2, 422, "invalid-event")
    assert [fault.pointer for fault in failure.problem.errors] == ["/order_id"]


@pytest.mark.parametrize("seed", range(5))
def test_events_that_fail_again_and_again_keep_the_order_of_their_user(seed):
    """However a broker fails, events are published once each, and those of a user in order."""
    chance = random.Random(seed)

    async def flaky(message):
        await asyncio.sleep(0)
        if chance.random() < 0.2:
            raise BrokerUnavailable("the broker is away")

    async def send(events):
        transport = MemoryTransport(flaky)
        app = create_app(Settings(transport="memory"), transport=transport)
        http = httpx.AsyncClient(transport=httpx.ASGITransport(app))
        options = {"http_client": http, "max_wait": 0, "batch_events": 40, "attempts": 100}
        async with http, app.router.lifespan_context(app), AsyncClient("http://localhost", **options) as client:
            receipts = [receipt async for receipt in client.send_many(events)]
        return receipts, [message.json() for message in transport.messages]

    events = orders(200, users=6)
    receipts, published = asyncio.run(send(events))
    assert len(receipts) == len(published) == 200
    by_id = {event["event_id"]: event["order_id"] for event in published}
    assert [by_id[receipt.event_id] for receipt in receipts] == [event["order_id"] for event in events]
    for user in range(6):
        found = [int(event["order_id"][1:]) for event in published if event["user_id"] == f"u{user}"]
        assert found == sorted(found)


def test_service_with_smaller_limits_gets_all_events_in_order(tmp_path, send_many):
    """Batches that are larger than the service allows are split until they fit, and every user's order is kept."""
    events = orders(500, users=7, timestamp=datetime.now(UTC) - timedelta(days=1))
    with serving(cwd=tmp_path, PULSECART_MAX_BATCH_EVENTS="50") as served:
        receipts, failures = send_many(served.url, events)
        messages = httpx.get(f"{served.url}/dev/messages").json()["messages"]
    assert failures == ()
    assert len(receipts) == len(messages) == 500
    by_id = {message["attributes"]["event_id"]: message["data"]["order_id"] for message in messages}
    assert [by_id[receipt.event_id] for receipt in receipts] == [event["order_id"] for event in events]
    for user in range(7):
        found = [int(m["data"]["order_id"][1:]) for m in messages if m["ordering_key"] == f"u{user}"]
        assert found == sorted(found)


# Packaging


def test_missing_httpx_is_explained():
    """Without the extra, the import says what to install."""
    program = "import sys\nsys.modules['httpx'] = None\nimport pulsecart.client"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, env=os.environ)
    assert "pip install 'pulsecart[client]'" in run.stderr
    assert "ModuleNotFoundError" in run.stderr
