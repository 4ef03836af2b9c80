import enum
import json
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Annotated, Any, Literal, NewType, Optional

import attrs
import pytest
from attrs import field, frozen, validators
from hypothesis import given
from hypothesis import strategies as st

from pulsecart import Catalog, DefinitionError, Event, InvalidEvent, event
from pulsecart.events import FieldError, OrderPlaced
from pulsecart.events.codec import decode, encode
from pulsecart.events.faults import MAX_FAULTS, MAX_HINTS
from pulsecart.events.structure import structure


class Colour(enum.Enum):
    RED = "red"
    ONE = 1


class Size(enum.StrEnum):
    SMALL = "small"


class Level(enum.IntEnum):
    HIGH = 2


@frozen(kw_only=True)
class Item:
    sku: str
    count: int = field(validator=validators.gt(0))


@frozen(kw_only=True)
class Payload:
    text: str = ""
    flag: bool = False
    whole: int = 0
    exact: Decimal = Decimal(0)
    binary: float = 0.0
    moment: datetime | None = None
    colour: Colour = Colour.RED
    size: Size = Size.SMALL
    level: Level = Level.HIGH
    maybe: Optional[int] = None  # noqa: UP045 (the older spelling counts too)
    items: list[Item] = field(factory=list)
    first: Item | None = field(
        default=attrs.Factory(lambda self: self.items[0] if self.items else None, takes_self=True)
    )
    by_name: dict[str, Item] = field(factory=dict)
    children: "list[Payload]" = field(factory=list)
    anything: list = field(factory=list)
    free: dict = field(factory=dict)
    low: Annotated[int, "a lower bound"] = 0
    high: int = field(default=10)

    @high.validator
    def _in_order(self, _attribute, value):
        if value < self.low:
            raise ValueError("must not be below low")


@event("test.typed", topic="test-topic")
@frozen(kw_only=True)
class Typed(Event):
    payload: Payload


CATALOG = Catalog([Typed, OrderPlaced])


def typed(payload: str) -> Any:
    return CATALOG.structure(
        decode(b'{"event_type":"test.typed","user_id":"u","payload":%b}' % payload.encode())
    ).payload


def faults_of(document: dict[str, Any]) -> list[tuple[str, str]]:
    with pytest.raises(InvalidEvent) as caught:
        CATALOG.structure(decode(json.dumps(document).encode()))
    return [(fault.pointer, fault.code) for fault in caught.value.faults]


