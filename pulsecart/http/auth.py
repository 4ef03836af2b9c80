"""Authentication: which source sends a request.

The dispatcher authenticates every request for a route of its table (all of them are POST) and for `/dev`, before the
endpoint is called and before anything of the body is read. A new POST route has to be in the table and needs nothing
else. A request that is not authenticated is answered here, with 401 or 503. What an endpoint does:

    source = source_of(scope)                           # None with PULSECART_AUTH=none
    require_credit(source, count)                       # raises ProblemError: 429 with Retry-After
    prepared = producer.prepare(document, caller=source)  # raises EventTypeNotAllowed: 403
    log.published(receipt, seconds, name_of(source))

`prepare` also adds the attribute `source` to the message. To slow a stream down instead of rejecting it:

    while source is not None and (seconds := source.charge()):
        await body.pause(seconds)                       # see `pulsecart.http.body.Stream`

The source is one object for the whole request, and is not changed by a new version of the sources file.
"""

import math
from collections.abc import Callable, Collection, Iterable
from time import perf_counter
from typing import Protocol

from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pulsecart.access.errors import KeysUnavailable, Unauthenticated
from pulsecart.access.keys import PREFIX
from pulsecart.access.sources import Source, Sources, Subject
from pulsecart.http.problems import Problem, ProblemError
from pulsecart.telemetry.logs import EventLog

__all__ = ["Guard", "Tokens", "is_dev", "name_of", "refusal_of", "require_credit", "source_of"]

_SOURCE = "pulsecart.source"
"""The key of the source in the ASGI scope."""

_REFUSAL = "pulsecart.refusal"
"""The key, in the ASGI scope, of the problem of a request for the console that is not authenticated."""

_KEY = PREFIX.encode()

_CONSOLE = "/dev"


def source_of(scope: Scope) -> Source | None:
    """Return the source of a request, or None if callers are not authenticated."""
    return scope.get(_SOURCE)


def refusal_of(scope: Scope) -> Problem | None:
    """Return the problem of a request that is not authenticated, but answered with a page that asks for a key."""
    return scope.get(_REFUSAL)


def name_of(source: Source | None) -> str:
    """Return the name of a source, or an empty string if there is none."""
    return "" if source is None else source.name


def require_credit(source: Source | None, count: int = 1) -> None:
    """Charge a source for `count` events. Raises `ProblemError` (429) if it is over its rate."""
    if source is not None and (seconds := source.charge(count)):
        raise ProblemError(
            Problem(
                status=429,
                type="rate-limited",
                title="Too many events",
                detail="The source sends more events a second than it may.",
                headers={"Retry-After": str(math.ceil(seconds))},
            )
        )


class Tokens(Protocol):
    """Verifies tokens. `pulsecart.access.tokens` has the implementation."""

    def known(self, token: bytes) -> Iterable[Subject] | None:
        """Return the subjects of a token that has been verified before, or None."""
        ...

    async def verify(self, token: bytes) -> Iterable[Subject]:
        """Return the subjects of a token. Raises `Unauthenticated` or `KeysUnavailable`."""
        ...


