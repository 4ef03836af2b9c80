"""The console in a real browser."""

import json
import os
import re
import signal
import subprocess
import time
from itertools import product
from pathlib import Path

import httpx
import pytest
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

from tests.serving import Served, serving

JSON = {"Content-Type": "application/json"}
EVIL = '"><script>window.hacked = 1</script><img src=x onerror="window.hacked = 2"></pre>${window.hacked = 3}'


def order(**changes: object) -> dict[str, object]:
    return {"event_type": "order.placed", "user_id": "user-1", "order_id": "order-1", "payload": {}} | changes


def test_event_appears_within_a_second(page, service, client):
    """A published event and a rejected request are shown within a second, newest first."""
    page.open(f"{service.url}/dev")
    page.until_live()
    for event_id in ("first", "second"):
        client.post("/events/ingest", json=order(event_id=event_id))
        page.until_text(event_id, ".entry", seconds=1)
    client.post("/events/ingest", json=order(user_id=""))
    page.until_text("invalid-event", ".entry.rejected", seconds=1)
    assert ["second" in row or "first" in row for row in page.rows()] == [False, True, True]
    assert "second" in page.rows()[1]


def test_message_is_shown_exactly(page, service, client):
    """A message has its data digit for digit, its attributes, ids and a link to its trace."""
    payload = b'{"b":89.90,"2":1,"1":1E400,"b":[{}, []]}'
    body = b'{"event_type":"order.placed","user_id":"u1","order_id":"o","payload":%b}' % payload
    answer = client.post("/events/ingest", content=body, headers=JSON).json()
    page.open(f"{service.url}/dev")
    page.one(".entry").click()
    shown = page.one("pre.json").get_attribute("textContent")
    assert '"payload": {    "b": 89.90,    "2": 1,    "1": 1E400,    "b": [      {},      []    ]  },' in shown
    page.until_text(answer["event_id"], ".detail dl")
    links = [each.get_attribute("href") for each in page.all(".detail a")]
    assert links == [f"http://127.0.0.1:16686/trace/{answer['trace_id']}"] * 2


def test_faults_are_next_to_the_body(page, service, client):
    """A rejected request shows all faults, each also at its place in the body; what is missing at the end."""
    body = {"event_type": "order.placed", "user_id": "", "oder_id": "x", "payload": {"deep": [1]}, "timestamp": "now"}
    faults = client.post("/events/ingest", json=body).json()["errors"]
    page.open(f"{service.url}/dev")
    page.one(".entry.rejected").click()
    assert len(page.all(".faults li")) == len(faults) == 4
    lines = [each.text.strip() for each in page.all("pre.json .line.fault")]
    assert [line.partition("←")[0].strip() for line in lines] == [
        '"user_id": "",',
        '"oder_id": "x",',
        '"timestamp": "now"',
        "}",
    ]
    assert lines[-1].endswith("order_id: is required, but missing")


def test_faults_of_a_batch_are_at_their_events(page, service, client):
    """The faults of a batch are at the events that have them."""
    client.post("/events/batch", json=[order(), order(order_id=""), 7])
    page.open(f"{service.url}/dev")
    page.one(".entry.rejected").click()
    lines = [each.text.strip().partition("  ")[0] for each in page.all("pre.json .line.fault")]
    assert [line.partition("←")[0].strip() for line in lines] == ['"order_id": "",', "7"]


def test_failures_of_lines_name_their_lines(page, service, client):
    """The failures of a stream of lines name the lines."""
    lines = f"{json.dumps(order())}\n\n{{}}\n"
    client.post("/events/batch", content=lines, headers={"Content-Type": "application/x-ndjson"})
    page.open(f"{service.url}/dev")
    page.one(".entry.rejected").click()
    page.until_text("line 3", ".faults")


def test_text_from_outside_never_becomes_markup(page, service, client):
    """Script tags in every place that callers control are shown as text."""
    evil = order(user_id=EVIL, order_id=EVIL, event_id=EVIL, payload={EVIL: EVIL})
    assert client.post("/events/ingest", json=evil).status_code == 202
    for body in (json.dumps(order(user_id=EVIL, order_id="", **{EVIL: EVIL})), EVIL, json.dumps({"event_type": EVIL})):
        assert client.post("/events/ingest", content=body, headers=JSON).status_code >= 400
    client.post("/events/ingest", content=EVIL, headers={"Content-Type": f"text/{EVIL}"})
    page.open(f"{service.url}/dev#user={EVIL}")
    page.until_live()
    page.type("#user", "")
    page.until(lambda: len(page.rows()) == 5)
    scripts = len(page.all("script"))
    for number in range(5):
        page.all(".entry")[number].click()
        page.until_text("onerror", ".detail") if number != 1 else None
        if page.all(".detail details"):
            page.button("The whole answer").click()
    page.all(".entry")[4].click()
    page.button("Edit and send again").click()
    page.button("Send").click()
    page.one(".answer.ok")
    assert page.run("return window.hacked") is None
    assert page.all("img") == []
    assert len(page.all("script")) == scripts


