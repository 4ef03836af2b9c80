import copy
import json
import pickle
import sys
import tracemalloc
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from types import MappingProxyType
from typing import Any

import attrs
import msgspec
import pytest
from attrs import frozen
from hypothesis import given
from hypothesis import strategies as st

from pulsecart import Catalog, Event, InvalidEvent, MalformedBody, event
from pulsecart.events import JsonObject, OrderPlaced
from pulsecart.events.codec import MAX_DEPTH, MAX_NAMES, decode, encode, encode_made

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)


def nested(depth: int) -> bytes:
    return b'{"a":' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}"


def deep(levels: int) -> dict:
    value: dict = {"leaf": None}
    for _ in range(levels):
        value = {"a": value}
    return value


def order(**changes) -> OrderPlaced:
    fields = {"event_id": "e", "timestamp": NOON, "user_id": "u", "order_id": "o", "payload": {}}
    return OrderPlaced(**(fields | changes))


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "empty"),
        (b" ", "not JSON"),
        (b"{", "not JSON"),
        (b'{"a":1,}', "not JSON"),
        (b'{"a":1} x', "trailing"),
        (b'{"a":NaN}', "byte 5"),
        (b'{"a":-Infinity}', "not JSON"),
        (b'{"a":01}', "not JSON"),
        (b"\xef\xbb\xbf{}", "byte order mark"),
        ("{}".encode("utf-16"), "byte order mark"),
        (b'{"a":"\xff"}', "not UTF-8"),
        (b'{"\xc3":1}', "not UTF-8"),
        (b'{"a":"\xed\xa0\x80"}', "not UTF-8"),
        (rb'{"a":"\ud800"}', "lone surrogate"),
        (rb'{"a":"\udc00 and more"}', "lone surrogate"),
        (b"[]", "an array"),
        (b"[{}]", "an array"),
        (b"null", "null"),
        (b'"text"', "a string"),
        (b"12", "a number"),
        (b"[1,", "not JSON"),
        (b"9" * 4301, "4300 digits"),
        (b"1.5", "a number"),
        (b"true", "true"),
        (b'{"a":' + b"9" * 4301 + b"}", "4300 digits"),
        (b'{"a":' + b"9" * 10_000_000 + b"}", "4300 digits"),
        (b'{"a":[-' + b"9" * 4301 + b"]}", "4300 digits"),
        (b'{"a":-' + b"9" * 4301 + b"}", "4300 digits"),
        (b'{"a":["\\"",' + b"9" * 4301 + b"]}", "4300 digits"),
        (b'{"a":[1e99999999999999999999]}', "exponent"),
        (b'{"a":[1E-99999999999999999999]}', "exponent"),
        (b'{"a":{"b":"\xff"}}', "not UTF-8"),
        (b'{"a":{"\xc3":1}}', "not UTF-8"),
        (b'{"a":1e99999999999999999999}', "exponent"),
        (b'{"a":1e-99999999999999999999}', "exponent"),
        (nested(MAX_DEPTH + 1), "128 deep"),
        (b"[" * 100_000 + b"]" * 100_000, "128 deep"),
        (b'{"a":' * 2_000_000, "128 deep"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_malformed_body_is_refused_with_the_reason(raw, says):
    """Whatever cannot be read as one JSON object without loss is a MalformedBody that names the reason."""
    with pytest.raises(MalformedBody) as caught:
        decode(raw)
    assert says in caught.value.detail


def test_nesting_is_allowed_down_to_the_limit():
    """128 levels are read; strings full of brackets do not count as nesting."""
    decode(nested(MAX_DEPTH))
    decode(json.dumps({"a": "[{" * 500}).encode())
    decode(json.dumps({"a": [{}] * 500}).encode())
    decode(json.dumps({"a": ['"[\\', "\\", "[{" * 500] * 2}).encode())


@pytest.mark.parametrize(
    "number",
    [
        "89.90",
        "1",
        "-0.0",
        "0.1",
        "1E+400",
        "1E-400",
        "18446744073709551616",
        "1." + "0" * 40 + "1",
        "9" * 4300,
        "-" + "9" * 4300,
    ],
)
def test_numbers_keep_every_digit(number):
    """A number is the same in the message as in the body, digit for digit."""
    made = order(payload=decode(b'{"n":%b}' % number.encode()))
    assert b'"payload":{"n":%b}' % number.encode() in encode(made)


@pytest.mark.parametrize(
    ("raw", "names"),
    [
        (b'{"a":1,"a":2}', ["/a"]),
        (b'{"a":1,"b":2,"a":1}', ["/a"]),
        (rb'{"user_id":1,"\u0075ser_id":2}', ["/user_id"]),
        (rb'{"user_id":1,"user\u005Fid":2}', ["/user_id"]),
        ('{"é":1,"\\u00e9":2}'.encode(), ["/é"]),
        (b'{"a":1,"b":{"a":2},"b":3}', ["/b"]),
        (json.dumps({str(n): n for n in range(100)}).encode()[:-1] + b',"7":1}', ["/7"]),
        (b'{"a/b~c":1,"a/b~c":1}', ["/a~1b~0c"]),
    ],
)
def test_repeated_top_level_name_is_refused(raw, names):
    """A duplicate top-level name loses a value, however it is spelled, so the body is refused, naming it."""
    with pytest.raises(MalformedBody) as caught:
        decode(raw)
    assert [(fault.pointer, fault.code) for fault in caught.value.faults] == [(name, "duplicate") for name in names]


def test_many_repeated_names_give_a_short_error():
    """Many names, many of them repeated, or a very long one, neither make a long error nor take long."""
    many = [f'"{number}":1' for number in range(500)]
    for pairs in (many + many[:1], many + many, [f'"{"x" * 500_000}":1'] * 2):
        with pytest.raises(MalformedBody) as caught:
            decode(f"{{{','.join(pairs)}}}".encode())
        assert len(caught.value.faults) <= 100
        assert len(str(caught.value)) < 10_000


@pytest.mark.parametrize(
    "raw",
    [
        b'{"a":{"a":1},"b":[{"a":1,"b":2}]}',
        b'{"a":"a","b":"\\"a\\""}',
        rb'{"a":"\u0041"}',
        rb'{"a\"b":1,"c":2}',
        '{"é":1,"e":2}'.encode(),
        json.dumps({str(n): n for n in range(100)}).encode(),
    ],
)
def test_name_used_elsewhere_is_not_a_duplicate(raw):
    """Names of nested objects, texts that look like names, and escapes are not duplicates."""
    assert decode(raw) == json.loads(raw)


@pytest.mark.parametrize("name", ['"{}"', '"a"'], ids=["distinct", "the same"])
def test_more_fields_than_the_limit_are_refused(name):
    """The number of top-level fields is limited, so that to look for duplicates takes little time."""
    members = [f"{name.format(number)}:0" for number in range(MAX_NAMES + 1)]
    with pytest.raises(MalformedBody, match="more than 1,000 fields"):
        decode(f"{{{','.join(members)}}}".encode())
    distinct = [f'"{number}":0' for number in range(MAX_NAMES)]
    assert len(decode(f"{{{','.join(distinct)}}}".encode())) == MAX_NAMES


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.decimals(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner),
    max_leaves=20,
)


