"""Content codings: gzip (RFC 1952) and zstd (RFC 8878).

They are decoded piece by piece, so that a small body does not become a large one before that is noticed.
"""

import asyncio
import sys
import zlib
from collections.abc import Iterator
from time import perf_counter
from typing import Any

from pulsecart.http.problems import Problem, ProblemError, too_large, unsupported
from pulsecart.many import TURN_SECONDS

if sys.version_info >= (3, 14):  # pragma: no cover
    from compression import zstd
else:
    from backports import zstd

__all__ = ["CODINGS", "Decoder", "coding_of", "decoded"]

CODINGS = "gzip, zstd"
"""The value of Accept-Encoding in a 415."""

PIECE_BYTES = 65_536
"""Maximum bytes of a decoded piece."""

SLICE_BYTES = 4096
"""How much is decoded at a time. What follows the end of a gzip member or zstd frame is copied for the next one."""

_ZSTD_OPTIONS: dict[int, int] = {zstd.DecompressionParameter.window_log_max: 23}  # 8 MiB (RFC 8878, section 3.1.1.1.2)
_NAMES = {"": "", "identity": "", "gzip": "gzip", "x-gzip": "gzip", "zstd": "zstd"}


def coding_of(header: bytes) -> str:
    """Return the coding that a Content-Encoding header names: `gzip`, `zstd`, or an empty string for none.

    Raises `ProblemError` (415) for several codings and for others.
    """
    sent = header.decode("latin-1").lower().strip()
    if sent not in _NAMES:
        raise unsupported(
            f"Content-Encoding must be gzip or zstd, and only one; this request has {sent[:100]!r}.",
            {"Accept-Encoding": CODINGS},
        )
    return _NAMES[sent]


class Decoder:
    """Decodes a body of any number of gzip members or zstd frames."""

    def __init__(self, coding: str) -> None:
        """Decode one of the codings of `coding_of`."""
        self._coding = coding
        self._member: Any = None
        """The decompressor of the member that is being read, if any."""
        self._is_empty = True

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Decode more of the body, to pieces of at most `PIECE_BYTES`, some of them empty.

        Raises `ProblemError` (400) if it cannot be decoded.
        """
        try:
            for start in range(0, len(data), SLICE_BYTES):
                rest = data[start : start + SLICE_BYTES]
                while rest:
                    if self._member is None:
                        self._member, self._is_empty = self._begin(), False
                    yield from self._gunzip(rest) if self._coding == "gzip" else self._unzstd(rest)
                    rest = b""
                    if self._member.eof:
                        rest, self._member = self._member.unused_data, None
        except (zlib.error, zstd.ZstdError) as error:
            raise self._malformed(f"is not {self._coding}, or something else follows it: {error}") from None

    def finish(self) -> None:
        """Note the end of the body. Raises `ProblemError` (400) if it is not complete."""
        if self._member is not None or self._is_empty:
            raise self._malformed("ends too early")

    def _begin(self) -> Any:
        if self._coding == "gzip":
            return zlib.decompressobj(zlib.MAX_WBITS | 16)
        return zstd.ZstdDecompressor(options=_ZSTD_OPTIONS)

    def _gunzip(self, data: bytes) -> Iterator[bytes]:
        piece = self._member.decompress(data, PIECE_BYTES)
        yield piece
        # What does not fit is kept back, and some output may be left when all input has been read.
        while not self._member.eof and (self._member.unconsumed_tail or len(piece) == PIECE_BYTES):
            piece = self._member.decompress(self._member.unconsumed_tail, PIECE_BYTES)
            yield piece

    def _unzstd(self, data: bytes) -> Iterator[bytes]:
        yield self._member.decompress(data, PIECE_BYTES)
        while not self._member.eof and not self._member.needs_input:
            yield self._member.decompress(b"", PIECE_BYTES)

    def _malformed(self, what: str) -> ProblemError:
        return ProblemError(
            Problem(
                status=400,
                type="malformed-body",
                title="The body cannot be read",
                detail=f"The body has Content-Encoding {self._coding}, but {what}.",
            )
        )


async def decoded(body: bytes, coding: str, limit: int) -> bytes:
    """Return a whole body decoded. Raises `ProblemError`: 400 if it cannot be decoded, 413 over `limit` bytes."""
    decoder = Decoder(coding)
    pieces: list[bytes] = []
    size = 0
    turn = perf_counter()
    for piece in decoder.feed(body):
        size += len(piece)
        if size > limit:
            raise too_large(limit)
        pieces.append(piece)
        if perf_counter() - turn > TURN_SECONDS:
            await asyncio.sleep(0)
            turn = perf_counter()
    decoder.finish()
    return b"".join(pieces)
