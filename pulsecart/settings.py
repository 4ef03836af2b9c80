"""The settings: read once, from the environment and a `.env` file in the working directory."""

import ipaddress
import os
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Self

import attrs
from attrs import field, frozen
from dotenv import load_dotenv

from pulsecart.errors import SettingsError
from pulsecart.message import MAX_MESSAGE_BYTES

__all__ = ["ENVIRONMENTS", "TRANSPORTS", "Settings", "load_settings"]

TRANSPORTS = ("memory", "emulator", "pubsub")
ENVIRONMENTS = ("dev", "staging", "prod")

_CONTAINER_MARKS = ("K_SERVICE", "KUBERNETES_SERVICE_HOST")


def _choice(*allowed: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in allowed:
            near = get_close_matches(text, allowed, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"must be {', '.join(allowed[:-1])} or {allowed[-1]}, not {text!r}{hint}")
        return text

    return parse


def _number(kind: type[int] | type[float], low: float, high: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            number = kind(text)
        except ValueError:
            number = None
        if number is None or not low <= number <= high:
            what = "a whole number" if kind is int else "a number"
            raise ValueError(f"must be {what} from {low:,} to {high:,}, not {text!r}")
        return number

    return parse


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _setting(variable: str, help: str, *, default: Any, parse: Callable[[str], Any] = str, shown: str = "") -> Any:
    return field(
        default=default,
        metadata={"variable": variable, "help": help, "parse": parse, "default": shown or str(default)},
    )


@frozen(kw_only=True)
class Settings:
    """What the service needs to know. Raises `SettingsError` where settings contradict each other."""

    transport: str = field(
        metadata={
            "variable": "PULSECART_TRANSPORT",
            "help": "Where events go: memory, emulator or pubsub.",
            "parse": _choice(*TRANSPORTS),
            "default": "emulator if PUBSUB_EMULATOR_HOST is set, else memory on a developer's machine",
        }
    )
    environment: str = _setting(
        "ENVIRONMENT", "Where it runs: dev, staging or prod.", default="dev", parse=_choice(*ENVIRONMENTS)
    )
    host: str = _setting("PULSECART_HOST", "The address to listen on.", default="127.0.0.1")
    port: int = _setting(
        "PORT", "The port to listen on; 0 takes a free one.", default=8000, parse=_number(int, 0, 65535)
    )
    workers: int = _setting("PULSECART_WORKERS", "How many processes serve.", default=1, parse=_number(int, 1, 64))
    events: tuple[str, ...] = _setting(
        "PULSECART_EVENTS",
        "Modules with event classes of your own, separated by commas.",
        default=(),
        parse=_names,
        shown="none",
    )
    project: str = _setting("GCP_PROJECT_ID", "The Google Cloud project of the topics.", default="pulsecart-dev")
    emulator_host: str = _setting(
        "PUBSUB_EMULATOR_HOST", "Where the emulator listens, as host:port.", default="", shown="none"
    )
    publish_deadline: float = _setting(
        "PULSECART_PUBLISH_DEADLINE",
        "Seconds from an event's arrival to the broker's confirmation, before the answer is 503.",
        default=10.0,
        parse=_number(float, 0.1, 600),
    )
    max_body_bytes: int = _setting(
        "PULSECART_MAX_BODY_BYTES",
        "The largest request body, in bytes; at most Pub/Sub's 10,000,000.",
        default=1_048_576,
        parse=_number(int, 1, MAX_MESSAGE_BYTES),
    )
    body_timeout: float = _setting(
        "PULSECART_BODY_TIMEOUT",
        "Seconds that a request body may take to arrive, before the answer is 408.",
        default=10.0,
        parse=_number(float, 0.1, 600),
    )

    def __attrs_post_init__(self) -> None:
        if problems := self._contradictions():
            raise SettingsError(problems)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self:
        """Read the settings. An empty variable counts as not set.

        Raises `SettingsError` with everything that is wrong.
        """
        problems = _unknown_variables(environment)
        values: dict[str, Any] = {}
        for name, setting in attrs.fields_dict(cls).items():
            text = environment.get(setting.metadata["variable"], "")
            if not text:
                continue
            try:
                values[name] = setting.metadata["parse"](text)
            except ValueError as error:
                problems.append(f"{setting.metadata['variable']} {error}")
        if "transport" not in values:
            # Where the choice was misspelt that is the problem to report, and not what follows from it.
            chosen = environment.get("PULSECART_TRANSPORT") or _implied_transport(values, environment)
            if chosen is None:
                problems.append(_NOT_IMPLIED)
            values["transport"] = chosen if chosen in TRANSPORTS else ""
        try:
            settings = cls(**values)
        except SettingsError as error:
            problems.extend(error.problems)
        if problems:
            raise SettingsError(problems)
        return settings

    @property
    def creates_topics(self) -> bool:
        """Whether topics that are missing are created: on the emulator, in development."""
        return self.transport == "emulator" and self.environment == "dev"

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
        if self.transport == "pubsub":
            problems.append("the pubsub transport is not part of this version: use memory or emulator")
        if self.transport == "pubsub" and self.emulator_host:
            problems.append(
                f"PUBSUB_EMULATOR_HOST is {self.emulator_host}, but the transport is real Pub/Sub: "
                "unset it, or set PULSECART_TRANSPORT=emulator"
            )
        return problems


def load_settings() -> Settings:
    """Read `.env` of the working directory into the environment, where it overrides nothing, then the settings.

    Raises `SettingsError`.
    """
    # The directory is named, since python-dotenv would otherwise look in all its parents too.
    load_dotenv(Path.cwd() / ".env", override=False)
    return Settings.from_environment(os.environ)


_NOT_IMPLIED = (
    "PULSECART_TRANSPORT is not set, and memory, which keeps nothing, is taken by itself only in development on a "
    "loopback address outside a container: set it to memory, emulator or pubsub"
)


def _implied_transport(values: Mapping[str, Any], environment: Mapping[str, str]) -> str | None:
    if values.get("emulator_host"):
        return "emulator"
    in_container = any(environment.get(mark) for mark in _CONTAINER_MARKS)
    develops = values.get("environment", "dev") == "dev"
    return "memory" if develops and not in_container and _is_loopback(values.get("host", "127.0.0.1")) else None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _unknown_variables(environment: Mapping[str, str]) -> list[str]:
    known = [setting.metadata["variable"] for setting in attrs.fields(Settings)]
    problems = []
    for variable in environment:
        if variable.startswith("PULSECART_") and variable not in known:
            near = get_close_matches(variable, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            problems.append(f"{variable} is not a setting{hint}")
    return problems
