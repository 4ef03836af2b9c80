"""Access tokens, renewed before they expire, in a thread. Importing this module loads Google's packages."""

import asyncio
import logging
import random
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from contextvars import Context
from datetime import UTC
from email.message import Message
from http.client import HTTPException
from math import inf
from typing import Any

import google.auth
import google.auth.transport
from attrs import field, frozen
from google.auth.credentials import Credentials, with_scopes_if_required
from google.auth.exceptions import TransportError

from pulsecart.errors import BrokerUnavailable

__all__ = ["SCOPE", "Tokens", "default_credentials"]

SCOPE = "https://www.googleapis.com/auth/pubsub"

REFRESH_AHEAD = 300.0
"""How many seconds before its expiry a token is renewed, or at half of its lifetime if that is later."""

RETRY_SECONDS = 1.0
"""Minimum seconds between the starts of two refreshes, and maximum seconds to wait after the first failed one."""

LONGEST_BACKOFF = 5.0
"""Maximum seconds to wait after a failed refresh."""

CLOCK_SECONDS = 10.0
"""Maximum seconds between two looks at the wall clock, which may have been set."""

PATIENCE = 5.0
"""Seconds that `open` waits for the first token, and that an expired token is still used while it is being renewed."""

REQUEST_TIMEOUT = 10.0
"""Seconds that a request for a token waits for a connection, and for each part of the answer; google-auth waits 120."""

HUNG_SECONDS = 30.0
"""Seconds after which a refresh is abandoned."""

_log = logging.getLogger("pulsecart")

# Google's tokens, and each part of a JWT, have a run of characters as long as this. Host names and URLs do not.
_SECRET = re.compile(r"[\w~+=-]{32,}")


def default_credentials(scope: str = SCOPE) -> Credentials:
    """Find Application Default Credentials, by default for publishing. Raises `DefaultCredentialsError`.

    This blocks: it reads files, and may send requests to a metadata server.
    """
    credentials, _project = google.auth.default(scopes=[scope], request=_Request())
    return credentials


class Tokens:
    """Keeps the metadata that authorizes calls, made from credentials.

    gRPC's own call credentials would start a thread for each call. Credentials that hold a good token are used as they
    are, and refreshed only when it is about to expire. `clock` returns the Unix time in seconds.
    """

    def __init__(self, credentials: Credentials, scope: str = SCOPE, *, clock: Callable[[], float] = time.time) -> None:
        scoped: Any = with_scopes_if_required(credentials, [scope])  # type: ignore[no-untyped-call]
        # A service account can sign its tokens itself, without a request.
        signs = getattr(scoped, "with_always_use_jwt_access", None)
        self._credentials: Any = signs(always_use_jwt_access=True) if signs else scoped
        self._clock = clock
        self._token: _Token | None = None
        self._failure = ""
        self._trying_since: float | None = None
        self._last_start = -inf
        self._renewing: asyncio.Task[None] | None = None
        self._refreshing: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Start to renew tokens in the background. Wait for the first one, but at most `PATIENCE` seconds."""
        self._renewing = _start(self._keep_fresh())
        try:
            await asyncio.wait({self._refresh()}, timeout=PATIENCE)
        except asyncio.CancelledError:
            await self.aclose()
            raise

    async def aclose(self) -> None:
        """Stop renewing. A refresh that hangs is left behind in its thread, which does not keep the process alive."""
        tasks = {task for task in (self._renewing, self._refreshing) if task}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The metadata to send with a call; names are in lower case.

        An expired token is still returned while it is being renewed, because a clock may be wrong: the broker decides.
        Raises `BrokerUnavailable` if there has never been a token, or if the wall clock and the monotonic clock agree
        that it has expired and it has not been renewed within `PATIENCE` seconds.
        """
        if self._token is None or self._given_up(self._token):
            what = "there is no valid access token"
            raise BrokerUnavailable(what, f"{what}: {self._failure or 'no answer to the request for a token yet'}")
        return self._token.metadata

    @property
    def principal(self) -> str:
        """Whom the tokens are for: an e-mail address, or the kind of the credentials if they do not say."""
        names = ("service_account_email", "account")
        email = next((found for name in names if (found := getattr(self._credentials, name, None))), None)
        return email or f"an account that its credentials do not name ({type(self._credentials).__name__})"

    async def renew(self, rejected: tuple[tuple[str, str], ...]) -> None:
        """Refresh the token, because the broker does not accept the metadata `rejected`.

        Returns at once if the metadata has changed since, or if this is not open. Concurrent calls share a refresh, and
        at most one is started in `RETRY_SECONDS`; cancelling a call does not cancel the refresh. If it fails, this logs
        why and returns, and `metadata` stays as it is.
        """
        if self._renewing and not self._renewing.done() and self._token and self._token.metadata == rejected:
            await asyncio.wait({self._refresh()})

    def _given_up(self, token: "_Token") -> bool:
        if self._trying_since is None or time.monotonic() - self._trying_since < PATIENCE:
            return False
        return max(token.left(self._clock)) <= 0

    def _renewal_in(self) -> float:
        """Return the seconds until the token must be renewed by one of the clocks."""
        return min(self._token.left(self._clock)) - self._token.ahead if self._token else 0

    async def _keep_fresh(self) -> None:
        backoff = RETRY_SECONDS
        while True:
            try:
                if self._renewal_in() <= 0:
                    await asyncio.wait({self._refresh()})
                wait = self._renewal_in()
            except Exception:  # noqa: BLE001 (it is logged, and without this task there would be no token in an hour)
                _log.exception("renewing access tokens failed unexpectedly; it goes on")
                wait = 0
            if wait > 0:
                backoff = RETRY_SECONDS
            else:
                wait = backoff * random.uniform(0.5, 1)  # noqa: S311
                backoff = min(2 * backoff, LONGEST_BACKOFF)
            await asyncio.sleep(min(wait, CLOCK_SECONDS))

    def _refresh(self) -> asyncio.Task[None]:
        """Return the refresh that is under way, or start one."""
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = _start(self._fetch())
        return self._refreshing

    async def _fetch(self) -> None:
        """Refresh the token. Errors are logged, when refreshes start to fail and when they succeed again."""
        await asyncio.sleep(self._last_start + RETRY_SECONDS - time.monotonic())
        self._last_start = time.monotonic()
        self._trying_since = self._trying_since or self._last_start
        try:
            answer = _in_a_thread(self._ask)
            await asyncio.wait({answer}, timeout=HUNG_SECONDS)
            token = answer.result() if answer.done() else f"no answer within {HUNG_SECONDS:g} s"
        except RuntimeError as error:
            token = _reason(error)  # no thread can be started
        failed_before = self._failure
        if isinstance(token, _Token):
            self._token, self._failure, self._trying_since = token, "", None
            if failed_before:
                _log.info("there is a new access token")
        else:
            self._failure = token
            if not failed_before:
                _log.warning("cannot get a new access token: %s", token)

    def _ask(self) -> "_Token | str":
        """Return a token, or why there is none. This blocks."""
        try:
            # A refresh that was abandoned may have succeeded later.
            if not self._credentials.valid or (self._token and self._token.metadata == _headers(self._credentials)):
                self._credentials.refresh(_Request())
            return _token(self._credentials, self._clock())
        except BaseException as error:  # noqa: BLE001 (credentials may run any code; SystemExit would end the thread only)
            return _reason(error)


