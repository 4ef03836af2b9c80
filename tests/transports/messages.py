"""Messages and topics for tests of transports."""

from pulsecart import Message
from pulsecart.testing import StrictPubsub

TOPICS = ["contract-a", "contract-b"]


def message(number: int, key: str = "user", topic: str = TOPICS[0]) -> Message:
    return Message(
        topic=topic,
        data=b'{"n":%d}' % number,
        attributes={"event_type": "t", "event_id": f"{key}-{number}"},
        ordering_key=key,
    )


def confirmed_by(server: StrictPubsub) -> list[Message]:
    """Return the messages that a strict server has confirmed, in order."""
    return [
        Message(
            topic=request.topic.rpartition("/")[2],
            data=found.data,
            attributes=dict(found.attributes),
            ordering_key=found.ordering_key,
        )
        for request in server.requests
        for found in request.messages
    ]
