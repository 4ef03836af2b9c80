"""A Pub/Sub server with topics and subscriptions, by REST: as strict about order as production."""

import base64
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ssl import PROTOCOL_TLS_SERVER, SSLContext
from typing import Any

CODES = {"NOT_FOUND": 404, "ALREADY_EXISTS": 409, "PERMISSION_DENIED": 403, "UNAVAILABLE": 503, "UNAUTHENTICATED": 401}
CODES |= {"DEADLINE_EXCEEDED": 504}


class Subscriptions:
    def __init__(self, topics: list[str], pull_seconds: float) -> None:
        self.host = ""
        self.script: list[tuple[str, str]] = []
        """Errors for coming requests: the end of a path or a method, and a status."""
        self.subscriptions: dict[str, dict[str, Any]] = {}
        self.created: list[dict[str, Any]] = []
        self.tokens: set[str | None] = set()
        self.pulls = 0
        self.stopped = False
        self.stop: Callable[[], None]
        """Close the listener, and the connections when their next request arrives."""
        self.answers = threading.Event()
        """While it is not set, requests have their effect, but no answer."""
        self.answers.set()
        self._topics = {f"projects/test/topics/{topic}" for topic in topics}
        self._pull_seconds = pull_seconds
        self._changed = threading.Condition()
        self._ids = 0

    @property
    def outstanding(self) -> list[dict[str, str]]:
        """The messages that are not acknowledged, of each subscription."""
        return [subscription["outstanding"] for subscription in self.subscriptions.values()]

    def wait_for_subscriptions(self, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.subscriptions) == count, 60), self.subscriptions

    def publish(self, topic: str, data: bytes, key: str = "", event_type: str = "order.placed") -> None:
        with self._changed:
            self._ids += 1
            message = {"data": base64.b64encode(data).decode(), "messageId": str(self._ids), "orderingKey": key}
            message["attributes"] = {"event_type": event_type}
            for subscription in self.subscriptions.values():
                if subscription["topic"] == f"projects/test/topics/{topic}":
                    subscription["waiting"].append((f"ack-{self._ids}", message))
            self._changed.notify_all()

    def answer(self, method: str, path: str, body: Any) -> Any:
        with self._changed:
            for index, (part, status) in enumerate(self.script):
                if path.endswith(part) or part == method:
                    del self.script[index]
                    return status
            name, _, call = path.removeprefix("/v1/").partition(":")
            if method == "PUT":
                return self._create(name, body)
            if name not in self.subscriptions:
                return "NOT_FOUND"
            if method == "DELETE":
                del self.subscriptions[name]
                self._changed.notify_all()
                return {}
            subscription = self.subscriptions[name]
            if call == "acknowledge":
                for each in body["ackIds"]:
                    del subscription["outstanding"][each]
                self._changed.notify_all()
                return {}
            self.pulls += 1
            self._changed.wait_for(lambda: _available(subscription), self._pull_seconds)
            found = _available(subscription)[: body["maxMessages"]]
            for each in found:
                subscription["waiting"].remove(each)
                subscription["outstanding"][each[0]] = each[1]["orderingKey"]
            return {"receivedMessages": [{"ackId": ack_id, "message": message} for ack_id, message in found]}

    def _create(self, name: str, body: Any) -> Any:
        if body["topic"] not in self._topics:
            return "NOT_FOUND"
        if name in self.subscriptions:
            return "ALREADY_EXISTS"
        assert body["enableMessageOrdering"]
        assert body["expirationPolicy"] == {"ttl": "86400s"}
        self.subscriptions[name] = {"topic": body["topic"], "waiting": [], "outstanding": {}}
        self.created.append(body)
        self._changed.notify_all()
        return body


def _available(subscription: dict[str, Any]) -> list[Any]:
    """Return the messages that may be delivered: not those behind an unacknowledged one of their key."""
    held = {key for key in subscription["outstanding"].values() if key}
    return [each for each in subscription["waiting"] if each[1]["orderingKey"] not in held]


@contextmanager
def subscriptions(
    topics: list[str], *, port: int = 0, pull_seconds: float = 0.5, certificate: Any = None, kept: Any = None
) -> Iterator[Subscriptions]:
    """Run the server, which already has the subscriptions in `kept` when it begins to listen."""
    server = Subscriptions(topics, pull_seconds)
    server.subscriptions = kept or {}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            raw = self.rfile.read(int(self.headers["Content-Length"]))
            server.tokens.add(self.headers["Authorization"])
            answer = server.answer(self.command, self.path, json.loads(raw) if raw else None)
            server.answers.wait(60)
            if server.stopped:
                self.close_connection = True
                return
            status = 200
            if isinstance(answer, str):
                status = CODES[answer]
                answer = {"error": {"code": status, "message": f"{self.path} is {answer}", "status": answer}}
            body = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            with suppress(ConnectionError):  # of a client that has been stopped
                self.end_headers()
                self.wfile.write(body)

        do_PUT = do_POST = do_DELETE = _answer  # noqa: N815

        def log_message(self, *_arguments: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    http.daemon_threads = True
    if certificate is not None:
        context = SSLContext(PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate.chain_file, certificate.key_file)
        http.socket = context.wrap_socket(http.socket, server_side=True)
    thread = threading.Thread(target=http.serve_forever, args=(0.01,))
    thread.start()
    server.host = f"127.0.0.1:{http.server_port}"

    def stop() -> None:
        http.shutdown()
        thread.join()
        http.server_close()
        server.stopped = True

    server.stop = stop
    try:
        yield server
    finally:
        stop()


def until(condition: Any, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)
