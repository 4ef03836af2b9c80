"""The header Idempotency-Key (draft-ietf-httpapi-idempotency-key-header-07): the same request again has the same ids.

Nothing is stored. An event without an `event_id` gets one that follows from the key, so that consumers drop the
duplicate. The source is a part of it: callers cannot use each other's keys, if they are authenticated.
"""

import re
from collections.abc import Callable
from hashlib import sha256

from attrs import frozen

from pulsecart.events import Event
from pulsecart.http.problems import Problem, ProblemError

__all__ = ["IdempotencyKey"]

_KEY = re.compile(rb'"([ !#-\[\]-~]{1,255})"|([ !#-~]{1,255})')
"""Printable ASCII: in quotes without quotes and backslashes, or without quotes."""


@frozen
class IdempotencyKey:
    """The key of a request."""

    _scope: str
    """What all events of the request have in common."""

    @classmethod
    def read(cls, header: bytes, route: str, source: str) -> "IdempotencyKey":
        """Return the key in a header, for a route and the name of the caller's source, or an empty one.

        Raises `ProblemError` (400).
        """
        match = _KEY.fullmatch(header)
        if not match:
            raise ProblemError(
                Problem(
                    status=400,
                    type="malformed-request",
                    title="The Idempotency-Key is not valid",
                    detail="Idempotency-Key must be one line with 1 to 255 printable ASCII characters, in quotes or "
                    "not; a quote or, in quotes, a backslash cannot be part of it.",
                )
            )
        key = (match[1] or match[2]).decode()
        return cls(f"{source}\0{route}\0{key}")

    def of_event(self, index: int) -> Callable[[Event], str]:
        """Return a function that makes the id of the event with this index in the request."""

        def event_id(event: Event) -> str:
            text = f"{self._scope}\0{index}\0{event.event_type}\0{event.user_id}"
            return f"idk_{sha256(text.encode()).hexdigest()[:32]}"

        return event_id
