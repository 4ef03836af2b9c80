"""Host names, addresses and networks."""

import ipaddress
from collections.abc import Iterable

__all__ = ["is_listed", "is_loopback", "network"]


def is_loopback(host: str) -> bool:
    """Return whether a host, by name or address, is this machine."""
    address = _address(host)
    return host.lower() == "localhost" if address is None else address.is_loopback


def is_listed(host: str, listed: Iterable[str]) -> bool:
    """Return whether a host, by name or address, is one of these names, addresses and networks."""
    if host.lower() in map(str.lower, listed):
        return True
    address = _address(host)
    return address is not None and any(address in found for found in map(network, listed) if found)


def network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    """Return the network that a text names, which may be a single address."""
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
