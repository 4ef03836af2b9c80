"""An identity provider on loopback: discovery, keys and tokens, and all that can go wrong with them."""

import base64
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

AUDIENCE = "https://pulsecart.shop.example"
DISCOVERY = "/.well-known/openid-configuration"

SigningKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


@cache
def rsa_key(name: str, bits: int = 2048) -> rsa.RSAPrivateKey:
    """Return a key that is the same for the same name."""
    return rsa.generate_private_key(public_exponent=65537, key_size=bits)


@cache
def ec_key(name: str) -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def jwk(key: SigningKey, kid: str | None, **members: Any) -> dict[str, Any]:
    """Return the public part of a key."""
    algorithm = RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else ECAlgorithm
    members = members if kid is None else {"kid": kid, **members}
    return algorithm.to_jwk(key.public_key(), as_dict=True) | members


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class Provider:
    """Answers with its documents, each of which a test may replace by an answer of its own."""

    def __init__(self) -> None:
        self.keys: list[dict[str, Any]] = [jwk(rsa_key("first"), "first"), jwk(ec_key("curve"), "curve")]
        self.cache_control = ""
        self.answers: dict[str, Callable[[BaseHTTPRequestHandler], None]] = {}
        self.requests: list[str] = []
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                provider.requests.append(self.path)
                provider.answer(self)

            def log_message(self, *_arguments: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        if own := self.answers.get(request.path):
            own(request)
        elif request.path == DISCOVERY:
            self.send(request, {"issuer": self.url, "jwks_uri": f"{self.url}/keys"})
        elif request.path == "/keys":
            self.send(request, {"keys": self.keys})
        else:
            request.send_error(404)

    def send(self, request: BaseHTTPRequestHandler, document: Any) -> None:
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        request.send_response(200)
        request.send_header("Content-Length", str(len(body)))
        if self.cache_control:
            request.send_header("Cache-Control", self.cache_control)
        request.end_headers()
        request.wfile.write(body)

    def sends(self, path: str, document: Any) -> None:
        """Answer this path with a document."""
        self.answers[path] = lambda request: self.send(request, document)

    def fails(self, path: str, status: int = 503, **headers: str) -> None:
        """Answer this path with a status."""

        def fail(request: BaseHTTPRequestHandler) -> None:
            request.send_response(status)
            for name, value in headers.items():
                request.send_header(name, value)
            request.send_header("Content-Length", "0")
            request.end_headers()

        self.answers[path] = fail

    def claims(self, **changes: Any) -> dict[str, Any]:
        """Return the claims of a valid token with some changed; `...` omits one."""
        now = int(time.time())
        claims = {"iss": self.url, "aud": AUDIENCE, "sub": "recs", "iat": now, "exp": now + 600}
        return {name: value for name, value in (claims | changes).items() if value is not ...}

    def token(
        self,
        key: SigningKey | None = None,
        kid: str | None = "first",
        headers: dict[str, Any] | None = None,
        **changes: Any,
    ) -> str:
        """Return a valid token, with other claims, another key or more headers."""
        key = key or rsa_key("first")
        algorithm = "RS256" if isinstance(key, rsa.RSAPrivateKey) else "ES256"
        headers = (headers or {}) | ({} if kid is None else {"kid": kid})
        # PyJWS signs anything; PyJWT would not make a token with claims of a wrong type.
        return jwt.PyJWS().encode(json.dumps(self.claims(**changes)).encode(), key, algorithm, headers)

    def count(self, path: str) -> int:
        return self.requests.count(path)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def identity_provider() -> Iterator[Provider]:
    provider = Provider()
    try:
        yield provider
    finally:
        provider.close()
