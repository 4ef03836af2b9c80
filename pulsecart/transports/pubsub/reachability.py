"""Whether the broker can be reached: judged by publishes, and by probes while there are none."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from pulsecart.errors import BrokerUnavailable
from pulsecart.transports.keyed import Failure

__all__ = ["Reachability", "keep_probing"]

AWAY_SECONDS = 2.0
"""Seconds after an unanswered request from which the broker counts as away, if others go unanswered too."""

QUIET_SECONDS = 10.0
"""Seconds without an answer, and without messages in flight, after which a probe is sent."""

PROBE_SECONDS = 1.0
"""Seconds between probes after one went unanswered."""

_log = logging.getLogger("pulsecart")


class Reachability:
    """Knows whether the broker can be reached. Any answer of the broker proves it, an error too."""

    def __init__(self) -> None:
        self.away: Failure | None = None
        """The reason while the broker cannot be reached, otherwise None."""
        self._loop = asyncio.get_running_loop()
        self._answered_at = self._loop.time()
        self._unanswered_at: float | None = None
        self._trying = False

    @property
    def needs_proof(self) -> bool:
        """Whether nothing has been answered for a while, or since a request went unanswered."""
        return self._unanswered_at is not None or self._loop.time() - self._answered_at >= QUIET_SECONDS

    def answered(self) -> None:
        """Note that the broker has answered."""
        self._answered_at = self._loop.time()
        self._unanswered_at = self.away = None

    def unanswered(self, since: float, failure: Failure) -> None:
        """Note that a request, which was started at `since`, got no answer.

        One such request proves little, and neither do others that were started before it failed: a connection may have
        broken. The broker is away if requests that are started after that go unanswered too.
        """
        now = self._loop.time()
        if self._answered_at >= since:
            return
        if self._unanswered_at is None:
            self._unanswered_at = now
        elif since >= self._unanswered_at and now - self._unanswered_at >= AWAY_SECONDS:
            self.away = failure

    def may_try(self) -> bool:
        """Return whether a message may be published although the broker is away: one at a time may."""
        may, self._trying = not self._trying, True
        return may

    def tried(self, _published: object) -> None:
        """Note that the message of `may_try` has been published, or has failed."""
        self._trying = False


async def keep_probing(
    reachability: Reachability, probe: Callable[[], Awaitable[object]], idle: Callable[[], bool]
) -> None:
    """Send probes while no message is in flight, so that an outage and its end are noticed without traffic."""
    while True:
        await asyncio.sleep(PROBE_SECONDS)
        if idle() and reachability.needs_proof:
            try:
                await probe()
            except BrokerUnavailable:
                pass  # the attempt has been reported to `reachability`
            except Exception:  # noqa: BLE001 (otherwise an outage would last for ever)
                _log.exception("A probe of the broker failed unexpectedly. Probing continues.")
