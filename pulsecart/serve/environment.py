"""Reads the settings from environment variables, and from a file `.env` in the working directory."""

import os
import re
from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import Any

import attrs
from dotenv import load_dotenv
from dotenv.parser import parse_stream

from pulsecart.errors import SettingsError
from pulsecart.serve.platform import implied_host, implied_transport
from pulsecart.serve.settings import Settings
from pulsecart.suggest import closest

__all__ = ["load_setting", "load_settings", "read_settings"]

# What Kubernetes sets in every pod of a namespace with a Service named pulsecart or pulsecart-…
# https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables
_SERVICE_LINK = re.compile(
    r"PULSECART_([A-Z0-9_]+_)?"
    r"((SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)=.*"
    r"|PORT=(tcp|udp|sctp)://.*)"
)

_OF_OTHER_COMMANDS = ("PULSECART_KEY",)
"""Variables that are not settings of the service."""


def load_settings(*, transport_given: bool = False) -> Settings:
    """Read `.env` into the environment, where it overrides nothing, then read the settings.

    With `transport_given` the setting of the transport is ignored. Raises `SettingsError`.
    """
    _load_env_file()
    return read_settings(os.environ, transport_given=transport_given)


def load_setting(name: str) -> Any:
    """Read one setting in the same way, whatever the others are. Raises `SettingsError`."""
    _load_env_file()
    setting = attrs.fields_dict(Settings)[name]
    variable = setting.metadata["variable"]
    values, problems = _read({variable: os.environ.get(variable, "")})
    if problems:
        raise SettingsError(problems)
    return values.get(name, setting.default)


def read_settings(environment: Mapping[str, str], *, transport_given: bool = False) -> Settings:
    """Read the settings from these variables. An empty variable counts as not set.

    With `transport_given` that of the transport is ignored. Raises `SettingsError` with everything that is wrong.
    """
    environment = {name: text for name, text in environment.items() if not _SERVICE_LINK.fullmatch(f"{name}={text}")}
    if transport_given:
        environment.pop("PULSECART_TRANSPORT", None)
    values, problems = _read(environment)
    problems += _unknown_variables(environment)
    if not environment.get("PULSECART_HOST"):
        values["host"] = implied_host(environment)
    if transport_given:
        values["transport"] = ""
    elif "transport" not in values and not environment.get("PULSECART_TRANSPORT"):
        try:
            values["transport"] = implied_transport(values, environment)
        except SettingsError as error:
            problems += error.problems
            values["transport"] = ""  # so that everything else that is wrong is found
    if "transport" in values:  # contradictions can only be found with it
        try:
            settings = Settings(**values)
        except SettingsError as error:
            problems += error.problems
    if problems:
        raise SettingsError(problems)
    return settings


def _read(environment: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    """Return the settings that are set to a valid value, by name, and the problems of the others."""
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


def _unknown_variables(environment: Mapping[str, str]) -> list[str]:
    # Without the prefix, which makes any two names alike; and by the name of the option too.
    likely: dict[str, str] = {}
    for setting in attrs.fields(Settings):
        variable = setting.metadata["variable"]
        likely |= {variable.removeprefix("PULSECART_"): variable, setting.name.upper(): variable}
    problems = []
    for variable in environment:
        if variable.startswith("PULSECART_") and variable not in {*likely.values(), *_OF_OTHER_COMMANDS}:
            near = closest(variable.removeprefix("PULSECART_"), likely)
            problems.append(f"{variable} is not a setting" + (f"; did you mean {likely[near]}?" if near else ""))
    return problems


def _load_env_file() -> None:
    # Without a path, python-dotenv would also look in all parent directories.
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
            # A statement starts with the blank lines before it. It is not repeated, as it may contain a secret.
            line = binding.original.line + statement[: -len(statement.lstrip())].count("\n")
            problems.append(f"{file}, line {line}: must be NAME=value")
    if problems:
        raise SettingsError(problems)
    load_dotenv(stream=StringIO(text), override=False)
