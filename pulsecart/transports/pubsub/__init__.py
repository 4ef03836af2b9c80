"""Google Cloud Pub/Sub."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pulsecart.errors import SettingsError
from pulsecart.limits import Limits
from pulsecart.ports import UNOBSERVED, Observer
from pulsecart.transports.pubsub.remote import (
    API_ANSWER_BYTES,
    CALL_SECONDS,
    DEFAULT_CONNECTIONS,
    RemoteTransport,
    WireName,
)
from pulsecart.transports.registry import TransportConfig

if TYPE_CHECKING:
    from google.auth.credentials import Credentials

    from pulsecart.transports.pubsub.api import Api
    from pulsecart.transports.pubsub.publisher import Publisher
    from pulsecart.transports.pubsub.tokens import Tokens
    from pulsecart.transports.pubsub.wire import Wire
    from pulsecart.transports.pubsub.wire.dial import Endpoint
    from pulsecart.transports.pubsub.wire.rest import RestWire

__all__ = ["DEFAULT_CONNECTIONS", "DEFAULT_ENDPOINT", "PubSubTransport", "WireName", "from_config"]

DEFAULT_ENDPOINT = "pubsub.googleapis.com:443"

_DEFAULT = Limits()
_SAME_NAMES: Mapping[str, str] = {}


class PubSubTransport(RemoteTransport):
    """Publishes to the topics of a Google Cloud project.

    `endpoint` is host:port. Messages with an ordering key are in order only if all of them are published in
    one region: in production, use a locational endpoint such as `us-central1-pubsub.googleapis.com:443`
    (https://cloud.google.com/pubsub/docs/reference/service_apis_overview#service_endpoints). Connections go to
    `connect_to`, if it is given: the host:port of a private or restricted endpoint. TLS verifies `endpoint`'s name.

    `wire` is `rest`, Pub/Sub's REST API, or `grpc`, for messages over 7,340,032 bytes. REST uses at most `connections`
    connections, and the proxy that the variables HTTPS_PROXY and NO_PROXY name.

    `credentials` default to Application Default Credentials. If there are none, opening raises
    `google.auth.exceptions.DefaultCredentialsError`. While no token can be fetched, publishing raises
    `BrokerUnavailable`.

    `topics` maps the topics of messages to what they are called in the project, as far as the names differ.

    `roots` are the root certificates to trust, as PEM; the default is the system's (REST), or gRPC's own. For mutual
    TLS, `client_certificate` is a PEM file with a certificate and its chain, and `client_key` one with its private key.
    """

    def __init__(  # noqa: PLR0913 (all of them are options)
        self,
        *,
        project: str,
        endpoint: str = DEFAULT_ENDPOINT,
        connect_to: str = "",
        wire: WireName = "rest",
        connections: int = DEFAULT_CONNECTIONS,
        credentials: "Credentials | None" = None,
        roots: bytes | None = None,
        client_certificate: Path | None = None,
        client_key: Path | None = None,
        limits: Limits = _DEFAULT,
        topics: Mapping[str, str] = _SAME_NAMES,
        observer: Observer = UNOBSERVED,
    ) -> None:
        self._project = project
        self._endpoint = endpoint
        self._connect_to = connect_to
        self._wire = wire
        self._connections = connections
        self._credentials = credentials
        self._roots = roots
        self._client_certificate = client_certificate
        self._client_key = client_key
        self._limits = limits
        self._topics = topics
        self._observer = observer

    def require(self) -> None:
        """Check what can be checked before opening: credentials, certificates and proxy. Raises `SettingsError`."""
        from google.auth.exceptions import DefaultCredentialsError

        from pulsecart.transports.pubsub.tokens import default_credentials
        from pulsecart.transports.pubsub.wire.dial import make_tls, proxy_for, split_address

        problems = []
        try:
            _ = self._credentials or default_credentials()
        except (DefaultCredentialsError, OSError) as error:
            problems.append(f"the pubsub transport needs Google's Application Default Credentials: {error}")
        try:
            make_tls(roots=self._roots, certificate=self._client_certificate, key=self._client_key)
        except (OSError, ValueError) as error:
            problems.append(f"the certificates for Pub/Sub cannot be used: {error}")
        try:
            proxy_for(split_address(self._endpoint)[0])
        except ValueError as error:
            problems.append(str(error))
        if problems:
            raise SettingsError(problems)

    async def _connect(self) -> "Publisher":
        from pulsecart.transports.pubsub.publisher import Publisher
        from pulsecart.transports.pubsub.tokens import SCOPE
        from pulsecart.transports.pubsub.wire.dial import split_address

        tokens = await self._make_tokens(SCOPE)
        wire = self._make_wire()
        try:
            await tokens.open()
            return Publisher(
                wire,
                project=self._project,
                server=split_address(self._endpoint),
                limits=self._limits,
                tokens=tokens,
                observer=self._observer,
                names=self._topics,
            )
        except BaseException:
            await tokens.aclose()
            await wire.aclose()
            raise

    @asynccontextmanager
    async def api(
        self,
        scope: str = "https://www.googleapis.com/auth/pubsub",
        *,
        timeout: float = CALL_SECONDS,  # noqa: ASYNC109
    ) -> "AsyncIterator[Api]":
        """Give access to the REST API at the endpoint, whether this transport is open or not.

        `scope` is what its access tokens are for. Each answer is waited for at most `timeout` seconds.
        """
        from pulsecart.transports.pubsub.api import Api

        tokens = await self._make_tokens(scope)
        wire = self._make_rest(timeout, max_answer=API_ANSWER_BYTES)
        try:
            await tokens.open()
            yield Api(wire, tokens)
        finally:
            await tokens.aclose()
            await wire.aclose()

    async def _make_tokens(self, scope: str) -> "Tokens":
        from pulsecart.transports.pubsub.tokens import Tokens, default_credentials

        credentials = self._credentials
        if credentials is None:
            credentials = await asyncio.to_thread(default_credentials, scope)
        return Tokens(credentials, scope)

    def _make_wire(self) -> "Wire":
        if self._wire == "grpc":
            from pulsecart.transports.pubsub.wire.grpc import GrpcWire, secure

            certificate, key = self._client_certificate, self._client_key
            dial = secure(
                self._endpoint,
                address=self._connect_to,
                roots=self._roots,
                certificate=certificate.read_bytes() if certificate else None,
                key=(key or certificate).read_bytes() if certificate else None,
            )
            return GrpcWire(dial, timeout=self._limits.attempt_timeout)
        return self._make_rest(self._limits.attempt_timeout)

    def _make_rest(self, timeout: float, **options: int) -> "RestWire":
        from pulsecart.transports.pubsub.wire.rest import RestWire

        return RestWire(self.endpoint(), connections=self._connections, timeout=timeout, **options)

    def endpoint(self) -> "Endpoint":
        """Return how connections for REST are made: address, TLS and proxy."""
        from pulsecart.transports.pubsub.wire.dial import Endpoint, make_tls, proxy_for, split_address

        host, port = split_address(self._endpoint)
        return Endpoint(
            host=host,
            port=port,
            tls=make_tls(roots=self._roots, certificate=self._client_certificate, key=self._client_key),
            address=split_address(self._connect_to) if self._connect_to else None,
            proxy=proxy_for(host),
        )


def from_config(config: TransportConfig) -> PubSubTransport:
    """Return the transport `pubsub`."""
    config.allow_options()
    settings = config.settings
    return PubSubTransport(
        project=config.project,
        endpoint=settings.endpoint,
        connect_to=settings.connect_to,
        wire=settings.wire,
        connections=settings.connections,
        roots=Path(settings.ca_file).read_bytes() if settings.ca_file else None,
        client_certificate=_path(settings.client_certificate_file),
        client_key=_path(settings.client_key_file),
        limits=config.limits,
        topics=settings.topics,
        observer=config.observer,
    )


def _path(text: str) -> Path | None:
    return Path(text) if text else None
