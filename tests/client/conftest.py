import asyncio
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from pulsecart.client import AsyncClient, Client, Failure, Receipt, SendError

Sent = tuple[list[Receipt], tuple[Failure, ...]]


def _sync_many(url: str, events: Iterable[Any], **options: Any) -> Sent:
    receipts = []
    with Client(url, **options) as client:
        try:
            for receipt in client.send_many(events):
                receipts.append(receipt)  # noqa: PERF402 (kept if it raises)
        except SendError as error:
            return receipts, error.failures
    return receipts, ()


def _async_many(url: str, events: Iterable[Any], **options: Any) -> Sent:
    async def send() -> Sent:
        receipts = []
        async with AsyncClient(url, **options) as client:
            try:
                async for receipt in client.send_many(events):
                    receipts.append(receipt)  # noqa: PERF401 (kept if it raises)
            except SendError as error:
                return receipts, error.failures
        return receipts, ()

    return asyncio.run(send())


def _sync_one(url: str, event: Any, **options: Any) -> Receipt:
    with Client(url, **options) as client:
        return client.send(event)


def _async_one(url: str, event: Any, **options: Any) -> Receipt:
    async def send() -> Receipt:
        async with AsyncClient(url, **options) as client:
            return await client.send(event)

    return asyncio.run(send())


@pytest.fixture(params=[_sync_many, _async_many], ids=["sync", "async"])
def send_many(request: pytest.FixtureRequest) -> Callable[..., Sent]:
    """Send events with each client. Returns the receipts and the failures. Retries do not wait."""
    return lambda url, events, **options: request.param(url, events, **{"max_wait": 0} | options)


@pytest.fixture(params=[_sync_one, _async_one], ids=["sync", "async"])
def send_one(request: pytest.FixtureRequest) -> Callable[..., Receipt]:
    return lambda url, event, **options: request.param(url, event, **{"max_wait": 0} | options)
