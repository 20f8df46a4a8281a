"""The forest plot of claims: where dots, arms, the paper's values and the threshold stand."""

import math
from pathlib import Path

import pytest

from samovar import config as configs
from samovar.config import Config
from samovar.report.chapters.claims_figure import forests
from samovar.report.chapters.reproduction import reproduction
from samovar.report.paper.claims import claims as drawn
from samovar.report.read import read_runs
from samovar.runs.records import Record, RunDir


def claim(text: str, value: float, interval=None, unit: str = "points", paper: float = math.nan) -> Record:
    settings = {"unit": unit, "paper": paper, "verdict": "held"}
    return Record("reproduce/claim", value, where={"claim": text}, settings=settings, interval=interval)


def test_dots_arms_and_the_papers_values_stand_in_the_row_of_their_claim() -> None:
    (figure,) = forests([claim("a", 2.0, (1.0, 4.0), paper=5.0), claim("b", -1.0)], "f", "Claims")
    ours, paper = figure.plot["data"]
    assert ours["y"] == paper["y"] == ["b", "a"]  # drawn from below
    assert ours["x"] == [-1.0, 2.0]
    assert ours["error_x"]["array"] == [None, 2.0]
    assert ours["error_x"]["arrayminus"] == [None, 1.0]
    assert paper["x"] == [None, 5.0]
    assert figure.plot["layout"]["shapes"][0]["x0"] == 0.0


def test_ratios_have_a_figure_of_their_own_with_a_logarithmic_axis() -> None:
    records = [claim("a", 2.0), claim("b", 3.0, (0.5, math.inf), unit="x")]
    difference, ratio = forests(records, "f", "Claims")
    assert [difference.id, ratio.id] == ["f-0", "f-1"]
    assert ratio.plot["layout"]["xaxis"]["type"] == "log"
    assert "type" not in difference.plot["layout"]["xaxis"]
    assert ratio.plot["layout"]["shapes"][0]["x0"] == 1.0
    assert ratio.plot["data"][0]["error_x"]["array"] == [None]  # an arm without an end is not drawn
    assert ratio.plot["data"][0]["error_x"]["arrayminus"] == pytest.approx([2.5])


def test_claims_that_are_not_measured_are_left_out() -> None:
    assert forests([claim("a", math.nan)], "f", "Claims") == []


def make_study(folder: Path, claims: list[Record]) -> Path:
    """Write the folder of a study with one number and some claims."""
    run = RunDir.create(folder, "study")
    run.write_json("config.json", configs.to_dict(Config()))
    run.append(Record("reproduce/number", 1.0, n=1, where={"study": "t", "row": "a", "column": "b"}))
    for record in claims:
        run.append(record)
    return run.path


def test_the_chapter_of_a_study_shows_the_plot_behind_its_claims(tmp_path) -> None:
    (study,) = read_runs([make_study(tmp_path, [claim("a", 2.0, (1.0, 4.0))])])
    assert [part.id for part in reproduction([study]).parts] == ["numbers-0", "claims-0", "forest-0-0"]


def test_the_figure_of_a_paper_has_a_panel_for_each_unit_and_a_row_for_each_claim(tmp_path) -> None:
    found = [
        claim("first", 2.0, (1.0, 4.0), paper=5.0),
        claim("second", -1.0),
        claim("third", 3.0, (0.5, math.inf), unit="x"),
        claim("missing", math.nan),
    ]
    figure = drawn(read_runs([make_study(tmp_path, found)]))
    points, ratios = figure.axes
    assert [label.get_text() for label in points.get_yticklabels()] == ["second", "first"]
    places = [(list(line.get_xdata()), list(line.get_ydata())) for line in points.get_lines()]
    assert places[:4] == [([-1.0], [0]), ([1.0, 4.0], [1, 1]), ([2.0], [1]), ([5.0], [1])]
    assert (points.get_xscale(), ratios.get_xscale()) == ("linear", "log")
    assert list(ratios.get_lines()[0].get_xdata()) == [0.5, 3.0]  # an arm without an end is not drawn
    figure.draw_without_rendering()


def test_runs_without_claims_have_no_figure_of_them(tmp_path) -> None:
    assert drawn(read_runs([make_study(tmp_path, [])])) is None
