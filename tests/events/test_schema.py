"""JSON Schema of event classes: it is valid, it agrees with the validator, and it says what the class says."""

import json
import re
from datetime import date, datetime
from decimal import Decimal
from enum import Enum, IntEnum
from functools import partial
from typing import Any, Literal
from uuid import UUID

import attrs
import pytest
from attrs import field, frozen, validators
from hypothesis import HealthCheck, assume, given, settings
from jsonschema import Draft202012Validator

from pulsecart import Catalog, DefinitionError, Event, EventError, Producer, event, load_catalog
from pulsecart.events import described, max_bytes, non_empty
from pulsecart.events.schema import body_schema, example, json_text
from pulsecart.transports import MemoryTransport
from tests.events.schemas import ANYTHING, nearly, validator
from tests.events.test_field_types import EverythingHappened, Paid


class Level(IntEnum):
    LOW = 1
    HIGH = 2


@frozen(kw_only=True)
class Rules:
    above: Decimal | None = field(default=None, validator=validators.optional(validators.gt(Decimal("0.5"))))
    below: float = field(default=0.0, validator=[validators.lt(10), validators.le(9.5), validators.ge(-3)])
    stars: int = field(default=3, validator=[validators.ge(1), validators.le(5), validators.instance_of(int)])
    not_null: int | None = field(default=3, validator=validators.ge(1))
    name: str = field(default="abc", validator=[validators.min_len(2), validators.max_len(5), non_empty])
    code: str = field(default="ab", validator=validators.matches_re("[a-z]{2}[0-9]*"))
    start: str = field(default="ab", validator=validators.matches_re("[a-z]b", func=re.match))
    inner: str = field(default="ab", validator=validators.matches_re("b", func=re.search))
    size: str | None = field(default=None, validator=validators.in_([None, "s", "m"]))
    level: Level = field(default=Level.LOW, validator=validators.in_(Level))
    tags: list[str] = field(
        factory=list, validator=validators.deep_iterable(validators.min_len(1), validators.max_len(2))
    )
    sizes: tuple[int, ...] = field(default=(1,), validator=validators.deep_iterable(validators.ge(0)))
    named: dict[str, int] = field(factory=dict, validator=validators.max_len(1))
    free: Any = None
    flag: bool = False


@event("test.rules", topic="test-topic")
@frozen(kw_only=True)
class Ruled(Event):
    payload: Rules


CLASSES = [*load_catalog(), EverythingHappened, Paid, Ruled]
PRODUCER = Producer(MemoryTransport(), catalog=Catalog(CLASSES))


def schema_of(cls: type[Event]) -> dict[str, Any]:
    """Return the schema as JSON gives it."""
    return json.loads(json_text(body_schema(cls)))


def accepts(document: Any) -> bool:
    try:
        PRODUCER.prepare(json.dumps(document).encode())
    except EventError:
        return False
    return True


def property_of(cls: type[Event], *names: str) -> Any:
    schema = schema_of(cls)
    found = schema
    for name in names:
        found = found["properties"][name]
        while "$ref" in (reference := {**found, **found.get("allOf", [{}])[0]}):
            found = schema["$defs"][reference["$ref"].removeprefix("#/$defs/")]
    return found


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_schema_is_valid_and_complete(cls):
    """The schema meets the meta-schema, its references lead somewhere, and its example is accepted by both."""
    schema = schema_of(cls)
    Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["properties"]["event_type"] == {"const": cls.event_type}
    assert "event_type" in schema["required"]
    for name in re.findall(r'"\$ref": "([^"]*)"', json.dumps(schema)):
        assert name.removeprefix("#/$defs/") in schema["$defs"]
    for shown in schema["examples"]:
        validator(schema).validate(shown)
        assert accepts(shown)


def whole_floats(value: Any) -> bool:
    """Return whether a number like 1.0 is in a value: an integer to JSON Schema, but not to pulsecart."""
    if isinstance(value, dict):
        return any(map(whole_floats, value.values()))
    return any(map(whole_floats, value)) if isinstance(value, list) else isinstance(value, float) and value.is_integer()


def too_many_bytes(document: Any) -> bool:
    """Return whether an id has more bytes than fit, though not more characters."""
    return any(
        isinstance(document.get(name), str) and len(document[name].encode()) > 1024 for name in ("user_id", "event_id")
    )


