import os
import resource
import sys
import threading
import time
from contextlib import contextmanager, redirect_stderr, suppress
from io import StringIO
from pathlib import Path

from pulsecart.telemetry.stderr import Writer


def new_writer(**bounds: int) -> Writer:
    return Writer(lambda count: f"{count} dropped", **bounds)


class Pipe:
    """What the reader of a pipe gets."""

    def __init__(self, reads: int, writes: int) -> None:
        self._reads = reads
        self._writes = writes
        self._read = ""
        self._filler = 0

    def fill(self) -> None:
        """Write until the pipe is full."""
        os.set_blocking(self._writes, False)
        with suppress(BlockingIOError):
            while True:
                self._filler += os.write(self._writes, b"x" * 4096)
        os.set_blocking(self._writes, True)

    def lines(self, count: int) -> list[str]:
        """Wait for this many lines, and return them without the filler."""
        while self._read.count("\n") < count:
            self._read += os.read(self._reads, 65_536).decode()
        *lines, self._read = self._read[self._filler :].split("\n")
        self._filler = 0
        return lines

    def lines_now(self) -> list[str]:
        """Return the lines that have been written, without waiting."""
        os.set_blocking(self._reads, False)
        return os.read(self._reads, 65_536).decode().splitlines()


@contextmanager
def piped(writer: Writer, *, blocking: bool = True):
    """Put a pipe in place of the standard error. What is not read at the end of the block is lost."""
    reads, writes = os.pipe()
    os.set_blocking(writes, blocking)
    with os.fdopen(writes, "w") as stream, redirect_stderr(stream):
        try:
            yield Pipe(reads, writes)
        finally:
            os.close(reads)
            writer.flush(10)


def test_lines_are_written_in_order():
    """Many lines of several threads arrive whole, those of one thread in the order in which they were put."""
    writer = new_writer()

    def put(name: str) -> None:
        for number in range(2_000):
            writer.put(f"{name} {number}")

    with piped(writer) as pipe:
        threads = [threading.Thread(target=put, args=(name,)) for name in "ab"]
        for thread in threads:
            thread.start()
        lines = pipe.lines(4_000)
        for thread in threads:
            thread.join()
    for name in "ab":
        assert [line for line in lines if line[0] == name] == [f"{name} {number}" for number in range(2_000)]


def test_lines_over_the_bytes_are_dropped_and_counted():
    """While nobody reads, putting does not wait; where lines are missing, a line gives their number."""
    writer = new_writer(max_bytes=30)
    with piped(writer) as pipe:
        pipe.fill()
        for number in range(100):
            writer.put(f"line {number:04}")
        assert not writer.flush(0.05)
        assert pipe.lines(4) == ["line 0000", "line 0001", "line 0002", "97 dropped"]
        assert writer.flush()
        writer.put("again")
        assert pipe.lines(1) == ["again"]


def test_lines_over_the_number_are_dropped_and_counted():
    """The number of lines has a bound of its own; those that the thread has taken do not count."""
    writer = new_writer(max_lines=3)
    with piped(writer) as pipe:
        pipe.fill()
        for number in range(100):
            writer.put(f"line {number}")
        written = []
        while not written or not written[-1].endswith("dropped"):
            written += pipe.lines(1)
    *written, count = written
    assert 3 <= len(written) <= 6
    assert count == f"{100 - len(written)} dropped"


def test_a_line_larger_than_the_queue_is_dropped():
    """A line that can never fit is counted, and the next one is written."""
    writer = new_writer(max_bytes=30)
    with piped(writer) as pipe:
        writer.put("x" * 31)
        writer.put("short")
        assert pipe.lines(2) == ["short", "1 dropped"]


def test_after_finish_each_line_is_waited_for():
    """At the end of the process a line has been written when `put` returns."""
    writer = new_writer()
    with piped(writer) as pipe:
        writer.put("before")
        writer.finish()
        writer.put("after")
        assert pipe.lines_now() == ["before", "after"]


def test_finish_waits_once_for_a_pipe_that_is_not_read():
    """The flush at the end is bounded, for all lines together."""
    writer = new_writer()
    with piped(writer) as pipe:
        pipe.fill()
        start = time.monotonic()
        for _ in range(100):
            writer.put("line")
            writer.finish()
        assert 0.4 < time.monotonic() - start < 10


def test_a_full_disk_drops_lines_until_there_is_room():
    """Lines that cannot be written are counted, and the count follows the first line that can."""
    writer = new_writer()
    with Path("/dev/full").open("w") as full, redirect_stderr(full):
        for _ in range(3):
            writer.put("lost")
        assert writer.flush(10)
    with piped(writer) as pipe:
        writer.put("written")
        assert pipe.lines(2) == ["written", "3 dropped"]


def test_a_line_cut_by_a_full_disk_is_ended(tmp_path):
    """A line of which only a part could be written counts as dropped, and the next begins on a line of its own."""
    writer = new_writer()
    path = tmp_path / "log"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with path.open("w") as stream, redirect_stderr(stream):
        resource.setrlimit(resource.RLIMIT_FSIZE, (14, limits[1]))
        try:
            for number in range(3):
                writer.put(f"line {number:04}")
            assert writer.flush(10)
            writer.put("line 0003")  # not even the end of the cut line can be written
            assert writer.flush(10)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        writer.put("line 0004")
        assert writer.flush(10)
    assert path.read_text().splitlines() == ["line 0000", "line", "line 0004", "3 dropped"]


def test_a_pipe_that_is_not_blocking_is_waited_for():
    """Where another process has made the pipe non-blocking, a full pipe loses nothing."""
    writer = new_writer()
    with piped(writer, blocking=False) as pipe:
        for number in range(5_000):
            writer.put(f"line {number:030}")
        assert pipe.lines(5_000) == [f"line {number:030}" for number in range(5_000)]


def test_a_stream_without_a_descriptor_is_written_to():
    """A stream in memory, as tests use, gets the lines; what UTF-8 cannot express is escaped."""
    writer = new_writer()
    with redirect_stderr(StringIO()) as stream:
        writer.put("snow \N{SNOWMAN}")
        writer.put("half \ud800")
        assert writer.flush(10)
    assert stream.getvalue() == "snow \N{SNOWMAN}\nhalf \\ud800\n"


def test_without_a_standard_error_lines_are_dropped(monkeypatch):
    """Where there is no stream, or a closed one, putting raises nothing."""
    writer = new_writer()
    closed = StringIO()
    closed.close()
    for stream in (None, closed):
        monkeypatch.setattr(sys, "stderr", stream)
        writer.put("lost")
        assert writer.flush(10)
    with piped(writer) as pipe:
        writer.put("written")
        assert pipe.lines(2) == ["written", "2 dropped"]


def test_a_thread_that_cannot_be_started_is_tried_again(monkeypatch):
    """Where no thread can be started the line waits for the next one."""
    writer = new_writer()

    def fail(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with piped(writer) as pipe:
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", fail)
            writer.put("first")
        writer.put("second")
        assert pipe.lines(2) == ["first", "second"]
