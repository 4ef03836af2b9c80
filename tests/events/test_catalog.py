import sys
import textwrap
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any, Literal

import attrs
import pytest
from attrs import define, field, frozen, validators

from pulsecart import (
    Catalog,
    DefinitionError,
    Event,
    InvalidEvent,
    MissingEventType,
    UnknownEventType,
    event,
    load_catalog,
)
from pulsecart.events import OrderPlaced, max_bytes

CONTRACT = {
    "cart.item_added": ("CartItemAdded", "session_id", "pulsecart.user-actions"),
    "product.viewed": ("ProductViewed", "session_id", "pulsecart.user-actions"),
    "search.performed": ("SearchPerformed", "session_id", "pulsecart.user-actions"),
    "order.placed": ("OrderPlaced", "order_id", "pulsecart.commerce-events"),
    "cart.abandoned": ("CartAbandoned", "session_id", "pulsecart.commerce-events"),
    "payment.failed": ("PaymentFailed", "order_id", "pulsecart.commerce-events"),
    "message.personalized_send": ("PersonalizedSend", None, "pulsecart.system-events"),
    "inventory.low_stock_alert": ("LowStockAlert", None, "pulsecart.system-events"),
}


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Write a module that tests can name, and forget it afterwards."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)

    def write(name, text):
        path = tmp_path / f"{name.replace('.', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("from attrs import frozen\nfrom pulsecart import Event, event\n" + textwrap.dedent(text))
        return name

    yield write
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_catalog_matches_the_contract():
    """The eight types, their classes, own fields and topics are those of the contract."""
    common = set(attrs.fields_dict(Event))
    found = {
        cls.event_type: (cls.__name__, next(iter(attrs.fields_dict(cls).keys() - common), None), cls.topic)
        for cls in load_catalog()
    }
    assert found == CONTRACT
    assert load_catalog().topics == ["pulsecart.commerce-events", "pulsecart.system-events", "pulsecart.user-actions"]


def test_commerce_types_can_be_left_out(module):
    """Without the built-in types there are only those of modules, also if a module imports a built-in one."""
    name = module(
        "without_commerce",
        """
        from pulsecart.events import OrderPlaced

        @event("test.without_commerce", topic="test-topic")
        @frozen(kw_only=True)
        class Own(Event):
            pass
        """,
    )
    assert list(load_catalog([name], commerce=False).event_types) == ["test.without_commerce"]
    assert len(load_catalog([name]).event_types) == 9


def test_catalog_without_any_type_is_refused(module):
    """Without the built-in types there has to be a module with others."""
    name = module("only_commerce", "from pulsecart.events import OrderPlaced\n")
    for modules in ([], [name]):
        with pytest.raises(DefinitionError, match=r"there are no event types: .*PULSECART_COMMERCE_EVENTS=false"):
            load_catalog(modules, commerce=False)


def test_catalog_lists_its_event_types():
    """The event types and their classes have the same order."""
    catalog = load_catalog()
    assert list(catalog.event_types) == [cls.event_type for cls in catalog]


@pytest.mark.parametrize("cls", list(load_catalog()), ids=lambda cls: cls.__name__)
def test_events_are_frozen_slotted_and_keyword_only(cls):
    """An event cannot be changed, given new attributes, or made from positions."""
    own = CONTRACT[cls.event_type][1]
    made = cls(user_id="u", payload={}, **({own: "x"} if own else {}))
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        made.user_id = "v"
    assert not hasattr(made, "__dict__")
    with pytest.raises(TypeError):
        cls("u", {})


def test_module_of_a_user_adds_event_types(module):
    """A module named in the settings adds its classes to the built-in ones."""
    module("shop_a.events", '@event("a.b", topic="shop")\n@frozen(kw_only=True)\nclass A(Event):\n    colour: str\n')
    found = load_catalog(["shop_a.events"])
    made = found.structure({"event_type": "a.b", "user_id": "u", "payload": {}, "colour": "red"})
    assert (type(made).__name__, made.colour, made.topic) == ("A", "red", "shop")
    assert "shop" in found.topics
    assert len(list(found)) == 9


