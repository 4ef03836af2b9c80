"""Request bodies: limits of size and time, and of the bytes that all requests hold together."""

import asyncio

from starlette.requests import ClientDisconnect
from starlette.types import Receive

from pulsecart.errors import Overloaded
from pulsecart.http.problems import Problem, ProblemError

__all__ = ["Bodies"]


class Bodies:
    """Reads bodies, and limits the bytes that the service holds.

    Half of `limit` is for bodies that are still arriving, so that callers who stall cannot prevent others' events from
    being published. The first `share` bytes of each body are not counted, so that small events are always read. The
    other half is for events that wait for the broker. A single body or event may exceed its half.
    """

    def __init__(self, *, body_limit: int, limit: int, share: int, seconds: float) -> None:
        self._body_limit = body_limit
        self._limit = limit // 2
        self._share = share
        self._seconds = seconds
        self._arriving = 0
        self._held = 0

    def hold(self, size: int) -> None:
        """Count a message that waits for the broker. Raises `Overloaded`, without counting it, over the limit."""
        if self._held and self._held + size > self._limit:
            raise Overloaded(f"{self._held:,} bytes of events wait for the broker; the limit is {self._limit:,}")
        self._held += size

    def release(self, size: int) -> None:
        """Stop counting a message."""
        self._held -= size

    async def read(self, declared: bytes, receive: Receive) -> bytes:
        """Return the whole body. `declared` is the value of Content-Length, or empty.

        Raises `ProblemError` (408, 413), `Overloaded` or Starlette's `ClientDisconnect`.
        """
        # Twenty digits exceed any limit; for thousands of digits, int() is slow, and finally raises.
        length = int(declared[:20]) if declared.isdigit() else -1
        if length > self._body_limit:
            raise _too_large(self._body_limit)
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
                    if size > self._body_limit:
                        raise _too_large(self._body_limit)
                    if size > self._share:
                        self._arriving += size - self._share - counted
                        counted = size - self._share
                        # A complete body is always accepted here: it is about to become a message.
                        if self._arriving > max(counted, self._limit) and more and size != length:
                            raise Overloaded(f"{self._arriving:,} bytes of bodies are arriving")
                    chunks.append(chunk)
        except TimeoutError:
            raise _too_slow(self._seconds, size) from None
        finally:
            self._arriving -= counted
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _too_slow(seconds: float, size: int) -> ProblemError:
    return ProblemError(
        Problem(
            status=408,
            type="request-timeout",
            title="The body arrived too slowly",
            detail=f"The body was not complete within {seconds:g} seconds; {size:,} bytes had arrived.",
            headers={"Connection": "close"},
        )
    )


def _too_large(limit: int) -> ProblemError:
    return ProblemError(
        Problem(
            status=413,
            type="body-too-large",
            title="The body is too large",
            detail=f"The body exceeds the limit of {limit:,} bytes.",
            more={"limit": limit},
        )
    )
