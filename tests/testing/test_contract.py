"""The contract of transports: right ones pass, and each of many wrong ones fails by the right check."""

import asyncio
import inspect
import os
import subprocess
import sys
from contextlib import asynccontextmanager, suppress

import attrs
import pytest

from pulsecart import BrokerUnavailable, MessageRefused, TransportClosed
from pulsecart.testing import TransportContract
from pulsecart.transports.turns import Turns

pytestmark = pytest.mark.anyio

CHECKS = [name for name in vars(TransportContract) if name.startswith("test_")]


class Right:
    """A transport to a broker in memory, which can be away."""

    largest = 1_000_000

    def __init__(self):
        self.kept = []
        self.is_open = False
        self.away = asyncio.Event()
        self.was_away = False
        self.turns = Turns()

    async def __aenter__(self):
        self.is_open = True
        return self

    async def __aexit__(self, *error):
        await self.aclose()

    async def aclose(self):
        self.is_open = False

    async def check(self, topics):
        return [topic for topic in topics if topic == "contract-missing"]

    async def publish(self, message):
        if len(message.data) > self.largest:
            raise MessageRefused("too large")
        async with self.turns.of(message):
            self.require_open()
            await self.reach(message)
            return self.keep(message)

    def require_open(self):
        if not self.is_open:
            raise TransportClosed("not open")

    async def reach(self, message):
        await asyncio.sleep(0)
        if self.away.is_set():
            raise BrokerUnavailable("away")

    def keep(self, message):
        self.kept.append(message)
        return str(len(self.kept))

    @asynccontextmanager
    async def outage(self):
        self.away.set()
        self.was_away = True
        yield
        self.away.clear()


class WaitsInAnOutage(Right):
    """As right as the other: pulsecart has a deadline."""

    async def reach(self, message):
        await asyncio.sleep(3600 if self.away.is_set() else 0)


class ChangesAttributes(Right):
    def keep(self, message):
        return super().keep(attrs.evolve(message, attributes={**message.attributes, "sent": "yes"}))


class ChangesTheMessageItWasGiven(Right):
    def keep(self, message):
        message.attributes["sent"] = "yes"
        return super().keep(message)


class ChangesTheTopic(Right):
    def keep(self, message):
        return super().keep(attrs.evolve(message, topic="other"))


class DecodesData(Right):
    def keep(self, message):
        return super().keep(attrs.evolve(message, data=message.data.replace(b"89.90", b"89.9")))


class LosesTheKey(Right):
    def keep(self, message):
        return super().keep(attrs.evolve(message, ordering_key=""))


class HasOneId(Right):
    def keep(self, message):
        super().keep(message)
        return "1"


class HasNumbersAsIds(Right):
    def keep(self, message):
        return int(super().keep(message))


class ConfirmsAndForgets(Right):
    def keep(self, message):
        return message.attributes["event_id"]


class LetsSmallOnesOvertake(Right):
    async def publish(self, message):
        self.require_open()
        await self.reach(message)
        await asyncio.sleep(len(message.data) / 1e7)
        return self.keep(message)


class PublishesTwice(Right):
    def keep(self, message):
        super().keep(message)
        return super().keep(message)


class NeedsAKey(Right):
    def keep(self, message):
        return super().keep(message) if message.ordering_key else ""


class MissesExistingTopics(Right):
    async def check(self, topics):
        return list(topics)


class MissesOtherTopics(Right):
    async def check(self, topics):
        return [] if "contract-missing" not in (topics := list(topics)) else topics


class Truncates(Right):
    def keep(self, message):
        return super().keep(attrs.evolve(message, data=message.data[:100_000]))


class RefusesNothing(Right):
    async def publish(self, message):
        return await super().publish(attrs.evolve(message, data=message.data[:10]))


class ConfirmsBeforeOpening(Right):
    async def publish(self, message):
        return await super().publish(message) if self.is_open else "1"


class PublishesAfterClose(Right):
    def require_open(self):
        pass


class ClosesOnce(Right):
    async def aclose(self):
        assert self.is_open, "closed already"
        self.is_open = False


class FailsAllWhenOneIsCancelled(Right):
    broken = False

    async def reach(self, message):
        await asyncio.sleep(0)
        if self.broken:
            raise BrokerUnavailable("the batch was cancelled")

    async def publish(self, message):
        try:
            return await super().publish(message)
        except asyncio.CancelledError:
            self.broken = True
            raise


class ConfirmsWhatIsCancelled(Right):
    async def publish(self, message):
        try:
            return await super().publish(message)
        except asyncio.CancelledError:
            return "cancelled"


