"""Request bodies: limits of size and time, and of the bytes that all requests hold together."""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from time import perf_counter

from starlette.requests import ClientDisconnect
from starlette.types import Receive

from pulsecart.errors import Overloaded
from pulsecart.http.formats.coding import Decoder, decoded
from pulsecart.http.problems import Problem, ProblemError, too_large
from pulsecart.many import TURN_SECONDS

__all__ = ["Bodies"]


class Bodies:
    """Reads bodies, and limits the bytes that the service holds.

    Half of `limit` is for bodies that are still arriving, so that callers who stall cannot prevent others' events from
    being published. The first `share` bytes of each body are not counted, so that small events are always read. The
    other half is for events that wait for the broker. A single body or event may exceed its half.

    A body has to arrive within `seconds`. A stream may take any time, but pause for at most `seconds`, and has to bring
    `min_rate` bytes a second; there are at most `max_streams` at a time.
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
        self._streams = 0

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
    def streaming(self, size: int) -> Iterator[None]:
        """Count a stream during the block, and the bytes that it holds at most. Raises `Overloaded` over a limit."""
        if self._streams >= self._max_streams:
            raise Overloaded(f"{self._streams:,} streams are being read; the limit is {self._max_streams:,}")
        with self.holding(size):
            self._streams += 1
            try:
                yield
            finally:
                self._streams -= 1

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
        return decoded(body, coding, limit) if coding else body

    async def stream(self, receive: Receive, coding: str) -> AsyncGenerator[bytes, None]:
        """Yield the pieces of a body of any size, decoded.

        Only the time in which the sender is waited for counts. Raises `ProblemError` (400, 408) or `ClientDisconnect`.
        """
        decoder = Decoder(coding) if coding else None
        size, waited, more = 0, 0.0, True
        turn = perf_counter()
        while more:
            asked = perf_counter()
            try:
                async with asyncio.timeout(self._seconds):
                    message = await receive()
            except TimeoutError:
                raise _too_slow(f"Nothing arrived for {self._seconds:g} seconds.") from None
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            chunk, more = message.get("body", b""), message.get("more_body", False)
            size += len(chunk)
            waited += perf_counter() - asked
            if waited >= self._seconds and more:
                if size < self._min_rate * waited:
                    raise _too_slow(f"Only {size:,} bytes arrived in {waited:.1f} s; send {self._min_rate:,} a second.")
                size, waited = 0, 0.0
            for piece in decoder.feed(chunk) if decoder else (chunk,):
                if perf_counter() - turn > TURN_SECONDS:
                    await asyncio.sleep(0)
                    turn = perf_counter()
                if piece:
                    yield piece
        if decoder:
            decoder.finish()


def _too_slow(detail: str) -> ProblemError:
    return ProblemError(
        Problem(
            status=408,
            type="request-timeout",
            title="The body arrived too slowly",
            detail=detail,
            headers={"Connection": "close"},
        )
    )