@given(st.dictionaries(st.text(st.characters(codec="utf-8")), json_values))
def test_encoded_payload_decodes_to_the_same(payload):
    """Any JSON payload comes out as it went in."""
    assert decode(encode(order(payload=payload)))["payload"] == payload


names = st.sampled_from(["a", "b", "user_id", "é"])


@given(st.lists(st.tuples(names, st.booleans(), st.sampled_from(["1", '"a"', '{"b":1}', '"\\u0061"', '"\\\\"']))))
def test_repeated_names_are_found_exactly(pairs):
    """The quick look for duplicates agrees with a parse in pairs, whatever the spelling and the values."""

    def spelled(name: str, escaped: bool) -> str:
        return "".join(f"\\u{ord(letter):04x}" for letter in name) if escaped else name

    raw = "{" + ",".join(f'"{spelled(name, escaped)}":{value}' for name, escaped, value in pairs) + "}"
    distinct = {name for name, _, _ in pairs}
    if len(distinct) == len(pairs):
        assert decode(raw.encode()).keys() == distinct
    else:
        with pytest.raises(MalformedBody, match="twice"):
            decode(raw.encode())


def test_event_type_comes_first_and_times_are_in_utc():
    """A message is the whole event, event_type first, timestamp as RFC 3339 with Z."""
    assert encode(order()) == (
        b'{"event_type":"order.placed","event_id":"e","timestamp":"2026-01-31T12:00:00Z",'
        b'"user_id":"u","payload":{},"order_id":"o"}'
    )


@dataclass
class Point:
    x: float


