"""`pulsecart send`."""

import gzip
import hashlib
import os
import secrets
import select
import signal
import socket
import sys
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Self

import click
import msgspec
from attrs import define, field

if TYPE_CHECKING:
    from pulsecart.client import Client, Outcome

__all__ = ["command"]

MAX_LINE_BYTES = 33_554_432
"""Longer lines are not held in memory. The service accepts none of them."""

READ_BYTES = 65_536
"""How much of standard input is read at a time."""

IDLE_SECONDS = 0.05
"""How long standard input is silent before the events that it brought are sent: a fast pipe gets full requests."""

MAX_HELD = 1000
"""How many users may have events that failed and could succeed later. A checkpoint lists these users."""

MAX_SHOWN = 10
"""How many failures are described."""

FAILED, AWAY, REFUSED = 1, 3, 4
"""Exit codes; see the help."""

_File = click.Path(dir_okay=False, path_type=Path)


@click.command("send")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@click.option("--to", metavar="URL", required=True, help="The address of the service.")
@click.option("--key", envvar="PULSECART_KEY", show_envvar=True, help="The key to send.")
@click.option("--failures", metavar="FILE", type=_File, help="Where to write the events that failed; see above.")
@click.option("--checkpoint", metavar="FILE", type=_File, help="Where to save the progress; see above.")
@click.option("--batch-events", type=click.IntRange(1), default=1000, show_default=True, help="Events in a request.")
@click.option("--attempts", type=click.IntRange(1), default=8, show_default=True, help="How often an event is sent.")
@click.option(
    "--report-every",
    metavar="SECONDS",
    type=click.FloatRange(0),
    default=10,
    show_default=True,
    help="How often a line reports the progress if standard error is not a terminal.",
)
@click.pass_context
def command(  # noqa: PLR0913 (an argument for each option)
    context: click.Context,
    *,
    file: str,
    to: str,
    key: str | None,
    failures: Path | None,
    checkpoint: Path | None,
    batch_events: int,
    attempts: int,
    report_every: float,
) -> None:
    """Send the events in FILE, one JSON object a line (NDJSON), in order for each user.

    The file may end in .gz or .zst; - is standard input, without compression, whose events are sent as they come. A
    malformed line fails alone, and blank
    lines are skipped. If an event fails that could succeed later, later ones of its user are not sent, and fail too.

    \b
    --failures   is written in the order of the lines. Each event has its event_id, so that the file can be sent.
    --checkpoint lets the same command continue after any interruption, and do nothing once all is sent. Events
                 without an event_id get one that depends on the checkpoint and the line, so what was in doubt is
                 sent again under the same id. The lines before must be unchanged, those of standard input too.
                 Without a checkpoint, each run makes new ids.

    Ctrl+C finishes the request in progress; twice, it ends at once. Either way the checkpoint is true.

    \b
    Exit codes:
      0    all events of the file are published
      1    some events have failed, or the file cannot be read to its end
      2    an argument does not work
      3    the service is away: run the command again later
      4    the service refuses the requests as a whole, for example because of the key
      130  ended by Ctrl+C (143: by SIGTERM)
    """  # noqa: D301 (\b is click's)
    interrupts = _Interrupts()
    with (
        _open_client(to, key, attempts, batch_events) as client,
        _Source.open(file, interrupts) as source,
        _open_failures(failures, file, checkpoint) as failed,
        interrupts,
    ):
        run = _Run(client, source, _load(checkpoint, to), checkpoint, failed, interrupts)
        try:
            run.skip()
            with _reporting(source, report_every) as report:
                run.send(report)
        except KeyboardInterrupt:
            run.end(128 + interrupts.signal, "Interrupted.")
    click.echo(run.summary(failures), err=True)
    context.exit(run.exit_code)


def _open_client(to: str, key: str | None, attempts: int, batch_events: int) -> "Client":
    try:
        from pulsecart.client import Client

        return Client(to, key=key or None, attempts=attempts, batch_events=batch_events)
    except ModuleNotFoundError as error:
        raise click.ClickException(str(error)) from None
    except ValueError as error:
        raise click.UsageError(str(error)) from None


class _Progress(msgspec.Struct):
    """The content of a checkpoint: what is settled, which means published or written to the failures."""

    to: str
    secret: str
    """What the ids of the run depend on. With ids that can be guessed, others could use them for their events."""

    started: int
    """Unix milliseconds."""

    lines: int = 0
    digest: str = hashlib.sha256().hexdigest()
    """SHA-256 of these lines."""

    events: int = 0
    failed: int = 0
    held: set[str] = set()
    """Users whose events must not be sent, since an earlier one failed that can still be sent."""

    def event_id(self, index: int) -> str:
        """Return an id in the form of a generated one for the event at an index."""
        digest = hashlib.sha256(f"{self.secret} {index}".encode()).hexdigest()
        return f"evt_{self.started:012x}0{digest[:19]}"

    def save(self, file: Path | None) -> None:
        """Replace the checkpoint, so that it has either the old content or the new one, whatever happens."""
        if file is None:
            return
        draft = file.with_name(f"{file.name}.new")
        # Only its owner may read the secret.
        with open(draft, "wb", opener=lambda path, flags: os.open(path, flags, 0o600)) as opened:
            opened.write(msgspec.json.encode(self))
            opened.flush()
            os.fsync(opened.fileno())
        draft.replace(file)


