"""Values of settings: parsers, which turn text into a value, and validators, which check one.

A parser returns text that it cannot parse as it is, for the validator to reject with the setting's name.
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

import attrs

from pulsecart.access.urls import is_secure, is_url
from pulsecart.errors import SettingsError
from pulsecart.limits import Batching
from pulsecart.serve.hosts import network
from pulsecart.suggest import closest, nearest
from pulsecart.transports.pubsub.remote import RESOURCE_NAME
from pulsecart.transports.registry import is_factory, transport_names

__all__ = [
    "address",
    "auth",
    "batching",
    "between",
    "file",
    "host_names",
    "issuers",
    "jwks",
    "names",
    "number",
    "one_of",
    "option",
    "options",
    "ordering",
    "origins",
    "parse_auth",
    "parse_batching",
    "parse_options",
    "parse_ordering",
    "parse_topics",
    "project",
    "topics",
    "trace_url",
    "transport",
]

Setting: TypeAlias = "attrs.Attribute[Any]"
Validator: TypeAlias = Callable[[Any, Setting, Any], None]

_MAX_SHOWN = 100
"""How many characters of a wrong value a message repeats."""


def option(setting: Setting) -> str:
    """Return the name of a setting on the command line."""
    return f"--{setting.name.replace('_', '-')}"


def _reject(setting: Setting, expected: str, value: object, hint: str = "") -> NoReturn:
    variable = setting.metadata["variable"]
    raise SettingsError([f"{variable} ({option(setting)}) must be {expected}, not {_shown(value)}{hint}"])


def _shown(value: object) -> str:
    """Return a value as a message may repeat it: not too long, and without a user and password."""
    _, at, host = str(value).rpartition("@")
    shown = repr(f"…@{host}" if at else value)
    return shown if len(shown) <= _MAX_SHOWN else f"{shown[:_MAX_SHOWN]}…"


# Parsers.


def number(text: str) -> int | float | str:
    """Parse a number of up to 20 digits, since Python takes long to parse many."""
    if not re.fullmatch(r"-?\d{1,20}(\.\d{1,20})?", text, re.ASCII):
        return text
    return float(text) if "." in text else int(text)


def names(text: str) -> tuple[str, ...]:
    """Parse names separated by commas."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def parse_auth(text: str) -> str:
    """Parse words separated by commas, in any order."""
    return ",".join(sorted(names(text)))


def parse_ordering(text: str) -> dict[str, str]:
    """Parse `topic=ordering,…`."""
    return {topic: choice for topic, _, choice in (part.partition("=") for part in names(text))}


def parse_topics(text: str) -> dict[str, str] | str:
    """Parse `topic=name,…`."""
    pairs = [(topic, name) for topic, _, name in (part.partition("=") for part in names(text))]
    return dict(pairs) if len(dict(pairs)) == len(pairs) else text


def parse_options(text: str) -> dict[str, str] | str:
    """Parse `name=value,…`."""
    pairs = [part.partition("=") for part in names(text)]
    found = {name.strip(): value.strip() for name, _, value in pairs}
    return found if len(found) == len(pairs) and all(name and sign for name, sign, _ in pairs) else text


def parse_batching(text: str) -> dict[str, Batching] | str:
    """Parse `topic=messages:bytes:milliseconds,…`."""
    found = {}
    for part in names(text):
        match = re.fullmatch(r"([^=]+)=(\d{1,20}):(\d{1,20}):(\d{1,20})", part, re.ASCII)
        if not match:
            return text
        topic, messages, size, milliseconds = match[1], int(match[2]), int(match[3]), int(match[4])
        try:
            found[topic] = Batching(max_messages=messages, max_bytes=size, max_latency=milliseconds / 1000)
        except ValueError:
            return text
    return found


# Converters, for settings that a program gives.


def split(value: str | Iterable[str]) -> tuple[str, ...]:
    """Return names, which may be given in one string."""
    return names(value) if isinstance(value, str) else tuple(value)


def word(value: str | bool) -> str:  # noqa: FBT001 (a setting)
    """Return a word; true and false may be given as a bool."""
    return str(value).lower() if isinstance(value, bool) else value


# Validators, in the form that attrs expects.


def one_of(*allowed: str) -> Validator:
    """Accept one of a few words."""

    def validate(_settings: Any, setting: Setting, value: Any) -> None:
        if value not in allowed:
            text = str(value).lower()
            near = next((one for one in allowed if text.startswith(one)), None) or closest(text, allowed)
            hint = f"; did you mean {near!r}?" if near else ""
            _reject(setting, f"{', '.join(allowed[:-1])} or {allowed[-1]}", value, hint)

    return validate


def between(low: float, high: float) -> Validator:
    """Accept a number in a range; a whole one if the range is given in whole numbers."""
    whole = isinstance(low, int)

    def validate(_settings: Any, setting: Setting, value: Any) -> None:
        if not isinstance(value, int if whole else (int, float)) or not low <= value <= high:
            _reject(setting, f"a {'whole ' if whole else ''}number from {low:,} to {high:,}", value)

    return validate