@pytest.mark.parametrize(
    ("payload", "pointer"),
    [
        ({"a": [1.0, float("nan")]}, "/payload/a/1"),
        ({"a": {"b": float("-inf")}}, "/payload/a/b"),
        ({"a": Decimal("NaN")}, "/payload/a"),
        ({"a": Decimal("-Infinity")}, "/payload/a"),
        ({"lines": {float("inf")}}, "/payload/lines/0"),
        ({"point": Point(float("nan"))}, "/payload/point/x"),
    ],
)
def test_nan_and_infinity_are_refused(payload, pointer):
    """NaN and infinity in an event made in Python are refused with their place, not published as null."""
    made = order(payload=payload)
    with pytest.raises(InvalidEvent) as caught:
        encode_made(made)
    assert [fault.pointer for fault in caught.value.faults] == [pointer]


def test_nan_in_a_typed_payload_is_refused():
    """The place of a NaN inside an attrs class is named like any other."""

    @frozen
    class Line:
        price: float

    @event("test.line", topic="test-topic")
    @frozen(kw_only=True)
    class Sold(Event):
        payload: Line

    sold = Sold(event_id="e", timestamp=NOON, user_id="u", payload=Line(float("nan")))
    with pytest.raises(InvalidEvent, match="/payload/price"):
        encode_made(sold)


@pytest.mark.parametrize("payload", [{"a": None}, {"a": "null NaN Infinity", "b": 1.5, "c": Decimal("1E+400")}])
def test_null_and_the_word_nan_are_accepted(payload):
    """None, the words, and numbers over the range of a float pass."""
    made = order(payload=payload)
    encode_made(made)


def test_event_made_in_python_has_the_limit_of_depth():
    """Nesting over 128 is refused in Python too, since it would be refused as a body."""
    made = order(payload=deep(MAX_DEPTH - 2))
    encode_made(made)
    made = order(payload=deep(MAX_DEPTH - 1))
    with pytest.raises(InvalidEvent, match="128 deep"):
        encode_made(made)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"payload": {"a": deep(980)}}, "deep|depth"),
        ({"order_id": "o", "timestamp": None}, "/timestamp"),
    ],
)
def test_event_that_would_be_refused_as_a_body_is_refused(changes, says):
    """An event made in Python is not published if its JSON would be refused as a body."""
    made = order(**changes)
    with pytest.raises(InvalidEvent, match=says):
        encode_made(made)


@pytest.mark.parametrize("value", [object(), "\ud800", 10**5000, 1j], ids=["object", "surrogate", "digits", "complex"])
def test_value_without_a_json_form_is_refused(value):
    """A value without a JSON form is an InvalidEvent that says which."""
    with pytest.raises(InvalidEvent, match="cannot be written as JSON"):
        encode_made(order(payload={"a": value}))


RECEIVED = rb'{ "n": 1.50, "e":1E+2,"a":["\u00e9", null] , "o":{"b":1,"b":-0} }'
CATALOG = Catalog([OrderPlaced])


def received(payload: bytes = RECEIVED) -> Any:
    body = b'{"event_type":"order.placed","event_id":"e","user_id":"u","order_id":"o","payload":%b}' % payload
    return CATALOG.structure(decode(body))


def test_untyped_payload_is_published_as_received():
    """The payload's bytes are passed on, whatever has been read of it, also by copies of the event."""
    made = received()
    for each in (made, attrs.evolve(made, event_id="f"), pickle.loads(pickle.dumps(made)), copy.deepcopy(made)):
        assert b'"payload":' + RECEIVED + b"," in encode(each)
        assert each.payload["n"] == Decimal("1.50")
        assert b'"payload":' + RECEIVED + b"," in encode(each)
    nested = order(payload={"first": [made.payload]})
    encode_made(nested)
    assert b'"payload":{"first":[' + RECEIVED + b"]}," in encode_made(nested)


def test_received_payload_is_a_read_only_mapping():
    """It is read like a dict, with exact numbers, and is equal to any mapping of the same members."""
    payload = received().payload
    members = {"n": Decimal("1.50"), "e": Decimal("1E+2"), "a": ["é", None], "o": {"b": 0}}
    assert isinstance(payload, Mapping)
    assert isinstance(payload, JsonObject)
    assert (list(payload), len(payload), payload.get("x"), "n" in payload) == (["n", "e", "a", "o"], 4, None, True)
    assert repr(payload["n"]) == "Decimal('1.50')"
    assert dict(payload) == members
    assert payload == members
    assert members == payload
    assert payload == MappingProxyType(members)
    assert payload == received().payload
    assert payload != received(b"{}").payload
    assert payload != 3
    assert repr(payload) == f"JsonObject({members!r})"
    assert copy.copy(payload) == payload
    with pytest.raises(TypeError):
        payload["n"] = 1
    with pytest.raises(TypeError):
        hash(payload)


