"""The part of Pub/Sub's REST API that administrators use (https://cloud.google.com/pubsub/docs/reference/rest)."""

import asyncio
import random
from typing import TYPE_CHECKING, Any

from pulsecart.transports.pubsub.attempts import Attempts
from pulsecart.transports.pubsub.reachability import Reachability
from pulsecart.transports.pubsub.remote import CALL_SECONDS
from pulsecart.transports.pubsub.wire import WireError
from pulsecart.transports.pubsub.wire.rest import RestWire

if TYPE_CHECKING:
    from pulsecart.transports.pubsub.tokens import Tokens

__all__ = ["Api"]

RETRY_SECONDS = 1.0
"""Maximum seconds between two attempts."""

_TEMPORARY = frozenset({"INTERNAL", "RESOURCE_EXHAUSTED", "UNAVAILABLE", "UNKNOWN"})


class Api:
    """Calls methods of the API, authorized if there are tokens."""

    def __init__(self, wire: RestWire, tokens: "Tokens | None" = None) -> None:
        self._wire = wire
        self._tokens = tokens
        self._attempts = Attempts(tokens, Reachability())
        self._loop = asyncio.get_running_loop()

    @property
    def principal(self) -> str:
        """Who makes the calls, if they are authorized. Raises `BrokerUnavailable` if there is no access token."""
        assert self._tokens is not None  # an emulator's calls have no principal
        _ = self._tokens.metadata
        return self._tokens.principal

    async def call(self, method: str, path: str, body: Any = None, *, query: str = "") -> dict[str, Any]:
        """Send a request, and return its answer. What may be temporary is tried again.

        The path follows `/v1/`. Raises `WireError`, or `BrokerUnavailable` if there is no access token.
        """
        deadline = self._loop.time() + CALL_SECONDS
        while True:
            try:
                return await self._attempts.make(
                    lambda metadata: self._wire.call(method, path, query, body, deadline, metadata), deadline
                )
            except WireError as error:
                wait = max(error.retry_after, random.uniform(0.1, RETRY_SECONDS))  # noqa: S311
                if error.status not in _TEMPORARY or not error.answered or self._loop.time() + wait >= deadline:
                    raise
            await asyncio.sleep(wait)
