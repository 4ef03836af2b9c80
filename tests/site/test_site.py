"""The built documentation: its links, what is generated, and its pages in a browser that has no network."""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import attrs
import pytest

from pulsecart.serve.settings import Settings
from pulsecart.telemetry import metrics
from tests.browser.conftest import Page

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
NO_PAGES = {"genindex.html", "search.html", "py-modindex.html"}


class Document(HTMLParser):
    """The ids, links, assets and text of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: set[str] = set()
        self.assets: set[str] = set()
        self.text = ""
        self.feed(path.read_text())
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, Any]]) -> None:
        found = dict(attributes)
        self.text += " " * (tag == "dd")
        self.ids |= {found[name] for name in ("id", "name") if found.get(name)}
        if tag == "a" and "href" in found:
            self.links.add(found["href"])
        self.assets |= {found[name] for name in ("src", "href") if tag != "a" and name in found}

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def documents(site) -> dict[Path, Document]:
    return {path: Document(path) for path in sorted(site.rglob("*.html"))}


def test_internal_links_lead_somewhere(documents):
    """Each link to a page, a part of a page or a file leads to it."""
    broken = []
    for path, document in documents.items():
        for link in document.links | document.assets:
            url = urlsplit(link)
            if url.scheme or url.netloc:
                continue
            target = (path.parent / unquote(url.path)).resolve() if url.path else path
            part = unquote(url.fragment)
            if not target.is_file() or (part and target in documents and part not in documents[target].ids):
                broken.append(f"{path.name}: {link}")
    assert broken == []


def test_external_links_are_well_formed(documents):
    """Each link to elsewhere is https, or this machine in an example."""
    links = {urlsplit(link) for document in documents.values() for link in document.links}
    wrong = [
        url.geturl()
        for url in links
        if (url.scheme or url.netloc)
        and not (url.scheme == "https" and "." in url.netloc)
        and not (url.scheme == "http" and url.hostname in {"localhost", "127.0.0.1"})
    ]
    assert wrong == []


def test_links_to_the_repository_lead_to_files(documents):
    """Each link to a file of the repository names one that is there."""
    found = {
        match[1]
        for document in documents.values()
        for link in document.links
        if (match := re.fullmatch(r"https://github\.com/pulsecart/pulsecart/(?:blob|edit|raw)/main/([^?#]+).*", link))
    }
    assert found
    assert [name for name in found if not (ROOT / unquote(name)).exists()] == []


def test_assets_are_local(documents):
    """No page loads anything from elsewhere, nor do the styles."""
    assets = {asset for document in documents.values() for asset in document.assets}
    assert [asset for asset in assets if urlsplit(asset).netloc] == []


def test_styles_load_nothing_from_elsewhere(site):
    """No stylesheet names another host."""
    styles = list(site.rglob("*.css"))
    assert styles
    assert [
        path.name for path in styles if re.search(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//", path.read_text())
    ] == []


@pytest.mark.parametrize("setting", attrs.fields(Settings), ids=lambda setting: setting.name)
def test_settings_are_listed(documents, site, setting):
    """Each setting has its variable, its option, its meaning and its default, word for word."""
    text = documents[site / "reference/settings.html"].text
    known = setting.metadata
    name = f"{known['variable']}, --{setting.name.replace('_', '-')} {known['metavar']}"
    assert f"{name} {known['help']} Default: {known['default']} " in text


def test_problem_types_are_listed(documents, site):
    """Each `type` that the service answers is on the page of errors."""
    text = documents[site / "reference/errors.html"].text
    sources = [path for path in (ROOT / "pulsecart").rglob("*.py") if "client" not in path.parts]
    types = {found for path in sources for found in re.findall(r"""\btype="([a-z]+(?:-[a-z]+)+)\"""", path.read_text())}
    types |= set(re.findall(r'\(\d{3}, "([a-z-]+)"', (ROOT / "pulsecart/http/problems.py").read_text()))
    assert {"malformed-body", "batch-incomplete", "head-too-large"} <= types
    assert {each for each in types if each not in text} == set()


def test_metrics_are_listed_with_attributes(documents, site):
    """Each metric is listed, for OpenTelemetry and for Prometheus, with its attributes."""
    text = documents[site / "reference/telemetry.html"].text
    assert [
        each.name for each in metrics.OBSERVED if f" {each.name} {each.description} A {each.kind} " not in text
    ] == []
    assert "pulsecart_events_total" in text
    assert "cloudevents.event_type, pulsecart.outcome, error.type, pulsecart.source" in text


def test_public_names_are_listed(documents):
    """Each public name of the core has an entry in the Python API."""
    import pulsecart

    ids = {part for document in documents.values() for part in document.ids}
    described = {part.rpartition(".")[2] for part in ids if part.startswith("pulsecart.")}
    assert set(pulsecart.__all__) <= described


@pytest.fixture(scope="module")
def tab(driver) -> Page:
    return Page(driver)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1400])
def test_pages_fit_and_complain_about_nothing(documents, tab, width, scheme):
    """No page scrolls sideways, has an error in the console, or asks for anything but files."""
    tab.complaints(), tab.requests()
    tab.resize(width, scheme)
    wide = []
    for path in documents:
        if path.name not in NO_PAGES:
            tab.open(path.as_uri())
            if tab.run("return document.documentElement.scrollWidth > document.documentElement.clientWidth"):
                wide.append(path.name)
    assert wide == []
    assert tab.complaints() == []
    assert tab.requests() <= {"file:", "about:", "data:"}


def test_search_works_from_files(site, tab):
    """The search finds a setting without a server."""
    tab.resize(1400)
    tab.open(f"{(site / 'search.html').as_uri()}?q=idempotency")
    tab.until(lambda: any("HTTP API" in each.text for each in tab.all("#search-results a")))


def test_readme_is_short_and_leads_to_files():
    """The README has at most 160 lines, and each of its links names a file that is there."""
    assert len(README.splitlines()) <= 160
    links = re.findall(r"\]\(([^)#]+)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_readme_has_the_figures_of_the_benchmark():
    """Each row of the README's table of figures is what the benchmark measured, rounded."""
    section = "## Through the strict server over TLS, as fast as they can, 64 connections\n"
    found = (ROOT / "benchmarks/results.md").read_text().partition(section)[2].partition("\n## ")[0]
    measured = {}
    for line in found.splitlines()[4:]:
        name, *cells = (cell.strip() for cell in line.strip("|").split(" | "))
        measured[name] = [float(cell.partition(" (")[0].replace(",", "")) for cell in cells]
    rows = re.findall(r"^\| (.+) us\*{0,2} \| (.+) \| (.+) \| (.+) ms \| (.+) MB \| (.+) s \|$", README, re.MULTILINE)
    assert len(rows) >= 5
    base = measured["pulsecart, REST"][0]
    for first, *others in rows:
        name, _, cpu = first.replace("*", "").partition(" | ")
        cpu_us, rate, _p50, p99, _idle, peak, start = measured["pulsecart, REST" if name == "pulsecart" else name]
        assert [float(cpu), *(float(each.replace(",", "")) for each in others)] == [
            cpu_us,
            pytest.approx(cpu_us / base, rel=0.1),  # the median of each round's ratio
            rate,
            round(p99),
            peak,
            start,
        ], name
