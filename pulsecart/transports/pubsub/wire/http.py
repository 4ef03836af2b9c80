"""An HTTP/1.1 client for one server: a pool of keep-alive connections, with one request in flight on each.

General HTTP clients spend five to ten times as much CPU on a small request.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import cast

import httptools
from attrs import frozen

from pulsecart.ports import Load
from pulsecart.transports.pubsub.wire.dial import Endpoint, dial

__all__ = ["Answer", "ConnectFailed", "Pool", "ResponseFailed"]

IDLE_SECONDS = 60.0
"""Seconds after which an idle connection is closed. Google closes them after about 240 s."""

MAX_CONNECTING = 8
"""Maximum number of connections that are being established: TLS handshakes take CPU time from everything else."""

MAX_HEAD_BYTES, MAX_ANSWER_BYTES = 65_536, 1_048_576
"""Maximum bytes of an answer's head, and of all of it unless a pool allows more."""

CLOSE_SECONDS = 1.0
"""Maximum seconds to wait until connections are closed."""


@frozen
class Answer:
    """An answer of the server. `retry_after` is the value of that header, or empty."""

    status: int
    body: bytes
    retry_after: str = ""


class ConnectFailed(Exception):
    """No connection could be established, so the request was not sent."""


class ResponseFailed(Exception):
    """The request was sent, but what came is no complete HTTP answer."""


class _Stale(Exception):
    """A kept-alive connection was closed before any byte of an answer: the server has probably not read the request."""


class _Connection(asyncio.Protocol):
    """A connection, with at most one request in flight."""

    def __init__(self, pool: "Pool") -> None:
        self._pool = pool
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpResponseParser(self)
        self._waiter: asyncio.Future[Answer] | None = None
        self._answers = 0
        self.alive_at = self._loop.time()
        """When the server last proved that the connection works, in the time of the event loop."""
        self.idle_since = 0.0
        self.transport: asyncio.Transport
        self._clear()

    def _clear(self) -> None:
        self._received = 0
        self._head_complete = self._reusable = False
        self._retry_after = ""
        self._chunks: list[bytes] = []

    async def exchange(self, request: Sequence[bytes], deadline: float) -> Answer:
        """Send a request and return its answer.

        Raises `TimeoutError`, `ResponseFailed` or `_Stale`. The connection is closed then, or if the call is cancelled.
        """
        if self.transport.is_closing():
            raise _Stale
        # No local name for it: its error would keep this frame, which would keep the error and the request.
        self._waiter = self._loop.create_future()
        timer = self._loop.call_at(deadline, self._expire)
        try:
            for part in request:
                self.transport.write(part)
            answer: Answer = await self._waiter
        except BaseException:
            self.transport.abort()
            raise
        finally:
            timer.cancel()
            self._waiter = None
        if self._answers == 1 and (tls := self._pool.endpoint.tls):
            # In TLS 1.3 the server sends the ticket to resume a session after the handshake.
            tls.session = self.transport.get_extra_info("ssl_object").session
        if self._reusable:
            self._pool.release(self)
        else:
            self.transport.abort()
        return answer

    def _expire(self) -> None:
        self._fail(TimeoutError())

    def _fail(self, error: Exception) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(error)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's transports are not instances of it
        self._pool.add(self)

    def data_received(self, data: bytes) -> None:
        if self._waiter is None:  # nothing was asked for: it is not the answer to the next request
            self.transport.abort()
            return
        self._received += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(ResponseFailed(f"it is not HTTP ({error}): {data[:200]!r}"))
        else:
            if self._received > (self._pool.max_answer if self._head_complete else MAX_HEAD_BYTES):
                self._fail(ResponseFailed(f"it has more than {self._received:,} bytes"))

    def connection_lost(self, error: Exception | None) -> None:
        self._pool.remove(self)
        if self._head_complete:
            self._complete()  # without Content-Length, the end of the connection is the end of the answer
        elif self._received or not self._answers:
            self._fail(ResponseFailed(f"the connection was closed after {self._received} bytes ({error or 'EOF'})"))
        else:
            self._fail(_Stale())

    def on_message_begin(self) -> None:
        self._reusable = False  # as long as the answer is incomplete, or if another follows that was not asked for

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"retry-after":
            self._retry_after = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        # An answer such as 103 comes before the one that counts (RFC 9110, section 15.2).
        self._head_complete = self._parser.get_status_code() >= 200

    def on_body(self, body: bytes) -> None:
        self._chunks.append(body)

    def on_message_complete(self) -> None:
        if self._head_complete:
            self._complete()

    def _complete(self) -> None:
        answer = Answer(self._parser.get_status_code(), b"".join(self._chunks), self._retry_after)
        self._clear()
        self._reusable = self._parser.should_keep_alive()
        self._answers += 1
        self.alive_at = self._loop.time()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(answer)


