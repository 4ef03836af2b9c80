"""`pulsecart tail`: what it prints, and how it ends."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from pulsecart import Producer
from pulsecart.events import OrderPlaced
from pulsecart.transports import EmulatorTransport
from tests.google_login import new_key, service_account
from tests.serving import run, serving
from tests.subscriptions import subscriptions, until

SECONDS = 60
TOPIC = OrderPlaced.topic


class Tail:
    """A running `pulsecart tail`."""

    def __init__(self, process):
        self.process = process
        self.lines = []
        self.errors = b""
        self._threads = [threading.Thread(target=self._read), threading.Thread(target=self._read_errors)]
        for thread in self._threads:
            thread.start()

    def _read(self):
        for line in self.process.stdout:
            self.lines.append(line)

    def _read_errors(self):
        for line in self.process.stderr:
            self.errors += line

    def wait_for(self, count):
        until(lambda: len(self.lines) >= count)
        return [json.loads(line) for line in self.lines]

    def end(self, number=None):
        """Send a signal, if one is given, and return the exit code."""
        if number is not None:
            self.process.send_signal(number)
        code = self.process.wait(SECONDS)
        for thread in self._threads:
            thread.join(SECONDS)
        return code


@contextmanager
def tailing(*arguments, **environment):
    process = subprocess.Popen(
        [sys.executable, "-m", "pulsecart", "tail", *arguments],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with process:
        tail = Tail(process)
        try:
            yield tail
        finally:
            process.kill()
            tail.end()


def post(url, body):
    request = urllib.request.Request(f"{url}/events/ingest", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def order(number, user_id="u1", **changes):
    event = {"event_type": "order.placed", "event_id": f"e{number}", "user_id": user_id, "order_id": f"o{number}"}
    return json.dumps(event | {"payload": {"n": number}} | changes).encode()


@pytest.fixture
def service(tmp_path):
    with serving("--transport", "memory", cwd=tmp_path) as served:
        yield served.url


def test_tail_follows_a_service(service):
    """It prints what was published before and what follows, each on a line, exactly as published; Ctrl-C ends it."""
    spread = (
        b'{"event_type": "order.placed", "event_id": "e1", "user_id": "u1", "order_id": "o1",\r\n'
        b'"payload": {"total":\n89.90, "n": 123456789012345678901234567890, "text": "a\\nb"}}'
    )
    post(service, spread)
    with tailing("--from", service) as tail:
        tail.wait_for(1)
        post(service, order(2))
        events = tail.wait_for(2)
        assert [event["event_id"] for event in events] == ["e1", "e2"]
        assert b"89.90" in tail.lines[0]
        assert b"123456789012345678901234567890" in tail.lines[0]
        assert events[0]["payload"]["text"] == "a\nb"
        assert tail.end(signal.SIGINT) == 0
    assert tail.errors == b""


def test_tail_filters_and_counts(service):
    """With --event-type only events of the type are printed; --count ends it with 0."""
    viewed = {"event_type": "product.viewed", "user_id": "u1", "session_id": "s", "payload": {}, "event_id": "v1"}
    post(service, json.dumps(viewed).encode())
    post(service, order(1))
    with tailing("--from", service, "--event-type", "order.placed", "--count", "2") as tail:
        tail.wait_for(1)
        post(service, json.dumps(viewed | {"event_id": "v2"}).encode())
        post(service, order(2))
        post(service, order(3))
        assert tail.end() == 0
    assert [json.loads(line)["event_id"] for line in tail.lines] == ["e1", "e2"]


def test_tail_waits_for_the_first_event(service):
    """On an empty service it waits; rejected requests are no events; SIGTERM ends it with 0."""
    with tailing("--from", f"{service}/") as tail:
        with pytest.raises(urllib.error.HTTPError):
            post(service, b"{}")
        post(service, order(1))
        tail.wait_for(1)
        assert tail.end(signal.SIGTERM) == 0
    assert len(tail.lines) == 1


def test_tail_can_be_piped_into_send(service, tmp_path):
    """`pulsecart tail | pulsecart send -` publishes the same events again: ids, times, numbers and order."""
    for number in range(20):
        post(service, order(number, f"u{number % 3}", payload={"total": 0.1 * number}))

    def tail(url):
        return subprocess.Popen(
            [sys.executable, "-m", "pulsecart", "tail", "--from", url, "--count", "20"], stdout=subprocess.PIPE
        )

    with serving("--transport", "memory", cwd=tmp_path) as other:
        with tail(service) as first:
            sent = run("send", "-", "--to", other.url, stdin=first.stdout)
        assert sent.returncode == 0, sent.stderr
        with tail(other.url) as second, tail(service) as first:
            again, lines = second.communicate(timeout=SECONDS)[0], first.communicate(timeout=SECONDS)[0]
    for user in range(3):
        key = b'"user_id":"u%d"' % user
        assert [line for line in again.splitlines() if key in line] == [
            line for line in lines.splitlines() if key in line
        ]


def test_closed_output_ends_it(service):
    """When the reader of the output has gone, it ends with 1, without a traceback."""
    post(service, order(1))
    command = [sys.executable, "-m", "pulsecart", "tail", "--from", service]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline()
        process.stdout.close()
        numbers = iter(range(2, 10_000))
        until(lambda: post(service, order(next(numbers))) and process.poll() is not None)
        assert process.stderr.read() == b""
    assert process.returncode == 1


def test_service_that_stops_ends_it(tmp_path):
    """When the service goes away, it ends with 1 and says so. The service does not wait for it."""
    with serving("--transport", "memory", cwd=tmp_path) as served, tailing("--from", served.url) as tail:
        post(served.url, order(1))
        tail.wait_for(1)
        assert served.stop() == 0
        assert tail.end() == 1
    assert b"/dev/stream has ended" in tail.errors


def test_key_is_sent(tmp_path):
    """With keys, the key of --key or PULSECART_KEY is sent; without, the answer is shown."""
    new = run("keys", "new", "reader").stdout.partition("\n")
    sources = tmp_path / "sources.toml"
    sources.write_text(new[2])
    with serving("--transport", "memory", "--auth", "keys", "--sources", str(sources), cwd=tmp_path) as served:
        ended = run("tail", "--from", served.url)
        assert (ended.returncode, ended.stdout) == (1, "")
        assert "answers 401: " in ended.stderr
        body = order(1)
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {new[0]}"}
        with urllib.request.urlopen(urllib.request.Request(f"{served.url}/events/ingest", body, headers), timeout=30):
            pass
        environment = os.environ | {"PULSECART_KEY": new[0]}
        assert json.loads(run("tail", "--from", served.url, "--count", "1", env=environment).stdout)["event_id"] == "e1"


@contextmanager
def answering(status, body):
    """Serve one answer to every request."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_arguments):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (404, b"{}", "does not exist: pulsecart streams events only in development"),
        (403, b'{"type":"forbidden-host","detail":"The peer is not listed."}', "answers 403: The peer is not listed."),
        (500, b"<html>", "answers 500: there is no explanation"),
        (200, b"<html>\n", "/dev/stream has ended"),
        (200, b"event: message\ndata: {}\n\n", "does not answer like pulsecart"),
    ],
)
def test_other_answers_are_explained(status, body, message):
    """An answer that is no list of messages ends it with 1 and a sentence."""
    with answering(status, body) as url:
        ended = run("tail", "--from", url)
    assert ended.returncode == 1
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr


