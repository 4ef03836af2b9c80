"""The language of subscriptions' filters."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pulsecart.transports.pubsub.filters import fault_of


@pytest.mark.parametrize(
    "text",
    [
        "attributes:source",
        "attributes : source",
        'attributes."event_type" = "order.placed"',
        'attributes.event_type != "order.placed"',
        'attributes.a-b = "x"',
        'hasPrefix(attributes.event_type, "order.")',
        "NOT attributes:source",
        "-attributes:source",
        'attributes.a = "x" AND attributes.b = "y" AND NOT attributes:c',
        '(attributes.a = "x" OR attributes.a = "y") AND attributes:b',
        "(attributes:a)AND(NOT (attributes:b))",
        r'attributes.a = "with \"quotes\" and (parentheses) AND more"',
    ],
)
def test_filters_of_the_language(text):
    """All forms that the documentation shows are accepted."""
    assert fault_of(text) is None


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "attributes or hasPrefix is expected at character 1, not the end"),
        ("event_type = 'x'", "attributes or hasPrefix is expected at character 1, not 'event_type'"),
        ('data.total = "1"', "attributes or hasPrefix is expected at character 1, not 'data'"),
        ("attributes.a = 'x'", 'a text in double quotes is expected at character 16, not "\'"'),
        ("attributes.a = x", "a text in double quotes is expected at character 16, not 'x'"),
        ('attributes.a = "x', "a text in double quotes is expected at character 16, not '\"'"),
        ('attributes.a == "x"', "a text in double quotes is expected at character 15, not '='"),
        ('attributes.a > "x"', "= or != is expected at character 14, not '>'"),
        ("attributes", ". and an attribute's name is expected at character 11, not the end"),
        ("attributes:", "an attribute's name is expected at character 12, not the end"),
        ("attributes:AND", "an attribute's name is expected at character 12, not 'AND'"),
        ("attributes:a and attributes:b", "AND, OR or the end is expected at character 14, not 'and'"),
        ("attributes:a AND", "attributes or hasPrefix is expected at character 17, not the end"),
        ("attributes:a OR attributes:b AND attributes:c", "AND and OR are mixed: add parentheses"),
        ("(attributes:a", "a closing parenthesis is expected at character 14, not the end"),
        ("attributes:a)", "AND, OR or the end is expected at character 13, not ')'"),
        ('hasPrefix(attributes:a, "x")', ". and an attribute's name is expected at character 21, not ':'"),
        ('hasPrefix(attributes.a "x")', "a comma is expected at character 24, not '\"x\"'"),
        ("attributes:" + "a" * 246, "has 257 bytes; the limit is 256"),
        ("attributes:" + "ü" * 123, "has 257 bytes; the limit is 256"),
    ],
)
def test_faults_name_the_place(text, fault):
    """What is no filter is named, with the character at which it goes wrong."""
    assert fault_of(text) == fault


keys = st.from_regex(r"[a-z][a-z0-9_-]{0,4}", fullmatch=True)
texts = st.from_regex(r'"[^"\\\n]{0,5}"', fullmatch=True)
comparisons = st.one_of(
    keys.map("attributes:{}".format),
    st.builds("attributes.{} {} {}".format, keys, st.sampled_from(["=", "!="]), texts),
    st.builds("hasPrefix(attributes.{}, {})".format, keys, texts),
)
filters = st.recursive(
    comparisons,
    lambda inner: st.one_of(
        inner.map("NOT ({})".format),
        st.builds("({}) AND ({})".format, inner, inner),
        st.builds("({}) OR ({})".format, inner, inner),
    ),
    max_leaves=4,
)


@given(filters)
def test_every_filter_made_by_the_grammar_is_accepted(text):
    """Whatever is combined by the rules is a filter, unless it is too long."""
    fault = fault_of(text)
    assert fault is None or (len(text.encode()) > 256 and "the limit is 256" in fault)


@given(st.text(max_size=300) | st.text(alphabet='()-.:="!, ANDORtae\\', max_size=256))
def test_any_text_has_a_verdict(text):
    """No text is too much for the parser, however deeply nested."""
    fault = fault_of(text)
    assert fault is None or fault


def test_deepest_nesting():
    """A filter of parentheses only is read to its end."""
    assert "attributes or hasPrefix is expected" in fault_of("(" * 256)
