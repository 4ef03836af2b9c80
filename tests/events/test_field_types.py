"""Literal, UUID, date, NewType, tuple and unions of attrs classes: read strictly, explained, written and read back."""

from datetime import date, datetime
from decimal import Decimal
from typing import Any, Literal, NewType, Union
from uuid import UUID

import pytest
from attrs import field, frozen

from pulsecart import Catalog, DefinitionError, Event, InvalidEvent, Producer, event
from pulsecart.transports import MemoryTransport

Sku = NewType("Sku", str)
Special = NewType("Special", Sku)


@frozen(kw_only=True)
class Line:
    sku: Sku
    price: Decimal = Decimal(0)


Lines = NewType("Lines", tuple[Line, ...])
Kind = NewType("Kind", Literal["card"])


@frozen(kw_only=True)
class Card:
    number: int = 1
    brand: Literal["visa", "other"] = "visa"
    kind: Kind
    last4: str


@frozen(kw_only=True)
class Invoice:
    brand: Literal["other", "none"] = "none"
    kind: Literal["invoice", "bill"] = "invoice"
    due: date


@frozen(kw_only=True)
class Sum:
    op: Literal["sum"] = "sum"
    left: Union["Sum", "Leaf"]
    right: Union["Sum", "Leaf"]


@frozen(kw_only=True)
class Leaf:
    op: Literal["leaf"] = "leaf"
    value: int


@frozen(kw_only=True)
class Everything:
    choice: Literal["a", 1, True, None] = "a"  # noqa: PYI061 (a null that is one of the values)
    maybe: Literal["x"] | None = None
    uid: UUID | None = None
    day: date = date(2026, 1, 31)
    sku: Special = "none"
    lines: Lines = Lines(())
    numbers: tuple[int, ...] = (1, 2)
    pays: Card | Invoice | None = None
    also: list[Card | Invoice] = field(factory=list)
    tree: Sum | Leaf | None = None


@event("test.everything", topic="test-topic")
@frozen(kw_only=True)
class EverythingHappened(Event):
    payload: Everything


@event("test.paid", topic="test-topic")
@frozen(kw_only=True)
class Paid(Event):
    payload: Card | Invoice


CATALOG = Catalog([EverythingHappened, Paid])
UID = "0e3f4c9a-5b1d-4f6e-8a7b-9c0d1e2f3a4b"


def body(payload: str, event_type: str = "test.everything") -> bytes:
    return f'{{"event_type":"{event_type}","user_id":"u","payload":{payload}}}'.encode()


def published(source: Any) -> bytes:
    return Producer(MemoryTransport(), catalog=CATALOG).prepare(source).message.data


def faults_of(payload: str, event_type: str = "test.everything") -> list[tuple[str, str, str]]:
    with pytest.raises(InvalidEvent) as caught:
        published(body(payload, event_type))
    return [(fault.pointer.removeprefix("/payload"), fault.code, fault.message) for fault in caught.value.faults]


CARD = '{"kind":"card","last4":"4242"}'


@pytest.mark.parametrize(
    ("payload", "name", "value"),
    [
        ('{"choice":"a"}', "choice", "a"),
        ('{"choice":1}', "choice", 1),
        ('{"choice":true}', "choice", True),
        ('{"choice":null}', "choice", None),
        ('{"maybe":null}', "maybe", None),
        ('{"maybe":"x"}', "maybe", "x"),
        (f'{{"uid":"{UID}"}}', "uid", UUID(UID)),
        (f'{{"uid":"{UID.upper()}"}}', "uid", UUID(UID)),
        ('{"day":"2024-02-29"}', "day", date(2024, 2, 29)),
        ('{"sku":"x"}', "sku", "x"),
        ('{"lines":[]}', "lines", ()),
        ('{"lines":[{"sku":"a","price":1.50}]}', "lines", (Line(sku=Sku("a"), price=Decimal("1.50")),)),
        ('{"numbers":[3,4,5]}', "numbers", (3, 4, 5)),
        (f'{{"pays":{CARD}}}', "pays", Card(kind=Kind("card"), last4="4242")),
        ('{"pays":{"kind":"bill","due":"2026-01-31"}}', "pays", Invoice(kind="bill", due=date(2026, 1, 31))),
        ('{"pays":null}', "pays", None),
        (f'{{"also":[{CARD}]}}', "also", [Card(kind=Kind("card"), last4="4242")]),
        (
            '{"tree":{"op":"sum","left":{"op":"leaf","value":1},"right":{"op":"leaf","value":2}}}',
            "tree",
            Sum(left=Leaf(value=1), right=Leaf(value=2)),
        ),
    ],
)
def test_value_is_read_written_and_read_again(payload, name, value):
    """Each value becomes the very type, and the published JSON has the same value and is read to the same event."""
    event_made = CATALOG.read(body(payload))
    found = getattr(event_made.payload, name)
    assert found == value
    assert type(found) is type(value)
    for source in (body(payload), event_made):
        assert CATALOG.read(published(source)).payload == event_made.payload


def test_exact_json_is_published():
    """UUIDs are written in lower case, dates as in RFC 3339, tuples as arrays, numbers digit for digit."""
    payload = f'{{"uid":"{UID.upper()}","day":"2026-02-01","lines":[{{"sku":"a","price":89.90}}],"pays":{CARD}}}'
    written = published(body(payload)).decode()
    assert f'"uid":"{UID}"' in written
    assert '"day":"2026-02-01"' in written
    assert '"lines":[{"sku":"a","price":89.90}],"numbers":[1,2]' in written
    assert '"pays":{"number":1,"brand":"visa","kind":"card","last4":"4242"}' in written