def streamed(*messages):
    return b": comment\n\n" + b"".join(b"id: 1\nevent: message\ndata: %b\n\n" % message for message in messages)


def test_message_that_is_no_event_is_left_out():
    """What would be no line of NDJSON is reported, and the next event is printed."""
    body = streamed(
        b'{"message_id":"7","attributes":{},"data":[1]}', b'{"message_id":"8","attributes":{},"data":{"a":1}}'
    )
    with answering(200, body) as url:
        ended = run("tail", "--from", url, "--count", "1")
    assert (ended.returncode, ended.stdout) == (0, '{"a":1}\n')
    assert ended.stderr == "Message 7 is not a JSON object, and is skipped.\n"


def test_proxy_of_the_environment_is_not_used():
    """A service in development is called directly."""
    with answering(200, streamed(b'{"message_id":"8","attributes":{},"data":{"a":1}}')) as url:
        ended = run("tail", "--from", url, "--count", "1", env=os.environ | {"http_proxy": "http://127.0.0.1:1"})
    assert ended.stdout == '{"a":1}\n'


def test_nobody_listens():
    """Without a service, it ends with 1 and a hint."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ended = run("tail", "--from", f"http://127.0.0.1:{port}/")
    assert ended.returncode == 1
    assert f"http://127.0.0.1:{port}/dev/stream does not answer: " in ended.stderr
    assert "Is `pulsecart serve` running?" in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--from", "localhost:8000"], "'localhost:8000' is not a URL such as http://127.0.0.1:8000"),
        (["--from", "file:///etc/passwd"], "is not a URL"),
        (["--from", "http://"], "is not a URL"),
        (["--key", "a b"], "a key is printable ASCII characters"),
        (["--key", "é"], "a key is printable ASCII characters"),
        (["--topic", "t", "--from", "http://x"], "--from names a service to follow, --topic a topic"),
        (["--count", "0"], "--count"),
        (["--topic", "t"], "the memory transport has no topics: set PULSECART_TRANSPORT to pubsub, or to emulator"),
    ],
)
def test_bad_arguments_are_usage_errors(arguments, message):
    """What cannot work ends with 2 and says what to do."""
    ended = run("tail", *arguments)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert message in " ".join(ended.stderr.split())


def test_bad_settings_are_usage_errors():
    """All settings of the connection that do not work are listed."""
    environment = os.environ | {"PUBSUB_EMULATOR_HOST": "nowhere", "PULSECART_CA_FILE": "/nonexistent"}
    ended = run("tail", "--topic", "t", env=environment)
    assert ended.returncode == 2
    assert "PUBSUB_EMULATOR_HOST" in ended.stderr
    assert "PULSECART_CA_FILE" in ended.stderr


def test_missing_credentials_are_a_usage_error(tmp_path):
    """Without credentials, real Pub/Sub cannot be followed."""
    environment = {"PULSECART_TRANSPORT": "pubsub", "GCP_PROJECT_ID": "test"}
    environment |= {"GOOGLE_APPLICATION_CREDENTIALS": str(tmp_path / "none.json")}
    ended = run("tail", "--topic", "t", env=os.environ | environment)
    assert ended.returncode == 2
    assert "Application Default Credentials" in ended.stderr


def test_closed_standard_output_is_a_usage_error():
    """Without a standard output there is nowhere to print to."""
    program = "import sys\nsys.stdout = None\nfrom pulsecart.cli import main\nmain(['tail'])"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2
    assert "standard output is closed" in ended.stderr


@pytest.fixture
def broker():
    with subscriptions([TOPIC, "other-topic"]) as server:
        yield server


def emulated(server):
    return {"PUBSUB_EMULATOR_HOST": server.host, "GCP_PROJECT_ID": "test"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_tail_follows_topics(broker, number):
    """It prints what is published to each topic from now on, and deletes its subscriptions at the end."""
    broker.publish(TOPIC, order(0), "u1")
    with tailing("--topic", TOPIC, "--topic", "other-topic", "--topic", TOPIC, **emulated(broker)) as tail:
        broker.wait_for_subscriptions(2)
        for n in range(1, 250):
            broker.publish(TOPIC if n % 2 else "other-topic", order(n, f"u{n % 4}"), f"u{n % 4}")
        events = tail.wait_for(249)
        assert tail.end(number) == 0
    for user in range(4):
        numbers = [event["payload"]["n"] for event in events if event["user_id"] == f"u{user}"]
        assert numbers == [n for n in range(1, 250) if n % 4 == user]
    assert broker.subscriptions == {}
    assert b"Following projects/test/topics/pulsecart.commerce-events" in tail.errors


def test_topics_can_be_filtered_and_counted(broker):
    """--event-type and --count work on topics, too; messages that are not events are skipped."""
    with tailing("--topic", TOPIC, "--event-type", "order.placed", "--count", "1", **emulated(broker)) as tail:
        broker.wait_for_subscriptions(1)
        broker.publish(TOPIC, b"{}", event_type="payment.failed")
        broker.publish(TOPIC, b"\xff")
        broker.publish(TOPIC, order(1))
        assert tail.end() == 0
    assert [json.loads(line)["event_id"] for line in tail.lines] == ["e1"]
    assert b"Message 2 is not a JSON object" in tail.errors
    assert broker.subscriptions == {}


def test_topic_that_does_not_exist(broker):
    """It ends with 1 and the broker's words."""
    ended = run("tail", "--topic", "nothing", env=os.environ | emulated(broker))
    assert ended.returncode == 1
    assert "cannot follow projects/test/topics/nothing: NOT_FOUND: " in ended.stderr


