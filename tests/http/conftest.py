"""Fixtures for the HTTP tests."""

from collections.abc import AsyncIterator

import httpx
import pytest

from tests.http.client import served


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    """Call the application on the memory transport, in development."""
    async with served() as client:
        yield client
