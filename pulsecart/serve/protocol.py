"""The uvicorn protocol class: one HTTP/1.1 connection, with limits on everything that a client can make it hold.

uvicorn's own class parses as many pipelined requests as a client sends, keeps chunked trailers of any size, and waits
forever for a client that does not read. This class limits the size of a head and the time to receive it, the size of
trailers, the part of a body that the application has not received yet, and the time that a client takes to read an
answer. A request is parsed only when the one before it has been answered.

httptools parses heads and chunked bodies. Each parser gets exactly one head or the bytes of one chunked body; if this
module and the parser disagree about where it ends, the connection is closed.

This is the one module that depends on uvicorn's interface for protocol classes, the `http=` option. The option is
documented, the interface is not, so pyproject.toml caps uvicorn's version. uvicorn calls the class for each connection
with `config`, `server_state`, `app_state` and `_loop`. This module uses:

- `Config.loaded_app`: the application, wrapped in uvicorn's own middleware, such as for proxy headers;
- `Config.root_path`: the prefix of all paths, for `scope["root_path"]`;
- `Config.timeout_keep_alive`: how long a connection may be idle between requests;
- `ServerState.connections`: when the server stops, it calls `shutdown()` of each, and waits until the set is empty;
- `ServerState.tasks`: the server waits for these before it stops, and cancels them at the end of its grace period;
- `ServerState.total_requests`: the server restarts workers after `limit_max_requests` of them;
- `ServerState.default_headers`: `Date`, which the server updates every second, and configured headers.
"""

import asyncio
import contextvars
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus
from typing import Any, cast
from urllib.parse import unquote
from weakref import WeakKeyDictionary

import httptools
from attrs import evolve, frozen

from pulsecart.http.problems import DEFECT, SHUTTING_DOWN, Problem

__all__ = ["ConnectionLimits", "HttpProtocol"]


@frozen(kw_only=True)
class ConnectionLimits:
    """Limits of a connection, and of their number."""

    max_connections: int = 5_000
    """Beyond it, the connection that has been idle longest is closed; if none is idle, the new one is rejected."""

    head_bytes: int = 65_536
    """Maximum bytes of a request line and headers."""

    trailer_bytes: int = 8_192
    """Maximum bytes of the trailers of a chunked body, and of the line that begins a chunk."""

    head_seconds: float = 30
    """Maximum time until the first head is complete, and from the beginning of any later head to its end."""

    write_seconds: float = 30
    """Maximum time that a client may leave an answer unread; then the connection is closed."""

    linger_seconds: float = 2
    """How long a connection stays open if its answer is sent before the end of the body, of which the rest is read and
    discarded. With an answer that says `Connection: close`, nothing more is read."""

    linger_bytes: int = 10_485_760
    """How many bytes of that rest are read."""


READ_BYTES = 65_536
"""Maximum bytes of a read from a socket, and so of unparsed data of a connection."""

BODY_BYTES = 65_536
"""When more bytes of a body are waiting for the application, reading from the connection pauses."""

_log = logging.getLogger("pulsecart.http")


class _Shared:
    """State that the connections of a server share."""

    def __init__(self) -> None:
        self.buffer = bytearray(READ_BYTES)
        """What a read fills. It is emptied before the next, so that one buffer is enough for an event loop."""
        self.waiting: dict[HttpProtocol, None] = {}
        """Idle connections, in the order in which they became idle."""
        self.unsent: list[HttpProtocol] = []
        """Connections with an answer to send at the end of this iteration of the event loop.

        All answers of an iteration are sent together: each write may wake up the client, and switching between the two
        processes costs time (measured: a third of what an event costs the service).
        """

    def send(self) -> None:
        unsent, self.unsent = self.unsent, []
        for connection in unsent:
            connection.flush()


_shared: WeakKeyDictionary[Any, _Shared] = WeakKeyDictionary()

_STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}
_CHUNK_SIZE = re.compile(rb"([0-9a-fA-F]{1,16})(?:;[^\r\n]*)?\r\n")


