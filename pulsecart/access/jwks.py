"""The signing keys of an issuer: fetched in a thread ahead of their expiry, and kept while they cannot be fetched.

Importing this module loads PyJWT, which is an optional dependency (extra `oidc`).
"""

import asyncio
import contextlib
import json
import logging
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import jwt
import requests
from attrs import frozen
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from pulsecart.access.urls import is_secure, is_url

__all__ = ["ALGORITHMS", "Fetched", "Issuer", "discovered", "given"]

ALGORITHMS = ("RS256", "ES256")
"""The algorithms of tokens. Both are asymmetric: a public key must never serve as a secret."""

MAX_BYTES = 1_048_576
"""The most bytes of a document that is fetched."""

FETCH_SECONDS = 5.0
"""The most seconds for one document."""

UNKNOWN_KID_SECONDS = 10.0
"""How often, at most, a token with an unknown key id causes a fetch: anybody can make such tokens."""

DEFAULT_LIFETIME = 3600.0
"""How many seconds keys are valid if the answer does not say so (Cache-Control: max-age)."""

MAX_LIFETIME = 86_400.0
FILE_LIFETIME = 10.0
MIN_RSA_BITS = 2048  # RFC 7518, section 3.3
RETRY_SECONDS = (1.0, 60.0)
"""Seconds to wait after the first failed fetch, twice as many after each further one, and at most."""

PublicKey = RSAPublicKey | EllipticCurvePublicKey
Keys = Mapping[tuple[str, str], PublicKey]
"""The keys of an issuer by algorithm and key id. The id is empty if the key has none."""

_log = logging.getLogger("pulsecart.access")


class _FetchError(Exception):
    """A document could not be fetched or read."""


@frozen
class Fetched:
    """A key set, as JSON, and for how many seconds it is valid."""

    document: bytes
    lifetime: float


