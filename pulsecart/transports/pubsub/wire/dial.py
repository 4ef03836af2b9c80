"""Connects to a server: name resolution, proxy and TLS."""

import asyncio
import base64
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohappyeyeballs
from attrs import field, frozen

__all__ = ["TLS", "Endpoint", "Proxy", "dial", "make_tls", "proxy_for", "split_address"]

CONNECT_SECONDS = 8.0
"""Maximum seconds to connect. With TLS that takes up to three round trips, which may take a second or two each."""

HAPPY_EYEBALLS_DELAY = 0.25
"""Seconds after which the next address is tried too (RFC 8305, section 5)."""

_MAX_PROXY_HEAD = 16_384

ProtocolT = TypeVar("ProtocolT", bound=asyncio.Protocol)


class TLS(ssl.SSLContext):
    """A context for clients that resumes sessions."""

    session: ssl.SSLSession | None = None
    """The session that the next connection tries to resume, which saves most of the handshake's time."""

    def wrap_bio(  # the event loop calls this
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,  # noqa: FBT001, FBT002 (as in the base class)
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        """Wrap a connection, and offer the session."""
        return super().wrap_bio(incoming, outgoing, server_side, server_hostname, session or self.session)


def make_tls(*, roots: bytes | None = None, certificate: Path | None = None, key: Path | None = None) -> TLS:
    """Return a context for TLS 1.2 or later.

    `roots` are the root certificates to trust, as PEM; by default they are the system's, or those that the variables
    SSL_CERT_FILE and SSL_CERT_DIR name. `certificate` is the path of a client certificate with its chain, and `key`
    that of its private key, if it is not in the same file. Raises `OSError`, which `ssl.SSLError` is, or `ValueError`.
    """
    context = TLS(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if roots is None:
        context.load_default_certs()
    else:
        context.load_verify_locations(cadata=roots.decode("ascii"))
    if certificate is not None:
        context.load_cert_chain(certificate, key)
    context.set_alpn_protocols(["http/1.1"])
    return context


@frozen
class Proxy:
    """An HTTP proxy that is asked to CONNECT."""

    host: str
    port: int
    authorization: str = field(default="", repr=False)


@frozen(kw_only=True)
class Endpoint:
    """A server, and the way to it.

    `host` and `port` are its name: for the Host header, and for TLS, which verifies the certificate. Connections go to
    `address` instead, if there is one, such as a private endpoint; and through `proxy`.
    """

    host: str
    port: int
    tls: TLS | None = None
    address: tuple[str, int] | None = None
    proxy: Proxy | None = None

    @property
    def authority(self) -> str:
        """The value of the Host header (RFC 9110, section 7.2)."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        default = 443 if self.tls else 80
        return host if self.port == default else f"{host}:{self.port}"


def split_address(text: str) -> tuple[str, int]:
    """Split `host:port` or `[IPv6 address]:port`."""
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)


def proxy_for(host: str) -> Proxy | None:
    """Return the proxy for HTTPS requests to a host, by HTTPS_PROXY and NO_PROXY. Raises `ValueError`."""
    url = getproxies().get("https")
    if not url or proxy_bypass(host):
        return None
    parts = urlsplit(url if "://" in url else f"http://{url}")
    if parts.scheme != "http" or not parts.hostname:
        raise ValueError(f"HTTPS_PROXY must be http://host:port, not {parts.scheme}://{parts.hostname or ''}…")
    authorization = ""
    if parts.username is not None:
        user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        authorization = f"Basic {base64.b64encode(user.encode()).decode()}"
    return Proxy(parts.hostname, parts.port or 80, authorization)


async def dial(endpoint: Endpoint, make: Callable[[], ProtocolT]) -> ProtocolT:
    """Connect, and return the connection's protocol. Raises `OSError`, also for TLS and timeouts."""
    loop = asyncio.get_running_loop()
    proxy = endpoint.proxy
    host, port = (proxy.host, proxy.port) if proxy else endpoint.address or (endpoint.host, endpoint.port)
    async with asyncio.timeout(CONNECT_SECONDS):
        # The name is resolved for each connection, so that a changed address is found.
        addresses = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        connected = await aiohappyeyeballs.start_connection(addresses, happy_eyeballs_delay=HAPPY_EYEBALLS_DELAY)
        try:
            if proxy:
                await _tunnel(loop, connected, proxy, endpoint.address or (endpoint.host, endpoint.port))
            _, protocol = await loop.create_connection(
                make, sock=connected, ssl=endpoint.tls, server_hostname=endpoint.host if endpoint.tls else None
            )
        except BaseException:
            connected.close()
            raise
    return protocol


async def _tunnel(
    loop: asyncio.AbstractEventLoop, connected: socket.socket, proxy: Proxy, address: tuple[str, int]
) -> None:
    """Ask the proxy for a connection to the address (RFC 9110, section 9.3.6). Raises `ConnectionError`."""
    host = f"[{address[0]}]" if ":" in address[0] else address[0]
    target = f"{host}:{address[1]}"
    lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
    if proxy.authorization:
        lines.append(f"Proxy-Authorization: {proxy.authorization}")
    await loop.sock_sendall(connected, "\r\n".join([*lines, "", ""]).encode())
    head = b""
    while b"\r\n\r\n" not in head:
        # The server says nothing before the client starts TLS, so all that comes is the proxy's.
        chunk = await loop.sock_recv(connected, 4096)
        head += chunk
        if not chunk or len(head) > _MAX_PROXY_HEAD:
            raise ConnectionError(f"the proxy {proxy.host}:{proxy.port} gave no answer to CONNECT")
    status = head.split(b"\r\n", 1)[0].split(b" ")
    if len(status) < 2 or not status[1].startswith(b"2"):
        line = head.split(b"\r\n", 1)[0][:100].decode("latin-1")
        raise ConnectionError(f"the proxy {proxy.host}:{proxy.port} refused to CONNECT: {line!r}")
