"""What pages take from the code: a line `<!-- generated: NAME ARGUMENT -->` stands for the Markdown of a function here.

Links to files outside `docs/` become links to the repository. Both work in the pages as they are, too.
"""

import inspect
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import attrs
import click
import msgspec
from docstrings import NAMES, home, path
from opentelemetry.trace import INVALID_SPAN
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

from pulsecart.cli import main
from pulsecart.cli._settings import SettingsCommand
from pulsecart.events import load_catalog
from pulsecart.events.schema import body_schema, example, json_line
from pulsecart.http.docs.openapi import openapi
from pulsecart.http.docs.operations import OPERATIONS, PROBLEMS
from pulsecart.ports import Load
from pulsecart.serve.settings import Settings
from pulsecart.serve.values import option
from pulsecart.telemetry import metrics as measured

DOCS = Path(__file__).parents[1]
ROOT = DOCS.parent
REPOSITORY = "https://github.com/pulsecart/pulsecart/blob/main"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    """Give the lines of a table."""
    head = tuple(head)
    for row in (head, ("---",) * len(head), *rows):
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|').replace(chr(10), ' ') for cell in row)} |"
    yield ""


def _code(language: str, text: str) -> str:
    return f"```{language}\n{text.rstrip()}\n```\n"


def _json(value: Any) -> str:
    return _code("json", json.dumps(value, indent=2, ensure_ascii=False))


_WORD = re.compile(r"`[^`]*`|(?<!\S)--[a-z-]+|\b[A-Z]+_[A-Z_]+(?:=\w+)?")


def _text(plain: str) -> str:
    """Return a help text as Markdown: names of options and variables become code."""
    return _WORD.sub(lambda match: f"`{match[0].strip('`')}`", plain.replace("*", r"\*"))


def settings() -> Iterator[str]:
    """Give the settings, in the groups of `pulsecart serve --help`."""
    fields: tuple[attrs.Attribute[Any], ...] = attrs.fields(Settings)
    for group, members in groupby(fields, lambda setting: setting.metadata["group"]):
        yield f"## {group}\n"
        for setting in members:
            known = setting.metadata
            variable = known["variable"]
            yield f"[`{variable}`]{{#{variable.lower().replace('_', '-')}}}, `{option(setting)} {known['metavar']}`"
            yield f": {_text(known['help'])}\n\n  Default: {_text(known['default'])}\n"


def problems() -> Iterator[str]:
    """Give the problem types: a table of all, and each with its cases and examples."""
    cases = sorted(PROBLEMS.values(), key=lambda case: (case[1].status, case[1].type))
    yield from _table(
        ("status and type", "when"),
        (
            (f"{problem.status} [`{problem.type}`](#{problem.type})", f"{meaning}{' Retryable.' * problem.retryable}")
            for meaning, problem in cases
        ),
    )
    for type_, members in groupby(sorted(cases, key=lambda case: case[1].type), lambda case: case[1].type):
        yield f"## {type_}\n"
        for meaning, problem in members:
            yield f"**{problem.status}**: {meaning}\n"
            if problem.headers:
                yield f"Headers: {', '.join(f'`{name}: {value}`' for name, value in problem.headers.items())}\n"
            yield _code("json", json.dumps(problem.document(), indent=2, default=lambda moment: moment.isoformat()))


class _Full:
    """Holds something of everything, so that every metric has a value."""

    def load(self) -> Load:
        return Load(messages=1, connections=1)


def metrics() -> Iterator[str]:
    """Give the metrics, with the attributes that they have after one failure of everything."""
    full = _Full()
    measured.watch(full)
    measured.event_ended("order.placed", "failed", "UNAVAILABLE", "checkout")
    measured.send_ended("topic", 1, ("host", 443), 0.1, "UNAVAILABLE", INVALID_SPAN)
    measured.batch_ended(1)
    keys: Mapping[str, tuple[Any, ...]] = {
        "http.server.request.duration": ("POST", "/events/ingest", "http", 500),
        "messaging.client.operation.duration": ("topic", ("host", 443), "UNAVAILABLE"),
    }
    found = [
        (each.name, "histogram", "s", each.description, each.attributes(*keys[each.name]))
        for each in measured.DURATIONS
    ] + [
        (each.name, each.kind, each.unit, each.description, _keys(attributes for _, attributes, _ in each.read()))
        for each in measured.OBSERVED
    ]
    for name, kind, unit, description, attributes in found:
        suffix = {"counter": "_total", "histogram": "_seconds"}.get(kind, "_seconds" if unit == "s" else "")
        yield f"`{name}`"
        yield f": {description}\n\n  A {kind} in `{unit}`. For Prometheus: `{name.replace('.', '_')}{suffix}`.\n"
        if attributes:
            yield f"  Attributes: {', '.join(f'`{attribute}`' for attribute in attributes)}.\n"


