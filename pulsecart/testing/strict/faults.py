"""What the server's script can reply with."""

import json
from collections.abc import Mapping
from http import HTTPStatus

from attrs import frozen

__all__ = ["HTTP_STATUS", "Fault", "RawAnswer", "error_body", "http_answer"]

HTTP_STATUS = {
    "CANCELLED": 499,
    "UNKNOWN": 500,
    "INVALID_ARGUMENT": 400,
    "DEADLINE_EXCEEDED": 504,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "PERMISSION_DENIED": 403,
    "RESOURCE_EXHAUSTED": 429,
    "FAILED_PRECONDITION": 400,
    "ABORTED": 409,
    "OUT_OF_RANGE": 400,
    "UNIMPLEMENTED": 501,
    "INTERNAL": 500,
    "UNAVAILABLE": 503,
    "DATA_LOSS": 500,
    "UNAUTHENTICATED": 401,
}
"""The HTTP status of each canonical status (https://cloud.google.com/apis/design/errors#handling_errors)."""


@frozen
class RawAnswer:
    """Bytes that are sent to a REST client as they are. `RawAnswer()` closes the connection without an answer.

    A gRPC client gets UNAVAILABLE, as it does when its connection breaks.
    """

    data: bytes = b""

    close: bool = True
    """Whether the connection is closed afterwards."""


class Fault(Exception):
    """A canonical status and its message, or a raw answer in its place."""

    def __init__(self, status: str, message: str, raw: RawAnswer | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.raw = raw


def error_body(status: str, message: str) -> bytes:
    """Return the body of Google's answer to a request that failed."""
    error = {"code": HTTP_STATUS[status], "message": message, "status": status}
    return json.dumps({"error": error}, indent=2, ensure_ascii=False).encode() + b"\n"


def http_answer(
    status: int,
    body: bytes | Mapping[str, object] = b"",
    headers: Mapping[str, str] | None = None,
    *,
    close: bool = False,
) -> RawAnswer:
    """Return an HTTP answer for the script, such as the error page of a proxy. A mapping is sent as JSON.

    http_answer(502, b"<html>Bad gateway</html>", {"Content-Type": "text/html"})
    http_answer(302, headers={"Location": "https://login.example.com/"})
    http_answer(429, headers={"Retry-After": "3"})
    """
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    fields = {"Content-Length": str(len(content)), **(headers or {})}
    if not isinstance(body, bytes):
        fields = {"Content-Type": "application/json; charset=UTF-8", **fields}
    known = {one.value: one.phrase for one in HTTPStatus}
    lines = [f"HTTP/1.1 {status} {known.get(status, '')}", *(f"{name}: {value}" for name, value in fields.items())]
    return RawAnswer("\r\n".join([*lines, "", ""]).encode() + content, close=close)
