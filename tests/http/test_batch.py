"""`POST /events/batch`: arrays and lines, their answers and their limits."""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from pulsecart import BrokerRefused, BrokerUnavailable, Limits, Message
from pulsecart.app import create_app
from pulsecart.serve.settings import Settings
from pulsecart.telemetry import logs
from pulsecart.testing import strict_pubsub
from pulsecart.transports import EmulatorTransport, MemoryTransport
from tests.http.client import JSON, POST, failing, problem, served
from tests.http.test_ingest import json_values

pytestmark = pytest.mark.anyio

LINES = {"Content-Type": "application/x-ndjson"}
TOPIC = "pulsecart.commerce-events"


def order(number: int = 0, user: str = "u", **changes: Any) -> dict[str, Any]:
    fields = {"event_type": "order.placed", "user_id": user, "order_id": "o", "payload": {"n": number}}
    return {name: value for name, value in (fields | changes).items() if value is not ...}


def ndjson(*events: Any, end: bytes = b"\n") -> bytes:
    return b"".join((each if isinstance(each, bytes) else json.dumps(each).encode()) + end for each in events)


async def post(client: httpx.AsyncClient, body: Any, **headers: str) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return await client.post("/events/batch", content=content, headers=JSON | headers)


async def post_lines(client: httpx.AsyncClient, body: Any, **headers: str) -> httpx.Response:
    return await client.post("/events/batch", content=body, headers=LINES | headers)


async def messages(client: httpx.AsyncClient) -> list[dict[str, Any]]:
    return (await client.get("/dev/messages")).json()["messages"]


def incomplete(response: httpx.Response, status: int) -> dict[str, Any]:
    """Check that the answer says that some events were not published, and return it."""
    document = problem(response, status, "batch-incomplete")
    assert ("retry-after" in response.headers) is (status == 503)
    assert document["errors"] == []
    return document


def fails_when(condition: Callable[[dict[str, Any]], bool], error: Exception) -> MemoryTransport:
    async def handler(message: Message) -> None:
        if condition(json.loads(message.data)):
            raise type(error)(*error.args)

    return MemoryTransport(handler)


