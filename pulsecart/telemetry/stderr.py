"""Writes lines to the standard error from a thread, so that the event loop never waits for their reader."""

import os
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress

__all__ = ["FLUSH_SECONDS", "MAX_BYTES", "MAX_LINES", "Writer"]

MAX_LINES = 10_000
MAX_BYTES = 10_000_000

FLUSH_SECONDS = 0.5
"""How long a flush waits for a reader that does not read."""

_CHUNK_BYTES = 65_536
"""About how much one write takes: as much as a pipe holds."""

_PAUSE_SECONDS = 0.01
"""How long lines are collected for the next write. Waking the thread for each line would cost the event loop more."""


class Writer:
    """A bounded queue of lines, and the thread that writes them to the standard error.

    When the queue is full or a write fails, lines are dropped and counted. `notice` makes the line that reports their
    number; it is queued as soon as a write succeeds, which is where the lines are missing.
    """

    def __init__(self, notice: Callable[[int], str], *, max_lines: int = MAX_LINES, max_bytes: int = MAX_BYTES) -> None:
        self._notice = notice
        self._max_lines = max_lines
        self._max_bytes = max_bytes
        self.reset()

    def reset(self) -> None:
        """Start empty and without a thread, as after a fork: the parent writes what it has queued."""
        # Reentrant, because a finalizer or a signal handler may log at any moment.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._lines: deque[bytes] = deque()
        self._bytes = 0  # queued or being written
        self._dropped = 0
        self._idle = False  # whether the thread waits to be notified
        self._thread: threading.Thread | None = None
        self._ends_at: float | None = None

    def put(self, line: str) -> None:
        """Queue a line, or drop it if the queue is full."""
        data = f"{line}\n".encode(errors="backslashreplace")
        with self._lock:
            if len(self._lines) >= self._max_lines or self._bytes + len(data) > self._max_bytes:
                self._dropped += 1
                return
            self._append(data)
            if self._idle:
                self._idle = False
                self._changed.notify_all()
            elif self._thread is None:
                self._start()
        if self._ends_at is not None:
            self.flush(self._ends_at - time.monotonic())

    def flush(self, seconds: float = FLUSH_SECONDS) -> bool:
        """Wait until no line is queued, and return whether that was reached in time."""
        with self._lock:
            return self._changed.wait_for(lambda: not self._bytes, seconds)

    def finish(self) -> None:
        """Flush, and from now on after each line too, for `FLUSH_SECONDS` in all: the process is about to end."""
        if self._ends_at is None:
            self._ends_at = time.monotonic() + FLUSH_SECONDS
        self.flush(self._ends_at - time.monotonic())

    def _append(self, data: bytes) -> None:
        self._lines.append(data)
        self._bytes += len(data)

    def _start(self) -> None:
        thread = threading.Thread(target=self._run, name="pulsecart-logs", daemon=True)
        with suppress(RuntimeError):  # no thread can be started now: the next line tries again
            thread.start()
            self._thread = thread

    def _run(self) -> None:
        cut = b""  # ends a line of which a failed write has written only a part
        while True:
            with self._lock:
                while not self._lines:
                    self._idle = True
                    self._changed.wait()
                self._idle = False
                chunk = bytearray(cut)
                while self._lines and len(chunk) < _CHUNK_BYTES:
                    chunk += self._lines.popleft()
            written = _write(chunk)
            with self._lock:
                self._bytes -= len(chunk) - len(cut)
                if written < len(chunk):
                    self._dropped += chunk.count(b"\n", max(written, len(cut)))
                elif self._dropped:
                    self._append(f"{self._notice(self._dropped)}\n".encode())
                    self._dropped = 0
                if written:
                    cut = b"" if chunk.endswith(b"\n", 0, written) else b"\n"
                self._changed.notify_all()
            if len(chunk) < _CHUNK_BYTES:
                time.sleep(_PAUSE_SECONDS)


def _write(data: bytearray) -> int:
    """Write to what is the standard error at this moment, and return how many bytes it took."""
    written = 0
    # The thread must survive whatever a stream raises: a full disk, a closed pipe, no stream at all.
    with suppress(Exception):
        stream = sys.stderr
        try:
            descriptor = stream.fileno()
        except (AttributeError, OSError, ValueError):  # a stream in memory, as in tests
            stream.write(data.decode())
            stream.flush()
            return len(data)
        # Not by the stream, whose lock the interpreter takes when it exits: a blocked write would hold it.
        with memoryview(data) as view:
            while written < len(data):
                try:
                    written += os.write(descriptor, view[written:])
                except BlockingIOError:  # some other process has made the pipe non-blocking
                    select.select([], [descriptor], [])
    return written