def _load(file: Path | None, to: str) -> _Progress:
    """Read a checkpoint or begin one: its secret must be on disk before an event is sent."""
    try:
        if file and file.exists():
            progress = msgspec.json.decode(file.read_bytes(), type=_Progress)
        else:
            progress = _Progress(to, secrets.token_hex(16), time.time_ns() // 1_000_000)
            progress.save(file)
    except OSError as error:
        raise click.UsageError(f"--checkpoint {file}: {error.strerror or error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise click.UsageError(f"{file} is not a checkpoint; name another file") from None
    if progress.to != to:
        raise click.UsageError(f"{file} is the checkpoint of a run to {progress.to}; name another for another URL")
    return progress


class _Source:
    """The lines of a file, their number and digest."""

    def __init__(self, name: str, raw: BinaryIO, text: Any) -> None:
        self.name = name
        self._raw = raw
        self._text = text
        self.size = os.fstat(raw.fileno()).st_size if raw.seekable() else 0
        """Bytes, compressed; 0 if unknown."""
        self.lines = 0
        self.digest = hashlib.sha256()

    @classmethod
    @contextmanager
    def open(cls, name: str, interrupts: "_Interrupts") -> Iterator[Self]:
        if name == "-":
            if sys.stdin is None:
                raise click.UsageError("standard input is closed")
            yield cls("standard input", sys.stdin.buffer, _Input(sys.stdin.fileno(), interrupts))
            return
        try:
            raw = Path(name).open("rb")  # noqa: SIM115 (closed below)
        except OSError as error:
            raise click.UsageError(f"{name}: {error.strerror}") from None
        with raw, _decompressed(name, raw) as text:
            yield cls(name, raw, text)

    @property
    def idle(self) -> bool:
        """Whether standard input is silent, and has no further line yet."""
        return isinstance(self._text, _Input) and self._text.idle

    @property
    def position(self) -> int:
        """The bytes that have been read, compressed."""
        return self._raw.tell() if self.size else 0

    def line(self) -> bytes:
        """Return the next line; empty at the end. Raises `ClickException` if it cannot be read."""
        try:
            line: bytes = self._text.readline(MAX_LINE_BYTES + 1)
        except (OSError, EOFError, zlib.error, _zstd().ZstdError) as error:
            raise click.ClickException(f"{self.name} cannot be read after line {self.lines:,}: {error}") from None
        if len(line) > MAX_LINE_BYTES:
            where = f"line {self.lines + 1:,} of {self.name}"
            raise click.ClickException(f"{where} has more than {MAX_LINE_BYTES:,} bytes; send one JSON object a line")
        self.digest.update(line)
        self.lines += bool(line)
        return line


class _Input:
    """Reads lines of standard input, and knows whether it would wait for one: a buffered reader does not tell."""

    def __init__(self, file: int, interrupts: "_Interrupts") -> None:
        self._file = file
        self._interrupts = interrupts
        self._read = b""
        self._start = 0

    @property
    def idle(self) -> bool:
        return self._read.find(b"\n", self._start) < 0 and not self._interrupts.wait_for(self._file, IDLE_SECONDS)

    def readline(self, limit: int) -> bytes:
        """Return the next line with its end, but at most `limit` bytes; empty at the end."""
        parts: list[bytes] = []
        while True:
            end = self._read.find(b"\n", self._start, self._start + limit) + 1 or min(
                len(self._read), self._start + limit
            )
            part = self._read[self._start : end]
            self._start = end
            limit -= len(part)
            parts.append(part)
            if not limit or part.endswith(b"\n"):
                break
            self._interrupts.wait_for(self._file)
            self._read, self._start = os.read(self._file, READ_BYTES), 0
            if not self._read:
                break
        return b"".join(parts)


def _decompressed(name: str, raw: BinaryIO) -> Any:
    if name.endswith(".gz"):
        return gzip.GzipFile(fileobj=raw)
    return _zstd().ZstdFile(raw) if name.endswith(".zst") else raw


def _zstd() -> Any:
    if sys.version_info >= (3, 14):  # pragma: no cover
        from compression import zstd
    else:
        from backports import zstd
    return zstd


@contextmanager
def _open_failures(file: Path | None, source: str, checkpoint: Path | None) -> Iterator[BinaryIO | None]:
    """Open the file for failures. It is continued with a checkpoint, and must be empty without."""
    if file is None:
        yield None
        return
    if checkpoint and file.absolute() == checkpoint.absolute():
        raise click.UsageError("--failures and --checkpoint must name different files")
    try:
        if source != "-" and file.exists() and file.samefile(source):
            raise click.UsageError("--failures must not name the file that is sent")
        if not checkpoint and file.exists() and file.stat().st_size:
            raise click.UsageError(f"--failures {file} is not empty; send the events in it, or name another file")
        opened = file.open("ab+", buffering=0)
    except OSError as error:
        raise click.UsageError(f"--failures {file}: {error.strerror or error}") from None
    with opened:
        _drop_torn_line(opened)
        yield opened


def _drop_torn_line(file: BinaryIO) -> None:
    """Remove a last line without an end: the run that wrote it was killed, and its event is not settled."""
    end = size = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - 65_536)
        file.seek(start)
        kept = file.read(end - start).rfind(b"\n") + 1
        end = start + kept
        if kept:
            break
    if end < size:
        file.truncate(end)


def _append(file: BinaryIO | None, lines: bytes) -> None:
    """Write lines to the end of a file, and to the disk."""
    if file is None or not lines:
        return
    rest = memoryview(lines)
    while rest:
        rest = rest[file.write(rest) :]
    os.fsync(file.fileno())


class _Interrupts:
    """SIGINT and SIGTERM: the first one waits for the request in progress, the second one does not.

    The first one raises nothing where it arrives, which may be anywhere, for example where a lock is held.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._waiting = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self._wakes, self._woken = socket.socketpair()  # not a pipe, which Windows could not select
        for end in (self._wakes, self._woken):
            end.setblocking(False)
        self._wakeup_before = signal.set_wakeup_fd(self._wakes.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) != signal.SIG_IGN:  # as nohup and shells set it for background jobs
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        self._wakes.close()
        self._woken.close()

    def _note(self, number: int, _frame: object) -> None:
        again, self.signal = self.signal, number
        if again:
            raise KeyboardInterrupt
        if not self._waiting:
            with suppress(OSError):  # not through a stream, which may be what the signal has interrupted
                os.write(2, b"\nFinishing the request in progress; press Ctrl+C again to end at once.\n")

    def check(self) -> None:
        """Raise `KeyboardInterrupt` if there was a signal."""
        if self.signal:
            raise KeyboardInterrupt

    def wait_for(self, file: int, seconds: float | None = None) -> bool:
        """Return whether a file can be read, at the latest after so many seconds or a signal, for which see `check`."""
        self._waiting = True
        try:
            ready = select.select([file, self._woken.fileno()], [], [], seconds)[0]
        except OSError:  # pragma: no cover (Windows can select sockets only: its requests are sent when they are full)
            return True
        finally:
            self._waiting = False
        self.check()  # Python runs the handler of a signal that has ended the wait before this call
        return file in ready


Report = Callable[[int, int], None]
"""Reports how many events were sent, and how many failed."""


@contextmanager
def _reporting(source: _Source, seconds: float) -> Iterator[Report]:
    """Report the progress: with a bar on a terminal, elsewhere with a line every so many seconds."""
    first = source.position
    started = reported = time.monotonic()

    def text(sent: int, failed: int) -> str:
        rate = (sent + failed) / max(time.monotonic() - started, 0.001)
        return f"{_counted(sent)} sent, {failed:,} failed, {rate:,.0f}/s"

    def line(sent: int, failed: int) -> None:
        nonlocal reported
        now = time.monotonic()
        if now - reported < seconds:
            return
        reported = now
        if source.size > first < source.position:
            done = source.position - first
            left = (now - started) * (source.size - source.position) / done
            click.echo(f"{text(sent, failed)}, {source.position / source.size:.0%}, {left:,.0f} s left", err=True)
        else:
            click.echo(text(sent, failed), err=True)

    if not sys.stderr.isatty():
        yield line
        return
    steps: Any = (None for _ in ())  # a length that is not known
    length = source.size - first or None
    with click.progressbar(steps, length, "Sending", item_show_func=lambda shown: shown or "", file=sys.stderr) as bar:

        def update(sent: int, failed: int) -> None:
            done = source.position - first if length else sent + failed
            bar.update(done - bar.pos, text(sent, failed))

        yield update


@define
class _Run:
    """What is sent by this command, and how it ends."""

    client: "Client"
    source: _Source
    progress: _Progress
    checkpoint: Path | None
    failures: BinaryIO | None
    interrupts: _Interrupts
    started: float = field(factory=time.monotonic)
    waiting: deque[tuple[bytes, int, str]] = field(factory=deque)
    """The lines that have been read and are not settled, each with the number and digest of all up to it."""
    sent: int = 0
    shown: list[str] = field(factory=list)
    exit_code: int = 0
    reason: str = ""
    failed_before: int = field(init=False)
    """How many events have failed in earlier runs with this checkpoint."""

    def __attrs_post_init__(self) -> None:
        self.failed_before = self.progress.failed

    def end(self, exit_code: int, reason: str) -> None:
        """Note that the run ends early, and why."""
        self.exit_code, self.reason = exit_code, reason

    def skip(self) -> None:
        """Read the lines that are settled."""
        source, progress = self.source, self.progress
        while source.lines < progress.lines and source.line():
            self.interrupts.check()
        if source.digest.hexdigest() != progress.digest:
            raise click.UsageError(
                f"{source.name} does not begin with the {progress.lines:,} lines that the checkpoint says are sent; "
                "name another checkpoint for another file, and send corrected events from the file of failures"
            )

    def send(self, report: Report) -> None:
        """Send the lines until the end, or a failure of a whole request. Save the progress after each batch."""
        progress, first = self.progress, self.progress.events
        batches = self.client.send_batches(
            self._events(), held=progress.held, event_id_of=lambda index: progress.event_id(first + index)
        )
        try:
            for outcomes in batches:
                self._settle(outcomes)
                progress.save(self.checkpoint)
                report(self.sent, progress.failed - self.failed_before)
                if self.exit_code in (AWAY, REFUSED):
                    return
            progress.lines, progress.digest = self.source.lines, self.source.digest.hexdigest()
            progress.save(self.checkpoint)
        except OSError as error:
            self.end(FAILED, f"The checkpoint or the failures cannot be written: {error}.")
        if progress.failed:
            self.exit_code = FAILED

    def _events(self) -> Iterator[bytes | None]:
        while True:
            self.interrupts.check()
            try:
                line = self.source.line()
            except click.ClickException as error:  # what has been read is still sent
                self.end(FAILED, error.message)
                return
            if not line:
                return
            if text := line.strip(b" \t\r\n"):
                self.waiting.append((text, self.source.lines, self.source.digest.hexdigest()))
                yield text
            if self.source.idle:
                yield None  # sends what is there

    def _settle(self, outcomes: Sequence["Outcome"]) -> None:
        """Count what is published, and write what failed, up to the first failure of a whole request."""
        from pulsecart.client import Failure

        progress = self.progress
        failed = [each for each in outcomes if isinstance(each, Failure)]
        holding = [each for each in failed if each.holds and not each.of_request]
        if len(progress.held.union(each.holds for each in holding if each.holds)) > MAX_HELD:
            self.end(AWAY, f"Events of more than {MAX_HELD:,} users fail: {holding[0].problem}")
            return
        whole = next((each for each in failed if each.of_request), None)
        settled = list(zip(outcomes, self.waiting, strict=False))[: outcomes.index(whole) if whole else None]
        # The failures are on disk before they count as settled.
        _append(
            self.failures,
            b"".join([(each.document or text) + b"\n" for each, (text, *_) in settled if isinstance(each, Failure)]),
        )
        for outcome, (_, number, digest) in settled:
            self.waiting.popleft()
            progress.events += 1
            progress.lines, progress.digest = number, digest
            if not isinstance(outcome, Failure):
                self.sent += 1
                continue
            progress.failed += 1
            if outcome.holds:
                progress.held.add(outcome.holds)
            if len(self.shown) < MAX_SHOWN:
                self.shown.append(f"Line {number:,}: {outcome.problem}")
        if whole:
            number = self.waiting[0][1]
            hint = "\nSet PULSECART_KEY to the key of a source of this service." if whole.problem.status == 401 else ""
            self.end(AWAY if whole.problem.retryable else REFUSED, f"Line {number:,}: {whole.problem}{hint}")

    def summary(self, failures: Path | None) -> str:
        """Return what to print at the end."""
        failed = self.progress.failed - self.failed_before
        lines = list(self.shown)
        if failed > len(lines):
            lines.append(f"{_counted(failed - len(lines))} more failed; they are not shown.")
        seconds = time.monotonic() - self.started
        lines.append(f"{_counted(self.sent)} sent in {seconds:,.1f} s, {failed:,} failed.")
        if self.failed_before:
            lines.append(f"{_counted(self.failed_before)} failed in earlier runs.")
        if self.progress.failed and failures:
            lines.append(f"Those that failed are in {failures}.")
        if self.reason:
            again = (
                "Run the same command again to continue."
                if self.checkpoint
                else "Without --checkpoint, another run sends them again, under new ids unless they have their own."
            )
            lines.append(f"{self.reason}\nAll lines up to {self.progress.lines:,} are done. {again}")
        return "\n".join(lines)


def _counted(count: int) -> str:
    return "1 event" if count == 1 else f"{count:,} events"