def test_filters(page, service, client):
    """The list can be filtered by kind, type, user and id; the filters survive a reload."""
    client.post("/events/ingest", json=order(event_id="id-1"))
    client.post("/events/ingest", json=order(event_id="id-2", user_id="user-2"))
    client.post("/events/ingest", json=order(event_id="id-3", event_type="cart.abandoned"))
    viewed = {"event_type": "product.viewed", "user_id": "user-2", "session_id": "s", "payload": {}, "event_id": "id-4"}
    client.post("/events/ingest", json=viewed)
    page.open(f"{service.url}/dev")
    page.until(lambda: len(page.rows()) == 4)

    def shows(expected: list[str], **filters: str) -> None:
        page.run("clearFilters()")
        for name, value in filters.items():
            if name in {"show", "type"}:
                Select(page.one(f"#{name}")).select_by_value(value)
            else:
                page.type(f"#{name}", value)
        page.until(lambda: [re.search(r"id-\d|invalid", row)[0] for row in page.rows()] == expected, filters)

    shows(["id-4", "id-2", "id-1"], show="message")
    shows(["invalid"], show="rejected")
    shows(["id-2", "id-1"], type="order.placed")
    shows(["id-4", "id-2"], user="user-2")
    shows(["id-1"], id="id-1")
    shows(["id-4"], type="product.viewed", user="user-2")
    client.post("/events/ingest", json=order(event_id="id-5"))
    client.post("/events/ingest", json=viewed | {"event_id": "id-6"})
    page.until(lambda: len(page.rows()) == 2)
    page.driver.refresh()
    page.until(lambda: len(page.rows()) == 2)
    assert page.one("#user").get_attribute("value") == "user-2"
    page.type("#id", "nothing")
    page.button("Remove the filters").click()
    page.until(lambda: len(page.rows()) == 6)


def test_form_sends_what_its_schema_describes(page, service, client):
    """The form has the fields of the schema, an example with exact numbers, and shows faults at their fields."""
    page.open(f"{service.url}/dev")
    page.button("Send an event").click()
    Select(page.one("#type-to-send")).select_by_visible_text("order.placed")
    page.until(lambda: '"total": 89.90' in page.one("[id$=-payload]").get_attribute("value"))
    page.type("[id$=-user_id]", "")
    page.button("Send").click()
    page.until_text("must not be empty", "[id$=-user_id-fault]")
    assert page.one("[id$=-user_id]").get_attribute("aria-invalid") == "true"
    page.type("[id$=-user_id]", "user-9")
    page.button("Validate only").click()
    page.until_text('"valid"', ".answer")
    assert client.get("/dev/messages").json() == {"messages": []}
    page.button("Send").click()
    page.until_text("accepted", ".answer")
    page.until_text("user-9", ".entry")
    assert '"total": 89.90,' in client.get("/dev/messages").text
    page.button("Edit as JSON").click()
    body = page.one("form textarea")
    assert '"total": 89.90' in body.get_attribute("value")
    body.clear()
    body.send_keys('{"event_type": "order.placed", "unknown": 1}')
    page.button("Edit fields").click()
    page.until_text("The fields cannot show this")
    page.button("Send").click()
    page.until_text("/unknown")


def test_form_of_every_type_is_accepted(page, service, client):
    """The example that a form begins with is accepted."""
    page.open(f"{service.url}/dev")
    page.button("Send an event").click()
    types = [each.text for each in Select(page.one("#type-to-send")).options]
    assert len(types) == 8
    for name in types:
        Select(page.one("#type-to-send")).select_by_visible_text(name)
        page.until(lambda: page.one("[id$=-payload]").get_attribute("value"))
        page.button("Send").click()
        page.one(".answer.ok")
    page.until(lambda: len(page.rows()) == 8)


