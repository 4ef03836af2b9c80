"""`pulsecart schema`."""

import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click
import msgspec

from pulsecart.cli._settings import usage_error
from pulsecart.errors import DefinitionError, SettingsError
from pulsecart.events import Catalog, load_catalog
from pulsecart.events.evolution import CONSUMERS, PRODUCERS, STRICT_CONSUMERS, Change, compare
from pulsecart.events.lazy import decode_value
from pulsecart.events.schema import body_schema, json_text
from pulsecart.serve.environment import load_setting

__all__ = ["command"]

EXIT_BREAKING = 1
EXIT_NOTHING_TO_COMPARE = 2

_DIR = click.Path(file_okay=False, path_type=Path)


@click.group("schema")
def command() -> None:
    """Export the schemas of the event types, and check what a change of them breaks.

    The catalog is that of the settings PULSECART_EVENTS and PULSECART_COMMERCE_EVENTS, in the environment or in a file
    .env in the working directory.
    """


@command.command("export")
@click.option(
    "--format",
    "form",
    type=click.Choice(["jsonschema", "openapi", "asyncapi"]),
    default="jsonschema",
    show_default=True,
    help="JSON Schemas of the bodies, or one document about the service or its topics.",
)
@click.option("--output", type=_DIR, help="The folder to write to, in place of standard output.")
def export(form: str, output: Path | None) -> None:
    """Write JSON Schema 2020-12 of each event type, or OpenAPI 3.1 or AsyncAPI 3.0.

    In the folder, the schemas are {event_type}.json, the documents openapi.json and asyncapi.json. Files of event types
    that are gone are not removed.
    """
    catalog = _catalog()
    if form == "jsonschema":
        files = {cls.event_type: body_schema(cls) for cls in catalog}
        document: Any = files
    else:
        document = _openapi(catalog) if form == "openapi" else _asyncapi(catalog)
        files = {form: document}
    if output is None:
        click.echo(json_text(document))
        return
    try:
        output.mkdir(parents=True, exist_ok=True)
        for name, each in files.items():
            (output / f"{quote(name, safe='')}.json").write_bytes(json_text(each) + b"\n")
    except OSError as error:
        raise click.ClickException(f"{error.filename}: {error.strerror}") from None
    click.echo(f"wrote {len(files)} file{'s' * (len(files) > 1)} to {output}")


@command.command("check")
@click.option(
    "--against",
    required=True,
    metavar="DIR|git:REV",
    help="The folder of an earlier export, or an earlier revision of the repository in the working directory.",
)
def check(against: str) -> None:
    """Say what breaks for producers and consumers of an earlier version.

    Producers still send the bodies of before; consumers still read with the classes of before. Consumers are tolerant
    if they ignore unknown fields, as Catalog.read does with tolerant=True, and strict otherwise.

    The exit code is 1 if bodies of before are rejected or tolerant consumers cannot read, 2 if there is nothing to
    compare, else 0.
    """
    now = {cls.event_type: body_schema(cls) for cls in _catalog()}
    if against.startswith("git:"):
        with _exported(against.removeprefix("git:")) as folder:
            before = _schemas(folder)
    else:
        before = _schemas(Path(against))
    if not before:
        raise _NothingToCompare(
            f"{against} has no schema of an event type; make one with: pulsecart schema export --output DIR"
        )
    changes = compare(before, now)
    for change in changes:
        click.echo(_line(change))
    broken = {who for change in changes for who in change.breaks}
    click.echo(f"producers: {_verdict(PRODUCERS in broken)}")
    click.echo(
        f"consumers: {_verdict(CONSUMERS in broken)} if tolerant, "
        f"{_verdict(bool(broken & {CONSUMERS, STRICT_CONSUMERS}))} if strict"
    )
    if broken & {PRODUCERS, CONSUMERS}:
        sys.exit(EXIT_BREAKING)


