"""The development routes: the console, and what it shows. They answer only this machine and listed hosts."""

from collections.abc import Callable

from starlette.routing import Route

from pulsecart.http.dev.feed import Feed
from pulsecart.http.dev.hosts import only_for
from pulsecart.http.dev.messages import messages
from pulsecart.http.dev.rejected import rejected
from pulsecart.http.dev.sse import stream
from pulsecart.http.pages import page

__all__ = ["Feed", "routes"]


def routes(feed: Feed, may_use_dev: Callable[[str], bool]) -> list[Route]:
    """Return the routes that show what is in the feed, to the hosts that `may_use_dev` allows."""
    console = page("console", "base.css", "console.css", "base.js", "form.js", "console.js")
    endpoints = {
        "/dev": (console, ["GET"]),
        "/dev/messages": (messages(feed), ["GET", "DELETE"]),
        "/dev/rejected": (rejected(feed), ["GET", "DELETE"]),
        "/dev/stream": (stream(feed), ["GET"]),
    }
    return [
        Route(path, only_for(may_use_dev, endpoint), methods=methods) for path, (endpoint, methods) in endpoints.items()
    ]