class ConfirmsWhatItDropsOnClose(Right):
    async def reach(self, message):
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    def keep(self, message):
        return super().keep(message) if self.is_open else "closed"


class FailsOnClose(Right):
    async def reach(self, message):
        await asyncio.sleep(0.01)
        if not self.is_open:
            raise ConnectionError("closed")


class RaisesErrorsOfItsOwn(Right):
    async def reach(self, message):
        if self.away.is_set():
            raise ConnectionError("away")


class RaisesOneInstance(Right):
    error = BrokerUnavailable("away")

    async def reach(self, message):
        if self.away.is_set():
            raise self.error


class ConfirmsInAnOutage(Right):
    async def reach(self, message):
        pass


class IgnoresCancellation(Right):
    async def reach(self, message):
        while self.away.is_set():
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0.01)


class EndsCancellationWithAnotherError(Right):
    async def reach(self, message):
        if self.away.is_set():
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                raise ConnectionError("cancelled") from None


class NeverRecovers(Right):
    async def reach(self, message):
        if self.was_away:
            raise BrokerUnavailable("away")


class LosesTheOrderAfterAnOutage(LetsSmallOnesOvertake):
    async def reach(self, message):
        await super().reach(message)
        if self.was_away and b'"n":3}' in message.data:
            await asyncio.sleep(0.05)


class ForgetsAfterAnOutage(Right):
    def keep(self, message):
        return "0" if self.was_away else super().keep(message)


class NeverCloses(Right):
    async def aclose(self):
        await asyncio.Event().wait()


class ClosesWhenTheBrokerIsBack(Right):
    async def aclose(self):
        while self.away.is_set():
            await asyncio.sleep(0.01)


class NeverOpens(Right):
    async def __aenter__(self):
        await asyncio.Event().wait()


class Hangs(Right):
    async def reach(self, message):
        await asyncio.Event().wait()


WRONG = [
    (ChangesAttributes, "test_message_arrives_unchanged", "the attributes have changed"),
    (ChangesTheMessageItWasGiven, "test_message_arrives_unchanged", "the message it was given"),
    (ChangesTheTopic, "test_message_arrives_unchanged", "the topic has changed"),
    (DecodesData, "test_message_arrives_unchanged", "the data has changed"),
    (LosesTheKey, "test_message_arrives_unchanged", "the ordering key has changed"),
    (PublishesTwice, "test_message_arrives_unchanged", "the broker has 2"),
    (HasOneId, "test_message_ids_are_unique", "the same message id"),
    (HasNumbersAsIds, "test_message_ids_are_unique", "a message id is a string"),
    (ConfirmsAndForgets, "test_message_ids_are_unique", "does not have what was confirmed"),
    (LetsSmallOnesOvertake, "test_key_keeps_the_order_of_the_calls", "not in the order of the calls"),
    (PublishesTwice, "test_key_keeps_the_order_of_the_calls", "published twice"),
    (NeedsAKey, "test_message_without_a_key_is_published", "lost"),
    (MissesExistingTopics, "test_check_finds_existing_topics", "an existing topic"),
    (MissesOtherTopics, "test_check_finds_existing_topics", "only the topic contract-missing"),
    (Truncates, "test_largest_message_is_published", "did not arrive whole"),
    (RefusesNothing, "test_message_over_the_largest_is_refused", "DID NOT RAISE"),
    (ConfirmsBeforeOpening, "test_publish_before_opening_confirms_nothing", "is not with the broker"),
    (PublishesAfterClose, "test_publish_after_close_is_refused", "DID NOT RAISE"),
    (ClosesOnce, "test_publish_after_close_is_refused", "closed already"),
    (FailsAllWhenOneIsCancelled, "test_cancelled_publish_leaves_the_others", "was not published"),
    (ConfirmsWhatIsCancelled, "test_cancelled_publish_leaves_the_others", "is not with the broker"),
    (PublishesTwice, "test_cancelled_publish_leaves_the_others", "published twice"),
    (ConfirmsWhatItDropsOnClose, "test_close_loses_no_confirmed_message", "is not with the broker"),
    (FailsOnClose, "test_close_loses_no_confirmed_message", "return a message id or raise a PublishError"),
    (RaisesErrorsOfItsOwn, "test_publish_in_an_outage_is_a_publish_error", "no PublishError"),
    (RaisesOneInstance, "test_publish_in_an_outage_is_a_publish_error", "the same instance"),
    (ConfirmsInAnOutage, "test_publish_in_an_outage_is_a_publish_error", "although the broker is away"),
    (IgnoresCancellation, "test_cancelled_publish_in_an_outage_ends_soon", "did not end within"),
    (EndsCancellationWithAnotherError, "test_cancelled_publish_in_an_outage_ends_soon", "it ended with"),
    (NeverRecovers, "test_publishing_works_after_an_outage", "publishing still fails"),
    (LosesTheOrderAfterAnOutage, "test_publishing_works_after_an_outage", "the order was lost"),
    (ForgetsAfterAnOutage, "test_publishing_works_after_an_outage", "is not with the broker"),
    (NeverCloses, "test_publish_after_close_is_refused", "aclose did not end within"),
    (NeverCloses, "test_message_ids_are_unique", "__aexit__ did not end within"),
    (ClosesWhenTheBrokerIsBack, "test_close_in_an_outage_ends", "aclose did not end within"),
    (NeverOpens, "test_check_finds_existing_topics", "__aenter__ did not end within"),
    (Hangs, "test_message_ids_are_unique", "publish did not end within"),
]