class TestArrays:
    async def test_202_lists_every_event_in_order(self, client):
        """The 202 has index, event id, message id and trace id of each event, which are published in order."""
        response = await post(client, [order(n) for n in range(5)])
        assert response.status_code == 202
        answer = response.json()
        assert (answer["status"], answer["accepted"], answer["failed"]) == ("accepted", 5, 0)
        assert [list(result) for result in answer["results"]] == [["index", "event_id", "message_id", "trace_id"]] * 5
        assert [result["index"] for result in answer["results"]] == [0, 1, 2, 3, 4]
        published = await messages(client)
        assert [message["data"]["payload"]["n"] for message in published] == [0, 1, 2, 3, 4]
        assert [m["attributes"]["event_id"] for m in published] == [r["event_id"] for r in answer["results"]]
        assert [m["message_id"] for m in published] == [r["message_id"] for r in answer["results"]]
        assert all(r["trace_id"] == r["event_id"][4:] for r in answer["results"])

    @pytest.mark.parametrize("content_type", ["application/json", "Application/JSON; charset=utf-8"])
    async def test_numbers_and_spaces_are_kept(self, client, content_type):
        """Each element is read exactly as a single event is."""
        body = b' [ {"event_type":"order.placed","user_id":"u","order_id":"o","payload":{"a": 89.90, "b":1E+400}} ]\n'
        response = await client.post("/events/batch", content=body, headers={"Content-Type": content_type})
        assert response.status_code == 202
        assert '{"a": 89.90, "b":1E+400}' in (await client.get("/dev/messages")).text

    @pytest.mark.parametrize(
        ("element", "status", "type_", "pointer"),
        [
            (b"1", 400, "malformed-body", None),
            (b"null", 400, "malformed-body", None),
            (b"[]", 400, "malformed-body", None),
            (b'{"user_id":"a","user_id":"b"}', 400, "malformed-body", "/user_id"),
            (b'{"a":' * 128 + b"1" + b"}" * 128, 400, "missing-event-type", "/event_type"),
            (b'{"a":' * 129 + b"1" + b"}" * 129, 400, "malformed-body", None),
            (b'{"a":1e9999999999999999999}', 400, "malformed-body", None),
            (b'{"a":"\xff"}', 400, "malformed-body", None),
            (rb'{"a":"\ud800"}', 400, "malformed-body", None),
            (rb'{"\\\\\uDC00, \"]":[1, 2],"b":"\ud83d\ude00\\"}', 400, "malformed-body", None),
            (rb'"\ud800"', 400, "malformed-body", None),
            (b"{}", 400, "missing-event-type", "/event_type"),
            (b'{"event_type":"order.place"}', 422, "unknown-event-type", "/event_type"),
            (b'{"event_type":"order.placed","user_id":"u","payload":{}}', 422, "invalid-event", "/order_id"),
        ],
        ids=lambda value: repr(value)[:40],
    )
    async def test_wrong_element_fails_alone(self, client, element, status, type_, pointer):
        """A wrong element has the error that it would have as a single event; its neighbours are published."""
        body = b"[%b,%b,%b]" % (json.dumps(order(1)).encode(), element, json.dumps(order(2)).encode())
        document = incomplete(await post(client, body), 422)
        assert (document["accepted"], document["failed"], document["retryable"]) == (2, 1, False)
        (result,) = document["results"]
        assert (result["index"], result["status"], result["type"]) == (1, status, type_)
        assert result["retryable"] is False
        assert result["detail"]
        assert (result["errors"][0]["pointer"] if pointer else result.get("errors")) == pointer
        assert [message["data"]["payload"]["n"] for message in await messages(client)] == [1, 2]

    async def test_surrogates_do_not_move_other_elements(self, client):
        """With half of a surrogate pair in one element, the others are published as they were sent."""
        good = rb'{"event_type":"order.placed","user_id":"u","order_id":"o","payload":{"a": "\\\ud83d\ude00, \"" }}'
        body = b" [\n %b , %b,\t%b] " % (good, rb'{"a":"\ud800"}', good)
        document = incomplete(await post(client, body), 422)
        assert (document["accepted"], [result["index"] for result in document["results"]]) == (2, [1])
        assert "surrogate" in document["results"][0]["detail"]
        assert (await client.get("/dev/messages")).text.count(rb'{"a": "\\\ud83d\ude00, \"" }'.decode()) == 2
        problem(await post(client, body[:-2]), 400, "malformed-body")

    async def test_element_without_end_in_sight_is_400(self, client):
        """Where nesting is too deep to tell the elements apart, the whole array is refused, and the answer says why."""
        body = b"[%b,%b]" % (json.dumps(order()).encode(), b"[" * 100_000 + b"]" * 100_000)
        assert "nested too deep" in problem(await post(client, body), 400, "malformed-body")["detail"]

    async def test_wrong_element_is_called_an_event(self, client):
        """What is said about an element or a line is not about the body."""
        for response in (await post(client, [1, {}]), await post_lines(client, ndjson(1, {}, b"{"))):
            details = [result["detail"] for result in incomplete(response, 422)["results"]]
            assert details[0] == "The event is a number; send one JSON object for each event."
            assert all(detail.startswith("The event ") for detail in details)

    @pytest.mark.parametrize(
        "body",
        [b"", b"[]", b" [ ] ", b"{}", b"1", b"[1", b"[1]]", b"nonsense", b"\xef\xbb\xbf[]", b"[" * 5000, b"[NaN]"],
    )
    async def test_body_that_is_no_array_of_events_is_400(self, client, body):
        """An empty array, another value and malformed JSON are rejected as a whole."""
        problem(await post(client, body), 400, "malformed-body")

    @pytest.mark.parametrize("content_type", [None, "text/plain", "application/json; charset=latin-1", "text/csv"])
    async def test_other_media_type_is_415(self, client, content_type):
        """The answer names what is accepted."""
        headers = {} if content_type is None else {"Content-Type": content_type}
        response = await client.post("/events/batch", content=b"[]", headers=headers)
        problem(response, 415, "unsupported-media-type")
        assert response.headers["accept"] == "application/json, application/x-ndjson, application/jsonl"

    async def test_array_over_a_limit_is_413(self):
        """The limits of events and bytes are inclusive, and are stated."""
        events = json.dumps([order(n) for n in range(3)]).encode()
        limits = Settings(transport="memory", max_batch_events=3, max_batch_bytes=len(events))
        async with served(settings=limits) as client:
            assert (await post(client, events)).status_code == 202
            for body, limit in ((events + b" ", len(events)), (b"[1,2,3,4]", 3)):
                document = problem(await post(client, body), 413, "body-too-large")
                assert document["limit"] == limit
                assert f"{limit:,}" in document["detail"]

    async def test_element_over_the_limit_of_an_event_fails_alone(self):
        """An element obeys the limit of a single body."""
        small = json.dumps(order(1)).encode()
        async with served(settings=Settings(transport="memory", max_body_bytes=len(small))) as client:
            body = b"[%b,%b]" % (small, json.dumps(order(12)).encode())
            document = incomplete(await post(client, body), 422)
        (result,) = document["results"]
        assert (result["index"], result["status"], result["type"]) == (1, 413, "body-too-large")
        assert f"{len(small):,}" in result["detail"]

    async def test_many_small_elements_are_refused_early(self):
        """An array of millions of elements is refused without holding them."""
        async with served() as client:
            problem(await post(client, b"[" + b"1," * 3_000_000 + b"1]"), 413, "body-too-large")

    async def test_outage_is_503_with_ids_to_retry(self):
        """Every failure has the event id and timestamp to retry with; nothing of what was accepted is listed."""
        async with served(fails_when(lambda e: e["user_id"] == "b", BrokerUnavailable("it hangs"))) as client:
            response = await post(client, [order(1, "a"), order(2, "b"), order(3, "b"), order(4, "a")])
        document = incomplete(response, 503)
        assert (document["accepted"], document["failed"], document["retryable"]) == (2, 2, True)
        failed, aborted = document["results"]
        assert (failed["index"], failed["status"], failed["type"]) == (1, 503, "broker-unavailable")
        assert (aborted["index"], aborted["status"], aborted["type"]) == (2, 503, "aborted")
        for result in document["results"]:
            assert result["retryable"] is True
            assert result["event_id"].startswith("evt_")
            assert result["timestamp"].endswith("Z")
        assert response.headers["retry-after"] == "1"

    async def test_longest_retry_after_counts(self):
        """The answer's Retry-After is the longest of its failures."""
        async with served(failing(BrokerRefused("no such topic"))) as client:
            response = await post(client, [order()])
        incomplete(response, 503)
        assert response.headers["retry-after"] == "60"

    async def test_defect_fails_alone_and_aborts_nothing(self, capsys):
        """A defect is 500 for its event, retryable, and logged with its traceback."""
        defective = {"event_type": "defective", "user_id": "u", "payload": {}, "code": "x"}
        settings = Settings(transport="memory", events=("tests.http.defective",))
        async with served(settings=settings) as client:
            document = incomplete(await post(client, [order(0), defective, order(2)]), 503)
        (result,) = document["results"]
        assert (result["index"], result["status"], result["type"], result["retryable"]) == (
            1,
            500,
            "internal-error",
            True,
        )
        assert "secret" not in json.dumps(document)
        logs.flush()
        assert "Traceback" in capsys.readouterr().err

    async def test_at_most_thousand_failures_are_listed(self, client):
        """More are counted, and the list is marked as truncated."""
        document = incomplete(await post(client, [1] * 1001), 422)
        assert (document["failed"], len(document["results"]), document["truncated"]) == (1001, 1000, True)
        assert "truncated" not in incomplete(await post(client, [1] * 1000), 422)

    async def test_return_minimal_leaves_out_results(self, client):
        """A 202 has no results, and says that the preference was applied; failures are listed anyway."""
        response = await post(client, [order()], Prefer="respond-async, Return=Minimal; foo=bar")
        assert response.json() == {"status": "accepted", "accepted": 1, "failed": 0}
        assert response.headers["preference-applied"] == "return=minimal"
        response = await post(client, [order(), 1], Prefer="return=minimal")
        assert len(incomplete(response, 422)["results"]) == 1
        assert "preference-applied" not in response.headers

    async def test_first_preference_of_a_name_counts(self, client):
        """A repeated preference and an unknown value have no effect."""
        for prefer in (
            "return=representation, return=minimal",
            "handling=lenient",
            "",
            ",;=",
            'return="',
            'foo="a, return=minimal"',
            'foo="a\\", return=minimal, handling=strict"',
            'return="minimal; x"',
        ):
            response = await post(client, [order()], Prefer=prefer)
            assert len(response.json()["results"]) == 1
            assert "preference-applied" not in response.headers

    async def test_strict_handling_publishes_all_or_nothing(self, client):
        """With handling=strict an invalid event prevents all others from being published."""
        response = await post(
            client, [order(1), order(2, user_id=""), order(3), 4], Prefer='foo="a;b,\\"c"; d="e,f", handling="strict"'
        )
        document = incomplete(response, 422)
        assert (document["accepted"], document["failed"]) == (0, 2)
        assert [result["index"] for result in document["results"]] == [1, 3]
        assert response.headers["preference-applied"] == "handling=strict"
        assert await messages(client) == []
        response = await post(client, [order(n) for n in range(200)], Prefer="handling=strict, return=minimal")
        assert (response.status_code, response.json()["accepted"]) == (202, 200)
        assert response.headers["preference-applied"] == "return=minimal, handling=strict"
        assert len(await messages(client)) == 200

    async def test_events_wait_for_room(self):
        """An array with more events than may be in flight is published completely, in order per key."""
        limits = Limits(max_messages=20)
        async with (
            strict_pubsub([TOPIC]) as server,
            served(EmulatorTransport(project="test", host=server.host, limits=limits)) as client,
        ):
            response = await post(client, [order(n, f"u{n % 5}") for n in range(300)])
            assert response.status_code == 202
            for user in range(5):
                mine = [m for m in server.confirmed if m.ordering_key == f"u{user}"]
                assert [json.loads(m.data)["payload"]["n"] for m in mine] == list(range(user, 300, 5))

    async def test_arrays_over_the_limit_of_bytes_are_503(self):
        """Arrays that wait for the broker are limited together; the next one is refused as a whole."""
        gate = asyncio.Event()

        async def handler(_message: Message) -> None:
            await gate.wait()

        settings = Settings(transport="memory", max_bytes=10_000_000)
        async with served(MemoryTransport(handler), settings) as client:
            body = json.dumps([order(n, payload={"n": n, "x": "y" * 600_000}) for n in range(6)]).encode()
            first = asyncio.create_task(post(client, body))
            await asyncio.sleep(0.05)
            response = await post(client, body)
            problem(response, 503, "overloaded")
            assert response.headers["retry-after"] == "1"
            gate.set()
            assert (await first).status_code == 202
            assert (await post(client, body)).status_code == 202

    async def test_one_log_line_for_a_batch_and_one_for_a_failure(self, client, capsys):
        """The line of a batch counts its events; accepted ones have no lines of their own."""
        await post(client, [order(1), order(2), order(3, user_id="")])
        await post(client, [order(1)])
        logs.flush()
        lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
        assert [line["message"] for line in lines] == ["event refused", "batch incomplete", "batch accepted"]
        assert (lines[1]["accepted"], lines[1]["failed"], lines[1]["problem"]) == (2, 1, "batch-incomplete")
        assert (lines[2]["accepted"], lines[2]["failed"], lines[2]["severity"]) == (1, 0, "INFO")
        assert lines[0]["faults"] == "/user_id empty"

    async def test_closed_service_is_503(self):
        """When the transport is closed, each event fails as shutting-down, or is aborted behind one that did."""
        transport = MemoryTransport()
        async with served(transport) as client:
            await transport.aclose()
            document = incomplete(await post(client, [order(1), order(2), order(3, "other")]), 503)
        assert [result["type"] for result in document["results"]] == ["shutting-down", "aborted", "shutting-down"]


