"""The settings, read from the environment and a `.env` file in the working directory."""

import ipaddress
import os
import re
from collections.abc import Callable, Collection, Mapping
from difflib import get_close_matches
from io import StringIO
from pathlib import Path
from typing import Any, NoReturn, Self

import attrs
from attrs import evolve, field, frozen
from dotenv import load_dotenv
from dotenv.parser import parse_stream

from pulsecart.errors import SettingsError
from pulsecart.events.commerce import USER_ACTIONS
from pulsecart.limits import Batching, Limits
from pulsecart.message import MAX_MESSAGE_BYTES
from pulsecart.ordering import Ordering, by_user, in_shards, unordered

__all__ = ["ENVIRONMENTS", "TRANSPORTS", "Settings", "load_setting", "load_settings"]

TRANSPORTS = ("memory", "emulator", "pubsub")
_DEV_PROJECT = "pulsecart-dev"

ENVIRONMENTS = ("dev", "staging", "prod")

_CONTAINER_MARKS = ("K_SERVICE", "KUBERNETES_SERVICE_HOST")

# What Kubernetes sets in every pod of a namespace with a Service named pulsecart or pulsecart-…
# https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables
_SERVICE_LINK = re.compile(
    r"PULSECART_([A-Z0-9_]+_)?"
    r"((SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)=.*"
    r"|PORT=(tcp|udp|sctp)://.*)"
)

MAX_SHOWN = 100
"""How many characters of a wrong value a message repeats."""

Validator = Callable[[Any, "attrs.Attribute[Any]", Any], None]


def _refuse(setting: "attrs.Attribute[Any]", what: str) -> NoReturn:
    raise SettingsError([f"{setting.metadata['variable']} (--{setting.name.replace('_', '-')}) must be {what}"])


def _shown(value: object) -> str:
    """Return a value as a message may repeat it: not too long, and without a user and password."""
    _, at, host = str(value).rpartition("@")
    shown = repr(f"…@{host}" if at else value)
    return shown if len(shown) <= MAX_SHOWN else f"{shown[:MAX_SHOWN]}…"


