"""Access tokens, renewed before they expire, in a thread. Importing this module loads Google's packages."""

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
"""How many seconds before its expiry a token is renewed, or at half of its lifetime if that is later."""

RETRY_SECONDS = 1.0
"""Seconds to wait after a failed renewal."""


def default_credentials() -> Credentials:
    """Find Application Default Credentials, for publishing. Raises `DefaultCredentialsError`.

    This blocks: it reads files, and may send requests to a metadata server.
    """
    credentials, _project = google.auth.default(scopes=[SCOPE])
    return credentials


class Tokens:
    """Keeps the metadata that authorizes calls, made from credentials.

    gRPC's own call credentials would start a thread for each call.
    """

    def __init__(self, credentials: Credentials) -> None:
        # A service account can sign its tokens itself, without a request.
        signs = getattr(credentials, "with_always_use_jwt_access", None)
        self._credentials: Any = signs(always_use_jwt_access=True) if signs else credentials
        self._request = google.auth.transport.requests.Request()
        self._metadata: tuple[tuple[str, str], ...] = ()
        self._expiry = datetime.min.replace(tzinfo=UTC)
        self._failure = "no token has been fetched yet"

    async def open(self) -> None:
        """Try to fetch the first token, and renew it in the background."""
        wait = await self._renew()
        self._renewing = asyncio.create_task(self._keep_fresh(wait))

    async def aclose(self) -> None:
        """Stop renewing."""
        self._renewing.cancel()
        await asyncio.gather(self._renewing, return_exceptions=True)

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The metadata to send with a call. Raises `BrokerUnavailable` if there is no valid token."""
        if datetime.now(UTC) >= self._expiry:
            what = "there is no valid access token"
            raise BrokerUnavailable(what, f"{what}: {self._failure}")
        return self._metadata

    async def _keep_fresh(self, wait: float) -> None:
        while True:
            await asyncio.sleep(wait)
            wait = await self._renew()

    async def _renew(self) -> float:
        """Fetch a token. Return the seconds to wait before the next one."""
        try:
            await asyncio.to_thread(self._credentials.refresh, self._request)
        except GoogleAuthError as error:
            self._failure = str(error)
            return RETRY_SECONDS
        headers: dict[str, str] = {}
        self._credentials.apply(headers)  # includes the quota project, if there is one
        self._metadata = tuple((name.lower(), value) for name, value in headers.items())
        self._expiry = self._credentials.expiry.replace(tzinfo=UTC)
        left = (self._expiry - datetime.now(UTC)).total_seconds()
        return max(left - REFRESH_AHEAD, left / 2, RETRY_SECONDS)
