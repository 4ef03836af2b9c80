"""Makes what authenticates callers, from the settings."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from pulsecart.access.sources import SourcesFile
from pulsecart.errors import SettingsError
from pulsecart.events import Catalog
from pulsecart.http.auth import Guard
from pulsecart.serve.settings import Settings
from pulsecart.telemetry.logs import EventLog

if TYPE_CHECKING:
    from pulsecart.access.tokens import Tokens

__all__ = ["Access"]


class Access:
    """What authenticates callers while it is `opened`: the sources file, and the tokens of identity providers.

    Raises `SettingsError` if the file is wrong, or a package is missing.
    """

    def __init__(self, settings: Settings, catalog: Catalog) -> None:
        event_types = [cls.event_type for cls in catalog]
        self._keys = "keys" in settings.auth
        self._file = None if settings.auth == "none" else SourcesFile(settings.sources, event_types)
        self._tokens = _tokens(settings) if settings.uses_oidc else None

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """Keep the sources and signing keys up to date during the block."""
        async with AsyncExitStack() as stack:
            if self._file is not None:
                await stack.enter_async_context(self._file.watched())
            if self._tokens is not None:
                await stack.enter_async_context(self._tokens.opened())
            yield

    def guard(self, log: EventLog) -> Guard | None:
        """Return what authenticates requests, or None if callers are not authenticated."""
        file = self._file
        return None if file is None else Guard(lambda: file.current, log, keys=self._keys, tokens=self._tokens)


def _tokens(settings: Settings) -> "Tokens":
    try:
        from pulsecart.access.tokens import Tokens
    except ImportError as error:
        raise SettingsError(
            [f"PULSECART_AUTH is {settings.auth}, which needs PyJWT: pip install 'pulsecart[oidc]' ({error})"]
        ) from None
    return Tokens(settings.oidc_issuers, settings.oidc_audience, settings.oidc_jwks)
