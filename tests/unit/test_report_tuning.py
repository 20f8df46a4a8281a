"""The chapter on a search: figures and table hold the records, whatever was searched and however it went."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from samovar import config as configs
from samovar import recipes, report
from samovar.report.chapters.tuning import tuning
from samovar.report.contents import chapters
from samovar.report.page import render
from samovar.runs.records import Record, RunDir
from tests.unit.report_runs import NOTHING, SECTIONS, load, make_run

SETTINGS = {"source": "digits", "images": 1528, "held_out": "--data.val-share 0.85", "training_images": 269}

Row = tuple[Mapping[str, float], int, int, float, float]
"""Setting, rung, steps, accuracy, loss."""

ONE: Sequence[Row] = [
    ({"rho": 0.0}, 1, 63, 0.60, 1.9),
    ({"rho": 0.05}, 1, 63, 0.50, 2.0),
    ({"rho": 0.1}, 1, 63, 0.40, 2.2),
    ({"rho": 0.4}, 1, 63, math.nan, math.nan),
    ({"rho": 0.05}, 2, 735, 0.95, 0.20),
    ({"rho": 0.1}, 2, 735, 0.95, 0.19),
]
TWO: Sequence[Row] = [
    ({"rho": rho, "lr": lr}, 1, 63, 0.5 + rho + 10 * lr, 1.0) for rho in (0.05, 0.1, 0.2) for lr in (1e-3, 3e-3)
]


def make_search(folder: Path, rows: Sequence[Row] = ONE, seeds: int = 3, **settings) -> Path:
    folder.mkdir(parents=True)
    run = RunDir(folder)
    config = replace(recipes.get("vit-digits-sam").config(), name=folder.name)
    run.write_json("config.json", configs.to_dict(config))
    run.write_json("provenance.json", {"versions": {"python": "3.11"}, "device": "cpu"})
    for setting, rung, steps, accuracy, loss in rows:
        where = {**setting, "rung": rung, "steps": steps}
        error = None if seeds == 1 else 0.004 if math.isfinite(accuracy) else math.nan
        for name, value in (("tune/accuracy", accuracy), ("tune/loss", loss)):
            run.append(
                Record(name, value, "1", error, seeds, where, SETTINGS | settings, {"seconds": steps * 0.08},
                       converged=math.isfinite(accuracy))
            )  # fmt: skip
    return folder


def parts_of(*folders: Path) -> dict:
    return {part.id: part for part in tuning(load(*folders)).parts}


def test_a_search_of_one_axis_shows_its_longest_runs_and_a_line_per_length(tmp_path) -> None:
    parts = parts_of(make_search(tmp_path / "s"))
    assert list(parts) == ["tuning-0-0", "tuning-0-1", "tuning-table-0"]
    (longest, _), (long, short, ring) = (parts[f"tuning-0-{k}"].plot["data"] for k in (0, 1))
    assert longest == long
    assert (long["x"], long["y"]) == ([0.05, 0.1], [0.95, 0.95])
    assert long["error_y"]["array"] == [0.004, 0.004]
    assert [key.label for key in parts["tuning-0-1"].keys] == ["735 steps", "63 steps"]
    assert (ring["x"], ring["y"]) == ([0.1], [0.95]), "of two alike the one with the smaller loss"
    assert short["customdata"][0] == ["0", 3]


def test_zero_stands_apart_on_the_logarithmic_axis(tmp_path) -> None:
    figure = parts_of(make_search(tmp_path / "s"))["tuning-0-1"]
    axis, short = figure.plot["layout"]["xaxis"], figure.plot["data"][1]
    # as far below 0.05 as 0.05 is below 0.1, and a gap in the line after it
    assert short["x"] == pytest.approx([0.025, None, 0.05, 0.1, 0.4])
    assert short["y"] == [0.6, None, 0.5, 0.4, None]
    assert not short["connectgaps"]
    assert axis["type"] == "log"
    assert (axis["tickvals"], axis["ticktext"]) == (pytest.approx([0.025, 0.05, 0.1, 0.4]), ["0", "0.05", "0.1", "0.4"])
    assert "leftmost point is at 0" in figure.caption
    assert "1 setting is not finite" in figure.caption


def test_several_axes_are_lines_of_one_colour_in_every_figure(tmp_path) -> None:
    longer = [({"rho": 0.1, "lr": lr}, 2, 735, 0.9 + lr, 0.2) for lr in (3e-3, 1e-3)]
    parts = parts_of(make_search(tmp_path / "s", [*TWO, *longer, ({"rho": 0.05, "lr": 3e-3}, 2, 735, 0.9, 0.3)]))
    long, short = parts["tuning-0-0"], parts["tuning-0-1"]
    names = {trace["name"]: trace["line"]["color"] for trace in short.plot["data"]}
    assert list(names) == ["learning rate 0.001", "learning rate 0.003"]
    assert {trace["name"]: trace["line"]["color"] for trace in long.plot["data"] if trace["name"] != "best"} == names
    assert [key.label for key in long.keys] == [key.label for key in short.keys] == list(names)
    assert short.plot["data"][1]["x"] == [0.05, 0.1, 0.2]
    assert short.plot["data"][1]["y"] == pytest.approx([0.58, 0.63, 0.73])
    assert long.title == "Held-out accuracy by rho, runs of 735 steps"


def test_the_table_has_every_setting_the_best_first(tmp_path) -> None:
    table = parts_of(make_search(tmp_path / "s"))["tuning-table-0"]
    assert [row.head for row in table.rows] == ["rho 0.1", "rho 0.05", "rho 0", "rho 0.05", "rho 0.1", "rho 0.4"]
    steps, accuracy, loss, time = table.rows[0].cells
    assert (steps.text, accuracy.text, accuracy.error, accuracy.details) == ("735", "95.00 %", "± 0.40", ["3 seeds"])
    assert loss.text == "0.1900"
    assert time.text == "59 s"
    assert [cell.text for cell in table.rows[-1].cells][1:3] == ["not finite", "–"]
    assert table.data.rows[0][:4] == (0.1, 735.0, 0.95, 0.004)
    assert "1528 images of digits, held out by --data.val-share 0.85" in table.columns[1].note


def test_a_best_value_at_the_edge_is_a_warning(tmp_path) -> None:
    (note,) = tuning(load(make_search(tmp_path / "s", TWO))).notes[:1]
    assert note == "The best rho, 0.2, is the highest value tried; a higher one may be better."
    assert not tuning(load(make_search(tmp_path / "t"))).notes


def test_the_page_of_a_search_has_no_empty_chapters(tmp_path) -> None:
    folder = make_search(tmp_path / "s")
    assert [section.id for section in chapters(load(folder))] == ["tuning", "settings", "provenance"]
    assert all(section.parts and not section.missing for section in chapters(load(folder)))
    html = report.write([folder], folder / "report.html").read_text(encoding="utf-8")
    assert 'href="#tuning">Skip' in html
    assert "samovar measure" not in html


def test_beside_runs_a_search_has_its_own_chapter_and_is_missing_in_none(tmp_path) -> None:
    runs = load(make_search(tmp_path / "s"), make_run(tmp_path / "r"))
    found = {section.id: section for section in chapters(runs)}
    assert list(found) == ["tuning", *SECTIONS]
    assert [row.head for row in found["headline"].parts[0].rows] == ["vit-digits"]
    assert not any(section.missing for section in found.values())
    assert len(found["settings"].parts[0].columns) == 2


def test_without_a_search_the_chapters_are_those_of_runs(tmp_path) -> None:
    found = [section.id for section in chapters(load(make_run(tmp_path / "r")))]
    assert found == list(SECTIONS)
    bare = [section.id for section in chapters(load(make_run(tmp_path / "s", without=NOTHING)))]
    assert bare == ["headline", "settings", "provenance", "unmeasured"]


@pytest.mark.parametrize(
    "rows",
    [
        [({"rho": 0.1}, 1, 10, math.nan, math.nan)],
        [({"rho": 0.0}, 1, 10, 0.5, 1.0), ({"rho": 0.1}, 1, 10, math.nan, math.nan)],
        [({"weight_decay": 0.0}, 1, 10, 0.5, 1.0), ({"weight_decay": 0.1}, 1, 10, 0.6, 1.0)],
        [({"rho": "x"}, 1, 10, 0.5, 1.0), ({"rho": 0.1}, 1, 10, 0.6, 1.0)],
        [({}, 1, 10, 0.5, 1.0)],
    ],
    ids=["nothing finite", "one at 0", "decay", "no number", "no axis"],
)
def test_odd_searches_make_a_page(tmp_path, rows) -> None:
    html = render(load(make_search(tmp_path / "s", rows, seeds=1, held_out="<b>bold</b>")))
    assert 'id="p-tuning-table-0"' in html
    assert "<b>bold" not in html
