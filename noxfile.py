"""The checks. `nox` runs all of them, `nox -s tests-3.13` one session.

Sessions install the versions in requirements/lock.txt, except `lowest`; `nox -s lock` updates that file. A session is
skipped if its Python, its emulator or another program that it needs is missing; if CI is set it fails.
"""

import contextlib
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import nox

sys.path.insert(0, str(Path(__file__).parent))
from pulsecart.testing import emulator as gcloud

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.error_on_missing_interpreters = "CI" in os.environ

PROJECT = nox.project.load_toml("pyproject.toml")
PYTHONS = nox.project.python_versions(PROJECT)
if not shutil.which("python3.14"):
    PYTHONS.remove("3.14")  # few machines have it yet; the hosted CI does
OLDEST = PYTHONS[0]
NEWEST = "3.13"
"""The Python of the other sessions, which also measures coverage."""

LOCK = "requirements/lock.txt"
LOCKED_GROUPS = (
    "test",
    "api",
    "browser",
    "deploy",
    "docs",
    "examples",
    "lint",
    "types",
    "imports",
    "package",
    "release",
    "bench",
    "nats",
)

PARALLEL = ("--numprocesses=3", "--dist=loadfile")
"""Options of pytest: the tests mostly wait, so more of them run at once than there are cores."""

PLAIN = "not emulator and not faults and not monitoring and not scale"
"""The marker expression for tests that need nothing but Python."""

BROWSER = ("chromium", "chromedriver")
BROWSER_PACKAGES = ("chromium", "chromium-driver")

SITE = "docs/_build/html"

HAPROXY = Path("/usr/sbin/haproxy")

GO_PATH = Path("/usr/share/gocode")
PAGES = """
import asyncio
from pulsecart.app import create_app
from pulsecart.serve.settings import Settings

async def get(path):
    sent = []
    async def send(message):
        sent.append(message)
    headers = [(b"host", b"localhost")]
    scope = {"type": "http", "method": "GET", "path": path, "query_string": b"", "headers": headers}
    await create_app(Settings(transport="memory"))(scope, None, send)
    assert sent[0]["status"] == 200 and b"<script>" in sent[1]["body"], sent

asyncio.run(get("/dev"))
asyncio.run(get("/docs"))
"""
"""Gets the pages, which need files that are no Python modules."""

GO_PACKAGES = "install Debian's packages golang-go and golang-google-cloud-dev"


def group(name: str) -> list[str]:
    """Return the requirements of a dependency group."""
    return list(nox.project.dependency_groups(PROJECT, name))


def install(session: nox.Session, *requirements: str) -> None:
    """Install requirements, and what they need, in the versions of the lock file."""
    session.install(*requirements, "--constraint", LOCK)


@nox.session(python=NEWEST)
def lint(session: nox.Session) -> None:
    """Style and common mistakes."""
    install(session, *group("lint"))
    session.run("ruff", "format", "--check", ".")
    session.run("ruff", "check", ".")


@nox.session(python=OLDEST)
def typecheck(session: nox.Session) -> None:
    """Types, strictly, of the package and of the public names as users see them."""
    groups = ("test", "types", "bench", "docs", "examples", "nats")
    install(session, "-e", ".[all]", *(requirement for name in groups for requirement in group(name)))
    session.run("mypy")


