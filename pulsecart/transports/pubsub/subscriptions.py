"""The subscriptions that a deployment should have, as a TOML file says.

[mailer]                               # the subscription's name
topic = "pulsecart.commerce-events"    # a topic of the catalog
dead_letter_topic = "mailer.dead"      # none if missing
max_delivery_attempts = 10             # 5 to 100; 5 if missing
filter = 'attributes.event_type = "order.placed"'
"""

import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from attrs import frozen

from pulsecart.errors import SettingsError
from pulsecart.suggest import nearest
from pulsecart.transports.pubsub.filters import fault_of
from pulsecart.transports.pubsub.remote import RESOURCE_NAME

__all__ = ["Subscription", "read_subscriptions"]

DEFAULT_ATTEMPTS = 5
"""Pub/Sub's own default (https://cloud.google.com/pubsub/docs/dead-letter-topics)."""

_FIELDS = ("topic", "dead_letter_topic", "max_delivery_attempts", "filter")
_NAME_RULE = "must have 3 to 255 letters, digits and -._~+%, begin with a letter and not with goog"


@frozen(kw_only=True)
class Subscription:
    """A subscription. Its topics have the names that they have in the project."""

    name: str
    topic: str
    dead_letter_topic: str = ""
    """Where messages go that were delivered too often; empty for none."""

    max_delivery_attempts: int = DEFAULT_ATTEMPTS
    filter: str = ""
    """Which messages are delivered; empty for all."""


def read_subscriptions(path: Path, topics: Collection[str], names: Mapping[str, str]) -> list[Subscription]:
    """Read a file. `topics` are the catalog's, and `names` what they are called in the project, if not so.

    Raises `SettingsError` with everything that is wrong.
    """
    try:
        tables = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise SettingsError([f"{path} cannot be read: {error.strerror}"]) from None
    except ValueError as error:  # which UnicodeDecodeError and TOMLDecodeError are
        raise SettingsError([f"{path} is not TOML: {error}"]) from None
    problems = [
        f"{path}, [{name}]: {problem}"
        for name, table in tables.items()
        for problem in _problems(name, table, topics, names)
    ]
    if problems:
        raise SettingsError(problems)
    return [
        Subscription(name=name, **table | {"topic": names.get(table["topic"], table["topic"])})
        for name, table in tables.items()
    ]


def _problems(name: str, table: Any, topics: Collection[str], names: Mapping[str, str]) -> list[str]:
    if not isinstance(table, dict):
        return ["must be a table: a subscription with its topic"]
    problems = [] if RESOURCE_NAME.fullmatch(name) else [f"the name of a subscription {_NAME_RULE}"]
    for field, value in table.items():
        if field not in _FIELDS and isinstance(value, dict):
            problems.append(f'a name with a dot must be in quotes: ["{name}.{field}"]')
        elif field not in _FIELDS:
            problems.append(f"{field} is not known{_hint(field, _FIELDS, 'there are')}")
        elif field == "max_delivery_attempts":
            if type(value) is not int or not 5 <= value <= 100:
                problems.append(f"max_delivery_attempts must be a whole number from 5 to 100, not {value!r}")
        elif not isinstance(value, str):
            problems.append(f"{field} must be a text, not {value!r}")
        elif field == "filter" and (fault := fault_of(value)):
            problems.append(f"the filter is wrong: {fault}")
    return [*problems, *_problems_of_topics(table, topics, names)]


def _problems_of_topics(table: Mapping[str, Any], topics: Collection[str], names: Mapping[str, str]) -> list[str]:
    topic, dead = table.get("topic", ""), table.get("dead_letter_topic")
    problems = []
    if "topic" not in table:
        problems.append("topic is missing")
    elif isinstance(topic, str) and topic not in topics:
        problems.append(f"no event type has the topic {topic!r}{_hint(topic, topics, 'the topics are')}")
    if dead is None:
        if "max_delivery_attempts" in table:
            problems.append("max_delivery_attempts needs a dead_letter_topic")
    elif isinstance(dead, str):
        if not RESOURCE_NAME.fullmatch(dead):
            problems.append(f"dead_letter_topic {_NAME_RULE}")
        if dead in topics or dead in names.values():
            problems.append("dead_letter_topic is a topic of the catalog, whose consumers expect its events only")
    return problems


def _hint(name: str, known: Collection[str], otherwise: str) -> str:
    return nearest(name, known) or f"; {otherwise} {', '.join(known)}"
