"""`pulsecart schema export` and `pulsecart schema check`."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from pulsecart import load_catalog
from pulsecart.cli import main
from tests.serving import run

OWN = """
from attrs import frozen
from pulsecart import Event, event

@event("review.written", topic="myshop.reviews")
@frozen(kw_only=True)
class ReviewWritten(Event):
    stars: {stars}
{more}"""


@pytest.fixture(autouse=True)
def own_events(monkeypatch):
    """Serve only the event types of a module of this test, and forget it afterwards."""
    before, path = set(sys.modules), list(sys.path)
    monkeypatch.setenv("PULSECART_EVENTS", "my_events")
    monkeypatch.setenv("PULSECART_COMMERCE_EVENTS", "false")
    yield
    sys.path[:] = path
    for name in set(sys.modules) - before:
        del sys.modules[name]


_numbers = itertools.count()


def write(stars: str = "int", more: str = "", name: str = "", folder: Path | None = None) -> None:
    """Write a module with the event class, which is the one that is served from now on."""
    # Classes stay declared, so a process has a new module for each version of the class.
    os.environ["PULSECART_EVENTS"] = name = name or f"my_events_{next(_numbers)}"
    text = OWN.format(stars=stars, more=f"    {more}\n" if more else "")
    ((folder or Path.cwd()) / f"{name}.py").write_text(text)


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["schema", *arguments], catch_exceptions=False)


def exported(folder: str = "old") -> Path:
    assert call("export", "--output", folder).exit_code == 0
    return Path.cwd() / folder


def test_export_writes_a_schema_of_each_event_type(monkeypatch):
    """The folder has {event_type}.json for each type, as the service serves it."""
    monkeypatch.delenv("PULSECART_EVENTS")
    monkeypatch.delenv("PULSECART_COMMERCE_EVENTS")
    result = call("export", "--format", "jsonschema", "--output", "a/b")
    assert result.output == "wrote 8 files to a/b\n"
    assert {path.name for path in Path("a/b").iterdir()} == {f"{name}.json" for name in load_catalog().event_types}
    for path in Path("a/b").iterdir():
        Draft202012Validator.check_schema(json.loads(path.read_text()))


def test_export_prints_without_a_folder():
    """Standard output has the schemas by event type, or a document."""
    write()
    assert json.loads(call("export").output)["review.written"]["title"] == "ReviewWritten"
    assert json.loads(call("export", "--format", "asyncapi").output)["channels"].keys() == {"myshop.reviews"}


@pytest.mark.parametrize("form", ["openapi", "asyncapi"])
def test_export_writes_one_document(form):
    """OpenAPI and AsyncAPI are one file each, with the types of the catalog."""
    write()
    assert call("export", "--format", form, "--output", "docs").output == "wrote 1 file to docs\n"
    document = json.loads(Path("docs", f"{form}.json").read_text())
    assert document["components"]["schemas"]["ReviewWritten"]["properties"]["stars"]["type"] == "integer"
    if form == "openapi":
        OpenAPIV31SpecValidator(document).validate()
        assert {"/events/ingest", "/schemas/{event_type}", "/dev/messages"} <= document["paths"].keys()


def test_export_of_a_type_with_a_slash_stays_in_the_folder():
    """A file name is quoted."""
    write(name="my_odd_events")
    module = Path("my_odd_events.py")
    module.write_text(module.read_text().replace("review.written", "../review"))
    exported("in")
    assert [path.name for path in Path("in").iterdir()] == ["..%2Freview.json"]
    assert call("check", "--against", "in").exit_code == 0


def test_export_to_a_file_is_an_error():
    """A folder that cannot be written to is named."""
    write()
    Path("taken").write_text("")
    result = call("export", "--output", "taken/below")
    assert result.exit_code == 1
    assert "taken" in result.output


COMPATIBLE = "producers: compatible\nconsumers: compatible if tolerant, compatible if strict\n"


def test_check_of_no_change():
    """Without a change everything is compatible, and nothing else is printed."""
    write()
    exported()
    result = call("check", "--against", "old")
    assert (result.exit_code, result.output) == (0, COMPATIBLE)


def test_check_of_an_added_optional_field():
    """An optional field that is added breaks strict consumers only, and is no failure."""
    write()
    exported()
    write(more='title: str = ""')
    result = call("check", "--against", "old")
    assert result.exit_code == 0
    assert result.output == (
        "review.written /title: is added (breaks strict consumers)\n"
        "producers: compatible\n"
        "consumers: compatible if tolerant, breaking if strict\n"
    )


@pytest.mark.parametrize(
    ("stars", "more", "lines"),
    [
        (
            "int",
            "title: str",
            [
                "review.written /title: is added (breaks strict consumers)",
                "review.written /title: is added as a required field (breaks producers)",
                "producers: breaking",
                "consumers: compatible if tolerant, breaking if strict",
            ],
        ),
        (
            "float",
            "",
            [
                "review.written /stars: was integer, is number (breaks consumers)",
                "producers: compatible",
                "consumers: breaking if tolerant, breaking if strict",
            ],
        ),
        (
            "str",
            "",
            [
                "review.written /stars: was integer, is string (breaks consumers and producers)",
                "producers: breaking",
                "consumers: breaking if tolerant, breaking if strict",
            ],
        ),
    ],
)
def test_check_of_a_breaking_change(stars, more, lines):
    """What rejects old bodies or tolerant consumers cannot read is exit 1, with the reason for each field."""
    write()
    exported()
    write(stars, more)
    result = call("check", "--against", "old")
    assert (result.exit_code, result.output.splitlines()) == (1, lines)


def test_check_of_new_and_removed_types():
    """A type that is removed breaks its producers; one that is new breaks nobody."""
    write()
    folder = exported()
    (folder / "old.json").write_text(
        (folder / "review.written.json").read_text().replace("review.written", "review.deleted")
    )
    (folder / "review.written.json").unlink()
    (folder / "notes.txt").write_text("not JSON")
    (folder / "openapi.json").write_text("{}")
    result = call("check", "--against", "old")
    assert result.exit_code == 1
    assert "review.deleted: is removed: its events are rejected (breaks producers)" in result.output
    assert "review.written: is new, on the topic myshop.reviews (breaks nobody)" in result.output


def test_check_with_nothing_to_compare():
    """A folder that is missing, empty, or has a broken file, and an option that is missing, are exit 2."""
    write()
    Path("empty").mkdir()
    Path("broken").mkdir()
    Path("broken/a.json").write_text("{")
    for arguments, message in [
        (["--against", "nowhere"], "nowhere: No such file or directory"),
        (["--against", "empty"], "empty has no schema of an event type; make one with: pulsecart schema export"),
        (["--against", "broken"], "broken/a.json is not JSON"),
        ([], "--against"),
    ]:
        result = call("check", *arguments)
        assert result.exit_code == 2
        assert message in result.output


@pytest.mark.parametrize("command", [["export"], ["check", "--against", "old"]])
def test_catalog_that_does_not_work_is_no_verdict(command, monkeypatch):
    """A module that is missing and a setting that is wrong are exit 2."""
    result = call(*command)
    assert result.exit_code == 2
    assert "the module 'my_events' (PULSECART_EVENTS) does not import" in result.output
    monkeypatch.setenv("PULSECART_COMMERCE_EVENTS", "no")
    result = call(*command)
    assert result.exit_code == 2
    assert "PULSECART_COMMERCE_EVENTS (--commerce-events) must be true or false" in result.output


def git(*arguments: str) -> None:
    identity = ["-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "init.defaultBranch=main"]
    subprocess.run(["git", *identity, *arguments], check=True, capture_output=True)


@pytest.mark.parametrize("folder", [".", "src", "services/reviews"])
def test_check_against_a_revision(folder, tmp_path):
    """The classes of a revision are those that were committed, also if they are imported from a folder of the path."""
    place = tmp_path / folder
    place.mkdir(parents=True, exist_ok=True)
    options: Any = {
        "cwd": tmp_path if folder == "src" else place,
        "env": os.environ | {"PYTHONPATH": str(place), "PULSECART_EVENTS": "my_events"},
    }

    def check(revision: str) -> subprocess.CompletedProcess[str]:
        return run("schema", "check", "--against", f"git:{revision}", **options)

    write(name="my_events", folder=place)
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "first")
    write("str", name="my_events", folder=place)
    changed = check("HEAD")
    assert changed.returncode == 1, changed.stderr
    assert "/stars: was integer, is string (breaks consumers and producers)" in changed.stdout
    git("commit", "-qam", "second")
    assert check("HEAD").returncode == 0
    assert check("HEAD~1").returncode == 1


def test_check_against_a_revision_that_is_not_there(monkeypatch):
    """No repository, no such revision, a revision without the module, and no git, are exit 2."""
    write()

    def refused(message: str) -> None:
        result = call("check", "--against", "git:HEAD")
        assert result.exit_code == 2
        assert message in result.output

    refused("not a git repository")
    git("init", "-q")
    refused("git rev-parse: ")
    git("commit", "-qm", "empty", "--allow-empty")
    refused("the catalog of HEAD cannot be loaded")
    monkeypatch.setenv("PATH", "")
    refused("git is not installed")


def test_command_runs_as_a_process(tmp_path):
    """The installed command has the exit codes too."""
    write()
    assert run("schema", "export", "--output", "old", cwd=tmp_path, env=dict(os.environ)).returncode == 0
    write("str")
    assert run("schema", "check", "--against", "old", cwd=tmp_path, env=dict(os.environ)).returncode == 1
    assert run("schema", "check", "--against", "new", cwd=tmp_path, env=dict(os.environ)).returncode == 2