def _keys(attributes: Iterable[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for each in attributes for name in each))


def commands() -> Iterator[str]:
    """Give the commands, from their parsers."""
    yield from _command(main, click.Context(main, info_name="pulsecart"), 1)


def _command(command: click.Command, context: click.Context, level: int) -> Iterator[str]:
    children = command.list_commands(context) if isinstance(command, click.Group) else []
    if level > 1:
        yield f"{'#' * level} {context.command_path}\n"
        yield from _help(inspect.cleandoc(command.help or ""))
    if not children:
        pieces = " ".join(piece for piece in command.collect_usage_pieces(context))
        yield _code("text", f"{context.command_path} {pieces}")
    if isinstance(command, SettingsCommand):
        yield "The options are the [settings](settings.md).\n"
    elif level > 1:
        for parameter in filter(lambda each: isinstance(each, click.Option), command.params):
            if record := parameter.get_help_record(context):
                yield f"`{record[0]}`\n: {_text(record[1])}\n"
    for name in children:
        assert isinstance(command, click.Group)
        child = command.get_command(context, name)
        assert child is not None
        yield from _command(child, click.Context(child, info_name=name, parent=context), level + 1)


def _help(text: str) -> Iterator[str]:
    """Give a help text's paragraphs; click leaves those that begin with a backspace character as they are."""
    for paragraph in text.split("\n\n"):
        kept = paragraph.removeprefix("\b\n")
        yield f"{_text(paragraph)}\n" if kept == paragraph else _code("text", kept)


def http() -> Iterator[str]:
    """Give the routes, from the OpenAPI document of a service that has all of them and authenticates callers."""
    document = openapi(load_catalog(), {each.path for each in OPERATIONS}, authenticated=True)
    described = [
        (operation["tags"][0], route, method, operation)
        for route, operations in document["paths"].items()
        for method, operation in operations.items()
    ]
    for tag, operations in groupby(described, lambda each: each[0]):
        yield f"## {tag.capitalize()}\n"
        for _, route, method, operation in operations:
            yield from _operation(f"{method.upper()} {route}", operation)


def _operation(name: str, operation: Mapping[str, Any]) -> Iterator[str]:
    yield f"### `{name}`\n"
    yield f"{operation['summary']}. {operation.get('description', '')}\n"
    if "security" in operation:
        yield "Needs credentials, unless `PULSECART_AUTH` is `none`.\n"
    if "parameters" in operation:
        yield from _table(
            ("parameter", "in", "meaning"),
            ((f"`{each['name']}`", each["in"], _meaning(each)) for each in operation["parameters"]),
        )
    for media_type, body in operation.get("requestBody", {}).get("content", {}).items():
        shown = next(iter(body["examples"].values()))["value"]
        yield f"Request, `{media_type}`:\n"
        yield _code("text", shown) if isinstance(shown, str) else _code("json", json_line_indented(shown))
    failures = []
    for status, answer in operation["responses"].items():
        content: Any = next(iter(answer.get("content", {}).values()), {})
        if "examples" in content:
            failures += [(status, type_) for type_ in content["schema"]["properties"]["type"]["enum"]]
            continue
        yield f"Answer, **{status}**: {answer['description']}\n"
        if "example" in content:
            yield _json(content["example"])
    listed = (f"{status} [`{type_}`](errors.md#{type_})" for status, type_ in failures)
    yield f"Problems: {', '.join(listed)}.\n"


def _meaning(parameter: Mapping[str, Any]) -> str:
    schema = parameter["schema"]
    allowed = ", ".join(f"`{value}`" for value in schema.get("enum", ()))
    numbers = f"{schema['minimum']:,} to {schema['maximum']:,}" if "minimum" in schema else ""
    shown = f"Example: `{parameter['example']}`" if "example" in parameter else ""
    return " ".join(filter(None, (parameter.get("description", ""), allowed, numbers, shown)))


def json_line_indented(value: Any) -> str:
    """Return JSON in which numbers keep their decimals."""
    return str(msgspec.json.format(json_line(value).encode(), indent=2).decode())


def event_types() -> Iterator[str]:
    """Give the built-in event types."""
    catalog = load_catalog()
    yield from _table(
        ("event type", "class", "own field", "topic"),
        (
            (
                f"[`{cls.event_type}`](#{cls.event_type.replace('.', '')})",
                f"`{cls.__name__}`",
                ", ".join(f"`{name}`" for name in _own(cls)),
                f"`{cls.topic}`",
            )
            for cls in catalog
        ),
    )
    for cls in catalog:
        yield f"### {cls.event_type}\n"
        yield f"{inspect.getdoc(cls)} Topic `{cls.topic}`, class {{py:class}}`~{path(cls)}`.\n"
        members = body_schema(cls)["properties"]["payload"].get("properties", {})
        yield from _table(
            ("field", "meaning"),
            [(f"`{name}`", attrs.fields_dict(cls)[name].metadata["description"]) for name in _own(cls)]
            + [(f"`payload.{name}`", f"{known['description']} Not checked.") for name, known in members.items()],
        )
        yield _code("json", json_line_indented(example(cls)))