@pytest.mark.parametrize(
    ("payload", "name", "value"),
    [
        ('{"text":"x"}', "text", "x"),
        ('{"flag":true}', "flag", True),
        ('{"whole":123456789012345678901234567890}', "whole", 123456789012345678901234567890),
        ('{"exact":89.90}', "exact", Decimal("89.90")),
        ('{"exact":5}', "exact", Decimal(5)),
        ('{"binary":89.90}', "binary", 89.9),
        ('{"binary":5}', "binary", 5.0),
        ('{"moment":"2026-01-31T12:00:00+02:00"}', "moment", datetime(2026, 1, 31, 10, tzinfo=UTC)),
        ('{"moment":null}', "moment", None),
        ('{"colour":"red"}', "colour", Colour.RED),
        ('{"colour":1}', "colour", Colour.ONE),
        ('{"size":"small"}', "size", Size.SMALL),
        ('{"level":2}', "level", Level.HIGH),
        ('{"maybe":null}', "maybe", None),
        ('{"maybe":3}', "maybe", 3),
        ('{"items":[{"sku":"a","count":1}]}', "items", [Item(sku="a", count=1)]),
        ('{"items":[{"sku":"a","count":1}]}', "first", Item(sku="a", count=1)),
        ('{"by_name":{"a":{"sku":"a","count":1}}}', "by_name", {"a": Item(sku="a", count=1)}),
        ('{"children":[{"children":[{"text":"deep"}]}]}', "children", [Payload(children=[Payload(text="deep")])]),
        ('{"anything":[1,"a",null]}', "anything", [1, "a", None]),
        ('{"free":{"a":[1.50]}}', "free", {"a": [Decimal("1.50")]}),
        ('{"low":3}', "low", 3),
    ],
)
def test_each_type_of_field_is_read(payload, name, value):
    """Every type that the documentation lists is read from its JSON form, to the very type."""
    found = getattr(typed(payload), name)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("payload", "pointer", "code"),
    [
        ({"text": 3}, "/text", "wrong-type"),
        ({"text": None}, "/text", "wrong-type"),
        ({"text": ["a"]}, "/text", "wrong-type"),
        ({"flag": 1}, "/flag", "wrong-type"),
        ({"flag": "true"}, "/flag", "wrong-type"),
        ({"whole": "3"}, "/whole", "wrong-type"),
        ({"whole": 3.0}, "/whole", "wrong-type"),
        ({"whole": True}, "/whole", "wrong-type"),
        ({"exact": "3"}, "/exact", "wrong-type"),
        ({"exact": False}, "/exact", "wrong-type"),
        ({"binary": "3"}, "/binary", "wrong-type"),
        ({"binary": True}, "/binary", "wrong-type"),
        ({"binary": 10**400}, "/binary", "out-of-range"),
        ({"moment": 3}, "/moment", "wrong-type"),
        ({"colour": "blue"}, "/colour", "invalid"),
        ({"colour": True}, "/colour", "invalid"),
        ({"colour": 1.0}, "/colour", "invalid"),
        ({"colour": ["red"]}, "/colour", "invalid"),
        ({"size": "large"}, "/size", "invalid"),
        ({"level": 2.0}, "/level", "invalid"),
        ({"maybe": None, "text": 3}, "/text", "wrong-type"),
        ({"maybe": "3"}, "/maybe", "wrong-type"),
        ({"items": {}}, "/items", "wrong-type"),
        ({"items": None}, "/items", "wrong-type"),
        ({"items": "abc"}, "/items", "wrong-type"),
        ({"items": [{"sku": "a", "count": 1}, 3]}, "/items/1", "wrong-type"),
        ({"items": [{"count": 1}]}, "/items/0/sku", "missing"),
        ({"items": [{"sku": "a", "count": 0}]}, "/items/0/count", "invalid"),
        ({"items": [{"sku": "a", "count": 1, "skus": 1}]}, "/items/0/skus", "unknown"),
        ({"by_name": []}, "/by_name", "wrong-type"),
        ({"by_name": {"a/b~c": 3}}, "/by_name/a~1b~0c", "wrong-type"),
        ({"children": [{"children": [{"text": 3}]}]}, "/children/0/children/0/text", "wrong-type"),
        ({"low": 11, "high": 3}, "/high", "invalid"),
        ({"tekst": "x"}, "/tekst", "unknown"),
    ],
)
def test_wrong_value_is_a_fault_at_its_place(payload, pointer, code):
    """A value of another kind, out of range or refused by a validator is a fault at its place."""
    assert faults_of({"event_type": "test.typed", "user_id": "u", "payload": payload}) == [(f"/payload{pointer}", code)]


def test_every_fault_is_reported_at_once():
    """Missing, unknown, empty and wrongly typed fields are all in one error."""
    document = {
        "event_type": "order.placed",
        "event_id": None,
        "user_id": "",
        "oder_id": "o",
        "timestamp": "yesterday",
        "payload": [],
    }
    assert sorted(faults_of(document)) == [
        ("/event_id", "wrong-type"),
        ("/oder_id", "unknown"),
        ("/order_id", "missing"),
        ("/payload", "wrong-type"),
        ("/timestamp", "invalid"),
        ("/user_id", "empty"),
    ]


def test_validator_that_needs_a_wrong_field_is_left_out():
    """A validator that compares with a wrongly typed field is left out."""
    payload = {"low": "x", "high": 3}
    assert faults_of({"event_type": "test.typed", "user_id": "u", "payload": payload}) == [
        ("/payload/low", "wrong-type")
    ]


