"""The pytest plugin, as users' test suites see it."""

import os
import sys
import textwrap

import pytest

HEAVY = ("attrs", "msgspec", "cattrs", "starlette", "grpc", "google", "httpx", "httptools", "structlog", "click")


@pytest.fixture
def suite(pytester, monkeypatch):
    """Run tests with the plugin in a process of their own, with warnings as errors."""
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    monkeypatch.delenv("CI", raising=False)

    def run(source, *options):
        pytester.makepyfile(textwrap.dedent(source))
        return pytester.runpytest_subprocess("-p", "no:cacheprovider", "-W", "error", "--strict-markers", *options)

    return run


def test_events_are_recorded(suite):
    """The example of the documentation: a typed event, an assertion, and one that shows the nearest miss."""
    result = suite("""
        import asyncio
        from pulsecart import Producer
        from pulsecart.events import OrderPlaced

        def test_published(pulsecart_events):
            asyncio.run(Producer(pulsecart_events).publish(OrderPlaced(user_id="u1", order_id="o1", payload={})))
            pulsecart_events.assert_published(OrderPlaced, user_id="u1")
            assert pulsecart_events.published(OrderPlaced)[0].order_id == "o1"

        def test_miss(pulsecart_events):
            asyncio.run(Producer(pulsecart_events).publish(OrderPlaced(user_id="u1", order_id="o1", payload={})))
            pulsecart_events.assert_published(OrderPlaced, user_id="u2")

        def test_each_test_has_its_own(pulsecart_events):
            assert pulsecart_events.published(OrderPlaced) == []
    """)
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(
        [
            "E * no OrderPlaced with user_id='u2' was published. There is one with:",
            "E * user_id: expected 'u2', got 'u1'",
        ]
    )


CLOSED = """
    import asyncio
    import pytest
    from pulsecart import Producer, PublishError
    from pulsecart.events import OrderPlaced

    async def publish_after_the_end(events):
        await events.aclose()
        try:
            await Producer(events).publish(OrderPlaced(user_id="u1", order_id="o1", payload={}))
        except PublishError:
            pass  # as code under test may do
"""


def test_unexpected_failure_fails_the_test_at_its_end(suite):
    """A failure that the code under test swallows is reported, with the way out."""
    result = suite(f"""{CLOSED}
    def test_swallows(pulsecart_events):
        asyncio.run(publish_after_the_end(pulsecart_events))

    def test_asserts(pulsecart_events):
        asyncio.run(publish_after_the_end(pulsecart_events))
        pulsecart_events.assert_failed(OrderPlaced)

    @pytest.mark.pulsecart_allow_failures
    def test_is_marked(pulsecart_events):
        asyncio.run(publish_after_the_end(pulsecart_events))

    def test_outage(pulsecart_events):
        with pulsecart_events.outage(), pytest.raises(PublishError):
            asyncio.run(Producer(pulsecart_events).publish(OrderPlaced(user_id="u1", order_id="o1", payload={{}})))
    """)
    result.assert_outcomes(passed=4, errors=1)
    result.stdout.fnmatch_lines(
        [
            "*ERROR at teardown of test_swallows*",
            "an event could not be published, which the test does not expect:",
            "  order.placed: TransportClosed: the memory transport is closed",
            "If this is right, mark the test with @pytest.mark.pulsecart_allow_failures.",
        ]
    )


def test_service_runs_on_the_events(suite):
    """The client is a synchronous httpx.Client of the whole application, with errors, readiness and /dev."""
    result = suite("""
        import gzip, threading
        import httpx
        import pytest
        from pulsecart.events import OrderPlaced

        ORDER = {"event_type": "order.placed", "user_id": "u1", "order_id": "o1", "payload": {"n": 1}}

        def test_ingest(pulsecart_service, pulsecart_events, capfd):
            client = pulsecart_service.client
            assert isinstance(client, httpx.Client)
            answer = client.post("/events/ingest", json=ORDER)
            assert answer.status_code == 202, answer.text
            event = pulsecart_events.assert_published(OrderPlaced, user_id="u1", payload={"n": 1})
            assert event.event_id == answer.json()["event_id"]
            assert client.post("/events/ingest", json=ORDER | {"user_id": ""}).json()["type"] == "invalid-event"
            assert client.get("/readyz").status_code == 200
            assert len(client.get("/dev/messages?user_id=u1").json()["messages"]) == 1
            body = gzip.compress(client.build_request("POST", "/", json=ORDER).read())
            headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
            assert client.post("/events/ingest", content=iter([body]), headers=headers).status_code == 202
            assert capfd.readouterr() == ("", "")

        def test_outage(pulsecart_service, pulsecart_events):
            with pulsecart_events.outage():
                answer = pulsecart_service.client.post("/events/ingest", json=ORDER)
            assert (answer.status_code, answer.json()["type"]) == (503, "broker-unavailable")

        def test_wait(pulsecart_service, pulsecart_events):
            thread = threading.Timer(0.1, pulsecart_service.client.post, ["/events/ingest"], {"json": ORDER})
            thread.start()
            assert pulsecart_events.blocking_wait_for(OrderPlaced, timeout=30).order_id == "o1"
            thread.join()

        def test_middleware_of_the_application(pulsecart_service):
            assert pulsecart_service.app.routes

        def test_log_configuration_is_left_alone(pulsecart_service):
            pass

        def test_log_configuration_is_restored():
            import structlog
            assert not structlog.is_configured()
    """)
    result.assert_outcomes(passed=6)


