"""The pages: `/docs` and the console at `/dev`.

A page is one document: its styles and scripts are in it, so that it needs no further request and no network. Its
Content-Security-Policy names exactly these by their hashes, and forbids (`trusted-types`) what makes markup of text.
"""

import base64
import hashlib
from collections.abc import Awaitable, Callable
from functools import cache
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response

from pulsecart.http.auth import refusal_of

__all__ = ["page"]

_ICON = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E%3Crect width='16' height='16' "
    "rx='4' fill='%234754d6'/%3E%3Cpath d='M2 9h3l2-5 3 8 2-3h2' fill='none' stroke='%23fff' stroke-width='1.6'/%3E"
    "%3C/svg%3E"
)

_POLICY = (
    "default-src 'none'; script-src {scripts}; style-src {styles}; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)


def page(title: str, *names: str) -> Callable[[Request], Awaitable[Response]]:
    """Return an endpoint for a page of these styles and scripts, which are files of this package.

    A page for which the caller has no credentials is sent with the status of that problem, and asks for them.
    """

    @cache
    def made() -> tuple[bytes, dict[str, str]]:
        return _document(title, names)

    async def endpoint(request: Request) -> Response:
        body, headers = made()
        problem = refusal_of(request.scope)
        if problem is None:
            return Response(body, 200, headers, "text/html")
        return Response(body, problem.status, {**headers, **problem.headers}, "text/html")

    return endpoint


def _document(title: str, names: tuple[str, ...]) -> tuple[bytes, dict[str, str]]:
    parts = {name: files(__name__).joinpath(name).read_text("utf-8") for name in names}
    styles = [text for name, text in parts.items() if name.endswith(".css")]
    scripts = [text for name, text in parts.items() if name.endswith(".js")]
    head = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f'<title>pulsecart {title}</title><link rel="icon" href="{_ICON}">',
        *(f"<style>{text}</style>" for text in styles),
        "</head><body><noscript>This page needs JavaScript.</noscript>",
        *(f"<script>{text}</script>" for text in scripts),
        "</body></html>",
    ]
    headers = {
        "Cache-Control": "no-cache",
        "Content-Security-Policy": _POLICY.format(scripts=_hashes(scripts), styles=_hashes(styles)),
        "Cross-Origin-Opener-Policy": "same-origin",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }
    return "".join(head).encode(), headers


def _hashes(texts: list[str]) -> str:
    return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in texts)