class Guard:
    """Lets requests of sources pass, and answers others.

    `sources` returns the sources in force; it is called once for each request. `keys` says whether keys are accepted;
    `tokens` verifies tokens, if they are.
    """

    def __init__(
        self, sources: Callable[[], Sources], log: EventLog, *, keys: bool = True, tokens: Tokens | None = None
    ) -> None:
        self._sources = sources
        self._log = log
        self._keys = keys
        self._tokens = tokens

    def protect(self, app: ASGIApp) -> ASGIApp:
        """Return an application that only sources can reach."""

        async def protected(scope: Scope, receive: Receive, send: Send) -> None:
            started = perf_counter()
            try:
                scope[_SOURCE] = await self._identify(scope)
            except (Unauthenticated, KeysUnavailable) as error:
                problem = _problem(error, closes=_has_body(scope))
                reason = error.reason if isinstance(error, Unauthenticated) else "keys-unavailable"
                severity, outcome = ("info", "refused") if problem.status < 500 else ("warning", "failed")
                seconds = perf_counter() - started
                self._log.failed(severity, outcome, problem.type, seconds, error_type=reason, detail=problem.detail)
                await problem.response()(scope, receive, send)
            else:
                await app(scope, receive, send)

        return protected

    def protect_routes(self, app: ASGIApp, routes: Collection[BaseRoute], hot: Collection[str]) -> ASGIApp:
        """Return an application of which only sources can reach `/dev` and the routes with these hot paths.

        The console is the exception: a browser without credentials gets it with the status 401, and it asks for a key.
        What it answers to others leaves a body unread: it cannot be of use.
        """
        protected = self.protect(app)

        async def asking(scope: Scope, receive: Receive, send: Send) -> None:
            try:
                scope[_SOURCE] = await self._identify(scope)
            except (Unauthenticated, KeysUnavailable) as error:
                scope[_REFUSAL] = _problem(error, closes=_has_body(scope))
            await app(scope, receive, send)

        async def partly_protected(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
            elif _wants_console(routes, scope):
                await asking(scope, receive, send)
            elif any(_needs_source(route, scope, hot) for route in routes):
                await protected(scope, receive, send)
            else:
                await app(scope, receive, _closing(send) if _has_body(scope) else send)

        return partly_protected

    async def _identify(self, scope: Scope) -> Source:
        sources = self._sources()
        credentials = [value for name, value in scope["headers"] if name == b"authorization"]
        if len(credentials) != 1:
            if credentials:
                raise Unauthenticated("several-headers", "The request has several Authorization headers.")
            raise Unauthenticated("missing", "The request has no Authorization header. Send a bearer key or token.")
        scheme, _, token = credentials[0].partition(b" ")
        token = token.strip(b" ")
        if scheme.lower() != b"bearer" or not token:
            raise Unauthenticated("malformed", "The Authorization header must be Bearer and a key or token.")
        if token.startswith(_KEY):
            if self._keys and (source := sources.with_key(token)):
                return source
            raise Unauthenticated("unknown-key", "The key is not valid here.")
        if self._tokens is None:
            raise Unauthenticated("no-key", "The credentials are not valid here.")
        subjects = self._tokens.known(token)
        if source := sources.with_subject(await self._tokens.verify(token) if subjects is None else subjects):
            return source
        raise Unauthenticated("unknown-subject", "The token is valid, but its subject may not send events.")


def is_dev(path: str) -> bool:
    """Return whether this is the path of a development route, without the prefix of a mount."""
    return path.startswith("/dev") and not path[4:5].isalnum()


def _needs_source(route: BaseRoute, scope: Scope, hot: Collection[str]) -> bool:
    path = getattr(route, "path", "")
    if is_dev(path):
        return route.matches(scope)[0] is not Match.NONE
    return path in hot and route.matches(scope)[0] is Match.FULL


def _wants_console(routes: Collection[BaseRoute], scope: Scope) -> bool:
    """Return whether this is a browser that opens the console.

    A browser can send no key with that. The page itself holds nothing that is not public.
    """
    if not any(name == b"accept" and b"text/html" in value for name, value in scope["headers"]):
        return False
    return any(getattr(route, "path", "") == _CONSOLE and route.matches(scope)[0] is Match.FULL for route in routes)


def _has_body(scope: Scope) -> bool:
    return any(
        (name == b"content-length" and value != b"0") or name == b"transfer-encoding"
        for name, value in scope["headers"]
    )


def _closing(send: Send) -> Send:
    async def send_closing(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
        await send(message)

    return send_closing


def _problem(error: Unauthenticated | KeysUnavailable, *, closes: bool) -> Problem:
    # With Connection: close the server does not read the body.
    headers = {"Connection": "close"} if closes else {}
    if isinstance(error, KeysUnavailable):
        return Problem(
            status=503,
            type="identity-provider-unavailable",
            title="The token cannot be verified yet",
            detail=str(error),
            headers=headers | {"Retry-After": "5"},
        )
    return Problem(
        status=401,
        type="unauthenticated",
        title="Valid credentials are required",
        detail=str(error),
        headers=headers | {"WWW-Authenticate": "Bearer"},
    )
