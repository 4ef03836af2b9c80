"""Keys: random bearer credentials, of which only the hash is stored."""

import hashlib
import secrets

__all__ = ["HASH", "PREFIX", "digest", "new_key"]

PREFIX = "pck_"
"""What every key begins with, so that scanners for secrets can recognise one."""

HASH = "sha256:"
"""What the hash of a key begins with in the sources file. The hash follows in hexadecimal."""


def new_key() -> str:
    """Return a new key: the prefix and 256 random bits as 43 base64url characters."""
    return PREFIX + secrets.token_urlsafe(32)


def digest(key: bytes) -> bytes:
    """Return the SHA-256 of a whole key.

    A plain hash is enough: 256 random bits cannot be guessed, so there is nothing that a slow hash would slow down.
    """
    return hashlib.sha256(key).digest()
