"""What one event runs through: the Python functions of pulsecart, from the ASGI application to the answer, in memory.

`python -m benchmarks.path` prints each call of the third event, with telemetry and log lines off, and how many calls
there are in how many files. Python versions after 3.11 inline comprehensions, and so show fewer.
"""

import asyncio
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pulsecart
from pulsecart.app import create_app
from pulsecart.serve.settings import Settings

ROOT = str(Path(pulsecart.__file__).parent)
BODY = b'{"event_type":"order.placed","user_id":"user-1","order_id":"order-1","payload":{"total":89.90}}'
SCOPE = {
    "type": "http",
    "asgi": {"version": "3.0"},
    "http_version": "1.1",
    "scheme": "http",
    "method": "POST",
    "path": "/events/ingest",
    "raw_path": b"/events/ingest",
    "root_path": "",
    "query_string": b"",
    "client": ("127.0.0.1", 1),
    "server": ("127.0.0.1", 2),
    "headers": [
        (b"host", b"127.0.0.1"),
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(BODY)),
    ],
}


async def calls_of_an_event() -> list[str]:
    """Return the calls of the third event, each as `file:function`."""
    app = create_app(Settings(transport="memory", log_level="warning"))
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": BODY, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    calls: list[str] = []

    def profile(frame: FrameType, event: str, _argument: object) -> None:
        file = frame.f_code.co_filename
        if event == "call" and file.startswith(ROOT):
            calls.append(f"{file.removeprefix(ROOT)[1:]}:{frame.f_code.co_qualname}")

    async with app.router.lifespan_context(app):
        for _ in range(3):
            sent.clear()
            calls.clear()
            sys.setprofile(profile)
            await app(SCOPE.copy(), receive, send)
            sys.setprofile(None)
    assert sent[0]["status"] == 202
    return calls


def main() -> None:
    """Print the calls, and their number."""
    calls = asyncio.run(calls_of_an_event())
    print("\n".join(calls))
    print(f"{len(calls)} calls in {len({call.partition(':')[0] for call in calls})} files")


if __name__ == "__main__":
    main()