class TestLines:
    @pytest.mark.parametrize("content_type", ["application/x-ndjson", "Application/JSONL; charset=utf-8"])
    @pytest.mark.parametrize("end", [b"\n", b"\r\n"])
    async def test_lines_are_published_in_order(self, client, content_type, end):
        """LF and CRLF end lines, blank lines are skipped, the last end is optional; the answer is always minimal."""
        body = ndjson(order(0), b"", order(1), b" \t", b"", order(2), end=end).removesuffix(end)
        response = await client.post("/events/batch", content=body, headers={"Content-Type": content_type})
        assert response.status_code == 202
        assert response.json() == {"status": "accepted", "accepted": 3, "failed": 0}
        assert "preference-applied" not in response.headers
        assert [message["data"]["payload"]["n"] for message in await messages(client)] == [0, 1, 2]

    async def test_preferences_of_lines(self, client):
        """return=minimal is applied if asked for; handling=strict is ignored."""
        response = await post_lines(client, ndjson(order(1)), Prefer="return=minimal, handling=strict")
        assert response.headers["preference-applied"] == "return=minimal"
        response = await post_lines(client, ndjson(order(2), b"x"), Prefer="handling=strict")
        assert incomplete(response, 422)["accepted"] == 1
        assert "preference-applied" not in response.headers

    async def test_no_lines_are_202(self, client):
        """An empty stream is complete: every event of it is with the broker."""
        for body in (b"", b"\n\r\n \n", b"\n \t"):
            assert (await post_lines(client, body)).json() == {"status": "accepted", "accepted": 0, "failed": 0}

    async def test_wrong_line_fails_alone(self, client):
        """It has its index, counted without blank lines, and its line, counted with them, from 1."""
        body = ndjson(b"", order(0), b"[1]", b"", b"{", b"\xff", order(1, user_id=""), order(2))
        document = incomplete(await post_lines(client, body), 422)
        assert (document["accepted"], document["failed"], "stopped_at" in document) == (2, 4, False)
        found = [(r["index"], r["line"], r["status"], r["type"]) for r in document["results"]]
        assert found == [
            (1, 3, 400, "malformed-body"),
            (2, 5, 400, "malformed-body"),
            (3, 6, 400, "malformed-body"),
            (4, 7, 422, "invalid-event"),
        ]
        assert document["results"][3]["errors"][0]["pointer"] == "/user_id"

    async def test_line_over_the_limit_fails_alone(self):
        """The limit is that of a single body, without the line's end, however the line arrives."""
        line = json.dumps(order(1)).encode()
        body = b"%b\r\n%b \r\n%b\n%b\n%b" % (line, line, b"x" * 100_000, line, line + b" ")

        async def byte_by_byte() -> AsyncIterator[bytes]:
            for start in range(0, len(body), 37):
                yield body[start : start + 37]

        async with served(settings=Settings(transport="memory", max_body_bytes=len(line))) as client:
            for content in (body, byte_by_byte()):
                document = incomplete(await post_lines(client, content), 422)
                assert document["accepted"] == 2
                found = [(r["index"], r["line"], r["status"], r["type"]) for r in document["results"]]
                assert found == [(n, n + 1, 413, "body-too-large") for n in (1, 2, 4)]
                assert f"{len(line):,}" in document["results"][0]["detail"]

    async def test_stream_ends_early_at_thousand_failures(self, client):
        """The answer says at which line, and sending may resume there."""
        body = ndjson(b"", *[b"x"] * 1200, order(1))
        document = incomplete(await post_lines(client, body), 422)
        assert (document["accepted"], document["failed"], document["stopped_at"]) == (0, 1000, 1002)
        assert len(document["results"]) == 1000
        rest = b"".join(body.splitlines(keepends=True)[1001:])
        assert incomplete(await post_lines(client, rest), 422)["accepted"] == 1

    async def test_thousand_failures_at_the_end_are_not_early(self, client):
        """If no line is left, the stream did not end early."""
        document = incomplete(await post_lines(client, ndjson(*[b"x"] * 1000, b"")), 422)
        assert (document["failed"], "stopped_at" in document) == (1000, False)

    async def test_every_failure_of_a_stream_is_listed(self):
        """Resuming at stopped_at, and resending what has failed, loses nothing, however many were on their way."""

        async def fail(message: Message) -> None:
            await asyncio.sleep(0.002 if json.loads(message.data)["payload"]["n"] % 3 else 0)
            raise BrokerUnavailable("test")

        async with served(MemoryTransport(fail)) as client:
            body = ndjson(*(b"x" if n % 7 == 0 else order(n, f"u{n}") for n in range(3000)))
            document = incomplete(await post_lines(client, body), 503)
        assert (document["accepted"], document["failed"], document["stopped_at"]) == (0, 1000, 1001)
        assert [result["line"] for result in document["results"]] == list(range(1, 1001))
        assert "truncated" not in document

    async def test_stream_ends_when_the_transport_refuses(self):
        """A broker known to be away, or a shutdown, ends the stream; what was not tried is not a failure."""

        class Leaving(MemoryTransport):
            def admit(self, message: Message) -> str | None:
                if len(self.messages) == 3:
                    raise BrokerUnavailable("the broker cannot be reached")
                return super().admit(message)

        async with served(Leaving()) as client:
            response = await post_lines(client, ndjson(b"", *(order(n) for n in range(10))))
        document = incomplete(response, 503)
        assert (document["accepted"], document["failed"], document["stopped_at"]) == (3, 0, 5)
        assert document["results"] == []
        assert document["retryable"] is True
        assert "the broker cannot be reached" in document["detail"]
        transport = MemoryTransport()
        async with served(transport) as client:
            await transport.aclose()
            response = await post_lines(client, ndjson(order()))
        assert incomplete(response, 503)["stopped_at"] == 1
        assert response.headers["connection"] == "close"


