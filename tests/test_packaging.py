"""Packaging: the metadata, and the lock file that the checks install from."""

import re
import tomllib
from importlib.metadata import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCK = (ROOT / "requirements/lock.txt").read_text()

REQUIREMENTS = [
    *PROJECT["project"]["dependencies"],
    *(one for name, extra in PROJECT["project"]["optional-dependencies"].items() if name != "all" for one in extra),
    *(one for name, group in PROJECT["dependency-groups"].items() if not name.startswith("peer-") for one in group),
]


@pytest.mark.parametrize("text", REQUIREMENTS)
def test_lock_satisfies_requirement(text):
    """The lock file has a version of each requirement that pyproject.toml allows."""
    requirement = Requirement(text)
    versions = re.findall(rf"^{re.escape(canonicalize_name(requirement.name))}==([^\s;]+)", LOCK, re.MULTILINE)
    assert versions, "run `nox -s lock`"
    assert all(requirement.specifier.contains(version, prereleases=True) for version in versions)


def test_lock_names_no_registry():
    """The lock file can be used with any package index."""
    assert "://" not in LOCK
    assert "--" not in LOCK


def test_metadata_has_urls_and_extras():
    """The metadata has links to the project, and the optional extras."""
    found = metadata("pulsecart")
    assert {line.partition(",")[0] for line in found.get_all("Project-URL")} == {
        "Homepage",
        "Documentation",
        "Changelog",
        "Issues",
    }
    assert {"all", "client", "grpc", "oidc", "otlp", "testing"} <= set(found.get_all("Provides-Extra"))
