"""The report in a real browser: it opens fast and in silence, asks nobody for anything, and works by keyboard."""

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from samovar import report
from samovar.report.serve import server
from tests.conftest import CHROMIUM
from tests.unit.report_runs import HOSTILE, NOTHING, SECTIONS, make_run

if not os.environ.get("SAMOVAR_CI"):  # there it fails instead
    pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine", allow_module_level=True)

PHONE = {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def browser() -> Iterator:
    assert CHROMIUM, "SAMOVAR_CI is set, and there is no Chromium"
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("report")


@pytest.fixture(scope="module")
def twins(folder) -> Path:
    runs = [make_run(folder / "a", side=32, points=15), make_run(folder / "b", recipe="vit-digits-sam", flat=8.0)]
    return report.write(runs, folder / "twins.html")


class Watched:
    """A page, and everything it says, throws and asks for."""

    def __init__(self, browser, path: Path, **options) -> None:
        self.noise: list[str] = []
        self.page = browser.new_context(**{"viewport": {"width": 1280, "height": 900}} | options).new_page()
        self.page.on("console", lambda message: self.noise.append(message.text))
        self.page.on("pageerror", lambda error: self.noise.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.noise.append(dialog.message), dialog.dismiss()))
        self.page.on("request", self._requested)
        self.cdp = self.page.context.new_cdp_session(self.page)
        self.cdp.send("Performance.enable", {"timeDomain": "threadTicks"})
        self.page.goto(path.as_uri())

    def _requested(self, request) -> None:
        if not request.url.startswith(("file:", "data:", "blob:")):
            self.noise.append(request.url)

    def processor_seconds(self) -> float:
        """Time that the page's main thread has computed so far, whatever else the machine does."""
        metrics = self.cdp.send("Performance.getMetrics")["metrics"]
        return next(metric["value"] for metric in metrics if metric["name"] == "TaskDuration")

    def scroll_through(self) -> None:
        """Slowly enough for every plot to be drawn."""
        for section in [name for name in SECTIONS if self.page.locator(f"#{name}").count()]:
            self.page.locator(f"#{section}").scroll_into_view_if_needed()
            for plot in self.page.locator(f"#{section} .plot:not(:has(.poster))").all():
                if plot.is_visible():
                    plot.scroll_into_view_if_needed()
                    plot.locator(".main-svg").first.wait_for()

    def drawn(self) -> int:
        return self.page.locator(".js-plotly-plot").count()

    def color(self, selector: str, what: str = "background-color") -> list[int]:
        text = self.page.locator(selector).first.evaluate(f"e => getComputedStyle(e).getPropertyValue('{what}')")
        return [int(float(part)) for part in re.findall(r"[\d.]+", text)][:3]

    def close(self) -> None:
        self.page.context.close()


@pytest.fixture
def opened(browser) -> Iterator:
    pages = []

    def open_page(path: Path, **options) -> Watched:
        pages.append(Watched(browser, path, **options))
        return pages[-1]

    yield open_page
    for page in pages:
        page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_silent_whole_and_in_the_readers_colours(opened, twins, scheme: str) -> None:
    seen = opened(twins, color_scheme=scheme)
    seen.scroll_through()
    assert [s for s in SECTIONS if not seen.page.locator(f"section#{s} h2").is_visible()] == []
    assert seen.drawn() >= 10
    paper, ink = sum(seen.color("body")), sum(seen.color("body", "color"))
    assert paper > 700 > 200 > ink if scheme == "light" else paper < 100 < 600 < ink
    line = seen.color("#p-train-loss .scatterlayer .js-line", "stroke")
    assert line == ([11, 98, 168] if scheme == "light" else [90, 169, 238]), "plots follow the theme"
    assert seen.page.locator("#theme").get_attribute("aria-pressed") == str(scheme == "dark").lower()
    assert seen.noise == []


def test_the_theme_can_be_switched_and_is_remembered(opened, twins) -> None:
    seen = opened(twins, color_scheme="light")
    seen.scroll_through()
    seen.page.locator("#theme").click()
    assert sum(seen.color("body")) < 100
    assert seen.color("#p-train-loss .scatterlayer .js-line", "stroke") == [90, 169, 238]
    seen.page.reload()
    assert sum(seen.color("body")) < 100
    assert seen.noise == []


def test_a_phone_never_scrolls_sideways(opened, twins) -> None:
    seen = opened(twins, viewport=PHONE, has_touch=True, is_mobile=True)
    seen.scroll_through()
    assert seen.page.evaluate("document.scrollingElement.scrollWidth") <= PHONE["width"]
    wide = seen.page.evaluate(
        "[...document.querySelectorAll('main .card')].filter(e => e.getBoundingClientRect().right > 390).map(e => e.id)"
    )
    assert wide == []
    assert seen.noise == []


