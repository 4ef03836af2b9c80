"""The sources file: what it may contain, and how it is read again."""

import asyncio
import hashlib
import json
import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pulsecart import SettingsError, load_catalog
from pulsecart.access import sources as module
from pulsecart.access.sources import Sources, SourcesFile, parse

pytestmark = pytest.mark.anyio

TYPES = [cls.event_type for cls in load_catalog()]
HASH = f"sha256:{hashlib.sha256(b'pck_a').hexdigest()}"
OTHER = f"sha256:{hashlib.sha256(b'pck_b').hexdigest()}"


def read(text: str) -> Sources:
    return parse(text.encode(), "sources.toml", TYPES)


def problems(text: str) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        read(text)
    return list(caught.value.problems)


def test_source_with_everything():
    """Keys and subjects lead to the source, and its patterns decide what it may send."""
    sources = read(f"""
        [checkout]
        keys = ["{HASH}", "{OTHER.replace("sha256:", "sha256:").upper().replace("SHA256", "sha256")}"]
        subjects = [{{iss = "https://a", sub = "s"}}, {{iss = "https://a", email = "e@x"}}]
        events = ["order.*", "*.low_stock_alert", "payment.failed"]
        rate = 0.5
    """)
    checkout = sources.by_name["checkout"]
    assert sources.with_key(b"pck_a") is sources.with_key(b"pck_b") is checkout
    assert sources.with_key(b"pck_c") is None
    assert sources.with_subject([("https://a", "sub", "other"), ("https://a", "email", "e@x")]) is checkout
    assert sources.with_subject([("https://b", "sub", "s")]) is None
    assert {name for name in TYPES if checkout.may_send(name)} == {
        "order.placed",
        "inventory.low_stock_alert",
        "payment.failed",
    }


@pytest.mark.parametrize(
    ("pattern", "matches"),
    [
        ("*", set(TYPES)),
        ("***", set(TYPES)),
        ("order.placed", {"order.placed"}),
        ("*.placed", {"order.placed"}),
        ("c*t.*", {"cart.item_added", "cart.abandoned"}),
        ("cart*abandoned*", {"cart.abandoned"}),
    ],
)
def test_star_matches_any_characters(pattern, matches):
    """A star stands for any characters, also none and dots; the pattern is for the whole type."""
    source = read(f'[a]\nevents = ["{pattern}"]').by_name["a"]
    assert {name for name in TYPES if source.may_send(name)} == matches


@pytest.mark.parametrize("pattern", ["order", "order?placed", "order.place[d]", "ORDER.*", "", "order.placed.*", "."])
def test_pattern_that_matches_no_type_is_an_error(pattern):
    """Nothing but the star is special, and a misspelt type is found at once."""
    (problem,) = problems(f'[a]\n\nevents = ["{pattern}"]')
    assert problem.startswith(f"sources.toml, line 3: [a] events[0] {pattern!r} matches no event type")


def test_misspelt_pattern_has_a_hint():
    """The message names the nearest type."""
    (problem,) = problems('[a]\nevents = ["order.paced"]')
    assert problem.endswith("; did you mean 'order.placed'?")


