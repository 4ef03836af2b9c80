"""Verifies tokens of identity providers (OpenID Connect, RFC 7519): RS256 and ES256 only.

Importing this module loads PyJWT, which is an optional dependency (extra `oidc`).
"""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import jwt
from attrs import frozen

from pulsecart.access.errors import KeysUnavailable, Unauthenticated
from pulsecart.access.jwks import ALGORITHMS, Issuer, Keys, PublicKey, discovered, given
from pulsecart.access.sources import Subject

__all__ = ["Tokens"]

MAX_TOKEN_BYTES = 16_384
"""Longer tokens are rejected unread."""

LEEWAY_SECONDS = 30
"""How far the clocks of this machine and of the issuer may differ."""

MAX_CACHED = 10_000
"""How many verified tokens are remembered. Beyond that the first ones are forgotten."""


@frozen
class _Verified:
    """What is remembered of a token. Its source is not: that depends on the sources in force."""

    subjects: tuple[Subject, ...]
    expires: float
    issuer: Issuer
    keys: Keys
    """The keys of the issuer at that time: with other keys, the token is verified again."""


class Tokens:
    """Verifies tokens of some issuers for an audience, while it is `opened`.

    The keys come from the issuer itself, or from `jwks`, a file or URL, if there is only one issuer.
    """

    def __init__(self, issuers: Collection[str], audience: str, jwks: str = "") -> None:
        self._issuers = {name: Issuer(name, given(jwks) if jwks else discovered(name)) for name in issuers}
        self._audience = audience
        self._verified: dict[bytes, _Verified] = {}

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """Fetch the keys, and keep them fresh during the block."""
        async with AsyncExitStack() as stack:
            for issuer in self._issuers.values():
                await stack.enter_async_context(issuer.kept_fresh())
            await asyncio.gather(*(issuer.refresh() for issuer in self._issuers.values()))
            yield

    def known(self, token: bytes) -> tuple[Subject, ...] | None:
        """Return the subjects of a token that has been verified before and has not expired, or None."""
        found = self._verified.get(hashlib.sha256(token).digest())
        if found is None or found.issuer.keys is not found.keys or found.expires <= time.time():
            return None
        return found.subjects

    async def verify(self, token: bytes) -> tuple[Subject, ...]:
        """Return the subjects of a token. Raises `Unauthenticated` or `KeysUnavailable`."""
        if len(token) > MAX_TOKEN_BYTES:
            raise Unauthenticated("too-long", f"The token has more than {MAX_TOKEN_BYTES:,} bytes.")
        algorithm, kid, issuer = self._claimed(token)
        key = await issuer.key(algorithm, kid)
        keys = issuer.keys
        if not keys:
            raise KeysUnavailable("The keys of the token's issuer have not been fetched yet.")
        if key is None:
            raise Unauthenticated(
                "unknown-signing-key", "The token is signed with a key that its issuer does not have."
            )
        claims = self._check(token, algorithm, key, issuer.name)
        subjects = _subjects(issuer.name, claims)
        if len(self._verified) >= MAX_CACHED:
            del self._verified[next(iter(self._verified))]
        self._verified[hashlib.sha256(token).digest()] = _Verified(subjects, int(claims["exp"]), issuer, keys)
        return subjects

    def _claimed(self, token: bytes) -> tuple[str, str, Issuer]:
        """Return the algorithm, key id and issuer that a token claims to have, if there can be such a token.

        Nothing else of its header is looked at: anybody can write a key or its address there (`jwk`, `jku`, `x5u`).
        """
        try:
            unverified = jwt.decode_complete(token, options={"verify_signature": False})
        except (jwt.PyJWTError, ValueError, RecursionError):
            raise Unauthenticated("malformed-token", "The bearer token is neither a key nor a JWT.") from None
        header, claims = unverified["header"], unverified["payload"]
        algorithm, kid, name = header.get("alg"), header.get("kid", ""), claims.get("iss")
        if algorithm not in ALGORITHMS:
            raise Unauthenticated("algorithm", f"The token must be signed with {' or '.join(ALGORITHMS)}.")
        issuer = self._issuers.get(name) if isinstance(name, str) else None
        if issuer is None:
            raise Unauthenticated("issuer", "The issuer of the token is not accepted here.")
        return algorithm, kid, issuer

    def _check(self, token: bytes, algorithm: str, key: PublicKey, issuer: str) -> Mapping[str, Any]:
        try:
            return jwt.decode(
                token,
                key,
                algorithms=[algorithm],
                audience=self._audience,
                issuer=issuer,
                leeway=LEEWAY_SECONDS,
                options={"require": ["iss", "aud", "exp"]},
            )
        except jwt.ExpiredSignatureError:
            raise Unauthenticated("expired", "The token has expired.") from None
        except (jwt.InvalidAudienceError, jwt.MissingRequiredClaimError) as error:
            detail = "The token is not meant for this service: it needs its audience, an issuer and an expiry."
            raise Unauthenticated(type(error).__name__, detail) from None
        # OverflowError: an expiry such as 1e999.
        except (jwt.PyJWTError, ValueError, OverflowError, TypeError, RecursionError) as error:
            raise Unauthenticated(type(error).__name__, "The token is not valid.") from None


def _subjects(issuer: str, claims: Mapping[str, Any]) -> tuple[Subject, ...]:
    sub, email = claims.get("sub"), claims.get("email")
    subjects: list[Subject] = []
    if isinstance(sub, str):
        subjects.append((issuer, "sub", sub))
    # Anybody may have written an email address that the issuer has not verified.
    if isinstance(email, str) and claims.get("email_verified") is True:
        subjects.append((issuer, "email", email))
    return tuple(subjects)
