"""The contract of transports, as tests.

    class TestOwn(TransportContract):
        largest = 1_000_000

        @pytest.fixture
        def transport(self, server):
            return OwnTransport(server.url)

        @pytest.fixture
        def delivered(self, server):
            return server.all_messages

        @pytest.fixture
        def outage(self, server):
            return server.stopped

The tests are coroutines. They run on asyncio with the pytest plugin of anyio, which comes with pulsecart's
dependencies, so fixtures may be async, too. Leave them to that plugin: pytest-asyncio must not be in its auto mode.
"""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, ClassVar, Self, TypeAlias, TypeVar

import pytest

from pulsecart.errors import MessageRefused, PublishError, TransportClosed
from pulsecart.guard import Late, within
from pulsecart.message import REST_LIMIT, Message
from pulsecart.ports import Transport

__all__ = ["Delivered", "Outage", "TransportContract"]

T = TypeVar("T")

Delivered: TypeAlias = Callable[[], Sequence[Message] | Awaitable[Sequence[Message]]]
"""Lists all messages that the broker has, in order: a function or an async function."""

Outage: TypeAlias = Callable[[], AbstractAsyncContextManager[object]]
"""Makes the broker unavailable within `async with`."""

CANCEL_SECONDS = 2.0
"""Maximum seconds for a publish to end after it is cancelled."""

OUTAGE_DEADLINE = 2.0
"""Seconds after which pulsecart cancels a publish in the tests of an outage."""


