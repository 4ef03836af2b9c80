"""CloudEvents 1.0.2, its JSON format and its HTTP binding, as documents for `Producer.prepare`.

`type` becomes `event_type`, `time` becomes `timestamp`, `id` with `source` becomes `event_id`, and `data` has all other
fields; `user_id` may be the extension `partitionkey` instead. Other extensions and optional attributes are not kept.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from typing import Any
from urllib.parse import unquote_to_bytes

from attrs import evolve, frozen

from pulsecart.errors import EventError, Fault, InvalidEvent, MalformedBody, MessageTooLarge
from pulsecart.events.base import MAX_ID_BYTES, describe
from pulsecart.events.codec import Document, decode
from pulsecart.events.lazy import JsonObject
from pulsecart.http.problems import ProblemError, unsupported
from pulsecart.ids import is_generated

__all__ = ["CloudEvent", "from_headers", "from_json"]

_REQUIRED = ("specversion", "id", "source", "type")
_ATTRIBUTES = (*_REQUIRED, "time", "partitionkey")
"""The attributes that are read."""

_FROM = {"event_type": "type", "event_id": "id", "timestamp": "time"}
"""The fields of an event that are attributes of a CloudEvent, and so not allowed in its data."""

_JSON = re.compile(r"[^/\s]+/([^/\s]+\+)?json")
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f]")  # CloudEvents, section 3, type system: String
_NOT_IN_URIS = re.compile(r'[\s<>"{}|\\^`]')
_QUOTED_PAIR = re.compile(rb"\\(.)", re.DOTALL)
_MALFORMED_VALUE = re.compile(rb"%(?![0-9a-fA-F]{2})|[^\x20-\x7e]")


@frozen
class CloudEvent:
    """A CloudEvent that has been taken apart."""

    document: Document
    """The event as it would be sent to `/events/ingest`."""

    attributes: Mapping[str, str]
    """What its message has in addition."""

    faults: Sequence[Fault]
    """What is wrong with it although it does not show in the document."""

    has_partition_key: bool

    has_data: bool
    """Whether its data is an object."""

    def explain(self, error: EventError) -> EventError:
        """Return an error about the document as an error about the CloudEvent."""
        moved = [evolve(fault, pointer=self._origin(fault.pointer)) for fault in error.faults]
        if not self.has_data:
            moved = [fault for fault in moved if not fault.pointer.startswith("/data/")]
        faults = [*self.faults, *moved]
        if not faults or isinstance(error, MessageTooLarge):
            return error
        return type(error)(error.detail, faults, event_type=error.event_type, event_id=error.event_id)

    def require_no_faults(self) -> None:
        """Raise `InvalidEvent` for `faults`."""
        if self.faults:
            raise InvalidEvent("The CloudEvent is not a valid event.", self.faults, event_id=self.document["event_id"])

    def _origin(self, pointer: str) -> str:
        name = pointer[1:]
        if name == "user_id" and self.has_partition_key:
            return "/partitionkey"
        return f"/{_FROM[name]}" if name in _FROM else f"/data{pointer}"


def from_json(raw: bytes) -> CloudEvent:
    """Read a CloudEvent in the JSON format.

    Raises an `EventError`, or `ProblemError` (415) if its data is not JSON.
    """
    # In this format null is the same as nothing (section 2.2).
    members = {name: value for name, value in decode(raw).items() if value is not None}
    content_type = members.get("datacontenttype", "application/json")
    if not isinstance(content_type, str) or not _JSON.fullmatch(content_type.partition(";")[0].strip().lower()):
        raise _no_json("datacontenttype")
    faults = []
    if "data_base64" in members:
        faults.append(Fault("/data_base64", "unknown", "is not supported; send a JSON object as data"))
    elif "data" not in members:
        faults.append(Fault("/data", "missing", "is required, but missing"))
    elif not isinstance(members["data"], JsonObject):
        faults.append(_no_object(members["data"]))
    data = _fields(bytes(members["data"].raw)) if not faults else None
    return _cloud_event({name: members[name] for name in _ATTRIBUTES if name in members}, data, faults)


def from_headers(headers: Iterable[tuple[bytes, bytes]], media_type: str, body: bytes) -> CloudEvent:
    """Read a CloudEvent in binary mode: attributes in headers, and the body as data.

    Raises an `EventError`, or `ProblemError` (415) if its data is not JSON.
    """
    if not _JSON.fullmatch(media_type):
        raise _no_json("Content-Type")
    attributes: dict[str, str] = {}
    faults = []
    for header, value in headers:
        name = header.removeprefix(b"ce-").decode("latin-1")
        if name not in _ATTRIBUTES or not header.startswith(b"ce-"):
            continue
        if name in attributes:
            faults.append(Fault(f"/{name}", "duplicate", "is in more than one header"))
        try:
            attributes[name] = _unescaped(value)
        except ValueError as error:
            faults.append(Fault(f"/{name}", "invalid", f"as a header {error}"))
    if faults:
        raise MalformedBody("The headers of the CloudEvent cannot be read.", faults)
    if not body:
        faults.append(Fault("/data", "missing", "is required, but the body is empty"))
    elif not body.lstrip(b" \t\r\n").startswith(b"{"):
        faults.append(_no_object(_value(body)))
    return _cloud_event(attributes, None if faults else _fields(body), faults)


def _cloud_event(attributes: Mapping[str, Any], data: Mapping[str, Any] | None, faults: list[Fault]) -> CloudEvent:
    wrong = [Fault(f"/{name}", *fault) for name in _REQUIRED if (fault := _fault_of(name, attributes.get(name)))]
    if wrong:
        raise MalformedBody("This is not a CloudEvent that can be read.", wrong)
    id_, source = attributes["id"], attributes["source"]
    event_id = id_ if is_generated(id_) or _UUID.fullmatch(id_) else _event_id(source, id_)
    has_data, data = data is not None, data or {}
    document = Document(data)
    for field, attribute in _FROM.items():
        if field in data:
            faults.append(Fault(f"/data/{field}", "unknown", f"cannot be in data; it is the attribute {attribute!r}"))
    document |= {"event_type": attributes["type"], "event_id": event_id}
    document.pop("timestamp", None)
    if "time" in attributes:
        document["timestamp"] = attributes["time"]
    if "partitionkey" in attributes:
        if data.get("user_id", attributes["partitionkey"]) != attributes["partitionkey"]:
            faults.append(Fault("/partitionkey", "invalid", "differs from user_id in data; send one of them"))
        document["user_id"] = attributes["partitionkey"]
    kept = {"cloudevents_id": id_, "cloudevents_source": source}
    return CloudEvent(document, kept, faults, "partitionkey" in attributes, has_data)


def _fault_of(name: str, value: Any) -> tuple[str, str] | None:
    """Return the code and message of what is wrong with a required attribute, if anything."""
    if value is None:
        return "missing", "is required, but missing"
    if not isinstance(value, str):
        return "wrong-type", f"expected a string, got {describe(value)}"
    if not value:
        return "empty", "must not be empty"
    if name == "specversion" and value != "1.0":
        return "invalid", "must be 1.0"
    if _CONTROLS.search(value):
        return "invalid", "has control characters"
    if name == "source" and _NOT_IN_URIS.search(value):
        return "invalid", "is not a URI reference (RFC 3986)"
    if (size := len(value.encode())) > MAX_ID_BYTES:
        return "too-long", f"has {size:,} bytes of UTF-8; the limit is {MAX_ID_BYTES:,}"
    return None


def _event_id(source: str, id_: str) -> str:
    """Return the event id of a CloudEvent, of which only source and id together are unique (section 3.1.1)."""
    digest = sha256(f"{source}\0{id_}".encode()).hexdigest()
    return f"ce_{digest[:32]}"


def _unescaped(value: bytes) -> str:
    """Return what a header says (HTTP binding, section 3.1.3.2). Raises `ValueError`."""
    if value.startswith(b'"'):
        if len(value) < 2 or not value.endswith(b'"'):
            raise ValueError("has no closing quote")
        value = _QUOTED_PAIR.sub(rb"\1", value[1:-1])
    if _MALFORMED_VALUE.search(value):
        raise ValueError("must be percent-encoded: % as %25, and all that is not ASCII")
    try:
        return unquote_to_bytes(value).decode()
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8 when it is decoded") from None


def _fields(data: bytes) -> Document:
    """Return the members of a JSON object that is the data. Raises `MalformedBody`."""
    try:
        return decode(data)
    except MalformedBody as error:
        faults = [evolve(fault, pointer=f"/data{fault.pointer}") for fault in error.faults]
        raise MalformedBody(error.detail, faults) from None


def _value(body: bytes) -> Any:
    """Return a JSON value that is not an object. Raises `MalformedBody` if the body is not JSON."""
    document = decode(b'{"data":%b}' % body)
    if len(document) > 1:
        raise MalformedBody("The event is not JSON.")
    return document["data"]


def _no_object(value: Any) -> Fault:
    return Fault("/data", "wrong-type", f"expected an object, got {describe(value)}")


def _no_json(where: str) -> ProblemError:
    return unsupported(f"{where} must be a media type of JSON: data is sent as JSON.", {"Accept": "application/json"})