def test_package_contributes_the_classes_of_its_modules(module):
    """Naming a package is enough for classes in modules that it imports, and for those it only imports by name."""
    module("shop_b.events.orders", '@event("b.1", topic="shop")\n@frozen(kw_only=True)\nclass B(Event): ...\n')
    module("elsewhere_b", '@event("b.2", topic="shop")\n@frozen(kw_only=True)\nclass C(Event): ...\n')
    module("shop_b.events.__init__", "import shop_b.events.orders\nfrom elsewhere_b import C\n")
    assert {"b.1", "b.2"} <= {cls.event_type for cls in load_catalog(["shop_b.events"])}


def test_string_annotations_are_understood(module):
    """A module with `from __future__ import annotations` works as any other."""
    module("shop_f", "")
    path = sys.path[0] + "/shop_f.py"
    with open(path) as file:  # noqa: PTH123
        text = file.read()
    with open(path, "w") as file:  # noqa: PTH123
        file.write(f"from __future__ import annotations\n{text}")
        file.write('@event("f.g", topic="shop")\n@frozen(kw_only=True)\nclass F(Event):\n    number: int\n')
    with pytest.raises(InvalidEvent, match="expected an integer"):
        load_catalog(["shop_f"]).structure({"event_type": "f.g", "user_id": "u", "payload": {}, "number": "3"})


def test_same_class_in_two_modules_is_not_a_conflict(module):
    """Two modules may share a class; a module may be named twice, or import a built-in class."""
    module("shop_c", '@event("c.d", topic="shop")\n@frozen(kw_only=True)\nclass C(Event): ...\n')
    module("shop_d", "from shop_c import C\nfrom pulsecart.events import OrderPlaced\n")
    assert len(list(load_catalog(["shop_c", "shop_d", "shop_c"]))) == 9


def test_entry_point_adds_event_types(module, tmp_path):
    """An installed package adds its classes through the entry-point group pulsecart.events."""
    module("shop_e", '@event("e.f", topic="shop")\n@frozen(kw_only=True)\nclass E(Event): ...\n')
    installed = tmp_path / "shop_e-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: shop-e\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text("[pulsecart.events]\nshop = shop_e\n")
    assert "e.f" in {cls.event_type for cls in load_catalog()}


def test_two_classes_for_one_event_type_are_refused(module):
    """A conflict is a DefinitionError that names both classes."""
    module("shop_g", '@event("order.placed", topic="shop")\n@frozen(kw_only=True)\nclass Mine(Event): ...\n')
    with pytest.raises(
        DefinitionError, match=r"'order.placed': pulsecart\.events\.commerce\.OrderPlaced and shop_g\.Mine"
    ):
        load_catalog(["shop_g"])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("import no_such_module_anywhere", "ModuleNotFoundError: No module named 'no_such_module_anywhere'"),
        ("1 / 0", "ZeroDivisionError"),
        ("def broken(:", "SyntaxError"),
        ("", "declares no event class"),
        ('@event("h.i")\n@frozen(kw_only=True)\nclass H(Event): ...\n', "names no topic"),
    ],
)
def test_module_that_fails_to_import_is_named(module, text, says):
    """A module that does not import, or declares no event class, is named with the cause."""
    module("shop_h", text)
    with pytest.raises(DefinitionError) as caught:
        load_catalog(["shop_h"])
    assert "'shop_h' (PULSECART_EVENTS)" in str(caught.value)
    assert says in str(caught.value)


def test_unknown_module_is_named():
    """A module that does not exist is named in the error."""
    with pytest.raises(DefinitionError, match="'no_shop' .PULSECART_EVENTS. does not import"):
        load_catalog(["no_shop"])


ODD_OFFSET = timezone(timedelta(minutes=9, seconds=21))
KEYWORD_ONLY = frozen(kw_only=True)


