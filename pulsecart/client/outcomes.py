"""What became of an event: a receipt, or a failure and its problem."""

from collections.abc import Sequence

from attrs import field, frozen

from pulsecart.client.documents import AnyEvent
from pulsecart.errors import Fault, PulsecartError

__all__ = ["ABORTED", "NO_ANSWER", "Failure", "Outcome", "Problem", "Receipt", "SendError"]

NO_ANSWER = 0
"""The status of a problem if there was no answer."""

ABORTED = "aborted"
"""The type of the problem of an event that was not sent, since an earlier one of its user was not published."""


@frozen(kw_only=True)
class Receipt:
    """Confirmation that the broker has the event.

    It differs from the receipt of a `Producer`: the service's answer does not name the topic, and names the message id
    only if every event of the request was published.
    """

    event_id: str

    message_id: str | None
    """The id that the broker assigned to the message; None if other events of the same request failed."""

    trace_id: str
    """The event's OpenTelemetry trace id, 32 lowercase hex digits."""


@frozen(kw_only=True)
class Problem:
    """Why an event was not published: a problem document of the service (RFC 9457), or the client's own words."""

    status: int
    """The HTTP status, or the one that the event alone would have been answered with; 0 if there was no answer."""

    type: str
    """The kind of problem, such as `invalid-event`."""

    title: str = ""

    detail: str

    errors: tuple[Fault, ...] = ()
    """All that is wrong with the event."""

    retryable: bool = field(init=False)
    """Whether sending the same event again, with the same `event_id`, can succeed."""

    @retryable.default
    def _by_status(self) -> bool:
        return self.status in {NO_ANSWER, 408, 429} or self.status >= 500

    def __str__(self) -> str:
        kind = f"{self.status} {self.type}" if self.status else self.type
        return "; ".join([f"{kind}: {self.detail}", *map(str, self.errors)])


@frozen(kw_only=True)
class Failure:
    """An event that the service has not confirmed."""

    index: int
    """Its place among the events of the call, from 0."""

    event: AnyEvent
    """The event as it was given."""

    document: bytes
    """The event as it was sent, with its `event_id` and maybe its `timestamp`: JSON that can be sent again.

    Empty if the event has no form in JSON.
    """

    event_id: str | None
    """None if the event could not be read."""

    problem: Problem

    of_request: bool = False
    """Whether the problem is that of a whole batch, so that it says nothing about this event."""

    holds: str | None = None
    """The user whose later events in the call are not sent, if any: they would overtake this one."""


Outcome = Receipt | Failure


class SendError(PulsecartError):
    """Events were not confirmed. `failures` has them, in the order in which they were given.

    `retryable` says whether any of them can succeed if it is sent again. To send those again under the same ids:

        client.send_many(failure.document for failure in error.failures if failure.problem.retryable)
    """

    retryable: bool  # type: ignore[misc] # of the instance, not of the class

    def __init__(self, failures: Sequence[Failure]) -> None:
        self.failures = tuple(failures)
        self.retryable = any(failure.problem.retryable for failure in failures)
        first = failures[0]
        count = f"{len(failures):,} events were not sent; the first, at index {first.index:,}: "
        super().__init__(count * (len(failures) > 1) + str(first.problem))