def test_broker_that_does_not_answer(monkeypatch):
    """A subscription that cannot be created within some seconds is an error."""
    program = (
        "import sys\nimport pulsecart.transports.pubsub.following as f\nf.CREATE_SECONDS = 0.3\n"
        "from pulsecart.cli import main\nmain(['tail', '--topic', 't'])"
    )
    environment = os.environ | {"PUBSUB_EMULATOR_HOST": "127.0.0.1:1", "GCP_PROJECT_ID": "test"}
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False, env=environment
    )
    assert ended.returncode == 1
    assert "cannot follow projects/test/topics/t: UNAVAILABLE" in ended.stderr


def test_interrupt_while_the_broker_is_away():
    """A signal ends it with 0 while it tries to subscribe; that it cannot delete anything is reported."""
    environment = {"PUBSUB_EMULATOR_HOST": "127.0.0.1:1", "GCP_PROJECT_ID": "test"}
    with tailing("--topic", TOPIC, **environment) as tail:
        until(lambda: b"trying again" in tail.errors)
        assert tail.end(signal.SIGTERM) == 0
    assert b"is not deleted" in tail.errors


def test_interrupt_while_a_subscription_is_created(broker):
    """A subscription whose creation was not answered yet is deleted, too."""
    broker.answers.clear()
    with tailing("--topic", TOPIC, **emulated(broker)) as tail:
        broker.wait_for_subscriptions(1)
        tail.process.send_signal(signal.SIGINT)
        broker.wait_for_subscriptions(0)
        broker.answers.set()
        assert tail.end() == 0


