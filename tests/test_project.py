"""Files about the project agree with each other."""

import ast
import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
WORKFLOW = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())


def matrix(job: str) -> dict[str, list]:
    return WORKFLOW["jobs"][job]["strategy"]["matrix"]


def sessions(*, default: bool) -> set[str]:
    """Return the sessions of nox that run by default, or those that do not."""
    found = set()
    for node in ast.parse((ROOT / "noxfile.py").read_text()).body:
        for call in getattr(node, "decorator_list", []):
            if isinstance(call, ast.Call) and ast.unparse(call.func) == "nox.session":
                options = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
                if (options.get("default") != "False") is default:
                    found.add(node.name)
    return found


def test_hosted_ci_runs_every_session():
    """The workflow runs each session that `nox` runs, and the dry run of a release."""
    listed = matrix("sessions")
    run = {*listed["session"], *(row["session"] for row in listed["include"]), "tests"}
    assert run == sessions(default=True) | {"release"}
    assert {"bench", "lock", "release"} <= sessions(default=False)


def test_hosted_ci_has_every_python():
    """Each Python in the metadata is tested."""
    classifiers = PROJECT["project"]["classifiers"]
    assert matrix("tests")["python"] == [
        found[1] for each in classifiers if (found := re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", each))
    ]


def test_hooks_use_the_pinned_versions():
    """Each tool that a hook pins has the version of the checks."""
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    pinned = {each for hook in hooks for each in hook["additional_dependencies"] if "==" in each}
    assert pinned == set(PROJECT["dependency-groups"]["lint"])


def test_changelog_has_the_version():
    """The first section of the changelog is that of the version in pyproject.toml."""
    first = re.search(
        r"^## \[(.+?)\] - (unreleased|\d{4}-\d\d-\d\d)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE
    )
    assert first is not None
    assert first[1] == PROJECT["project"]["version"]


@pytest.mark.parametrize("path", sorted((ROOT / ".github").rglob("*.yml")), ids=lambda path: path.name)
def test_files_of_github_parse(path):
    """Each is a YAML document with keys."""
    assert isinstance(yaml.safe_load(path.read_text()), dict)