ONE_OF = "expected one of 'a', 1, true, null"


@pytest.mark.parametrize(
    ("payload", "pointer", "code", "message"),
    [
        ('{"choice":"b"}', "/choice", "invalid", ONE_OF),
        ('{"choice":1.0}', "/choice", "invalid", ONE_OF),
        ('{"choice":false}', "/choice", "invalid", ONE_OF),
        ('{"choice":[1]}', "/choice", "invalid", ONE_OF),
        ('{"uid":5}', "/uid", "wrong-type", "expected a string, got a number"),
        (f'{{"uid":"{{{UID}}}"}}', "/uid", "invalid", f"expected a UUID, such as {UID}"),
        (f'{{"uid":"{UID.replace("-", "")}"}}', "/uid", "invalid", f"expected a UUID, such as {UID}"),
        (f'{{"uid":"{UID}\\n"}}', "/uid", "invalid", f"expected a UUID, such as {UID}"),
        ('{"day":20260131}', "/day", "wrong-type", "expected a string, got a number"),
        ('{"day":"20260131"}', "/day", "invalid", "expected a date of RFC 3339, such as 2026-01-31"),
        ('{"day":"2026-W05-6"}', "/day", "invalid", "expected a date of RFC 3339, such as 2026-01-31"),
        ('{"day":"2026-01-31T00:00:00Z"}', "/day", "invalid", "expected a date of RFC 3339, such as 2026-01-31"),
        ('{"day":"٢٠٢٦-01-31"}', "/day", "invalid", "expected a date of RFC 3339, such as 2026-01-31"),
        ('{"sku":3}', "/sku", "wrong-type", "expected a string, got a number"),
        ('{"numbers":{}}', "/numbers", "wrong-type", "expected an array, got an object"),
        ('{"numbers":[1,"2"]}', "/numbers/1", "wrong-type", "expected an integer, got a string"),
        ('{"lines":[{"price":1}]}', "/lines/0/sku", "missing", "is required, but missing"),
        ('{"pays":[]}', "/pays", "wrong-type", "expected an object, got an array"),
        ('{"pays":{"last4":"1"}}', "/pays/kind", "missing", "is required, but missing"),
        ('{"pays":{"kind":"cash"}}', "/pays/kind", "invalid", "expected one of 'card', 'invoice', 'bill'"),
        ('{"pays":{"kind":["card"]}}', "/pays/kind", "invalid", "expected one of 'card', 'invoice', 'bill'"),
        ('{"pays":{"kind":"card"}}', "/pays/last4", "missing", "is required, but missing"),
        ('{"also":[{"kind":"invoice","due":"soon"}]}', "/also/0/due", "invalid", None),
    ],
)
def test_wrong_value_is_explained(payload, pointer, code, message):
    """A value of another form is a fault at its place, whose message names the form."""
    ((found_pointer, found_code, found_message),) = faults_of(payload)
    assert (found_pointer, found_code) == (pointer, code)
    assert message is None or found_message == message


def test_date_that_does_not_exist_is_out_of_range():
    """A day that its month does not have is out of range."""
    ((pointer, code, message),) = faults_of('{"day":"2026-02-30"}')
    assert (pointer, code) == ("/day", "out-of-range")
    assert message.startswith("is not a date: day is out of range")


def test_all_faults_of_a_union_are_listed_at_once():
    """The class that the field names is checked whole, next to the faults of other fields."""
    payload = '{"kind":"card","last4":1,"brand":"amex","due":"2026-01-31"}'
    assert [fault[:2] for fault in faults_of(f'{{"pays":{payload},"choice":2}}')] == [
        ("/choice", "invalid"),
        ("/pays/brand", "invalid"),
        ("/pays/last4", "wrong-type"),
        ("/pays/due", "unknown"),
    ]


def test_payload_may_be_a_union():
    """A payload is told apart by its field too, though the field has a default."""
    assert b'"payload":{"number":1,"brand":"other","kind":"card","last4":"1"}' in published(
        body('{"brand":"other","kind":"card","last4":"1"}', "test.paid")
    )
    assert faults_of('{"due":"2026-01-31"}', "test.paid") == [("/kind", "missing", "is required, but missing")]


@pytest.mark.parametrize(
    ("changes", "pointer"),
    [
        ({"day": datetime(2026, 1, 31)}, "/payload/day"),  # noqa: DTZ001
        ({"choice": "b"}, "/payload/choice"),
        ({"numbers": ("1",)}, "/payload/numbers/0"),
        ({"pays": Line(sku=Sku("a"))}, "/payload/pays/kind"),
        ({"uid": "x"}, "/payload/uid"),
    ],
)
def test_event_made_in_python_meets_the_same_rules(changes, pointer):
    """A value of another type in an instance is a fault too: a datetime is not a date."""
    with pytest.raises(InvalidEvent) as caught:
        published(EverythingHappened(user_id="u", payload=Everything(**changes)))
    assert [fault.pointer for fault in caught.value.faults] == [pointer]


@pytest.mark.parametrize("tags", [("a", "a"), (1, 2)])
def test_union_that_nothing_tells_apart_is_refused(tags):
    """Two classes with the same value, or values that are not strings, are an error at startup that says what to do."""

    @frozen(kw_only=True)
    class One:
        kind: Literal[tags[0]]

    @frozen(kw_only=True)
    class Two:
        kind: Literal[tags[1]]

    @event("test.two", topic="test-topic")
    @frozen(kw_only=True)
    class Either(Event):
        payload: One | Two

    with pytest.raises(DefinitionError, match=r"Either\.payload: nothing tells .*One, .*Two apart in JSON: give each"):
        Catalog([Either])
