"""Lines of JSON (https://github.com/ndjson/ndjson-spec), of any number, as they arrive."""

import re
from collections.abc import AsyncIterable, AsyncIterator

__all__ = ["Lines"]

_LINE = re.compile(rb"([^\n]*+)\n((?:[ \t\r\n]*\n)?)")
"""A line, and the blank lines after it, of which a compressed body can have very many."""


class Lines:
    """Splits a stream into lines. They end with LF or CRLF; the end of the last one may be missing."""

    def __init__(self, pieces: AsyncIterable[bytes], limit: int) -> None:
        """Read pieces of the stream. A line has at most `limit` bytes."""
        self._pieces = pieces
        self.limit = limit
        """The maximum bytes of a line."""
        self.number = 0
        """The number of the last line that has been read, from 1."""

    async def __aiter__(self) -> AsyncIterator[bytes | None]:
        """Yield each line that is not blank, without its end; None in place of one that is too long."""
        begun = bytearray()
        most = self.limit + len("\r") + 1  # of a longer line the rest is not kept
        async for piece in self._pieces:
            ended = piece.rfind(b"\n") + 1
            for match in _LINE.finditer(piece, 0, ended):
                line, blank = match.groups()
                if begun:
                    line = bytes(begun + line[: most - len(begun)])
                    begun.clear()
                self.number += 1
                if line.strip(b" \t\r"):
                    yield self._checked(line)
                self.number += blank.count(b"\n")
            begun += piece[ended : ended + most - len(begun)]
        if begun:
            self.number += 1
            if begun.strip(b" \t\r"):
                yield self._checked(bytes(begun))

    def _checked(self, line: bytes) -> bytes | None:
        line = line.removesuffix(b"\r")
        return line if len(line) <= self.limit else None
