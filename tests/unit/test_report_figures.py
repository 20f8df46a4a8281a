"""Figures of the report: their data are the records', failure is drawn as failure, scales are shared and say so."""

import csv
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest

from samovar.report.chapters.activations import activations
from samovar.report.chapters.attention import attention
from samovar.report.chapters.blocks import blocks
from samovar.report.chapters.curves import MOST_POINTS, curves
from samovar.report.chapters.headline import headline
from samovar.report.chapters.landscape import landscape
from samovar.report.chapters.metrics import METRICS, training_time
from samovar.report.chapters.predictions import predictions
from samovar.report.chapters.spectrum import spectrum
from samovar.report.chapters.training import training
from samovar.report.chapters.watch import watch
from samovar.report.drawing import landscape_grid
from samovar.report.drawing.pictures import heat, image_uri, signed_uri
from samovar.report.parts import Data, Figure, Group
from samovar.runs.records import Record, RunDir
from tests.unit.report_runs import BEST, HOSTILE, LAST, MAKERS, NOTHING, load, make_run


@pytest.fixture(scope="module")
def twins(tmp_path_factory):
    """A sharp run and a flat one."""
    folder = tmp_path_factory.mktemp("twins")
    return load(make_run(folder / "a"), make_run(folder / "b", recipe="vit-digits-sam", flat=8.0, seed=1))


def only(folder: Path, *names: str, **options) -> Path:
    """A run with these measurements alone."""
    return make_run(folder, without=tuple(name for name in NOTHING if name not in names), **options)


def parts(section) -> dict:
    found = {}
    for part in section.parts:
        found[part.id] = part
        if isinstance(part, Group):
            found |= {inner.id: inner for inner in part.parts}
    return found


def table(data: Data) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(data.csv)))


def rewrite(folder: Path, name: str, **changes) -> None:
    """Change arrays of a run; None takes one away."""
    path = folder / "arrays" / f"{name}.npz"
    arrays = dict(np.load(path)) | changes
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})


# --- curves ----------------------------------------------------------------------------------------------------------


def test_curves_and_their_csv_are_the_records(twins) -> None:
    found = parts(training(twins))
    for name, id in (("train/loss", "train-loss"), ("val/accuracy", "val-accuracy"), ("train/lr", "train-lr")):
        rows = table(found[id].data)
        for run, trace in zip(twins, found[id].plot["data"], strict=True):
            records = run.series(name)
            assert trace["x"] == [r.where["step"] for r in records]
            assert trace["y"] == pytest.approx([r.value for r in records], rel=1e-6)
            mine = [row for row in rows if row["run"] == run.label]
            assert [float(row["value"]) for row in mine] == trace["y"]
            assert [int(row["step"]) for row in mine] == trace["x"]


def test_values_that_are_not_finite_are_gaps_and_counted(tmp_path) -> None:
    folder = only(tmp_path / "a", "training")
    for step in (300, 400):
        RunDir(folder).append(Record("train/loss", math.nan, where={"step": step}))
    figure = parts(training(load(folder)))["train-loss"]
    assert figure.plot["data"][0]["y"][-2:] == [None, None]
    assert "2 values of vit-digits are not finite" in figure.caption
    json.dumps(figure.plot, allow_nan=False)


def test_long_curves_are_thinned_by_means_and_say_so(tmp_path) -> None:
    run = RunDir(only(tmp_path / "a"))
    values = np.random.default_rng(0).random(MOST_POINTS * 4)
    for step, value in enumerate(values.tolist()):
        run.append(Record("train/loss", value, where={"step": step + 1}))
    (curve,) = curves(load(run.path), "train/loss")
    assert (len(curve.points), curve.every, curve.points[-1].step) == (MOST_POINTS, 4, MOST_POINTS * 4)
    assert [point.value for point in curve.points] == pytest.approx(values.reshape(-1, 4).mean(axis=1), rel=1e-6)


