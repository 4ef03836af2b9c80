"""The feed: the newest messages and rejected requests, in one order. For development only.

It records what the producer publishes, on any transport, and what the routes reject. Memory is bounded in bytes, and
what a stream has not sent yet is only here: a client that reads slowly makes it hold no more.
"""

import asyncio
import codecs
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from itertools import chain, takewhile
from operator import attrgetter
from secrets import token_hex
from time import time
from typing import Any, Generic, Literal, TypeVar

import msgspec
from attrs import define
from starlette.types import Message as AsgiMessage
from starlette.types import Receive, Scope

from pulsecart.http.formats.coding import Decoder, coding_of
from pulsecart.http.problems import ProblemError
from pulsecart.ids import trace_id_of
from pulsecart.message import Prepared, PublishedMessage
from pulsecart.ports import Inspectable, Observer, Publishing, Transport, Unobserved

__all__ = ["BODY_BYTES", "Entry", "Feed", "Rejectable"]

MESSAGE_BYTES = 16_000_000
"""How many bytes of messages are kept. The newest message is kept even if it is larger."""

REJECTED_BYTES = 8_000_000
"""How many bytes of rejected requests are kept."""

BODY_BYTES = 65_536
"""How many bytes of the body of a rejected request are kept."""

_OVERHEAD = 500
"""About what an entry takes in addition to its texts."""


@define(eq=False)
class _Published:
    kind: Literal["message"]
    number: int
    time: float
    prepared: Prepared
    more_attributes: Mapping[str, str]
    message_id: str

    @property
    def size(self) -> int:
        return self.prepared.size + _OVERHEAD

    @property
    def message(self) -> PublishedMessage:
        message = self.prepared.message
        return PublishedMessage(
            topic=message.topic,
            data=message.data,
            attributes={**message.attributes, **self.more_attributes},
            ordering_key=message.ordering_key,
            message_id=self.message_id,
        )

    def document(self, trace_url: str) -> dict[str, Any]:
        message, trace_id = self.message, trace_id_of(self.prepared.event_id)
        return {
            "time": _rfc3339(self.time),
            "topic": message.topic,
            "message_id": message.message_id,
            "ordering_key": message.ordering_key,
            "attributes": message.attributes,
            "trace_id": trace_id,
            **({"trace_url": trace_url.replace("{trace_id}", trace_id)} if trace_url else {}),
            "data": msgspec.Raw(message.data),  # as published, digit for digit
        }


@define(eq=False)
class _Rejected:
    kind: Literal["rejected"]
    number: int
    time: float
    path: str
    content_type: str
    status: int
    problem: bytes
    body: str

    @property
    def size(self) -> int:
        return len(self.problem) + len(self.body.encode()) + len(self.content_type) + _OVERHEAD

    def document(self, _trace_url: str = "") -> dict[str, Any]:
        return {
            **self.listed(),
            "path": self.path,
            "content_type": self.content_type,
        }

    def listed(self) -> dict[str, Any]:
        return {
            "time": _rfc3339(self.time),
            "status": self.status,
            "problem": msgspec.Raw(self.problem),
            "body": self.body,
        }


Entry = _Published | _Rejected
EntryT = TypeVar("EntryT", _Published, _Rejected)


