"""Publishes to the topics of a project: queues by key, requests with retries, and a check of the broker."""

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from pulsecart.errors import BrokerUnavailable, Overloaded
from pulsecart.limits import Limits
from pulsecart.message import Message
from pulsecart.ports import Observer
from pulsecart.transports.keyed import KeyedQueues
from pulsecart.transports.pubsub.admin import Admin
from pulsecart.transports.pubsub.attempts import Attempts
from pulsecart.transports.pubsub.reachability import Reachability, keep_probing
from pulsecart.transports.pubsub.sender import Sender
from pulsecart.transports.pubsub.wire import Wire

if TYPE_CHECKING:
    from pulsecart.transports.pubsub.tokens import Tokens

__all__ = ["Publisher"]

DRAIN_SECONDS = 7.0
"""Maximum seconds to wait for messages in flight when the transport is closed."""


class Publisher:
    """Publishes over a wire to the topics of one project."""

    def __init__(  # noqa: PLR0913 (the transports set different ones)
        self,
        wire: Wire,
        *,
        project: str,
        server: tuple[str, int],
        limits: Limits,
        observer: Observer,
        names: Mapping[str, str],
        tokens: "Tokens | None" = None,
        creates_topics: bool = False,
    ) -> None:
        self._wire = wire
        self._tokens = tokens
        self._deadline = limits.deadline
        self._loop = asyncio.get_running_loop()
        self._reachability = Reachability()
        attempts = Attempts(tokens, self._reachability)
        self._admin = Admin(wire, attempts, project, names)
        sender = Sender(
            wire,
            attempts,
            self._admin,
            server=server,
            deadline=limits.deadline,
            creates_topics=creates_topics,
            observer=observer,
        )
        self._queues = KeyedQueues(sender.send, limits, copies=wire.copies, observer=observer)
        self._batch_keys: Counter[tuple[str, str]] = Counter()
        """How many messages of batches are in flight, by topic and ordering key."""
        self._batch_key_ended = asyncio.Event()
        observer.watch(wire)
        self._probing = asyncio.create_task(
            keep_probing(self._reachability, self._admin.probe, lambda: self._queues.oldest is None)
        )

    def publish(self, message: Message) -> "asyncio.Future[str]":
        """Admit a message; see `KeyedQueues.publish`."""
        away = self._reachability.away
        if away is None:
            return self._queues.publish(message)
        if not self._reachability.may_try():
            raise away.error(message)
        try:
            published = self._queues.publish(message)
        except BaseException:
            self._reachability.tried(None)
            raise
        published.add_done_callback(self._reachability.tried)
        return published

    def admit(self, message: Message) -> "asyncio.Future[str]":
        """Admit a message of a batch; see `Admitting.admit`.

        All batches together have messages of at most `Wire.batch_keys` ordering keys in flight. Otherwise the requests
        of an upload would take all connections, and single events would wait behind hundreds of them.
        """
        address = message.topic, message.ordering_key
        if self._no_turn(address):
            raise Overloaded("batches have messages of too many ordering keys in flight", message=message)
        published = self.publish(message)
        if message.ordering_key:
            self._batch_keys[address] += 1
            published.add_done_callback(lambda _: self._batch_message_ended(address))
        return published

    def _no_turn(self, address: tuple[str, str]) -> bool:
        return bool(address[1]) and address not in self._batch_keys and len(self._batch_keys) >= self._wire.batch_keys

    def _batch_message_ended(self, address: tuple[str, str]) -> None:
        self._batch_keys[address] -= 1
        if not self._batch_keys[address]:
            del self._batch_keys[address]
            self._batch_key_ended.set()

    async def room(self, message: Message) -> None:
        """Wait until a message of a batch may be admitted; see `Admitting.room`."""
        while self._no_turn((message.topic, message.ordering_key)):
            self._batch_key_ended.clear()
            await self._batch_key_ended.wait()
        await self._queues.room(message)

    async def check(self, topics: Iterable[str]) -> list[str]:
        """Return the topics that are missing; see `Transport.check`."""
        topics = list(topics)
        if away := self._reachability.away:
            raise BrokerUnavailable(away.detail, away.log_detail, error_type=away.error_type)
        if self._queues.oldest is not None and (age := self._loop.time() - self._queues.oldest) > self._deadline / 2:
            raise BrokerUnavailable(f"the oldest message has waited for {age:.1f} s")
        found = await asyncio.gather(*map(self._admin.exists, topics))
        return [topic for topic, there in zip(topics, found, strict=True) if not there]

    async def create_topics(self, topics: Iterable[str]) -> None:
        """Create topics; existing ones are not changed. Raises `BrokerUnavailable`."""
        await self._admin.create(topics)

    async def aclose(self) -> None:
        """Reject further messages, wait at most `DRAIN_SECONDS` for those in flight, and close the connections.

        If it is cancelled, it does not wait, but closes them nevertheless.
        """
        async with AsyncExitStack() as stack:  # the last first, each of them even if it is cancelled meanwhile
            stack.push_async_callback(self._wire.aclose)
            if self._tokens is not None:
                stack.push_async_callback(self._tokens.aclose)
            stack.push_async_callback(asyncio.wait, [self._probing])
            stack.callback(self._probing.cancel)
            await self._queues.drain(DRAIN_SECONDS)
