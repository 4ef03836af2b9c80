"""The catalog: which event types there are, and the class of each."""

import importlib
from collections.abc import Collection, Iterable, Iterator
from importlib.metadata import entry_points
from itertools import islice
from typing import Any

import attrs

from pulsecart.errors import DefinitionError, Fault, InvalidEvent, MissingEventType, UnknownEventType
from pulsecart.events.base import Event, declared, describe, id_of
from pulsecart.events.codec import decode
from pulsecart.events.faults import MAX_FAULTS, below, shortened
from pulsecart.events.schema import check
from pulsecart.events.structure import check_defaults, faults, known, prepare, structure
from pulsecart.events.write import prepare_writing
from pulsecart.suggest import closest, nearest

__all__ = ["ENTRY_POINTS", "Catalog", "load_catalog"]

ENTRY_POINTS = "pulsecart.events"
"""The entry-point group in which a package names its modules of event classes."""


class Catalog:
    """Event classes by their event type. Immutable.

    Raises `DefinitionError`, naming both sides, if two classes claim one event type.
    """

    def __init__(self, classes: Iterable[type[Event]]) -> None:
        self._classes: dict[str, type[Event]] = {}
        for cls in classes:
            if "event_type" not in cls.__dict__:
                raise DefinitionError(f"{_name(cls)} is not declared: put @event('…', topic='…') above it")
            other = self._classes.setdefault(cls.event_type, cls)
            if other is not cls:
                raise DefinitionError(
                    f"two classes claim the event type {cls.event_type!r}: {_name(other)} and {_name(cls)}"
                )
            prepare(cls)
            prepare_writing(cls)
            check_defaults(cls)
            check(cls)  # like those above, so that errors occur at startup

    def __iter__(self) -> Iterator[type[Event]]:
        return iter(self._classes.values())

    @property
    def event_types(self) -> Collection[str]:
        """All event types."""
        return self._classes.keys()

    @property
    def topics(self) -> list[str]:
        """The topics of all event types, sorted."""
        return sorted({cls.topic for cls in self})

    def structure(self, document: dict[str, Any]) -> Event:
        """Make an event of a decoded JSON object.

        Raises `MissingEventType`, `UnknownEventType` or `InvalidEvent`.
        """
        fields = document.copy()
        event_type = fields.pop("event_type", None)
        if type(event_type) is str and event_type in self._classes:
            return structure(fields, self._classes[event_type])
        known = f"known are {', '.join(self._classes)}"
        # Without a class, only the fields that every event has can be judged.
        common = faults(fields, Event, unknown=False)
        event_id = id_of(document)
        if "event_type" not in document:
            wrong = Fault("/event_type", "missing", f"is required, but missing; {known}")
            others = self._misspelt(fields) or common
            raise MissingEventType("The event has no event_type.", [wrong, *others], event_id=event_id)
        if type(event_type) is not str:
            wrong = Fault("/event_type", "wrong-type", f"expected a string, got {describe(event_type)}")
            raise InvalidEvent("The event_type is not a string.", [wrong, *common], event_id=event_id)
        if not event_type:
            wrong = Fault("/event_type", "empty", f"is empty; {known}")
            raise InvalidEvent("The event_type is empty.", [wrong, *common], event_id=event_id)
        hint = nearest(event_type, self._classes) or f"; {known}"
        wrong = Fault("/event_type", "unknown", f"{shortened(event_type)!r} is not in the catalog{hint}")
        raise UnknownEventType(f"The event_type is not in the catalog{hint}", [wrong, *common], event_id=event_id)

    def read(self, data: bytes, tolerant: bool = False) -> Event:  # noqa: FBT001, FBT002 (read(data, tolerant=True))
        """Make an event of the data of a message: what a consumer receives becomes the event that was published.

        Numbers keep their exact value. A class with converters must accept what they return; what a class computes
        (`init=False`) is computed again. If `tolerant`, fields that the class does not have are ignored in every object
        that has a class, so that producers may add optional fields before consumers know them.

        Raises `MalformedBody`, `MissingEventType`, `UnknownEventType` or `InvalidEvent`.
        """
        document = dict(decode(data))
        event_type = document.get("event_type")
        if type(event_type) is str and event_type in self._classes:
            del document["event_type"]
            document = known(document, self._classes[event_type], tolerant=tolerant) | {"event_type": event_type}
        return self.structure(document)

    def _misspelt(self, fields: dict[str, Any]) -> list[Fault]:
        """Return what is wrong with fields of which one seems to be a misspelt `event_type`, if there is one."""
        own = (name for name in fields if name not in attrs.fields_dict(Event))
        name = closest("event_type", islice(own, MAX_FAULTS))
        if not name:
            return []
        if type(fields[name]) is str and fields[name] in self._classes:
            return faults(fields, self._classes[fields[name]])
        wrong = Fault(below("", name), "unknown", "is not a known field; did you mean 'event_type'?")
        return [wrong, *faults(fields, Event, unknown=False)]


_COMMERCE = "pulsecart.events.commerce"


def load_catalog(modules: Iterable[str] = (), *, commerce: bool = True) -> Catalog:
    """Make the catalog of the commerce events, the modules of installed entry points, and the given modules.

    A module contributes the classes declared in it and in its submodules, and those it imports by name. Without
    `commerce`, the built-in types are left out, also where a module imports them.
    Raises `DefinitionError` if a module cannot be imported or declares no class, if there is no class at all, and as
    `Catalog` does.
    """
    sources = {_COMMERCE: "built in"} if commerce else {}
    for entry_point in entry_points(group=ENTRY_POINTS):
        sources.setdefault(entry_point.value, f"entry point {entry_point.name!r} of {ENTRY_POINTS}")
    for module in modules:
        sources.setdefault(module, "PULSECART_EVENTS")
    found = [cls for module, source in sources.items() for cls in _classes_of(module, source)]
    catalog = Catalog(cls for cls in found if commerce or cls.__module__ != _COMMERCE)
    if not catalog.event_types:
        raise DefinitionError(
            f"there are no event types: without the built-in ones (PULSECART_COMMERCE_EVENTS=false), name modules with "
            f"event classes of your own in PULSECART_EVENTS or in the entry-point group {ENTRY_POINTS}"
        )
    return catalog


def _classes_of(name: str, source: str) -> list[type[Event]]:
    try:
        module = importlib.import_module(name)
    except DefinitionError as error:
        raise DefinitionError(f"the module {name!r} ({source}) does not work: {error}") from error
    except Exception as error:  # the module's own code can raise anything
        raise DefinitionError(
            f"the module {name!r} ({source}) does not import: {type(error).__name__}: {error}"
        ) from error
    imported = [value for value in vars(module).values() if isinstance(value, type)]
    for cls in imported:
        if issubclass(cls, Event) and cls.__module__ == name and "event_type" not in vars(cls) and not _is_base(cls):
            raise DefinitionError(f"{_name(cls)} is not declared: put @event('…', topic='…') above it")
    classes = [cls for cls in declared() if cls in imported or f"{cls.__module__}.".startswith(f"{name}.")]
    if not classes:
        raise DefinitionError(f"the module {name!r} ({source}) declares no event class; declare one with @event")
    return classes


def _is_base(cls: type[Event]) -> bool:
    return any(cls in other.__mro__[1:] for other in declared())


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
