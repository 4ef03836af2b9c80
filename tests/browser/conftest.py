"""A real browser, which reaches nothing but loopback."""

import json
from collections.abc import Callable, Iterator
from shutil import which
from typing import Any

import httpx
import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from tests.serving import Served, serving

SECONDS = 10

OPTIONS = [
    "--headless=new",
    "--no-sandbox",  # does not run as root
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
    "--window-size=1600,900",
]


class Page:
    """A tab of the browser."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def open(self, url: str) -> None:
        self.driver.get("about:blank")  # so that a new fragment is a new page, too
        self.driver.get(url)

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def all(self, css: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, css)

    def one(self, css: str) -> WebElement:
        """Return the first element, when it is there and visible."""
        return self.until(lambda: next((each for each in self.all(css) if each.is_displayed()), None), css)

    def button(self, name: str) -> WebElement:
        """Return the button or link with this name, when it is there and visible."""
        script = """return [...document.querySelectorAll("button, a, summary")]
            .find((each) => each.innerText.trim() === arguments[0] && each.checkVisibility())"""
        return self.until(lambda: self.run(script, name), name)

    def until(self, done: Callable[[], Any], what: str = "", seconds: float = SECONDS) -> Any:
        """Return the first true value."""
        return WebDriverWait(self, seconds, poll_frequency=0.02).until(lambda _page: done(), what)

    def until_text(self, text: str, css: str = "body", seconds: float = SECONDS) -> None:
        script = "return [...document.querySelectorAll(arguments[0])].map((each) => each.innerText).join('\\n')"
        self.until(lambda: text in self.run(script, css), f"{text!r} in {css}", seconds)

    def until_live(self) -> None:
        self.one(".state[data-state=live]")

    def rows(self) -> list[str]:
        """Return the text of each entry of the console, newest first."""
        return self.run("return [...document.querySelectorAll('.entry')].map((each) => each.textContent)")

    def type(self, css: str, text: str) -> None:
        element = self.one(css)
        element.send_keys(Keys.CONTROL + "a" + Keys.NULL + Keys.DELETE + text)

    def press(self, keys: str) -> None:
        self.driver.switch_to.active_element.send_keys(keys)

    def resize(self, width: int, scheme: str = "light") -> None:
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def complaints(self) -> list[str]:
        """Return what the browser has complained about since the last call, other than answers that were errors."""
        return [
            line["message"]
            for line in self.driver.get_log("browser")
            if line["level"] in {"WARNING", "SEVERE"} and line["source"] != "network"
        ]

    def requests(self) -> set[str]:
        """Return the origins of all requests since the last call."""
        found = set()
        for line in self.driver.get_log("performance"):
            event = json.loads(line["message"])["message"]
            if event["method"] in {"Network.requestWillBeSent", "Network.webSocketCreated"}:
                parameters = event["params"]
                url = httpx.URL(parameters.get("request", parameters)["url"])
                found.add(
                    f"{url.scheme}:"
                    if url.scheme in {"data", "about", "file"}
                    else f"{url.scheme}://{url.netloc.decode()}"
                )
        return found


@pytest.fixture(scope="session")
def driver() -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    chromium, chromedriver = which("chromium"), which("chromedriver")
    assert chromium, "install Chromium"
    assert chromedriver, "install chromedriver"
    options.binary_location = chromium
    for option in OPTIONS:
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(chromedriver))
    yield driver
    driver.quit()


@pytest.fixture
def page(driver) -> Iterator[Page]:
    """Give a tab in which nothing may complain, and from which nothing may leave this machine."""
    page = Page(driver)
    page.resize(1600)
    page.complaints(), page.requests()
    yield page
    assert page.complaints() == []
    assert {each for each in page.requests() if not each.startswith("http://127.0.0.1:")} <= {"data:", "about:"}
    driver.get("about:blank")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    traces = ("--trace-url", "http://127.0.0.1:16686/trace/{trace_id}")
    with serving("--transport", "memory", *traces, cwd=tmp_path_factory.mktemp("service")) as served:
        yield served


@pytest.fixture
def client(service) -> Iterator[httpx.Client]:
    """Call the service, which has no events yet."""
    with httpx.Client(base_url=service.url, timeout=30) as client:
        client.delete("/dev/messages")
        client.delete("/dev/rejected")
        yield client
