"""Runs the code blocks of a page, in order, in a directory of its own.

A fenced block names its language. `sh` and `python` blocks run; `json`, `yaml` and `toml` blocks must parse. A comment
on the line before a block says what else to do:

    <!-- file: myshop/events.py -->    write the block to this file instead
    <!-- background -->                run it until the end of the page, or until another one takes its port
    <!-- not run: REASON -->           do not run it
    <!-- exit: 2 -->                   it ends with this status instead of 0
    <!-- output -->                    it is what the block before prints; `...` stands for any text

The working directory and exported variables last until the end of the page, as in a terminal. Ports are replaced by
free ones, so pages can run at the same time, and the project shop-staging by another, since an emulator keeps topics.
In output, event ids, trace ids, keys and times may differ.
"""

import json
import os
import re
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import yaml
from attrs import Factory, define, frozen

BLOCK_SECONDS = 60
START_SECONDS = 30
STOP_SECONDS = 20
OUTPUT_SECONDS = 10

LANGUAGES = {"console", "ini", "js", "json", "mermaid", "python", "sh", "text", "toml", "yaml"}
PARSERS: dict[str, Callable[[str], object]] = {
    "json": json.loads,
    "toml": tomllib.loads,
    "yaml": lambda text: list(yaml.safe_load_all(text)),
}

FENCE = re.compile(r"( *)(`{3,}|:{3,})([^`\s]*)(.*)")
COMMENT = re.compile(r"\s*<!-- (file|background|not run|exit|output)(?:: (.+?))? -->\s*")
NEEDS_VALUE = {"file", "not run", "exit"}

SERVICE_PORT = 8000
EMULATOR_PORT = 8085
PROJECT = "shop-staging"
PORT = re.compile(r"((?:localhost|127\.0\.0\.1|0\.0\.0\.0):|--port[ =]|PORT=|\bport=)(\d{4,5})\b")

HIDDEN = {"PUBSUB_EMULATOR_HOST", "PYTEST_CURRENT_TEST", "PYTEST_XDIST_WORKER"}

VARYING = [
    (re.compile(r"pck_[\w-]{43}"), "pck_..."),
    (re.compile(r"sha256:[0-9a-f]{64}"), "sha256:..."),
    (re.compile(r"evt_[0-9a-f]{32}"), "evt_..."),
    (re.compile(r"\b[0-9a-f]{32}\b"), "..."),
    (re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)"), "..."),
    (re.compile(r"\b\d+(\.\d+)? ?(s|ms|seconds|events/s|/s)\b"), "..."),
]

SHELL = """\
trap 'status=$?; export -p > {state}; pwd > {folder}; exit $status' EXIT
"""
BACKGROUND_SHELL = """\
trap 'exit 143' TERM
"""
"""Ends once what it runs has ended. It changes nothing for the blocks that follow: it is a terminal of its own."""


class BlockFailed(AssertionError):
    """A block does not do what its page says."""


@frozen
class Block:
    page: str
    line: int
    """Of the fence, from 1."""
    language: str
    text: str
    comment: str
    value: str

    def fail(self, what: str, output: str = "") -> BlockFailed:
        return BlockFailed(f"{self.page}:{self.line}: {what}{output and ':'}\n{output}".rstrip())


def read_blocks(path: Path, page: str) -> list[Block]:
    """Return the fenced blocks of a page. Those of MyST's directives, such as {note}, are text, not code."""
    return list(_blocks(path.read_text().splitlines(), page))


def _blocks(lines: list[str], page: str) -> Iterator[Block]:
    at = 0
    while at < len(lines):
        fence = FENCE.fullmatch(lines[at])
        if not fence or fence[2][0] == ":" or fence[3].startswith("{"):
            at += 1
            continue
        comment = COMMENT.fullmatch(lines[at - 1]) if at else None
        name, value = (comment[1], comment[2] or "") if comment else ("", "")
        start = at
        at += 1
        while at < len(lines) and lines[at].strip() != fence[2]:
            at += 1
        indent = len(fence[1])
        text = "".join(f"{line[indent:]}\n" for line in lines[start + 1 : at])
        block = Block(page, start + 1, fence[3], text, name, value)
        if at == len(lines):
            raise block.fail("the block has no end")
        if block.language not in LANGUAGES:
            raise block.fail(f"{block.language or 'no language'} is not one of {', '.join(sorted(LANGUAGES))}")
        if not comment and start and lines[start - 1].lstrip().startswith("<!--"):
            raise block.fail(f"unknown comment {lines[start - 1].strip()}")
        if bool(value) != (name in NEEDS_VALUE):
            raise block.fail(f"the comment {name!r} {'needs a' if name in NEEDS_VALUE else 'takes no'} value")
        yield block
        at += 1


def uses_emulator(blocks: list[Block]) -> bool:
    return any(f":{EMULATOR_PORT}" in block.text for block in blocks if block.comment == "file" or _runs(block))


def _runs(block: Block) -> bool:
    return block.language in {"sh", "python"} and block.comment in {"", "background", "exit"}


