"""Runs the service and other commands as processes."""

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

START_SECONDS = 60
STOP_SECONDS = 30


class Served:
    """A running `pulsecart serve`, its address and its output."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._lines: list[str] = []
        self._listens = threading.Event()
        self._reads = threading.Event()
        self._reads.set()
        self._paused = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.url = ""

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def peak_memory_mb(self) -> float:
        """The peak resident memory of the process and its current children."""
        statuses = [Path(f"/proc/{pid}/status").read_text() for pid in (self.pid, *self.children())]
        return sum(int(status.partition("VmHWM:")[2].split()[0]) for status in statuses) / 1024

    @property
    def output(self) -> str:
        return "".join(self._lines)

    def wait_until_it_listens(self) -> None:
        assert self._listens.wait(START_SECONDS), f"did not start in {START_SECONDS} s:\n{self.output}"
        assert self.url, f"ended before it listened:\n{self.output}"

    def children(self) -> list[int]:
        """Return the ids of its child processes."""
        return [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]

    def tell_to_stop(self, number: int = signal.SIGTERM) -> None:
        self._process.send_signal(number)

    def stop(self) -> int:
        """Stop it with SIGTERM, and return its exit status."""
        self.tell_to_stop()
        return self.wait()

    def wait(self) -> int:
        """Wait until the process ends, and return its exit status."""
        status = self._process.wait(STOP_SECONDS)
        self.read_on()
        self._reader.join(STOP_SECONDS)
        return status

    def pause_reading(self) -> None:
        """Stop reading the output after the next line."""
        self._reads.clear()

    def fill_pipe(self) -> None:
        """Stop reading the output, and write to its pipe until it is full."""
        self.pause_reading()
        pipe = os.open(f"/proc/{self.pid}/fd/2", os.O_WRONLY | os.O_NONBLOCK)
        try:
            self._fill(pipe)
            assert self._paused.wait(STOP_SECONDS)  # the reader has taken a last buffer, which made room
            self._fill(pipe)
        finally:
            os.close(pipe)

    def _fill(self, pipe: int) -> None:
        with suppress(BlockingIOError):
            while True:
                os.write(pipe, b"x" * 99 + b"\n")

    def read_on(self) -> None:
        self._reads.set()

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._lines.append(line)
            if found := re.search(r"Uvicorn running on (http://\S+)", line):
                self.url = found[1]
            if not self._listens.is_set() and self.url and "startup complete" in self.output:
                self._listens.set()
            if not self._reads.is_set():
                self._paused.set()
                self._reads.wait()
        self._listens.set()


@contextmanager
def serving(*arguments: str, cwd: Path, **environment: str) -> Iterator[Served]:
    """Run `pulsecart serve` on a free port until the end of the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pulsecart", "serve", "--port", "0", *arguments],
        cwd=cwd,
        env=os.environ | environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    with process:
        served = Served(process)
        try:
            served.wait_until_it_listens()
            yield served
        finally:
            if process.poll() is None:
                served.stop()


def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command of pulsecart until it ends."""
    return subprocess.run(
        [sys.executable, "-m", "pulsecart", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **options,
    )