def test_many_runs_are_drawn_as_mean_and_range_of_each_recipe(tmp_path) -> None:
    runs = load(*(only(tmp_path / f"{r}{s}", "training", recipe=r, seed=s, log_lines=4)
                  for r in ("vit-digits", "vit-digits-sam") for s in range(5)))  # fmt: skip
    figure = parts(training(runs))["val-accuracy"]
    assert [key.label for key in figure.keys] == ["vit-digits", "vit-digits-sam"]
    values = np.array([[r.value for r in run.series("val/accuracy")] for run in runs[:5]])
    low, high, mean = figure.plot["data"][:3]
    assert mean["y"] == pytest.approx(values.mean(axis=0), rel=1e-6)
    assert low["y"] == pytest.approx(values.min(axis=0), rel=1e-6)
    assert high["y"] == pytest.approx(values.max(axis=0), rel=1e-6)
    assert {row["runs"] for row in table(figure.data)} == {"5"}


def test_different_losses_are_said_not_to_compare(tmp_path) -> None:
    runs = load(only(tmp_path / "a", "training"), only(tmp_path / "b", "training", config={"loss": "sigmoid"}))
    (note,) = training(runs).notes
    assert "loss softmax (vit-digits, loss softmax); sigmoid (vit-digits, loss sigmoid)" in note


def test_sharpness_that_did_not_converge_is_hollow_and_an_infinite_threshold_a_gap(twins) -> None:
    figure = parts(watch(twins))["watch-lambda-max"]
    line, *_, threshold = figure.plot["data"]
    assert [x for x, s in zip(line["x"], line["marker"]["symbol"], strict=True) if s == "circle-open"] == [100]
    assert threshold["y"][-1] is None
    assert threshold["y"][0] == 2000
    assert "not converged" in figure.caption
    assert [row["step"] for row in table(figure.data) if row["converged"] == "False"] == ["100", "100"]


# --- landscape -------------------------------------------------------------------------------------------------------


def test_surfaces_share_one_scale_and_their_csv_is_the_grid(twins) -> None:
    found = parts(landscape(twins))
    for run in twins:
        arrays = run.arrays(run.latest("landscape/height"))
        surface = found[f"surface-random-{run.index}"]
        trace, point = surface.plot["data"]
        assert np.array(trace["z"]) == pytest.approx(arrays["loss"], rel=1e-6)
        assert (point["x"], point["y"]) == ([0], [0])
        rows = table(surface.data)
        assert [float(row["loss_nats"]) for row in rows] == pytest.approx(arrays["loss"].ravel(), rel=1e-6)
        assert [float(row["x"]) for row in rows[:9]] == pytest.approx(arrays["x"])
        contour = found[f"contour-random-{run.index}"].plot["data"][0]
        assert contour["z"] == trace["z"]
    traces = [found[f"{kind}-random-{i}"].plot["data"][0] for kind in ("surface", "contour") for i in (0, 1)]
    low, high = 0.02, 0.02 + 14 * 1.6
    assert {(t.get("cmin", t.get("zmin")), t.get("cmax", t.get("zmax"))) for t in traces} == {(low, high)}
    ranges = {tuple(found[f"surface-random-{i}"].plot["layout"]["scene"]["zaxis"]["range"]) for i in (0, 1)}
    assert len(ranges) == 1


def test_a_few_high_points_are_cut_off_and_the_report_says_how_many(tmp_path) -> None:
    folder = only(tmp_path / "a", "landscape")
    loss = np.load(folder / "arrays" / "landscape.npz")["loss"]
    loss[0, :4] = 1e6
    rewrite(folder, "landscape", loss=loss)
    group, *_ = landscape(load(folder)).parts
    trace = group.parts[0].plot["data"][0]
    assert "Higher points, 9 % of all, are cut off" in group.caption
    assert max(map(max, trace["z"])) == trace["cmax"] < 30
    assert trace["customdata"][0][0] == 1e6, "hovering tells the truth"
    assert max(float(row["loss_nats"]) for row in table(group.parts[0].data)) == 1e6


def test_points_without_a_finite_loss_are_left_open(tmp_path) -> None:
    folder = only(tmp_path / "a", "landscape")
    loss = np.load(folder / "arrays" / "landscape.npz")["loss"]
    loss[0, 0], loss[3, 4] = np.nan, np.inf
    rewrite(folder, "landscape", loss=loss)
    group, *_ = landscape(load(folder)).parts
    z = group.parts[0].plot["data"][0]["z"]
    assert z[0][0] is z[3][4] is None
    assert group.notes == ("vit-digits: 2 points without a finite loss, left blank.",)
    json.dumps(group.parts[0].plot, allow_nan=False)