@asynccontextmanager
async def streaming(
    transport: Any = None, key: str = "", **options: Any
) -> AsyncIterator[tuple[Any, asyncio.Task[dict[str, Any]]]]:
    """Send a stream part by part, and yield a function to do so, and a task for the answer."""
    app = create_app(Settings(transport="memory", **options), transport=transport)
    parts: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    answer: dict[str, Any] = {}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            answer["status"], answer["headers"] = message["status"], dict(message["headers"])
        elif message["body"]:
            answer.update(json.loads(message["body"]))

    async def run() -> dict[str, Any]:
        await app(scope, parts.get, send)
        return answer

    def part(body: bytes | None, *, more: bool = True) -> None:
        ended = {"type": "http.disconnect"}
        parts.put_nowait(ended if body is None else {"type": "http.request", "body": body, "more_body": more})

    headers = [(b"content-type", b"application/x-ndjson"), (b"authorization", f"Bearer {key}".encode())]
    scope = POST | {"path": "/events/batch", "headers": headers}
    async with app.router.lifespan_context(app):
        task = asyncio.create_task(run())
        yield part, task
        assert task.done()


async def published(transport: MemoryTransport, count: int) -> None:
    async with asyncio.timeout(5):
        while len(transport.messages) < count:
            await asyncio.sleep(0.005)