def transport(_settings: Any, setting: Setting, value: str) -> None:
    """Accept the name of an installed transport, or of a factory, or an empty string."""
    if value and not is_factory(value) and value not in (known := transport_names()):
        hint = nearest(value.lower(), known) or "; a factory in a module is named as package.module:factory"
        _reject(setting, f"{', '.join(known[:-1])} or {known[-1]}", value, hint)


def options(_settings: Any, setting: Setting, value: Any) -> None:
    """Accept what `parse_options` could parse."""
    if not isinstance(value, Mapping):
        variable = setting.metadata["variable"]  # the value may contain a password
        raise SettingsError([f"{variable} ({option(setting)}) must be name=value, separated by commas, each name once"])


def auth(settings: Any, setting: Setting, value: str) -> None:
    """Accept the ways to authenticate, or an empty string: nothing has been decided."""
    if value:
        one_of("none", "keys", "oidc", "keys,oidc")(settings, setting, value)


def issuers(_settings: Any, setting: Setting, value: Collection[str]) -> None:
    """Accept addresses of issuers."""
    for issuer in value:
        if not is_secure(issuer) or "?" in issuer:
            _reject(setting, "https URLs (http on loopback only), separated by commas", issuer)


def jwks(_settings: Any, setting: Setting, value: str) -> None:
    """Accept the path of a file or an address, or an empty string."""
    if is_url(value) and not is_secure(value):
        _reject(setting, "a file or an https URL (http on loopback only)", value)


def origins(_settings: Any, setting: Setting, value: Collection[str]) -> None:
    """Accept origins as browsers write them, or `*`."""
    for origin in value:
        if origin != "*" and not re.fullmatch(r"https?://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:\d{1,5})?", origin, re.ASCII):
            _reject(
                setting,
                "origins in lower case and without a path, separated by commas, such as https://shop.example, or *",
                origin,
            )


def address(_settings: Any, setting: Setting, value: str) -> None:
    """Accept host:port, or an empty string."""
    if value and not re.fullmatch(r"([^\s/:@]+|\[[0-9a-fA-F:.]+\]):\d{1,5}", value):
        _reject(setting, "host:port, such as 127.0.0.1:8085", value)


def file(_settings: Any, setting: Setting, value: str) -> None:
    """Accept the path of a file that can be read, or an empty string."""
    if value:
        try:
            Path(value).read_bytes()
        except OSError as error:
            _reject(setting, "a file that can be read", value, f": {error.strerror}")


def project(_settings: Any, setting: Setting, value: str) -> None:
    """Accept a project id."""
    if not re.fullmatch(r"[A-Za-z0-9.:-]+", value):
        _reject(setting, "a project id", value)


def host_names(_settings: Any, setting: Setting, value: Collection[str]) -> None:
    """Accept host names, addresses and networks."""
    for host in value:
        if not re.fullmatch(r"(?=.*[a-z])[a-z0-9._-]+", host, re.ASCII | re.IGNORECASE) and not network(host):
            _reject(
                setting,
                "host names, addresses or networks without a port, separated by commas, such as "
                "pulsecart,172.16.0.0/12",
                host,
            )


def trace_url(_settings: Any, setting: Setting, value: str) -> None:
    """Accept a URL with a placeholder for the trace id, or an empty string."""
    if value and not re.fullmatch(r"https?://([^{}]*\{trace_id\})+[^{}]*", value):
        _reject(setting, "a URL with {trace_id} in it, such as http://localhost:16686/trace/{trace_id}", value)


def ordering(_settings: Any, setting: Setting, value: Mapping[str, str]) -> None:
    """Accept an ordering for each topic."""
    for topic, choice in value.items():
        if not re.fullmatch(r"user|none|shards:[1-9]\d{0,3}", choice, re.ASCII):
            _reject(
                setting,
                "topic=user, topic=none or topic=shards:N with N from 1 to 9,999, separated by commas",
                f"{topic}={choice}",
            )


def topics(_settings: Any, setting: Setting, value: Any) -> None:
    """Accept a name that Pub/Sub allows for each topic, and no name twice."""
    if not isinstance(value, Mapping):
        _reject(setting, "topic=name, separated by commas, with each topic once", value)
    for topic, name in value.items():
        if not RESOURCE_NAME.fullmatch(name):
            _reject(
                setting,
                "topic=name, separated by commas; a name has 3 to 255 letters, digits and -._~+%, begins with a letter "
                "and not with goog",
                f"{topic}={name}",
            )
    if len(set(value.values())) < len(value):
        _reject(setting, "topic=name, separated by commas, with each name once", ",".join(value.values()))


def batching(_settings: Any, setting: Setting, value: Any) -> None:
    """Accept what `parse_batching` could parse."""
    if not isinstance(value, Mapping):
        _reject(
            setting,
            "topic=messages:bytes:milliseconds, separated by commas, such as my.topic=100:1048576:50, with at most "
            "1,000 messages, 10,000,000 bytes and 10,000 milliseconds",
            value,
        )
