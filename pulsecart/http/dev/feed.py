"""The feed: the newest messages and rejected requests, in one order. For development only.

It records what the producer publishes, on any transport, and what the routes reject. Memory is bounded in bytes, and
what a stream has not sent yet is only here: a client that reads slowly makes it hold no more.
"""

import asyncio
import codecs
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from itertools import chain, takewhile
from operator import attrgetter
from secrets import token_hex
from time import time
from typing import Any, ClassVar, Generic, TypeVar

import msgspec
from attrs import define
from starlette.responses import Response
from starlette.types import Message as AsgiMessage
from starlette.types import Receive, Scope

from pulsecart.http.formats.coding import Decoder, coding_of
from pulsecart.http.problems import ProblemError
from pulsecart.ids import trace_id_of
from pulsecart.message import Prepared, PublishedMessage
from pulsecart.ports import UNOBSERVED, Inspectable, Observer, Publishing, Transport, Unobserved

__all__ = ["BODY_BYTES", "Entry", "Feed", "keeping"]

MESSAGE_BYTES = 16_000_000
"""How many bytes of messages are kept. The newest message is kept even if it is larger."""

REJECTED_BYTES = 8_000_000
"""How many bytes of rejected requests are kept."""

BODY_BYTES = 65_536
"""How many bytes of the body of a rejected request are kept."""

_OVERHEAD = 500
"""About what an entry takes in addition to its texts."""


class _Message:
    """The observation of an event and, when it is published, its entry: one object an event."""

    kind = "message"
    __slots__ = ("_feed", "_message_id", "_prepared", "_publishing", "attributes", "number", "size", "time")
    number: int
    size: int
    time: float

    def __init__(self, feed: "Feed", prepared: Prepared, publishing: Publishing) -> None:
        self._feed = feed
        self._prepared = prepared
        self._publishing: Publishing = publishing
        self.attributes = publishing.attributes

    def admitted(self) -> None:
        self._publishing.admitted()

    def failed(self, error: BaseException) -> None:
        self._publishing.failed(error)

    def published(self, message_id: str) -> None:
        self._publishing.published(message_id)
        self._publishing = UNOBSERVED  # frees what has observed it
        self._message_id = message_id
        self.size = self._prepared.size + _OVERHEAD
        self._feed.add_message(self)

    @property
    def message(self) -> PublishedMessage:
        message = self._prepared.message
        return PublishedMessage(
            topic=message.topic,
            data=message.data,
            attributes={**message.attributes, **self.attributes},
            ordering_key=message.ordering_key,
            message_id=self._message_id,
        )

    def document(self, trace_url: str) -> dict[str, Any]:
        message, trace_id = self.message, trace_id_of(self._prepared.event_id)
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
    kind: ClassVar = "rejected"
    number: int
    time: float
    size: int
    path: str
    content_type: str
    status: int
    problem: bytes
    body: str

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


Entry = _Message | _Rejected
EntryT = TypeVar("EntryT", _Message, _Rejected)


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
        self._published: _Ring[_Message] = _Ring(MESSAGE_BYTES)
        self._rejected: _Ring[_Rejected] = _Ring(REJECTED_BYTES)
        self._changed: asyncio.Event | None = None
        """Set at the next change; exists while a reader waits for it."""
        self.ended = False
        """Whether readers are to end."""

    # Recording.

    def observing(self, observer: Observer) -> Observer:
        """Return an observer that also records what is published."""
        return _Observer(self, observer)

    def add_message(self, entry: _Message) -> None:
        """Record a message that was published."""
        self._number = entry.number = self._number + 1
        entry.time = time()
        self._published.add(entry)
        if self._changed is not None:
            self._notify()

    async def add_rejected(self, scope: Scope, receive: Receive, parts: list[bytes], response: Response) -> None:
        """Record a request that was rejected, given what `keeping` returned for it."""
        headers = dict(scope["headers"])
        if not parts and b"expect" not in headers:
            # It was rejected for its headers. Take what has arrived: to see it helps, to wait for it could take long.
            with suppress(TimeoutError):
                async with asyncio.timeout(0):
                    await receive()
        body = _text(_decoded(b"".join(parts), headers.get(b"content-encoding", b"")))
        content_type = headers.get(b"content-type", b"").decode("latin-1")[:200]
        problem = bytes(response.body)
        size = len(problem) + len(body.encode()) + len(scope["path"]) + _OVERHEAD
        self._number += 1
        self._rejected.add(
            _Rejected(
                number=self._number,
                time=time(),
                size=size,
                path=scope["path"],
                content_type=content_type,
                status=response.status_code,
                problem=problem,
                body=body,
            )
        )
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
        return _Message(self._feed, event, self._observer.publishing(event))


def keeping(receive: Receive) -> tuple[Receive, list[bytes]]:
    """Return a function that receives a body, and the list in which it keeps the beginning of the body."""
    parts: list[bytes] = []
    left = BODY_BYTES + 1  # one more shows that the body goes on

    async def keep() -> AsgiMessage:
        nonlocal left
        message = await receive()
        if left:
            part = message.get("body", b"")
            if len(part) > left:
                part = part[:left]
            left -= len(part)
            parts.append(part)
        return message

    return keep, parts


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
