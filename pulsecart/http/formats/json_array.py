"""JSON arrays, taken apart into raw elements, each of which is then read by the rules of a single event."""

from functools import cache
from typing import Any

import msgspec

from pulsecart.errors import MalformedBody
from pulsecart.http.problems import Problem, ProblemError

__all__ = ["elements"]


def elements(body: bytes, most: int, *, may_be_empty: bool) -> list[bytes]:
    """Return the elements of a JSON array, each as it was sent.

    Raises `MalformedBody` if the body is no array, or an empty one unless it may be empty, and `ProblemError` (413) if
    it has more than `most` elements.
    """
    try:
        found = msgspec.structs.astuple(_decoder(most).decode(body))
    except msgspec.ValidationError:
        if body.lstrip(b" \t\r\n")[:1] != b"[":
            raise MalformedBody("The body is not a JSON array; send one array of events.") from None
        raise _too_many(most) from None
    except (msgspec.DecodeError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        reason = reason.removeprefix("JSON is malformed: ")
        raise MalformedBody(f"The body is not a JSON array: {reason}." if body else "The body is empty.") from None
    array = [bytes(element) for element in found if element is not msgspec.UNSET]
    if not array and not may_be_empty:
        raise MalformedBody("The array is empty; send at least one event.")
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
