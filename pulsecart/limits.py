"""How much, and for how long: what a transport that talks to a broker may be told."""

from collections.abc import Mapping

from attrs import field, frozen, validators

from pulsecart.message import MAX_MESSAGE_BYTES

__all__ = ["Batching", "Limits"]

MAX_REQUEST_MESSAGES = 1000
"""The most messages one publish request may have (https://cloud.google.com/pubsub/quotas)."""


@frozen(kw_only=True)
class Batching:
    """How messages of one topic and ordering key share requests."""

    max_messages: int = field(default=100, validator=[validators.ge(1), validators.le(MAX_REQUEST_MESSAGES)])

    max_bytes: int = field(default=1_048_576, validator=[validators.ge(1), validators.le(MAX_MESSAGE_BYTES)])
    """The bytes of a request of several messages; one that alone has more goes alone."""

    max_latency: float = field(default=0.0, validator=[validators.ge(0), validators.le(10)])
    """The seconds that a message may wait for others. At 0 it still shares a request with those that came while the
    one before was in flight."""


@frozen(kw_only=True)
class Limits:
    """What a transport holds, and how long it tries."""

    deadline: float = field(default=10.0, validator=validators.gt(0))
    """Seconds from the call of `publish` to the broker's confirmation, waiting and retries included."""

    max_messages: int = field(default=10_000, validator=validators.ge(1))
    """Messages in flight and waiting. With more, `publish` raises `Overloaded` at once."""

    max_bytes: int = field(default=100_000_000, validator=validators.ge(1))
    """Bytes of memory that they may take, all copies included. One message alone may take more."""

    batching: Mapping[str, Batching] = field(factory=dict)
    """By topic; one that is not named has the defaults of `Batching`. Waiting takes at most half of the deadline."""

    def __attrs_post_init__(self) -> None:
        for topic, batching in self.batching.items():
            if batching.max_latency > self.deadline / 2:
                raise ValueError(
                    f"{topic}: messages may wait for others for {batching.max_latency:g} s, which leaves too little "
                    f"of the deadline of {self.deadline:g} s to publish them: at most half of it"
                )