@pytest.mark.parametrize(
    ("changes", "pointer", "code"),
    [
        ({"user_id": "x" * 1025}, "/user_id", "too-long"),
        ({"user_id": "é" * 513}, "/user_id", "too-long"),
        ({"user_id": "😀" * 257}, "/user_id", "too-long"),
        ({"user_id": None}, "/user_id", "wrong-type"),
        ({"user_id": ...}, "/user_id", "missing"),
        ({"event_id": ""}, "/event_id", "empty"),
        ({"event_id": "x" * 1025}, "/event_id", "too-long"),
        ({"event_id": 7}, "/event_id", "wrong-type"),
        ({"payload": ...}, "/payload", "missing"),
        ({"payload": None}, "/payload", "wrong-type"),
        ({"payload": "{}"}, "/payload", "wrong-type"),
        ({"order_id": ""}, "/order_id", "empty"),
        ({"timestamp": None}, "/timestamp", "wrong-type"),
        ({"timestamp": 1700000000}, "/timestamp", "wrong-type"),
        ({"timestamp": "2026-01-31"}, "/timestamp", "invalid"),
        ({"timestamp": "2026-01-31T12:00:00"}, "/timestamp", "invalid"),
        ({"timestamp": "2026-01-31T12:00Z"}, "/timestamp", "invalid"),
        ({"timestamp": "2026-01-31T12:00:00+0200"}, "/timestamp", "invalid"),
        ({"timestamp": "2026-01-31T24:00:00Z"}, "/timestamp", "invalid"),
        ({"timestamp": "2026-01-31T12:00:00Z\n"}, "/timestamp", "invalid"),
        ({"timestamp": "٢٠٢٦-01-31T12:00:00Z"}, "/timestamp", "invalid"),
        ({"timestamp": "2026-02-30T12:00:00Z"}, "/timestamp", "out-of-range"),
        ({"timestamp": "2026-06-30T23:59:60Z"}, "/timestamp", "out-of-range"),
        ({"timestamp": "0000-01-01T00:00:00Z"}, "/timestamp", "out-of-range"),
        ({"timestamp": "0001-01-01T00:00:00+05:00"}, "/timestamp", "out-of-range"),
        ({"timestamp": "9999-12-31T23:59:59-05:00"}, "/timestamp", "out-of-range"),
        ({"timestamp": "2026-01-31T12:00:00." + "1" * 1_000_000 + "Z"}, "/timestamp", "invalid"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_common_fields_follow_the_contract(order, changes, pointer, code):
    """The rules of the contract for user_id, event_id, payload, timestamp and a type's own field hold."""
    assert faults_of(order(**changes)) == [(pointer, code)]


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-01-31T12:00:00Z", datetime(2026, 1, 31, 12, tzinfo=UTC)),
        ("2026-01-31t12:00:00z", datetime(2026, 1, 31, 12, tzinfo=UTC)),
        ("2026-01-31 12:00:00.5-00:00", datetime(2026, 1, 31, 12, 0, 0, 500_000, tzinfo=UTC)),
        ("2026-01-31T12:00:00+05:30", datetime(2026, 1, 31, 6, 30, tzinfo=UTC)),
        ("2026-01-31T12:00:00.123456999Z", datetime(2026, 1, 31, 12, 0, 0, 123456, tzinfo=UTC)),
        ("9999-12-31T23:59:59.9999999Z", datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)),
    ],
)
def test_timestamps_of_rfc_3339_are_read_in_utc(order, text, moment):
    """Any form of RFC 3339 with an offset is the same moment in UTC; finer than a microsecond is cut off."""
    timestamp = CATALOG.structure(order(timestamp=text)).timestamp
    assert timestamp == moment
    assert timestamp.tzinfo is UTC