def declare(*, name="t.u", topic="shop", decorate=KEYWORD_ONLY, base=Event, **members):
    return event(name, topic=topic)(decorate(type("Declared", (base,), members)))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: declare(topic=""), "names no topic"),
        (lambda: declare(topic="projects/p/topics/t"), "not a Pub/Sub topic name"),
        (lambda: declare(topic="ab"), "not a Pub/Sub topic name"),
        (lambda: declare(topic="google-topic"), "not a Pub/Sub topic name"),
        (lambda: declare(topic=3), "not a Pub/Sub topic name"),
        (lambda: declare(name=""), "1 to 1024 bytes"),
        (lambda: declare(name="é" * 513), "1 to 1024 bytes"),
        (lambda: declare(name="\ud800"), "1 to 1024 bytes"),
        (lambda: event(OrderPlaced), "with the event type's name first"),
        (
            lambda: declare(user_id=field(default=""), __annotations__={"user_id": str}),
            "'user_id' belongs to every event",
        ),
        (lambda: declare(timestamp=field(default=None)), "'timestamp' belongs to every event"),
        (lambda: declare(payload=field(factory=dict)), "payload is required"),
        (lambda: declare(base=object), "extend pulsecart.Event"),
        (lambda: declare(decorate=lambda cls: cls), "put @frozen"),
        (lambda: declare(decorate=frozen(kw_only=True, slots=False)), "frozen and slotted"),
        (lambda: declare(decorate=frozen, x=field(default=1), __annotations__={"x": int}), "keyword-only"),
        (lambda: declare(topic="shop", event_type=field(default=1)), "cannot be named 'event_type'"),
        (lambda: Catalog([Event]), "not declared"),
    ],
)
def test_invalid_declaration_is_refused_with_a_remedy(make, says):
    """A wrong declaration is an error when it is made, not with the first event."""
    with pytest.raises(DefinitionError, match=says):
        make()


def test_class_that_is_not_frozen_is_refused():
    """A mutable event could change between validation and publishing."""

    @define(kw_only=True)
    class Mutable:
        user_id: str

    with pytest.raises(DefinitionError, match="extend pulsecart.Event"):
        event("m.n", topic="shop")(Mutable)


@pytest.mark.parametrize(
    "value", [float("nan"), float("-inf"), Decimal("NaN"), datetime(1890, 1, 1, tzinfo=ODD_OFFSET)]
)
def test_default_that_json_cannot_carry_is_refused(value):
    """A catalog refuses a class with a default that could not be published, naming the field."""

    @frozen
    class Line:
        price: Any = value

    with pytest.raises(DefinitionError, match=r"Declared\.lines\.price: its default (is not a finite|has an offset)"):
        Catalog([declare(lines=field(factory=list), __annotations__={"lines": list[Line]})])


@pytest.mark.parametrize(
    ("type_", "default", "message"),
    [
        (Literal["bronze", "gold"], "copper", "expected one of 'bronze', 'gold'"),
        (str, None, "expected a string, got null"),
        (int, field(default=9, validator=validators.le(5)), "must be <= 5"),
        (int | None, field(default=None, validator=validators.le(5)), r"attrs\.validators\.optional\(\)"),
    ],
)
def test_default_that_the_field_may_not_have_is_refused(type_, default, message):
    """No validator sees a default, so a wrong one would be published, and no consumer could read it."""
    with pytest.raises(DefinitionError, match=rf"Declared\.odd: its default is not valid: .*{message}"):
        Catalog([declare(odd=default, __annotations__={"odd": type_})])


def test_valid_defaults_are_accepted():
    """Values of other types than JSON's, converters, and validators that look at other fields are no obstacle."""

    def not_before(instance, _attribute, value):
        if value < instance.since:
            raise ValueError("is before since")

    fields = {
        "since": (date, date(2026, 1, 1)),
        "until": (date, field(default=date(2027, 1, 1), validator=not_before)),
        "price": (Decimal, Decimal("1.50")),
        "weight": (float, 2.5),
        "sizes": (tuple[str, ...], ("s",)),
        "upper": (str, field(default=None, converter=lambda value: str(value).upper())),
        "made": (list[str], field(factory=list)),
        "level": (int | None, field(default=None, validator=validators.optional(validators.le(5)))),
    }
    types = {name: type_ for name, (type_, _) in fields.items()}
    assert list(Catalog([declare(**{name: value for name, (_, value) in fields.items()}, __annotations__=types)]))


def test_annotation_that_attrs_ignores_is_refused():
    """As soon as one field has no annotation, attrs ignores fields that have only one."""
    with pytest.raises(DefinitionError, match="attrs ignores title, because another field has no annotation"):
        declare(order_id=field(type=str), __annotations__={"title": str})


def test_subclass_does_not_inherit_the_declaration():
    """A class has to declare its own event type and topic."""

    @frozen(kw_only=True)
    class Express(OrderPlaced): ...

    with pytest.raises(DefinitionError, match="not declared"):
        Catalog([Express])


