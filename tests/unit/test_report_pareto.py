"""The chapter on a comparison: the figures hold the records, the front is one, names do not lie over each other."""

import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from samovar import report
from samovar.report.chapters.comparison import comparison, front, points
from samovar.report.contents import chapters, title
from samovar.report.drawing.labels import HEIGHT, LETTER, LINE, WIDTH, Box, beside, places
from samovar.report.drawing.plots import layout
from samovar.report.page import render
from samovar.report.paper.comparison import pareto
from samovar.runs.records import RunDir
from tests.unit.made_comparison import ACCURACY, COSTS, SPREAD, make_comparison
from tests.unit.report_runs import HOSTILE, load, make_run


def parts_of(*folders: Path) -> dict:
    return {part.id: part for part in comparison(load(*folders)).parts}


def test_a_comparison_is_three_figures_and_a_table_for_each_budget(tmp_path) -> None:
    parts = parts_of(make_comparison(tmp_path / "c", ("steps", "time")))
    figures = [f"pareto-0-{key}" for key in ("top1", "lambda_max", "corruption")]
    assert list(parts) == [*figures, "compare-0-steps", "compare-0-time"]
    assert [parts[name].plot["layout"]["yaxis"].get("type") for name in figures] == [None, "log", None]


def test_a_point_is_a_relative_with_its_time_its_number_and_its_error(tmp_path) -> None:
    figure = parts_of(make_comparison(tmp_path / "c"))["pareto-0-top1"]
    _, points_of_steps = figure.plot["data"]
    order = ["plain", "msam", "late", "quarter", "sam"]
    assert points_of_steps["text"] == order
    assert points_of_steps["x"] == [COSTS[name].ratio for name in order]
    seeds = [[ACCURACY[name] + each for each in SPREAD.get(name, (-1.0, 0.1, 0.9))] for name in order]
    assert points_of_steps["y"] == pytest.approx(np.mean(seeds, 1), rel=1e-6)  # seven digits are kept
    errors = np.std(seeds, 1, ddof=1) / math.sqrt(3)
    assert points_of_steps["error_y"]["array"] == pytest.approx(errors, rel=1e-6)
    assert [row[0] for row in figure.data.rows] == order
    assert {note["text"] for note in figure.plot["layout"]["annotations"]} == set(order)
    assert not figure.keys


def test_budgets_have_markers_of_their_own_and_share_the_run_of_sam(tmp_path) -> None:
    figure = parts_of(make_comparison(tmp_path / "c", ("steps", "time")))["pareto-0-top1"]
    _, steps, time = figure.plot["data"]
    assert steps["marker"]["symbol"] != time["marker"]["symbol"]
    assert ("sam" in steps["text"], "sam" in time["text"]) == (True, False)
    assert time["x"] == pytest.approx([2.0] * 4, rel=1e-3)  # whole steps
    assert [key.label for key in figure.keys] == ["the same steps", "SAM’s processor time"]


def test_the_front_is_what_no_other_point_beats(tmp_path) -> None:
    (run,) = load(make_comparison(tmp_path / "c", ("steps", "time")))
    for key, sign in (("top1", 1), ("lambda_max", -1)):
        found = points(run, key)
        best = front(found, upward=sign > 0)
        for point in found:
            beaten = any(
                p is not point and p.worth <= point.worth and sign * p.value >= sign * point.value
                and (p.worth, p.value) != (point.worth, point.value)
                for p in found
            )  # fmt: skip
            assert beaten != (point in best) or any(p.value == point.value for p in best), point
    names = [(point.relative, point.budget) for point in front(points(run, "top1"), upward=True)]
    assert names[:3] == [("plain", "steps"), ("late", "steps"), ("quarter", "steps")]
    line = parts_of(run.path)["pareto-0-top1"].plot["data"][0]
    assert line["line"]["shape"] == "hv"
    assert line["x"] == sorted(line["x"])
    assert line["y"] == sorted(line["y"])


def test_the_log_axis_has_its_range_and_labels_in_logarithms(tmp_path) -> None:
    layout = parts_of(make_comparison(tmp_path / "c"))["pareto-0-lambda_max"].plot["layout"]
    low, high = layout["yaxis"]["range"]
    assert low < math.log10(1000 / 74) < math.log10(1000 / 69) < high
    assert all(low < note["y"] < high for note in layout["annotations"])


def test_a_log_axis_of_less_than_a_factor_of_two_has_numbers() -> None:
    for low, high in ((13.5, 14.3), (1.0, 1.9), (0.031, 0.032), (7e5, 7.1e5), (5.0, 5.0)):
        step = layout(log_y=[low, high])["yaxis"]["dtick"]
        assert step[0] == "L"
        assert 4 <= ((high - low) or 2.0) / float(step[1:]) <= 11
    assert layout(log_y=[1.0, 1e6])["yaxis"]["dtick"] == 1


