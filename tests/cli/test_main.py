import re
import subprocess
import sys

import pytest

import pulsecart
from tests.serving import run


def test_version():
    """`pulsecart --version` prints the same version as `pulsecart.__version__`."""
    assert re.fullmatch(r"\d+\.\d+\.\d+", pulsecart.__version__)
    assert run("--version").stdout == f"pulsecart {pulsecart.__version__}\n"


def test_unknown_name_is_an_attribute_error():
    """An unknown name of the package is an AttributeError, although `__version__` is loaded lazily."""
    with pytest.raises(AttributeError, match="has no attribute 'version'"):
        _ = pulsecart.version


def test_help_lists_the_commands():
    """`pulsecart --help` has a line for each command."""
    assert re.findall(r"^  (\w+)  +\S", run("--help").stdout.partition("Commands:")[2], re.MULTILINE) == [
        "doctor",
        "keys",
        "schema",
        "send",
        "serve",
        "tail",
        "topics",
        "trace",
    ]


def test_unknown_command_is_an_error():
    """The message names the unknown command."""
    ended = run("wait")
    assert ended.returncode == 2
    assert "No such command 'wait'" in ended.stderr


def test_help_does_not_load_the_server():
    """`pulsecart --help` is fast: it loads neither the server nor Google's packages."""
    program = (
        "import sys\nfrom pulsecart.cli import main\nmain(['--help'], standalone_mode=False)\n"
        "sys.exit(' '.join({'uvicorn', 'starlette', 'grpc', 'google', 'structlog', 'httpx'} & set(sys.modules)))"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert ended.stderr.strip() == ""