def test_all_types_without_events_and_none_with_an_empty_list():
    """A source without `events` may send everything, one with an empty list nothing."""
    sources = read("[all]\n[nothing]\nevents = []")
    assert all(sources.by_name["all"].may_send(name) for name in [*TYPES, "other"])
    assert not any(sources.by_name["nothing"].may_send(name) for name in TYPES)


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("[a]\nkeys = [", 2, "is not TOML"),
        ("[a]\nkeys = 1 2", 2, "is not TOML"),
        ("[a]\n[a]", 2, "is not TOML"),
        ("[A]", 1, "[A] is not a name"),
        (f"\n[{'a' * 65}]", 2, "is not a name"),
        ('\n["a b"]', 2, "is not a name"),
        ("\nrate = 5", 2, "rate must be in a table"),
        ("[a]\nrate = 1\nkey = []", 3, "[a] key is not a known field; did you mean 'keys'?"),
        ("[a]\nzzz = 1", 2, "known are keys, subjects, events, rate"),
        (f'[a]\nkeys = "{HASH}"', 2, "[a] keys must be an array"),
        (f'[a]\nkeys = [\n"{HASH}",\n"{HASH[:-2]}"]', 4, "[a] keys[1] must be"),
        ("[a]\nkeys = [1]", 2, "[a] keys[0] must be"),
        (f'[a]\nkeys = ["{HASH[7:]}"]', 2, "[a] keys[0] must be"),
        (f'[a]\nkeys = ["{HASH}"]\n[b]\nkeys = ["{HASH}"]', 4, "[b] keys[0] is a key of [a] too"),
        ('[a]\nsubjects = ["s"]', 2, "[a] subjects[0] must be"),
        ('[a]\nsubjects = [{iss = "i"}]', 2, "[a] subjects[0] must be"),
        ('[a]\nsubjects = [{iss = "i", sub = "s", email = "e"}]', 2, "[a] subjects[0] must be"),
        ('[a]\nsubjects = [{iss = "i", sub = 1}]', 2, "[a] subjects[0] must be"),
        ('[a]\nsubjects = [{iss = "i", sub = ""}]', 2, "[a] subjects[0] must be"),
        ('[a]\nsubjects = [{sub = "s"}]', 2, "[a] subjects[0] needs the issuer"),
        (
            '[a]\nsubjects = [{iss = "i", sub = "s"}]\n[b]\nsubjects = [\n {iss = "i", sub = "s"}]',
            5,
            "[b] subjects[0] is a subject of [a] too",
        ),
        ("[a]\nevents = [1]", 2, "[a] events[0] must be a string"),
        ("[a]\nrate = 0", 2, "[a] rate must be"),
        ("[a]\nrate = -1", 2, "[a] rate must be"),
        ("[a]\nrate = nan", 2, "[a] rate must be"),
        ("[a]\nrate = inf", 2, "[a] rate must be"),
        ("[a]\nrate = true", 2, "[a] rate must be"),
        ('[a]\nrate = "5"', 2, "[a] rate must be"),
        ("x = " + "[" * 100_000, 1, ""),
    ],
)
def test_wrong_file_is_an_error_with_line_and_reason(text, line, says):
    """Each problem has the file, the line and the reason."""
    (problem,) = problems(text)
    assert problem.startswith(f"sources.toml, line {line}: ")
    assert says in problem


def test_not_utf_8_is_an_error_with_its_line():
    with pytest.raises(SettingsError, match="^sources.toml, line 2: is not UTF-8$"):
        parse(b"[a]\n\xff", "sources.toml", TYPES)


def test_all_problems_of_a_file_are_reported_together():
    """One message has everything that is wrong."""
    found = problems('[A]\n[b]\nrate = 0\nkeys = ["x"]\nevents = ["zzz"]')
    assert [problem.split(":")[0] for problem in found] == [f"sources.toml, line {line}" for line in (1, 4, 5, 3)]


def test_key_that_is_not_hashed_is_not_repeated():
    """The message says what it looks like, but not the key, which would get into the log."""
    key = "pck_" + "k" * 43
    (problem,) = problems(f'[a]\nkeys = ["{key}"]')
    assert "not hashed" in problem
    assert "kkkk" not in problem


VALUES = st.recursive(
    st.booleans() | st.integers(-9, 9) | st.sampled_from([HASH, "order.*", "pck_", ""]) | st.text("ab*.-_", max_size=9),
    lambda inner: st.lists(inner, max_size=3),
)


@given(st.dictionaries(st.sampled_from(["keys", "subjects", "events", "rate", "other"]), VALUES))
def test_any_table_is_read_or_explained(table):
    """Whatever a table contains, the answer is sources or an error with the line of the field."""
    text = "[a]\n" + "".join(f"{name} = {json.dumps(value)}\n" for name, value in table.items())
    with suppress(SettingsError):
        read(text)
        return
    lines = {f"sources.toml, line {number + 2}" for number in range(len(table))}
    assert {problem.split(":")[0] for problem in problems(text)} <= lines


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_explained(content):
    """Whatever a file contains, the answer is sources or an error with a line."""
    with suppress(SettingsError):
        parse(content, "f", TYPES)
        return
    with pytest.raises(SettingsError, match="^f, line "):
        parse(content, "f", TYPES)