class Pool:
    """At most `size` connections to one server, opened on demand. A larger answer than `max_answer` bytes fails."""

    def __init__(self, endpoint: Endpoint, size: int, *, max_answer: int = MAX_ANSWER_BYTES) -> None:
        self.endpoint = endpoint
        self.max_answer = max_answer
        self._size = size
        self._loop = asyncio.get_running_loop()
        self._open: set[_Connection] = set()
        self._idle: dict[_Connection, None] = {}  # the most recently used last
        self._connecting: set[asyncio.Task[None]] = set()
        self._waiters: deque[asyncio.Future[_Connection]] = deque()
        self._waiters_for_new: deque[asyncio.Future[_Connection]] = deque()
        self._closing_idle: asyncio.TimerHandle | None = None
        self._closed = False
        self._all_closed = asyncio.Event()

    def load(self) -> Load:
        """Return how many connections are open and in use, and how many requests wait for one."""
        waiting = sum(not waiter.done() for waiter in [*self._waiters, *self._waiters_for_new])
        count = len(self._open)
        return Load(connections=count, connections_in_use=count - len(self._idle), connections_awaited=waiting)

    async def request(self, request: Sequence[bytes], deadline: float, timeout: float) -> Answer:  # noqa: ASYNC109
        """Send a request and return its answer.

        It waits for a connection until `deadline`, and from then on at most `timeout` seconds for the answer. Raises
        `ConnectFailed`, `TimeoutError` or `ResponseFailed`.
        """
        connection = self._idle.popitem()[0] if self._idle else await self._wait(self._waiters, deadline)
        started = self._loop.time()
        attempt_deadline = min(deadline, started + timeout)
        try:
            try:
                return await connection.exchange(request, attempt_deadline)
            except _Stale:
                connection = await self._wait(self._waiters_for_new, attempt_deadline)
                return await connection.exchange(request, attempt_deadline)
        except _Stale:
            raise ResponseFailed("two connections in succession were closed without an answer") from None
        except TimeoutError:
            self._close_suspects(started)
            raise

    async def _wait(self, waiters: "deque[asyncio.Future[_Connection]]", deadline: float) -> _Connection:
        """Wait for a connection."""
        if self._closed:
            raise ConnectFailed("the transport is closed")
        waiter: asyncio.Future[_Connection] = self._loop.create_future()
        waiters.append(waiter)
        self._grow()
        try:
            async with asyncio.timeout_at(deadline):
                return await waiter
        except (TimeoutError, asyncio.CancelledError) as error:
            if waiter.done() and not waiter.cancelled() and not waiter.exception():
                self.release(waiter.result())  # it was given in the same moment
            if isinstance(error, TimeoutError):
                raise ConnectFailed("no connection became free in time") from None
            raise
        finally:
            del waiter  # its error would keep this frame, which would keep the error and the request

    def _grow(self) -> None:
        """Open as many connections as requests wait for, within the limits."""
        waiting = len(self._waiters) + len(self._waiters_for_new)
        while len(self._connecting) < min(waiting, MAX_CONNECTING) and not self._full and not self._closed:
            task = asyncio.create_task(self._connect())
            self._connecting.add(task)
            task.add_done_callback(self._connected)

    @property
    def _full(self) -> bool:
        return len(self._open) + len(self._connecting) >= self._size

    async def _connect(self) -> None:
        try:
            connection = await dial(self.endpoint, lambda: _Connection(self))
            if connection.transport.is_closing():
                raise ConnectionError("the connection was closed at once")  # noqa: TRY301
            self.release(connection, new=True)
        except Exception as error:  # noqa: BLE001 (whatever it is, the request that waits gets it)
            reason = str(error) or type(error).__name__
            self._fail_next(f"cannot connect to {self.endpoint.authority}: {reason}")

    def _connected(self, task: "asyncio.Task[None]") -> None:
        self._connecting.discard(task)
        self._grow()

    def _next_waiter(self, *, new: bool) -> "asyncio.Future[_Connection] | None":
        """Remove and return the request that a connection is for; a `new` one, or one that is used again."""
        # If the pool is full, a request that waits for a new connection could wait for long.
        for waiters in (self._waiters_for_new, self._waiters) if new or self._full else (self._waiters,):
            while waiters:
                waiter = waiters.popleft()
                if not waiter.done():
                    return waiter
        return None

    def _fail_next(self, reason: str) -> bool:
        """Fail the next request that waits. Return whether there was one.

        No caller has a name for it: frames of the standard library keep errors of connections, and so their callers.
        """
        waiter = self._next_waiter(new=True)
        if waiter is not None:
            waiter.set_exception(ConnectFailed(reason))
        return waiter is not None

    def add(self, connection: _Connection) -> None:
        """Count a connection that is established."""
        self._open.add(connection)

    def release(self, connection: _Connection, *, new: bool = False) -> None:
        """Give a connection to the next request that waits, or keep it."""
        if self._closed or connection.transport.is_closing():
            connection.transport.abort()
        elif waiter := self._next_waiter(new=new):
            waiter.set_result(connection)
        else:
            connection.idle_since = self._loop.time()
            self._idle[connection] = None
            if self._closing_idle is None:
                self._closing_idle = self._loop.call_later(IDLE_SECONDS, self._close_idle)

    def remove(self, connection: _Connection) -> None:
        """Forget a connection that is closed."""
        self._open.discard(connection)
        self._idle.pop(connection, None)
        if not self._open:
            self._all_closed.set()
        self._grow()

    def _close_suspects(self, since: float) -> None:
        """Close idle connections that have not worked since then: the network may have silenced all of them."""
        for connection in [idle for idle in self._idle if idle.alive_at < since]:
            del self._idle[connection]
            connection.transport.abort()

    def _close_idle(self) -> None:
        """Close connections that have been idle for too long, and return when the next one may have been."""
        self._closing_idle = None
        for connection in list(self._idle):
            closing_at = connection.idle_since + IDLE_SECONDS
            if closing_at > self._loop.time():
                self._closing_idle = self._loop.call_at(closing_at, self._close_idle)
                return
            del self._idle[connection]
            connection.transport.abort()

    async def aclose(self) -> None:
        """Close all connections; requests in flight fail."""
        self._closed = True
        if self._closing_idle is not None:
            self._closing_idle.cancel()
        while self._fail_next("the transport is closed"):
            pass
        self._all_closed.clear()
        for connection in list(self._open):
            connection.transport.abort()
        for task in self._connecting:
            task.cancel()
        await asyncio.gather(*self._connecting, return_exceptions=True)
        if self._open:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._all_closed.wait(), CLOSE_SECONDS)