@nox.session(python=NEWEST)
def imports(session: nox.Session) -> None:
    """The dependency rule: what may import what."""
    install(session, "-e", ".", *group("imports"))
    session.run("lint-imports", "--no-logo")


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Everything that needs no emulator; on the newest Python with every branch covered."""
    install(session, "-e", ".[all]", *group("test"))
    if session.python != NEWEST:  # measuring takes a third of the time, and the branches are the same
        session.run("pytest", *PARALLEL, "-m", PLAIN, *session.posargs)
        return
    session.run("coverage", "erase")
    session.run("coverage", "run", "-m", "pytest", *PARALLEL, "-m", PLAIN, *session.posargs)
    session.run("coverage", "combine", "--quiet")
    if not session.posargs:
        session.run("coverage", "report")


@nox.session(python=OLDEST, venv_backend="uv")
def lowest(session: nox.Session) -> None:
    """The oldest dependencies that the metadata allows."""
    session.install("-e", ".[all]", *group("test"), "--resolution", "lowest-direct")
    # The oldest releases may give warnings that newer ones no longer give.
    session.run("pytest", *PARALLEL, "-m", PLAIN, "-W", "default")


@nox.session(python=NEWEST)
def api(session: nox.Session) -> None:
    """The service against its OpenAPI document, and AsyncAPI's own parser on the other one. Needs Node and npm."""
    install(session, "-e", ".", *group("test"), *group("api"))
    # Without its plugin for pytest, which is not used here.
    session.run("pytest", "-p", "no:schemathesis", "tests/api", *session.posargs)


@nox.session(python=NEWEST)
def browser(session: nox.Session) -> None:
    """The pages in Chromium. In CI, as root, its Debian packages are installed if they are missing."""
    need_browser(session)
    install(session, "-e", ".", *group("test"), *group("browser"))
    session.run("pytest", "tests/browser", *session.posargs)


@nox.session(python=NEWEST)
def docs(session: nox.Session) -> None:
    """The documentation, strictly, into docs/_build/html; its links, and its pages in Chromium, which it needs, too."""
    install(session, "-e", ".[all]", *group("test"), *group("docs"), *group("browser"))
    options = ["--fail-on-warning", "--nitpicky", "--keep-going", "--fresh-env", "--quiet"]
    session.run("sphinx-build", *options, "docs", SITE)
    need_browser(session)
    session.run("pytest", "tests/site", *session.posargs, env={"SITE": str(Path(SITE).resolve())})


@nox.session(python=NEWEST)
def emulator(session: nox.Session) -> None:
    """The whole path, through a real broker, to Google's own subscriber. Pages that need an emulator, too."""
    install(session, "-e", ".[all]", *group("test"), *group("examples"))
    with emulator_host(session) as host:
        session.run("pytest", "-m", "emulator and not faults", *session.posargs, env={"PUBSUB_EMULATOR_HOST": host})
        session.run("python", "examples/consumer.py", env={"PUBSUB_EMULATOR_HOST": host})


@nox.session(python=NEWEST)
def faults(session: nox.Session) -> None:
    """Try to make a 202 a lie, for minutes; with `-- --long`, ten times as much."""
    install(session, "-e", ".[all]", *group("test"))
    with emulator_host(session) as host:
        session.run("pytest", "-m", "faults", *session.posargs, env={"PUBSUB_EMULATOR_HOST": host})


@nox.session(python=NEWEST)
def monitoring(session: nox.Session) -> None:
    """A real Prometheus scrapes the service under load, and promtool tests its alerts. Needs Debian's prometheus."""
    if shutil.which("promtool") is None:
        unavailable(session, "no promtool: install Debian's package prometheus")
    install(session, "-e", ".[all]", *group("test"))
    session.run("pytest", "-m", "monitoring", *session.posargs)


@nox.session(python=NEWEST)
def scale(session: nox.Session) -> None:
    """Instances behind haproxy are killed, drained and added under load: nothing is lost. Needs Debian's haproxy."""
    if not HAPROXY.exists():
        unavailable(session, "no haproxy: install Debian's package haproxy")
    install(session, "-e", ".[all]", *group("test"))
    session.run("pytest", "-m", "scale", *session.posargs)


@nox.session(python=NEWEST)
def deploy(session: nox.Session) -> None:
    """The manifests are valid and agree with the service, and the image's steps work without Docker."""
    install(session, "-e", ".[all]", *group("test"), *group("deploy"))
    session.run("pytest", "-m", "not monitoring", "tests/deploy", *session.posargs)