@pytest.mark.anyio
class TransportContract:
    """Tests that a transport keeps what pulsecart relies on.

    A subclass gives two fixtures:

    - `transport`: a new transport that is not open. Its broker has the topics `topics`, and no messages.
    - `delivered`: a function that lists the messages that the broker has, as a `Delivered`.

    A third one, `outage`, is a function that makes the broker unavailable, as an `Outage`; without it the tests of an
    outage are skipped. Class attributes say what a broker cannot do.
    """

    topics: ClassVar[tuple[str, str]] = ("contract-a", "contract-b")
    """The topics that are used."""

    ordered: ClassVar[bool] = True
    """Whether messages of one topic and ordering key are kept in the order of the calls."""

    has_attributes: ClassVar[bool] = True
    """Whether messages keep their attributes and their ordering key."""

    largest: ClassVar[int] = REST_LIMIT.data
    """The largest number of bytes of data of a message. If it is less than pulsecart's limit, a message of twice as
    many bytes, or of that limit, must be refused with `MessageRefused`."""

    patience: ClassVar[float] = 15.0
    """Maximum seconds for a call, and until `delivered` has what was confirmed."""

    @pytest.fixture(scope="session")
    @classmethod
    def anyio_backend(cls) -> str:
        """Run the tests on asyncio."""
        return "asyncio"

    @pytest.fixture
    def outage(self) -> Outage:
        """Skip the test: a subclass replaces this fixture."""
        pytest.skip("there is no fixture `outage`, which makes the broker unavailable")

    async def test_message_arrives_unchanged(self, transport: Transport, delivered: Delivered) -> None:
        """Topic and data reach the broker unchanged, and so do attributes and ordering key if it has any."""
        attributes = {"event_type": "t", "event_id": "ünï", "empty": ""}
        sent = Message(
            topic=self.topics[1],
            data='{"n":89.90,"text":"é😀\\u0000"}'.encode(),
            attributes=dict(attributes),
            ordering_key="user 😀",
        )
        async with _Opened(self, transport) as opened:
            await opened.publish(sent)
            found = await self._delivered(delivered, 1)
            assert len(found) == 1, f"one message was published, but the broker has {len(found)}"
            assert found[0].topic == sent.topic, "the topic has changed"
            assert found[0].data == sent.data, "the data has changed"
            assert sent.attributes == attributes, "the transport has changed the attributes of the message it was given"
            if self.has_attributes:
                assert dict(found[0].attributes) == attributes, "the attributes have changed"
                assert found[0].ordering_key == sent.ordering_key, "the ordering key has changed"

    async def test_message_ids_are_unique(self, transport: Transport, delivered: Delivered) -> None:
        """Messages published concurrently on many keys get distinct message ids, and all are with the broker."""
        async with _Opened(self, transport) as opened:
            ids = await asyncio.gather(*(opened.publish(self._message(n, f"user-{n % 7}")) for n in range(50)))
            assert all(isinstance(found, str) and found for found in ids), "a message id is a string, and not empty"
            assert len(set(ids)) == 50, "several messages have the same message id"
            assert len(await self._delivered(delivered, 50)) == 50, "the broker does not have what was confirmed"

    async def test_key_keeps_the_order_of_the_calls(self, transport: Transport, delivered: Delivered) -> None:
        """Messages published concurrently arrive once, and in the order of the calls for each key."""
        if not self.ordered:
            pytest.skip("ordered = False")
        keys = ("a", "b", "c")
        # Small messages after large ones would overtake them if they did not wait.
        calls = [
            self._message(n, key, size=min(200_000, self.largest) if n % 10 == 0 else 0)
            for n in range(40)
            for key in keys
        ]
        async with _Opened(self, transport) as opened:
            await asyncio.gather(*map(opened.publish, calls))
            found = await self._delivered(delivered, len(calls))
            for key in keys:
                expected = [sent.data for sent in calls if sent.ordering_key == key]
                of_key = [data for message in found if (data := message.data) in expected]
                assert len(of_key) == len(expected), "a message was lost, or published twice"
                assert of_key == expected, "messages of one key are not in the order of the calls"

    async def test_message_without_a_key_is_published(self, transport: Transport, delivered: Delivered) -> None:
        """An empty ordering key means that no order is kept. It is not an error."""
        async with _Opened(self, transport) as opened:
            await asyncio.gather(*(opened.publish(self._message(n, "")) for n in range(5)))
            assert len(await self._delivered(delivered, 5)) == 5, "a message without an ordering key was lost"

    async def test_check_finds_existing_topics(self, transport: Transport) -> None:
        """No existing topic is missing; one that does not exist is, unless the broker takes any topic."""
        async with _Opened(self, transport) as opened:
            assert await opened.check(iter(self.topics)) == [], "an existing topic counts as missing"
            missing = await opened.check([*self.topics, "contract-missing"])
            assert missing in ([], ["contract-missing"]), "only the topic contract-missing may be missing"

    async def test_largest_message_is_published(self, transport: Transport, delivered: Delivered) -> None:
        """A message of `largest` bytes of data arrives whole."""
        sent = self._message(1, size=self.largest)
        async with _Opened(self, transport) as opened:
            await opened.publish(sent)
            found = await self._delivered(delivered, 1)
            assert [len(message.data) for message in found] == [self.largest], "the message did not arrive whole"

    async def test_message_over_the_largest_is_refused(self, transport: Transport, delivered: Delivered) -> None:
        """A message that is too large is refused for good, and the next one of its key is published."""
        if self.largest >= REST_LIMIT.data:
            pytest.skip("`largest` is not less than what pulsecart takes")
        async with _Opened(self, transport) as opened:
            with pytest.raises(MessageRefused):
                await opened.publish(self._message(1, size=min(2 * self.largest, REST_LIMIT.data)))
            await opened.publish(self._message(2))
            assert len(await self._delivered(delivered, 1)) == 1, "a message that was refused is with the broker"

    async def test_publish_before_opening_confirms_nothing(self, transport: Transport, delivered: Delivered) -> None:
        """A transport that is not open raises an exception, at best `TransportClosed`, unless it needs no opening."""
        try:
            await self._in_time(transport.publish, self._message(1))
        except Exception:  # noqa: BLE001 (pulsecart opens a transport before it publishes)
            return
        assert len(await self._delivered(delivered, 1)) == 1, "the message was confirmed, but is not with the broker"

    async def test_publish_after_close_is_refused(self, transport: Transport) -> None:
        """A closed transport raises `TransportClosed`. It may be closed twice."""
        async with _Opened(self, transport) as opened:
            await opened.publish(self._message(1))
            await opened.aclose()
            await opened.aclose()
            with pytest.raises(TransportClosed):
                await opened.publish(self._message(2))

    async def test_cancelled_publish_leaves_the_others(self, transport: Transport, delivered: Delivered) -> None:
        """Cancelled publishes end soon. The others of the key are published, in order and once."""
        sent = [self._message(n) for n in range(30)]
        async with _Opened(self, transport) as opened:
            tasks = [asyncio.create_task(opened.publish(message)) for message in sent]
            await asyncio.sleep(0)
            for task in tasks[::3]:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            confirmed = [message.data for message, result in zip(sent, results, strict=True) if isinstance(result, str)]
            for number, result in enumerate(results):
                of_cancelled = number % 3 == 0 and isinstance(result, asyncio.CancelledError)
                assert isinstance(result, str) or of_cancelled, f"message {number} was not published: {result!r}"
            await opened.publish(self._message(99))
            found = await self._delivered(delivered, len(confirmed) + 1)
            data = [message.data for message in found]
            assert len(data) == len(set(data)), "a message was published twice"
            missing = set(confirmed) - set(data)
            assert not missing, "a message was confirmed, but is not with the broker"
            if self.ordered:
                assert [each for each in data if each in confirmed] == confirmed, "the order was lost"

    async def test_close_loses_no_confirmed_message(self, transport: Transport, delivered: Delivered) -> None:
        """Publishes in flight at `aclose` end: with a message id if the broker has the message, or a `PublishError`."""
        sent = [self._message(n, f"user-{n % 4}") for n in range(20)]
        async with _Opened(self, transport) as opened:
            tasks = [asyncio.create_task(opened.publish(message)) for message in sent]
            await asyncio.sleep(0)
            await opened.aclose()
            results = await asyncio.gather(*tasks, return_exceptions=True)
        for result in results:
            ended = f"publish() ended with {result!r}: it must return a message id or raise a PublishError"
            assert isinstance(result, (str, PublishError)), ended
        confirmed = {message.data for message, result in zip(sent, results, strict=True) if isinstance(result, str)}
        found = {message.data for message in await self._delivered(delivered, len(confirmed))}
        assert confirmed <= found, "a message was confirmed, but is not with the broker"

    async def test_publish_in_an_outage_is_a_publish_error(self, transport: Transport, outage: Outage) -> None:
        """While the broker is away, a publish raises a `PublishError` of its own, or waits until it is cancelled."""
        async with _Opened(self, transport) as opened:
            await opened.publish(self._message(1))
            async with outage():
                errors = await asyncio.gather(
                    *(self._outcome_in_an_outage(transport, self._message(n, f"user-{n}")) for n in range(5))
                )
            raised = [error for error in errors if not isinstance(error, Late)]
            for error in raised:
                assert isinstance(error, PublishError), f"{error!r} was raised, which is no PublishError"
            assert len({id(error) for error in raised}) == len(raised), "two publishes raised the same instance"

    async def test_cancelled_publish_in_an_outage_ends_soon(self, transport: Transport, outage: Outage) -> None:
        """While the broker is away, a publish can be cancelled; pulsecart does that at the deadline."""
        async with _Opened(self, transport) as opened:
            await opened.publish(self._message(1))
            async with outage():
                task = asyncio.create_task(_limited(CANCEL_SECONDS + 1, transport.publish, self._message(2)))
                await asyncio.sleep(0.1)
                task.cancel()
                done, _ = await asyncio.wait([task], timeout=CANCEL_SECONDS)
                assert done, f"a publish that was cancelled did not end within {CANCEL_SECONDS:g} s"
                if not task.cancelled():
                    assert isinstance(task.exception(), PublishError), f"it ended with {task.exception()!r}"

    async def test_publishing_works_after_an_outage(
        self, transport: Transport, delivered: Delivered, outage: Outage
    ) -> None:
        """When the broker is back, messages are published again, in the order of the calls for each key."""
        keys = ("a", "b")
        async with _Opened(self, transport) as opened:
            for key in keys:
                await opened.publish(self._message(0, key))
            async with outage():
                await asyncio.gather(*(self._outcome_in_an_outage(transport, self._message(1, key)) for key in keys))
            for key in keys:
                await self._published_again(transport, self._message(2, key))
            calls = [self._message(n, key) for n in range(3, 13) for key in keys]
            await asyncio.gather(*map(opened.publish, calls))
            confirmed = {message.data for message in calls}
            found = await self._delivered(delivered, len(confirmed) + 4)
            arrived = list(dict.fromkeys(message.data for message in found if message.data in confirmed))
            assert set(arrived) == confirmed, "a message was confirmed, but is not with the broker"
            if self.ordered:
                for key in keys:
                    expected = [message.data for message in calls if message.ordering_key == key]
                    assert [data for data in arrived if data in expected] == expected, "the order was lost"

    async def test_close_in_an_outage_ends(self, transport: Transport, outage: Outage) -> None:
        """While the broker is away, `aclose` ends, and so do the publishes in flight."""
        async with _Opened(self, transport) as opened:
            await opened.publish(self._message(1))
            async with outage():
                publishing = asyncio.create_task(self._outcome_in_an_outage(transport, self._message(2)))
                await asyncio.sleep(0)
                await opened.aclose()
                assert isinstance(await publishing, (PublishError, Late)), "a publish in flight did not fail"

    def _message(self, number: int, key: str = "user", *, size: int = 0) -> Message:
        data = b'{"key":"%b","n":%d}' % (key.encode(), number)
        return Message(
            topic=self.topics[0],
            data=data.ljust(size, b" "),
            attributes={"event_type": "t", "event_id": f"contract-{key}-{number}"},
            ordering_key=key,
        )

    async def _delivered(self, delivered: Delivered, count: int) -> Sequence[Message]:
        """Return what the broker has, as soon as it has so many messages, or after `patience`."""
        end = time.monotonic() + self.patience
        while True:
            found = delivered()
            listed = await found if inspect.isawaitable(found) else found
            if len(listed) >= count or time.monotonic() > end:
                return listed
            await asyncio.sleep(0.02)

    async def _in_time(self, call: Callable[..., Awaitable[T]], *arguments: Any) -> T:
        try:
            return await _limited(self.patience, call, *arguments)
        except Late:
            pytest.fail(f"{call.__name__} did not end within {self.patience:g} s")

    async def _outcome_in_an_outage(self, transport: Transport, message: Message) -> Exception:
        try:
            message_id = await _limited(OUTAGE_DEADLINE, transport.publish, message)
        except Exception as error:  # noqa: BLE001 (what it raises is what is tested)
            return error
        pytest.fail(f"the message {message_id!r} was confirmed, although the broker is away")

    async def _published_again(self, transport: Transport, message: Message) -> None:
        """Publish a message as a caller does: again and again until it succeeds."""
        end = time.monotonic() + self.patience
        while True:
            try:
                await _limited(OUTAGE_DEADLINE, transport.publish, message)
            except (PublishError, Late) as error:
                if time.monotonic() > end:
                    pytest.fail(f"the broker is back, but publishing still fails: {error!r}")
                await asyncio.sleep(0.05)
            else:
                return


async def _limited(seconds: float, call: Callable[..., Awaitable[T]], *arguments: Any) -> T:
    async def work() -> T:
        return await call(*arguments)

    return await within(seconds, work())


class _Opened:
    """A transport that is open within `async with`. A call that does not end in time fails the test."""

    def __init__(self, contract: TransportContract, transport: Transport) -> None:
        self._in_time = contract._in_time  # noqa: SLF001 (of the same module)
        self._transport = transport

    async def __aenter__(self) -> Self:
        await self._in_time(self._transport.__aenter__)
        return self

    async def __aexit__(self, *error: object) -> None:
        try:
            await self._in_time(self._transport.__aexit__, *error)
        except (Exception, pytest.fail.Exception):
            if error[0] is None:
                raise  # otherwise what failed first says more

    async def publish(self, message: Message) -> str:
        return await self._in_time(self._transport.publish, message)

    async def check(self, topics: Iterable[str]) -> list[str]:
        return await self._in_time(self._transport.check, topics)

    async def aclose(self) -> None:
        await self._in_time(self._transport.aclose)