@define
class _Background:
    port: int
    process: subprocess.Popen[bytes]
    log: Path

    def stop(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@define
class Page:
    """A page that runs: its directory, ports, and what it has started."""

    state: Path
    """A directory for what the page must not see."""
    folder: Path
    """The working directory."""
    ports: dict[int, int] = Factory(dict)
    """The port that replaces one of the page."""
    project: str = Factory(lambda: f"shop-{secrets.token_hex(4)}")
    """What replaces `PROJECT`."""
    backgrounds: list[_Background] = Factory(list)
    printed: Callable[[], str] | None = None
    """Returns what the block before has printed."""

    def run(self, blocks: list[Block]) -> None:
        try:
            for block in blocks:
                self._step(block)
        finally:
            for background in reversed(self.backgrounds):
                background.stop()

    def _step(self, block: Block) -> None:
        if parse := PARSERS.get(block.language):
            try:
                parse(block.text)
            except (ValueError, yaml.YAMLError) as error:
                raise block.fail(f"this is no {block.language}: {error}") from None
        if block.comment == "output":
            self._compare(block)
        elif block.comment == "file":
            path = self.folder / block.value
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(self._adapted(block.text))
        elif block.comment == "background":
            self._start(block)
        elif _runs(block):
            self._execute(block)

    def _execute(self, block: Block) -> None:
        expected = int(block.value) if block.comment == "exit" else 0
        process = self._open(block, subprocess.PIPE)
        try:
            output = process.communicate(timeout=BLOCK_SECONDS)[0].decode(errors="replace")
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output = process.communicate()[0].decode(errors="replace")
            raise block.fail(f"did not end in {BLOCK_SECONDS} s", output) from None
        if process.returncode != expected:
            raise block.fail(f"ended with status {process.returncode}, not {expected}", output)
        if (kept := self.state / "folder").exists():
            self.folder = Path(kept.read_text().strip())
        self.printed = lambda: output

    def _start(self, block: Block) -> None:
        text = self._adapted(block.text)
        if "pulsecart serve" in text:
            chosen = re.search(r"(?:--port[ =]|\bPORT=)(\d+)", text)
            port = int(chosen[1]) if chosen else self._free(SERVICE_PORT)
        else:
            found = PORT.search(text)
            port = int(found[2]) if found else 0
        for other in [each for each in self.backgrounds if port and each.port == port]:
            other.stop()
            self.backgrounds.remove(other)
        log = self.state / f"line-{block.line}.log"
        with log.open("wb") as opened:
            process = self._open(block, opened)
        self.backgrounds.append(_Background(port, process, log))
        self.printed = log.read_text
        end = time.monotonic() + START_SECONDS
        while port and not _listens(port):
            if process.poll() is not None:
                raise block.fail(f"ended with status {process.returncode}", log.read_text())
            if time.monotonic() > end:
                raise block.fail(f"did not start in {START_SECONDS} s", log.read_text())
            time.sleep(0.05)

    def _open(self, block: Block, stdout: int | BinaryIO) -> subprocess.Popen[bytes]:
        """Start a block in a process group of its own, so that what it starts can be ended with it."""
        return subprocess.Popen(
            self._command(block),
            cwd=self.folder,
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def _compare(self, block: Block) -> None:
        if self.printed is None:
            raise block.fail("no block before this output has run")
        end = time.monotonic() + OUTPUT_SECONDS * any(each.log.read_text == self.printed for each in self.backgrounds)
        while not _matches(block, output := self._original(self.printed())):
            if time.monotonic() >= end:
                raise block.fail("the output is different", output)
            time.sleep(0.05)

    def _command(self, block: Block) -> list[str]:
        text = self._adapted(block.text)
        if block.language == "python":
            text = f"exec {shlex.join([sys.executable, '-W', 'error', '-c', text])}"
        before = BACKGROUND_SHELL
        if block.comment != "background":
            kept = {"state": self._exported, "folder": self.state / "folder"}
            before = SHELL.format_map({name: shlex.quote(str(path)) for name, path in kept.items()})
        if self._exported.exists():
            before += f". {shlex.quote(str(self._exported))}\n"
        return ["bash", "-e", "-o", "pipefail", "-c", before + text]

    @property
    def _exported(self) -> Path:
        return self.state / "exported"

    def _environment(self) -> dict[str, str]:
        (self.state / ".curlrc").write_text("silent\nshow-error\n")
        return {name: value for name, value in os.environ.items() if name not in HIDDEN} | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PORT": str(self._free(SERVICE_PORT)),
            "CURL_HOME": str(self.state),
            "NO_COLOR": "1",
            "PYTHONUNBUFFERED": "1",
            "COLUMNS": "100",
        }

    def _free(self, port: int) -> int:
        """Return the port that stands for one of the page."""
        if port not in self.ports:
            with socket.create_server(("127.0.0.1", 0)) as free:
                self.ports[port] = free.getsockname()[1]
        return self.ports[port]

    def _adapted(self, text: str) -> str:
        return PORT.sub(lambda found: f"{found[1]}{self._free(int(found[2]))}", text).replace(PROJECT, self.project)

    def _original(self, output: str) -> str:
        own = {free: port for port, free in self.ports.items()}
        restored = PORT.sub(lambda found: f"{found[1]}{own.get(int(found[2]), found[2])}", output)
        return restored.replace(self.project, PROJECT)


def _listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def _matches(block: Block, output: str) -> bool:
    expected: Any = block.text
    if block.language == "json":
        try:
            expected, output = (json.dumps(json.loads(text), ensure_ascii=False) for text in (expected, output))
        except ValueError:
            return False
    parts = [re.escape(part) for part in _plain(expected).split("...")]
    return re.fullmatch(".*".join(parts), _plain(output), re.DOTALL) is not None


def _plain(text: str) -> str:
    """Return a text without what is different each time, or cannot be seen."""
    for varying, name in VARYING:
        text = varying.sub(name, text)
    return "\n".join(line.rstrip() for line in text.strip().splitlines())
