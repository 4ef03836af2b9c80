"""An HTTP server on a real socket whose answers are scripted, to fail in every way."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, dict[str, str], bytes] | None
"""Status, headers and body; None closes the connection without an answer."""


class Call:
    """A request that the server got."""

    def __init__(self, path: str, headers: dict[str, str], body: bytes) -> None:
        self.path = path
        self.headers = headers
        self.body = body

    @property
    def document(self) -> Any:
        return json.loads(self.body)

    @property
    def ids(self) -> list[str]:
        return [event["event_id"] for event in self.document]


class Scripted:
    """Answers with what a script returns for each request, and the number of the request from 0."""

    def __init__(self, script: Callable[[Call, int], Reply]) -> None:
        self._script = script
        self._lock = threading.Lock()
        self.calls: list[Call] = []
        self.url = ""

    def reply(self, call: Call) -> Reply:
        with self._lock:
            self.calls.append(call)
            return self._script(call, len(self.calls) - 1)


@contextmanager
def scripted(script: Callable[[Call, int], Reply]) -> Iterator[Scripted]:
    server = Scripted(script)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # send the head with the body

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            reply = server.reply(Call(self.path, {k.lower(): v for k, v in self.headers.items()}, body))
            if reply is None:
                self.close_connection = True
                return
            status, headers, content = reply
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(content))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        server.url = f"http://127.0.0.1:{http.server_address[1]}"
        try:
            yield server
        finally:
            http.shutdown()
            thread.join()


def problem(status: int, kind: str, *, headers: dict[str, str] | None = None, **more: Any) -> Reply:
    document = {"type": kind, "title": kind, "status": status, "detail": f"It is {kind}.", "errors": []} | more
    return status, {"Content-Type": "application/problem+json"} | (headers or {}), json.dumps(document).encode()


def accepted(call: Call) -> Reply:
    """Accept all events of a request, as the service does."""
    if call.path.endswith("/events/ingest"):
        event_id = call.document["event_id"]
        answer = {"status": "accepted", "event_id": event_id, "message_id": "m0", "trace_id": "0"}
        return 202, {}, json.dumps(answer).encode()
    results = [
        {"index": n, "event_id": event_id, "message_id": f"m{n}", "trace_id": "0"}
        for n, event_id in enumerate(call.ids)
    ]
    answer = {"status": "accepted", "accepted": len(results), "failed": 0, "results": results}
    return 202, {}, json.dumps(answer).encode()


def incomplete(call: Call, failures: dict[int, dict[str, Any]], most: int = 1000, **headers: str) -> Reply:
    """Fail some events of a batch, and accept the others."""
    results = [
        {"index": n, "event_id": call.ids[n], "type": "broker-unavailable", "status": 503, "detail": "It is away."}
        | failure
        for n, failure in sorted(failures.items())
    ]
    status = 503 if any(result["status"] >= 500 for result in results) else 422
    more: dict[str, Any] = {"truncated": True} if len(results) > most else {}
    more |= {"accepted": len(call.ids) - len(results), "failed": len(results), "results": results[:most]}
    return problem(status, "batch-incomplete", headers=headers, **more)
