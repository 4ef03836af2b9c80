"""Sources: who may send events, which types and how many. They are read from a TOML file, and again when it changes.

[checkout]                             # 1 to 64 characters: a-z, 0-9, _ and -
keys = ["sha256:…", "sha256:…"]        # the SHA-256 of each whole key, in hexadecimal
events = ["order.*", "payment.failed"] # all types if missing; * matches any characters
rate = 500                             # events a second in each process; no limit if missing
[recommendations]
subjects = [{iss = "https://accounts.google.com", email = "recs@shop.iam.gserviceaccount.com"}]
"""

import asyncio
import logging
import re
import stat
import time
import tomllib
from collections.abc import AsyncIterator, Collection, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from attrs import field, frozen

from pulsecart.access.keys import HASH, digest
from pulsecart.errors import SettingsError
from pulsecart.suggest import closest, nearest

__all__ = ["NAME", "Source", "Sources", "SourcesFile", "Subject"]

NAME = re.compile(r"[a-z0-9_-]{1,64}")
"""The name of a source."""

POLL_SECONDS = 1.0
"""How often the file is read. A change counts when it has been read twice, so after two to three seconds."""

MAX_FILE_BYTES = 4_194_304

Subject = tuple[str, str, str]
"""An issuer, the name of a claim (`sub` or `email`), and its value."""

_FIELDS = ("keys", "subjects", "events", "rate")

_log = logging.getLogger("pulsecart.access")


class _Credit:
    """A token bucket: it gains `rate` a second, up to what it gains in one."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._most = self._left = max(rate, 1.0)  # else a rate below one a second would never have enough for one
        self._at = time.monotonic()

    def charge(self, count: int) -> float:
        now = time.monotonic()
        self._left = min(self._most, self._left + (now - self._at) * self._rate)
        self._at = now
        if self._left < 1:
            return (1 - self._left) / self._rate
        self._left -= count
        return 0.0


@frozen(eq=False)
class Source:
    """An authenticated caller. It is also the `pulsecart.ports.Caller` for `Producer.prepare`."""

    name: str
    _events: frozenset[str] | None = field(default=None, repr=False)
    _credit: _Credit | None = field(default=None, repr=False)

    def may_send(self, event_type: str) -> bool:
        """Return whether the source may send events of this type."""
        return self._events is None or event_type in self._events

    def charge(self, count: int = 1) -> float:
        """Charge `count` events, and return 0. Over the rate charge nothing, and return the seconds to wait for credit.

        Credit for one event is enough for any number, which is charged in full: later events then wait longer.
        """
        return 0.0 if self._credit is None else self._credit.charge(count)


@frozen(eq=False)
class Sources:
    """The sources of one version of the file. A request uses one version for all that it looks up."""

    by_name: Mapping[str, Source]
    _by_digest: Mapping[bytes, Source] = field(repr=False)
    _by_subject: Mapping[Subject, Source] = field(repr=False)
    tables: Mapping[str, Any] = field(repr=False)
    """The tables of the file, for comparison."""

    def with_key(self, key: bytes) -> Source | None:
        """Return the source that has this key.

        This does not reveal a key by the time it takes: what is compared is the hash, and a caller cannot choose a key
        by the bytes of its hash, let alone find one whose hash begins like a stored one, but for guessing.
        """
        return self._by_digest.get(digest(key))

    def with_subject(self, subjects: Iterable[Subject]) -> Source | None:
        """Return the source of the first of these subjects that has one."""
        for subject in subjects:  # a generator would take six times as long
            if source := self._by_subject.get(subject):
                return source
        return None

    def changes_from(self, before: "Sources") -> str:
        """Return which sources were added, removed and changed, in words."""
        old, new = before.tables, self.tables
        changes = {
            "added": [name for name in new if name not in old],
            "removed": [name for name in old if name not in new],
            "changed": [name for name in new if name in old and new[name] != old[name]],
        }
        return "; ".join(f"{verb} {', '.join(names)}" for verb, names in changes.items() if names)


class SourcesFile:
    """The sources of a file, kept up to date while `watched`. A later version that cannot be read is not used.

    `event_types` are those of the catalog. Raises `SettingsError` if the file cannot be read or is wrong.
    """

    def __init__(self, path: str, event_types: Collection[str]) -> None:
        self._path = path
        self._event_types = event_types
        content = _read(path)
        self._seen: bytes | str = content
        self.current = parse(content, path, event_types)
        """The sources in force. The object is replaced, not changed."""

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Read the file again during the block, in a thread."""
        watching = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching

    async def _watch(self) -> None:
        # Reading a small file costs less than knowing all the ways in which one can be replaced. Kubernetes swaps a
        # link two directories above it, of which neither the file's own time nor a watch of the file tells anything.
        last = self._seen
        while True:
            await asyncio.sleep(POLL_SECONDS)
            try:
                found: bytes | str = await asyncio.to_thread(_read, self._path)
            except SettingsError as error:
                found = str(error)
            # An editor may be writing the file: it counts when it has been the same for a while.
            if found == last and found != self._seen:
                self._seen = found
                self._use(found)
            last = found

    def _use(self, found: bytes | str) -> None:
        """Use what has been read, or log the reason why it cannot be used."""
        if isinstance(found, bytes):
            try:
                sources = parse(found, self._path, self._event_types)
            except SettingsError as error:
                found = "; ".join(error.problems)
        if isinstance(found, str):
            _log.error("The last good version of the sources stays in force: %s", found)
            return
        _log.info("The sources have been read again: %s", sources.changes_from(self.current) or "no changes")
        self.current = sources