def test_form_without_schemas_says_why(page, tmp_path):
    """If the documents are off, the form names the setting."""
    with serving("--transport", "memory", "--docs", "false", cwd=tmp_path) as service:
        page.open(f"{service.url}/dev")
        page.until_live()
        page.button("Send an event").click()
        page.until_text("PULSECART_DOCS=true", ".detail")
        page.driver.get("about:blank")


def test_event_can_be_copied_and_sent_again(page, service, client):
    """The copied command publishes the same event; the form, a new one."""
    page.driver.execute_cdp_cmd(
        "Browser.grantPermissions", {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]}
    )
    client.post("/events/ingest", json=order(payload={"quote": "it's", "n": 1}))
    page.open(f"{service.url}/dev")
    page.one(".entry").click()
    page.button("Copy as curl").click()
    page.button("Copied")
    command = page.run("return navigator.clipboard.readText()")
    assert command.startswith(f"curl '{service.url}/events/ingest'")
    ran = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True, timeout=20)
    answer = json.loads(ran.stdout)
    page.button("Edit and send again").click()
    page.until(lambda: "it's" in page.one("[id$=-payload]").get_attribute("value"))
    page.button("Send").click()
    page.until(lambda: len(page.rows()) == 3)
    ids = [each["data"]["event_id"] for each in client.get("/dev/messages").json()["messages"]]
    assert ids[:2] == [answer["event_id"]] * 2
    assert ids[2] != ids[1]


def test_clear_and_pause(page, service, client):
    """Clear removes the events from the service, too; while paused, new ones are only counted."""
    client.post("/events/ingest", json=order())
    client.post("/events/ingest", json={})
    page.open(f"{service.url}/dev")
    page.until(lambda: len(page.rows()) == 2)
    page.button("Clear").click()
    page.until(lambda: not page.rows())
    assert client.get("/dev/messages").json() == {"messages": []}
    assert client.get("/dev/rejected").json() == {"rejected": []}
    page.button("Pause").click()
    client.post("/events/ingest", json=order())
    page.until_text("1 new", ".tools")
    assert page.rows() == []
    page.button("Continue").click()
    page.until(lambda: len(page.rows()) == 1)


def test_page_keeps_a_bounded_number_of_events(page, service, client):
    """Thousands of events neither stop the page nor stay in it."""
    page.open(f"{service.url}/dev")
    page.until_live()
    for batch in range(5):
        client.post("/events/batch", json=[order(event_id=f"{batch}-{number}") for number in range(1_000)])
    newest = "return document.querySelector('.entry')?.textContent ?? ''"  # the layout of all would take long
    page.until(lambda: "4-999" in page.run(newest))
    assert len(page.rows()) == page.run("return entries.length") == 2_000
    page.one(".entry").click()
    page.until_text("4-999", ".detail")
    large = "x" * 900_000
    for _ in range(25):
        client.post("/events/ingest", json=order(user_id="large", payload={"text": large}))
    client.post("/events/ingest", json=order(event_id="last"))
    page.until(lambda: "last" in page.run(newest))
    assert page.run("return size") < 21_000_000
    assert 10 < len(page.rows()) < 30
    page.all(".entry")[1].click()
    page.until_text("more characters", ".detail")


def test_keyboard(page, service, client):
    """The console can be used without a mouse."""
    for number in range(3):
        client.post("/events/ingest", json=order(event_id=f"event-{number}"))
    page.open(f"{service.url}/dev")
    page.until(lambda: len(page.rows()) == 3)
    page.press("j")
    page.until_text("event-2", ".detail dl")
    page.press("j" + Keys.ARROW_DOWN)
    page.until_text("event-0", ".detail dl")
    page.press("k")
    page.until_text("event-1", ".detail dl")
    page.press("/")
    page.press("user-1")
    page.until(lambda: page.one("#user").get_attribute("value") == "user-1")
    page.press(Keys.ESCAPE)
    page.press("p")
    page.button("Continue")
    page.press("?")
    page.until_text("pause and continue", ".detail")
    page.press("n")
    page.one("form.event")


def test_console_leaves_no_stream_behind(page, service, client):
    """Going to other pages and back opens no further stream: a browser has six connections for all its pages."""
    for _ in range(8):
        page.open(f"{service.url}/dev")
        page.until_live()
        page.button("Docs").click()
        page.one("article")
    page.driver.back()
    page.until_live()
    client.post("/events/ingest", json=order(event_id="after"))
    page.until_text("after", ".entry", seconds=1)


