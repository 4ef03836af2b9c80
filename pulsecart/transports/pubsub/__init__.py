"""Google Cloud Pub/Sub."""

import asyncio
from typing import TYPE_CHECKING

from pulsecart.errors import SettingsError
from pulsecart.limits import Limits
from pulsecart.ports import UNOBSERVED, Observer
from pulsecart.transports.pubsub.remote import RemoteTransport

if TYPE_CHECKING:
    from google.auth.credentials import Credentials

    from pulsecart.transports.pubsub.publisher import Publisher

__all__ = ["DEFAULT_ENDPOINT", "PubSubTransport", "require_credentials"]

DEFAULT_ENDPOINT = "pubsub.googleapis.com:443"

CHANNELS = 4
"""The number of channels for publishing: Google's front end accepts about 100 concurrent requests on a connection.

Each ordering key always uses the same channel."""

_DEFAULT = Limits()


def require_credentials() -> None:
    """Check that Application Default Credentials exist. Raises `SettingsError`."""
    from google.auth.exceptions import DefaultCredentialsError

    from pulsecart.transports.pubsub.tokens import default_credentials

    try:
        default_credentials()
    except (DefaultCredentialsError, OSError) as error:
        raise SettingsError([f"the pubsub transport needs Google's Application Default Credentials: {error}"]) from None


class PubSubTransport(RemoteTransport):
    """Publishes to the topics of a Google Cloud project.

    `endpoint` is host:port. Messages with an ordering key are in order only if all of them are published in
    one region: in production, use a locational endpoint such as `us-central1-pubsub.googleapis.com:443`
    (https://cloud.google.com/pubsub/docs/reference/service_apis_overview#service_endpoints).

    `credentials` default to Application Default Credentials. If there are none, opening raises
    `google.auth.exceptions.DefaultCredentialsError`. While no token can be fetched, publishing raises
    `BrokerUnavailable`.

    `roots` are the root certificates to trust, as PEM; the default is gRPC's own.
    """

    def __init__(  # noqa: PLR0913 (all of them are options)
        self,
        *,
        project: str,
        endpoint: str = DEFAULT_ENDPOINT,
        credentials: "Credentials | None" = None,
        roots: bytes | None = None,
        limits: Limits = _DEFAULT,
        observer: Observer = UNOBSERVED,
    ) -> None:
        self._project = project
        self._endpoint = endpoint
        self._credentials = credentials
        self._roots = roots
        self._limits = limits
        self._observer = observer

    async def _connect(self) -> "Publisher":
        from pulsecart.transports.pubsub.publisher import Publisher, secure_channel
        from pulsecart.transports.pubsub.tokens import Tokens, default_credentials

        credentials = self._credentials
        if credentials is None:
            credentials = await asyncio.to_thread(default_credentials)
        tokens = Tokens(credentials)
        await tokens.open()
        channels = [secure_channel(self._endpoint, self._roots) for _ in range(1 + CHANNELS)]
        return Publisher(
            channels,
            project=self._project,
            address=self._endpoint,
            limits=self._limits,
            tokens=tokens,
            observer=self._observer,
        )