class _Ring(Generic[EntryT]):
    """The newest entries of one kind, at most `limit` bytes or one entry."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._bytes = 0
        self.entries: deque[EntryT] = deque()

    def add(self, entry: EntryT) -> None:
        self.entries.append(entry)
        self._bytes += entry.size
        while self._bytes > self._limit and len(self.entries) > 1:
            self._bytes -= self.entries.popleft().size

    def clear(self) -> None:
        self.entries.clear()
        self._bytes = 0

    def after(self, number: int) -> Iterable[EntryT]:
        return takewhile(lambda entry: entry.number > number, reversed(self.entries))


class Feed:
    """Records messages and rejected requests, and gives them to any number of readers.

    It is `Inspectable` for every transport: it lists what the transport keeps if that is `Inspectable`, else what the
    feed keeps. All of it is used in one event loop.
    """

    def __init__(self, transport: Transport, *, trace_url: str = "") -> None:
        self._inspectable = transport if isinstance(transport, Inspectable) else None
        self._trace_url = trace_url
        self._run = token_hex(4)
        """Tells the numbers of this process from those of the one before it."""
        self._number = 0
        self._published: _Ring[_Published] = _Ring(MESSAGE_BYTES)
        self._rejected: _Ring[_Rejected] = _Ring(REJECTED_BYTES)
        self._changed: asyncio.Event | None = None
        """Set at the next change; exists while a reader waits for it."""
        self.ended = False
        """Whether readers are to end."""

    # Recording.

    def observing(self, observer: Observer) -> Observer:
        """Return an observer that also records what is published."""
        return _Observer(self, observer)

    def add_message(self, prepared: Prepared, more_attributes: Mapping[str, str], message_id: str) -> None:
        """Record a message that was published, and the attributes that it had in addition."""
        self._number += 1
        self._published.add(_Published("message", self._number, time(), prepared, more_attributes, message_id))
        self._notify()

    def rejectable(self, scope: Scope, receive: Receive) -> "Rejectable":
        """Return the record of a request that may be rejected."""
        return Rejectable(self, scope, receive)

    def add_rejected(self, path: str, content_type: str, status: int, problem: bytes, body: str) -> None:
        """Record a request that was rejected."""
        self._number += 1
        self._rejected.add(_Rejected("rejected", self._number, time(), path, content_type, status, problem, body))
        self._notify()

    def end(self) -> None:
        """Let readers end, now and from now on."""
        self.ended = True
        self._notify()

    def _notify(self) -> None:
        if self._changed is not None:
            self._changed.set()
            self._changed = None

    # Reading.

    @property
    def messages(self) -> Sequence[PublishedMessage]:
        """The messages that are kept, newest last."""
        if self._inspectable is not None:
            return self._inspectable.messages
        return [entry.message for entry in self._published.entries]

    @property
    def rejected(self) -> list[dict[str, Any]]:
        """The rejected requests that are kept, newest last."""
        return [entry.listed() for entry in self._rejected.entries]

    def clear(self) -> None:
        """Remove all messages."""
        self._published.clear()
        if self._inspectable is not None:
            self._inspectable.clear()

    def clear_rejected(self) -> None:
        """Remove all rejected requests."""
        self._rejected.clear()

    @property
    def number(self) -> int:
        """The number of the newest entry; 0 if there was none."""
        return self._number

    def after(self, number: int) -> list[Entry]:
        """Return the entries with higher numbers, in their order."""
        return sorted(chain(self._published.after(number), self._rejected.after(number)), key=attrgetter("number"))

    async def changed(self, number: int) -> None:
        """Wait until there are entries with higher numbers, or until readers are to end."""
        while self._number <= number and not self.ended:
            if self._changed is None:
                self._changed = asyncio.Event()
            await self._changed.wait()

    def id_of(self, entry: Entry) -> str:
        """Return the id of an entry, which differs from those of other processes."""
        return f"{self._run}-{entry.number}"

    def number_of(self, id_: str) -> int:
        """Return the number of the entry with this id; 0 if the id is of another process, or is no id."""
        run, _, number = id_.partition("-")
        known = run == self._run and number.isdecimal() and len(number) < 20
        return min(int(number), self._number) if known else 0

    def document(self, entry: Entry) -> dict[str, Any]:
        """Return what readers are given of an entry."""
        return entry.document(self._trace_url)


class _Observer(Unobserved):
    """The observer of a producer, which is the only one to call it: the others have their own."""

    def __init__(self, feed: Feed, observer: Observer) -> None:
        self._feed = feed
        self._observer = observer

    def rejected(self, event_type: str, error: Exception, source: str) -> None:
        self._observer.rejected(event_type, error, source)

    def publishing(self, event: Prepared) -> Any:
        return _Publishing(self._feed, event, self._observer.publishing(event))


class _Publishing:
    __slots__ = ("_event", "_feed", "_publishing", "admitted", "attributes", "failed")

    def __init__(self, feed: Feed, event: Prepared, publishing: Publishing) -> None:
        self._feed = feed
        self._event = event
        self._publishing = publishing
        self.attributes = publishing.attributes
        self.admitted = publishing.admitted
        self.failed = publishing.failed

    def published(self, message_id: str) -> None:
        self._publishing.published(message_id)
        self._feed.add_message(self._event, self.attributes, message_id)


class Rejectable:
    """Keeps the beginning of the body of a request, in case the request is rejected."""

    __slots__ = ("_feed", "_left", "_parts", "_receive", "_scope")

    def __init__(self, feed: Feed, scope: Scope, receive: Receive) -> None:
        self._feed = feed
        self._scope = scope
        self._receive = receive
        self._parts: list[bytes] = []
        self._left = BODY_BYTES + 1
        """One byte more shows that the body goes on."""

    async def receive(self) -> AsgiMessage:
        """Receive a part of the body."""
        message = await self._receive()
        if self._left:
            part = message.get("body", b"")[: self._left]
            self._left -= len(part)
            self._parts.append(part)
        return message

    async def reject(self, status: int, problem: bytes) -> None:
        """Record that the request was answered with a problem."""
        headers = dict(self._scope["headers"])
        if not self._parts and b"expect" not in headers:
            # It was rejected for its headers. Take what has arrived: to see it helps, to wait for it could take long.
            with suppress(TimeoutError):
                async with asyncio.timeout(0):
                    await self.receive()
        body = _decoded(b"".join(self._parts), headers.get(b"content-encoding", b""))
        content_type = headers.get(b"content-type", b"").decode("latin-1")[:200]
        self._feed.add_rejected(self._scope["path"], content_type, status, problem, _text(body))


def _decoded(body: bytes, coding: bytes) -> bytes:
    """Return as much of a body as can be decoded; all of it if its coding is unknown."""
    decoded: list[bytes] = []
    try:
        name = coding_of(coding)
        if not name:
            return body
        for piece in Decoder(name).feed(body):
            decoded.append(piece)
            if sum(map(len, decoded)) > BODY_BYTES:
                break
    except ProblemError:
        pass  # the problem says so
    return b"".join(decoded) or body


def _text(body: bytes) -> str:
    """Return a body as text of at most `BODY_BYTES`, which does not end within a character."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = decoder.decode(body[:BODY_BYTES], final=len(body) <= BODY_BYTES)
    return text.encode()[:BODY_BYTES].decode(errors="ignore")  # replacements are longer than what they replace


def _rfc3339(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