@given(st.datetimes(timezones=st.timezones() | st.just(timezone(timedelta(hours=-3)))))
def test_every_timestamp_of_isoformat_is_read_or_refused(moment):
    """isoformat() of an aware datetime, rounded to whole minutes of offset, is read as the same moment."""
    text = moment.isoformat()
    document = {"event_type": "order.placed", "user_id": "u", "order_id": "o", "payload": {}, "timestamp": text}
    try:
        timestamp = CATALOG.structure(document).timestamp
    except InvalidEvent as error:
        in_range = 1 < moment.year < 9999
        assert not in_range or moment.utcoffset().total_seconds() % 60, error  # noqa: PT017 (either outcome is right)
    else:
        assert timestamp == moment.astimezone(UTC)  # aware datetimes of different zones compare oddly in a fold


def test_unknown_field_names_the_nearest_known_one():
    """An unknown field names the known one it resembles, or else all known ones."""
    with pytest.raises(InvalidEvent, match="did you mean 'order_id'"):
        CATALOG.structure({"event_type": "order.placed", "user_id": "u", "oder_id": "o", "payload": {}})
    with pytest.raises(InvalidEvent, match="the fields are event_id, timestamp, user_id, payload, order_id"):
        CATALOG.structure({"event_type": "order.placed", "user_id": "u", "order_id": "o", "payload": {}, "zzz": 1})


def test_number_of_faults_is_limited(order):
    """The number of faults in an error, and the length of names in it, are bounded."""
    flood = {f"{number:05}" + "x" * 10_000: 1 for number in range(150)}
    with pytest.raises(InvalidEvent) as caught:
        CATALOG.structure(order(**flood))
    assert len(caught.value.faults) == MAX_FAULTS
    assert len(str(caught.value)) < 100_000
    many = faults_of({"event_type": "test.typed", "user_id": "u", "payload": {"items": [3] * 150}})
    assert many == [(f"/payload/items/{index}", "wrong-type") for index in range(MAX_FAULTS)]


def test_first_faults_name_the_nearest_field():
    """Each unknown field is a fault, but only the first ones are compared with the fields there are."""
    document = {"user_id": "u", "order_id": "o", "payload": {}} | {f"order_i{n}": 1 for n in range(50)}
    with pytest.raises(InvalidEvent) as caught:
        structure(document, OrderPlaced)
    assert [fault.pointer for fault in caught.value.faults] == [f"/order_i{n}" for n in range(50)]
    hints = ["did you mean 'order_id'?" in fault.message for fault in caught.value.faults]
    assert hints == [n < MAX_HINTS for n in range(50)]


def test_fault_in_a_deeply_recursive_type_is_reported_once():
    """A fault at the bottom of a deeply nested value is found once, at its place."""
    payload: dict[str, Any] = {"text": 3}
    for _ in range(60):
        payload = {"children": [payload]}
    assert faults_of({"event_type": "test.typed", "user_id": "u", "payload": payload}) == [
        ("/payload" + "/children/0" * 60 + "/text", "wrong-type")
    ]


@event("test.whole", topic="test-topic")
@frozen(kw_only=True)
class Whole(Event):
    first: int = 0
    second: int = field(default=0, converter=abs)

    def __attrs_post_init__(self):
        if self.first + self.second > 10:
            raise ValueError("first and second are more than 10")
        if self.first == 7:
            raise KeyError("a defect")


def test_refusal_by_post_init_is_a_fault_of_the_body():
    """What __attrs_post_init__ refuses is reported for the body as a whole."""
    with pytest.raises(InvalidEvent) as caught:
        structure({"user_id": "u", "payload": {}, "first": 9, "second": -9}, Whole)
    assert [(fault.pointer, fault.message) for fault in caught.value.faults] == [
        ("", "first and second are more than 10")
    ]


@event("test.looking", topic="test-topic")
@frozen(kw_only=True)
class Looking(Event):
    anything: Any
    also: Any
    sizes: list[int]
    total: int = field(init=False)

    def __attrs_post_init__(self):
        if self.payload["total"] != sum(self.sizes):
            raise ValueError("the total is wrong")
        object.__setattr__(self, "total", self.payload["total"])