def _one_of(*allowed: str) -> Validator:
    def validate(_settings: Any, setting: "attrs.Attribute[Any]", value: Any) -> None:
        if value not in allowed:
            text = str(value).lower()
            near = [one for one in allowed if text.startswith(one)] or get_close_matches(text, allowed, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            _refuse(setting, f"{', '.join(allowed[:-1])} or {allowed[-1]}, not {_shown(value)}{hint}")

    return validate


def _between(low: float, high: float) -> Validator:
    def validate(_settings: Any, setting: "attrs.Attribute[Any]", value: Any) -> None:
        whole = isinstance(low, int)
        if not isinstance(value, int if whole else (int, float)) or not low <= value <= high:
            _refuse(setting, f"a {'whole ' if whole else ''}number from {low:,} to {high:,}, not {_shown(value)}")

    return validate


def _address(_settings: Any, setting: "attrs.Attribute[Any]", value: str) -> None:
    if value and not re.fullmatch(r"([^\s/:@]+|\[[0-9a-fA-F:.]+\]):\d{1,5}", value):
        _refuse(setting, f"host:port, such as 127.0.0.1:8085, not {_shown(value)}")


def _project(_settings: Any, setting: "attrs.Attribute[Any]", value: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9.:-]+", value):
        _refuse(setting, f"a project id, not {_shown(value)}")


def _host_names(_settings: Any, setting: "attrs.Attribute[Any]", value: Collection[str]) -> None:
    for host in value:
        if not re.fullmatch(r"(?=.*[a-z])[a-z0-9._-]+", host, re.ASCII | re.IGNORECASE) and not _network(host):
            _refuse(
                setting,
                "host names, addresses or networks without a port, separated by commas, such as "
                f"pulsecart,172.16.0.0/12, not {_shown(host)}",
            )


def _number(text: str) -> int | float | str:
    """Read a number; anything else is left for the validator to reject, numbers with too many digits included."""
    if not re.fullmatch(r"-?\d{1,20}(\.\d{1,20})?", text, re.ASCII):
        return text
    return float(text) if "." in text else int(text)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _ordering(text: str) -> dict[str, str]:
    return {topic: choice for topic, _, choice in (part.partition("=") for part in _names(text))}


def _is_ordering(_settings: Any, setting: "attrs.Attribute[Any]", value: Mapping[str, str]) -> None:
    for topic, choice in value.items():
        if not re.fullmatch(r"user|none|shards:[1-9]\d{0,3}", choice, re.ASCII):
            _refuse(
                setting,
                "topic=user, topic=none or topic=shards:N with N from 1 to 9,999, separated by commas, "
                f"not {_shown(f'{topic}={choice}')}",
            )


def _batching(text: str) -> dict[str, Batching] | str:
    """Read `topic=messages:bytes:milliseconds,…`; anything else is left for the validator to reject."""
    found = {}
    for part in _names(text):
        match = re.fullmatch(r"([^=]+)=(\d{1,20}):(\d{1,20}):(\d{1,20})", part, re.ASCII)
        if not match:
            return text
        topic, messages, size, milliseconds = match[1], int(match[2]), int(match[3]), int(match[4])
        try:
            found[topic] = Batching(max_messages=messages, max_bytes=size, max_latency=milliseconds / 1000)
        except ValueError:
            return text
    return found


def _has_trace_id(_settings: Any, setting: "attrs.Attribute[Any]", value: str) -> None:
    if value and not re.fullmatch(r"https?://([^{}]*\{trace_id\})+[^{}]*", value):
        _refuse(
            setting,
            f"a URL with {{trace_id}} in it, such as http://localhost:16686/trace/{{trace_id}}, not {_shown(value)}",
        )


def _is_batching(_settings: Any, setting: "attrs.Attribute[Any]", value: Any) -> None:
    if not isinstance(value, Mapping):
        _refuse(
            setting,
            "topic=messages:bytes:milliseconds, separated by commas, such as my.topic=100:1048576:50, with at most "
            f"1,000 messages, 10,000,000 bytes and 10,000 milliseconds, not {_shown(value)}",
        )


def _setting(variable: str, help: str, *, shown: str = "", **options: Any) -> Any:
    """Define a setting: its variable, and its help text. `shown` is its default in words; options are attrs' own."""
    parse = options.pop("parse", str)
    return field(
        metadata={"variable": variable, "help": help, "parse": parse, "default": shown or str(options["default"])},
        **options,
    )


@frozen(kw_only=True)
class Settings:
    """What the service needs to know. Raises `SettingsError` where it cannot work."""

    transport: str = field(
        validator=_one_of(*TRANSPORTS),
        metadata={
            "variable": "PULSECART_TRANSPORT",
            "help": "Where events go: memory, emulator or pubsub.",
            "parse": str,
            "default": "in development, emulator if PUBSUB_EMULATOR_HOST is set, else memory on a developer's machine",
        },
    )
    environment: str = _setting(
        "ENVIRONMENT", "Where it runs: dev, staging or prod.", default="dev", validator=_one_of(*ENVIRONMENTS)
    )
    host: str = _setting("PULSECART_HOST", "The address to listen on.", default="127.0.0.1")
    port: int = _setting(
        "PORT", "The port to listen on; 0 takes a free one.", default=8000, parse=_number, validator=_between(0, 65535)
    )
    workers: int = _setting(
        "PULSECART_WORKERS", "How many processes serve.", default=1, parse=_number, validator=_between(1, 64)
    )
    events: tuple[str, ...] = _setting(
        "PULSECART_EVENTS",
        "Modules with event classes of your own, separated by commas.",
        default=(),
        parse=_names,
        shown="none",
    )
    project: str = _setting(
        "GCP_PROJECT_ID", "The Google Cloud project of the topics.", default=_DEV_PROJECT, validator=_project
    )
    emulator_host: str = _setting(
        "PUBSUB_EMULATOR_HOST",
        "Where the emulator listens, as host:port.",
        default="",
        validator=_address,
        shown="none",
    )
    endpoint: str = _setting(
        "PULSECART_ENDPOINT",
        "Pub/Sub's endpoint as host:port; name a region's for order, such as us-central1-pubsub.googleapis.com:443.",
        default="pubsub.googleapis.com:443",
        validator=_address,
    )
    publish_deadline: float = _setting(
        "PULSECART_PUBLISH_DEADLINE",
        "Seconds from the end of a request's body to the broker's confirmation, before the answer is 503.",
        default=10.0,
        parse=_number,
        validator=_between(0.1, 600.0),
    )
    max_body_bytes: int = _setting(
        "PULSECART_MAX_BODY_BYTES",
        "The largest request body, in bytes; at most Pub/Sub's 10,000,000.",
        default=1_048_576,
        parse=_number,
        validator=_between(1, MAX_MESSAGE_BYTES),
    )
    body_timeout: float = _setting(
        "PULSECART_BODY_TIMEOUT",
        "Seconds that a request body may take to arrive, before the answer is 408.",
        default=10.0,
        parse=_number,
        validator=_between(0.1, 600.0),
    )

    drain_delay: float = _setting(
        "PULSECART_DRAIN_DELAY",
        "Seconds to go on taking events after SIGTERM, with /readyz at 503; 5 is good on Kubernetes.",
        default=0.0,
        parse=_number,
        validator=_between(0.0, 300.0),
    )
    max_messages: int = _setting(
        "PULSECART_MAX_MESSAGES",
        "Events in flight in one process; with more the answer is 503.",
        default=10_000,
        parse=_number,
        validator=_between(1, 1_000_000),
    )
    max_bytes: int = _setting(
        "PULSECART_MAX_BYTES",
        "Bytes of memory for events in one process, copies included; with more the answer is 503. Half is for bodies "
        "that are arriving, half for events that wait for the broker.",
        default=100_000_000,
        parse=_number,
        validator=_between(MAX_MESSAGE_BYTES, 100_000_000_000),
    )
    max_connections: int = _setting(
        "PULSECART_MAX_CONNECTIONS",
        "Connections of one process. With more, an idle one is closed, or else the new one is answered 503.",
        default=5_000,
        parse=_number,
        validator=_between(1, 1_000_000),
    )
    connection_bytes: int = _setting(
        "PULSECART_CONNECTION_BYTES",
        "Bytes of its body that each connection may hold even when the bytes of --max-bytes are taken.",
        default=16_384,
        parse=_number,
        validator=_between(0, MAX_MESSAGE_BYTES),
    )
    ordering: Mapping[str, str] = _setting(
        "PULSECART_ORDERING",
        "What is delivered in order, by topic: topic=user, topic=shards:8 or topic=none, separated by commas.",
        default={},
        parse=_ordering,
        validator=_is_ordering,
        shown="user for every topic",
    )
    log_level: str = _setting(
        "PULSECART_LOG_LEVEL",
        "Log lines of this level and above: debug, info (a line for each event), warning or error.",
        default="info",
        validator=_one_of("debug", "info", "warning", "error"),
    )
    personal_data: str = _setting(
        "PULSECART_PERSONAL_DATA",
        "Whether ordering keys may stand in spans, and messages of defects in logs: true or false.",
        default="false",
        validator=_one_of("true", "false"),
    )
    trace_url: str = _setting(
        "PULSECART_TRACE_URL",
        "Where pulsecart trace finds a trace, with {trace_id} in its place.",
        default="",
        validator=_has_trace_id,
        shown="none",
    )
    dev_hosts: tuple[str, ...] = _setting(
        "PULSECART_DEV_HOSTS",
        "Host names, addresses and networks that may use /dev/messages, besides loopback, separated by commas.",
        default=(),
        parse=_names,
        validator=_host_names,
        shown="none",
    )
    batching: Mapping[str, Batching] = _setting(
        "PULSECART_BATCHING",
        "How events share requests, by topic: topic=messages:bytes:milliseconds, separated by commas.",
        default={USER_ACTIONS: Batching(max_latency=0.05)},
        parse=_batching,
        validator=_is_batching,
        shown=f"{USER_ACTIONS}=100:1048576:50, others 100:1048576:0",
    )

    def __attrs_post_init__(self) -> None:
        if problems := self._contradictions():
            raise SettingsError(problems)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self:
        """Read the settings. An empty variable counts as not set.

        Raises `SettingsError` with everything that is wrong.
        """
        environment = {
            name: text for name, text in environment.items() if not _SERVICE_LINK.fullmatch(f"{name}={text}")
        }
        values, problems = _read(environment)
        problems += _unknown_variables(environment)
        if "transport" not in values and not environment.get("PULSECART_TRANSPORT"):
            try:
                values["transport"] = _implied_transport(values, environment)
            except SettingsError as error:
                problems += error.problems
        if "transport" in values:  # without it nobody can tell what contradicts what
            try:
                settings = cls(**values)
            except SettingsError as error:
                problems += error.problems
        if problems:
            raise SettingsError(problems)
        return settings

    @property
    def limits(self) -> Limits:
        """The limits of the transport.

        A topic ordered by user does not wait for others: under one key a user it would gather nothing.
        """
        batching = {
            topic: batching if self.ordering.get(topic, "user") != "user" else evolve(batching, max_latency=0)
            for topic, batching in self.batching.items()
        }
        return Limits(
            deadline=self.publish_deadline,
            max_messages=self.max_messages,
            max_bytes=self.max_bytes // 2,  # the other half is for bodies that are still arriving
            batching=batching,
        )

    @property
    def orderings(self) -> dict[str, Ordering]:
        """The ordering of each topic that has one of its own."""
        fixed = {"user": by_user, "none": unordered}
        return {
            topic: fixed.get(choice) or in_shards(int(choice.removeprefix("shards:")))
            for topic, choice in self.ordering.items()
        }

    def may_use_dev(self, host: str) -> bool:
        """Say whether a host, by name or address, may use the `/dev` routes: loopback and `dev_hosts` may."""
        if _is_loopback(host) or host.lower() in map(str.lower, self.dev_hosts):
            return True
        address = _address_of(host)
        return address is not None and any(address in network for network in map(_network, self.dev_hosts) if network)

    def require_topics(self, known: Collection[str]) -> None:
        """Check that the settings by topic name topics that exist. Raises `SettingsError`."""
        problems = []
        for variable, topics in (("PULSECART_ORDERING", self.ordering), ("PULSECART_BATCHING", self.batching)):
            for topic in topics:
                if topic not in known and topic != USER_ACTIONS:
                    near = get_close_matches(topic, known, n=1)
                    hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
                    problems.append(f"{variable}: no event type has the topic {topic!r}; {hint}")
        if problems:
            raise SettingsError(problems)

    def _contradictions(self) -> list[str]:
        problems = []
        if self.transport == "memory" and self.environment != "dev":
            problems.append(
                f"the memory transport keeps nothing and is for development, but ENVIRONMENT is {self.environment}: "
                "set PULSECART_TRANSPORT=pubsub"
            )
        if self.transport == "memory" and self.workers > 1:
            problems.append(
                f"{self.workers} workers cannot share the memory transport, each would keep messages of its own: "
                "set PULSECART_WORKERS=1, or another transport"
            )
        if self.transport == "emulator" and not self.emulator_host:
            problems.append(
                "the emulator transport needs to know where the emulator is: set PUBSUB_EMULATOR_HOST "
                "(--emulator-host), such as 127.0.0.1:8085"
            )
        try:
            _ = self.limits
        except ValueError as error:
            problems.append(f"PULSECART_BATCHING and PULSECART_PUBLISH_DEADLINE: {error}")
        if self.transport == "pubsub":
            if self.project == _DEV_PROJECT:
                problems.append("the pubsub transport needs to know the project of the topics: set GCP_PROJECT_ID")
            if self.emulator_host:
                problems.append(
                    f"PUBSUB_EMULATOR_HOST is {self.emulator_host}, but the transport is real Pub/Sub: "
                    "unset it, or set PULSECART_TRANSPORT=emulator"
                )
        return problems


def load_settings() -> Settings:
    """Read `.env` of the working directory into the environment, where it overrides nothing, then the settings.

    Raises `SettingsError`.
    """
    _load_env_file()
    return Settings.from_environment(os.environ)


def load_setting(name: str) -> Any:
    """Read one setting likewise, whatever the others are. Raises `SettingsError`."""
    _load_env_file()
    setting = attrs.fields_dict(Settings)[name]
    variable = setting.metadata["variable"]
    values, problems = _read({variable: os.environ.get(variable, "")})
    if problems:
        raise SettingsError(problems)
    return values.get(name, setting.default)


def _load_env_file() -> None:
    # The directory is named, since python-dotenv would otherwise look in all its parents too.
    file = Path.cwd() / ".env"
    try:
        text = file.read_text("utf-8-sig")
    except (FileNotFoundError, IsADirectoryError):
        return
    except UnicodeDecodeError as error:
        raise SettingsError([f"{file} is not UTF-8: {error}"]) from None
    except OSError as error:
        raise SettingsError([f"{file} cannot be read: {error.strerror}"]) from None
    problems = []
    for binding in parse_stream(StringIO(text)):
        statement = binding.original.string
        if binding.error or "\0" in statement:
            line = binding.original.line + statement[: -len(statement.lstrip())].count("\n")  # blank ones come first
            problems.append(f"{file}, line {line}: must be NAME=value")  # what it is may be a secret
    if problems:
        raise SettingsError(problems)
    load_dotenv(stream=StringIO(text), override=False)


_NOT_IMPLIED = (
    "PULSECART_TRANSPORT is not set, and its default, memory, which keeps nothing, holds only in development on a "
    "loopback address outside a container: set it"
)

_EMULATOR_NOT_IMPLIED = (
    "PUBSUB_EMULATOR_HOST is set, but ENVIRONMENT is {} and PULSECART_TRANSPORT is not set: unset "
    "PUBSUB_EMULATOR_HOST, or set PULSECART_TRANSPORT=emulator if events are meant for an emulator"
)


def _read(environment: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    """Return the settings that are set and sound, by name, and the problems of the others."""
    values: dict[str, Any] = {}
    problems: list[str] = []
    for setting in attrs.fields(Settings):
        if text := environment.get(setting.metadata["variable"]):
            value = setting.metadata["parse"](text)
            try:
                if setting.validator:
                    setting.validator(None, setting, value)
            except SettingsError as error:
                problems += error.problems
            else:
                values[setting.name] = value
    return values, problems


def _implied_transport(values: Mapping[str, Any], environment: Mapping[str, str]) -> str:
    """Return the transport where none is set. Raises `SettingsError` where events could be lost."""
    runs_in = values.get("environment", "dev")
    if values.get("emulator_host"):
        if runs_in == "dev":
            return "emulator"
        raise SettingsError([_EMULATOR_NOT_IMPLIED.format(runs_in)])
    in_container = any(environment.get(mark) for mark in _CONTAINER_MARKS)
    if runs_in == "dev" and not in_container and _is_loopback(values.get("host", "127.0.0.1")):
        return "memory"
    raise SettingsError([_NOT_IMPLIED])


def _address_of(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None


def _is_loopback(host: str) -> bool:
    address = _address_of(host)
    return host.lower() == "localhost" if address is None else address.is_loopback


def _unknown_variables(environment: Mapping[str, str]) -> list[str]:
    variables = [setting.metadata["variable"] for setting in attrs.fields(Settings)]
    likely = {variable.removeprefix("PULSECART_"): variable for variable in variables}
    likely |= {setting.name.upper(): setting.metadata["variable"] for setting in attrs.fields(Settings)}
    problems = []
    for variable in environment:
        if variable.startswith("PULSECART_") and variable not in variables:
            # The prefix, which all have in common, would make any two of them alike.
            near = get_close_matches(variable.removeprefix("PULSECART_"), likely, n=1)
            hint = f"; did you mean {likely[near[0]]}?" if near else ""
            problems.append(f"{variable} is not a setting{hint}")
    return problems
