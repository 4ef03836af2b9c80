"""What a change of schemas means for those who sent events before it, and for those who read events after it.

Two schemas of one event type are compared field by field. *Producers* send bodies that were right before: each must be
right still. *Consumers* read what is published now by the class of before: each value must have a type that it had.
The data of a message has every field of its class, defaults included, so that consumers miss only what is removed.
Fields that are new are ignored by tolerant consumers, and break strict ones.
"""

from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

from attrs import field, frozen

from pulsecart.events.faults import below

__all__ = ["Change", "compare"]

Schema = Mapping[str, Any]


@frozen
class Change:
    """A difference between two catalogs, and whom it breaks."""

    event_type: str
    pointer: str
    """The place in the body, as a JSON pointer (RFC 6901); `*` stands for every item. Empty for the whole type."""

    reason: str
    breaks: frozenset[str] = field(converter=frozenset)
    """Of `producers`, `consumers` (tolerant ones, and so strict ones too) and `strict consumers`."""


PRODUCERS, CONSUMERS, STRICT = "producers", "consumers", "strict consumers"


def compare(before: Mapping[str, Schema], now: Mapping[str, Schema]) -> list[Change]:
    """Return the changes from one catalog to another, each given as the schemas of bodies by event type."""
    changes = []
    for name in before.keys() | now.keys():
        if name not in now:
            changes.append(Change(name, "", "is removed: events of this type are rejected", {PRODUCERS}))
        elif name not in before:
            changes.append(Change(name, "", f"is new on the topic {now[name].get('x-topic')}", ()))
        else:
            changes += _compare_type(name, before[name], now[name])
    return sorted(set(changes), key=lambda change: (change.event_type, change.pointer, change.reason))


def _compare_type(name: str, before: Schema, now: Schema) -> Iterator[Change]:
    old_topic, topic = before.get("x-topic"), now.get("x-topic")
    if old_topic != topic:
        yield Change(name, "", f"moves from the topic {old_topic} to {topic}", {CONSUMERS})
    for pointer, reason in _Subset(before, now, by_class=False).excess():
        yield Change(name, pointer, reason, {PRODUCERS})
    for pointer, reason in _Subset(now, before, by_class=True).excess():
        yield Change(name, pointer, reason, {STRICT} if reason == _ADDED else {CONSUMERS})


_ADDED = "is added"


class _Subset:
    """Finds values that one schema allows and another does not."""