def test_settings_can_be_overridden(suite):
    """A suite serves its own events by overriding `pulsecart_settings`; its own structlog configuration is kept."""
    result = suite("""
        import pytest, structlog
        from attrs import frozen
        from pulsecart import Event, event
        from pulsecart.serve.settings import Settings

        @event("shop.opened", topic="shop-events")
        @frozen(kw_only=True)
        class Opened(Event):
            pass

        @pytest.fixture
        def pulsecart_settings():
            structlog.configure()
            return Settings(transport="memory", events=(__name__,))

        def test_own_event(pulsecart_service, pulsecart_events):
            body = {"event_type": "shop.opened", "user_id": "u1", "payload": {}}
            assert pulsecart_service.client.post("/events/ingest", json=body).status_code == 202
            pulsecart_events.assert_published(Opened)

        def test_configuration():
            assert structlog.is_configured()
    """)
    result.assert_outcomes(passed=2)


def test_unrelated_suite_loads_nothing(suite, monkeypatch):
    """Without a fixture of pulsecart, a run of pytest loads none of what the fixtures need."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # other plugins may load it
    source = f"""
        import sys

        def test_modules():
            assert "pulsecart.testing.plugin" in sys.modules
            assert not [name for name in {HEAVY!r} if name in sys.modules]
    """
    suite(source, "-p", "pulsecart.testing.plugin").assert_outcomes(passed=1)


def test_unrelated_suite_pays_less_than_20_ms(pytester):
    """Importing the plugin in a process that has pytest takes less than 20 ms of CPU time, at best of five."""
    program = pytester.makepyfile(
        "import pytest, time\nstarted = time.process_time()\nimport pulsecart.testing.plugin\n"
        "print(time.process_time() - started)"
    )
    times = [float(pytester.run(sys.executable, program).outlines[0]) for _ in range(5)]
    assert min(times) < 0.020


def test_plugin_can_be_switched_off(suite):
    """`-p no:pulsecart` runs the suite without the fixtures."""
    result = suite("def test_one(): pass\n\ndef test_two(pulsecart_events): pass", "-p", "no:pulsecart")
    result.assert_outcomes(passed=1, errors=1)


def test_fixtures_are_listed(suite):
    """`pytest --fixtures` describes each fixture, and `--markers` the marker."""
    result = suite("", "--fixtures")
    for name in ("pulsecart_events", "pulsecart_service", "pulsecart_settings", "pulsecart_emulator"):
        result.stdout.fnmatch_lines([f"{name}*"])
    suite("", "--markers").stdout.fnmatch_lines(["@pytest.mark.pulsecart_allow_failures: *"])


EMULATED = """
    import socket

    def connect(host):
        name, port = host.split(":")
        socket.create_connection((name, int(port)), timeout=5).close()

    def test_one(pulsecart_emulator, request):
        connect(pulsecart_emulator)
        request.config.stash["host"] = pulsecart_emulator

    def test_two(pulsecart_emulator, request):
        connect(pulsecart_emulator)
        assert request.config.stash["host"] == pulsecart_emulator
"""

GCLOUD = f"""#!{sys.executable}
import os, socket, sys
with open(os.environ["STARTS"], "a") as starts:
    print(os.getpid(), *sys.argv[1:], file=starts)
if os.environ.get("BROKEN"):
    sys.exit("component pubsub-emulator is not installed")
host, port = next(argument for argument in sys.argv if argument.startswith("--host-port=")).split("=")[1].split(":")
server = socket.create_server((host, int(port)))
while True:
    server.accept()[0].close()
"""


@pytest.fixture
def gcloud(pytester, monkeypatch):
    """Put a program named gcloud, which listens, first in PATH. Return the file that it notes its starts in."""
    folder = pytester.mkdir("bin")
    program = folder / "gcloud"
    program.write_text(GCLOUD)
    program.chmod(0o755)
    starts = pytester.path / "starts"
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    monkeypatch.setenv("STARTS", str(starts))
    return starts


def test_emulator_is_started_once_and_stopped(suite, gcloud):
    """All tests of a session share an emulator, which ends with the session."""
    suite(EMULATED).assert_outcomes(passed=2)
    (start,) = gcloud.read_text().splitlines()
    pid, *arguments = start.split()
    assert arguments[:4] == ["beta", "emulators", "pubsub", "start"]
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)


def test_emulator_that_does_not_start_shows_its_output(suite, gcloud, monkeypatch):
    """What gcloud says is in the error."""
    monkeypatch.setenv("BROKEN", "1")
    result = suite(EMULATED)
    result.assert_outcomes(errors=2)
    result.stdout.fnmatch_lines(
        ["*the Pub/Sub emulator did not start*", "*component pubsub-emulator is not installed*"]
    )


@pytest.mark.parametrize(("ci", "outcome"), [("", "skipped"), ("1", "errors")])
def test_missing_emulator_skips_or_fails(suite, monkeypatch, ci, outcome):
    """Without gcloud a developer's tests are skipped; where CI is set they fail, so that nobody is misled."""
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setenv("CI", ci)
    result = suite(EMULATED, "-ra")
    result.assert_outcomes(**{outcome: 2})
    result.stdout.fnmatch_lines(["*there is no Pub/Sub emulator: install gcloud*"])


def test_running_emulator_is_used(suite, gcloud, monkeypatch):
    """The emulator at PUBSUB_EMULATOR_HOST is used, and none is started."""
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", "127.0.0.1:8085")
    suite("def test_it(pulsecart_emulator): assert pulsecart_emulator == '127.0.0.1:8085'").assert_outcomes(passed=1)
    assert not gcloud.exists()
