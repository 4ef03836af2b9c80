"""AsyncAPI 3.0: the topics, and the messages that consumers receive from them."""

import re
from importlib.metadata import version
from typing import Any

from pulsecart.events import Catalog, Event
from pulsecart.events.schema import Definitions, example

__all__ = ["asyncapi"]

_BINDING = "0.2.0"
"""The version of the Google Cloud Pub/Sub bindings."""

_EVENT_ID = "evt_01a208d02d4708440c6fe7ff04e1d3bb"
_TIMESTAMP = "2026-01-31T12:00:00.250000Z"

_DESCRIPTION = """\
What pulsecart publishes to Google Cloud Pub/Sub. The data of a message is the whole event as JSON; numbers have their \
exact decimal value.

Pub/Sub may deliver a message more than once: drop duplicates by `event_id`. With message ordering, the events of one \
user arrive in the order in which they were accepted, unless the deployment has another ordering. Ignore fields that \
you do not know: producers may add some. In Python, `pulsecart.Catalog.read(data, tolerant=True)` does."""

_ATTRIBUTES = {
    "event_id": {"type": "string", "description": "Unique for each event; drop duplicates by it."},
    "traceparent": {"type": "string", "description": "The trace of the event (W3C Trace Context), if it has one."},
    "googclient_traceparent": {"type": "string", "description": "The same, for Google's client libraries."},
}


def asyncapi(catalog: Catalog) -> dict[str, Any]:
    """Return the AsyncAPI document of a catalog."""
    definitions = Definitions("#/components/schemas/", published=True)
    channels: dict[str, Any] = {}
    for cls in catalog:
        channel = channels.setdefault(
            _key(cls.topic),
            {"address": cls.topic, "description": f"The Pub/Sub topic {cls.topic}.", "messages": {}},
        )
        channel["messages"][_key(cls.event_type)] = {"$ref": f"#/components/messages/{_key(cls.event_type)}"}
    return {
        "asyncapi": "3.0.0",
        "info": {"title": "pulsecart", "version": version("pulsecart"), "description": _DESCRIPTION},
        "defaultContentType": "application/json",
        "channels": channels,
        "operations": {
            f"publish.{key}": {
                "action": "send",
                "summary": f"pulsecart publishes to {channel['address']}.",
                "channel": {"$ref": f"#/channels/{key}"},
            }
            for key, channel in channels.items()
        },
        "components": {
            "messages": {_key(cls.event_type): _message(cls, definitions) for cls in catalog},
            "schemas": definitions.schemas,
        },
    }


def _message(cls: type[Event], definitions: Definitions) -> dict[str, Any]:
    message: dict[str, Any] = {
        "name": cls.event_type,
        "title": cls.__name__,
        "contentType": "application/json",
        "correlationId": {"location": "$message.header#/event_id"},
        "headers": {
            "type": "object",
            "required": ["event_type", "event_id"],
            "properties": {"event_type": {"const": cls.event_type}, **_ATTRIBUTES},
        },
        "payload": definitions.refer(cls, event=True),
        "bindings": {
            "googlepubsub": {
                "attributes": {"event_type": cls.event_type},
                "orderingKey": "user_id",
                "bindingVersion": _BINDING,
            }
        },
    }
    if shown := example(cls):
        attributes = {"event_type": cls.event_type, "event_id": _EVENT_ID}
        payload = {"event_type": cls.event_type, "event_id": _EVENT_ID, "timestamp": _TIMESTAMP, **shown}
        message["examples"] = [{"name": cls.__name__, "headers": attributes, "payload": payload}]
    return message


def _key(name: str) -> str:
    """Return a name with the characters that a key of a component may have."""
    return re.sub(r"[^A-Za-z0-9._-]", lambda match: f"_{ord(match[0]):x}_", name)