@frozen
class _Token:
    metadata: tuple[tuple[str, str], ...] = field(repr=False)
    wall_expiry: float
    """When the token expires, as Unix time in seconds; infinite if never."""
    expiry: float
    """The same on the monotonic clock."""
    ahead: float
    """How many seconds before its expiry the token is renewed."""

    def left(self, clock: Callable[[], float]) -> tuple[float, float]:
        """Return the seconds until the token expires, by the wall clock and by the monotonic clock."""
        return self.wall_expiry - clock(), self.expiry - time.monotonic()


@frozen
class _Answer(google.auth.transport.Response):
    status: int
    headers: Message
    data: bytes


class _Request(google.auth.transport.Request):
    """Sends requests for tokens with the standard library, which loads faster than requests and takes less memory.

    Each uses a new connection: an old one may be broken after an hour.
    """

    def __call__(
        self,
        url: str,
        method: str = "GET",
        body: bytes | str | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
        **_options: Any,
    ) -> _Answer:
        """Return the answer, whatever its status. Raises `TransportError`."""
        if not url.startswith(("http://", "https://")):
            raise TransportError(f"{url!r} is no URL of HTTP")  # type: ignore[no-untyped-call]
        data = body.encode() if isinstance(body, str) else body
        request = urllib.request.Request(url, data, dict(headers or {}), method=method)  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=timeout or REQUEST_TIMEOUT) as answer:  # noqa: S310
                return _Answer(answer.status, answer.headers, answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return _Answer(error.code, error.headers, error.read())
        except (OSError, HTTPException) as error:
            raise TransportError(str(error)) from error  # type: ignore[no-untyped-call]


def _headers(credentials: Any) -> tuple[tuple[str, str], ...]:
    headers: dict[str, str] = {}
    credentials.apply(headers)  # includes the quota project, if there is one
    return tuple((name.lower(), value) for name, value in headers.items())


def _token(credentials: Any, now: float) -> _Token:
    wall_expiry = credentials.expiry.replace(tzinfo=UTC).timestamp() if credentials.expiry else inf
    # A token that has expired on arrival shows that the wall clock is wrong: its lifetime is unknown.
    lifetime = wall_expiry - now if wall_expiry > now else inf
    ahead = min(REFRESH_AHEAD, lifetime / 2)
    return _Token(_headers(credentials), wall_expiry, time.monotonic() + lifetime, ahead)


def _reason(error: BaseException) -> str:
    """Describe an error for the log, without the answer that Google's errors carry, and without secrets."""
    text = " ".join(str(error.args[0] if error.args else "").split())
    return f"{type(error).__name__}: {_SECRET.sub('…', text)[:500]}"


def _start(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """Start a task that does not continue the trace of the request that happens to start it."""
    return asyncio.create_task(work, context=Context())


def _in_a_thread(function: Callable[[], _Token | str]) -> "asyncio.Future[_Token | str]":
    """Call a function in a thread that neither the event loop nor the process waits for when they end."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[_Token | str] = loop.create_future()

    def run() -> None:
        result = function()
        with suppress(RuntimeError):  # the event loop is closed
            loop.call_soon_threadsafe(answer.set_result, result)

    threading.Thread(target=run, name="pulsecart-token", daemon=True).start()
    return answer