def test_the_keyboard_reaches_everything_that_can_be_pressed(opened, twins) -> None:
    page = opened(twins).page
    reached = []
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate(
                "(e => e.dataset.csv || e.dataset.toggle || e.dataset.plot || e.id || e.hash)(document.activeElement)"
            )
        )
    assert reached[0] == "#verdict", "first comes the way past the navigation"
    assert {"theme", "#provenance", "0", "1", "headline-table", "train-loss", "surface-random-0"} <= set(reached)
    page.keyboard.press("Home")
    page.locator("#theme").focus()
    page.keyboard.press("Enter")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"


def test_csv_is_what_the_page_holds(opened, twins, folder) -> None:
    page = opened(twins).page
    for name in ("train-loss", "headline-table", "surface-random-1", "predictions-0"):
        with page.expect_download() as download:
            page.locator(f'[data-csv="{name}"]').click()
        assert download.value.suggested_filename == f"{name}.csv"
        saved = folder / f"{name}.csv"
        download.value.save_as(saved)
        held = page.evaluate(f"JSON.parse(document.querySelector('[data-for=\"{name}\"]').textContent).csv")
        assert saved.read_bytes().decode() == held


def test_surfaces_turn_together_by_pointer_and_by_arrow_keys(opened, twins) -> None:
    page = opened(twins).page
    first = page.locator(".plot[tabindex]").first
    first.scroll_into_view_if_needed()
    assert page.locator(".poster").first.is_visible()
    first.hover()
    page.wait_for_function("document.querySelectorAll('.plot.live .gl-container canvas').length >= 2")
    live = "[...document.querySelectorAll('.plot.live .canvas')]"
    eyes = f"{live}.map(c => JSON.stringify(c._fullLayout.scene.camera.eye))"
    before = page.evaluate(eyes)
    box = first.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2 + 80, box["y"] + box["height"] / 2 + 10, steps=4)
    page.mouse.up()
    page.wait_for_function(f"(e => e[0] !== {before[0]!r} && new Set(e).size === 1)({eyes})")
    dragged = page.evaluate(eyes)
    first.focus()
    page.keyboard.press("ArrowLeft")
    page.wait_for_function(f"(e => e[0] !== {dragged[0]!r} && new Set(e).size === 1)({eyes})")


def test_a_run_can_be_hidden_everywhere(opened, twins) -> None:
    seen = opened(twins)
    seen.scroll_through()
    seen.page.locator('[data-toggle="1"]').click()
    assert seen.page.locator("#p-train-loss .scatterlayer .trace").count() == 1
    assert not seen.page.locator("#p-predictions-1").is_visible()
    assert seen.page.locator("#p-predictions-0").is_visible()
    seen.page.locator('[data-toggle="1"]').click()
    assert seen.page.locator("#p-train-loss .scatterlayer .trace").count() == 2
    assert seen.noise == []


def test_a_mistake_opens_large_by_keyboard_and_closes(opened, twins) -> None:
    seen = opened(twins)
    large = seen.page.locator("#large")
    tile = seen.page.locator("#p-confused-0 button.tile").first
    small = tile.bounding_box()["width"]
    tile.focus()
    seen.page.keyboard.press("Enter")
    assert large.is_visible()
    assert large.locator(".tile").bounding_box()["width"] > 3 * small
    assert re.search(r"vit-digits: \d, not \d, \d+ %", large.inner_text())
    assert seen.page.evaluate(SERIOUS) == []
    seen.page.keyboard.press("Escape")
    assert not large.is_visible()
    assert tile.evaluate("e => e === document.activeElement"), "the reader is back where they were"
    assert seen.noise == []


def test_the_toolbar_stands_beside_the_plot(opened, twins) -> None:
    page = opened(twins).page
    for name in ("train-loss", "corruptions-difference"):
        plot = page.locator(f"#p-{name} .plot")
        plot.scroll_into_view_if_needed()
        plot.locator(".main-svg").first.wait_for()
        plot.hover()
        right = plot.locator(".canvas").evaluate(
            "e => e.getBoundingClientRect().left + e._fullLayout._size.l + e._fullLayout._size.w"
        )
        buttons = plot.locator(".modebar-btn").evaluate_all("all => all.map(e => e.getBoundingClientRect().left)")
        assert min(buttons) >= right


def test_nothing_in_the_page_offers_to_upload_data(opened, twins) -> None:
    page = opened(twins).page
    page.locator("#training").scroll_into_view_if_needed()
    page.locator("#p-train-loss .js-plotly-plot").hover()
    titles = page.locator("#p-train-loss .modebar-btn").evaluate_all("all => all.map(e => e.dataset.title)")
    assert titles
    assert not [title for title in titles if re.search("share|cloud|edit", title or "", re.IGNORECASE)]


def test_it_prints_light_and_whole_and_comes_back(opened, twins) -> None:
    seen = opened(twins, color_scheme="dark")
    pdf = seen.page.pdf(format="A4", print_background=True)
    assert len(re.findall(rb"/Type\s*/Page\b", pdf)) > 3
    assert seen.drawn() >= 10, "printing draws what was never on the screen"
    assert sum(seen.color("body")) < 100
    assert seen.noise == []


