"""Limits of a transport that publishes to a broker: deadline, messages and bytes in flight, and batches."""

from collections.abc import Mapping

from attrs import field, frozen, validators

from pulsecart.message import MAX_MESSAGE_BYTES

__all__ = ["Batching", "Limits"]

MAX_REQUEST_MESSAGES = 1000
"""Maximum number of messages in a publish request (https://cloud.google.com/pubsub/quotas)."""


@frozen(kw_only=True)
class Batching:
    """How messages of one topic and ordering key are combined into requests."""

    max_messages: int = field(default=100, validator=[validators.ge(1), validators.le(MAX_REQUEST_MESSAGES)])

    max_bytes: int = field(default=1_048_576, validator=[validators.ge(1), validators.le(MAX_MESSAGE_BYTES)])
    """Maximum bytes of a request with several messages. A larger message is sent in a request of its own."""

    max_latency: float = field(default=0.0, validator=[validators.ge(0), validators.le(10)])
    """How long, in seconds, a message may wait for others. With 0, messages that arrive while a request is in flight
    still share the next one."""


@frozen(kw_only=True)
class Limits:
    """How much a transport holds, and how long it tries to publish.

    An ordering key may hold as many messages, and as many bytes, as are free for all others. A key whose requests
    hang thus stops at about half of a limit, two at a third each, and there is always room for other keys. Beyond its
    share, `publish` raises `Overloaded`. The messages of a topic without an ordering key share in the same way.
    """

    deadline: float = field(default=10.0, validator=validators.gt(0))
    """Maximum seconds from the call of `publish` to the broker's confirmation, including waiting and retries."""

    max_messages: int = field(default=10_000, validator=validators.ge(1))
    """Maximum number of messages waiting or in flight. Beyond it, `publish` raises `Overloaded` immediately.

    With one ordering key for all messages of a process, set twice of what it is to hold."""

    max_bytes: int = field(default=100_000_000, validator=validators.ge(1))
    """Maximum bytes of memory for these messages, including all copies.

    A message that is larger is admitted while any of it is free, so that it can be published at all."""

    batching: Mapping[str, Batching] = field(factory=dict)
    """Batching by topic; other topics use the defaults of `Batching`. `max_latency` is at most half of `deadline`."""

    @property
    def attempt_timeout(self) -> float:
        """How long an attempt waits for an answer, in seconds: after a lost answer there is time for another one."""
        return self.deadline / 2

    def __attrs_post_init__(self) -> None:
        for topic, batching in self.batching.items():
            if batching.max_latency > self.deadline / 2:
                raise ValueError(
                    f"{topic}: messages may wait for others for {batching.max_latency:g} s; "
                    f"the maximum is half of the deadline of {self.deadline:g} s"
                )
