"""Topics: looks them up, and creates them."""

import asyncio
from collections.abc import Iterable, Mapping

from pulsecart.errors import BrokerUnavailable
from pulsecart.transports.pubsub.attempts import Attempts
from pulsecart.transports.pubsub.wire import Wire, WireError

__all__ = ["Admin"]

CHECK_SECONDS = 3.0
"""Maximum duration of a check in seconds. It is shorter than the timeout of most readiness probes."""

PROBE_TOPIC = "pulsecart-probe"
"""The topic that probes ask for. It need not exist: NOT_FOUND is an answer too."""

# Answers that do not say whether a topic exists. roles/pubsub.publisher may publish to topics, but not read them; and
# reading them has a quota, which everything else in the project shares.
_UNKNOWN = frozenset({"PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "UNIMPLEMENTED"})


class Admin:
    """Looks up and creates the topics of a project. `names` are what topics are called there, if not by their names."""

    def __init__(self, wire: Wire, attempts: Attempts, project: str, names: Mapping[str, str]) -> None:
        self._wire = wire
        self._attempts = attempts
        self._project = project
        self._names = names
        self._loop = asyncio.get_running_loop()

    def path(self, topic: str) -> str:
        """Return the full name of a topic."""
        return f"projects/{self._project}/topics/{self._names.get(topic, topic)}"

    def described(self, topic: str) -> str:
        """Return the name of a topic for the log, and what it is called on the broker, if that differs."""
        name = self._names.get(topic, topic)
        return topic if name == topic else f"{topic} ({name})"

    async def exists(self, topic: str) -> bool:
        """Return whether a topic exists; also True if the broker does not tell. Raises `BrokerUnavailable`."""
        deadline = self._loop.time() + CHECK_SECONDS
        path = self.path(topic)
        try:
            await self._attempts.make(lambda metadata: self._wire.get_topic(path, deadline, metadata), deadline)
        except WireError as error:
            if error.status == "NOT_FOUND":
                return False
            if error.status not in _UNKNOWN:
                raise _unavailable(error) from None
        return True

    async def create(self, topics: Iterable[str]) -> None:
        """Create topics; existing ones are not changed. Raises `BrokerUnavailable`."""
        for path in map(self.path, topics):
            await self._create(path, self._loop.time() + CHECK_SECONDS)

    async def _create(self, path: str, deadline: float) -> None:
        try:
            await self._attempts.make(lambda metadata: self._wire.create_topic(path, deadline, metadata), deadline)
        except WireError as error:
            if error.status != "ALREADY_EXISTS":
                raise _unavailable(error) from None

    async def probe(self) -> None:
        """Ask for something. Raises `BrokerUnavailable` if the answer is an error, or there is none."""
        await self.exists(PROBE_TOPIC)


def _unavailable(error: WireError) -> BrokerUnavailable:
    what = "failed" if error.answered else f"did not answer within {CHECK_SECONDS:g} s"
    return BrokerUnavailable(f"the broker {what} ({error.status})", str(error), error_type=error.status)