def _own(cls: type) -> list[str]:
    common = set(attrs.fields_dict(cls.__mro__[1]))
    return [name for name in attrs.fields_dict(cls) if name not in common]


def api(argument: str) -> Iterator[str]:
    """Give autodoc's directives for the public names of a module: `MODULE`, or `MODULE PART` for those defined in PART.

    What another page describes is only linked.
    """
    module, *parts = argument.split()
    for found in NAMES[module].values():
        defined = found.__module__ if inspect.isclass(found) or inspect.isroutine(found) else path(found)
        if home(found) == module and (not parts or defined.startswith(parts[0])):
            yield _code("{eval-rst}", "\n".join(_directive(found)))
    if not parts:
        yield from elsewhere(module)


def _directive(found: Any) -> Iterator[str]:
    if not inspect.isclass(found):
        is_function = inspect.isroutine(found)
        yield f".. auto{'function' if is_function else 'data'}:: {path(found)}"
        yield "" if is_function else "   :no-value:"
    elif issubclass(found, BaseException):
        yield f".. autoexception:: {path(found)}"
        yield "   :show-inheritance:"
    else:
        yield f".. autoclass:: {path(found)}"


def elsewhere(module: str) -> Iterator[str]:
    """Give links to the public names of a module that other pages describe."""
    links = [f"{{py:obj}}`~{path(found)}`" for found in NAMES[module].values() if home(found) != module]
    if links:
        yield f"Described on other pages: {', '.join(links)}.\n"


def figures(argument: str) -> Iterator[str]:
    """Give medians of a table of the benchmark: `SECTION: COLUMNS` or `SECTION: COLUMNS | ROW | ROW`."""
    wanted, *names = argument.split(" | ")
    section, _, columns = wanted.rpartition(": ")
    text = (ROOT / "benchmarks/results.md").read_text()
    part = text.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    head, _, *rows = [
        line.removeprefix("|").removesuffix("|").split("|") for line in part.splitlines() if line[:1] == "|"
    ]
    titles = [title.strip() or ("result" if index else "") for index, title in enumerate(head)]
    indexes = [0, *(titles.index(column) for column in columns.split("; "))]
    table = [
        [re.sub(r" \([^()]*\)$", "", row[index].strip()) if index else row[0].strip() for index in indexes]
        for row in rows
    ]
    found = [row for row in table if not names or row[0] in names]
    if len(found) < len(names):
        raise ExtensionError(f"benchmarks/results.md lacks a row of {names} in {section!r}")
    yield from _table((titles[index] for index in indexes), found)


def pages(argument: str) -> Iterator[str]:
    """Give a table of contents: `CAPTION: PATTERN PATTERN`, with the pages that there are."""
    caption, _, patterns = argument.partition(": ")
    found = [page.relative_to(DOCS) for pattern in patterns.split() for page in sorted(DOCS.glob(f"{pattern}.md"))]
    names = "\n".join(str(page.with_suffix("")) for page in found)
    yield _code("{toctree}", f":maxdepth: 1\n:caption: {caption}\n\n{names}") if names else ""


GENERATED: Mapping[str, Callable[..., Iterator[str]]] = {
    "api": api,
    "commands": commands,
    "elsewhere": elsewhere,
    "event-types": event_types,
    "figures": figures,
    "http": http,
    "metrics": metrics,
    "pages": pages,
    "problems": problems,
    "settings": settings,
}

_MARK = re.compile(r"^<!-- generated: (\S+)(?: (.*))? -->$", re.MULTILINE)
_LINK = re.compile(r"\]\((\.\.?/[^)#\s]+)")


def complete(_app: Sphinx, name: str, source: list[str]) -> None:
    """Complete the source of a page."""
    folder = (DOCS / name).parent

    def generate(match: re.Match[str]) -> str:
        return "\n".join(GENERATED[match[1]](*filter(None, [match[2]])))

    def link(match: re.Match[str]) -> str:
        target = (folder / match[1]).resolve()
        if target.is_relative_to(DOCS):
            return match[0]
        if not target.exists():
            raise ExtensionError(f"{name} links to {match[1]}, which does not exist")
        return f"]({REPOSITORY}/{target.relative_to(ROOT)}"

    source[0] = _MARK.sub(generate, _LINK.sub(link, source[0]))


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.connect("source-read", complete)
    return {"parallel_read_safe": True}
