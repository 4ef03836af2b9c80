"""Access tokens, fetched ahead of time and off the event loop. Importing this module loads google."""

import asyncio
from datetime import UTC, datetime
from typing import Any

import google.auth
import google.auth.transport.requests
from google.auth.credentials import Credentials
from google.auth.exceptions import GoogleAuthError

from pulsecart.errors import BrokerUnavailable

__all__ = ["Tokens", "default_credentials"]

SCOPE = "https://www.googleapis.com/auth/pubsub"

REFRESH_AHEAD = 300.0
"""Seconds before its expiry that a token is renewed; or half its life, where that is shorter."""

RETRY_SECONDS = 1.0
"""Seconds to wait after a failure to renew."""


def default_credentials() -> Credentials:
    """Find Application Default Credentials, for publishing. Raises `DefaultCredentialsError`.

    This reads files, and may ask a metadata server: it is not for the event loop.
    """
    credentials, _project = google.auth.default(scopes=[SCOPE])
    return credentials


class Tokens:
    """Keeps the metadata that authorizes a call, as credentials give it.

    gRPC's own way, credentials for each call, starts a thread for each.
    """

    def __init__(self, credentials: Credentials) -> None:
        # A service account signs its tokens itself, and needs nobody's answer.
        signs = getattr(credentials, "with_always_use_jwt_access", None)
        self._credentials: Any = signs(always_use_jwt_access=True) if signs else credentials
        self._request = google.auth.transport.requests.Request()
        self._metadata: tuple[tuple[str, str], ...] = ()
        self._expiry = datetime.min.replace(tzinfo=UTC)
        self._failure = "none was fetched yet"

    async def open(self) -> None:
        """Fetch the first token, or fail to, and go on in the background."""
        wait = await self._renew()
        self._renewing = asyncio.create_task(self._keep_fresh(wait))

    async def aclose(self) -> None:
        """Stop renewing."""
        self._renewing.cancel()
        await asyncio.gather(self._renewing, return_exceptions=True)

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What to send with a call. Raises `BrokerUnavailable` where there is no token that is still valid."""
        if datetime.now(UTC) >= self._expiry:
            what = "there is no valid access token"
            raise BrokerUnavailable(what, f"{what}: {self._failure}")
        return self._metadata

    async def _keep_fresh(self, wait: float) -> None:
        while True:
            await asyncio.sleep(wait)
            wait = await self._renew()

    async def _renew(self) -> float:
        """Fetch a token, and return the seconds until the next is to be fetched."""
        try:
            await asyncio.to_thread(self._credentials.refresh, self._request)
        except GoogleAuthError as error:
            self._failure = str(error)
            return RETRY_SECONDS
        headers: dict[str, str] = {}
        self._credentials.apply(headers)  # the quota project, too, where there is one
        self._metadata = tuple((name.lower(), value) for name, value in headers.items())
        self._expiry = self._credentials.expiry.replace(tzinfo=UTC)
        left = (self._expiry - datetime.now(UTC)).total_seconds()
        return max(left - REFRESH_AHEAD, left / 2, RETRY_SECONDS)