@nox.session(python=NEWEST)
def examples(session: nox.Session) -> None:
    """Every example, run as its first lines say, and the code blocks of the documentation."""
    install(session, ".[all]", *group("test"), *group("examples"))
    session.run("python", "examples/library.py")
    session.run("python", "examples/tracing.py")
    session.run("python", "examples/flask_shop.py")
    session.run("python", "examples/fastapi_shop.py")
    session.run("python", "examples/checkout_client.py")
    session.run("pytest", "examples/unit_tests")
    session.run("pytest", "--numprocesses=3", "-m", "not emulator", "tests/docs")
    session.chdir("examples/own_events")
    session.run("python", "run.py")


@nox.session(python=NEWEST)
def nats(session: nox.Session) -> None:
    """The example of a third party's transport, against a real NATS server that is killed and started again."""
    if shutil.which("nats-server") is None and "CI" in os.environ and shutil.which("apt-get") and os.geteuid() == 0:
        session.run("apt-get", "update", external=True, silent=True)
        session.run("apt-get", "install", "--yes", "nats-server", external=True, silent=True)
    if shutil.which("nats-server") is None:
        unavailable(session, "no nats-server: install Debian's package nats-server")
    install(session, ".[all]", "./examples/nats_transport", *group("test"), *group("nats"))
    session.chdir("examples/nats_transport")
    session.run("pytest", *session.posargs)


@nox.session(python=NEWEST)
def package(session: nox.Session) -> None:
    """The wheel and the sdist build, install into an empty environment, and run."""
    install(session, *group("package"))
    example, locked = Path("examples/library.py").resolve(), Path(LOCK).resolve()
    with tempfile.TemporaryDirectory() as folder:
        session.run("python", "-m", "build", "--installer", "uv", "--outdir", folder, silent=True)
        for archive in sorted(Path(folder).iterdir()):
            empty = Path(folder, f"empty-{archive.suffix[1:]}")
            session.run("python", "-m", "venv", str(empty))
            install_archive = ["install", "--quiet", "--constraint", str(locked), str(archive)]
            session.run(str(empty / "bin/pip"), *install_archive, external=True)
            session.chdir(folder)
            session.run(str(empty / "bin/python"), str(example), external=True)
            session.run(str(empty / "bin/pulsecart"), "--version", external=True)
            session.run(str(empty / "bin/python"), "-c", PAGES, external=True)


@nox.session(python=NEWEST, default=False)
def release(session: nox.Session) -> None:
    """A dry run of a release. With `-- v1.2.3`, its tag, the changelog must have a date. Nothing is published."""
    version = PROJECT["project"]["version"]
    found = re.search(rf"^## \[{re.escape(version)}\] - (\S+)\n+###", Path("CHANGELOG.md").read_text(), re.MULTILINE)
    if found is None:
        session.error(f"CHANGELOG.md has no section '## [{version}] - DATE' with entries")
    if session.posargs not in ([], [f"v{version}"]):
        session.error(f"the tag {' '.join(session.posargs)} is not v{version}, the version in pyproject.toml")
    if not re.fullmatch(r"\d{4}-\d\d-\d\d", found[1]):
        what = f"the section of {version} in CHANGELOG.md has no date, but '{found[1]}'"
        session.error(what) if session.posargs else session.warn(what)
    install(session, *group("release"))
    with tempfile.TemporaryDirectory() as folder:
        session.run("python", "-m", "build", "--installer", "uv", "--outdir", folder, silent=True)
        archives = sorted(str(path) for path in Path(folder).iterdir())
        expected = [f"pulsecart-{version}-py3-none-any.whl", f"pulsecart-{version}.tar.gz"]
        if [Path(archive).name for archive in archives] != expected:
            session.error(f"the archives are {', '.join(archives)}")
        session.run("twine", "check", "--strict", *archives)