def test_post_init_can_read_the_received_payload():
    """An untyped payload can be read by the class's own rules; other fields of any type hold plain dicts and lists."""
    body = b'{"event_type":"test.looking","user_id":"u","anything":{"a":[1.5]},"also":[{}],"sizes":%b,"payload":%b}'
    made: Any = Catalog([Looking]).structure(decode(body % (b"[1,2]", b'{"total":3}')))
    assert made.total == 3
    assert repr((made.anything, made.also)) == "({'a': [Decimal('1.5')]}, [{}])"
    assert b'"anything":{"a":[1.5]},"also":[{}],"sizes":[1,2]' in encode(made)
    with pytest.raises(InvalidEvent, match="the total is wrong"):
        Catalog([Looking]).structure(decode(body % (b"[1]", b'{"total":3}')))


@pytest.mark.parametrize("type_", [str, list[str], int | None, Any])
def test_payload_type_that_is_not_an_object_is_refused(type_):
    """A class can type its payload, but not as something else than an object."""

    @event("test.flat", topic="test-topic")
    @frozen(kw_only=True)
    class Flat(Event):
        payload: type_

    with pytest.raises(DefinitionError, match=r"Flat\.payload: a payload is an object"):
        Catalog([Flat])


def test_class_that_contains_itself_is_refused():
    """A required field of the class's own type could never be filled; the error names the remedy."""

    @frozen(kw_only=True)
    class Endless:
        inside: "Endless"

    Endless.__annotations__["inside"] = Endless

    @event("test.endless", topic="test-topic")
    @frozen(kw_only=True)
    class Forever(Event):
        payload: Endless

    with pytest.raises(DefinitionError, match=r"make that X \| None"):
        Catalog([Forever])


def test_unhashable_annotations_are_ignored():
    """Annotated is read as what it annotates, whatever the annotation is."""

    @event("test.annotated", topic="test-topic")
    @frozen(kw_only=True)
    class Notes(Event):
        notes: list[Annotated[str, ["unhashable"]]]
        note: Annotated[str | None, ["unhashable"]] = None

    with pytest.raises(InvalidEvent, match="/notes/0"):
        Catalog([Notes]).structure({"event_type": "test.annotated", "user_id": "u", "payload": {}, "notes": [1]})


looked_at: list[str] = []


@frozen(kw_only=True)
class Node:
    name: str = field(validator=lambda _instance, _attribute, value: looked_at.append(value))
    inside: "Node | None" = None


@event("test.nodes", topic="test-topic")
@frozen(kw_only=True)
class Nodes(Event):
    payload: Node


def test_work_of_explaining_does_not_grow_with_depth():
    """Each value is looked at once more to explain a fault, however deep it lies."""
    payload: dict[str, Any] = {"name": "x"}
    for _ in range(50):
        payload = {"name": "x", "inside": payload}
    looked_at.clear()
    with pytest.raises(InvalidEvent, match="/user_id"):
        Catalog([Nodes]).structure({"event_type": "test.nodes", "user_id": 3, "payload": payload})
    assert len(looked_at) <= 2 * 51


def test_other_exception_of_an_event_class_is_raised():
    """An exception other than ValueError and TypeError is a defect: over HTTP a 500, not a 422."""
    with pytest.raises(KeyError, match="a defect"):
        structure({"user_id": "u", "payload": {}, "first": 7}, Whole)


