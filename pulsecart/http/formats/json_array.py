"""JSON arrays, taken apart into raw elements, each of which is then read by the rules of a single event."""

import re
from functools import cache
from typing import Any

import msgspec

from pulsecart.errors import MalformedBody
from pulsecart.events.codec import MAX_DEPTH
from pulsecart.http.problems import Problem, ProblemError

__all__ = ["elements"]

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")
_BETWEEN = re.compile(rb"[ \t\r\n,]*")


def elements(body: bytes, most: int, *, may_be_empty: bool) -> list[bytes]:
    """Return the elements of a JSON array, each as it was sent.

    Raises `MalformedBody` if the body is no array, or an empty one unless it may be empty, and `ProblemError` (413) if
    it has more than `most` elements.
    """
    try:
        try:
            array = [bytes(element) for element in _decoded(body, most)]
        except msgspec.DecodeError:
            # The decoder refuses half of a surrogate pair, which is no character, but JSON. Only its event is wrong.
            array = _slices(body, _decoded(_SURROGATE.sub(b"aaaaaa", body.replace(rb"\\", b"aa")), most))
    except msgspec.ValidationError:
        if body.lstrip(b" \t\r\n")[:1] != b"[":
            raise MalformedBody(
                "The body is not a JSON array; send one array of events, or lines as application/x-ndjson."
            ) from None
        raise _too_many(most) from None
    except msgspec.DecodeError as error:
        reason = str(error).removeprefix("JSON is malformed: ")
        raise MalformedBody(f"The body is not a JSON array: {reason}." if body else "The body is empty.") from None
    except RecursionError:
        raise MalformedBody(
            f"An event of the array is nested too deep to find its end; events may be nested {MAX_DEPTH} deep."
        ) from None
    if not array and not may_be_empty:
        raise MalformedBody("The array is empty; send at least one event.")
    return array


def _decoded(body: bytes, most: int) -> list[msgspec.Raw]:
    return [element for element in msgspec.structs.astuple(_decoder(most).decode(body)) if element is not msgspec.UNSET]


def _slices(body: bytes, elements: list[msgspec.Raw]) -> list[bytes]:
    """Return the slices of a body that has these elements, or others of the same length in their place."""
    array = []
    end = body.index(b"[") + 1
    for element in elements:
        between = _BETWEEN.match(body, end)
        assert between is not None  # for the type checker: it also matches nothing
        end = between.end() + len(memoryview(element))
        array.append(body[between.end() : end])
    return array


@cache
def _decoder(most: int) -> msgspec.json.Decoder[Any]:
    """Return a decoder that stops at the first element too many: ten million of them would fit into a body."""
    fields: list[Any] = [(f"_{n}", msgspec.Raw | msgspec.UnsetType, msgspec.UNSET) for n in range(most)]
    return msgspec.json.Decoder(msgspec.defstruct("Elements", fields, array_like=True, forbid_unknown_fields=True))


def _too_many(most: int) -> ProblemError:
    return ProblemError(
        Problem(
            status=413,
            type="body-too-large",
            title="The array has too many events",
            detail=f"The array has more than {most:,} events; send several arrays, or lines as application/x-ndjson.",
            more={"limit": most},
        )
    )
