"""The HTTP server: uvicorn, with what it lacks."""

import re

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

__all__ = ["HttpProtocol"]

_UPGRADE = re.compile(rb"\r\nupgrade:", re.IGNORECASE)


class HttpProtocol(HttpToolsProtocol):
    """Ignores a client's offer to upgrade the connection, as a server may (RFC 9110, section 7.8).

    Some clients offer HTTP/2 with every plain request, and the parser would take all that follows such
    an offer, the request's body included, for another protocol.
    """

    def data_received(self, data: bytes) -> None:
        """Hide the offer from the parser, under another name of the same length."""
        if self.cycle is None or self.cycle.response_complete:
            head, end, rest = data.partition(b"\r\n\r\n")
            data = _UPGRADE.sub(b"\r\nx-offer:", head) + end + rest
        super().data_received(data)