def test_undeclared_class_in_a_module_is_named(module):
    """A class without the decorator is an error, unless it is a base class of declared ones."""
    base = "@frozen(kw_only=True)\nclass Base(Event): ...\n"
    module("shop_i", base + '@event("i.1", topic="shop")\n@frozen(kw_only=True)\nclass One(Base): ...\n')
    assert "i.1" in {cls.event_type for cls in load_catalog(["shop_i"])}
    module("shop_j", '@event("j.1", topic="shop")\n@frozen(kw_only=True)\nclass One(Event): ...\n' + base)
    with pytest.raises(DefinitionError, match=r"shop_j\.Base is not declared"):
        load_catalog(["shop_j"])


def test_missing_event_type_lists_the_known_ones():
    """Without event_type the error lists the known event types."""
    with pytest.raises(MissingEventType) as caught:
        load_catalog().structure({})
    assert [fault.pointer for fault in caught.value.faults] == ["/event_type", "/user_id", "/payload"]
    assert "order.placed" in caught.value.faults[0].message
    with pytest.raises(MissingEventType, match="did you mean 'event_type'"):
        load_catalog().structure({"event_typ": "order.placed"})


@pytest.mark.parametrize(
    ("body", "pointers"),
    [
        (
            {"eventType": "order.placed", "userId": "u", "orderId": "o", "payload": {}},
            ["/event_type", "/user_id", "/order_id", "/eventType", "/userId", "/orderId"],
        ),
        ({"eventType": "order.place", "userId": "u"}, ["/event_type", "/eventType", "/user_id", "/payload"]),
        ({"eventType": {}, "user_id": 3, "payload": {}}, ["/event_type", "/eventType", "/user_id"]),
        ({"event_id": "e", "user_id": "u", "payload": {}}, ["/event_type"]),
    ],
)
def test_misspelt_event_type_is_reported_with_the_other_faults(body, pointers):
    """A body in camelCase learns how each of its fields is spelled, by its event type where that is known."""
    with pytest.raises(MissingEventType) as caught:
        load_catalog().structure(body)
    messages = {fault.pointer: fault.message for fault in caught.value.faults}
    assert list(messages) == pointers
    assert "did you mean" not in messages["/event_type"]
    spelled = {"/eventType": "event_type", "/userId": "user_id", "/orderId": "order_id"}
    assert all(
        messages[each] == f"is not a known field; did you mean {spelled[each]!r}?"
        for each in spelled.keys() & messages.keys()
    )


@pytest.mark.parametrize(
    ("value", "code"), [(None, "wrong-type"), (3, "wrong-type"), (["x"], "wrong-type"), ("", "empty")]
)
def test_event_type_of_another_kind_is_invalid(value, code):
    """An event_type of another kind is an invalid field, named with the faults of the other known fields."""
    with pytest.raises(InvalidEvent) as caught:
        load_catalog().structure({"event_type": value, "user_id": "", "payload": {}, "own": 1})
    assert [(f.pointer, f.code) for f in caught.value.faults] == [("/event_type", code), ("/user_id", "empty")]


def test_unknown_event_type_names_the_nearest():
    """A misspelt event_type is answered with the one that was probably meant, and the other faults."""
    with pytest.raises(UnknownEventType, match="did you mean 'order.placed'") as caught:
        load_catalog().structure({"event_type": "order.place", "user_id": 3, "payload": {}})
    assert [fault.pointer for fault in caught.value.faults] == ["/event_type", "/user_id"]
    with pytest.raises(UnknownEventType, match="known are cart.item_added"):
        load_catalog().structure({"event_type": "x" * 100_000})


@pytest.mark.parametrize(
    "fields",
    [
        {"user_id": 3},
        {"user_id": ""},
        {"user_id": "\ud800" * 400},
        {"event_id": ""},
        {"payload": 3},
        {"payload": [("a", 1)]},
        {"timestamp": "2026-01-31T12:00:00Z"},
        {"timestamp": __import__("datetime").datetime(2026, 1, 31)},
        {
            "timestamp": __import__("datetime").datetime.min.replace(
                tzinfo=__import__("zoneinfo").ZoneInfo("Asia/Tokyo")
            )
        },
    ],
)
def test_constructor_enforces_the_common_rules(fields):
    """The same rules hold for events made by a constructor, which raises a ValueError."""
    with pytest.raises(ValueError):  # noqa: PT011
        OrderPlaced(**({"user_id": "u", "payload": {}, "order_id": "o"} | fields))


def test_max_bytes_counts_bytes():
    """max_bytes counts UTF-8, so that a limit holds on the wire."""
    validate = max_bytes(4)
    validate(None, None, "éé")
    with pytest.raises(ValueError, match="has 5 bytes"):
        validate(None, None, "ééx")