async def test_failure_before_a_body_breaks_off_is_retryable():
    """If the rest cannot be decoded, what has failed before can still be resent."""
    async with served(failing(BrokerUnavailable("it hangs"))) as client:
        body = gzip.compress(ndjson(order(1), order(2, "other"))) + b"garbage"
        response = await post_lines(client, body, **{"Content-Encoding": "gzip"})
    document = response.json()
    assert (response.status_code, document["type"], document["failed"]) == (400, "malformed-body", 2)
    assert document["retryable"] is True
    assert response.headers["retry-after"] == "1"


class TestTime:
    async def test_pause_ends_the_stream_with_408(self):
        """A pause of the sender is bounded; the answer says what was published before it."""
        async with streaming(body_timeout=0.1) as (part, answer):
            part(ndjson(order(1), b"x", order(2)) + b'{"half')
            document = await answer
        assert (document["status"], document["type"], document["retryable"]) == (408, "request-timeout", True)
        assert (document["accepted"], document["failed"], document["stopped_at"]) == (2, 1, 4)
        assert [result["line"] for result in document["results"]] == [2]
        assert document["headers"][b"connection"] == b"close"
        assert "0.1 seconds" in document["detail"]

    async def test_time_in_which_nothing_is_read_does_not_count(self):
        """While pulsecart does not read, because the broker is slow, no pause is counted."""

        async def slow(_message: Message) -> None:
            await asyncio.sleep(0.03)

        async with streaming(MemoryTransport(slow), body_timeout=0.2) as (part, answer):
            part(ndjson(*(order(n) for n in range(15))))
            part(ndjson(order(15)), more=False)
            document = await answer
        assert (document["status"], document["accepted"]) == ("accepted", 16)

    async def test_low_rate_ends_the_stream_with_408(self):
        """A sender that never pauses for long, but trickles, is below the minimum rate."""
        async with streaming(body_timeout=0.2, min_stream_rate=1_000_000) as (part, answer):
            part(ndjson(order(1)))
            for _ in range(50):
                if answer.done():
                    break
                await asyncio.sleep(0.02)
                part(b"\n")
            document = await answer
        assert (document["status"], document["type"], document["accepted"]) == (408, "request-timeout", 1)
        assert "1,000,000 a second" in document["detail"]

    async def test_rate_is_measured_again_and_again(self):
        """A sender above the rate may take longer than any pause may."""
        transport = MemoryTransport()
        async with streaming(transport, body_timeout=0.1, min_stream_rate=100) as (part, answer):
            for number in range(10):
                part(ndjson(order(number)))
                await published(transport, number + 1)
                await asyncio.sleep(0.03)
            part(b"", more=False)
            assert (await answer)["accepted"] == 10

    async def test_lines_are_published_as_they_arrive(self):
        """A line is published before the next one has been sent."""
        transport = MemoryTransport()
        async with streaming(transport) as (part, answer):
            part(ndjson(order(1)) + b'{"event_type":"order')
            await published(transport, 1)
            part(b'.placed","user_id":"u","order_id":"o","payload":{"n":2}}', more=False)
            assert (await answer)["accepted"] == 2

    async def test_client_that_leaves_is_logged(self, capsys):
        """Nothing is answered; what was complete has been published."""
        transport = MemoryTransport()
        async with streaming(transport) as (part, answer):
            part(ndjson(order(1)) + b"{")
            await published(transport, 1)
            part(None)
            await answer
        logs.flush()
        assert json.loads(capsys.readouterr().err)["problem"] == "client-disconnect"

    async def test_client_that_has_sent_everything_may_close_its_sending_side(self):
        """What looks like a disconnect after the whole stream may be a client that still reads: it gets its answer."""
        async with streaming() as (part, answer):
            part(ndjson(*(order(n) for n in range(20))), more=False)
            part(None)
            assert (await answer)["accepted"] == 20

    async def test_number_of_streams_is_limited(self):
        """One stream too many is 503, and the place is free again afterwards."""
        app = create_app(Settings(transport="memory", max_streams=1))
        gate = asyncio.Event()

        async def content() -> AsyncIterator[bytes]:
            yield ndjson(order(1))
            await gate.wait()

        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            first = asyncio.create_task(post_lines(client, content()))
            await asyncio.sleep(0.01)
            response = await post_lines(client, ndjson(order(2)))
            problem(response, 503, "overloaded")
            assert response.headers["retry-after"] == "1"
            gate.set()
            assert (await first).status_code == 202
            assert (await post_lines(client, ndjson(order(3)))).status_code == 202

    async def test_window_stops_the_reading(self):
        """While the broker is slow, pulsecart reads no further than its window."""
        gate = asyncio.Event()
        taken = 0

        async def handler(_message: Message) -> None:
            await gate.wait()

        async def content() -> AsyncIterator[bytes]:
            nonlocal taken
            for number in range(5000):
                taken += 1
                yield ndjson(order(number, f"u{number}"))

        async with served(MemoryTransport(handler)) as client:
            task = asyncio.create_task(post_lines(client, content()))
            await asyncio.sleep(0.5)
            assert 1000 <= taken < 1100
            gate.set()
            assert (await task).json()["accepted"] == 5000

    async def test_single_events_have_their_turn_during_a_stream(self):
        """A stream that always has more to read does not delay others for long."""
        body = ndjson(*(order(n) for n in range(200)))
        delays = []

        async def content() -> AsyncIterator[bytes]:
            for _ in range(50):
                yield body

        async with served() as client:
            task = asyncio.create_task(post_lines(client, content()))
            while not task.done():
                started = asyncio.get_running_loop().time()
                assert (await client.post("/events/ingest", json=order())).status_code == 202
                await asyncio.sleep(0)
                delays.append(asyncio.get_running_loop().time() - started)
            assert (await task).json()["accepted"] == 10_000
        assert len(delays) > 20