class HttpProtocol(asyncio.BufferedProtocol):
    """An HTTP/1.1 connection; see the module."""

    def __init__(
        self,
        config: Any,
        server_state: Any,
        app_state: Mapping[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        limits: ConnectionLimits = ConnectionLimits(),
    ) -> None:
        self._app = config.loaded_app
        self._root_path: str = config.root_path
        self._keep_alive_seconds: float = config.timeout_keep_alive
        self._server_state = server_state
        self._app_state = app_state
        self._limits = limits
        self._loop = _loop or asyncio.get_running_loop()
        self._shared = _shared.setdefault(server_state, _Shared())
        self._unsent = b""
        self._transport: asyncio.Transport
        self._writable: asyncio.Event | None = None
        """Exists while the client does not read fast enough; set when it has caught up."""
        self._reading = True
        self._unread = b""
        self._searched = 0
        """How much of `_unread` has been searched for the end of a head."""
        self._at_end = False
        """Whether the client has closed its sending side."""
        self._exchange: _Exchange | None = None
        self._body: _Sized | _Chunked | None = None
        """Reads the rest of the request's body; None if the body is complete."""
        self._discarded = 0
        self._write_timer: asyncio.TimerHandle | None = None
        self._due: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    # Connection state.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for a head, unless there are too many connections."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is not a subclass
        self._context = contextvars.copy_context()
        self._scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "server": _address(transport, "sockname"),
            "client": _address(transport, "peername"),
            "scheme": "https" if transport.get_extra_info("sslcontext") else "http",
            "root_path": self._root_path,
        }
        connections = self._server_state.connections
        if len(connections) >= self._limits.max_connections:
            if not self._shared.waiting:
                self._refuse(_TOO_MANY_CONNECTIONS)
                return
            next(iter(self._shared.waiting)).evict()
        connections.add(self)
        self._wait(self._limits.head_seconds)

    def evict(self) -> None:
        """Close an idle connection at once, even if the client has not read its last answer."""
        self.close()
        if self._transport.get_write_buffer_size():
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 (asyncio's signature)
        """Disconnect the application, and remove the connection."""
        self._server_state.connections.discard(self)
        self._shared.waiting.pop(self, None)
        self._unread = b""
        for timer in (self._timer, self._write_timer):
            if timer is not None:
                timer.cancel()
        if self._writable is not None:
            self._writable.set()
        if self._exchange is not None:
            self._exchange.disconnect()

    def shutdown(self) -> None:
        """Close the connection after the current answer, if any. The server calls this when it stops."""
        if self._exchange is None:
            self.close()
        else:
            self._exchange.keep_alive = False

    def pause_writing(self) -> None:
        """Pause the application, and requests that follow, for a limited time, since the client does not read."""
        self._writable = asyncio.Event()
        self._write_timer = self._loop.call_later(self._limits.write_seconds, self._transport.abort)
        if self._is_idle:
            self._due = None  # it is the client's turn to read, not to send

    def resume_writing(self) -> None:
        """Resume the application."""
        assert self._writable is not None  # the transport calls the two methods alternately
        assert self._write_timer is not None
        self._write_timer.cancel()
        self._writable.set()
        self._writable = None
        if self._is_idle:
            self._wait(self._keep_alive_seconds)
        self._loop.call_soon(self._advance)

    @property
    def _is_idle(self) -> bool:
        return self in self._shared.waiting and not self._searched and self._body is None

    async def drained(self) -> None:
        """Wait until the client has read enough or the connection is lost."""
        if self._writable is not None:
            await self._writable.wait()

    def write(self, data: bytes) -> None:
        """Write a part of an answer at the end of this iteration of the event loop."""
        if not self._shared.unsent:
            self._loop.call_soon(self._shared.send)
        self._shared.unsent.append(self)
        self._unsent += data

    def flush(self) -> None:
        """Send the data that has been written."""
        unsent, self._unsent = self._unsent, b""
        if unsent and not self._transport.is_closing():
            self._transport.write(unsent)

    def close(self) -> None:
        """Close the connection when all data has been sent, or after `write_seconds`."""
        self.flush()
        self._shared.waiting.pop(self, None)
        self._unread = b""
        self._transport.close()
        self._expect(self._limits.write_seconds, self._transport.abort)

    def _pause_reading(self) -> None:
        if self._reading:
            self._reading = False
            self._transport.pause_reading()

    def want_more(self) -> None:
        """Continue reading, unless there is unparsed data: that is the next request, which has to wait."""
        if not self._unread:
            self._resume_reading()

    def _resume_reading(self) -> None:
        if not self._reading and not self._at_end and not self._transport.is_closing():
            self._reading = True
            self._transport.resume_reading()

    # Timeouts. A connection has one timer: setting one for each request would take longer than parsing its head.

    def _expect(self, seconds: float, or_else: Callable[[], None]) -> None:
        """Call `or_else` after some seconds, unless `_due` is cleared or this method is called again before."""
        self._due = due = self._loop.time() + seconds
        self._or_else = or_else
        if self._timer is None or self._timer.when() > due:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_at(due, self._look)

    def _look(self) -> None:
        self._timer = None
        if self._due is None:
            return
        if self._loop.time() < self._due:
            self._timer = self._loop.call_at(self._due, self._look)
        else:
            self._or_else()

    def _wait(self, seconds: float) -> None:
        """Wait for a request, for a limited time."""
        self._shared.waiting[self] = None
        self._expect(seconds, self.close)

    # Requests.

    def get_buffer(self, sizehint: int) -> bytearray:  # noqa: ARG002 (asyncio's signature)
        """Return the buffer that all connections share."""
        return self._shared.buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Process the bytes in the buffer."""
        self.data_received(bytes(memoryview(self._shared.buffer)[:nbytes]))

    def data_received(self, data: bytes) -> None:
        """Process bytes from the client."""
        self._unread = self._unread + data if self._unread else data
        self._advance()

    def eof_received(self) -> bool:
        """Answer what has been sent: the client may have closed only its sending side."""
        self._at_end = True
        if self._exchange is not None:
            self._exchange.end_of_input()
        self._advance()
        return not self._transport.is_closing()

    def _advance(self) -> None:
        """Parse unread data, until a request has to be answered first."""
        while self._unread and not self._transport.is_closing():
            if self._body is not None:
                self._read_body(self._body)
            elif self._exchange is not None or self._writable is not None:
                self._pause_reading()
                return
            elif not self._read_head():
                self._resume_reading()
                break
        if self._at_end and (self._body is not None or self._exchange is None):
            self.close()  # the rest cannot arrive

    def _read_head(self) -> bool:
        """Start a request. Return whether its head was complete."""
        data = self._unread
        if not self._searched:
            data = self._unread = data.lstrip(b"\r\n")  # empty lines before a request (RFC 9112, section 2.2)
            if not data:
                return False
        end = data.find(b"\r\n\r\n", max(0, self._searched - 3)) + 4
        if end > self._limits.head_bytes or (end < 4 and len(data) > self._limits.head_bytes):
            self._refuse(_head_too_large(self._limits.head_bytes))
            return False
        if end < 4:
            if not data[:1].isalpha():  # for example TLS, which would never contain the end of a head
                self._refuse(_MALFORMED)
            elif not self._searched:
                self._expect(self._limits.head_seconds, self._head_is_late)
            self._searched = len(data)
            return False
        self._searched = 0
        self._unread = data[end:]
        head = _Head()
        if not head.parse(data[:end]):
            self._refuse(_MALFORMED)
            return False
        if not head.names_host:
            self._refuse(_WITHOUT_HOST)
            return False
        self._start(head)
        return True

    def _start(self, head: "_Head") -> None:
        """Run the application for a request."""
        self._due = None
        self._shared.waiting.pop(self, None)
        scope: dict[str, Any] = {**self._scope, **head.scope(), "state": {**self._app_state}}
        if self._root_path:
            scope["path"] = self._root_path + scope["path"]
            scope["raw_path"] = self._root_path.encode() + scope["raw_path"]
        self._body = head.body(self._limits.trailer_bytes, self._take)
        exchange = self._exchange = _Exchange(
            self,
            scope,
            keep_alive=head.keep_alive,
            more_body=self._body is not None,
            expects_continue=head.expects_continue,
            default_headers=self._server_state.default_headers,
        )
        # In a copy of the connection's context: this code may run in that of the previous request.
        task = self._loop.create_task(exchange.run(self._app), context=self._context.copy())
        self._server_state.tasks.add(task)
        task.add_done_callback(self._server_state.tasks.discard)
        task.add_done_callback(exchange.stop)

    def _read_body(self, body: "_Sized | _Chunked") -> None:
        """Pass data of the body to the application."""
        data = self._unread
        try:
            end = body.read(data)
        except httptools.HttpParserError:
            self._refuse(_MALFORMED)
            return
        if end is None:
            self._refuse(_trailers_too_large(self._limits.trailer_bytes))
            return
        self._unread = data[end:]
        if self._exchange is None:
            self._discarded += end
        if body.complete:
            self._body = None
            if self._exchange is not None:
                self._exchange.end_of_body()
            else:
                self.close()
        elif self._discarded > self._limits.linger_bytes:
            self.close()

    def _take(self, part: bytes) -> None:
        exchange = self._exchange
        if exchange is not None and exchange.take(part) > BODY_BYTES:
            self._pause_reading()

    # Answers.

    def ended(self, *, keep_alive: bool, reads_rest: bool = True) -> None:
        """Continue after an answer with the next request, or close the connection.

        If the answer came before the end of the body, `reads_rest` says whether the rest is read and discarded.
        """
        self._exchange = None
        self._server_state.total_requests += 1
        if self._transport.is_closing():
            return
        if self._body is not None and not self._at_end:
            # The client may not read the answer until it has sent the whole body. Closing now would reset the
            # connection, and the answer could be lost.
            self._discarded = 0
            self._wait(self._limits.linger_seconds)
            if reads_rest:
                self._resume_reading()
            else:
                self._unread = b""
                self._pause_reading()
        elif not keep_alive or self._at_end:
            self.close()
        else:
            self._wait(self._keep_alive_seconds)
            if self._unread:
                self._loop.call_soon(self._advance)
            else:
                self._resume_reading()

    def _head_is_late(self) -> None:
        detail = f"The request line and headers were not complete within {self._limits.head_seconds:g} seconds."
        self._refuse(
            Problem(status=408, type="request-timeout", title="The request head arrived too slowly", detail=detail)
        )

    def _refuse(self, problem: Problem) -> None:
        """Reject a request with a problem, and close the connection."""
        exchange, self._exchange, self._body = self._exchange, None, None
        if exchange is not None:
            exchange.disconnect()
        if exchange is None:
            self.write(answer(problem, self._server_state.default_headers))
        elif exchange.is_unanswered:
            exchange.write_problem(problem)
        self.close()


class _Head:
    """A request line and headers, parsed by httptools."""

    def __init__(self) -> None:
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._complete = False
        self._length = 0
        self._codings: list[bytes] = []
        self._hosts = 0
        self.keep_alive = False
        self.expects_continue = False

    def parse(self, head: bytes) -> bool:
        """Parse data. Return whether it is exactly one valid head."""
        self._parser = httptools.HttpRequestParser(self)
        try:
            self._parser.feed_data(head)
        except httptools.HttpParserUpgrade:
            # A server may ignore Upgrade (RFC 9110, section 7.8). Some clients offer HTTP/2 in every plain request.
            # CONNECT is not supported.
            if self._method == b"CONNECT":
                return False
        except httptools.HttpParserError:
            return False
        finally:
            del self._parser  # a reference cycle, which only the garbage collector would free
        if not self._complete or self._version not in {"1.1", "1.0"}:
            return False
        # The parser does not look at codings if there is an offer to upgrade, and accepts codings that nobody decodes.
        if self._codings and (self._codings != [b"chunked"] or self._length or self._version == "1.0"):
            return False
        try:
            self._target = _target(self._url)
        except (httptools.HttpParserError, UnicodeDecodeError):
            return False
        return True

    @property
    def names_host(self) -> bool:
        """Whether there is one Host header, which HTTP/1.0 does not need (RFC 9112, section 3.2)."""
        return self._hosts == 1 or (not self._hosts and self._version == "1.0")

    def scope(self) -> dict[str, Any]:
        """Return the items of the ASGI scope that depend on the request."""
        path, raw_path, query = self._target
        return {
            "http_version": self._version,
            "method": self._method.decode("ascii"),
            "path": path,
            "raw_path": raw_path,
            "query_string": query,
            "headers": self._headers,
        }

    def body(self, trailer_bytes: int, take: Callable[[bytes], None]) -> "_Sized | _Chunked | None":
        """Return a reader that calls `take` with the parts of the body, or None if there is no body."""
        if self._codings:
            return _Chunked(trailer_bytes, take)
        return _Sized(self._length, take) if self._length else None

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        self._headers.append((name, value))
        if name == b"content-length":
            self._length = int(value)  # below 2**64: the parser rejects other values and repeated headers
        elif name == b"host":
            self._hosts += 1
        elif name == b"transfer-encoding":
            self._codings.append(value.lower())
        elif name == b"expect":
            self.expects_continue = value.lower() == b"100-continue"

    def on_headers_complete(self) -> None:
        self._complete = True
        # The parser has these values only until the end of the message.
        self._method = self._parser.get_method()
        self._version = self._parser.get_http_version()
        self.keep_alive = self._version == "1.1" and self._parser.should_keep_alive()
        self.expects_continue &= self._version == "1.1"  # RFC 9110, section 10.1.1


class _Sized:
    """Reads a body with a Content-Length."""

    def __init__(self, length: int, take: Callable[[bytes], None]) -> None:
        self._left = length
        self._take = take
        self.complete = False

    def read(self, data: bytes) -> int:
        """Read the part of `data` that belongs to the body, and return where it ends."""
        part = data[: self._left]
        self._left -= len(part)
        self.complete = not self._left
        self._take(part)
        return len(part)


class _Chunked:
    """Reads a chunked body (RFC 9112, section 7.1), and discards its extensions and trailers.

    httptools decodes it. Since it would continue with the next request, the end of the body is searched first.
    """

    def __init__(self, trailer_bytes: int, take: Callable[[bytes], None]) -> None:
        self._trailer_bytes = trailer_bytes
        self._line = b""
        """The beginning of an incomplete line."""
        self._data_left = 0
        """How many bytes of a chunk's data and the line end after it have not arrived."""
        self._in_trailers = False
        self._trailers = 0
        self._at_end = False
        self.complete = False
        self.on_body = take
        self._parser = httptools.HttpRequestParser(self)
        self._parser.feed_data(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")

    def on_message_complete(self) -> None:
        self.complete = True

    def read(self, data: bytes) -> int | None:
        """Read the part of `data` that belongs to the body, and return where it ends.

        Returns None if the trailers or a line exceed their limit. Raises `httptools.HttpParserError`.
        """
        end = self._find_end(data)
        if end is not None:
            self._parser.feed_data(data if end == len(data) else data[:end])
            assert self.complete == self._at_end, "the parser found another end of the body"
            if self.complete:
                del self._parser, self.on_body  # a reference cycle
        return end

    def _find_end(self, data: bytes) -> int | None:
        at, size = 0, len(data)
        while at < size and not self._at_end:
            if self._data_left:
                step = min(self._data_left, size - at)
                self._data_left -= step
                at += step
                continue
            end = data.find(b"\n", at) + 1
            line = self._line + data[at : end or size]
            if len(line) + self._trailers > self._trailer_bytes:
                return None
            at = end or size
            self._line = b"" if end else line
            if end:
                self._end_line(line)
        return at

    def _end_line(self, line: bytes) -> None:
        if self._in_trailers:
            self._trailers += len(line)
            self._at_end = line == b"\r\n"
        elif match := _CHUNK_SIZE.fullmatch(line):
            chunk = int(match[1], 16)
            self._in_trailers = not chunk
            self._data_left = chunk + 2 if chunk else 0
        else:
            raise httptools.HttpParserError("a chunk size is malformed")


class _Exchange:
    """A request and its answer: the ASGI connection of the application."""

    __slots__ = (
        "_arrived",
        "_at_end",
        "_chunked",
        "_closes",
        "_default_headers",
        "_delivered",
        "_disconnected",
        "_expects_continue",
        "_head",
        "_length",
        "_more_body",
        "_parts",
        "_protocol",
        "_size",
        "complete",
        "keep_alive",
        "scope",
        "started",
    )

    def __init__(  # noqa: PLR0913 (values from the head and the server)
        self,
        protocol: HttpProtocol,
        scope: dict[str, Any],
        *,
        keep_alive: bool,
        more_body: bool,
        expects_continue: bool,
        default_headers: list[tuple[bytes, bytes]],
    ) -> None:
        self._protocol = protocol
        self.scope = scope
        self.keep_alive = keep_alive
        self._expects_continue = expects_continue
        self._default_headers = default_headers
        self._parts: list[bytes] = []
        self._size = 0
        self._more_body = more_body
        self._delivered = False
        """Whether the application has received the whole body."""
        self._at_end = False
        """Whether the client has closed its sending side. It may still read."""
        self._arrived: asyncio.Event | None = None
        self._disconnected = False
        self.started = self.complete = False
        self._head = b""
        self._chunked = False
        self._closes = False
        """Whether the application has answered with Connection: close."""
        self._length: int | None = 0
        """What is still to come of a body of declared length; None if the length is not known."""

    # Called by the connection.

    def take(self, part: bytes) -> int:
        """Add a part of the body. Return how many bytes are waiting for the application."""
        self._parts.append(part)
        self._size += len(part)
        self._notify()
        return self._size

    def end_of_body(self) -> None:
        """Note that the body is complete."""
        self._more_body = False
        self._notify()

    def end_of_input(self) -> None:
        """Note that the client has closed its sending side. It may still read its answer."""
        self._at_end = True
        self._notify()

    def disconnect(self) -> None:
        """Note that the client has disconnected."""
        self._disconnected = True
        self._notify()

    def _notify(self) -> None:
        if self._arrived is not None:
            self._arrived.set()

    # Called by the application.

    async def run(self, app: Any) -> None:
        """Run the application. If it fails, answer with a problem."""
        try:
            await app(self.scope, self.receive, self.send)
            if not self.complete and not self._disconnected:
                _log.error("The application returned without a complete response")
                self._fail(DEFECT)
        except Exception:  # noqa: BLE001 (whatever the application raises)
            _log.exception("The application raised an exception")
            self._fail(DEFECT)

    def stop(self, _task: "asyncio.Task[None]") -> None:
        """Answer a request whose task was cancelled, possibly before it ran. Only a server that stops does that."""
        self._fail(SHUTTING_DOWN)

    @property
    def is_unanswered(self) -> bool:
        """Whether nothing of an answer has been written. Its head may be waiting for the first part of its body."""
        return not self.started or bool(self._head)

    def write_problem(self, problem: Problem) -> None:
        """Write a whole answer."""
        self.started, self._head = True, b""
        self._protocol.write(answer(problem, self._default_headers, with_body=self.scope["method"] != "HEAD"))

    def _fail(self, problem: Problem) -> None:
        if self.complete or self._disconnected:
            return
        self.complete = True
        if self.is_unanswered:
            self.write_problem(problem)
        # If the answer has begun, the client detects that it is incomplete by its missing end.
        self._protocol.ended(keep_alive=False)

    async def receive(self) -> dict[str, Any]:
        """Return the next part of the body, or `http.disconnect`."""
        if self._expects_continue:
            self._expects_continue = False
            if self._more_body and not self._parts and not self.started:
                self._protocol.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        while not self._disconnected and not self.complete:
            if self._parts or not (self._more_body or self._delivered):
                body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
                self._parts.clear()
                self._size = 0
                self._delivered = not self._more_body
                return {"type": "http.request", "body": body, "more_body": self._more_body}
            if self._at_end:
                break
            self._protocol.want_more()
            if self._arrived is None:
                self._arrived = asyncio.Event()
            self._arrived.clear()
            await self._arrived.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Mapping[str, Any]) -> None:
        """Write a part of the answer. The head is sent together with the first part of the body."""
        await self._protocol.drained()
        if self._disconnected:
            return
        kind = message["type"]
        if kind == "http.response.start" and not self.started:
            self._start(message["status"], message.get("headers", ()))
        elif kind == "http.response.body" and self.started and not self.complete:
            self._write(message.get("body", b""), more=message.get("more_body", False))
        else:
            raise RuntimeError(f"unexpected ASGI message {kind!r}")

    def _start(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:  # noqa: C901 (one loop over the headers)
        sized = False
        lines = []
        for mixed_case, value in (*self._default_headers, *headers):
            name = mixed_case.lower()
            if name == b"content-length":
                self._length, sized = int(value), True
            elif name == b"connection" and value.lower() == b"close":
                self.keep_alive = False
                self._closes = True
                continue
            elif name == b"transfer-encoding":
                continue  # set below if needed
            lines.append(b"%b: %b\r\n" % (name, value))
        if self._more_body:
            self.keep_alive = False  # the rest of the body will not be read
        if not self.keep_alive:
            lines.append(b"connection: close\r\n")
        if self.scope["method"] == "HEAD" or status in {204, 304}:
            self._length = 0
        elif not sized:
            self._length = None
            # HTTP/1.0 has no chunks: there the end of the connection is that of the body.
            if self.scope["http_version"] != "1.0":
                self._chunked = True
                lines.append(b"transfer-encoding: chunked\r\n")
        self._head = b"".join((_status_line(status), *lines, b"\r\n"))
        if self._head.count(b"\n") != len(lines) + 2 or self._head.count(b"\r") != len(lines) + 2:
            raise RuntimeError("a header of the response contains a line break")
        self.started = True
        if self._length is None:
            self._flush(b"")
            self._protocol.flush()  # the first part of a stream may take a while

    def _write(self, body: bytes, *, more: bool) -> None:
        if self.scope["method"] == "HEAD":
            body = b""
        elif self._chunked:
            body = (b"%x\r\n%b\r\n" % (len(body), body) if body else b"") + (b"" if more else b"0\r\n\r\n")
        elif self._length is not None:
            self._length -= len(body)
            if self._length < 0 or (self._length and not more):
                raise RuntimeError("the length of the response differs from its Content-Length")
        self._flush(body)
        if more:
            self._protocol.flush()  # so that pause_writing() is called if the client does not read
        else:
            self.complete = True
            self._notify()
            self._protocol.ended(keep_alive=self.keep_alive, reads_rest=not self._closes)

    def _flush(self, body: bytes) -> None:
        head, self._head = self._head, b""
        if head or body:
            self._protocol.write(head + body)


def answer(problem: Problem, default_headers: Iterable[tuple[bytes, bytes]], *, with_body: bool = True) -> bytes:
    """Return a complete answer, after which the connection is closed."""
    response = problem.response()
    headers = [*default_headers, *response.raw_headers, (b"connection", b"close")]
    lines = [b"%b: %b\r\n" % header for header in headers if header != (b"connection", b"close")]
    body = bytes(response.body) if with_body else b""
    return b"".join((_status_line(problem.status), *lines, b"connection: close\r\n\r\n", body))


def _status_line(status: int) -> bytes:
    return _STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status


def _address(transport: asyncio.BaseTransport, name: str) -> tuple[str, int | None] | None:
    """Return the address of one end of a connection, in the form that ASGI uses."""
    found = transport.get_extra_info(name)
    if isinstance(found, tuple):
        return str(found[0]), int(found[1])
    return (found, None) if found else None  # a Unix socket


def _target(url: bytes) -> tuple[str, bytes, bytes]:
    """Return the path, raw path and query of a request target. Raises `HttpParserError` or `UnicodeDecodeError`."""
    if not url.startswith(b"/") or b"#" in url:
        parsed = httptools.parse_url(url)
        raw_path, query = parsed.path or b"/", parsed.query or b""
    else:
        raw_path, _, query = url.partition(b"?")
    path = raw_path.decode("ascii")
    return unquote(path) if "%" in path else path, raw_path, query


_MALFORMED = Problem(
    status=400,
    type="malformed-request",
    title="The request is not valid HTTP",
    detail="This is not a valid HTTP/1.1 request.",
)
_WITHOUT_HOST = evolve(_MALFORMED, detail="The request must have one Host header (RFC 9112, section 3.2).")
_TOO_MANY_CONNECTIONS = Problem(
    status=503,
    type="overloaded",
    title="Too many connections",
    detail="The service has reached its maximum number of connections, and none is idle.",
    headers={"Retry-After": "1"},
)


def _head_too_large(limit: int) -> Problem:
    return Problem(
        status=431,
        type="head-too-large",
        title="The request head is too large",
        detail=f"The request line and headers exceed the limit of {limit:,} bytes.",
    )


def _trailers_too_large(limit: int) -> Problem:
    return Problem(
        status=431,
        type="head-too-large",
        title="The request trailers are too large",
        detail=f"The trailers or the extensions of a chunk exceed the limit of {limit:,} bytes.",
    )