def test_temporary_failures_are_retried(broker):
    """Lost answers, failures that pass, and pulls without an answer do not end it; what is printed is printed once."""
    broker.script += [("PUT", "UNAVAILABLE"), (":pull", "UNAVAILABLE"), (":pull", "DEADLINE_EXCEEDED")]
    broker.script += [(":acknowledge", "UNAVAILABLE"), ("DELETE", "UNAVAILABLE"), ("DELETE", "NOT_FOUND")]
    with tailing("--topic", TOPIC, **emulated(broker)) as tail:
        broker.wait_for_subscriptions(1)
        until(lambda: len(broker.script) == 3)
        broker.publish(TOPIC, order(1))
        tail.wait_for(1)
        until(lambda: not any(broker.outstanding))
        assert tail.end(signal.SIGINT) == 0
    assert len(tail.lines) == 1
    assert broker.script == []
    assert tail.errors == b"Following projects/test/topics/pulsecart.commerce-events\n"


def test_lost_answer_to_the_creation(broker):
    """If the broker says that the subscription exists, it was created by an attempt without an answer."""
    broker.script.append(("PUT", "ALREADY_EXISTS"))
    ended = run("tail", "--topic", TOPIC, env=os.environ | emulated(broker))
    # The answer was made up, so that there is nothing to pull from.
    assert ended.returncode == 1
    assert "NOT_FOUND: /v1/projects/test/subscriptions/pulsecart-tail-" in ended.stderr
    assert ":pull" in ended.stderr


