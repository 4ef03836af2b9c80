"""Which addresses keys may be fetched from."""

from ipaddress import ip_address
from urllib.parse import urlsplit

__all__ = ["is_secure", "is_url"]


def is_url(text: str) -> bool:
    """Return whether a text is meant as a URL, and not as the path of a file."""
    return "://" in text


def is_secure(text: str) -> bool:
    """Return whether a text is an `https` URL, or an `http` one on loopback, without a user and a fragment."""
    try:
        url = urlsplit(text)
        host, _port = url.hostname or "", url.port
    except ValueError:
        return False
    if not host or "@" in url.netloc or url.fragment or not text.isprintable() or " " in text:
        return False
    return url.scheme == "https" or (url.scheme == "http" and _is_loopback(host))


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
