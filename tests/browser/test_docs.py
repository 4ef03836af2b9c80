"""The docs page in a real browser."""

from selenium.webdriver.support.ui import Select

from tests.serving import serving

REVIEWS = """
from attrs import field, frozen, validators
from pulsecart import Event, event

@event("review.written", topic="reviews")
@frozen(kw_only=True)
class ReviewWritten(Event):
    stars: int = field(validator=[validators.ge(1), validators.le(5)])
    weight: float = field(default=0.5, validator=[validators.gt(0), validators.lt(1)])
    words: list[str] = field(validator=validators.min_len(1))
    sku: str = field(validator=[validators.max_len(20), validators.matches_re("[A-Z]+-[0-9]+")])
"""


def test_docs_list_events_and_routes(page, service, client):
    """Each event type has its fields and an example, each route its parameters and answers."""
    page.open(f"{service.url}/docs")
    page.one("article")
    events = [each["event_type"] for each in client.get("/schemas").json()["schemas"]]
    paths = client.get("/openapi.json").json()["paths"]
    titles = [each.text for each in page.all("article h3")]
    assert titles == [*events, *(path for path, item in paths.items() for _ in item)]
    page.until_text("The order's id in the shop.", "[id='event-order.placed']")
    page.until_text("1 to 1024 characters", "[id='event-order.placed']")
    page.until_text('"total": 89.90', "[id='event-order.placed'] pre")
    assert [each.text for each in page.all("header nav a") if each.is_displayed()] == ["Console", "Docs"]


def test_docs_show_bounds_and_defaults(page, tmp_path):
    """What the validators of a field ask for, and what it is if it is left out, stand next to it."""
    (tmp_path / "reviews.py").write_text(REVIEWS)
    with serving("--transport", "memory", "--events", "reviews", cwd=tmp_path) as service:
        page.open(f"{service.url}/docs")
        page.one("[id='event-review.written']")
        script = (
            "return [...document.querySelectorAll(\"[id='event-review.written'] tbody tr\")].map((e) => e.innerText)"
        )
        rows = {row.split()[0]: row for row in page.run(script)}
    assert "1 to 5" in rows["stars"]
    assert "more than 0, less than 1, default 0.5" in rows["weight"]
    assert "at least 1 element" in rows["words[]"]
    assert "at most 20 characters, matches" in rows["sku"]


def test_docs_send_an_event(page, service, client):
    """The form of an event type publishes an event."""
    page.open(f"{service.url}/docs")
    page.one("[id='event-order.placed'] details summary").click()
    send = page.one("[id='event-order.placed'] button.primary")  # it comes with the form, after the click
    page.run("arguments[0].click()", send)
    page.until_text("accepted", "[id='event-order.placed'] .answer")
    assert '"total": 89.90,' in client.get("/dev/messages").text


def test_docs_send_a_request(page, service, client):
    """A route can be tried, with its examples and parameters, and shows its answer."""
    page.open(f"{service.url}/docs")
    page.one("article")
    page.run(
        "const find = (path) => [...document.querySelectorAll('[id^=route-]')].find((each) => "
        "each.querySelector('h3').textContent === path); window.find = find;"
        "for (const path of ['/events/batch', '/schemas/{event_type}', '/dev/messages']) "
        "[...find(path).querySelectorAll('details')].at(-1).open = true"
    )
    batch = page.until(lambda: page.run("return find('/events/batch').querySelector('form.try')"))
    names = [each.text for each in Select(batch.find_element("css selector", "select[aria-label=Example]")).options]
    assert names == ["application/json", "application/x-ndjson", "application/jsonl"]
    Select(batch.find_element("css selector", "select[aria-label=Example]")).select_by_visible_text(names[1])
    page.run("arguments[0].requestSubmit()", batch)
    page.until(lambda: '"accepted": 2' in page.run("return arguments[0].innerText", batch))
    assert len(client.get("/dev/messages").json()["messages"]) == 2
    schema = page.until(lambda: page.run("return find('/schemas/{event_type}').querySelector('form.try')"))
    schema.find_element("css selector", "input").send_keys("order.plased")
    page.run("arguments[0].requestSubmit()", schema)
    page.until(lambda: "did you mean 'order.placed'?" in page.run("return arguments[0].innerText", schema))
    messages = page.until(lambda: page.run("return find('/dev/messages').querySelector('form.try')"))
    messages.find_element("css selector", "input").send_keys("pulsecart.commerce-events")
    page.run("arguments[0].requestSubmit()", messages)
    page.until(lambda: '"messages"' in page.run("return arguments[0].innerText", messages))