def test_broker_that_comes_back(tmp_path):
    """While the broker is away, it says so once and tries again."""
    with subscriptions([TOPIC]) as broker, tailing("--topic", TOPIC, **emulated(broker)) as tail:
        broker.wait_for_subscriptions(1)
        until(lambda: broker.pulls)
        kept = broker.subscriptions
        broker.stop()
        until(lambda: b"The broker does not answer, trying again: " in tail.errors)
        with subscriptions([TOPIC], port=int(broker.host.rpartition(":")[2]), kept=kept) as again:
            again.publish(TOPIC, order(1))
            tail.wait_for(1)
            assert tail.end(signal.SIGINT) == 0
            assert again.subscriptions == {}
    assert tail.errors.count(b"trying again") == 1


def test_subscription_that_cannot_be_deleted_is_reported(broker):
    """The warning names it; the exit code is still 0."""
    with tailing("--topic", TOPIC, **emulated(broker)) as tail:
        until(lambda: b"Following" in tail.errors)
        broker.script.append(("DELETE", "PERMISSION_DENIED"))
        assert tail.end(signal.SIGTERM) == 0
    assert re.search(rb"is not deleted, and expires in a day: .*PERMISSION_DENIED", tail.errors)


def test_real_pubsub_is_followed_with_credentials(tmp_path):
    """With an endpoint, certificates and a service account, requests go over TLS and carry a token."""
    from pulsecart.testing.strict.certificate import new_certificate

    certificate = new_certificate(str(tmp_path))
    (tmp_path / "account.json").write_text(service_account(new_key()))
    with subscriptions([TOPIC], certificate=certificate) as server:
        environment = {
            "PULSECART_TRANSPORT": "pubsub",
            "GCP_PROJECT_ID": "test",
            "PULSECART_ENDPOINT": server.host,
            "PULSECART_CA_FILE": certificate.chain_file,
            "GOOGLE_APPLICATION_CREDENTIALS": str(tmp_path / "account.json"),
        }
        with tailing("--topic", TOPIC, "--count", "1", **environment) as tail:
            server.wait_for_subscriptions(1)
            server.publish(TOPIC, order(1))
            assert tail.end() == 0
        assert [json.loads(line)["event_id"] for line in tail.lines] == ["e1"]
        assert server.subscriptions == {}
        (token,) = server.tokens
        assert token.startswith("Bearer ")


@pytest.mark.emulator
def test_tail_follows_a_topic_on_the_emulator():
    """On the emulator, what a producer publishes comes out of tail, in order."""
    host = os.environ["PUBSUB_EMULATOR_HOST"]
    project = "tail-test"

    async def publish(count):
        async with EmulatorTransport(project=project, host=host, creates_topics=True) as transport:
            for n in range(count):
                event = OrderPlaced(event_id=f"e{n}", user_id="u1", order_id=f"o{n}", payload={"n": n})
                await Producer(transport).publish(event)

    asyncio.run(publish(1))
    with tailing("--topic", TOPIC, "--count", "50", GCP_PROJECT_ID=project) as tail:
        until(lambda: b"Following" in tail.errors)
        asyncio.run(publish(50))
        assert tail.end() == 0
    assert [json.loads(line)["event_id"] for line in tail.lines] == [f"e{n}" for n in range(50)]


def test_help_lists_the_exit_codes():
    """--help has the options and the exit codes."""
    ended = run("tail", "--help")
    assert ended.returncode == 0
    for text in ("--from URL", "--topic TOPIC", "Exit codes:", "ended by Ctrl+C or SIGTERM"):
        assert text in ended.stdout
