"""What a change of event classes means for those who sent events before it, and for those who read events after it.

The schemas of an event type are compared field by field. *Producers* send bodies that were valid before: each must be
valid still. *Consumers* read what is published now with the classes of before: each value must have a form that was
valid then. A message has every field of its class, defaults included, so consumers miss only fields that are removed.
Fields that are added are ignored by tolerant consumers, and break strict ones.

It knows the JSON Schema that `pulsecart.events.schema` makes, not all of it. Rules that are only described, such as
validators that are functions, are not compared.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from attrs import frozen

from pulsecart.events.faults import below
from pulsecart.events.schema import json_line

__all__ = ["CONSUMERS", "PRODUCERS", "STRICT_CONSUMERS", "Change", "compare"]

Schema = Mapping[str, Any]
Excess = Iterator[tuple[str, str]]
"""Where, as a JSON pointer in which `*` stands for each member or item, and why."""

PRODUCERS, CONSUMERS, STRICT_CONSUMERS = "producers", "consumers", "strict consumers"


@frozen
class Change:
    """A difference between two catalogs, and whom it breaks."""

    event_type: str
    pointer: str
    """The place in the body; empty for the event type as a whole."""

    reason: str
    breaks: frozenset[str]
    """Of `PRODUCERS`, `CONSUMERS` and `STRICT_CONSUMERS`; what breaks tolerant consumers breaks strict ones too."""


def compare(before: Mapping[str, Schema], now: Mapping[str, Schema]) -> list[Change]:
    """Return the changes between two catalogs, given as the schemas of bodies by event type."""
    found: dict[tuple[str, str, str], set[str]] = {}
    for name in before.keys() | now.keys():
        for pointer, reason, breaks in _compare_type(before.get(name), now.get(name)):
            found.setdefault((name, pointer, reason), set()).update(breaks)
    return [Change(*place, frozenset(breaks)) for place, breaks in sorted(found.items())]


def _compare_type(before: Schema | None, now: Schema | None) -> Iterator[tuple[str, str, set[str]]]:
    if now is None:
        yield "", "is removed: its events are rejected", {PRODUCERS}
    elif before is None:
        yield "", f"is new, on the topic {now.get('x-topic')}", set()
    else:
        if before.get("x-topic") != now.get("x-topic"):
            yield "", f"moves from the topic {before.get('x-topic')} to {now.get('x-topic')}", {CONSUMERS}
        for pointer, reason in _Comparison(before, now, reading=False).excess(before, now):
            yield pointer, reason, {PRODUCERS}
        for pointer, reason in _Comparison(now, before, reading=True).excess(now, before):
            yield pointer, reason, {STRICT_CONSUMERS if reason == _ADDED else CONSUMERS}


_ADDED, _REMOVED = "is added", "is removed"
_LOWER = {
    "minimum": "at least {}",
    "exclusiveMinimum": "more than {}",
    "minLength": "at least {} characters",
    "minItems": "at least {} items",
    "minProperties": "at least {} members",
}
_UPPER = {
    "maximum": "at most {}",
    "exclusiveMaximum": "less than {}",
    "maxLength": "at most {} characters",
    "maxItems": "at most {} items",
    "maxProperties": "at most {} members",
}
_WITHIN = {"number": ["integer", "number"]}
_RULES = {"type", "enum", "const", "anyOf", "oneOf", "allOf", "$ref"}


class _Comparison:
    """Finds values of a document's schema that another's does not allow.

    When `reading`, they are values of now, judged by the schema of before; otherwise it is the other way round.
    """

    def __init__(self, given: Schema, allowed: Schema, *, reading: bool) -> None:
        self._given = given.get("$defs", {})
        self._allowed = allowed.get("$defs", {})
        self._reading = reading
        self._within: list[tuple[int, int]] = []

    def excess(self, given: Schema, allowed: Schema, pointer: str = "") -> Excess:
        """Return why values of a schema may not be allowed by another."""
        place = (id(given), id(allowed))
        given, allowed = _resolved(given, self._given), _resolved(allowed, self._allowed)
        if not _RULES & allowed.keys() or place in self._within:
            return  # anything is allowed, or a class contains itself
        self._within.append(place)
        if values := _values(given):
            for value in values:
                if not self._allows(allowed, value):
                    yield pointer, f"{'allows' if self._reading else 'no longer allows'} {json_line(value)}"
        elif members := _members(given):
            for member in members:
                yield from self.excess(member, allowed, pointer)
        elif candidates := _members(allowed):
            yield from min((list(self.excess(given, each, pointer)) for each in candidates), key=len)
        else:
            yield from self._typed(given, allowed, pointer)
        self._within.pop()

    def _typed(self, given: Schema, allowed: Schema, pointer: str) -> Excess:
        if values := _values(allowed):
            yield pointer, self._changed(_kind(given), f"one of {', '.join(map(json_line, values))}")
        elif given.get("type") not in _WITHIN.get(allowed["type"], [allowed["type"]]):
            yield pointer, self._changed(_kind(given), _kind(allowed))
        else:
            yield from self._rules(given, allowed, pointer)
            if allowed["type"] == "array":
                yield from self.excess(given["items"], allowed["items"], f"{pointer}/*")
            elif allowed["type"] == "object":
                yield from self._object(given, allowed, pointer)

    def _rules(self, given: Schema, allowed: Schema, pointer: str) -> Excess:
        """Compare what restricts a scalar, or the size of a container."""
        if allowed.get("format", "double") not in ("double", given.get("format")):
            yield pointer, self._changed(_kind(given), _kind(allowed))
            return
        for keywords, sign, none in ((_LOWER, 1, "without a lower bound"), (_UPPER, -1, "without an upper bound")):
            (bound, text), (allowed_bound, allowed_text) = (
                _strictest(schema, keywords, sign) or ((), none) for schema in (given, allowed)
            )
            if allowed_bound > bound:
                yield pointer, self._changed(text, allowed_text)
        for rule in allowed.get("allOf", ()):
            if rule not in given.get("allOf", ()):
                yield pointer, self._changed("without this pattern", f"restricted to the pattern {rule['pattern']}")

    def _object(self, given: Schema, allowed: Schema, pointer: str) -> Excess:
        members, known = given.get("properties", {}), allowed.get("properties", {})
        others, unknown = given.get("additionalProperties", True), allowed.get("additionalProperties", True)
        for name, member in members.items():
            place = below(pointer, name)
            if name in known:
                yield from self.excess(member, known[name], place)
            elif unknown is False:
                yield place, _ADDED if self._reading else _REMOVED
            else:
                yield from self.excess(member, _schema(unknown), place)
        for name in set(allowed.get("required", ())) - set(given.get("required", ())):
            if name not in members:
                yield below(pointer, name), _REMOVED if self._reading else "is added as a required field"
            elif not self._reading:  # a message has every field, required or not
                yield below(pointer, name), "is required now"
        if others is not False and unknown is False:
            yield pointer, self._changed("an object with any members", "an object with the fields of a class")
        elif others is not False:
            for name in known.keys() - members.keys():
                yield from self.excess(_schema(others), known[name], below(pointer, name))
            yield from self.excess(_schema(others), _schema(unknown), f"{pointer}/*")

    def _allows(self, allowed: Schema, value: Any) -> bool:
        allowed = _resolved(allowed, self._allowed)
        if members := _members(allowed):
            return any(self._allows(member, value) for member in members)
        if values := _values(allowed):
            return any(type(each) is type(value) and each == value for each in values)
        return not list(self.excess(_schema_of(value), allowed))

    def _changed(self, given: str, allowed: str) -> str:
        before, now = (allowed, given) if self._reading else (given, allowed)
        return f"was {before}, is {now}"


def _resolved(schema: Schema, definitions: Schema) -> Schema:
    """Return a schema without a reference at its top; the same object for the same reference."""
    if "$ref" in schema:
        found: Schema = definitions[schema["$ref"].removeprefix("#/$defs/")]
        return found
    if "$ref" in schema.get("allOf", ({},))[0]:
        # What stands next to it is documentation, or the required field of a union.
        found = _resolved(schema["allOf"][0], definitions)
        more = set(schema.get("required", ())) - set(found["required"])
        return {**found, "required": [*found["required"], *more]} if more else found
    return schema


def _values(schema: Schema) -> list[Any]:
    return [schema["const"]] if "const" in schema else schema.get("enum", [])


def _members(schema: Schema) -> list[Schema]:
    return schema.get("anyOf") or schema.get("oneOf") or []


def _schema(others: Any) -> Schema:
    return {} if others is True else others


def _schema_of(value: Any) -> Schema:
    """Return a schema of strings or numbers like a value, with bounds at the value."""
    if isinstance(value, str):
        return {"type": "string", "minLength": len(value), "maxLength": len(value)}
    if isinstance(value, bool) or value is None:
        return {"type": "null" if value is None else "boolean"}
    return {"type": "integer" if isinstance(value, int) else "number", "minimum": value, "maximum": value}


def _kind(schema: Schema) -> str:
    return str(schema.get("format") or schema.get("type") or "any value").replace("double", "number")


def _strictest(schema: Schema, keywords: Mapping[str, str], sign: int) -> tuple[tuple[Any, ...], str] | None:
    """Return the strictest bound, as a tuple that is greater the stricter it is, and in words."""
    bounds = [
        ((sign * schema[keyword], keyword.startswith("exclusive")), text.format(schema[keyword]))
        for keyword, text in keywords.items()
        if keyword in schema and not (schema[keyword] == 0 and keyword.startswith("min") and keyword != "minimum")
    ]
    return max(bounds, default=None)