def test_received_payload_takes_little_more_memory_than_its_bytes():
    """No object is made for what an untyped payload, or a field of a wrong kind, holds."""
    arrays = b"[" + b"[]," * 100_000 + b"[]]"
    body = b'{"event_type":"order.placed","order_id":%b,"payload":{"v":%b}}' % (arrays, arrays)
    tracemalloc.start()
    try:
        with pytest.raises(InvalidEvent, match="expected a string, got an array"):
            CATALOG.structure(decode(body))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * len(body)


def test_dropped_event_does_not_keep_the_body():
    """Nothing but the event holds on to the body it came in."""
    body = b'{"event_type":"order.placed","user_id":"u","order_id":"o","payload":%b}' % RECEIVED
    before = sys.getrefcount(body)
    made = CATALOG.structure(decode(body))
    data = encode(made)
    assert made.payload["n"]
    del made
    assert sys.getrefcount(body) == before
    assert data


def decoded_at_once(raw: bytes) -> dict[str, Any]:
    """Decode as `decode` must, by building everything; raise ValueError for what it must refuse."""

    def depth(value: Any) -> int:
        # Objects are lists of pairs, so that what a repeated name hides counts too.
        children = [item for _, item in value[1:]] if value[:1] == [dict] else value
        return 1 + max((depth(child) for child in children if type(child) is list), default=0)

    try:
        document: dict[str, Any] = msgspec.json.Decoder(dict, float_hook=Decimal).decode(raw)
        pairs = json.loads(raw, object_pairs_hook=lambda pairs: [dict, *pairs], parse_int=str, parse_float=str)
    except (UnicodeDecodeError, InvalidOperation, msgspec.DecodeError, RecursionError) as error:
        raise ValueError(raw) from error
    if depth(pairs) > MAX_DEPTH or len(pairs) - 1 != len(document):
        raise ValueError(raw)
    return document


fragments = (
    st.sampled_from([*'{}[],:"\\0 1-.eE+', "true", "null", "NaN", "\n", "\x00", "\x7f", "é", "😀"])
    | st.sampled_from(['"a"', '"b"', '"\\u0061"', '"[{"', '"\\\\"', '"e1234567890123456789"', '\\"', "\\\\"])
    | st.sampled_from(["\\u00e9", "\\ud83d\\ude00", "\\ud800", "[]", "{}", "-0", "1.50", "01", "0." + "3" * 4400])
    | st.sampled_from(["9" * 4299, "9" * 4300, "9" * 4301, "1e999999999999999999", "1E1000000000000000000"])
    | st.sampled_from(["1e-1999999999999999997", "1e-1999999999999999998", "0e00000000000000000000"])
    | st.sampled_from(["[" * 126, "]" * 126, "[" * 127, "]" * 127, '{"a":' * 126, "}" * 126])
).map(str.encode) | st.sampled_from([b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf4\x90\x80\x80"])


@st.composite
def bodies(draw):
    """JSON objects with something put in, left out or put in place of something else."""
    values = st.recursive(
        fragments,
        lambda inner: (
            st.lists(inner, max_size=4).map(lambda items: b"[" + b", ".join(items) + b"]")
            | st.lists(st.tuples(st.sampled_from([b'"a"', b'"b"', rb'"\u0061"', b'"[\\""']), inner), max_size=4).map(
                lambda pairs: b"{" + b",".join(name + b":" + value for name, value in pairs) + b"}"
            )
        ),
        max_leaves=8,
    )
    body = b'{"a":' + draw(values) + b',"c" : ' + draw(values) + b"}"
    if draw(st.booleans()):
        at, end = sorted((draw(st.integers(0, len(body))), draw(st.integers(0, len(body)))))
        body = body[:at] + draw(fragments | st.just(b"")) + body[end if draw(st.booleans()) else at :]
    return body


@given(bodies())
def test_scanned_body_is_judged_as_if_it_were_decoded(raw):
    """A body is read or refused exactly as if all of it were decoded, and reads the same."""
    try:
        expected = decoded_at_once(raw)
    except ValueError:
        with pytest.raises(MalformedBody):
            decode(raw)
    else:
        # By repr: Decimal("1.0") and 1 are equal.
        document = {name: getattr(value, "value", value) for name, value in decode(raw).items()}
        assert repr(document) == repr(expected)
