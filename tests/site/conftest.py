"""The documentation, built once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.browser.conftest import driver

__all__ = ["driver"]

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the folder of the built site: the one at SITE, or else a new one."""
    if built := os.environ.get("SITE"):
        return Path(built)
    folder = tmp_path_factory.mktemp("site")
    options = ["--fail-on-warning", "--nitpicky", "--quiet"]
    subprocess.run([sys.executable, "-m", "sphinx", *options, ROOT / "docs", folder], check=True)
    return folder
