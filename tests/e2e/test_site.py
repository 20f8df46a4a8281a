"""The documentation site: it builds without a warning, and a browser finds every page, link, word and colour."""

import functools
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin

import pytest

from tests.conftest import CHROMIUM, ROOT

if not os.environ.get("SAMOVAR_CI"):  # there it fails instead
    for package in ("zensical", "playwright", "mkdocstrings"):
        if find_spec(package) is None:
            pytest.skip(f"needs {package}", allow_module_level=True)
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine", allow_module_level=True)

pytestmark = pytest.mark.xdist_group("site")


class Anchors(HTMLParser):
    """The links of a page, and the places on it that links can name."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.ids: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        found = dict(attrs)
        self.links.update(found[name] for name in ("href", "src") if found.get(name))
        if "id" in found:
            self.ids.add(found["id"])


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args) -> None:
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The folder that `make docs` builds, built elsewhere."""
    folder = tmp_path_factory.mktemp("site")
    config = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    (folder / "mkdocs.yml").write_text(config.replace("paths: [src]", f"paths: [{ROOT / 'src'}]"), encoding="utf-8")
    for command in (
        [str(ROOT / "docs" / "make_site.py"), ".site"],
        ["-m", "zensical", "build", "--strict", "--config-file", "mkdocs.yml"],
    ):
        done = subprocess.run([sys.executable, *command], cwd=folder, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder / "site"


@pytest.fixture(scope="module")
def address(site) -> Iterator[str]:
    """Where the site is served, to this machine alone."""
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="module")
def browser() -> Iterator:
    assert CHROMIUM, "SAMOVAR_CI is set, and there is no Chromium"
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def opened(browser, address) -> Iterator:
    """A page of the browser, which has to stay silent and to ask no other server for anything."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme="light")
    page, noise, own = context.new_page(), [], (address, "data:", "blob:")
    page.on("console", lambda message: noise.append(message.text))
    page.on("pageerror", lambda error: noise.append(str(error)))
    page.on("response", lambda answer: noise.append(f"{answer.status} {answer.url}") if answer.status >= 400 else None)
    page.on("request", lambda asked: None if asked.url.startswith(own) else noise.append(asked.url))
    yield page
    context.close()
    # the browser's own remark on a link from the search box, which has the focus, to a heading
    assert [line for line in noise if not line.startswith("Autofocus processing was blocked")] == []


def pages_of(site: Path) -> list[str]:
    return sorted(path.relative_to(site).as_posix() for path in site.rglob("*.html") if path.name != "404.html")


def test_every_link_leads_to_a_page_and_a_place_and_every_page_can_be_reached(site) -> None:
    parsed = {page: Anchors((site / page).read_text(encoding="utf-8")) for page in pages_of(site)}
    targets = {page: {urljoin(page, link) for link in found.links if ":" not in link} for page, found in parsed.items()}
    broken = []
    for page, links in targets.items():
        for link in links:
            name, anchor = urldefrag(link)
            if not (site / unquote(name)).is_file() or (anchor and anchor not in parsed[name].ids):
                broken.append(f"{page}: {link}")
    assert broken == []
    reached, todo = set(), ["index.html"]
    while todo:
        page = todo.pop()
        if page in parsed and page not in reached:
            reached.add(page)
            todo += [urldefrag(link)[0] for link in targets[page]]
    assert reached == set(parsed)


def test_every_page_of_docs_has_its_place_in_the_site(site) -> None:
    made = set(pages_of(site))
    assert {f"{page.stem}.html" for page in (ROOT / "docs").glob("*.md")} - made == {"reference.html"}
    others = {"overview", "changelog", "contributing", "reference/index", "reference/sam"}
    assert {f"{name}.html" for name in others} <= made


def test_every_page_opens_in_silence_with_a_heading(opened, address, site) -> None:
    for page in pages_of(site):
        opened.goto(address + page)
        opened.locator("h1").first.wait_for()


def test_the_reference_shows_signature_arguments_and_errors(opened, address) -> None:
    opened.goto(address + "reference/sam.html")
    assert opened.locator("[id='samovar.SAM']").is_visible()
    assert "rho" in opened.locator("article").inner_text()
    opened.goto(address + "reference/commands.html")
    assert opened.locator("h2", has_text="samovar measure").first.is_visible()


def test_the_search_finds_a_term_and_leads_to_it(opened, address) -> None:
    opened.goto(address + "index.html")
    found = opened.locator("a:visible", has_text="lambda_max")
    assert found.count() == 0
    opened.keyboard.press("Control+k")
    opened.wait_for_function("document.activeElement.matches('input') || !!document.activeElement.shadowRoot")
    opened.keyboard.type("lambda_max", delay=20)
    found.first.wait_for()
    assert found.count() >= 5
    found.first.click()
    opened.wait_for_url(lambda url: "index.html" not in url)
    assert "lambda_max" in opened.locator("article").inner_text()


def test_the_colours_can_be_switched_and_are_remembered(opened, address) -> None:
    paper = "getComputedStyle(document.body).backgroundColor.match(/[\\d.]+/g).slice(0, 3).reduce((a, b) => a + +b, 0)"
    opened.goto(address + "index.html")
    assert opened.evaluate(paper) > 700
    opened.locator("label[title='Switch to dark mode']").click()
    assert opened.evaluate(paper) < 200
    opened.goto(address + "tutorial.html")
    assert opened.evaluate(paper) < 200
