"""The transports by name: those of the entry-point group `pulsecart.transports`, and factories as `module:name`.

A package adds a transport in its pyproject.toml:

    [project.entry-points."pulsecart.transports"]
    mine = "my_package:from_config"

The factory takes a `TransportConfig` and returns a transport that is not open. It may be called more than once, also
outside the event loop, so it opens nothing.
"""

import inspect
import re
from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType
from typing import Any, NoReturn, cast

from attrs import field, frozen

from pulsecart.errors import SettingsError
from pulsecart.limits import Limits
from pulsecart.ports import UNOBSERVED, Observer, Transport
from pulsecart.suggest import nearest

__all__ = ["BUILT_IN", "GROUP", "TransportConfig", "is_factory", "make_transport", "transport_names"]

GROUP = "pulsecart.transports"
"""The group of entry points."""

BUILT_IN = ("memory", "emulator", "pubsub")

_REQUIRED = ("publish", "check", "aclose", "__aenter__", "__aexit__")


def _read_only(options: Mapping[str, str]) -> Mapping[str, str]:
    return MappingProxyType(dict(options))


@frozen(kw_only=True)
class TransportConfig:
    """What the factory of a transport is given."""

    project: str = "pulsecart-dev"
    """The Google Cloud project; of use to others as a namespace."""

    environment: str = "dev"
    """`dev`, `staging` or `prod`."""

    limits: Limits = field(factory=Limits)
    """Deadline, messages and bytes in flight, and batches; for `KeyedQueues`."""

    options: Mapping[str, str] = field(factory=dict, converter=_read_only)
    """The options of the transport, from PULSECART_TRANSPORT_OPTIONS. Read-only."""

    observer: Observer = UNOBSERVED
    """Observes requests to the broker; for `KeyedQueues`."""

    settings: Any = None
    """All settings of the service (`pulsecart.serve.settings.Settings`), read-only; None without the service."""

    def allow_options(self, *known: str) -> None:
        """Check that there are no other options than these. Raises `SettingsError` with all that are unknown."""
        listed = f"; its options are {', '.join(known)}" if known else "; it has none"
        problems = [
            f"PULSECART_TRANSPORT_OPTIONS has {name!r}, which is not an option of the transport"
            f"{nearest(name, known) or listed}"
            for name in self.options
            if name not in known
        ]
        if problems:
            raise SettingsError(problems)


def transport_names() -> list[str]:
    """Return the names of the transports that are installed, first those of pulsecart."""
    return [*BUILT_IN, *sorted({entry.name for entry in entry_points(group=GROUP)} - set(BUILT_IN))]


def is_factory(name: str) -> bool:
    """Return whether a name is that of a factory: `package.module:factory`."""
    part = r"[^\W\d]\w*"
    return re.fullmatch(rf"{part}(\.{part})*:{part}(\.{part})*", name) is not None


def make_transport(name: str, config: TransportConfig) -> Transport:
    """Make the transport of this name, or with the factory `package.module:factory`. It is not open.

    Raises `SettingsError`, in which one sentence says what is wrong with the factory.
    """
    factory, label = _factory(name)
    if not callable(factory):
        _reject(label, f"is not callable, but of type {type(factory).__name__}")
    try:
        _require_one_argument(factory)
    except TypeError as error:
        _reject(label, f"must take one argument, a TransportConfig: {error}", error)
    try:
        transport = factory(config)
    except SettingsError as error:
        if name in BUILT_IN:
            raise
        raise SettingsError([f"{label}: {problem}" for problem in error.problems]) from error
    except Exception as error:  # noqa: BLE001 (it is the code of others)
        _reject(label, f"raised {_said(error)}", error)
    if inspect.isclass(transport):
        _reject(label, "returned a class, not an instance of it")
    if missing := [method for method in _REQUIRED if not callable(getattr(transport, method, None))]:
        if inspect.iscoroutine(transport):
            transport.close()
        _reject(label, f"returned a {type(transport).__name__}, which is no transport: it lacks {', '.join(missing)}")
    return cast("Transport", transport)


def _factory(name: str) -> tuple[Any, str]:
    """Return a factory, and what to call it in messages."""
    if is_factory(name):
        entry, label = EntryPoint(name, name, GROUP), f"the transport factory {name}"
    else:
        found = set(entry_points(group=GROUP, name=name))
        if not found:
            _reject(f"the transport {name!r}", f"is not installed{nearest(name, transport_names())}")
        if len(found) > 1:
            listed = " and ".join(sorted(entry.value for entry in found))
            _reject(f"the transport {name!r}", f"is defined more than once: {listed}; uninstall all but one")
        (entry,) = found
        label = f"the transport {name!r} ({entry.value})"
    try:
        factory: Any = import_module(entry.module)
    except Exception as error:  # noqa: BLE001 (a module can raise anything)
        _reject(label, f"cannot be imported: {_said(error)}", error)
    for part in entry.attr.split("."):
        if not hasattr(factory, part):
            _reject(label, f"does not exist: {entry.module} has no {entry.attr!r}{nearest(part, dir(factory))}")
        factory = getattr(factory, part)
    return factory, label


def _require_one_argument(factory: Any) -> None:
    try:
        signature = inspect.signature(factory)
    except ValueError:
        return  # a function in C may not say what it takes
    signature.bind(object())


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".removesuffix(": ")


def _reject(label: str, problem: str, cause: Exception | None = None) -> NoReturn:
    raise SettingsError([f"{label} {problem}"]) from cause