@pytest.mark.parametrize(("width", "scheme"), list(product([400, 800, 1600], ["light", "dark"])))
@pytest.mark.parametrize("path", ["dev", "docs"])
def test_pages_fit(page, client, width, scheme, path):
    """Nothing is wider than the window, in both color schemes; text contrasts with its background."""
    client.post("/events/ingest", json=order(event_id="i" * 900, user_id="u" * 900, payload={"x" * 900: "y" * 900}))
    client.post("/events/ingest", json=order(order_id="", event_id="i" * 900))
    page.resize(width, scheme)
    page.open(str(client.base_url.join(f"/{path}")))
    if path == "dev":
        page.until(lambda: len(page.rows()) == 2)
        steps = [lambda: None, lambda: page.run("select(entries[0])"), lambda: page.run("select(entries[1])")]
        steps.append(lambda: page.run("compose('order.placed')"))
    else:
        page.one("article")
        steps = [lambda: page.run("for (const each of document.querySelectorAll('details')) each.open = true")]
    for step in steps:
        step()
        widths = "return [document.documentElement.scrollWidth, ...[...document.querySelectorAll('.pane, article')]"
        assert max(page.run(f"{widths}.map((each) => each.scrollWidth)]")) <= width
    background, text = page.run("const s = getComputedStyle(document.body); return [s.backgroundColor, s.color]")
    light = [sum(map(int, each.strip("rgba()").split(",")[:3])) / 3 for each in (background, text)]
    brighter, darker = light if scheme == "light" else light[::-1]
    assert brighter - darker > 150


def test_console_survives_a_restart(page, tmp_path):
    """While the service is away the console says so; then it goes on, and keeps what it had."""
    with serving("--transport", "memory", cwd=tmp_path) as service:
        httpx.post(f"{service.url}/events/ingest", json=order(event_id="before"))
        page.open(f"{service.url}/dev")
        page.until_text("before", ".entry")
        assert service.stop() == 0
        page.one(".state[data-state=off]")
    port = service.url.rpartition(":")[2]
    with serving("--transport", "memory", "--port", port, cwd=tmp_path) as service:
        httpx.post(f"{service.url}/events/ingest", json=order(event_id="after"))
        page.until_text("after", ".entry")
        page.until_live()
        page.until_text("The service has started again", ".notice")
        assert ["before" in row or "after" in row for row in page.rows()] == [True, True]
        page.driver.get("about:blank")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_open_console_does_not_hold_up_the_end(page, tmp_path, number):
    """The service ends at once although the stream has no end of its own."""
    with serving("--transport", "memory", cwd=tmp_path) as service:
        page.open(f"{service.url}/dev")
        page.until_live()
        began = time.monotonic()
        service.tell_to_stop(number)
        service.wait()
        assert time.monotonic() - began < 4  # the grace period is 8 seconds


@pytest.fixture
def guarded(tmp_path: Path):
    key = subprocess.run(
        [os.sys.executable, "-m", "pulsecart", "keys", "new", "shop"], capture_output=True, text=True, check=True
    ).stdout
    secret, _, table = key.partition("\n")
    (tmp_path / "sources.toml").write_text(table)
    with serving("--transport", "memory", "--auth", "keys", "--sources", "sources.toml", cwd=tmp_path) as service:
        yield service, secret


def test_console_asks_for_a_key(page, guarded: tuple[Served, str]):
    """With authentication the console needs a key, which it keeps in memory only."""
    service, secret = guarded
    headers = {"Authorization": f"Bearer {secret}"}
    page.open(f"{service.url}/dev")
    page.until_text("A key is required")
    page.type("#key", "pck_wrong")
    page.button("Continue").click()
    page.until_text("not valid", ".detail")
    page.type("#key", secret)
    page.button("Continue").click()
    page.until_live()
    httpx.post(f"{service.url}/events/ingest", json=order(event_id="mine"), headers=headers)
    page.until_text("mine", ".entry")
    page.one(".entry").click()
    assert secret not in page.run("return curl('/x', '{}', '')")
    page.button("Send an event").click()
    page.one("form.event")
    page.button("Send").click()
    page.until_text("accepted", ".answer")
    assert page.run("return JSON.stringify([localStorage, sessionStorage, document.cookie])") == '[{},{},""]'
    assert secret not in page.run("return document.documentElement.outerHTML + location.href")
    page.driver.refresh()
    page.until_text("A key is required")
    page.driver.get("about:blank")
