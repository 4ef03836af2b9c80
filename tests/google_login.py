"""Google sign-in on loopback: a service account's key file, and a token endpoint."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa


def new_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def pem(key: rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def service_account(key: rsa.RSAPrivateKey) -> str:
    """Return the text of a key file whose token endpoint does not exist."""
    return json.dumps(
        {
            "type": "service_account",
            "project_id": "test",
            "private_key_id": "key-1",
            "private_key": pem(key).decode(),
            "client_email": "pulsecart@test.iam.gserviceaccount.com",
            "client_id": "1",
            "token_uri": "http://127.0.0.1:1/nobody-is-here",
        }
    )


class TokenEndpoint:
    """Returns token-1, token-2, …, unless it is down, and counts requests."""

    def __init__(self, url: str, lifetime: int) -> None:
        self.url = url
        self.lifetime = lifetime
        self.down = False
        self.asked = 0
        self.instead: tuple[int, bytes] | None = None
        """A status and a body to answer a POST with."""
        self.answering = threading.Event()
        """Requests hang while it is not set."""
        self.answering.set()


@contextmanager
def token_endpoint(*, lifetime: int) -> Iterator[TokenEndpoint]:
    """Serve tokens with this lifetime in seconds."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            endpoint.asked += 1
            self.rfile.read(int(self.headers["Content-Length"]))
            body = {"access_token": f"token-{endpoint.asked}", "expires_in": endpoint.lifetime, "token_type": "Bearer"}
            endpoint.answering.wait()
            refusal = (400, b'{"error": "it is down"}') if endpoint.down else None
            status, content = endpoint.instead or refusal or (200, json.dumps(body).encode())
            with suppress(ConnectionError):  # the client may have given up
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                self.wfile.write(content)

        def do_GET(self) -> None:
            """Answer like the metadata server of a Google Cloud machine."""
            body: dict[str, object] = {"email": "pulsecart@test", "scopes": [], "aliases": ["default"]}
            if self.path.partition("?")[0].endswith("/token"):
                endpoint.asked += 1
                body = {
                    "access_token": f"token-{endpoint.asked}",
                    "expires_in": endpoint.lifetime,
                    "token_type": "Bearer",
                }
            self.send_response(503 if endpoint.down else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Metadata-Flavor", "Google")
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        endpoint = TokenEndpoint(f"http://127.0.0.1:{server.server_port}", lifetime)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield endpoint
        finally:
            endpoint.answering.set()
            server.shutdown()
            thread.join()
