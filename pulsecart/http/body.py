"""Request bodies: limits of size and time, and of the bytes that all requests hold together."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from time import perf_counter

from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive

from pulsecart.errors import Overloaded
from pulsecart.http.formats.coding import Decoder, decoded
from pulsecart.http.problems import Problem, ProblemError, too_large
from pulsecart.many import TURN_SECONDS

__all__ = ["Bodies", "Stream"]

FREE_BYTES = 67_108_864
MOST_GROWTH = 200
"""A compressed stream may decode to `FREE_BYTES`, and `MOST_GROWTH` bytes more for each byte that has arrived. Events
as JSON compress to a tenth or a fiftieth; what grows more takes far more work to read than to send."""

GRACE_SECONDS = 2.0
"""How long work goes on for a client that has closed its sending side after a whole stream. It may still read, but
most such clients have left."""


class Bodies:
    """Reads bodies, and limits the bytes that the service holds.

    Half of `limit` is for bodies that are still arriving, so that callers who stall cannot prevent others' events from
    being published. The first `share` bytes of each body are not counted, so that small events are always read. The
    other half is for events that wait for the broker. A single body or event may exceed its half.

    A body has to arrive within `seconds`. A stream may take any time, but pause for at most `seconds`, and has to bring
    `min_rate` bytes a second, counted as they are sent, compressed or not; there are at most `max_streams` at a time.
    Half of them, rounded up, may be of one source.
    """

    def __init__(  # noqa: PLR0913 (limits)
        self, *, body_limit: int, limit: int, share: int, seconds: float, max_streams: int, min_rate: int
    ) -> None:
        self.body_limit = body_limit
        """The maximum bytes of a body with one event, and of an event in a batch."""
        self._limit = limit // 2
        self._share = share
        self._seconds = seconds
        self._max_streams = max_streams
        self._min_rate = min_rate
        self._arriving = 0
        self._held = 0
        self._streams: Counter[str] = Counter()
        """The number of streams that are being read, by the name of their source."""

    def hold(self, size: int) -> None:
        """Count a message that waits for the broker. Raises `Overloaded`, without counting it, over the limit."""
        if self._held and self._held + size > self._limit:
            raise Overloaded(f"{self._held:,} bytes of events wait for the broker; the limit is {self._limit:,}")
        self._held += size

    def release(self, size: int) -> None:
        """Stop counting a message."""
        self._held -= size

    @contextmanager
    def holding(self, size: int) -> Iterator[None]:
        """Count what a batch holds during the block; see `hold`."""
        self.hold(size)
        try:
            yield
        finally:
            self.release(size)

    @contextmanager
    def streaming(self, size: int, source: str) -> Iterator[None]:
        """Count a stream during the block, and the bytes that it holds at most. Raises `Overloaded` over a limit.

        `source` is the name of the caller's source, or empty.
        """
        if self._streams.total() >= self._max_streams:
            raise Overloaded(f"{self._max_streams:,} streams are being read, which is the limit")
        if source and self._streams[source] >= (share := -(-self._max_streams // 2)):
            raise Overloaded(f"{share:,} streams of this source are being read, which is the limit for one source")
        with self.holding(size):
            self._streams[source] += 1
            try:
                yield
            finally:
                self._streams[source] -= 1

    async def read(self, declared: bytes, receive: Receive, *, coding: str = "", limit: int = 0) -> bytes:
        """Return the whole body, decoded. `declared` is the value of Content-Length, or empty.

        The limit is `body_limit` unless another is given; it applies before and after decoding. Raises `ProblemError`
        (400, 408, 413), `Overloaded` or Starlette's `ClientDisconnect`.
        """
        limit = limit or self.body_limit
        # Twenty digits exceed any limit; for thousands of digits, int() is slow, and finally raises.
        length = int(declared[:20]) if declared.isdigit() else -1
        if length > limit:
            raise too_large(limit)
        chunks: list[bytes] = []
        size = counted = 0
        more = True
        try:
            async with asyncio.timeout(self._seconds):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientDisconnect
                    chunk, more = message.get("body", b""), message.get("more_body", False)
                    size += len(chunk)
                    if size > limit:
                        raise too_large(limit)
                    if size > self._share:
                        self._arriving += size - self._share - counted
                        counted = size - self._share
                        # A complete body is always accepted here: it is about to become a message.
                        if self._arriving > max(counted, self._limit) and more and size != length:
                            raise Overloaded(f"{self._arriving:,} bytes of bodies are arriving")
                    chunks.append(chunk)
        except TimeoutError:
            detail = f"The body was not complete within {self._seconds:g} seconds; {size:,} bytes had arrived."
            raise _too_slow(detail) from None
        finally:
            self._arriving -= counted
        body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        return await decoded(body, coding, limit) if coding else body

    def stream(self, receive: Receive, coding: str) -> "Stream":
        """Return a body of any size, to be read piece by piece."""
        return Stream(receive, coding, self._seconds, self._min_rate)


class Stream:
    """A body of any size, decoded as it arrives. One message is received ahead, so that a disconnect is noticed."""

    def __init__(self, receive: Receive, coding: str, seconds: float, min_rate: int) -> None:
        self._receive = receive
        self._coding = coding
        self._seconds = seconds
        self._min_rate = min_rate
        self._more = True
        """Whether there is more than what has been received ahead."""
        self._ahead: asyncio.Future[Message] = asyncio.ensure_future(self._next())

    async def aclose(self) -> None:
        """Stop receiving."""
        self._ahead.cancel()
        await asyncio.gather(self._ahead, return_exceptions=True)

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """Yield the pieces of the body.

        Only the time in which the sender is waited for counts. Raises `ProblemError` (400, 408, 413) or
        `ClientDisconnect`.
        """
        decoder = Decoder(self._coding) if self._coding else None
        total = size = decoded = 0
        waited = 0.0
        turn = perf_counter()
        while self._more:
            asked = perf_counter()
            if not await self._arrives(self._seconds):
                raise _too_slow(f"Nothing arrived for {self._seconds:g} seconds.")
            message = self._ahead.result()
            chunk, self._more = message.get("body", b""), message.get("more_body", False)
            self._ahead = asyncio.ensure_future(self._next())
            total += len(chunk)
            size += len(chunk)
            waited += perf_counter() - asked
            if waited >= self._seconds and self._more:
                if size < self._min_rate * waited:
                    raise _too_slow(f"Only {size:,} bytes arrived in {waited:.1f} s; send {self._min_rate:,} a second.")
                size, waited = 0, 0.0
            for piece in decoder.feed(chunk) if decoder else (chunk,):
                decoded += len(piece)
                if decoded > FREE_BYTES + MOST_GROWTH * total:
                    raise ProblemError(
                        Problem(
                            status=413,
                            type="body-too-large",
                            title="The body is compressed too much",
                            detail=f"The body decodes to more than {MOST_GROWTH} times its size, beyond the first "
                            f"{FREE_BYTES:,} bytes; send the rest with less compression, or in another request.",
                            headers={"Connection": "close"},
                        )
                    )
                if perf_counter() - turn > TURN_SECONDS:
                    await asyncio.sleep(0)
                    turn = perf_counter()
                self._require_sender()
                if piece:
                    yield piece
        if decoder:
            decoder.finish()

    async def pause(self, seconds: float) -> None:
        """Wait. Raises the same as `pieces` if the sender has left."""
        if await self._arrives(seconds):
            await asyncio.sleep(seconds)  # one message ahead is as far as it looks

    async def _arrives(self, seconds: float) -> bool:
        """Wait for the next message, and return whether there is one."""
        await asyncio.wait([self._ahead], timeout=seconds)
        self._require_sender()
        return self._ahead.done()

    async def _next(self) -> Message:
        message = await self._receive()
        if not self._more:
            # After the whole body this is a disconnect.
            await asyncio.sleep(GRACE_SECONDS)
        return message

    def _require_sender(self) -> None:
        """Raise if the sender is known to have left."""
        if self._ahead.done() and self._ahead.result()["type"] == "http.disconnect":
            if self._more:
                raise ClientDisconnect
            raise _too_slow(
                f"The client closed its side {GRACE_SECONDS:g} seconds before the lines were read.",
                "The client has left",
            )


def _too_slow(detail: str, title: str = "The body arrived too slowly") -> ProblemError:
    return ProblemError(
        Problem(
            status=408,
            type="request-timeout",
            title=title,
            detail=detail,
            headers={"Connection": "close"},
        )
    )
