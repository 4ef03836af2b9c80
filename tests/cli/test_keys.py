"""`pulsecart keys new`."""

import re
import tomllib

import pytest

from pulsecart import load_catalog
from pulsecart.access.sources import parse
from tests.serving import run


def test_new_key_and_its_lines_for_the_file():
    """The first line is the key, and the others make it a key of the source."""
    ended = run("keys", "new", "checkout")
    key, _, lines = ended.stdout.partition("\n")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert re.fullmatch(r"pck_[A-Za-z0-9_-]{43}", key)
    assert tomllib.loads(lines).keys() == {"checkout"}
    assert key not in lines
    sources = parse(lines.encode(), "f", [cls.event_type for cls in load_catalog()])
    found = sources.with_key(key.encode())
    assert found is not None
    assert found.name == "checkout"


def test_every_key_is_another():
    """Two calls print different keys."""
    assert run("keys", "new", "a").stdout != run("keys", "new", "a").stdout


@pytest.mark.parametrize("name", ["Checkout", "a b", "", "a" * 65, "ä"])
def test_wrong_name_is_an_error(name):
    """The message says what a name may be, and no key is printed."""
    ended = run("keys", "new", "--", name)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "a source has 1 to 64 characters: a-z, 0-9, _ and -" in ended.stderr


def test_help_shows_no_key():
    """The help explains what is printed."""
    ended = run("keys", "new", "--help")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "PULSECART_SOURCES" in ended.stdout
    assert not re.search(r"pck_\w{43}", ended.stdout)
