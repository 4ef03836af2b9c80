"""Transports by name: entry points of other packages, factories, their options, and what can be wrong with them."""

import json
import sys
from pathlib import Path

import httpx
import pytest

from pulsecart import Limits, SettingsError
from pulsecart.app import create_app
from pulsecart.serve.environment import read_settings
from pulsecart.serve.settings import Settings
from pulsecart.transports import MemoryTransport, TransportConfig, registry
from tests.http.client import ingest, served
from tests.serving import run, serving

pytestmark = pytest.mark.anyio

ORDER = {"event_type": "order.placed", "user_id": "u1", "order_id": "o1", "payload": {"total": 89.9}}

FILES = """
import json
from pathlib import Path

from pulsecart.errors import SettingsError
from pulsecart.transports import TransportConfig


class Files:
    def __init__(self, path, fails):
        self._path = Path(path)
        self._fails = fails
        self._count = 0

    async def publish(self, message):
        self._count += 1
        with self._path.open("ab") as file:
            file.write(message.data + b"\\n")
        return str(self._count)

    async def check(self, topics):
        return []

    async def aclose(self):
        pass

    async def __aenter__(self):
        if self._fails:
            raise ConnectionRefusedError(111, "Connection refused")
        return self

    async def __aexit__(self, *_):
        pass


def from_config(config: TransportConfig) -> Files:
    config.allow_options("path", "fails")
    return Files(config.options["path"], "fails" in config.options)


class Namespace:
    make = from_config


def raises(config):
    raise ValueError("no broker named x")


def raises_nothing_said(config):
    raise KeyError


def rejects(config):
    raise SettingsError(["set PATH", "set HOME"])


def takes_nothing():
    pass


def takes_more(config, url):
    pass


async def is_async(config):
    return Files("x", False)


def returns_none(config):
    return None


def returns_a_class(config):
    return Files


not_callable = "nats://localhost"
in_c = dict
"""


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Return a folder with the package `files` and a module with a syntax error, which can be imported."""
    (tmp_path / "files.py").write_text(FILES)
    (tmp_path / "broken.py").write_text("import")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("files", "broken"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


@pytest.fixture
def installed(folder):
    """Install a package with entry points, as pip does it."""

    def install(name: str, *lines: str) -> None:
        info = folder / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text("\n".join([f"[{registry.GROUP}]", *lines, ""]))

    return install


def settings(**changes: object) -> Settings:
    return Settings(**{"transport": "files:from_config", "transport_options": {"path": "x"}} | changes)


def rejected(transport: str, **options: str) -> str:
    """Return the one sentence with which a transport is rejected at startup."""
    with pytest.raises(SettingsError) as caught:
        create_app(settings(transport=transport, transport_options=options))
    (problem,) = caught.value.problems
    assert "\n" not in problem
    return problem


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("factory", "says"),
    [
        ("nowhere:make", "cannot be imported: ModuleNotFoundError: No module named 'nowhere'"),
        ("broken:make", "cannot be imported: SyntaxError: "),
        ("files:from_confg", "does not exist: files has no 'from_confg'; did you mean 'from_config'?"),
        ("files:Namespace.other", "does not exist: files has no 'Namespace.other'"),
        ("files:not_callable", "is not callable, but of type str"),
        ("files:takes_nothing", "must take one argument, a TransportConfig: too many positional arguments"),
        ("files:takes_more", "must take one argument, a TransportConfig: missing a required argument: 'url'"),
        ("files:raises", "raised ValueError: no broker named x"),
        ("files:raises_nothing_said", "raised KeyError"),
        ("files:from_config", "raised KeyError: 'path'"),
        ("files:is_async", "returned a coroutine, which is no transport: it lacks publish, check, aclose, __aenter__"),
        ("files:returns_none", "returned a NoneType, which is no transport: it lacks publish"),
        ("files:returns_a_class", "returned a class, not an instance of it"),
        ("files:in_c", "raised TypeError: 'TransportConfig' object is not iterable"),
    ],
)
def test_wrong_factory_is_one_sentence(factory, says):
    """Startup fails with one sentence, which names the factory and what is wrong with it."""
    assert rejected(factory).startswith(f"the transport factory {factory} {says}")


@pytest.mark.usefixtures("folder")
def test_problems_of_a_factory_name_it(caplog):
    """A factory may raise SettingsError with several problems. Under another server they are in one line of the log."""
    with pytest.raises(SettingsError) as caught:
        create_app(settings(transport="files:rejects"))
    name = "the transport factory files:rejects"
    assert caught.value.problems == (f"{name}: set PATH", f"{name}: set HOME")
    assert f"Invalid settings: {name}: set PATH; {name}: set HOME" in caplog.text


@pytest.mark.usefixtures("folder")
def test_unknown_option_names_the_nearest():
    """A misspelled option is rejected, as a misspelled setting is."""
    says = "PULSECART_TRANSPORT_OPTIONS has 'pth', which is not an option of the transport; did you mean 'path'?"
    assert rejected("files:from_config", pth="x") == f"the transport factory files:from_config: {says}"
    assert rejected("files:from_config", zzz="x").endswith("of the transport; its options are path, fails")
    for name in registry.BUILT_IN:
        with pytest.raises(SettingsError, match="PULSECART_TRANSPORT_OPTIONS has 'path', which .*; it has none"):
            registry.make_transport(name, TransportConfig(options={"path": "x"}))


def test_installed_transport_is_used_by_name(installed, folder):
    """An entry point of another package is a transport's name, and unknown names list it."""
    installed("pulsecart_files", "files = files:Namespace.make", "pubsub2 = files:raises")
    app = create_app(settings(transport="files", transport_options={"path": str(folder / "events")}))
    assert app is not None
    with pytest.raises(SettingsError) as caught:
        Settings(transport="flies")
    (problem,) = caught.value.problems
    assert "must be memory, emulator, pubsub, files" in problem
    assert "pubsub2, not 'flies'; did you mean 'files'?" in problem
    with pytest.raises(SettingsError, match="a factory in a module is named as package.module:factory"):
        Settings(transport="zzz")
    assert rejected("pubsub2") == "the transport 'pubsub2' (files:raises) raised ValueError: no broker named x"