elements = st.one_of(
    json_values.map(lambda value: json.dumps(value).encode()),
    st.binary(max_size=30),
    st.sampled_from([json.dumps(order(1)).encode(), b"{}", b'{"event_type":"order.placed"}', b"[", b'"', b"\\", b"\r"]),
)


@given(lines=st.lists(elements, max_size=8), cut=st.integers(1, 50), compressed=st.booleans())
@examples(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_lines_are_counted(lines, cut, compressed):
    """Whatever the lines are and however they are cut, each non-blank one is accepted or fails with a reason."""
    body = b"\n".join(lines)
    sent = gzip.compress(body) if compressed else body

    async def content() -> AsyncIterator[bytes]:
        for start in range(0, len(sent), cut):
            yield sent[start : start + cut]

    async def run() -> None:
        headers = {"Content-Encoding": "gzip"} if compressed else {}
        async with served() as client:
            response = await post_lines(client, content(), **headers)
        document = response.json()
        expected = [number for number, line in enumerate(body.split(b"\n"), 1) if line.strip(b" \t\r")]
        assert document["accepted"] + document["failed"] == len(expected)
        if document["failed"]:
            incomplete(response, 422)
            assert len(document["results"]) == document["failed"]
            assert all(expected[result["index"]] == result["line"] for result in document["results"])
            assert all(result["detail"] and 400 <= result["status"] < 500 for result in document["results"])

    asyncio.run(run())


@given(body=st.one_of(st.binary(), st.lists(elements, max_size=5).map(lambda each: b"[" + b",".join(each) + b"]")))
@examples(max_examples=150, deadline=None)
def test_any_array_is_answered(body):
    """Any body is 202, 422 with results, or a 4xx for the whole."""

    async def run() -> None:
        async with served() as client:
            response = await post(client, body)
        assert response.status_code == 202 or 400 <= response.status_code < 500
        if response.status_code == 422:
            assert incomplete(response, 422)["results"]
        elif response.status_code != 202:
            problem(response, response.status_code, response.json()["type"])

    asyncio.run(run())