def _read(path: str) -> bytes:
    """Return what is in the file. Raises `SettingsError`."""
    try:
        if not stat.S_ISREG(Path(path).stat().st_mode):  # reading a pipe would wait forever
            raise SettingsError([f"{path}: is not a regular file"])
        with Path(path).open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: the path contains a null character
        reason = getattr(error, "strerror", None) or str(error)
        raise SettingsError([f"{path}: the sources file cannot be read: {reason}"]) from None
    if len(content) > MAX_FILE_BYTES:
        raise SettingsError([f"{path}: the sources file is larger than {MAX_FILE_BYTES:,} bytes"])
    return content


def parse(content: bytes, path: str, event_types: Collection[str]) -> Sources:
    """Return the sources of a file. Raises `SettingsError` with all problems, each with file, line and reason."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise SettingsError([f"{path}, line {line}: is not UTF-8"]) from None
    try:
        tables = tomllib.loads(text)
    except RecursionError:
        raise SettingsError([f"{path}, line 1: is nested too deeply"]) from None
    except ValueError as error:
        # tomllib's message ends with the place: "(at line 1, column 2)" or "(at end of document)".
        reason, _, place = str(error).partition(" (at ")
        found = re.match(r"line (\d+)", place)
        line = int(found[1]) if found else text.count("\n") + 1
        raise SettingsError([f"{path}, line {line}: is not TOML: {reason}"]) from None
    reader = _Reader(text, path, event_types)
    by_name = {name: reader.source(name, table) for name, table in tables.items()}
    if reader.problems:
        raise SettingsError(reader.problems)
    return Sources(
        by_name=by_name,
        by_digest={key: by_name[name] for key, name in reader.digests.items()},
        by_subject={subject: by_name[name] for subject, name in reader.subjects.items()},
        tables=tables,
    )


class _Reader:
    """Checks tables, and notes what is wrong. A message repeats no key: one that is not hashed would be logged."""

    def __init__(self, text: str, path: str, event_types: Collection[str]) -> None:
        self._text = text
        self._path = path
        self._event_types = event_types
        self.problems: list[str] = []
        self.digests: dict[bytes, str] = {}
        self.subjects: dict[Subject, str] = {}

    def source(self, name: str, table: Any) -> Source:
        if not NAME.fullmatch(name):
            self._reject(f"[{name[:100]}] is not a name: use 1 to 64 of a-z, 0-9, _ and -", name)
        if not isinstance(table, dict):
            self._reject(f"{name[:100]} must be in a table, such as [checkout]", name)
            return Source(name)
        for unknown in table.keys() - set(_FIELDS):
            hint = nearest(unknown, _FIELDS) or f"; known are {', '.join(_FIELDS)}"
            self._reject(f"[{name}] {unknown[:100]} is not a known field{hint}", name, unknown)
        for place, key in self._items(name, table, "keys"):
            self._key(name, place, key)
        for place, subject in self._items(name, table, "subjects"):
            self._subject(name, place, subject)
        events: set[str] = set()
        for place, pattern in self._items(name, table, "events"):
            events |= self._matching(name, place, pattern)
        return Source(name, frozenset(events) if "events" in table else None, self._credit(name, table))

    def _items(self, name: str, table: dict[str, Any], field: str) -> list[tuple[str, Any]]:
        values = table.get(field, [])
        if not isinstance(values, list):
            self._reject(f"[{name}] {field} must be an array", name, field)
            return []
        return [(f"[{name}] {field}[{index}]", value) for index, value in enumerate(values)]

    def _key(self, name: str, place: str, key: Any) -> None:
        line = (name, "keys", str(key))
        if not isinstance(key, str) or not re.fullmatch(HASH + "[0-9a-fA-F]{64}", key):
            hint = " It looks like a key that is not hashed: replace it, since it has been in a file." * (
                isinstance(key, str) and key.startswith("pck_")
            )
            expected = f'must be "{HASH}" and the 64 hex digits of the SHA-256 of a key (pulsecart keys new)'
            self._reject(f"{place} {expected}.{hint}", *line)
            return
        other = self.digests.setdefault(bytes.fromhex(key.removeprefix(HASH)), name)
        if other != name:
            self._reject(f"{place} is a key of [{other}] too: each source needs its own", *line)

    def _subject(self, name: str, place: str, subject: Any) -> None:
        line = (name, "subjects", *map(str, subject.values() if isinstance(subject, dict) else [subject]))
        kinds = set(subject) - {"iss"} if isinstance(subject, dict) else set()
        if kinds not in ({"sub"}, {"email"}) or not all(isinstance(value, str) and value for value in subject.values()):
            self._reject(f'{place} must be {{iss = "…", sub = "…"}} or {{iss = "…", email = "…"}}', *line)
            return
        (kind,) = kinds
        if "iss" not in subject:
            self._reject(f"{place} needs the issuer of the token, iss", *line)
            return
        other = self.subjects.setdefault((subject["iss"], kind, subject[kind]), name)
        if other != name:
            self._reject(f"{place} is a subject of [{other}] too: it can be only one source", *line)

    def _matching(self, name: str, place: str, pattern: Any) -> set[str]:
        if not isinstance(pattern, str):
            self._reject(f"{place} must be a string", name, "events", str(pattern))
            return set()
        parts = re.split(r"\*+", pattern)
        matches = re.compile(".*".join(map(re.escape, parts)), re.DOTALL).fullmatch
        found = {event_type for event_type in self._event_types if matches(event_type)}
        if not found:
            near = closest(pattern, self._event_types)
            hint = f"; did you mean {near!r}?" if near else f"; the types are {', '.join(self._event_types)}"
            self._reject(f"{place} {pattern[:100]!r} matches no event type{hint}", name, "events", pattern)
        return found

    def _credit(self, name: str, table: dict[str, Any]) -> _Credit | None:
        if "rate" not in table:
            return None
        rate = table["rate"]
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0.001 <= rate <= 1_000_000_000:
            self._reject(
                f"[{name}] rate must be a number of events a second, from 0.001 to 1,000,000,000", name, "rate"
            )
            return None
        return _Credit(rate)

    def _reject(self, problem: str, *words: str) -> None:
        """Note a problem, with the line where these words are found one after the other."""
        name, *others = words
        header = re.search(rf"^[ \t]*\[*[ \t]*[\"']?{re.escape(name)}[\"']?[ \t]*[\].=]", self._text, re.MULTILINE)
        at = header.start() if header else 0
        for word in others:
            found = re.compile(rf"(?<![\w-]){re.escape(word)}(?![\w-])").search(self._text, at)
            at = found.start() if found else at
        line = self._text.count("\n", 0, at) + 1
        self.problems.append(f"{self._path}, line {line}: {problem}")