def ends_with_newline(document: Any) -> bool:
    """Return whether a string ends with a newline, before which `$` matches in Python, but not in JSON Schema."""
    return r'\n"' in json.dumps(document)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_schema_and_validator_agree(cls):
    """Of hundreds of bodies, right ones and nearly right ones, both accept the same."""
    schema = schema_of(cls)
    is_valid = validator(schema).is_valid
    verdicts = []

    @settings(max_examples=200, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(nearly(schema))
    def agree(document):
        assume(not (whole_floats(document) or too_many_bytes(document) or ends_with_newline(document)))
        verdicts.append(is_valid(document))
        assert verdicts[-1] == accepts(document), document

    agree()
    assert verdicts.count(True) > 10
    assert verdicts.count(False) > 10


@given(ANYTHING)
def test_schema_and_validator_agree_on_any_payload(payload):
    """An untyped payload may be any object and nothing else, whatever its documented members hold."""
    document = {"event_type": "order.placed", "user_id": "u", "order_id": "o", "payload": payload}
    assert validator(schema_of(CLASSES[3])).is_valid(document) == accepts(document) == isinstance(payload, dict)
    document["payload"] = dict.fromkeys(CLASSES[3].payload_members, payload)
    assert validator(schema_of(CLASSES[3])).is_valid(document)
    assert accepts(document)


@pytest.mark.parametrize(
    ("cls", "names", "value", "said"),
    [
        (CLASSES[3], ["user_id"], "é" * 600, "At most 1,024 bytes of UTF-8."),
        (CLASSES[3], ["timestamp"], "2016-12-31T23:59:60Z", "there is no second 60"),
        (CLASSES[3], ["timestamp"], "0001-01-01T00:00:00+01:00", "Years 1 to 9999 in UTC."),
        (Ruled, ["payload", "stars"], 1.0, "Written without fraction and exponent."),
    ],
)
def test_what_a_schema_cannot_say_is_in_the_description(cls, names, value, said):
    """A value that only pulsecart refuses is explained in words."""
    document = json.loads(json_text(example(cls)))
    last = document
    for name in names[:-1]:
        last = last[name]
    last[names[-1]] = value
    assert Draft202012Validator(schema_of(cls)).is_valid(document)  # a format is an annotation
    assert not accepts(document)
    assert said in property_of(cls, *names)["description"]


def test_rules_of_validators_are_in_the_schema():
    """The bounds, lengths, patterns and choices of attrs' validators are keywords."""
    rules = {name: property_of(Ruled, "payload", name) for name in attrs.fields_dict(Rules)}
    assert rules["above"]["anyOf"][0] == {"type": "number", "exclusiveMinimum": 0.5}
    assert rules["below"] == {
        "type": "number",
        "format": "double",
        "exclusiveMaximum": 10,
        "maximum": 9.5,
        "minimum": -3,
        "default": 0.0,
    }
    assert (rules["stars"]["minimum"], rules["stars"]["maximum"]) == (1, 5)
    assert rules["not_null"]["type"] == "integer"
    assert (rules["name"]["minLength"], rules["name"]["maxLength"]) == (2, 5)
    assert rules["code"]["allOf"] == [{"pattern": "^(?:[a-z]{2}[0-9]*)$"}]
    assert rules["start"]["allOf"] == [{"pattern": "^(?:[a-z]b)"}]
    assert rules["inner"]["allOf"] == [{"pattern": "b"}]
    assert rules["size"]["enum"] == ["m", "s", None]
    assert rules["level"]["enum"] == [1, 2]
    assert (rules["tags"]["maxItems"], rules["tags"]["items"]["minLength"]) == (2, 1)
    assert rules["named"]["maxProperties"] == 1


def test_documentation_of_the_class_is_in_the_schema():
    """Docstrings, descriptions, examples, defaults and documented members of a payload are shown."""
    schema = schema_of(CLASSES[3])
    assert (schema["title"], schema["description"]) == ("OrderPlaced", "A user placed an order.")
    assert schema["x-topic"] == "pulsecart.commerce-events"
    assert schema["properties"]["order_id"] == {
        "description": "The order's id in the shop.",
        "type": "string",
        "minLength": 1,
        "examples": ["order-1042"],
    }
    total = schema["properties"]["payload"]["properties"]["total"]
    assert total == {"description": "The sum, in the currency.", "examples": [89.9]}
    assert b'"total": 89.90' in json_text(body_schema(CLASSES[3]))  # digit for digit
    assert schema["properties"]["payload"]["additionalProperties"] is True
    assert property_of(EverythingHappened, "payload", "numbers")["default"] == [1, 2]


@pytest.mark.parametrize("cls", list(load_catalog()), ids=lambda cls: cls.__name__)
def test_commerce_types_are_documented(cls):
    """Each type of the pipeline describes its fields and what its payload usually holds, with real examples."""
    schema = schema_of(cls)
    (shown,) = schema["examples"]
    assert shown["payload"].keys() == cls.payload_members.keys()
    assert len(cls.payload_members) >= 3
    for name, each in schema["properties"].items():
        assert name == "event_type" or each["description"]


def documented(_instance, _attribute, value):
    """Must be a prime number.

    Which only a computer can tell.
    """


@frozen
class Table:
    """Must be in the table."""

    def __call__(self, _instance, _attribute, value):
        pass


@frozen(kw_only=True)
class Words:
    function: int = field(validator=documented)
    bound: int = field(validator=partial(documented))
    plain: int = field(validator=lambda *_: None)
    python: str = field(validator=validators.matches_re(r"(?i)a"), metadata=described("A letter.", example="A"))
    unicode: str = field(validator=validators.matches_re(r"\d"), metadata=described("A digit.", example="1"))
    moment: datetime = field(validator=validators.ge(datetime.fromisoformat("2026-01-01T00:00:00Z")))
    either: int = field(validator=validators.or_(validators.ge(5), validators.le(2)))
    string: str = field(validator=validators.in_("some text"))
    uid: UUID = field(validator=validators.in_([UUID(int=0)]), metadata=described("None.", example=UUID(int=0)))
    words: Literal["a", "b"] = field(validator=validators.max_len(5))
    converted: int = field(converter=int, validator=validators.ge(100), metadata=described("Big.", example=100))
    day: date
    inner: "list[Words]"
    endless: float = field(validator=validators.le(float("inf")))
    _private: int = 1


@event("test.words", topic="test-topic")
@frozen(kw_only=True)
class Worded(Event):
    payload: Words


def test_validators_without_keywords_are_described():
    """A function is described by its docstring, other validators as attrs describes them."""
    words = {name: property_of(Worded, "payload", name) for name in attrs.fields_dict(Words)}
    integer = "Written without fraction and exponent."
    assert words["function"]["description"] == f"{integer} Must be a prime number."
    assert words["bound"]["description"] == f"{integer} Must be a prime number."
    assert words["plain"]["description"] == integer
    assert words["python"]["description"].startswith("A letter. Must pass <matches_re validator for pattern")
    assert words["unicode"]["description"].startswith("A digit. Must pass <matches_re validator")
    assert "Must pass <Validator for x >= 2026-01-01 00:00:00+00:00>." in words["moment"]["description"]
    assert "Must pass <or validator wrapping" in words["either"]["description"]
    assert "some text" in words["string"]["description"]
    assert "enum" not in words["uid"]
    assert words["words"]["enum"] == ["a", "b"]
    assert "minimum" not in words["converted"]
    assert "maximum" not in words["endless"]
    assert words["_private"]["default"] == 1


def failing(**fields: Any) -> Any:
    """Declare an event class with these fields in a nested class."""
    inner = attrs.make_class("Inner", fields, frozen=True, kw_only=True)

    @event("test.failing", topic="test-topic")
    @frozen(kw_only=True)
    class Failing(Event):
        payload: inner

    return Failing


@pytest.mark.parametrize(
    ("field_", "message"),
    [
        (
            field(type=int, metadata=described("A count.", example="one")),
            "its example is not valid: expected an integer",
        ),
        (
            field(type=int, validator=validators.ge(5), metadata=described("A count.", example=3)),
            "its example is not valid: 'odd' must be >= 5",
        ),
        (field(type=Any, metadata=described("Any.", example=object())), "its example has no form in JSON"),
        (field(type=int, metadata={"description": 5}), "its description must be a string"),
        (field(type=int, validator=validators.in_([object()])), "its JSON Schema cannot be made"),
    ],
)
def test_class_whose_schema_cannot_be_made_is_refused(field_, message):
    """The catalog names the class and the field at startup."""
    with pytest.raises(DefinitionError, match=rf"Inner\.odd: {re.escape(message)}"):
        Catalog([failing(odd=field_)])


def test_payload_is_documented_in_one_place():
    """A payload with a class is described by its class, not by the decorator as well."""

    @event("test.twice", topic="test-topic", payload={"a": described("A letter.")})
    @frozen(kw_only=True)
    class Twice(Event):
        payload: Rules

    with pytest.raises(DefinitionError, match=r"Twice\.payload: it has a class; describe the fields there"):
        Catalog([Twice])


class Colour(Enum):
    RED = "red"


def test_class_without_a_valid_example_has_none():
    """Simple values that a validator refuses are no example, and no error: the class states none."""
    assert example(failing(odd=field(type=str, validator=validators.matches_re("[0-9]+")))) is None

    def explode(*_args):
        raise RuntimeError

    assert example(failing(odd=field(type=str, validator=explode))) is None
    made = failing(
        colour=field(type=Colour),
        choice=field(type=Literal[1]),
        maybe=field(type=int | None),
        named=field(type=dict[str, int]),
        free=field(type=Any),
    )
    assert example(made)["payload"] == {"colour": "red", "choice": 1, "maybe": None, "named": {}, "free": "text"}


def test_classes_of_one_name_have_definitions_of_their_own():
    """Two classes of one name in one event do not replace each other."""
    first = attrs.make_class("Same", {"a": field(type=int)}, frozen=True, kw_only=True)
    second = attrs.make_class("Same", {"b": field(type=str, validator=max_bytes(5))}, frozen=True, kw_only=True)
    schema = schema_of(failing(a=field(type=first), b=field(type=second)))
    assert len(schema["$defs"]) == 3
    valid = {"event_type": "test.failing", "user_id": "u", "payload": {"a": {"a": 1}, "b": {"b": "x"}}}
    validator(schema).validate(valid)