class Issuer:
    """Has the keys of an issuer while it is `kept_fresh`. `fetch` returns them; it is called in a thread."""

    def __init__(self, name: str, fetch: Callable[[], Fetched]) -> None:
        self.name = name
        self.keys: Keys = {}
        """The keys, or none if they have never been fetched. The object is replaced when the keys change."""
        self._fetch = fetch
        self._document = b""
        self._refreshing: asyncio.Task[float] | None = None
        self._asked_at = float("-inf")
        self._failures = 0

    @contextlib.asynccontextmanager
    async def kept_fresh(self) -> AsyncIterator[None]:
        """Keep the keys fresh during the block. A failure is logged, and fetching tried again."""
        keeping = asyncio.create_task(self._keep_fresh())
        try:
            yield
        finally:
            tasks = [task for task in (keeping, self._refreshing) if task is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def key(self, algorithm: str, kid: str) -> PublicKey | None:
        """Return a key, or None. If its id is unknown the keys are fetched again, but not often."""
        found = self._find(algorithm, kid)
        if found is None and self.keys:
            now = time.monotonic()
            if now - self._asked_at >= UNKNOWN_KID_SECONDS:
                self._asked_at = now
                await self.refresh()
            elif self._refreshing is not None:
                await asyncio.shield(self._refreshing)
            found = self._find(algorithm, kid)
        return found

    async def _keep_fresh(self) -> None:
        while True:
            wait = await self.refresh()
            await asyncio.sleep(wait)

    def _find(self, algorithm: str, kid: str) -> PublicKey | None:
        if kid:
            return self.keys.get((algorithm, kid))
        # A token needs no key id if the issuer has one key only (OpenID Connect Core 1.0, section 10.1).
        suitable = [key for (known, _), key in self.keys.items() if known == algorithm]
        return suitable[0] if len(suitable) == 1 else None

    async def refresh(self) -> float:
        """Fetch the keys, or wait for the fetch that is running. Return the seconds until the next one."""
        if self._refreshing is None:
            self._refreshing = asyncio.create_task(self._renew())
        return await asyncio.shield(self._refreshing)

    async def _renew(self) -> float:
        try:
            fetched = await asyncio.to_thread(self._fetch)
            if fetched.document != self._document:
                self.keys, self._document = _read(fetched.document), fetched.document
        except Exception as error:  # noqa: BLE001 (if anything ended the loop, keys would never be renewed)
            kept = "the keys that are known stay valid" if self.keys else "its tokens cannot be verified"
            reason = str(error) if isinstance(error, _FetchError) else f"{type(error).__name__}: {error}"
            _log.warning("The keys of the issuer %s could not be fetched, %s: %s", self.name, kept, reason)
            first, most = RETRY_SECONDS
            wait = min(first * 2.0 ** min(self._failures, 10), most)
            self._failures += 1
            return wait
        else:
            self._failures = 0
            return max(fetched.lifetime / 2, 1.0)
        finally:
            self._refreshing = None


def discovered(issuer: str) -> Callable[[], Fetched]:
    """Return what fetches the keys of an issuer by OpenID Connect Discovery 1.0."""

    def fetch() -> Fetched:
        url = f"{issuer.rstrip('/')}/.well-known/openid-configuration"
        document = _parse(_get(url).document, url)
        if document.get("issuer") != issuer:
            raise _FetchError(f"{url} names another issuer; it must be {issuer}, character for character")
        return _get(document.get("jwks_uri"))

    return fetch


def given(place: str) -> Callable[[], Fetched]:
    """Return what fetches the keys from a URL or a file."""

    def fetch() -> Fetched:
        if is_url(place):
            return _get(place)
        with Path(place).open("rb") as file:
            return Fetched(_bounded(file.read(MAX_BYTES + 1), place), FILE_LIFETIME)

    return fetch


def _get(url: Any) -> Fetched:
    if not isinstance(url, str) or not is_secure(url):
        raise _FetchError(f"the keys must be at an https URL (or http on loopback), not {url!r:.200}")
    deadline = time.monotonic() + FETCH_SECONDS
    # Without a content coding, so that the limit holds for what is decoded, too.
    headers = {"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "pulsecart"}
    try:
        with requests.get(url, headers=headers, timeout=FETCH_SECONDS, stream=True, allow_redirects=False) as response:
            if response.status_code != 200:
                raise _FetchError(f"{url} answered {response.status_code}, not 200 (redirects are not followed)")
            content = b""
            while len(content) <= MAX_BYTES and (chunk := response.raw.read1(65_536)):
                content += chunk
                if time.monotonic() > deadline:
                    raise _FetchError(f"{url} was not complete within {FETCH_SECONDS:g} seconds")
            return Fetched(_bounded(content, url), _lifetime(response.headers.get("Cache-Control", "")))
    except requests.RequestException as error:
        raise _FetchError(f"{url}: {error}") from None


def _bounded(content: bytes, place: str) -> bytes:
    if len(content) > MAX_BYTES:
        raise _FetchError(f"{place} has more than {MAX_BYTES:,} bytes")
    return content


def _lifetime(cache_control: str) -> float:
    found = re.search(r"(?:^|[\s,])max-age=(\d{1,9})(?!\d)", cache_control, re.ASCII | re.IGNORECASE)
    return min(float(found[1]), MAX_LIFETIME) if found and int(found[1]) else DEFAULT_LIFETIME


def _parse(document: bytes, place: str) -> dict[str, Any]:
    try:
        parsed = json.loads(document)
    except (ValueError, RecursionError):
        parsed = None
    if not isinstance(parsed, dict):
        raise _FetchError(f"{place} is not a JSON object")
    return parsed


def _read(document: bytes) -> Keys:
    """Return the keys of a set that can verify tokens (RFC 7517). Others are left out, as the standard says."""
    listed = _parse(document, "the key set").get("keys")
    if not isinstance(listed, list):
        raise _FetchError("the key set has no array keys")
    keys: dict[tuple[str, str], PublicKey] = {}
    for entry in listed:
        if isinstance(entry, dict) and (found := _public_key(entry)):
            algorithm, key = found
            keys.setdefault((algorithm, str(entry.get("kid", ""))), key)
    if not keys:
        raise _FetchError(f"the key set has no key for {' or '.join(ALGORITHMS)}")
    return keys


def _public_key(entry: dict[str, Any]) -> tuple[str, PublicKey] | None:
    if entry.get("use", "sig") != "sig":
        return None
    algorithm = {"RSA": "RS256", "EC": "ES256"}.get(str(entry.get("kty")))
    if algorithm is None or entry.get("alg", algorithm) != algorithm:
        return None
    try:
        key = jwt.PyJWK(entry, algorithm).key
    except (jwt.PyJWTError, ValueError, TypeError, AttributeError):
        return None  # a damaged key must not make the others useless
    if isinstance(key, RSAPublicKey):
        return (algorithm, key) if key.key_size >= MIN_RSA_BITS else None
    if isinstance(key, EllipticCurvePublicKey):
        return (algorithm, key) if isinstance(key.curve, SECP256R1) else None
    return None  # a private key: once it has been published, anybody can sign with it