@nox.session(python=OLDEST, default=False)
def lock(session: nox.Session) -> None:
    """Update the versions that the other sessions install, for all Pythons and systems."""
    session.install("uv")
    groups = [option for name in LOCKED_GROUPS for option in ("--group", name)]
    options = ["--upgrade", "--universal", "--python-version", OLDEST, "--all-extras"]
    plain = ["--no-annotate", "--no-emit-index-url", "--custom-compile-command", "nox -s lock"]
    session.run("uv", "pip", "compile", "pyproject.toml", *options, *groups, *plain, "--output-file", LOCK, silent=True)


@nox.session(python=NEWEST, default=False)
def model(session: nox.Session) -> None:
    """The models of queues and REST wire: 20,000 random runs each, in virtual time. The tests make 300."""
    install(session, "-e", ".[all]", *group("test"))
    machines = ["tests/transports/test_keyed_model.py", "tests/transports/test_rest_model.py"]
    options = ["--numprocesses=2", "--dist=loadfile", "--hypothesis-show-statistics"]
    session.run("pytest", *options, *machines, *session.posargs, env={"PULSECART_MODEL_RUNS": "20000"})


@nox.session(python=NEWEST, default=False)
def bench(session: nox.Session) -> None:
    """The benchmark: pulsecart compared with its peers and with the least that its work can cost. Needs Node and Go."""
    for command, what in {"npm": "no Node: install it, with npm", "go": f"no Go: {GO_PACKAGES}"}.items():
        if shutil.which(command) is None:
            unavailable(session, what)
    if not (GO_PATH / "src/cloud.google.com/go/pubsub").is_dir():
        unavailable(session, f"no Google client for Go below {GO_PATH}: {GO_PACKAGES}")
    install(session, ".[all]", "uv", *group("test"), *group("bench"))
    with session.chdir("benchmarks/peers"):
        for peer in ("fastapi", "gcloud-aio", "litestar", "fastpubsub"):
            venv = f".venv-{peer}"
            session.run("uv", "venv", "--quiet", "--clear", "--python", NEWEST, venv)
            session.run("uv", "pip", "install", "--quiet", "--python", venv, *group(f"peer-{peer}"))
    with session.chdir("benchmarks/peers/fastify"):
        session.run("npm", "install", "--no-audit", "--no-fund", "--no-package-lock", external=True, silent=True)
    with session.chdir("benchmarks/peers/go"):
        offline = {"GO111MODULE": "off", "GOPATH": str(GO_PATH)}
        session.run("go", "build", "-o", "peer", "main.go", external=True, env=offline)
    with emulator_host(session) as host:
        session.run("python", "-m", "benchmarks.run", *session.posargs, env={"PUBSUB_EMULATOR_HOST": host})


def need_browser(session: nox.Session) -> None:
    """Install Chromium in CI, as root, if it is missing; elsewhere end the session."""
    if not all(map(shutil.which, BROWSER)) and "CI" in os.environ and os.geteuid() == 0 and shutil.which("apt-get"):
        session.run("apt-get", "update", external=True, silent=True)
        session.run("apt-get", "install", "--yes", "--no-install-recommends", *BROWSER_PACKAGES, external=True)
    if not all(map(shutil.which, BROWSER)):
        unavailable(session, f"no Chromium: install Debian's packages {' and '.join(BROWSER_PACKAGES)}")


def unavailable(session: nox.Session, what: str) -> NoReturn:
    """End the session because of what the system lacks: skip it, or fail if CI is set."""
    if "CI" in os.environ:
        session.error(what)
    session.skip(what)


@contextlib.contextmanager
def emulator_host(session: nox.Session) -> Iterator[str]:
    """Give the address of an emulator: the one at PUBSUB_EMULATOR_HOST, or one that is started, and stopped again."""
    try:
        with gcloud.emulator() as host:
            yield host
    except gcloud.EmulatorMissing as error:
        unavailable(session, f"no Pub/Sub emulator: {error}")
