"""Authentication by tokens: what is accepted, and the attacks, through HTTP and a real identity provider."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from pulsecart.access import jwks, tokens
from pulsecart.serve.settings import Settings
from pulsecart.telemetry import logs
from pulsecart.transports import MemoryTransport
from tests.http.client import JSON, problem, served
from tests.identity_provider import AUDIENCE, DISCOVERY, Provider, b64, ec_key, identity_provider, jwk, rsa_key

pytestmark = pytest.mark.anyio

DEEP = b'{"a":' * 2000 + b"1" + b"}" * 2000
LONG_NUMBER = b'{"iss":' + b"1" * 5000 + b"}"
BODY = b'{"event_type":"order.placed","user_id":"u1","order_id":"o1","payload":{}}'


@pytest.fixture
def provider() -> Iterator[Provider]:
    with identity_provider() as provider:
        yield provider


@asynccontextmanager
async def trusting(path: Path, *providers: Provider, transport: Any = None, **settings: Any) -> AsyncIterator[Any]:
    """Serve with a source `recs` for the subject and the address `recs@x` of the first provider."""
    file = path / "sources.toml"
    issuer = providers[0].url
    if not file.exists():
        file.write_text(
            f'[recs]\nsubjects = [{{iss = "{issuer}", sub = "recs"}}, {{iss = "{issuer}", email = "recs@x"}}]\n'
        )
    options = {
        "auth": "oidc",
        "sources": str(file),
        "oidc_issuers": tuple(provider.url for provider in providers),
        "oidc_audience": AUDIENCE,
    }
    async with served(transport, Settings(transport="memory", **options | settings)) as client:

        async def post(token: str, body: bytes = BODY) -> httpx.Response:
            return await client.post(
                "/events/ingest", content=body, headers=JSON | {"Authorization": f"Bearer {token}"}
            )

        yield post


def why(response: httpx.Response) -> str:
    """Check that the answer is a 401, and return its detail."""
    assert response.headers["www-authenticate"] == "Bearer"
    return problem(response, 401, "unauthenticated")["detail"]


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.02)


async def test_token_with_rs256_or_es256_is_accepted(tmp_path, provider):
    """The source of its subject is in the message, and the token nowhere."""
    transport = MemoryTransport()
    async with trusting(tmp_path, provider, transport=transport) as post:
        assert (await post(provider.token())).status_code == 202
        assert (await post(provider.token(ec_key("curve"), "curve"))).status_code == 202
        assert (await post(provider.token(aud=["other", AUDIENCE]))).status_code == 202
        assert (await post(provider.token(nbf=int(time.time()) + 20, exp=int(time.time()) - 20))).status_code == 202
    assert {message.attributes["source"] for message in transport.messages} == {"recs"}


async def test_email_counts_only_if_it_is_verified(tmp_path, provider):
    """Anybody can have an unverified address in a token."""
    async with trusting(tmp_path, provider) as post:
        assert (await post(provider.token(sub="1", email="recs@x", email_verified=True))).status_code == 202
        for claims in ({}, {"email_verified": False}, {"email_verified": "true"}, {"email_verified": 1}):
            assert "subject" in why(await post(provider.token(sub="1", email="recs@x", **claims)))
        assert "subject" in why(await post(provider.token(sub=..., email=["recs@x"], email_verified=True)))


@pytest.mark.parametrize(
    ("claims", "says"),
    [
        ({"sub": "other"}, "subject"),
        ({"sub": ...}, "subject"),
        ({"sub": 5}, "not valid"),
        ({"iss": "https://evil.example"}, "issuer"),
        ({"iss": ...}, "issuer"),
        ({"iss": ["https://evil.example"]}, "issuer"),
        ({"aud": "other"}, "not meant"),
        ({"aud": ...}, "not meant"),
        ({"aud": f"{AUDIENCE}/"}, "not meant"),
        ({"aud": 5}, "not meant"),
        ({"exp": 1}, "expired"),
        ({"exp": int(time.time()) - 40}, "expired"),
        ({"exp": ...}, "not meant"),
        ({"exp": "soon"}, "not valid"),
        ({"exp": None}, "not meant"),
        ({"exp": float("inf")}, "not valid"),
        ({"nbf": int(time.time()) + 600}, "not valid"),
        ({"iat": int(time.time()) + 600}, "not valid"),
    ],
)
async def test_wrong_claims_are_401(tmp_path, provider, claims, says):
    """A signature alone is not enough: issuer, audience, expiry and subject have to be right."""
    async with trusting(tmp_path, provider) as post:
        assert says in why(await post(provider.token(**claims)))


async def test_forged_signatures_are_401(tmp_path, provider, capsys):
    """No algorithm, a public key as a secret, keys in the header and changed tokens are all rejected."""
    public = rsa_key("first").public_key()
    pem = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    evil = jwk(rsa_key("evil"), "evil")
    header, payload, signature = provider.token().split(".")
    changed = b64(json.dumps(provider.claims(sub="recs", exp=9_999_999_999)).encode())
    es384 = jwt.encode(provider.claims(), ec.generate_private_key(ec.SECP384R1()), "ES384", {"kid": "curve"})
    hmac = b64(b'{"alg":"HS256","kid":"first"}') + "." + payload
    forged = [
        jwt.encode(provider.claims(), "", "none", {"kid": "first"}),
        b64(b'{"alg":"NONE","kid":"first"}') + f".{payload}.",
        b64(b'{"alg":"none"}') + f".{payload}.{signature}",
        f"{hmac}.{b64(_hmac(pem, hmac))}",
        jwt.encode(provider.claims(), "k" * 64, "HS256", {"kid": "first"}),
        jwt.encode(provider.claims(), rsa_key("first"), "RS512", {"kid": "first"}),
        jwt.encode(provider.claims(), rsa_key("first"), "PS256", {"kid": "first"}),
        es384,
        b64(b'{"alg":["RS256"],"kid":"first"}') + f".{payload}.{signature}",
        b64(b'{"alg":"RS256","kid":5}') + f".{payload}.{signature}",
        b64(b'{"alg":"RS256","kid":"first","crit":["x"],"x":1}') + f".{payload}.{signature}",
        b64(b'{"alg":"ES256","kid":"first"}') + f".{payload}.{signature}",
        b64(b'{"alg":"RS256","kid":"curve"}') + f".{payload}.{signature}",
        provider.token(rsa_key("evil")),
        provider.token(rsa_key("evil"), "evil", {"jwk": evil}),
        provider.token(rsa_key("evil"), "first", {"jwk": evil, "jku": f"{provider.url}/evil", "x5u": provider.url}),
        provider.token(rsa_key("evil"), "../first"),
        f"{header}.{changed}.{signature}",
        f"{header}.{payload}.",
        f"{header}.{payload}.{signature[:-8]}AAAAAAAA",
        f"{header}.{payload}",
        f"{header}..{signature}",
        f"{header}.{b64(b'[]')}.{signature}",
        f"{b64(b'[' * 9000)}.{payload}.{signature}",
        f"{header}.{b64(b'[' * 9000)}.{signature}",
        f"{header}.{b64(DEEP)}.{signature}",
        f"{header}.{b64(LONG_NUMBER)}.{signature}",
        "é",
        "..",
    ]
    async with trusting(tmp_path, provider) as post:
        for token in forged:
            response = await post(token.encode()) if not token.isascii() else await post(token)
            assert why(response), token
        assert (await post(provider.token())).status_code == 202
    assert "/evil" not in provider.requests
    logs.flush()
    log = capsys.readouterr().err
    assert signature[:20] not in log
    assert payload[:20] not in log


def _hmac(key: bytes, message: str) -> bytes:
    import hashlib
    import hmac

    return hmac.digest(key, message.encode(), hashlib.sha256)


async def test_huge_tokens_are_rejected_unread(tmp_path, provider):
    """A token over 16 KiB is not parsed, even if it is valid."""
    async with trusting(tmp_path, provider) as post:
        assert "16,384" in why(await post(provider.token(pad="x" * 20_000)))
        assert (await post(provider.token(pad="x" * 8_000))).status_code == 202


async def test_same_subject_of_another_issuer_is_another_caller(tmp_path, provider):
    """A subject counts only with its issuer, and a token only with keys of the issuer that it names."""
    with identity_provider() as other:
        other.keys = [jwk(rsa_key("other"), "first")]
        async with trusting(tmp_path, provider, other) as post:
            assert "subject" in why(await post(other.token(rsa_key("other"))))
            assert "not valid" in why(await post(other.token(rsa_key("other"), iss=provider.url)))
            assert "not valid" in why(await post(provider.token(iss=other.url)))
            assert (await post(provider.token())).status_code == 202


async def test_verified_token_is_remembered_until_it_expires(tmp_path, provider, monkeypatch):
    """The claims are remembered, and forgotten at `exp`; with the leeway the token is then verified again."""
    verified: list[bytes] = []
    decode = jwt.decode
    monkeypatch.setattr(
        jwt, "decode", lambda token, *args, **kwargs: verified.append(token) or decode(token, *args, **kwargs)
    )
    async with trusting(tmp_path, provider) as post:
        token, old = provider.token(), provider.token(exp=int(time.time()) - 5)
        for _ in range(3):
            assert (await post(token)).status_code == 202
            assert (await post(old)).status_code == 202
        assert [len([one for one in verified if one == known.encode()]) for known in (token, old)] == [1, 3]


async def test_source_of_a_remembered_token_is_looked_up_for_each_request(tmp_path, provider):
    """A subject that is removed from the file can no longer send, although its token is known."""
    async with trusting(tmp_path, provider) as post:
        token = provider.token()
        assert (await post(token)).status_code == 202
        (tmp_path / "sources.toml").write_text("")
        async with asyncio.timeout(5):
            while (await post(token)).status_code == 202:
                await asyncio.sleep(0.05)
        assert "subject" in why(await post(token))


async def test_number_of_remembered_tokens_is_bounded(tmp_path, provider, monkeypatch):
    """When more tokens are in use than are remembered, all of them are still accepted."""
    monkeypatch.setattr(tokens, "MAX_CACHED", 2)
    async with trusting(tmp_path, provider) as post:
        used = [provider.token(number=number) for number in range(4)]
        for token in [*used, *used]:
            assert (await post(token)).status_code == 202


async def test_new_key_is_accepted_at_once_and_a_removed_one_no_longer(tmp_path, provider):
    """A token with an unknown key id causes a fetch; tokens of removed keys, remembered ones too, are rejected."""
    async with trusting(tmp_path, provider) as post:
        old = provider.token()
        assert (await post(old)).status_code == 202
        provider.keys = [jwk(rsa_key("second"), "second")]
        new = provider.token(rsa_key("second"), "second")
        answers = await asyncio.gather(*(post(new) for _ in range(10)))
        assert {answer.status_code for answer in answers} == {202}
        assert provider.count("/keys") == 2
        assert "key that its issuer does not have" in why(await post(old))


async def test_unknown_key_ids_do_not_flood_the_issuer(tmp_path, provider):
    """Tokens with made-up key ids cause one fetch in ten seconds."""
    async with trusting(tmp_path, provider) as post:
        for number in range(50):
            assert why(await post(provider.token(kid=f"made-up-{number}")))
        assert provider.count("/keys") == 2


async def test_token_without_key_id(tmp_path, provider):
    """A token without a key id is accepted if its issuer has one key of this kind, as the standard says."""
    async with trusting(tmp_path, provider) as post:
        assert (await post(provider.token(kid=None))).status_code == 202
        provider.keys.append(jwk(rsa_key("second"), None))
        assert why(await post(provider.token(kid="unknown")))  # causes a fetch
        assert why(await post(provider.token(kid=None)))


async def test_keys_are_fetched_ahead_of_their_expiry_and_kept_in_an_outage(tmp_path, provider, caplog):
    """While the issuer is away, tokens of keys that are known are accepted, and the log says so."""
    provider.cache_control = "public, max-age=2"
    async with trusting(tmp_path, provider) as post:
        await until(lambda: provider.count("/keys") == 2)
        provider.fails("/keys")
        await until(lambda: "stay valid" in caplog.text)
        assert (await post(provider.token())).status_code == 202
        assert f"{provider.url}/keys answered 503" in caplog.text
        provider.keys = [jwk(rsa_key("second"), "second")]
        del provider.answers["/keys"]
        async with asyncio.timeout(10):
            while (await post(provider.token(rsa_key("second"), "second"))).status_code != 202:
                await asyncio.sleep(0.05)


async def test_issuer_that_was_never_reached_is_503(tmp_path, provider, caplog):
    """Until the keys have been fetched once, tokens of this issuer are 503, and others 401; later all is well."""
    provider.fails(DISCOVERY)
    async with trusting(tmp_path, provider) as post:
        response = await post(provider.token())
        assert problem(response, 503, "identity-provider-unavailable")["retryable"] is True
        assert response.headers["retry-after"] == "5"
        assert response.headers["connection"] == "close"
        assert "issuer" in why(await post(provider.token(iss="https://other.example")))
        assert "its tokens cannot be verified" in caplog.text
        del provider.answers[DISCOVERY]
        async with asyncio.timeout(10):
            while (await post(provider.token())).status_code != 202:
                await asyncio.sleep(0.05)


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jwks, "FETCH_SECONDS", 1.0)


def _endless(handler: BaseHTTPRequestHandler) -> None:
    """Send a key set of 100 MB."""
    handler.send_response(200)
    handler.send_header("Content-Length", "100000000")
    handler.end_headers()
    try:
        for _ in range(1000):
            handler.wfile.write(b" " * 100_000)
    except ConnectionError:
        handler.server.cut = True  # type: ignore[attr-defined]


def _drip(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    try:
        for _ in range(200):
            handler.wfile.write(b" ")
            time.sleep(0.02)
    except ConnectionError:
        pass


def _hang_up(handler: BaseHTTPRequestHandler) -> None:
    handler.close_connection = True


@pytest.mark.parametrize(
    ("path", "answer", "says"),
    [
        ("/keys", _endless, "has more than 1,048,576 bytes"),
        ("/keys", _drip, "was not complete within"),
        ("/keys", _hang_up, "/keys: "),
        ("/keys", b"no JSON", "is not a JSON object"),
        ("/keys", b"[" * 100_000, "is not a JSON object"),
        ("/keys", b"[]", "is not a JSON object"),
        ("/keys", {"keys": {}}, "has no array keys"),
        ("/keys", {"keys": []}, "has no key for RS256 or ES256"),
        ("/keys", {"keys": [5, {}, {"kty": "oct", "k": "AAAA"}]}, "has no key for RS256 or ES256"),
        ("/keys", {"keys": [jwk(rsa_key("first"), "first", use="enc")]}, "has no key for"),
        ("/keys", {"keys": [jwk(rsa_key("first"), "first", alg="RS512")]}, "has no key for"),
        ("/keys", {"keys": [jwk(rsa_key("weak", 1024), "first")]}, "has no key for"),
        ("/keys", {"keys": [jwk(rsa_key("first"), "first") | {"n": 5}]}, "has no key for"),
        ("/keys", {"keys": [jwk(rsa_key("first"), "first") | {"n": "!"}]}, "has no key for"),
        (DISCOVERY, {"issuer": "https://evil.example", "jwks_uri": "x"}, "names another issuer"),
        (DISCOVERY, "jwks_uri=http://example.com/keys", "must be at an https URL"),
        (DISCOVERY, "jwks_uri=file:///etc/passwd", "must be at an https URL"),
        (DISCOVERY, "jwks_uri=", "must be at an https URL"),
        (DISCOVERY, {}, "names another issuer"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
@pytest.mark.usefixtures("_impatient")
async def test_answers_of_an_issuer_that_are_not_used(tmp_path, provider, caplog, path, answer, says):  # noqa: PLR0913, PLR0917
    """Endless, slow, damaged and forged answers are not used, and the log says why."""
    if callable(answer):
        provider.answers[path] = answer
    elif isinstance(answer, str):
        name, _, value = answer.partition("=")
        provider.sends(path, {"issuer": provider.url, name: value})
    else:
        provider.sends(path, answer)
    async with trusting(tmp_path, provider) as post:
        problem(await post(provider.token()), 503, "identity-provider-unavailable")
    assert says in caplog.text


@pytest.mark.parametrize("path", [DISCOVERY, "/keys"])
async def test_redirects_are_not_followed(tmp_path, provider, caplog, path):
    """An issuer cannot send pulsecart elsewhere."""
    provider.fails(path, 302, Location=f"{provider.url}/elsewhere")
    provider.sends("/elsewhere", {"keys": provider.keys, "issuer": provider.url, "jwks_uri": f"{provider.url}/keys"})
    async with trusting(tmp_path, provider) as post:
        problem(await post(provider.token()), 503, "identity-provider-unavailable")
    assert "/elsewhere" not in provider.requests
    assert "answered 302, not 200 (redirects are not followed)" in caplog.text


async def test_damaged_and_private_keys_do_not_disable_the_others(tmp_path, provider):
    """Keys that are not understood are left out, as RFC 7517 says."""
    p384 = ec.generate_private_key(ec.SECP384R1())
    private = jwt.algorithms.RSAAlgorithm.to_jwk(rsa_key("leaked"), as_dict=True) | {"kid": "leaked"}
    provider.keys = [
        {"kty": "RSA", "kid": "damaged"},
        {"kty": "OKP", "crv": "Ed25519", "x": "AA", "kid": "okp"},
        jwk(p384, "p384") | {"alg": "ES256"},
        private,
        *provider.keys,
    ]
    async with trusting(tmp_path, provider) as post:
        assert (await post(provider.token())).status_code == 202
        assert why(await post(provider.token(rsa_key("leaked"), "leaked")))


@pytest.mark.parametrize("kind", ["file", "url"])
async def test_keys_from_a_file_or_url(tmp_path, provider, kind):
    """With PULSECART_OIDC_JWKS nothing is asked of the issuer."""
    file = tmp_path / "keys.json"
    file.write_text(json.dumps({"keys": provider.keys}))
    place = str(file) if kind == "file" else f"{provider.url}/keys"
    async with trusting(tmp_path, provider, oidc_jwks=place) as post:
        assert (await post(provider.token())).status_code == 202
    assert set(provider.requests) == ({"/keys"} if kind == "url" else set())


async def test_missing_key_file_is_503_and_logged(tmp_path, provider, caplog):
    """The log names the file."""
    async with trusting(tmp_path, provider, oidc_jwks=str(tmp_path / "none.json")) as post:
        problem(await post(provider.token()), 503, "identity-provider-unavailable")
    assert "none.json" in caplog.text


async def test_keys_and_tokens_together(tmp_path, provider):
    """With keys,oidc both are accepted; with one of them, the other is 401."""
    from pulsecart.access.keys import HASH, digest, new_key

    key = new_key()
    (tmp_path / "sources.toml").write_text(
        f'[recs]\nkeys = ["{HASH}{digest(key.encode()).hex()}"]\nsubjects = [{{iss = "{provider.url}", sub = "recs"}}]'
    )
    oidc = {"oidc_issuers": (), "oidc_audience": ""}
    for auth, settings, expected in (
        ("keys,oidc", {}, [202, 202]),
        ("oidc", {}, [401, 202]),
        ("keys", oidc, [202, 401]),
    ):
        async with trusting(tmp_path, provider, auth=auth, **settings) as post:
            assert [(await post(one)).status_code for one in (key, provider.token())] == expected