def test_name_of_two_packages_is_rejected(installed):
    """Two packages that define one name are named, instead of one of them being taken; the same twice is no problem."""
    installed("pulsecart_a", "mine = files:raises", "same = files:Namespace.make")
    installed("pulsecart_b", "mine = files:rejects", "same = files:Namespace.make")
    assert rejected("mine") == (
        "the transport 'mine' is defined more than once: files:raises and files:rejects; uninstall all but one"
    )
    assert create_app(settings(transport="same"))


def test_config_has_what_a_transport_needs(folder, monkeypatch):
    """A factory gets project, environment, limits, options and all settings, read-only."""
    seen = []
    sys.modules["files"] = module = __import__("files")
    monkeypatch.setattr(module, "raises", lambda config: seen.append(config) or MemoryTransport())
    chosen = read_settings(
        {
            "PULSECART_TRANSPORT": "files:raises",
            "PULSECART_TRANSPORT_OPTIONS": "path=a=b.jsonl, sync=1,empty=",
            "GCP_PROJECT_ID": "shop",
            "ENVIRONMENT": "staging",
            "PULSECART_AUTH": "none",
            "PULSECART_PUBLISH_DEADLINE": "3",
        }
    )
    create_app(chosen)
    (config,) = seen
    assert (config.project, config.environment, config.limits.deadline) == ("shop", "staging", 3)
    assert config.options == {"path": "a=b.jsonl", "sync": "1", "empty": ""}
    assert config.settings is chosen
    with pytest.raises(TypeError):
        config.options["path"] = "x"
    with pytest.raises(AttributeError):
        config.project = "x"
    assert TransportConfig() == TransportConfig(project="pulsecart-dev", environment="dev", limits=Limits())


@pytest.mark.parametrize("text", ["path", "=x", "path=a,path=b", "path=a,sync"])
def test_options_that_cannot_be_read_are_rejected(text):
    """Options are pairs, each name once. The message does not repeat them: they may contain a password."""
    with pytest.raises(SettingsError) as caught:
        read_settings({"PULSECART_TRANSPORT_OPTIONS": f"token=secret,{text}"})
    (problem,) = caught.value.problems
    assert problem == (
        "PULSECART_TRANSPORT_OPTIONS (--transport-options) must be name=value, separated by commas, each name once"
    )


async def test_given_transport_needs_no_setting(monkeypatch, order_json):
    """An application with a transport of its own needs no transport setting, also in prod. One is ignored."""
    monkeypatch.setenv("ENVIRONMENT", "prod")
    monkeypatch.setenv("PULSECART_AUTH", "none")
    for name in ("", "memory", "zzz"):
        monkeypatch.setenv("PULSECART_TRANSPORT", name)
        transport = MemoryTransport()
        async with served(transport, settings=None) as client:
            assert (await ingest(client, order_json())).status_code == 202
        assert len(transport.messages) == 1
    async with served(MemoryTransport(), Settings(environment="prod", auth="none")) as client:
        assert (await ingest(client, order_json())).status_code == 202


def test_settings_without_a_transport_need_one():
    """Without a transport in the settings, the application must be given one."""
    with pytest.raises(SettingsError, match=r"PULSECART_TRANSPORT \(--transport\) is not set"):
        create_app(Settings())


def test_serve_with_a_factory(folder):
    """`pulsecart serve --transport module:factory` publishes to it; the module may be in the working directory."""
    options = ("--transport", "files:from_config", "--transport-options", "path=events.jsonl")
    with serving(*options, "--environment", "prod", "--auth", "none", cwd=folder) as served:
        assert httpx.post(f"{served.url}/events/ingest", json=ORDER).json()["message_id"] == "1"
        assert "publishes with the transport files:from_config" in served.output
    (line,) = (folder / "events.jsonl").read_text().splitlines()
    assert json.loads(line)["payload"] == {"total": 89.9}


def test_serve_with_a_wrong_factory(folder):
    """A wrong factory is an error of usage, without a traceback."""
    ended = run("serve", "--transport", "files:raises", "--port", "0", cwd=folder)
    assert ended.returncode == 2
    assert "the transport factory files:raises raised ValueError: no broker named x" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_serve_with_a_transport_that_does_not_open(folder):
    """A transport that fails to open ends the service, with one sentence and without a traceback."""
    options = ("--transport", "files:from_config", "--transport-options", "path=x,fails=1")
    ended = run("serve", *options, "--port", "0", cwd=folder)
    assert ended.returncode == 3
    lines = [json.loads(line) for line in ended.stderr.splitlines()]
    (line,) = [line["message"] for line in lines if "files:from_config failed" in line["message"]]
    assert line == (
        "the transport files:from_config failed to open: ConnectionRefusedError: [Errno 111] Connection refused"
    )
    assert "Traceback" not in ended.stderr


def test_unknown_name_is_rejected_by_make_transport():
    """Without the settings, an unknown name is rejected, too."""
    with pytest.raises(SettingsError, match="the transport 'memry' is not installed; did you mean 'memory'"):
        registry.make_transport("memry", TransportConfig())
