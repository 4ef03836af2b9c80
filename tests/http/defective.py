"""An event class with a defect: its validator raises what no validator should."""

from typing import Any, NoReturn

from attrs import field, frozen

from pulsecart import Event, event


def fail(_event: Any, _field: Any, value: str) -> NoReturn:
    raise RuntimeError(f"secret inside: {value}")


@event("defective", topic="defective")
@frozen(kw_only=True)
class Defective(Event):
    code: str = field(validator=fail)