def test_tables_can_be_read_without_javascript(opened, twins) -> None:
    page = opened(twins, java_script_enabled=False).page
    assert page.locator("#p-headline-table").is_visible()
    assert "40.000" in page.locator("#p-headline-table").inner_text()
    assert page.locator(".poster").first.is_visible()
    assert not page.locator("#theme").is_visible()


def test_hostile_names_and_empty_runs_open_in_silence(opened, folder) -> None:
    image = "<img src=x onerror=alert(1)>"
    evil = make_run(folder / image, classes=HOSTILE, config={"name": HOSTILE[0]}, settings={"note": HOSTILE[1]})
    empty = make_run(folder / "empty", without=NOTHING, config={"name": HOSTILE[1], "data": {"source": HOSTILE[0]}})
    seen = opened(report.write([evil, empty], folder / "evil.html"))
    seen.scroll_through()
    assert seen.page.evaluate("document.scripts.length") == seen.page.locator("script[data-for]").count() + 2
    assert seen.page.locator("h1").inner_text().count("<script>") >= 1
    assert seen.noise == []


def test_twenty_runs_stay_small_and_open_fast(opened, folder) -> None:
    kinds = (("vit-digits", "vit"), ("vit-digits-sam", "vit"), ("mixer-digits", "mixer"), ("resnet-digits", "resnet"))
    runs = [
        make_run(folder / f"{recipe}-{seed}", recipe=recipe, family=family, flat=1.0 + k, seed=seed, side=224,
                 points=51, log_lines=400)
        for seed in range(5)
        for k, (recipe, family) in enumerate(kinds)
    ]  # fmt: skip
    path = report.write(runs, folder / "many.html")
    assert path.stat().st_size < 15e6
    opened(path)  # once to warm the browser up
    seen = opened(path)
    seen.page.locator("#training").scroll_into_view_if_needed()
    seen.page.locator("#p-train-loss .scatterlayer .js-line").first.wait_for()
    seconds = seen.processor_seconds()
    assert 0.05 < seconds < 3, f"opens in {seconds:.1f} s"
    seen.scroll_through()
    assert seen.noise == []


@pytest.mark.costly
def test_a_served_report_follows_a_run_in_progress(browser, folder, tmp_path) -> None:
    """A real training run, begun after the page was opened."""
    out = tmp_path / "runs"
    with subprocess.Popen(
        [sys.executable, "-m", "samovar", "train", "vit-digits", "--steps", "400", "--run.log-every", "5",
         "--output", str(out), "--name", "r"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as training:  # fmt: skip
        records = out / "r" / "records.jsonl"
        while not (records.is_file() and records.read_text().count("train/loss") >= 2):
            assert training.poll() is None, training.stdout.read().decode()
            time.sleep(0.05)
        with server([out / "r"], port=0) as running:
            thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
            thread.start()
            page = browser.new_context(viewport={"width": 1280, "height": 4000}).new_page()  # all in view
            noise: list[str] = []
            page.on("console", lambda message: noise.append(message.text))
            page.on("pageerror", lambda error: noise.append(str(error)))
            page.goto(f"http://127.0.0.1:{running.server_port}/")
            page.wait_for_function("document.getElementById('live').textContent.includes('running, step')")
            drawn = "document.querySelector('#p-train-loss .canvas')?.data?.[0]?.x?.length ?? 0"
            page.wait_for_function(f"2 <= ({drawn}) && ({drawn}) < 80")
            assert training.wait() == 0, training.stdout.read().decode()
            page.wait_for_function(f"({drawn}) >= 80")
            page.wait_for_function("document.getElementById('live').textContent.includes('step 400')")
            assert noise == []
            running.shutdown()
            thread.join()
            running.server_close()
            page.wait_for_function("document.getElementById('live').textContent.includes('no longer served')")
            page.context.close()


SERIOUS = (Path(__file__).parent / "accessibility.js").read_text(encoding="utf-8")

OVERLAPS = (Path(__file__).parent / "overlaps.js").read_text(encoding="utf-8")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 768, 1400])
def test_no_serious_fault_of_accessibility_and_no_text_over_text(opened, twins, scheme: str, width: int) -> None:
    seen = opened(twins, color_scheme=scheme, viewport={"width": width, "height": 900})
    for details in seen.page.locator("details").all():
        details.evaluate("e => { e.open = true; }")
    assert seen.page.evaluate(SERIOUS) == []
    assert seen.page.evaluate(OVERLAPS) == []
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= width
    for table in seen.page.locator("table.numbers").all():
        hidden = table.evaluate("e => e.parentElement.scrollWidth - e.parentElement.clientWidth")
        assert hidden <= 1, "a column is out of sight"
