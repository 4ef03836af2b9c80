import contextlib
import gzip
import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest
from backports import zstd

from tests.client.scripted import accepted, incomplete, problem, scripted
from tests.serving import run, serving

WAIT_SECONDS = 60


def order(n, users=7, **changes):
    return {"event_type": "order.placed", "user_id": f"u{n % users}", "order_id": f"o{n}", "payload": {}} | changes


def ndjson(events):
    return b"".join(json.dumps(event).encode() + b"\n" for event in events)


def order_ids(call):
    return [event["order_id"] for event in call.document]


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def published(url):
    return httpx.get(f"{url}/dev/messages").json()["messages"]


def once_in_order(messages, users=7):
    """Return how many events there are after duplicates are dropped by id; each user's are in order."""
    seen = {}
    for message in messages:
        seen.setdefault(message["attributes"]["event_id"], message["data"])
    for user in range(users):
        found = [int(data["order_id"][1:]) for data in seen.values() if data["user_id"] == f"u{user}"]
        assert found == sorted(set(found))
    return len(seen)


@contextlib.contextmanager
def sending(*arguments, **options):
    """Run `pulsecart send` while the block runs."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pulsecart", "send", *map(str, arguments)],
        stderr=subprocess.PIPE,
        **options,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def until(condition):
    end = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


@pytest.fixture
def accepting():
    with scripted(lambda call, _n: accepted(call)) as server:
        yield server


# What is sent


@pytest.mark.parametrize("suffix", [".ndjson", ".gz", ".zst", ".two.gz", "-"])
def test_all_lines_are_published_in_order(tmp_path, suffix):
    """A file, plain or compressed, or standard input: each line is published once, in the order of its user."""
    plain = ndjson(map(order, range(500))).replace(b"\n", b"\r\n", 1).replace(b"\n", b"\n\n \n", 1).rstrip()
    half = len(plain) // 2
    content = {
        ".gz": lambda: gzip.compress(plain),
        ".two.gz": lambda: gzip.compress(plain[:half]) + gzip.compress(plain[half:]),
        ".zst": lambda: zstd.compress(plain),
    }.get(suffix, lambda: plain)()
    file = tmp_path / f"events{suffix}"
    file.write_bytes(content)
    with serving(cwd=tmp_path) as served, file.open("rb") as stdin:
        name = "-" if suffix == "-" else str(file)
        ended = run("send", name, "--to", served.url, "--batch-events", "120", stdin=stdin)
        messages = published(served.url)
    assert (ended.returncode, ended.stdout) == (0, "")
    assert re.fullmatch(r"500 events sent in [\d.]+ s, 0 failed.\n", ended.stderr)
    assert len(messages) == once_in_order(messages) == 500


def test_lines_are_sent_as_they_are(tmp_path, accepting):
    """Numbers, spaces and ids of a line arrive byte for byte."""
    line = b'{"event_id" : "mine", "event_type":"order.placed","user_id":"u","order_id":"o","payload":{"n":89.90}}'
    (tmp_path / "e").write_bytes(line)
    assert run("send", "e", "--to", accepting.url).returncode == 0
    assert accepting.calls[0].body == b"[%b]" % line


def test_nothing_is_sent_of_an_empty_file(tmp_path, accepting):
    """An empty file, or one with blank lines only, is sent."""
    (tmp_path / "e").write_bytes(b"\n \r\n")
    assert run("send", "e", "--to", accepting.url, "--checkpoint", "c").returncode == 0
    assert json.loads((tmp_path / "c").read_bytes())["lines"] == 2
    assert (tmp_path / "c").stat().st_mode & 0o777 == 0o600
    assert accepting.calls == []


# Failures


def test_failures_can_be_corrected_and_sent(tmp_path):
    """Malformed lines and invalid events fail alone. They are described, and written in order, with ids if possible."""
    lines = [ndjson([order(0)]), b"{torn\n", ndjson([order(1, order_id="")]), b"[1]\n", b"\xff\n", ndjson([order(2)])]
    (tmp_path / "e").write_bytes(b"".join(lines))
    with serving(cwd=tmp_path) as served:
        ended = run("send", "e", "--to", served.url, "--failures", "f")
        assert ended.returncode == 1
        torn, invalid, *others = (tmp_path / "f").read_bytes().splitlines()
        assert (torn, others) == (b"{torn", [b"[1]", b"\xff"])
        event = json.loads(invalid)
        (tmp_path / "again").write_bytes(ndjson([event | {"order_id": "o1"}]))
        assert run("send", "again", "--to", served.url).returncode == 0
        messages = published(served.url)
    assert "Line 2: 400 malformed-body: The event is not JSON" in ended.stderr
    assert "Line 3: 422 invalid-event: " in ended.stderr
    assert "/order_id: must not be empty" in ended.stderr
    assert "2 events sent in" in ended.stderr
    assert "4 failed.\nThose that failed are in f.\n" in ended.stderr
    assert [message["data"]["order_id"] for message in messages] == ["o0", "o2", "o1"]
    assert messages[2]["attributes"]["event_id"] == event["event_id"]


def test_503_for_some_events(tmp_path):
    """Events that stay unavailable are written with the later ones of their user, which are not sent before them."""
    (tmp_path / "e").write_bytes(ndjson(order(n, users=2) for n in range(8)))
    moment = "2026-01-01T00:00:00Z"

    def script(call, _n):
        failures = {n: {"timestamp": moment} for n, id_ in enumerate(order_ids(call)) if id_ == "o2" and not recovered}
        return incomplete(call, failures) if failures else accepted(call)

    recovered = False
    with scripted(script) as server:
        options = ("--to", server.url, "--batch-events", "3", "--attempts", "2")
        ended = run("send", "e", *options, "--failures", "f")
        assert ended.returncode == 1
        assert [event["order_id"] for event in read(tmp_path / "f")] == ["o2", "o4", "o6"]
        assert [event.get("timestamp") for event in read(tmp_path / "f")] == [moment, None, None]
        first_ids = {id_ for call in server.calls for id_ in call.ids}
        recovered = True
        assert run("send", "f", *options).returncode == 0
    assert [order_ids(call) for call in server.calls] == [
        ["o0", "o1", "o2"],
        ["o2"],
        ["o3", "o5"],
        ["o7"],
        ["o2", "o4", "o6"],
    ]
    assert server.calls[-1].ids[0] in first_ids
    assert "Line 5: 503 aborted: An earlier event of the user was not published" in ended.stderr


def test_user_stays_held_after_an_interruption(tmp_path):
    """A continued run does not send the later events of users whose events are among the failures."""
    (tmp_path / "e").write_bytes(ndjson(order(n, users=2) for n in range(6)))

    def script(call, n):
        if n == 0:
            return incomplete(call, {0: {}})
        return problem(503, "overloaded") if n == 1 else accepted(call)

    options = ("--batch-events", "2", "--attempts", "1", "--failures", "f", "--checkpoint", "c")
    with scripted(script) as server:
        assert run("send", "e", "--to", server.url, *options).returncode == 3
        assert run("send", "e", "--to", server.url, *options).returncode == 1
    assert [order_ids(call) for call in server.calls] == [["o0", "o1"], ["o3"], ["o3"], ["o5"]]
    assert [event["order_id"] for event in read(tmp_path / "f")] == ["o0", "o2", "o4"]


def test_many_failures_are_counted(tmp_path, accepting):
    """At most ten failures are described."""
    (tmp_path / "e").write_bytes(b"{\n" * 25)
    ended = run("send", "e", "--to", accepting.url)
    assert ended.returncode == 1
    assert ended.stderr.count("malformed-body") == 10
    assert "15 events more failed; they are not shown." in ended.stderr


def test_failures_of_too_many_users_end_the_run(tmp_path):
    """If the events of more than a thousand users fail, that is an outage, and their lines remain to be sent."""
    (tmp_path / "e").write_bytes(ndjson(order(n, users=5000) for n in range(2002)))
    with scripted(lambda call, _n: incomplete(call, {n: {} for n in range(len(call.ids))}, most=9999)) as server:
        options = ("--to", server.url, "--attempts", "1", "--batch-events", "1001", "--checkpoint", "c")
        ended = run("send", "e", *options, "--failures", "f")
    assert ended.returncode == 3
    assert "Events of more than 1,000 users fail: 503 broker-unavailable" in ended.stderr
    assert (tmp_path / "f").read_bytes() == b""
    assert json.loads((tmp_path / "c").read_bytes())["lines"] == 0


def test_failures_are_never_overwritten(tmp_path, accepting):
    """Without a checkpoint, a file of failures that has events is refused; with one, it is continued."""
    (tmp_path / "e").write_bytes(b"{\n")
    (tmp_path / "f").write_bytes(b"earlier\n")
    ended = run("send", "e", "--to", accepting.url, "--failures", "f")
    assert ended.returncode == 2
    assert "f is not empty" in ended.stderr
    assert run("send", "e", "--to", accepting.url, "--failures", "f", "--checkpoint", "c").returncode == 1
    assert (tmp_path / "f").read_bytes() == b"earlier\n{\n"


@pytest.mark.parametrize(
    ("content", "kept"),
    [(b"a\nb\ntorn", b"a\nb\n"), (b"torn", b""), (b"a\n" + b"x" * 150_000, b"a\n"), (b"a\n", b"a\n")],
    ids=["torn", "only-torn", "long", "whole"],
)
def test_torn_line_of_a_killed_run_is_removed(tmp_path, accepting, content, kept):
    """A last line of the failures without its end is removed: its event is not settled, and is sent again."""
    (tmp_path / "e").write_bytes(b"")
    (tmp_path / "f").write_bytes(content)
    assert run("send", "e", "--to", accepting.url, "--failures", "f", "--checkpoint", "c").returncode == 0
    assert (tmp_path / "f").read_bytes() == kept


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_ends_the_run(tmp_path, accepting):
    """If failures cannot be written, the run ends, and their lines do not count as done."""
    (tmp_path / "e").write_bytes(ndjson([order(0)]) + b"{\n")
    ended = run("send", "e", "--to", accepting.url, "--failures", "/dev/full", "--checkpoint", "c")
    assert ended.returncode == 1
    assert "cannot be written: [Errno 28] No space left on device" in ended.stderr
    assert json.loads((tmp_path / "c").read_bytes())["lines"] == 0


# Interruptions


def test_service_gone_midway(tmp_path):
    """The run ends with 3. The same command continues when the service is back, and what was in doubt keeps its ids."""
    (tmp_path / "e").write_bytes(ndjson(map(order, range(50))))
    with scripted(lambda call, n: accepted(call) if n not in (2, 3) else None) as server:
        command = ("send", "e", "--to", server.url, "--checkpoint", "c", "--failures", "f")
        ended = run(*command, "--batch-events", "10", "--attempts", "2")
        assert ended.returncode == 3
        assert "Line 21: no-answer: http://127.0.0.1" in ended.stderr
        assert "All lines up to 20 are done. Run the same command again to continue." in ended.stderr
        assert run(*command, "--batch-events", "7").returncode == 0
        calls = len(server.calls)
        assert run(*command).returncode == 0
        assert len(server.calls) == calls
    sent = {}
    for call in server.calls:
        for event in call.document:
            assert sent.setdefault(event["order_id"], event["event_id"]) == event["event_id"]
    assert len(set(sent.values())) == 50
    assert (tmp_path / "f").read_bytes() == b""


def test_without_a_checkpoint_the_lines_that_are_done_are_named(tmp_path):
    """The message says where to go on."""
    (tmp_path / "e").write_bytes(ndjson(map(order, range(4))))
    with scripted(lambda call, n: problem(503, "overloaded") if n else accepted(call)) as server:
        ended = run("send", "e", "--to", server.url, "--batch-events", "2", "--attempts", "1")
    assert ended.returncode == 3
    assert ended.stderr.endswith(
        "Line 3: 503 overloaded: It is overloaded.\nAll lines up to 2 are done. "
        "Without --checkpoint, another run sends them again, under new ids unless they have their own.\n"
    )


def test_killed_run_continues(tmp_path):
    """After kill -9 the same command sends the rest: each event once by its id, and in order for each user."""
    (tmp_path / "e").write_bytes(ndjson(map(order, range(6000))))
    with serving(cwd=tmp_path) as served:
        arguments = ("e", "--to", served.url, "--checkpoint", "c", "--failures", "f", "--batch-events", "50")
        for target in (500, 2500):
            with sending(*arguments, cwd=tmp_path) as process:
                until(lambda target=target: lines_done(tmp_path / "c") >= target)
                process.kill()
                assert process.wait() == -signal.SIGKILL
            assert target <= lines_done(tmp_path / "c") < 6000
        assert run("send", *arguments).returncode == 0
        messages = published(served.url)
    assert once_in_order(messages) == 6000
    assert len(messages) <= 6000 + 2 * 50  # what was in doubt


def lines_done(checkpoint):
    """Read a checkpoint, which is complete at any moment."""
    return json.loads(checkpoint.read_bytes())["lines"] if checkpoint.exists() else 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_run_continues_without_duplicates(tmp_path, number, code):
    """After Ctrl+C or SIGTERM the request in progress is finished, so that no event is sent twice."""
    (tmp_path / "e").write_bytes(ndjson(map(order, range(4000))))
    with serving(cwd=tmp_path) as served:
        arguments = ("e", "--to", served.url, "--checkpoint", "c", "--batch-events", "50")
        with sending(*arguments, cwd=tmp_path) as process:
            until(lambda: lines_done(tmp_path / "c") >= 500)
            process.send_signal(number)
            assert process.wait(WAIT_SECONDS) == code
            shown = process.stderr.read().decode()
        done = lines_done(tmp_path / "c")
        assert f"Interrupted.\nAll lines up to {done:,} are done." in shown
        assert len(published(served.url)) == done < 4000
        assert run("send", *arguments).returncode == 0
        messages = published(served.url)
    assert len(messages) == once_in_order(messages) == 4000


def test_second_interrupt_ends_at_once(tmp_path):
    """If the service does not answer, Ctrl+C a second time ends the run; the checkpoint is that before the request."""
    (tmp_path / "e").write_bytes(ndjson(map(order, range(4))))
    arrived, go_on = threading.Event(), threading.Event()

    def script(call, n):
        if n == 1:
            arrived.set()
            go_on.wait(WAIT_SECONDS)
        return accepted(call)

    with scripted(script) as server:
        try:
            arguments = ("e", "--to", server.url, "--checkpoint", "c", "--batch-events", "2")
            with sending(*arguments, cwd=tmp_path) as process:
                assert arrived.wait(WAIT_SECONDS)
                process.send_signal(signal.SIGINT)
                shown = b""
                while b"Finishing the request in progress" not in shown:
                    read = os.read(process.stderr.fileno(), 1000)
                    assert read, shown
                    shown += read
                process.send_signal(signal.SIGINT)
                assert process.wait(WAIT_SECONDS) == 130
        finally:
            go_on.set()
    assert lines_done(tmp_path / "c") == 2


def test_interrupt_while_standard_input_is_silent(tmp_path, accepting):
    """A run that waits for a line has sent the events before it, and ends at once."""
    arguments = ("-", "--to", accepting.url, "--checkpoint", tmp_path / "c", "--batch-events", "2")
    with sending(*arguments, stdin=subprocess.PIPE) as process:
        process.stdin.write(ndjson(map(order, range(3))))
        process.stdin.flush()
        until(lambda: lines_done(tmp_path / "c") == 3)
        process.send_signal(signal.SIGINT)
        assert process.wait(WAIT_SECONDS) == 130
        assert b"All lines up to 3 are done." in process.stderr.read()
        process.stdin.close()
    assert len(accepting.calls) == 2


def test_standard_input_that_stops_within_a_line(tmp_path, accepting):
    """The events before an incomplete line are sent; the line is continued, and the last one needs no end."""
    first, second = ndjson([order(0)]), ndjson([order(1)])
    with sending("-", "--to", accepting.url, "--checkpoint", tmp_path / "c", stdin=subprocess.PIPE) as process:
        process.stdin.write(first + second[:10])
        process.stdin.flush()
        until(lambda: lines_done(tmp_path / "c") == 1)
        process.stdin.write(second[10:-1])
        process.stdin.close()
        assert process.wait(WAIT_SECONDS) == 0
    assert lines_done(tmp_path / "c") == 2
    assert len(accepting.calls) == 2


def test_ignored_interrupt_stays_ignored(tmp_path):
    """A background job that was started with SIGINT ignored is not ended by it."""
    (tmp_path / "e").write_bytes(ndjson(map(order, range(4))))
    pids = []

    def script(call, n):
        if n == 0:
            os.kill(pids[0], signal.SIGINT)
        return accepted(call)

    ignore = "trap '' INT; exec \"$@\""
    with scripted(script) as server:
        command = [sys.executable, "-m", "pulsecart", "send", "-", "--to", server.url, "--batch-events", "2"]
        with subprocess.Popen(
            ["sh", "-c", ignore, "sh", *command], stdin=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            pids.append(process.pid)
            process.communicate((tmp_path / "e").read_bytes(), WAIT_SECONDS)
            assert process.returncode == 0
    assert len(server.calls) == 2


def test_standard_input_continues_if_its_lines_are_the_same(tmp_path):
    """With the same lines before, a pipe continues after those that are done; with others it is refused."""
    lines = ndjson(map(order, range(6)))
    with scripted(lambda call, n: accepted(call) if n != 1 else None) as server:
        command = ("send", "-", "--to", server.url, "--checkpoint", "c", "--batch-events", "2", "--attempts", "1")
        assert run_with(lines, *command).returncode == 3
        other = run_with(lines.replace(b"o1", b"oX"), *command)
        assert other.returncode == 2
        assert "does not begin with the 2 lines that the checkpoint says are sent" in other.stderr
        assert run_with(lines[:20], *command).returncode == 2
        assert run_with(lines, *command).returncode == 0
        assert run_with(lines + ndjson([order(9)]), *command).returncode == 0
    assert [order_ids(call) for call in server.calls] == [["o0", "o1"], *[["o2", "o3"]] * 2, ["o4", "o5"], ["o9"]]


def run_with(content, *arguments):
    file = os.memfd_create("lines")
    os.write(file, content)
    os.lseek(file, 0, os.SEEK_SET)
    try:
        return run(*arguments, stdin=file)
    finally:
        os.close(file)


# What does not work


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(ndjson(map(order, range(200))))[:-200], "e.gz cannot be read after line "),
        (b"no gzip", "e.gz cannot be read after line 0: Not a gzipped file"),
    ],
)
def test_truncated_file_is_sent_up_to_there(tmp_path, accepting, content, message):
    """What could be read is sent, and the exit code says that there was more."""
    (tmp_path / "e.gz").write_bytes(content)
    ended = run("send", "e.gz", "--to", accepting.url, "--checkpoint", "c")
    assert ended.returncode == 1
    assert message in ended.stderr
    sent = sum(len(call.ids) for call in accepting.calls)
    assert lines_done(tmp_path / "c") == sent
    assert f"\nAll lines up to {sent} are done." in ended.stderr


def test_line_that_never_ends_is_an_error(tmp_path, accepting):
    """A file that is not NDJSON is not read into memory."""
    with (tmp_path / "e").open("wb") as file:
        file.write(ndjson([order(0)]))
        file.truncate(500_000_000)
    ended = run("send", "e", "--to", accepting.url)
    assert ended.returncode == 1
    assert "line 2 of e has more than 33,554,432 bytes; send one JSON object a line" in ended.stderr
    assert "1 event sent" in ended.stderr


def test_refused_key_ends_the_run_without_showing_it(tmp_path, monkeypatch):
    """A 401 says nothing about the lines: the run ends with 4. The key is from the environment, and never shown."""
    key = "pck_" + "x" * 43
    monkeypatch.setenv("PULSECART_KEY", key)
    (tmp_path / "e").write_bytes(ndjson([order(0)]))
    with scripted(lambda _call, _n: problem(401, "unauthenticated")) as server:
        ended = run("send", "e", "--to", server.url, "--failures", "f")
        shown = run("send", "e", "--to", server.url, "--key", f"{key}\n")
        helped = run("send", "--help")
    assert ended.returncode == 4
    assert "Line 1: 401 unauthenticated" in ended.stderr
    assert [call.headers["authorization"] for call in server.calls] == [f"Bearer {key}"]
    assert (tmp_path / "f").read_bytes() == b""
    assert shown.returncode == 2
    assert "the key must be printable ASCII" in shown.stderr
    assert "PULSECART_KEY" in helped.stdout
    assert key not in ended.stderr + shown.stderr + helped.stdout


def test_service_starts_with_the_key_of_a_caller_in_its_environment(tmp_path):
    """PULSECART_KEY is not mistaken for a misspelt setting of the service."""
    with serving(cwd=tmp_path, PULSECART_KEY="pck_1") as served:
        (tmp_path / "e").write_bytes(ndjson([order(0)]))
        assert run("send", "e", "--to", served.url).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing"], "'missing' does not exist"),
        (["e", "--to", "localhost:8000"], "the URL must be the address of the service"),
        (["e", "--checkpoint", "e"], "e is not a checkpoint"),
        (["e", "--checkpoint", "no/c"], "--checkpoint no/c: No such file or directory"),
        (["e", "--checkpoint", "other"], "other is the checkpoint of a run to http://staging"),
        (["e", "--failures", "e"], "--failures must not name the file that is sent"),
        (["e", "--failures", "f", "--checkpoint", "./f"], "--failures and --checkpoint must name different files"),
        (["e", "--failures", "no/f"], "--failures no/f: No such file or directory"),
        (["e", "--batch-events", "0"], "--batch-events"),
    ],
)
def test_arguments_that_do_not_work(tmp_path, accepting, arguments, message):
    """Each has a message and the exit code 2, and nothing is sent."""
    (tmp_path / "e").write_bytes(ndjson([order(0)]))
    (tmp_path / "other").write_bytes(b'{"to":"http://staging","secret":"x","started":1}')
    ended = run("send", "--to", accepting.url, *arguments)
    assert ended.returncode == 2
    assert message in " ".join(ended.stderr.split())
    assert accepting.calls == []


def test_unreadable_file_is_an_error(tmp_path, accepting):
    """A file that cannot be opened is named, with the reason."""
    with socket.socket(socket.AF_UNIX) as no_file:
        no_file.bind("e")
        ended = run("send", "e", "--to", accepting.url)
    assert ended.returncode == 2
    assert "e: No such device or address" in ended.stderr


def test_closed_standard_input_is_an_error(tmp_path, accepting):
    """Standard input that is closed is named."""
    command = f"{sys.executable} -m pulsecart send - --to {accepting.url} <&-"
    ended = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False, timeout=WAIT_SECONDS)
    assert ended.returncode == 2
    assert "standard input is closed" in ended.stderr


def test_missing_httpx_is_explained(tmp_path):
    """Without the extra, the command says what to install; its help works."""
    (tmp_path / "e").write_bytes(b"")
    program = "import sys\nsys.modules['httpx'] = None\nfrom pulsecart.cli import main\nmain()"
    command = [sys.executable, "-c", program, "send"]
    ended = subprocess.run(
        [*command, "e", "--to", "http://h"], capture_output=True, text=True, check=False, timeout=WAIT_SECONDS
    )
    assert ended.returncode == 1
    assert "pip install 'pulsecart[client]'" in ended.stderr
    assert "Traceback" not in ended.stderr
    subprocess.run([*command, "--help"], check=True, capture_output=True, timeout=WAIT_SECONDS)


# Progress


def test_lines_report_the_progress(tmp_path, accepting):
    """Without a terminal, lines have the counts, the rate, the share and the time left, if the length is known."""
    (tmp_path / "e").write_bytes(ndjson(map(order, range(30))) + b"{\n")
    options = ("--to", accepting.url, "--batch-events", "10", "--report-every", "0")
    known = run("send", "e", *options).stderr.splitlines()
    assert re.fullmatch(r"10 events sent, 0 failed, [\d,]+/s, \d+%, \d+ s left", known[0])
    assert re.fullmatch(r"30 events sent, 1 failed, [\d,]+/s, 100%, 0 s left", known[3])
    with subprocess.Popen(["cat", "e"], cwd=tmp_path, stdout=subprocess.PIPE) as pipe:
        unknown = run("send", "-", *options, stdin=pipe.stdout).stderr.splitlines()
    assert re.fullmatch(r"10 events sent, 0 failed, [\d,]+/s", unknown[0])
    assert len(run("send", "e", "--to", accepting.url).stderr.splitlines()) == 2


@pytest.mark.parametrize("source", ["e", "-"])
def test_terminal_shows_a_bar(tmp_path, source):
    """On a terminal a bar shows counts, rate, percentage and time left; for a pipe, counts and rate."""
    (tmp_path / "e").write_bytes(ndjson(map(order, range(60))))

    def script(call, _n):
        time.sleep(0.15)  # the time left is shown after a second
        return accepted(call)

    shown = b""
    ours, its = pty.openpty()
    with scripted(script) as server:
        command = [sys.executable, "-m", "pulsecart", "send", source, "--to", server.url, "--batch-events", "5"]
        pipe = subprocess.Popen(["cat", "e"], cwd=tmp_path, stdout=subprocess.PIPE)
        with pipe, subprocess.Popen(command, stdin=pipe.stdout, stderr=its, cwd=tmp_path) as process:
            os.close(its)
            with contextlib.suppress(OSError):  # the end of a terminal
                while select.select([ours], [], [], WAIT_SECONDS)[0] and (more := os.read(ours, 10_000)):
                    shown += more
            assert process.wait(WAIT_SECONDS) == 0
    os.close(ours)
    text = shown.decode()
    assert re.search(r"\r.*Sending.*\d+ events sent, 0 failed, [\d,]+/s", text)
    assert "60 events sent in" in text
    assert bool(re.search(r"\d%  \d\d:\d\d:\d\d", text)) == (source == "e")


def test_memory_does_not_grow_with_the_file(tmp_path, accepting):
    """Ten times the lines take no more memory."""
    program = (
        "import atexit\nfrom pathlib import Path\nfrom pulsecart.cli import main\n"
        "atexit.register(lambda: print(Path('/proc/self/status').read_text()))\nmain()"
    )
    peaks = []
    for count in (5000, 50_000):
        (tmp_path / "e").write_bytes(ndjson(order(n, users=10**6) for n in range(count)))
        command = [sys.executable, "-c", program, "send", "e", "--to", accepting.url]
        status = subprocess.run(command, capture_output=True, text=True, check=True, timeout=WAIT_SECONDS).stdout
        peaks.append(int(status.partition("VmHWM:")[2].split()[0]))
        accepting.calls.clear()
    assert peaks[1] - peaks[0] < 3000  # kilobytes; the file has 4,000 more
