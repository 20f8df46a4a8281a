"""Names of files, classes and runs are text in terminal, CSV and Markdown; a reader that leaves ends nothing."""

import csv
import io
import json
import os
import re
import sys
from pathlib import Path

import pytest
from rich.table import Table

from samovar import cli
from samovar import config as configs
from samovar.config import Config, DataConfig
from samovar.export import export
from samovar.report.parts import Data
from samovar.runs.records import Record, RunDir
from samovar.runtime import terminal
from samovar.words import UNSEEN, csv_cell, visible
from tests.unit.made_run import made_run
from tests.unit.report_runs import HOSTILE

EVIL = "\x1b[31mred\x1b]0;title\x07 \u202egnp.exe\u2066 a\rb\x9b2J [/red] [bold]"
"""A name that colours, retitles and clears a terminal, turns the direction of writing, and has rich's markup."""
FORMULAS = ("=1+1", "+1+cmd", "-2+3", "@SUM(A1)", "\t=1", "\r=1", '=HYPERLINK("http://x")')


def seen(text: str) -> set[str]:
    """The characters of a text that a terminal would act on."""
    return set(UNSEEN.findall(text)) - set("\n\t")


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run whose folder, classes and images have such names."""
    monkeypatch.chdir(tmp_path)
    names = (EVIL, "=1+1", "b")
    data = DataConfig(image_size=8, workers=0)
    made = made_run(tmp_path / f"x{EVIL.replace('/', '|')}", Config(data=data), classes=3, channels=1)
    made.keep_classes(names)
    from PIL import Image

    for name in (f"{EVIL.replace('/', '|')}\n.png", "=x.png", "-y.png"):
        Image.new("L", (8, 8)).save(tmp_path / name)
    Path(tmp_path / "broken\x1b[2J.png").write_bytes(b"\x89PNG")
    return made


# --- words -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*HOSTILE, EVIL, "a\nb\tc", "\ud800 \udcff", "\x00"])
def test_visible_text_is_one_line_without_control_characters(name) -> None:
    shown = visible(name)
    assert not UNSEEN.search(shown)
    assert len(shown.splitlines()) == 1
    shown.encode("utf-8")


def test_visible_text_of_plain_names_is_the_name() -> None:
    for name in ("vit-digits", "日本語 ñ 🦊", "a b", "C:\\x", "50 % ± 2"):
        assert visible(name) == name
    assert visible("\x1b[1m\u202e") == "\\x1b[1m\\u202e"


@pytest.mark.parametrize("text", FORMULAS)
def test_no_cell_of_csv_is_a_formula(text) -> None:
    cell = "'" + text.replace("\r", "\\r")
    assert csv_cell(text) == cell
    assert "\r" not in csv_cell(f"a{text}")
    table = Data((text, "b"), [(text, -0.5), ("plain", None)]).csv
    assert list(csv.reader(io.StringIO(table, newline=""))) == [[cell, "b"], [cell, "-0.5"], ["plain", ""]]


@pytest.mark.parametrize("value", [-1, -0.5, "-0.5", "+3", "-inf", "plain", "a=b", "", None])
def test_numbers_and_plain_text_stay_as_they_are(value) -> None:
    assert csv_cell(value) == value


# --- verbs -----------------------------------------------------------------------------------------------------------


def test_predictions_show_hostile_names_as_text(run, capsys) -> None:
    with pytest.raises(SystemExit):  # one image cannot be read
        cli.main(["predict", str(run.path), "."])
    out, err = capsys.readouterr()
    assert not seen(out)
    assert not seen(err)
    assert "broken\\x1b[2J.png cannot be read" in err
    assert "[/red]" in "".join(out.split())


@pytest.mark.parametrize("to", ["-", "out.csv"])
def test_predictions_as_csv_hold_no_formula(run, to, capsys) -> None:
    cli.main(["predict", str(run.path), "=x.png", "./-y.png", "--csv", to])
    text = capsys.readouterr().out if to == "-" else Path(to).read_text()
    rows = list(csv.reader(io.StringIO(text)))
    assert [row[0] for row in rows] == ["image", "./=x.png", "./-y.png"]
    assert Path(rows[1][0]).is_file()
    assert {"'=1+1"} <= {cell for row in rows for cell in row}
    assert not any(cell != csv_cell(cell) for row in rows for cell in row)


def test_json_of_predictions_keeps_the_names(run, capsys) -> None:
    cli.main(["predict", str(run.path), "=x.png", "--json"])
    (line,) = capsys.readouterr().out.splitlines()
    assert {EVIL, "=1+1", "b"} == {each["class"] for each in json.loads(line)["predictions"]}


@pytest.mark.parametrize("verb", ["report", "show", "measure"])
def test_verbs_print_a_hostile_folder_as_text(verb, run, capsys) -> None:
    rest = ["--images", "2", "--source", "digits"] if verb == "measure" else []
    try:
        cli.main([verb, str(run.path), *(["flatness"] if verb == "measure" else []), *rest])
    except SystemExit as error:
        assert error.code == 2  # digits has other classes  # noqa: PT017
    out, err = capsys.readouterr()
    assert not seen(out + err)
    assert "\\x1b[31mred" in out + err


def test_an_error_about_a_hostile_name_is_one_line(capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        cli.main(["report", f"{EVIL}\nsamovar: all is well"])
    err = capsys.readouterr().err
    assert not seen(err)
    assert err.count("\n") == 1


def test_a_table_shows_markup_as_text(capsys) -> None:
    table = Table("run", title="a[/red]")
    table.add_row("b[/red] [bold]x[/bold]\x1b[2J")
    terminal.console(columns=120).print(table, "c[/red]")
    out = capsys.readouterr().out
    assert not seen(out)
    for part in ("a[/red]", "b[/red] [bold]x[/bold]\\x1b[2J", "c[/red]"):
        assert part in out


def test_the_card_of_an_export_shows_names_as_text(run) -> None:
    values = configs.to_dict(configs.load(run.config_path))
    values["data"]["source"] = "folder:![x](http://host/a.png)<script>alert(1)</script>`"
    values["optim"]["name"] = "adamw](javascript:alert(1))\n# Heading"
    run.config_path.write_text(json.dumps(values))
    split = "val](http://x) <img src=x onerror=alert(1)>"
    RunDir(run.path).append(Record("val/accuracy", 0.5, n=10, where={"step": 3, "split": split}))
    facts = {"versions": {"<b>torch": "1\n# Heading"}}
    (run.path / "provenance.json").write_text(json.dumps(facts))
    title = "<script>alert(1)</script>\n---\n# [x](javascript:1)"
    out = export(str(run.path), "timm", output=run.path / "copy", title=title, license="mit\ntags: [x]")
    card = (out / "README.md").read_text()
    head, body = card.split("\n---\n", 1)
    assert 'license: "mit\\ntags: [x]"' in head
    assert not seen(card)
    assert [line for line in body.splitlines() if line.startswith("#")] == [
        line for line in body.splitlines() if line.startswith(("# \\<script", "## Loading"))
    ]
    outside = re.sub(r"(`+)[^`].*?\1(?!`)", "", re.sub(r"\\.", "", body), flags=re.DOTALL)
    assert not re.search(r"[<>\[]|\]\(", outside.replace("[0, 1]", ""))


# --- streams ---------------------------------------------------------------------------------------------------------


def test_a_terminal_of_ascii_gets_signs_that_it_has(monkeypatch) -> None:
    raw = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", raw)
    with terminal.output(goes_on=True):
        print("1 ± 2 … ñ")
        terminal.console(columns=80).print("3 ± 4 ñ")
    raw.flush()
    assert raw.buffer.getvalue().decode("ascii").splitlines() == ["1 +- 2 ... \\xf1", "3 +- 4 \\xf1"]
    assert raw.errors == "strict"


def pipe_without_reader(monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    stream = os.fdopen(writer, "w", buffering=1)
    monkeypatch.setattr(sys, "stdout", stream)
    return stream


def test_work_goes_on_after_the_reader_of_its_output_has_left(monkeypatch) -> None:
    stream = pipe_without_reader(monkeypatch)
    with terminal.output(goes_on=True):
        for number in range(3):
            print(number, flush=True)
        terminal.console().print("end")
    stream.close()


def test_a_list_ends_when_its_reader_has_left(monkeypatch) -> None:
    pipe_without_reader(monkeypatch)
    cli.main(["list", "recipes"])
