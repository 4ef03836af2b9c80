"""Strategies for JSON that a schema of pulsecart accepts, and for JSON that is one change away from it."""

import copy
import re
from datetime import datetime
from math import ceil, floor
from typing import Any

from hypothesis import strategies as st
from jsonschema import Draft202012Validator

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(-5, 5) | st.text(max_size=3) | st.just("2026-01-31"),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)

_FORMATS = {
    "date": st.dates().map(str),
    "date-time": st.builds(
        lambda moment, offset: moment.isoformat() + offset,
        st.datetimes(datetime.fromisoformat("0002-01-01"), datetime.fromisoformat("9998-01-01")),
        st.sampled_from(["Z", "+02:00", "-23:59"]),
    ),
    "uuid": st.uuids().map(str) | st.uuids().map(lambda uid: str(uid).upper()),
}


def validator(schema: dict[str, Any]) -> Draft202012Validator:
    """Return a validator of a schema that checks formats too."""
    return Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)


def accepted(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Return values that a schema accepts."""
    return _Values(schema.get("$defs", {})).of(schema).filter(validator(schema).is_valid)


class _Values:
    def __init__(self, definitions: dict[str, Any]) -> None:
        self._by_reference = {
            f"#/$defs/{name}": st.deferred(lambda each=each: self.of(each)) for name, each in definitions.items()
        }

    def of(self, part: dict[str, Any]) -> st.SearchStrategy[Any]:
        match part:
            case {"$ref": reference}:
                return self._by_reference[reference]
            case {"const": value}:
                return st.just(value)
            case {"enum": values}:
                return st.sampled_from(values)
            case {"anyOf": parts} | {"oneOf": parts}:
                return st.one_of(*map(self.of, parts))
            case {"allOf": [{"$ref": reference}]}:
                return self._by_reference[reference].filter(lambda value: value.keys() >= set(part.get("required", ())))
            case {"type": type_}:
                return getattr(self, f"_{type_}")(part)
        assert not part.keys() - {"description", "default", "examples"}, part
        return ANYTHING

    def _string(self, part: dict[str, Any]) -> st.SearchStrategy[Any]:
        if "format" in part:
            return _FORMATS[part["format"]]
        if "allOf" in part:
            pattern = part["allOf"][0]["pattern"]
            return st.from_regex(re.compile(pattern, re.ASCII), fullmatch=pattern.endswith("$"))
        return st.text(min_size=part.get("minLength", 0), max_size=min(part.get("maxLength", 9), 400))

    def _integer(self, part: dict[str, Any]) -> st.SearchStrategy[Any]:
        return st.integers(part.get("minimum"), part.get("maximum"))

    def _number(self, part: dict[str, Any]) -> st.SearchStrategy[Any]:
        least, most = part.get("minimum", -1e300), part.get("maximum", 1e300)
        return st.floats(least, most, allow_subnormal=False) | st.integers(ceil(least), floor(most))

    def _boolean(self, _part: dict[str, Any]) -> st.SearchStrategy[Any]:
        return st.booleans()

    def _null(self, _part: dict[str, Any]) -> st.SearchStrategy[Any]:
        return st.none()

    def _array(self, part: dict[str, Any]) -> st.SearchStrategy[Any]:
        return st.lists(self.of(part["items"]), max_size=part.get("maxItems", 2))

    def _object(self, part: dict[str, Any]) -> st.SearchStrategy[Any]:
        inner = part.get("additionalProperties", True)
        if inner is False:
            fields = {name: self.of(each) for name, each in part["properties"].items()}
            required = {name: fields.pop(name) for name in part["required"]}
            return st.fixed_dictionaries(required, optional=fields)
        values = ANYTHING if inner is True else self.of(inner)
        return st.dictionaries(st.text(max_size=3), values, max_size=part.get("maxProperties", 2))


@st.composite
def nearly(draw: st.DrawFn, schema: dict[str, Any]) -> Any:
    """Draw a value that a schema accepts, with up to two changes: a member that is removed, replaced or added."""
    document = copy.deepcopy(draw(accepted(schema)))
    for _ in range(draw(st.integers(0, 2))):
        containers = list(_containers(document))
        container = draw(st.sampled_from(containers))
        keys = list(container) if isinstance(container, dict) else list(range(len(container)))
        change = draw(st.sampled_from(["add", *["remove", "replace"] * bool(keys)]))
        if change == "add" and isinstance(container, dict):
            container[draw(st.sampled_from(["event_id", "extra", "payload"]))] = draw(ANYTHING)
        elif change == "add":
            container.append(draw(ANYTHING))
        elif change == "remove":
            del container[draw(st.sampled_from(keys))]
        else:
            container[draw(st.sampled_from(keys))] = draw(ANYTHING)
    return document


def _containers(value: Any) -> Any:
    if isinstance(value, (dict, list)):
        yield value
        for each in value.values() if isinstance(value, dict) else value:
            yield from _containers(each)
