"""The AsyncAPI document, judged by AsyncAPI's own parser."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.serving import run

CHECK = Path(__file__).with_name("check.mjs")
PARSER = "@asyncapi/parser@3"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the parser, installed by npm."""
    folder = tmp_path_factory.mktemp("asyncapi")
    if not (shutil.which("node") and shutil.which("npm")):
        assert "CI" not in os.environ, "node and npm are missing"
        pytest.skip("needs node and npm")
    options = ["--prefix", str(folder), "--no-audit", "--no-fund", "--ignore-scripts"]
    subprocess.run(["npm", "install", *options, PARSER], check=True, capture_output=True, timeout=120)
    return folder


def check(folder: Path, file: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["node", str(CHECK), str(file)], cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )


def test_document_is_valid(folder, tmp_path):
    """The parser accepts the document, bindings included, and finds every message and topic."""
    assert run("schema", "export", "--format", "asyncapi", "--output", str(tmp_path)).returncode == 0
    checked = check(folder, tmp_path / "asyncapi.json")
    assert (checked.returncode, checked.stdout) == (0, "8 messages in 3 channels\n"), checked.stderr


def test_parser_notices_a_mistake(folder, tmp_path):
    """A binding that the specification does not know is an error."""
    run("schema", "export", "--format", "asyncapi", "--output", str(tmp_path))
    document = json.loads((tmp_path / "asyncapi.json").read_text())
    document["components"]["messages"]["order.placed"]["bindings"]["googlepubsub"]["orderKey"] = "user_id"
    (tmp_path / "wrong.json").write_text(json.dumps(document))
    checked = check(folder, tmp_path / "wrong.json")
    assert checked.returncode == 1
    assert "orderKey" in checked.stderr
