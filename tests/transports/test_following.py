"""Following a topic by a subscription; tests/cli/test_tail.py has most of its tests."""

import asyncio
import json
import logging

import pytest
from google.oauth2.service_account import Credentials

from pulsecart.transports.pubsub.api import Api
from pulsecart.transports.pubsub.following import PULL_SECONDS, Following
from pulsecart.transports.pubsub.tokens import Tokens
from pulsecart.transports.pubsub.wire.dial import Endpoint, split_address
from pulsecart.transports.pubsub.wire.rest import RestWire
from tests.google_login import new_key, service_account
from tests.subscriptions import subscriptions

pytestmark = pytest.mark.anyio


async def test_missing_token_is_waited_for(caplog):
    """Without a token no request is sent; when there is one, the subscription is created with it."""
    tokens = Tokens(Credentials.from_service_account_info(json.loads(service_account(new_key()))))
    with subscriptions(["topic"]) as server, caplog.at_level(logging.WARNING):
        host, port = split_address(server.host)
        wire = RestWire(Endpoint(host=host, port=port), connections=2, timeout=PULL_SECONDS)
        following = Following(Api(wire, tokens), "test", "topic")
        async with asyncio.timeout(60):
            entering = asyncio.create_task(following.__aenter__())
            while "there is no valid access token" not in caplog.text:
                await asyncio.sleep(0.01)
            assert server.tokens == set()
            await tokens.open()
            await entering
            assert list(server.subscriptions) == [following.subscription]
            await following.__aexit__(None, None, None)
            await tokens.aclose()
            await wire.aclose()
    assert server.subscriptions == {}
    assert None not in server.tokens
