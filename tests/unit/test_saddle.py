"""A negative lambda_max: both ends of the spectrum are recorded, and a sentence says that the point is no minimum."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import samovar
from samovar.config import MeasureConfig
from samovar.curvature import power_iteration, top_eigenvalues
from samovar.measure import command
from samovar.measure.hessian import hessian_of
from samovar.report import write
from samovar.report.chapters.blocks import blocks
from samovar.report.chapters.headline import headline
from samovar.report.chapters.spectrum import spectrum
from samovar.report.chapters.watch import watch
from samovar.runs.records import Record, RunDir
from samovar.runs.saddle import saddle, saddles
from tests.unit.report_runs import load, make_run
from tests.unit.test_report_figures import parts


class Diagonal:
    """A diagonal matrix that counts its products."""

    device, dtype = torch.device("cpu"), torch.float64

    def __init__(self, *values: float):
        self.values, self.size, self.num_products = torch.tensor(values, dtype=self.dtype), len(values), 0

    def __matmul__(self, v: Tensor) -> Tensor:
        self.num_products += 1
        return self.values * v


def test_both_ends_come_from_the_same_products():
    op = Diagonal(-38.0, 10.0, *[0.01 * i for i in range(40)])
    found = top_eigenvalues(op)
    assert (found.num_products, found.values.item()) == (op.num_products, pytest.approx(-38))
    assert found.smallest.value == found.values.item()
    assert (found.smallest.residual, found.smallest.converged) == (found.residuals.item(), True)
    assert abs(found.largest.value - 10) <= found.largest.residual
    assert found.largest.value <= 10 * (1 + 1e-12)  # a Ritz value is inside the spectrum, up to rounding


def test_an_end_that_has_not_settled_says_so():
    # the far end is one of many values side by side, which few products do not tell apart
    op = Diagonal(-100.0, *torch.linspace(0, 10, 300).tolist())
    found = top_eigenvalues(op, tol=1e-2)
    assert found.converged
    assert not found.largest.converged
    assert found.largest.residual > 1e-2 * found.largest.value
    assert any(abs(found.largest.value - x) <= found.largest.residual for x in op.values)


def test_power_iteration_knows_one_end_alone():
    found = power_iteration(Diagonal(-2.0, 1.0))
    assert found.smallest is found.largest is None


# --- the measurement -------------------------------------------------------------------------------------------------


class Negated:
    """A Hessian times -1, so that its largest eigenvalue becomes the most negative."""

    checked = True

    def __init__(self, op: samovar.Hessian):
        self.op, self.size, self.device, self.dtype = op, op.size, op.device, op.dtype

    def __matmul__(self, v: Tensor) -> Tensor:
        return -(self.op @ v)


def small(tmp_path: Path, **changes) -> MeasureConfig:
    config = MeasureConfig(images=40, image_size=8, output=tmp_path, name="m", workers=0)
    return replace(config, **changes)


@pytest.fixture
def downward(monkeypatch):
    """Let `samovar measure` meet a loss that falls off most steeply."""
    monkeypatch.setattr(
        "samovar.measure.hessian.hessian_of", lambda *args, **kwargs: Negated(hessian_of(*args, **kwargs))
    )


def test_a_negative_lambda_max_is_recorded_with_both_ends_and_told_below_the_table(downward, tmp_path, capsys):
    folder = command.run("vit-digits", ["hessian"], small(tmp_path, k=2))
    found = {record.name: record for record in folder.records()}
    top, largest, smallest = (
        found[f"hessian/{name}"] for name in ("lambda_max", "largest_eigenvalue", "smallest_eigenvalue")
    )
    assert top.value == smallest.value < 0 < largest.value
    assert (top.residual, top.converged) == (smallest.residual, smallest.converged)
    assert largest.residual is not None
    out = capsys.readouterr().out
    assert "hessian/largest_eige" in out
    assert "hessian/smallest_eig" in out
    (line,) = [line for line in out.splitlines() if "no minimum" in line]
    assert line.startswith(f"lambda_max: the eigenvalue of largest magnitude is negative ({top.value:.4g}), so")
    assert f"the largest positive one ({largest.value:.4g}" in line
    assert len(command.run("vit-digits", ["hessian"], small(tmp_path, k=2)).records_path.read_text().splitlines()) == 4


def test_each_block_has_its_own_sentence(downward, tmp_path, capsys):
    folder = command.run("vit-digits", ["blocks"], small(tmp_path, params=("body.head", "body.head.weight")))
    names = [record.name for record in folder.records()]
    assert names == 2 * [
        f"hessian/block_{name}" for name in ("lambda_max", "largest_eigenvalue", "smallest_eigenvalue")
    ]
    out = capsys.readouterr().out
    assert [line.partition(":")[0] for line in out.splitlines() if "no minimum" in line] == [
        "lambda_max of body.head", "lambda_max of body.head.weight",
    ]  # fmt: skip


def test_a_positive_lambda_max_is_recorded_alone(tmp_path, capsys):
    folder = command.run("vit-digits", ["hessian"], small(tmp_path))
    assert [record.name for record in folder.records()] == ["hessian/lambda_max"]
    assert "no minimum" not in capsys.readouterr().out


# --- the sentence ----------------------------------------------------------------------------------------------------


def negative(value: float = -38.0, residual: float | None = 0.02, **fields) -> Record:
    return Record("hessian/lambda_max", value, residual=residual, **fields)


def end(value: float, **fields) -> Record:
    return Record("hessian/largest_eigenvalue", value, residual=0.5, **fields)


@pytest.mark.parametrize(
    ("record", "among", "told"),
    [
        (negative(), [end(10.0)], r"negative \(-38\), so .* no minimum .* largest positive one \(10\) instead"),
        (negative(), [end(10.0, converged=False)], r"largest positive one \(10, not converged\)"),
        (negative(), [end(-0.5)], "no positive one was met"),
        (negative(), [], "not to be compared with a positive one"),
        (negative(), [end(10.0, where={"step": 3})], "not to be compared"),
        (negative(), [end(10.0, settings={"request": "k=2"})], "not to be compared"),
        (negative(converged=False), [end(10.0)], "no minimum"),
        (negative(-0.01), [], ""),
        (negative(38.0), [], ""),
        (negative(float("nan")), [], ""),
        (Record("hessian/trace", -3.0), [], ""),
    ],
)
def test_the_sentence_is_there_where_a_negative_eigenvalue_is_certain(record, among, told):
    found = saddle(record, among)
    assert bool(found) == bool(told)
    assert re.search(told, found)
    assert saddles([record, *among]) == [f"lambda_max: {found}"] * bool(told)


# --- the report ------------------------------------------------------------------------------------------------------


@pytest.fixture
def runs(tmp_path):
    """A run at a saddle, and one whose lambda_max is positive."""
    folders = [make_run(tmp_path / name) for name in ("saddle", "bowl")]
    block = {"where": {"block": "msa", "step": 160}}
    settings = {"request": "k=2"}
    RunDir(folders[0]).append(
        negative(settings=settings),
        end(10.0, settings=settings),
        Record("hessian/eigenvalue", 10.0, where={"rank": 2}, settings=settings),
        Record("hessian/block_lambda_max", -5.0, residual=0.01, **block),
        Record("hessian/block_largest_eigenvalue", 2.0, residual=0.01, converged=False, **block),
    )
    return load(*folders)


def test_the_headline_shows_both_ends_and_the_sentence(runs):
    chapter = headline(runs)
    numbers = parts(chapter)["headline-table"]
    at = [column.title for column in numbers.columns].index("λ_max")
    below, above = (row.cells[at] for row in numbers.rows)
    assert below.text.startswith(("-38", "−38"))
    assert "largest 10" in below.details[0]
    assert not any("largest" in detail for detail in above.details)
    (note,) = chapter.notes
    assert note.startswith(f"{runs[0].label}, lambda_max: ")
    assert "no minimum of the loss; compare the largest positive one (10) instead." in note


def test_blocks_and_spectrum_say_it_too(runs):
    (note,) = [note for note in blocks(runs).notes if "no minimum" in note]
    assert note.startswith(f"{runs[0].label}, lambda_max of msa: ")
    cells = [cell for row in parts(blocks(runs))["blocks-table"].rows for cell in row.cells]
    assert sum(any("largest 2" in detail and "not converged" in detail for detail in c.details) for c in cells) == 1
    assert sum("no minimum" in note for note in spectrum(runs).notes) == 1


def test_curves_of_training_say_where_lambda_max_is_negative(tmp_path):
    folders = [make_run(tmp_path / name) for name in ("saddle", "bowl")]
    values = {150: -3.0, 155: -0.01}  # the second may be 0, by its residual
    RunDir(folders[0]).append(
        *(Record("watch/lambda_max", value, where={"step": step}, residual=0.1) for step, value in values.items())
    )
    runs = load(*folders)
    (note,) = watch(runs).notes
    assert note.startswith(f"{runs[0].label}: λ_max, the eigenvalue of largest magnitude, is negative at 1 step, where")


def test_the_page_has_the_sentence_beside_the_numbers(runs, tmp_path):
    page = write([run.path for run in runs], tmp_path / "report.html").read_text()
    assert "the largest positive one (10) instead" in page