@event("test.converted", topic="test-topic")
@frozen(kw_only=True)
class Converted(Event):
    limit: int = field(init=False, default=5)
    unset: int = field(init=False)
    count: int = field()
    tags: list[str] = field(converter=frozenset, factory=list)
    part: str = field(default="", converter=attrs.Converter(lambda value, _: value + "!", takes_self=True))
    tag: str = field(default="")
    size: int = field(default=0, converter=lambda value: 100 // value if value != 13 else int("thirteen"))

    @count.validator
    def _at_most(self, _attribute, value):
        if value > self.limit:
            raise ValueError("over the limit")

    @tag.validator
    def _known(self, _attribute, value):
        if not self.tags.issuperset([value]):
            raise ValueError("no tag of this")

    @part.validator
    def _part(self, _attribute, value):
        if not value.endswith("!"):
            raise ValueError("not converted")


CONVERTED = {"user_id": "u", "payload": {}, "count": 3, "tags": ["a"], "tag": "a", "part": "x", "size": 1}


@pytest.mark.parametrize(
    ("changes", "pointers"),
    [
        ({"count": 9, "tag": "b"}, ["/count", "/tag"]),
        ({"count": 9, "size": 13}, ["/count", "/size"]),
        ({"count": 9, "tags": [["unhashable"]]}, ["/tags/0"]),
        ({"user_id": 3, "count": 9}, ["/user_id"]),
        ({"user_id": 3, "order_id": 1, "part": 3}, ["/user_id", "/part", "/order_id"]),
    ],
)
def test_validators_see_converted_values_and_defaults(changes, pointers):
    """Validators judge what the class's own __init__ has set; a wrong type hides only rules that need more fields."""
    assert structure(CONVERTED, Converted).tags == {"a"}
    with pytest.raises(InvalidEvent) as caught:
        structure(CONVERTED | changes, Converted)
    assert [fault.pointer for fault in caught.value.faults] == pointers


attempts: list[int] = []


@event("test.flaky", topic="test-topic")
@frozen(kw_only=True)
class Flaky(Event):
    def __attrs_post_init__(self):
        attempts.append(1)
        if len(attempts) == 1:
            raise ValueError("only this time")


def test_refusal_that_cannot_be_repeated_is_a_defect():
    """A rule that refuses a body once and accepts it the next time is not the caller's fault."""
    attempts.clear()
    with pytest.raises(ValueError, match="only this time"):
        structure({"user_id": "u", "payload": {}}, Flaky)


@event("test.defective", topic="test-topic")
@frozen(kw_only=True)
class Defective(Event):
    value: int = field(default=0)

    @value.validator
    def _defective(self, _attribute, value):
        return self.no_such_attribute


def test_attribute_error_of_a_validator_is_raised():
    """An AttributeError of a validator is a defect if all fields have the right types."""
    with pytest.raises(AttributeError):
        structure({"user_id": "u", "payload": {}, "value": 1}, Defective)
    with pytest.raises(AttributeError):
        structure({"user_id": "", "payload": {}, "value": 1}, Defective)


class Fraction(enum.Enum):
    HALF = 0.5


@pytest.mark.parametrize(
    "type_",
    [
        bytes,
        set[str],
        tuple,
        tuple[()],
        tuple[int, str],
        Literal[b"a"],
        int | str,
        Item | int,
        Item | Payload,
        NewType("Bytes", bytes),
        dict[int, str],
        Fraction,
        complex,
        "Nowhere",
        "int |",
        "json.Missing",
    ],
)
def test_field_type_without_a_strict_reading_is_refused(type_):
    """The catalog refuses a field type that cannot be read strictly, naming the field."""

    @frozen(kw_only=True)
    class Inner:
        odd: type_

    @event("test.odd", topic="test-topic")
    @frozen(kw_only=True)
    class Odd(Event):
        extra: list[Inner] | None

    with pytest.raises(DefinitionError, match=r"Odd\.extra"):
        Catalog([Odd])


def body(payload: str) -> bytes:
    return f'{{"event_type":"test.typed","user_id":"u","payload":{payload}}}'.encode()


@pytest.mark.parametrize(
    ("payload", "pointers"),
    [
        ('{"text":"a","text":"b"}', ["/payload/text"]),
        (r'{"text":"a","te\u0078t":"a"}', ["/payload/text"]),
        (
            '{"first":{"sku":"a","count":1,"sku":"b","sku":"c"},"text":"","text":""}',
            ["/payload/first/sku", "/payload/text"],
        ),
        ('{"items":[{"sku":"a","count":1},{"count":1,"count":1}]}', ["/payload/items/1/count"]),
        ('{"by_name":{"a~":{"sku":"a","count":1},"a~":{"sku":"b","count":1}}}', ["/payload/by_name/a~0"]),
        ('{"free":{"a":{"b":1,"b":2}}}', ["/payload/free/a/b"]),
        ('{"anything":[[{"b":1,"b":2}]]}', ["/payload/anything/0/0/b"]),
    ],
)
def test_repeated_name_in_a_typed_object_is_a_fault(payload, pointers):
    """A typed object is decoded and written again, so a name in it that is there twice would lose a value."""
    with pytest.raises(InvalidEvent) as caught:
        CATALOG.structure(decode(body(payload)))
    assert [(fault.pointer, fault.code) for fault in caught.value.faults] == [(each, "duplicate") for each in pointers]


def test_repeated_names_are_reported_with_other_faults():
    """A repeated name in a field's value does not hide what is wrong with other fields."""
    with pytest.raises(InvalidEvent) as caught:
        CATALOG.structure(decode(body('{"text":1,"text":2}').replace(b'"u"', b"3")))
    assert [fault.pointer for fault in caught.value.faults] == ["/user_id", "/payload/text"]


@pytest.mark.parametrize("text", [r'"a:b\\"', r'"\":"', r'"{\"a\":1,\"a\":2}"', r'"\\\\"'])
def test_text_that_looks_like_members_repeats_no_name(text):
    """Colons, quotes and backslashes in strings do not count as names."""
    assert typed(f'{{"text":{text},"free":{{"a:":{text}}}}}').text == json.loads(text)


SECRET = "Erika Mustermann"


@pytest.mark.parametrize(
    ("declared", "value", "message"),
    [
        (field(validator=validators.in_(["a", "b"])), SECRET, "'x' must be in ['a', 'b']"),
        (field(validator=validators.in_(["a", "b"])), 17, "'x' must be in ['a', 'b']"),
        (field(validator=validators.matches_re("[a-z]+")), SECRET, "'x' must match regex '[a-z]+'"),
        (field(validator=validators.le(150)), 1970, "'x' must be <= 150"),
        (field(validator=validators.gt(0)), 0, "'x' must be > 0"),
        (field(validator=validators.gt(2)), Decimal("1.50"), "'x' must be > 2"),
        (field(validator=validators.lt("A")), SECRET, "'x' must be < A"),
        (field(validator=validators.max_len(3)), SECRET, "Length of 'x' must be <= 3: 16"),
        (field(validator=validators.instance_of(int)), SECRET, "'x' must be <class 'int'>"),
        (field(validator=validators.deep_iterable(validators.in_([1]))), [1, SECRET], "'x' must be in [1]"),
        (field(validator=validators.deep_iterable(validators.le(5))), [1970], "'x' must be <= 5"),
        (field(validator=validators.deep_mapping(validators.in_(["a"]), validators.le(5))), {SECRET: 1},
         "'x' must be in ['a']"),
        (field(validator=[validators.ge(1), validators.le(5)]), 1970, "'x' must be <= 5"),
        (field(converter=int), SECRET, "invalid literal for int() with base 10"),
        (field(converter=Colour), SECRET, "… is not a valid Colour"),
        (field(converter=datetime.fromisoformat), SECRET, "Invalid isoformat string"),
    ],
)  # fmt: skip
def test_message_of_a_rule_does_not_show_the_value(declared, value, message):
    """The value may be personal data. What attrs and Python say about it is reported without it."""

    @event("test.ruled", topic="test-topic")
    @frozen(kw_only=True)
    class Ruled(Event):
        x: Any = declared

    with pytest.raises(InvalidEvent) as caught:
        structure({"user_id": "u", "payload": {}, "x": value}, Ruled)
    assert [(fault.pointer, fault.message) for fault in caught.value.faults] == [("/x", message)]


def test_message_of_a_field_error_is_reported_as_it_is():
    """A class that raises FieldError has chosen words for the caller."""

    def only_a(_instance, _attribute, value):
        raise FieldError(f"expected 'a', got {value!r}")

    @event("test.own_words", topic="test-topic")
    @frozen(kw_only=True)
    class OwnWords(Event):
        x: str = field(validator=only_a)

    with pytest.raises(InvalidEvent, match="/x: expected 'a', got 'b'"):
        structure({"user_id": "u", "payload": {}, "x": "b"}, OwnWords)
