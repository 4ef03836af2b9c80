"""Why a caller is not authenticated."""

__all__ = ["KeysUnavailable", "Unauthenticated"]


class Unauthenticated(Exception):
    """The credentials are missing or not valid. Neither text contains any part of them."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        """The reason as one word of a small set, for the log."""


class KeysUnavailable(Exception):
    """The signing keys of the token's issuer have not been fetched yet."""
