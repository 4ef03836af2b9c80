"""The Pub/Sub transport on the strict server: TLS, credentials and headers."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from google.auth.exceptions import DefaultCredentialsError
from google.oauth2.credentials import Credentials

from pulsecart import BrokerUnavailable, Limits
from pulsecart.testing import Delivered, StrictPubsub, TransportContract, strict_pubsub
from pulsecart.transports import PubSubTransport
from tests.faults.proxy import proxy
from tests.google_login import new_key, service_account, token_endpoint
from tests.transports.messages import TOPICS, confirmed_by, message

pytestmark = pytest.mark.anyio

KEY = new_key()


@pytest.fixture
async def server() -> AsyncIterator[StrictPubsub]:
    async with strict_pubsub(TOPICS, tls=True) as service:
        yield service


@pytest.fixture
def key_file(monkeypatch, tmp_path):
    """Use a service account as Application Default Credentials."""
    path = tmp_path / "key.json"
    path.write_text(service_account(KEY))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))


@pytest.fixture(params=["rest", "grpc"])
def wire(request) -> str:
    return request.param


@pytest.fixture
def unopened(server, key_file, wire) -> PubSubTransport:
    return PubSubTransport(project="test", endpoint=server.host, roots=server.roots, wire=wire)


@pytest.fixture
async def transport(unopened) -> AsyncIterator[PubSubTransport]:
    async with unopened as opened:
        yield opened


class TestContractOnTheStrictServer(TransportContract):
    @pytest.fixture
    def transport(self, unopened) -> PubSubTransport:
        return unopened

    @pytest.fixture
    def delivered(self, server) -> Delivered:
        return lambda: confirmed_by(server)


def decoded(part: str) -> bytes:
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


async def test_service_account_signs_its_own_token(server, transport):
    """The bearer token is a JWT signed with the key of the file, without a request to the token endpoint."""
    await transport.publish(message(1))
    scheme, _, token = server.metadata[0]["authorization"].partition(" ")
    head, claims, signature = token.split(".")
    KEY.public_key().verify(decoded(signature), f"{head}.{claims}".encode(), padding.PKCS1v15(), hashes.SHA256())
    assert scheme == "Bearer"
    assert json.loads(decoded(claims))["iss"] == "pulsecart@test.iam.gserviceaccount.com"
    assert json.loads(decoded(claims))["scope"] == "https://www.googleapis.com/auth/pubsub"


@pytest.mark.parametrize("wire", ["grpc"])
async def test_request_has_routing_and_user_agent_headers(server, transport):
    """By gRPC, the routing header names the topic, and the user agent names pulsecart."""
    await transport.publish(message(1))
    metadata = server.metadata[0]
    assert metadata["x-goog-request-params"] == "topic=projects%2Ftest%2Ftopics%2Fcontract-a"
    assert metadata["user-agent"].startswith("pulsecart/")
    assert "x-goog-user-project" not in metadata


@pytest.mark.parametrize("wire", ["grpc"])
async def test_keys_are_spread_over_channels(server, transport):
    """Several connections are used, and an ordering key always uses the same one."""
    for _ in range(2):
        await asyncio.gather(*(transport.publish(message(n, f"user-{n}")) for n in range(40)))
    peers: dict[str, set[str]] = {}
    for request, peer in zip(server.requests, server.peers, strict=True):
        peers.setdefault(request.messages[0].ordering_key, set()).add(peer)
    assert all(len(of_key) == 1 for of_key in peers.values())
    assert len(set.union(*peers.values())) == 4


async def test_slow_handshake_connects(server, key_file):
    """A TLS handshake succeeds though each answer takes a second."""
    async with proxy(server.host) as slow:
        slow.delay = 1.0
        endpoint = f"localhost:{slow.address.rpartition(':')[2]}"
        async with PubSubTransport(project="test", endpoint=endpoint, roots=server.roots) as transport:
            assert await transport.publish(message(1))


async def test_untrusted_certificate_gets_no_message(server, key_file):
    """Nothing is sent to a server whose certificate is not trusted."""
    limits = Limits(deadline=0.5)
    async with PubSubTransport(project="test", endpoint=server.host, limits=limits) as transport:
        with pytest.raises(BrokerUnavailable):
            await transport.publish(message(1))
    assert server.requests == []


async def test_open_without_credentials_is_an_error(monkeypatch, tmp_path):
    """Opening raises DefaultCredentialsError if no credentials can be found."""
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    with pytest.raises(DefaultCredentialsError):
        await PubSubTransport(project="test").__aenter__()


def user_credentials(url: str) -> Credentials:
    return Credentials(
        None, refresh_token="r", token_uri=url, client_id="c", client_secret="s", quota_project_id="who-pays"
    )


async def test_user_credentials_are_renewed_before_they_expire(server):
    """A token from the token endpoint is renewed before it expires, and the quota project is sent with it."""
    with token_endpoint(lifetime=4) as endpoint:
        credentials = user_credentials(endpoint.url)
        async with PubSubTransport(
            project="test", endpoint=server.host, roots=server.roots, credentials=credentials
        ) as transport:
            await transport.publish(message(1))
            async with asyncio.timeout(20):
                while server.metadata[-1]["authorization"] == "Bearer token-1":
                    await asyncio.sleep(0.1)
                    await transport.publish(message(2))
    assert server.metadata[0]["authorization"] == "Bearer token-1"
    assert server.metadata[0]["x-goog-user-project"] == "who-pays"
    assert server.metadata[-1]["authorization"] == "Bearer token-2"


async def test_token_endpoint_outage_ends(server, monkeypatch):
    """Without a token, publish and check fail in time and log why; with a new token both work again."""
    monkeypatch.setattr("pulsecart.transports.pubsub.reachability.PROBE_SECONDS", 0.05)
    monkeypatch.setattr("pulsecart.transports.pubsub.tokens.RETRY_SECONDS", 0.05)
    with token_endpoint(lifetime=3600) as endpoint:
        endpoint.down = True
        async with PubSubTransport(
            project="test",
            endpoint=server.host,
            roots=server.roots,
            credentials=user_credentials(endpoint.url),
            limits=Limits(deadline=0.5),
        ) as transport:
            for ask in (lambda: transport.publish(message(1)), lambda: transport.check(TOPICS)):
                with pytest.raises(BrokerUnavailable, match="no valid access token") as caught:
                    await ask()
                assert "it is down" in caught.value.log_detail
                assert "it is down" not in str(caught.value)
            endpoint.down = False
            async with asyncio.timeout(20):
                while True:
                    with suppress(BrokerUnavailable):
                        await transport.check(TOPICS)
                        break
                    await asyncio.sleep(0.02)
            assert await transport.publish(message(2))
    assert [m.data for m in server.messages] == [message(2).data]
