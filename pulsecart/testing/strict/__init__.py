"""A Pub/Sub publisher service in this process, on loopback, over REST and gRPC.

It is as strict as production: it enforces the rules and limits that Google's emulator does not. It records what it
receives, and fails as its `script` says.
"""

import socket
import ssl
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from tempfile import TemporaryDirectory

from pulsecart.testing.strict.connection import accept
from pulsecart.testing.strict.faults import RawAnswer, http_answer
from pulsecart.testing.strict.server import PublishRequest, ReceivedMessage, StrictPubsub

__all__ = ["PublishRequest", "RawAnswer", "ReceivedMessage", "StrictPubsub", "http_answer", "strict_pubsub"]


@asynccontextmanager
async def strict_pubsub(
    topics: Iterable[str], *, project: str = "test", port: int = 0, grpc_port: int = 0, tls: bool = False
) -> AsyncIterator[StrictPubsub]:
    """Serve Pub/Sub on loopback, with these topics of the project, until the end of the block.

        async with strict_pubsub(["shop.orders"]) as server:
            server.script.append("UNAVAILABLE")  # the first publish request fails
            ...
            assert [message.ordering_key for message in server.confirmed] == ["user-1"]

    `port` serves both REST and gRPC, as Google's emulator does; 0 takes a free port. `grpc_port` serves gRPC only, for
    `StrictPubsub.grpc_host`.

    With `tls`, both have a self-signed certificate for localhost and 127.0.0.1: clients must trust `server.roots`. It
    needs cryptography (`pulsecart[testing]`).

    Raises what a function in the script raised, and ValueError for a reply that the script cannot have, at the end of
    the block.
    """
    if isinstance(topics, str):
        raise TypeError(f"topics is a list of names, such as [{topics!r}], not a single one")
    with TemporaryDirectory(prefix="pulsecart-") as folder:
        certificate = None
        context = None
        if tls:
            from pulsecart.testing.strict.certificate import new_certificate

            certificate = new_certificate(folder)
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate.chain_file, certificate.key_file)
            # A client that offers both gets HTTP/1.1. gRPC offers HTTP/2 only.
            context.set_alpn_protocols(["http/1.1", "h2"])
        server = StrictPubsub(project, topics, grpc_port, certificate)
        with socket.create_server(("127.0.0.1", port), backlog=1024) as listener:
            listener.setblocking(False)
            server.host = f"{'localhost' if tls else '127.0.0.1'}:{listener.getsockname()[1]}"
            server.spawn(accept(server, listener, context))
            try:
                if grpc_port:
                    await server.start_grpc()
                yield server
            finally:
                await server.aclose()
    if server.defects:
        raise server.defects[0]
