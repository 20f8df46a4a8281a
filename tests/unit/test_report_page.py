"""The page: whole with and without every measurement, safe whatever names are, the same for the same records."""

import json
import re
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest

from samovar import cli, report
from samovar.report.contents import CHAPTERS, Entry
from samovar.report.page import embed, render
from samovar.report.parts import Chapter
from samovar.runs.records import Record, RunDir
from tests.conftest import assert_refused
from tests.unit.report_runs import HOSTILE, MEASUREMENTS, NOTHING, SECTIONS, load, make_run


class Page(HTMLParser):
    """Tags, ids, links, text and payloads of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: Counter = Counter()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.handlers: list[str] = []
        self.payload: dict = {}
        self.text = ""
        self._inside: tuple[str, dict] = ("", {})
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        values = dict(attrs)
        self._inside = (tag, values)
        self.ids += [values["id"]] if "id" in values else []
        self.links += [values[key] for key in ("src", "href", "action", "data", "poster") if values.get(key)]
        self.handlers += [name for name in values if name.startswith("on")]

    def handle_endtag(self, tag):
        self._inside = ("", {})

    def handle_data(self, data):
        tag, values = self._inside
        if tag == "script" and "data-for" in values:
            self.payload[values["data-for"]] = json.loads(data)
        elif tag not in ("script", "style"):
            self.text += data


@pytest.fixture(scope="module")
def twins(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("twins")
    return [make_run(folder / "a"), make_run(folder / "b", recipe="vit-digits-sam", flat=8.0, seed=1)]


@pytest.fixture(scope="module")
def html(twins) -> str:
    return render(load(*twins))


def test_every_section_is_there_and_every_part_has_its_data(html) -> None:
    page = Page(html)
    assert [i for i in page.ids if i in SECTIONS] == list(SECTIONS)
    assert len(page.ids) == len(set(page.ids))
    assert page.tags["h1"] == 1
    assert page.tags["script"] == len(page.payload) + 2
    buttons = re.findall(r'data-csv="([^"]+)"', html)
    plots = re.findall(r'data-plot="([^"]+)"', html)
    assert plots
    assert all(page.payload[name]["csv"].count("\n") > 1 for name in buttons)
    assert all(page.payload[name]["plot"]["data"] for name in plots)
    assert set(buttons) >= set(plots)
    assert "samovar measure" not in page.text, "nothing is missing"


def test_a_new_chapter_is_one_line_in_the_table_of_contents(monkeypatch, twins) -> None:
    def throwaway(runs) -> Chapter:
        return Chapter("throwaway", "Thrown away", f"It saw {len(runs)} runs.")

    monkeypatch.setitem(CHAPTERS, "throwaway", Entry(throwaway))
    html = render(load(*twins))
    page = Page(html)
    assert [i for i in page.ids if i in CHAPTERS] == [*SECTIONS, "throwaway"]
    assert "#throwaway" in page.links
    assert "It saw 2 runs." in page.text
    assert '<h2 id="throwaway-title">Thrown away</h2>' in html


def test_a_chapter_about_no_folder_is_left_out(monkeypatch, twins) -> None:
    monkeypatch.setitem(CHAPTERS, "throwaway", Entry(lambda runs: Chapter("throwaway", ""), lambda runs: []))
    assert "throwaway" not in Page(render(load(*twins))).ids


def test_folders_without_training_say_so_at_the_end(tmp_path) -> None:
    page = Page(render(load(make_run(tmp_path / "a", without=NOTHING))))
    assert "No training records for vit-digits" in page.text
    assert "samovar train" not in page.text, "no hint trains again"


def test_numbers_in_the_page_are_the_records(html, twins) -> None:
    page = Page(html)
    for run, trace in zip(load(*twins), page.payload["train-loss"]["plot"]["data"], strict=True):
        assert trace["y"] == pytest.approx([r.value for r in run.series("train/loss")], rel=1e-6)
    assert "40.000" in page.text
    assert "± 0.020" in page.text


def test_the_page_names_nothing_outside_itself(html) -> None:
    page = Page(html)
    assert all(link.startswith(("#", "data:")) for link in page.links)
    assert not page.handlers
    assert not re.search(r"url\((?!data:)", html[: html.index("<body>")])
    assert "default-src 'none'" in html


def test_the_scripts_that_may_run_are_the_two_of_the_report(html) -> None:
    import base64
    import hashlib

    scripts = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    policy = re.search(r"script-src ([^;]*);", html).group(1)
    assert len(scripts) == 2
    for script in scripts:
        assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in policy
    assert "'unsafe-inline'" not in policy


@pytest.mark.parametrize("missing", [*MEASUREMENTS, "watch", "training"])
def test_a_missing_measurement_leaves_the_command_that_adds_it_at_the_end(tmp_path, missing: str) -> None:
    folder = make_run(tmp_path / "a run", without=(missing,), points=3)
    page = Page(render(load(folder)))
    assert [link for link in page.links if link.startswith("#")][-1] == "#unmeasured"
    wanted = {"watch": "--run.watch-every", "training": "No training records"}
    assert wanted.get(missing, f"samovar measure '{folder}' {missing}") in page.text


def test_what_a_run_lacks_is_one_command(tmp_path) -> None:
    folder = make_run(tmp_path / "r", without=("hessian", "attack", "landscape"), points=3)
    page = Page(render(load(folder)))
    assert f"samovar measure {folder} hessian landscape attack" in page.text
    assert page.text.count("samovar measure") == 1
    assert not {"landscape", "unknown"} & set(page.ids), "an empty chapter is left out"


def test_a_run_without_records_and_one_of_another_task_are_said_at_the_top(tmp_path, twins) -> None:
    other = make_run(tmp_path / "c", without=NOTHING, config={"data": {"source": "cifar10"}})
    page = Page(render(load(twins[0], other)))
    assert "These runs solve different tasks" in page.text
    assert "(digits: vit-digits, source digits; cifar10: vit-digits, source cifar10)" in page.text
    assert "has no records yet" in page.text


def test_a_diverged_run_and_unreadable_lines_are_said_at_the_top(tmp_path) -> None:
    folder = make_run(tmp_path / "a", without=NOTHING[1:])
    RunDir(folder).append(Record("train/loss", float("nan"), where={"step": 999}))
    with (folder / "records.jsonl").open("a") as file:
        file.write("garbage\n")
    (folder / "provenance.json").write_text("{")
    text = Page(render(load(folder))).text
    assert "vit-digits diverged: its training loss is not finite at step 999." in text
    assert "skipped 1 unreadable line of records.jsonl" in text
    assert "provenance.json is missing or damaged" in text


@pytest.mark.parametrize("break_it", ["remove", "cut"])
def test_missing_and_truncated_arrays_are_said_in_their_sections(tmp_path, break_it: str) -> None:
    folder = make_run(tmp_path / "a")
    for path in (folder / "arrays").iterdir():
        path.unlink() if break_it == "remove" else path.write_bytes(path.read_bytes()[:150])
    page = Page(render(load(folder)))
    for name in ("density", "landscape", "attention", "predictions"):
        assert re.search(rf"arrays/{name}.npz (is missing|cannot be read \(\w+\)); measure", page.text)
        assert re.search(rf"samovar measure {folder} [a-z ]*\b{name}\b", page.text)


def test_hostile_names_are_text(tmp_path, html) -> None:
    evil, quote = HOSTILE[0], HOSTILE[4]
    folder = make_run(
        tmp_path / "<b>x", classes=HOSTILE, settings={"note": evil, HOSTILE[1]: quote},
        config={"name": evil, "recipe": HOSTILE[1], "model": {"name": quote}, "data": {"source": HOSTILE[2]}},
    )  # fmt: skip
    RunDir(folder).append(Record(evil, 1.0, unit=quote, where={"block": evil}, source=HOSTILE[1]))
    RunDir(folder).append(Record(f"train/{evil}", 1.0, where={"step": 1}))
    RunDir(folder).append(Record("hessian/block_lambda_max", 1.0, where={"block": evil, "step": 160}))
    (folder / "provenance.json").write_text(json.dumps({"git": evil, evil: [HOSTILE[1]], "command": [quote, None]}))
    page, benign = Page(render(load(folder))), Page(html)
    assert page.tags["script"] == len(page.payload) + 2
    assert set(page.tags) <= set(benign.tags) | {"summary", "details"}
    assert page.text.count(evil) > 5
    assert not page.handlers
    assert all(not set(str(trace.get("name"))) & set("<>") for found in page.payload.values()
               for trace in found.get("plot", {}).get("data", []))  # fmt: skip


def test_json_in_the_page_cannot_end_its_script() -> None:
    values = {"a": "</script><!--\u2028\u2029&", "b": [1.5, None, "\ud800"]}
    text = str(embed(values))
    assert not re.search(r"[<>&\u2028\u2029]", text)
    assert json.loads(text) == values
    with pytest.raises(ValueError, match="JSON"):
        embed([float("nan")])


def test_the_same_records_make_the_same_page(twins, html) -> None:
    assert render(load(*twins)) == html


def test_many_runs_make_small_multiples_and_means_first(tmp_path) -> None:
    folders = [make_run(tmp_path / str(k), seed=k, points=3, log_lines=3) for k in range(9)]
    html = render(load(*folders))
    assert html.index("Means over seeds") < html.index("headline-table")
    assert "--columns: 3" in html
    assert "3 more runs" in html, "maps and predictions of most are folded away"


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_page_is_written_into_the_run_or_beside_several(twins, capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    bare = make_run(tmp_path / "bare", without=NOTHING)
    for args, path in (
        ([bare], bare / "report.html"), ([bare, twins[0]], Path("report.html")),
        ([bare, "-o", "x/y.html"], Path("x/y.html")),
    ):  # fmt: skip
        cli.main(["report", *map(str, args)])
        assert re.fullmatch(rf"report: {re.escape(str(path))} \(\d\.\d MB\)\n", capsys.readouterr().out)
        assert path.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert not list(tmp_path.rglob("*.partial"))


def test_write_returns_its_path(tmp_path) -> None:
    run = make_run(tmp_path / "a", without=NOTHING)
    assert report.write([run], tmp_path / "r.html") == tmp_path / "r.html"


@pytest.mark.parametrize(
    ("args", "line"),
    [
        ("report", "report needs a run folder"),
        ("report nowhere", "nowhere is not a run folder; give a folder with config.json"),
        ("report . ", ". is not a run: it has no config.json"),
        ("report run run", "run is given twice; give each run once"),
        ("report run run/../run", "is given twice"),
        ("report run -o /proc/nothing/r.html", "cannot write to /proc/nothing/r.html"),
        ("report run -o run", "it is a folder; give a file"),
        ("report run -o run/config.json/x.html", "cannot write to run/config.json/x.html"),
        ("report run --ouput x", "unknown flag --ouput; did you mean --output?"),
        ("report run -o", "-o needs a path"),
        ("report run --format png", "--format needs --figures; give --figures DIR with it"),
        ("report run --figures f --format gif", "cannot draw figures as gif; give svg, pdf or png"),
        ("report run --figures run/config.json", "cannot write to --figures run/config.json"),
        ("report run --figures f", "these runs have no records to draw figures of"),
    ],
)
def test_bad_input_is_one_clear_line_and_exit_code_2(args: str, line: str, capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "run", without=NOTHING)
    assert_refused(args, line, capsys)
    assert not list(tmp_path.rglob("*.html"))


def test_reporting_needs_no_torch(tmp_path) -> None:
    folder = make_run(tmp_path / "a", points=3)
    code = (
        "import sys\nfrom samovar.cli import main\n"
        f"main(['report', {str(folder)!r}, '-o', {str(tmp_path / 'r.html')!r}])\n"
        "assert not {'torch', 'timm', 'torchvision'} & set(sys.modules), 'heavy import'\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert not result.stderr


def test_help_answers_without_numpy() -> None:
    code = "import sys\nfrom samovar.cli import main\nmain(['report', '--help'])\nassert 'numpy' not in sys.modules\n"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "--figures DIR" in result.stdout
