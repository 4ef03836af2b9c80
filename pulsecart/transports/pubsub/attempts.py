"""Attempts: one request on the wire, authorized, whose outcome shows whether the broker can be reached."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from pulsecart.errors import BrokerUnavailable
from pulsecart.transports.keyed import Failure
from pulsecart.transports.pubsub.reachability import Reachability
from pulsecart.transports.pubsub.wire import Metadata, WireError

if TYPE_CHECKING:
    from pulsecart.transports.pubsub.tokens import Tokens

__all__ = ["Attempts"]

T = TypeVar("T")

_NO_METADATA: Metadata = ()


class Attempts:
    """Makes attempts with access tokens, if there are `tokens`, and reports their outcome to `reachability`."""

    def __init__(self, tokens: "Tokens | None", reachability: Reachability) -> None:
        self._tokens = tokens
        self._reachability = reachability
        self._loop = asyncio.get_running_loop()

    async def make(self, call: Callable[[Metadata], Awaitable[T]], deadline: float) -> T:
        """Make an attempt; if the token is rejected, make another with a new token.

        Raises `WireError`, or `BrokerUnavailable` if there is no token.
        """
        metadata = _NO_METADATA if self._tokens is None else self._tokens.metadata
        try:
            return await self._make(call, metadata)
        except WireError as error:
            if error.status != "UNAUTHENTICATED" or self._tokens is None:
                raise
            try:
                async with asyncio.timeout_at(deadline):
                    await self._tokens.renew(metadata)
            except TimeoutError:
                raise error from None
            return await self._make(call, self._tokens.metadata)

    async def _make(self, call: Callable[[Metadata], Awaitable[T]], metadata: Metadata) -> T:
        started = self._loop.time()
        try:
            answer = await call(metadata)
        except WireError as error:
            if error.answered:
                self._reachability.answered()
            elif error.answered is not None:
                detail = "the broker cannot be reached"
                failure = Failure(BrokerUnavailable, f"{detail} ({error.status})", f"{detail}: {error}", error.status)
                self._reachability.unanswered(started, failure)
            raise
        self._reachability.answered()
        return answer