def _line(change: Change) -> str:
    breaks = f"breaks {' and '.join(sorted(change.breaks))}" if change.breaks else "breaks nobody"
    return f"{change.event_type}{f' {change.pointer}' if change.pointer else ''}: {change.reason} ({breaks})"


def _verdict(breaks: bool) -> str:  # noqa: FBT001 (the one thing it is about)
    return "breaking" if breaks else "compatible"


class _NothingToCompare(click.ClickException):
    """An error that must not look like a verdict."""

    exit_code = EXIT_NOTHING_TO_COMPARE


def _catalog() -> Catalog:
    sys.path.insert(0, str(Path.cwd()))  # for modules of PULSECART_EVENTS, as with python -m
    try:
        return load_catalog(load_setting("events"), commerce=load_setting("commerce_events") == "true")
    except SettingsError as error:
        raise usage_error(error) from None
    except DefinitionError as error:
        raise _NothingToCompare(str(error)) from None


def _openapi(catalog: Catalog) -> Any:
    from starlette.routing import Route

    from pulsecart.http.docs import openapi
    from pulsecart.serve.settings import Settings
    from pulsecart.serve.wiring import create_app

    routes = create_app(Settings(transport="memory")).routes
    paths = [route.path for route in routes if isinstance(route, Route)]
    return openapi(catalog, paths, authenticated=False)


def _asyncapi(catalog: Catalog) -> Any:
    from pulsecart.http.docs import asyncapi

    return asyncapi(catalog)


def _schemas(folder: Path) -> dict[str, Mapping[str, Any]]:
    """Return the schemas in a folder by their event type. Other files in it are passed over."""
    found = {}
    try:
        for path in sorted(folder.iterdir()):
            if path.suffix == ".json":
                match schema := _json(path):
                    case {"properties": {"event_type": {"const": str(event_type)}}}:
                        found[event_type] = schema
    except OSError as error:
        raise _NothingToCompare(f"{error.filename}: {error.strerror}") from None
    return found


def _json(path: Path) -> Any:
    try:
        return decode_value(path.read_bytes())
    except (ValueError, msgspec.DecodeError) as error:  # the oldest msgspec's is no ValueError
        raise _NothingToCompare(f"{path} is not JSON: {error}") from None


@contextmanager
def _exported(revision: str) -> Iterator[Path]:
    """Export the schemas of a revision of the repository in the working directory, to a folder for the block."""
    top = Path(_git("rev-parse", "--show-toplevel"))
    tree = _git("rev-parse", "--verify", f"{revision}^{{tree}}")
    with tempfile.TemporaryDirectory() as folder:
        archive, checkout, exported = Path(folder, "tar"), Path(folder, "checkout"), Path(folder, "schemas")
        _git("-C", str(top), "archive", f"--output={archive}", "--format=tar", tree)
        with tarfile.open(archive) as tar:
            tar.extractall(checkout, filter="data")
        # Whatever Python imports from the repository, also because it is installed from there, comes from the revision.
        inside = [Path(entry).resolve() for entry in ("", "src", *sys.path)]
        paths = [checkout / path.relative_to(top) for path in inside if path.is_relative_to(top)]
        run = subprocess.run(  # noqa: S603 (pulsecart itself)
            [sys.executable, "-m", "pulsecart", "schema", "export", "--output", str(exported)],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, filter(Path.is_dir, paths)))},
            capture_output=True,
            text=True,
            check=False,
        )
        if run.returncode:
            raise _NothingToCompare(f"the catalog of {revision} cannot be loaded:\n{run.stderr.strip()}")
        yield exported


def _git(*arguments: str) -> str:
    try:
        run = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True)  # noqa: S603, S607
    except FileNotFoundError:
        raise _NothingToCompare("git is not installed") from None
    except subprocess.CalledProcessError as error:
        raise _NothingToCompare(f"git {arguments[0]}: {error.stderr.strip()}") from None
    return run.stdout.strip()