async def checked(transport: Right, check: str, **attributes: object) -> None:
    """Run one check on a transport, as pytest does."""
    contract = type("Contract", (TransportContract,), {"largest": transport.largest, "patience": 0.5} | attributes)()
    given = {"transport": transport, "delivered": lambda: transport.kept, "outage": transport.outage}
    method = getattr(contract, check)
    async with asyncio.timeout(20):
        await method(**{name: given[name] for name in inspect.signature(method).parameters})


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr("pulsecart.testing.contract.OUTAGE_DEADLINE", 0.2)
    monkeypatch.setattr("pulsecart.testing.contract.CANCEL_SECONDS", 0.3)


class Small(Right):
    """To a broker that takes only small messages."""

    largest = 1000


@pytest.mark.parametrize("right", [Right, Small, WaitsInAnOutage])
@pytest.mark.parametrize("check", CHECKS)
async def test_right_transport_passes(right, check):
    """A transport that keeps the contract passes every check."""
    await checked(right(), check, patience=10.0)


@pytest.mark.parametrize(("wrong", "check", "says"), WRONG, ids=lambda value: getattr(value, "__name__", None))
async def test_wrong_transport_fails(wrong, check, says):
    """A wrong transport fails the check that is for it, and the message says what is wrong."""
    with pytest.raises((AssertionError, pytest.fail.Exception), match=says):
        await checked(wrong(), check)


def test_every_check_fails_for_some_transport():
    """No check passes whatever the transport does."""
    assert {check for _, check, _ in WRONG} == set(CHECKS)


@pytest.mark.parametrize(
    ("wrong", "check", "attributes"),
    [
        (LetsSmallOnesOvertake, "test_cancelled_publish_leaves_the_others", {"ordered": False}),
        (LosesTheOrderAfterAnOutage, "test_publishing_works_after_an_outage", {"ordered": False}),
        (ChangesAttributes, "test_message_arrives_unchanged", {"has_attributes": False}),
        (LosesTheKey, "test_message_arrives_unchanged", {"has_attributes": False}),
    ],
)
async def test_attributes_say_what_a_broker_cannot_do(wrong, check, attributes):
    """What a broker cannot do is not checked."""
    await checked(wrong(), check, patience=5.0, **attributes)


async def test_wait_for_a_broker_that_is_late():
    """`delivered` may be async, and its broker may need some time until it lists a message."""

    class Late(Right):
        asked = 0

    transport = Late()

    async def delivered():
        transport.asked += 1
        return transport.kept if transport.asked > 3 else []

    await TransportContract().test_message_without_a_key_is_published(transport, delivered)
    assert transport.asked == 4


SUITE = """
import pytest
from pulsecart.testing import TransportContract
from pulsecart.transports import MemoryTransport

class TestMine(TransportContract):
    ordered = False

    @pytest.fixture
    def transport(self):
        return MemoryTransport()

    @pytest.fixture
    async def delivered(self, transport):
        return lambda: transport.messages
"""


def test_a_suite_needs_no_configuration(tmp_path):
    """In a project of others, two fixtures suffice. What is not checked is skipped by name."""
    (tmp_path / "test_mine.py").write_text(SUITE)
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-rs", "-v", "-p", "no:cacheprovider", "-W", "error", "--color=no"],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")},
    )
    assert ended.returncode == 0, ended.stdout
    assert "9 passed, 6 skipped" in ended.stdout
    assert "test_key_keeps_the_order_of_the_calls SKIPPED" in ended.stdout
    assert ": ordered = False\n" in ended.stdout
    assert "there is no fixture `outage`, which makes the broker unavailable" in ended.stdout
