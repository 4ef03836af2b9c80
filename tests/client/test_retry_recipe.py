"""The recipe for callers in JavaScript, as the documentation shows it."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.client.scripted import accepted, problem, scripted
from tests.serving import serving

RECIPE = Path(__file__).parents[2] / "examples/retry.mjs"
EVENT = {"event_type": "order.placed", "user_id": "u1", "order_id": "o1", "payload": {}}

PROGRAM = """
import { send } from %s;
const [url, event, attempts] = process.argv.slice(1);
send(url, JSON.parse(event), Number(attempts)).then(
  (answer) => console.log(JSON.stringify(answer)),
  (error) => { console.error(error.message); process.exitCode = 1; },
);
"""


def send(url, event=EVENT, attempts=5):
    node = shutil.which("node")
    if node is None:
        assert "CI" not in os.environ, "Node is not installed"
        pytest.skip("needs Node")
    program = PROGRAM % json.dumps(RECIPE.as_uri())
    command = [node, "--input-type=module", "--eval", program, url, json.dumps(event), str(attempts)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_recipe_retries_under_the_same_id():
    """A lost connection, a 503 and a 429 are retried with the same body, and the answer is returned."""
    busy = [None, problem(503, "overloaded"), problem(429, "rate-limited", headers={"Retry-After": "1"})]
    with scripted(lambda call, n: (*busy, accepted(call))[n]) as server:
        ended = send(server.url)
    assert json.loads(ended.stdout)["message_id"] == "m0"
    assert len(server.calls) == 4
    assert len({call.body for call in server.calls}) == 1
    assert {"event_id", "timestamp"} < server.calls[0].document.keys()


def test_recipe_does_not_retry_what_cannot_succeed():
    """The problem document of a 422 is thrown at once."""
    with scripted(lambda _call, _n: problem(422, "invalid-event")) as server:
        ended = send(server.url)
    assert ended.returncode == 1
    assert json.loads(ended.stderr)["type"] == "invalid-event"
    assert len(server.calls) == 1


@pytest.mark.parametrize("reply", [None, problem(503, "overloaded")])
def test_recipe_gives_up(reply):
    """After the last attempt the reason is thrown."""
    with scripted(lambda _call, _n: reply) as server:
        ended = send(server.url, attempts=2)
    assert (ended.returncode, bool(ended.stderr)) == (1, True)
    assert len(server.calls) == 2


def test_recipe_on_the_service(tmp_path):
    """The service accepts what the recipe sends."""
    with serving(cwd=tmp_path) as served:
        assert json.loads(send(served.url, EVENT | {"event_id": "mine"}).stdout)["event_id"] == "mine"
        assert json.loads(send(served.url).stdout)["message_id"] == "2"