def test_a_landscape_of_nothing_finite_still_makes_a_figure(tmp_path) -> None:
    folder = only(tmp_path / "a", "landscape")
    rewrite(folder, "landscape", loss=np.full((9, 9), np.nan), center_loss=np.nan)
    group, *_ = landscape(load(folder)).parts
    json.dumps(group.parts[0].plot, allow_nan=False)


def test_large_grids_are_thinned_through_the_trained_point(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(landscape_grid, "MOST_POINTS", 20)
    folder = only(tmp_path / "a", "landscape", points=101)
    planes, _ = landscape_grid.grids(load(folder))
    assert planes[0].loss.shape == (17, 17)
    assert 0.0 in planes[0].x
    assert planes[0].stride == 6
    assert "every 6th point" in landscape(load(folder)).parts[0].notes[0]


@pytest.mark.parametrize(
    ("changes", "line"),
    [({"x": None}, "lacks a valid array of a landscape"), ({"loss": np.zeros((3, 9))}, "does not fit its axes"),
     ({"loss": np.array(["a"])}, "lacks a valid array of a landscape"),
     ({"x": np.zeros(0), "y": np.zeros(0), "loss": np.zeros((0, 0))}, "does not fit")],
)  # fmt: skip
def test_a_damaged_landscape_is_a_note(tmp_path, changes, line) -> None:
    folder = only(tmp_path / "a", "landscape")
    rewrite(folder, "landscape", **changes)
    section = landscape(load(folder))
    assert not section.parts
    assert line in section.notes[0]
    assert section.missing[0].commands == (f"samovar measure {folder} landscape",)


def test_the_line_between_two_runs_is_one_figure_beside_the_surfaces(tmp_path) -> None:
    folder = only(tmp_path / "a", "landscape")
    np.savez(folder / "arrays" / "line.npz", x=np.linspace(0, 1, 5), loss=np.arange(5.0), center_loss=0.0)
    settings = {"kind": "between", "dims": 1, "other": "b"}
    RunDir(folder).append(Record("landscape/height", 4.0, settings=settings, arrays="arrays/line.npz"))
    found = parts(landscape(load(folder)))
    assert found["line-between"].plot["data"][0]["y"] == [0, 1, 2, 3, 4]
    assert "surface-random-0" in found


def test_landscapes_of_other_images_are_flagged(tmp_path) -> None:
    runs = load(only(tmp_path / "a", "landscape"), only(tmp_path / "b", "landscape", settings={"images": 12}))
    (note,) = landscape(runs).notes
    assert note.startswith("Landscapes are measured under different protocols: images: 269 (")


# --- curvature and activity ------------------------------------------------------------------------------------------


def test_the_density_is_the_arrays_and_reaches_down_to_one_eigenvalue(twins) -> None:
    (figure,) = spectrum(twins).parts
    arrays = twins[0].arrays(twins[0].latest("hessian/mean_eigenvalue"))
    assert figure.plot["data"][0]["y"] == pytest.approx(arrays["density"].tolist(), rel=1e-6)
    low, high = figure.plot["layout"]["yaxis"]["range"]
    assert 10**low < 1e-6 < 10**high
    assert spectrum(twins).notes == [], "the widths of the Gaussians differ by nature"


def test_bars_that_did_not_converge_are_outlines(twins) -> None:
    section = blocks(twins)
    figure, numbers = section.parts
    assert figure.plot["data"][0]["y"] == [3, 10, 17, 24, 40]
    assert figure.plot["data"][1]["y"] == [v / 8 for v in (3, 10, 17, 24, 40)]
    fills = figure.plot["data"][0]["marker"]["color"]
    assert [fill == "rgba(0,0,0,0)" for fill in fills] == [False, False, True, False, False]
    assert [cell.hollow for cell in numbers.rows[0].cells] == [False, False, True, False, False]
    assert [row["lambda_max"] for row in table(figure.data)[:2]] == ["3.0", "10.0"]


def test_blocks_are_in_the_order_of_the_forward_pass_however_they_were_written(tmp_path) -> None:
    run = RunDir(only(tmp_path / "a"))
    for index in (10, 2, 0):
        where = {"block": f"blocks.{index}", "layer": "mlp", "index": index}
        run.append(Record("inside/active_fraction", index / 100, "1", where=where))
    (figure,) = activations(load(run.path)).parts
    assert figure.plot["data"][0]["x"] == ["blocks.0", "blocks.2", "blocks.10"]


def test_token_and_channel_layers_have_figures_of_their_own(tmp_path) -> None:
    titles = [part.title for part in activations(load(only(tmp_path / "a", "activations", family="mixer"))).parts]
    assert titles == [
        "Active units, token layers",
        "Active units, channel layers",
        "Norm of activations",
        "Norm of weights",
    ]


# --- pictures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "strips"), [("vit", 5), ("mixer", 1), ("resnet", 5)])
def test_every_family_has_maps(tmp_path, family: str, strips: int) -> None:
    folder = only(tmp_path / "a", "attention", "predictions", family=family)
    gallery = parts(attention(load(folder)))["attention-0"]
    assert len(gallery.strips) == strips
    assert all(p.alt and (p.image or p.overlay) for strip in gallery.strips for p in strip.pictures)
    first = gallery.strips[0].pictures
    if family != "mixer":
        assert [p.caption for p in first[:3]] == ["0", "1", "2, predicted 3"]
        assert [p.tone for p in first[:3]] == ["right", "right", "wrong"]
    rows = table(gallery.data)
    maps = np.load(folder / "arrays" / "attention.npz")
    name, index = {"vit": ("maps", -1), "mixer": ("maps", 0), "resnet": ("maps0", ...)}[family]
    wanted = maps[name][0][index]
    cells = [float(rows[0][f"cell{k}"]) for k in range(wanted.size)]
    assert cells == pytest.approx(wanted.ravel().tolist(), rel=1e-3)


@pytest.mark.parametrize(
    ("changes", "line"),
    [({"maps": np.zeros((8, 4))}, "lacks maps"), ({"rollout": None}, "lacks rollout"),
     ({"labels": np.zeros(2, int)}, "fewer labels"), ({"images": np.zeros((8, 8, 8, 3))}, "images of type float64"),
     ({"kind": "telepathy"}, "unknown kind, 'telepathy'")],
)  # fmt: skip
def test_damaged_maps_are_a_note(tmp_path, changes, line) -> None:
    folder = only(tmp_path / "a", "attention")
    rewrite(folder, "attention", **changes)
    section = attention(load(folder))
    assert line in section.notes[0]
    assert section.missing[0].commands == (f"samovar measure {folder} attention",)


def test_the_worst_mistakes_come_first(twins) -> None:
    gallery = parts(predictions(twins))["predictions-0"]
    worst, examples = gallery.strips
    assert [p.caption for p in worst.pictures] == ["3, not 2", "2, not 1", "1, not 0"]
    assert {p.tone for p in worst.pictures} == {"wrong"}
    assert len(examples.pictures) == 5
    assert worst.pictures[0].detail == "85 %, < 1 % for the true class"
    assert [row["loss"] for row in table(gallery.data)[:3]] == ["5.0", "4.0", "3.0"]
    assert gallery.caption == "Accuracy 90.0 % on 500 images"


@pytest.mark.parametrize(
    "changes", [{"images": None}, {"worst": np.zeros(3, bool)}, {"images": np.zeros((8, 8), np.uint8)}]
)
def test_damaged_predictions_are_a_note(tmp_path, changes) -> None:
    folder = only(tmp_path / "a", "predictions")
    rewrite(folder, "predictions", **changes)
    section = predictions(load(folder))
    assert "measure its predictions again" in section.notes[0]
    assert not section.parts


def test_hostile_class_names_survive_the_csv(tmp_path) -> None:
    folder = only(tmp_path / "a", "predictions", classes=HOSTILE)
    rows = table(parts(predictions(load(folder)))["predictions-0"].data)
    assert rows[2]["class"] == "<script>alert(1)</script>"
    assert rows[2]["predicted_class"] == "</script><b>"


def test_a_veil_is_clear_where_there_is_nothing_and_dense_at_the_maximum() -> None:
    veil = heat(np.array([[0.0, 1.0], [np.nan, -3.0]]))
    assert veil[..., 3].tolist() == [[0, 215], [0, 0]]
    assert heat(np.zeros((2, 2)))[..., 3].max() == 0
    assert image_uri(np.zeros((300, 400, 3), np.uint8)).startswith("data:image/jpeg")
    assert image_uri(np.zeros((8, 8, 3), np.uint8)).startswith("data:image/png")
    assert signed_uri(np.full((3, 3), np.nan)).startswith("data:image/png")


# --- headline --------------------------------------------------------------------------------------------------------


def test_the_headline_has_value_error_n_and_protocol(twins) -> None:
    numbers = parts(headline(twins))["headline-table"]
    rows = table(numbers.data)
    found = {(row["run"], row["column"]): row for row in rows}
    best = max(twins[0].series("val/accuracy"), key=lambda r: r.value)
    row = found["vit-digits", "Accuracy, best"]
    assert (float(row["value"]), row["n"]) == (best.value, "500")
    assert "images 500" in row["protocol"]
    top = found["vit-digits", "λ_max"]
    assert (float(top["value"]), float(top["residual"])) == (40.0, 0.02)
    assert "checkpoint best, split train, images 269" in top["protocol"]
    cells = dict(zip([c.title for c in numbers.columns], numbers.rows[0].cells, strict=True))
    assert (cells["λ_max"].text, cells["λ_max"].error) == ("40.000", "± 0.020")
    assert (cells["Average flatness"].text, cells["Average flatness"].details) == ("2.50", ["n 10"])
    assert f"step {BEST}" in cells["Accuracy, best"].details
    assert f"step {LAST}" in cells["Accuracy, last"].details
    flat = next(column for column in numbers.columns if column.title == "Average flatness")
    assert "sigma 0.05" in flat.note
    assert "split train, images 269" in numbers.footnote


def test_training_time_follows_from_images_per_second(twins) -> None:
    batch = twins[0].config["data.batch_size"]
    assert training_time(twins[0]).value == pytest.approx(LAST * batch / 1000)


def test_numbers_under_different_protocols_are_flagged(tmp_path) -> None:
    runs = load(only(tmp_path / "a", "hessian", "training"),
                only(tmp_path / "b", "hessian", "training", settings={"split": "val", "images": 50}))  # fmt: skip
    columns = {column.title: column for column in parts(headline(runs))["headline-table"].columns}
    assert [flag.partition(":")[0] for flag in columns["λ_max"].flags] == ["split", "images"]
    assert not columns["Accuracy, best"].flags
    assert "split" not in columns["λ_max"].note


def test_of_several_records_the_latest_counts_and_the_others_are_mentioned(tmp_path) -> None:
    folder = only(tmp_path / "a", "hessian")
    RunDir(folder).append(Record("hessian/lambda_max", 7.0, residual=0.1, converged=False, settings={"images": 3}))
    numbers = parts(headline(load(folder)))["headline-table"]
    cell = numbers.rows[0].cells[[c.title for c in numbers.columns].index("λ_max")]
    assert (cell.text, cell.hollow, cell.details) == ("7.00", True, ["1 older record"])


def test_seeds_are_averaged_with_a_standard_error(tmp_path) -> None:
    runs = load(*(only(tmp_path / str(s), "hessian", "training", seed=s) for s in (0, 1, 5)))
    found = parts(headline(runs))["seeds-table"]
    row = next(row for row in table(found.data) if row["column"] == "λ_max")
    assert (float(row["mean"]), row["seeds"]) == (42.0, "3")
    assert float(row["stderr"]) == pytest.approx(np.std([40, 41, 45], ddof=1) / math.sqrt(3))
    single = load(only(tmp_path / "x", "training"), only(tmp_path / "y", "training", config={"sam": {"rho": 1.0}}))
    assert "seeds-table" not in parts(headline(single))


def test_every_metric_shows_any_number() -> None:
    for metric in METRICS:
        for value in (0.5, 0.0, -3.0, 1e30, math.nan, math.inf):
            assert metric.show(Record("x", value, stderr=math.nan))[0]


def test_sections_take_any_value_without_a_warning(tmp_path) -> None:
    """Every record once more with a value, error and n that no measurement should give."""
    folder = make_run(tmp_path / "a", recipe="vit-digits-sam")
    run = RunDir(folder)
    for record in list(run.records()):
        run.append(Record(**vars(record) | {"value": math.nan, "stderr": math.inf, "n": 0, "converged": False}))
    figures = []
    for build in (headline, training, watch, landscape, spectrum, blocks, activations, attention, predictions):
        figures += [part for part in parts(build(load(folder))).values() if isinstance(part, Figure)]
    assert len(figures) > len(MAKERS)
    for figure in figures:
        json.dumps(figure.plot, allow_nan=False)