def test_the_table_has_the_answer_above_it_and_the_share_beside_its_verdict(tmp_path) -> None:
    table = parts_of(make_comparison(tmp_path / "c"))["compare-0-steps"]
    assert table.caption.startswith("At no more than 1.25 times the cost of plain, quarter keeps at least 90 %")
    row = next(row for row in table.rows if row.head == "quarter")
    assert row.detail == "SAM whose climb sees a quarter of the images"
    cost, top1, _, _, share, verdict = row.cells
    assert (cost.text, cost.details) == ("1.25", ["1.15 to 1.35", "2 gradients per image", "1\u202f000 steps"])
    assert (top1.text, top1.error) == ("73.93", "± 0.61")
    assert (share.text, verdict.text) == ("98 %", "held")
    assert [cell.text for cell in table.rows[0].cells[-2:]] == ["–", "–"]


def test_what_is_missing_is_left_out_of_the_figure_and_is_a_dash_in_the_table(tmp_path) -> None:
    parts = parts_of(make_comparison(tmp_path / "c", late=[math.nan] * 3, quarter=[73.0, math.nan, 75.0]))
    assert "late" not in parts["pareto-0-top1"].plot["data"][1]["text"]
    cells = {row.head: row.cells[1] for row in parts["compare-0-steps"].rows}
    assert cells["late"].text == "–"
    assert cells["quarter"].details == ["2 of 3 seeds"]


def test_a_comparison_comes_first_and_has_no_place_among_the_runs(tmp_path) -> None:
    folder = make_comparison(tmp_path / "c")
    runs = load(folder, make_run(tmp_path / "r"))
    found = chapters(runs)
    assert [section.id for section in found[:3]] == ["comparison", "verdict", "headline"]
    assert title(runs) == "SAM and its relatives on digits"
    (one,) = load(tmp_path / "r")
    alone = {section.id: section.parts for section in chapters([replace(one, label=runs[1].label)])}
    assert [part.id for part in found[2].parts] == [part.id for part in alone["headline"]]
    assert [section.id for section in chapters(load(folder))] == ["comparison", "settings", "provenance"]
    report.write([folder, tmp_path / "r"], tmp_path / "page.html")


def test_a_paper_gets_the_figure_too(tmp_path) -> None:
    folder = make_comparison(tmp_path / "c", ("steps", "time"))
    written = report.figures([folder], tmp_path / "figures", ["png"])
    assert [path.name for path in written] == ["pareto.png"]
    figure = pareto(load(folder))
    accuracy, *_ = figure.axes
    assert [axes.get_yscale() for axes in figure.axes] == ["linear", "log", "linear"]
    assert set(COSTS) <= {text.get_text() for text in accuracy.texts}
    assert pareto(load(make_run(tmp_path / "r"))) is None


@pytest.mark.parametrize("text", HOSTILE)
def test_names_of_others_are_harmless(tmp_path, text: str) -> None:
    folder = make_comparison(tmp_path / "c")
    run = RunDir(folder)
    records = [
        replace(
            record, where=record.where | {"relative": text, "column": text}, settings=record.settings | {"text": text}
        )
        for record in run.records()
    ]
    run.append(*records)
    page = render(load(folder))
    assert "<script>alert(1)" not in page
    assert "</script><b>" not in page


@pytest.mark.parametrize("seed", range(5))
def test_names_lie_over_no_other_name(seed: int) -> None:
    rng = np.random.default_rng(seed)
    # as of eleven relatives under two budgets: some in clusters, as many one above the other
    across = np.concatenate([rng.uniform(0.05, 0.95, 11), np.full(10, 0.9)])
    boxes = [Box("relative", x, y, x, y) for x, y in zip(across, rng.uniform(0.1, 0.9, 21), strict=True)]
    found = beside(boxes)
    assert len(found) == len(boxes)
    width = LETTER * len("relative")
    middles = [(box.across * WIDTH + note["ax"], (1 - box.up) * HEIGHT + note["ay"])
               for box, note in zip(boxes, found, strict=True)]  # fmt: skip
    over = [
        (a, b)
        for a, b in itertools.combinations(middles, 2)
        if abs(a[0] - b[0]) < width - 1 and abs(a[1] - b[1]) < LINE - 1
    ]
    assert len(over) <= 1  # where there is no place left, some overlap is the least of evils


def test_of_points_close_together_each_name_is_told_apart_by_nearness_or_a_line() -> None:
    boxes = [
        Box(text, x, 0.5, x, 0.5) for text, x in (("quarter", 0.2), ("late", 0.24), ("every5", 0.25), ("sam", 0.8))
    ]
    found = places(boxes)
    assert not found[-1].far  # alone: next to its point
    for own, (box, place) in enumerate(zip(boxes, found, strict=True)):
        middle, half = box.across * WIDTH + place.dx, LETTER * len(box.text) / 2
        for other in (*boxes[:own], *boxes[own + 1 :]):
            x = other.across * WIDTH
            gap = math.hypot(max(middle - half - x, 0, x - middle - half), max(abs(place.dy) - LINE / 2, 0))
            away = math.hypot(max(abs(place.dx) - half, 0), max(abs(place.dy) - LINE / 2, 0))
            assert place.far or gap >= 2 * away
            crossing = place.far and place.dy == 0 and min(0, place.dx) < x - box.across * WIDTH < max(0, place.dx)
            assert not crossing  # a line along the row of points would run over them
