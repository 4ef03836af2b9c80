"""What authentication costs an event: a key, and a token that has been verified before.

`python -m benchmarks.access` prints the time that the guard adds to an endpoint that does nothing, and to a whole event
in memory: the least CPU time of interleaved rounds, in one process, without a server. Needs the extra `oidc`.
"""

import asyncio
import contextlib
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm
from starlette.types import ASGIApp, Receive, Scope, Send

from benchmarks.path import BODY, SCOPE
from pulsecart.access.keys import HASH, digest, new_key
from pulsecart.access.sources import SourcesFile
from pulsecart.access.tokens import Tokens
from pulsecart.app import create_app
from pulsecart.http.auth import Guard
from pulsecart.serve.settings import Settings
from pulsecart.telemetry.logs import EventLog

ROUNDS = 31
CALLS = 2000
ISSUER = "https://issuer.example"
AUDIENCE = "https://pulsecart.shop.example"


Headers = list[tuple[bytes, bytes]]


async def nothing(_scope: Scope, _receive: Receive, _send: Send) -> None:
    """Do what an endpoint costs at least."""


async def receive() -> Any:
    """Return the whole body."""
    return {"type": "http.request", "body": BODY, "more_body": False}


async def send(_message: Any) -> None:
    """Take the answer."""


async def microseconds(app: ASGIApp, headers: Headers) -> float:
    """Return the CPU time of a request."""
    scopes = [{**SCOPE, "headers": headers} for _ in range(CALLS)]
    start = time.process_time()
    for scope in scopes:
        await app(scope, receive, send)
    return (time.process_time() - start) / CALLS * 1e6


async def compare(name: str, cases: dict[str, tuple[ASGIApp, Headers]]) -> None:
    """Print the time of each case, and what it takes more than the first."""
    times: dict[str, list[float]] = {case: [] for case in cases}
    for _ in range(ROUNDS):
        for case, (app, headers) in cases.items():
            times[case].append(await microseconds(app, headers))
    least = {case: min(found) for case, found in times.items()}
    first = next(iter(least.values()))
    for case, taken in least.items():
        print(f"{name}, {case}: {taken:.2f} us ({taken - first:+.2f})")


async def main() -> None:
    """Measure."""
    key, signing = new_key(), rsa.generate_private_key(public_exponent=65537, key_size=2048)
    claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "recs", "exp": int(time.time()) + 3600}
    token = jwt.encode(claims, signing, "RS256", {"kid": "k"})
    plain: Headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(BODY))]

    def sent(value: str) -> Headers:
        return [*plain, (b"authorization", f"Bearer {value}".encode())]

    with tempfile.TemporaryDirectory() as folder:
        jwks, sources = Path(folder) / "keys.json", Path(folder) / "sources.toml"
        jwks.write_text(json.dumps({"keys": [RSAAlgorithm.to_jwk(signing.public_key(), as_dict=True) | {"kid": "k"}]}))
        sources.write_text(
            f'[recs]\nkeys = ["{HASH}{digest(key.encode()).hex()}"]\nrate = 1_000_000_000\n'
            f'subjects = [{{iss = "{ISSUER}", sub = "recs"}}]\n'
        )
        file, tokens = SourcesFile(str(sources), ["order.placed"]), Tokens([ISSUER], AUDIENCE, str(jwks))
        guarded = Guard(lambda: file.current, EventLog(), tokens=tokens).protect(nothing)
        opened = create_app(Settings(transport="memory", log_level="warning"))
        closed = create_app(
            Settings(
                transport="memory",
                log_level="warning",
                auth="keys,oidc",
                sources=str(sources),
                oidc_issuers=(ISSUER,),
                oidc_audience=AUDIENCE,
                oidc_jwks=str(jwks),
            )
        )
        async with contextlib.AsyncExitStack() as stack:
            for entered in (tokens.opened(), *(app.router.lifespan_context(app) for app in (opened, closed))):
                await stack.enter_async_context(entered)
            applications: list[tuple[str, ASGIApp, ASGIApp]] = [
                ("guard", nothing, guarded),
                ("event", opened, closed),
            ]
            for name, without, app in applications:
                await compare(
                    name, {"none": (without, plain), "key": (app, sent(key)), "known token": (app, sent(token))}
                )


if __name__ == "__main__":
    asyncio.run(main())