def test_rate_is_a_token_bucket(monkeypatch):
    """A burst of one second, then the rate; an array is charged in full, and what comes after it waits."""
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    sources = read("[five]\nrate = 5\n[tenth]\nrate = 0.1\n[free]")
    five, tenth, free = (sources.by_name[name].charge for name in ("five", "tenth", "free"))
    assert [five() for _ in range(5)] == [0] * 5
    assert five() == pytest.approx(0.2)
    now[0] = 0.2
    assert (five(), five()) == (0, pytest.approx(0.2))
    now[0] = 100
    assert [five() for _ in range(5)] == [0] * 5
    assert five() > 0
    now[0] = 101
    assert five(50) == 0
    assert five() == pytest.approx(46 / 5)
    assert (tenth(), tenth()) == (0, pytest.approx(10))
    assert not any(free(1000) for _ in range(1000))


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe", "large", "null"])
def test_file_that_cannot_be_read_is_an_error(tmp_path, kind, monkeypatch):
    """The message names the file and the reason; nothing blocks."""
    path = str(tmp_path / "sources.toml")
    match kind:
        case "folder":
            Path(path).mkdir()
        case "pipe":
            os.mkfifo(path)
        case "large":
            monkeypatch.setattr(module, "MAX_FILE_BYTES", 10)
            Path(path).write_bytes(b"#" * 11)
        case "null":
            path = "a\0b"
    with pytest.raises(SettingsError) as caught:
        SourcesFile(path, TYPES)
    (problem,) = caught.value.problems
    assert problem.startswith(f"{path}: ")


async def changed(file: SourcesFile, condition: Any) -> None:
    async with asyncio.timeout(5):
        while not condition(file.current.by_name.keys()):
            await asyncio.sleep(0.02)


async def test_swapped_link_is_noticed(tmp_path):
    """Kubernetes replaces a link above the file; neither the path nor the file's time need to change."""
    for version in ("one", "two"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "sources.toml").write_text(f"[{version}]\n")
        os.utime(tmp_path / version / "sources.toml", (1, 1))
    (tmp_path / "..data").symlink_to("one")
    (tmp_path / "sources.toml").symlink_to("..data/sources.toml")
    file = SourcesFile(str(tmp_path / "sources.toml"), TYPES)
    async with file.watched():
        (tmp_path / "..new").symlink_to("two")
        (tmp_path / "..new").rename(tmp_path / "..data")
        await changed(file, lambda names: names == {"two"})


async def test_broken_edit_and_deletion_keep_the_last_good_file(tmp_path, caplog, monkeypatch):
    """The log says why, once; the next good version is used."""
    monkeypatch.setattr(module, "POLL_SECONDS", 0.02)
    caplog.set_level(logging.INFO, "pulsecart.access")
    path = tmp_path / "sources.toml"
    path.write_text("[one]\n[same]\n")
    file = SourcesFile(str(path), TYPES)

    async def logged(text: str) -> None:
        async with asyncio.timeout(5):
            while text not in caplog.text:
                await asyncio.sleep(0.02)

    async with file.watched():
        path.write_text("[one]\nkeys = 5\n")
        await logged(f"{path}, line 2: [one] keys must be an array")
        path.write_text("[one\n")
        await logged(f"{path}, line 1: is not TOML")
        path.unlink()
        await logged("cannot be read: No such file or directory")
        assert file.current.by_name.keys() == {"one", "same"}
        path.write_text("[one]\n[same]\n")
        await logged("no changes")
        path.write_text("[two]\n[same]\nrate = 1\n")
        await changed(file, lambda names: names == {"two", "same"})
    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR", "ERROR", "INFO", "INFO"]
    assert "added two; removed one; changed same" in caplog.text


async def test_file_that_is_being_written_is_not_used(tmp_path):
    """A truncated file would remove sources: a version counts when it has been read twice."""
    path = tmp_path / "sources.toml"
    path.write_text("[one]\n")
    file = SourcesFile(str(path), TYPES)
    async with file.watched():
        for number in range(3):
            path.write_text("")
            await asyncio.sleep(0.3)  # less than the time between two reads
            path.write_text(f"[one]\n[two]\n[number-{number}]\n")
            await changed(file, lambda names, last=f"number-{number}": last in names or "one" not in names)
            assert "one" in file.current.by_name
