"""Charts say what is noise and what is good: heat maps of corruptions, curves with epochs, smoothing and the best."""

import base64
import io
import json
import re

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from samovar.report.chapters.attention import attention
from samovar.report.chapters.landscape import landscape
from samovar.report.chapters.predictions import predictions
from samovar.report.chapters.robustness import robustness
from samovar.report.chapters.training import training
from samovar.report.drawing.pictures import heat_uri
from samovar.report.drawing.plots import layout
from samovar.report.page import render
from samovar.report.parts import Figure, Group
from samovar.runs.records import Record, RunDir
from tests.unit.report_runs import BEST, MAKERS, load, make_run

OTHERS = tuple(name for name in ("training", *MAKERS) if name != "robustness")


def _parts(section) -> dict:
    found = {part.id: part for part in section.parts}
    for part in section.parts:
        found |= {inner.id: inner for inner in part.parts} if isinstance(part, Group) else {}
    return found


# --- corruptions


def _outcomes(folder, right: np.ndarray) -> None:
    """Rewrite what a made run predicted under its 15 conditions, and the accuracies that follow."""
    path = folder / "arrays" / "corrupted.npz"
    arrays = dict(np.load(path))
    np.savez(path, **arrays | {"outcomes": right})
    lines = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    shares = iter(right.mean(1).tolist())
    for line in lines:
        if line["name"] == "robustness/corruption_accuracy":
            line["value"] = next(shares)
    (folder / "records.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def pair(tmp_path):
    return [make_run(tmp_path / "a", without=OTHERS), make_run(tmp_path / "b", without=OTHERS, recipe="vit-digits-sam")]


def test_cells_within_noise_are_pale_and_the_others_are_those_of_holm(pair) -> None:
    a = np.arange(500)[None] < np.full((15, 1), 350)
    more = np.array([0, 5, 9, 14, 20, 60, 0, 3, 12, 16, 1, 2, 40, 13, 11])
    b = np.arange(500)[None] < 350 + more[:, None]
    _outcomes(pair[0], a), _outcomes(pair[1], b)
    figure = _parts(robustness(load(*pair)))["corruptions-difference"]
    p = np.array([stats.binomtest(int(k), int(k)).pvalue if k else 1.0 for k in more])
    real = np.zeros(15, bool)
    for rank, index in enumerate(np.argsort(p, kind="stable")):
        if p[index] * (15 - rank) >= 0.05:
            break
        real[index] = True
    assert 0 < real.sum() < 15
    pale, full = figure.plot["data"]
    assert pale["opacity"] < 0.4
    assert "opacity" not in full
    assert [value is not None for value in np.ravel(full["z"])] == real.tolist()
    assert [value for value in np.ravel(full["z"]) if value is not None] == pytest.approx(100 * more[real] / 500)
    texts = np.where(real, np.ravel(full["text"]), np.ravel(pale["text"]))
    assert texts.tolist() == [f"{k / 5:+.1f}" for k in more], "each cell has its number once"
    assert (np.where(real, np.ravel(pale["text"]), np.ravel(full["text"])) == "").all()
    assert [row[-1] for row in figure.data.rows] == real.astype(int).tolist()
    assert f"Pale cells, {15 - real.sum()} of 15, are within noise" in figure.caption
    assert "McNemar’s exact tests on the same 500 images" in figure.caption


def test_without_the_outcome_of_each_image_the_cells_are_compared_as_separate_images(pair) -> None:
    lines = [json.loads(line) for line in (pair[1] / "records.jsonl").read_text().splitlines()]
    cells = [line for line in lines if line["name"] == "robustness/corruption_accuracy"]
    for line, gain in zip(cells, (0.0, 0.02, -0.3, *[0.01] * 12), strict=True):
        line["value"] += gain
        line["settings"]["images"] = 400
    (pair[1] / "records.jsonl").write_text("".join(json.dumps(line) + "\n" for line in cells))
    figure = _parts(robustness(load(*pair)))["corruptions-difference"]
    full = figure.plot["data"][1]
    assert [k for k, value in enumerate(np.ravel(full["z"])) if value is not None] == [2]
    assert "separate images" in figure.caption


def test_heat_maps_carry_their_numbers_and_say_what_is_good(pair) -> None:
    runs = load(*pair)
    parts = _parts(robustness(runs))
    trace = parts["corruptions-0"].plot["data"][0]
    assert trace["texttemplate"] == "%{text}"
    assert trace["text"][0] == ["85", "75", "65", "55", "45"]
    assert (trace["zmin"], trace["zmax"]) == (0.4, 1)
    group = parts["corruptions"]
    assert group.scale == ("40 %", "100 %", "accuracy")
    assert group.sense == "higher is better"
    assert parts["corruptions-difference"].sense == f"higher is better for {runs[1].label}"
    stops = [color for _, color in parts["corruptions-difference"].plot["data"][0]["colorscale"]]
    assert stops == ["var(--minus)", "var(--zero)", "var(--plus)"], "the page gives zero another colour in the dark"


# --- curves


def _long(folder, *, lines: int = 100, counts: int = 269) -> np.ndarray:
    run = RunDir(make_run(folder, without=tuple(MAKERS), log_lines=2))
    noisy = np.random.default_rng(0).random(lines)
    for k, value in enumerate(noisy.tolist()):
        run.append(Record("train/loss", value, "nats", where={"step": 1000 + k}))
    run.write_json("class_counts.json", {"classes": ["a", "b"], "train": [counts - 9, 9], "val": [1, 1]})
    return noisy


def test_noisy_curves_are_smoothed_with_the_recorded_line_behind(tmp_path) -> None:
    noisy = _long(tmp_path / "a")
    figure = _parts(training(load(tmp_path / "a")))["train-loss"]
    raw, smooth = figure.plot["data"][:2]
    assert raw["y"][2:] == pytest.approx(noisy, rel=1e-6)
    assert raw["line"]["width"] < smooth["line"]["width"]
    assert raw["opacity"] < 0.6
    assert smooth["x"] == raw["x"]
    assert "Thick lines: means of 5 neighbouring points" in figure.caption
    assert smooth["y"][50] == pytest.approx(np.mean(raw["y"][48:53]), rel=1e-6)
    assert smooth["y"][0] == raw["y"][0], "a steep start is not pulled down"
    assert smooth["y"][-1] == pytest.approx(np.mean(raw["y"][-3:]))
    assert len(figure.data.rows) == 102, "the CSV has what was recorded"


def test_short_curves_and_schedules_are_not_smoothed(tmp_path) -> None:
    _long(tmp_path / "a", lines=20)
    parts = _parts(training(load(tmp_path / "a")))
    lines = {
        name: [t for t in parts[name].plot["data"] if t.get("xaxis") != "x2"] for name in ("train-loss", "train-lr")
    }
    assert [len(found) for found in lines.values()] == [1, 1]


def test_epochs_stand_beside_steps_where_the_number_of_images_is_known(tmp_path) -> None:
    _long(tmp_path / "a")
    (run,) = load(tmp_path / "a")
    plot = _parts(training([run]))["train-loss"].plot
    axis = plot["layout"]["xaxis2"]
    per_epoch = 269 / run.config["data.batch_size"]
    assert axis["matches"] == "x"
    assert axis["side"] == "top"
    epochs = [float(text.replace("\u202f", "")) for text in axis["ticktext"]]
    assert 3 <= len(epochs) <= 9
    assert axis["tickvals"] == pytest.approx([epoch * per_epoch for epoch in epochs], rel=1e-3)
    assert [trace["xaxis"] for trace in plot["data"] if "xaxis" in trace] == ["x2"]
    (run,) = load(make_run(tmp_path / "b", without=tuple(MAKERS)))
    assert "xaxis2" not in _parts(training([run]))["train-loss"].plot["layout"]


def test_runs_with_other_epochs_share_steps_alone_and_the_caption_says_so(tmp_path) -> None:
    _long(tmp_path / "a"), _long(tmp_path / "b", counts=538)
    runs = load(tmp_path / "a", tmp_path / "b")
    figure = _parts(training(runs))["train-loss"]
    assert "xaxis2" not in figure.plot["layout"]
    per_epoch = 269 / runs[0].config["data.batch_size"]
    said = f"Steps of an epoch: {per_epoch:.3g} ({runs[0].label}), {2 * per_epoch:.3g} ({runs[1].label})."
    assert said in figure.caption


def test_the_best_checkpoint_is_marked_on_held_out_curves(tmp_path) -> None:
    (run,) = load(make_run(tmp_path / "a", without=tuple(MAKERS)))
    parts = _parts(training([run]))
    (line,) = parts["val-accuracy"].plot["data"]
    shown = [x for x, size in zip(line["x"], line["marker"]["size"], strict=True) if size]
    assert shown == [BEST]
    assert line["mode"] == "lines+markers"
    assert "Marker: the best checkpoint" in parts["val-accuracy"].caption
    assert "best checkpoint" not in parts["train-loss"].caption


def test_curves_say_what_is_good(tmp_path) -> None:
    parts = _parts(training(load(make_run(tmp_path / "a", without=tuple(MAKERS)))))
    said = {part.id: part.sense for part in parts.values() if isinstance(part, Figure)}
    assert said == {
        "train-loss": "lower is better", "val-loss": "lower is better", "val-accuracy": "higher is better",
        "train-grad-norm": "", "train-lr": "", "train-images-per-second": "higher is faster",
    }  # fmt: skip


# --- surfaces and the toolbar


def _alpha(uri: str) -> np.ndarray:
    """The opacity of an image in the page, [H, W] of 0 to 255."""
    data = base64.b64decode(uri.partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGBA"))[..., 3]


def test_the_labels_of_a_surface_are_a_mask_of_their_own_that_the_page_colours(tmp_path) -> None:
    without = tuple(name for name in ("training", *MAKERS) if name != "landscape")
    figure = _parts(landscape(load(make_run(tmp_path / "a", without=without, points=5))))["surface-random-0"]
    surface, labels = _alpha(figure.poster), _alpha(figure.poster_labels)
    assert surface.shape == labels.shape
    assert (surface > 0).mean() > 10 * (labels > 0).mean() > 0
    # The labels lie where the surface is not.
    assert ((labels > 128) & (surface > 128)).sum() < 0.2 * (labels > 128).sum(), "tick marks are in both"
    axis = figure.plot["layout"]["scene"]["zaxis"]
    assert axis["color"] == "var(--ink)"
    assert axis["tickfont"]["size"] >= 12


def test_the_toolbar_has_a_margin_of_its_own() -> None:
    made = layout("x")
    assert made["modebar"]["orientation"] == "v"
    assert made["margin"]["r"] >= 28


# --- pictures


def _only(folder, *names: str, **options):
    return make_run(folder, without=tuple(n for n in ("training", *MAKERS) if n not in names), **options)


@pytest.mark.parametrize(("family", "beside"), [("vit", 3), ("resnet", 5), ("mixer", 0)])
def test_an_image_stands_beside_its_heat_maps(tmp_path, family: str, beside: int) -> None:
    folder = _only(tmp_path / "a", "attention", family=family)
    gallery = _parts(attention(load(folder)))["attention-0"]
    assert gallery.beside == beside
    if beside:
        assert gallery.scale == ("0", "maximum", "of each map")
        assert [picture.map for picture in gallery.sets[0]] == [False] + [True] * (beside - 1)
        assert len(gallery.sets) == 6
        maps = np.load(folder / "arrays" / "attention.npz")
        first = maps["maps"][0, -1] if family == "vit" else maps["maps0"][0]
        assert gallery.sets[0][1].detail == f"0 to {first.max():.2g}"
    data = base64.b64decode(heat_uri(np.array([[0.0, 2.0], [np.nan, 1.0]])).partition(",")[2])
    pixels = np.asarray(Image.open(io.BytesIO(data)))
    assert pixels[..., 3].tolist() == [[255, 255], [0, 255]], "nothing shines through but gaps"
    assert pixels[0, 0, :3].tolist() == [0x48, 0x53, 0xB8]
    assert pixels[0, 1, :3].tolist() == [0xF7, 0xE3, 0x4A]


def test_the_classes_confused_most_are_shown_with_their_pictures(tmp_path) -> None:
    folder = _only(tmp_path / "a", "predictions", "accuracy", classes=("cat", "dog", "fox"))
    # Of all 500 images, dogs are taken for foxes most; of the recorded ones, each pair is there once.
    labels = np.repeat([1, 0, 2], [300, 100, 100])
    predicted = np.concatenate([np.where(np.arange(300) < 7, 2, 1), np.where(np.arange(100) < 2, 1, 0), [2] * 100])
    np.savez(folder / "arrays" / "outcomes.npz", labels=labels, predicted=predicted, probability=np.full(500, 0.5),
             probability_true=np.full(500, 0.5), classes=np.array(["cat", "dog", "fox"]))  # fmt: skip
    text = (folder / "records.jsonl").read_text()
    (folder / "records.jsonl").write_text(text.replace('"split": "val"', '"split": "train"'))
    gallery = _parts(predictions(load(folder)))["confused-0"]
    assert [strip.title for strip in gallery.strips] == [
        "dog taken for fox: 7 images of 500", "cat taken for dog: 2 images of 500",
    ]  # fmt: skip
    assert gallery.opens
    assert [picture.caption for picture in gallery.strips[0].pictures] == ["fox, not dog"]
    (folder / "arrays" / "outcomes.npz").unlink()
    gallery = _parts(predictions(load(folder)))["confused-0"]
    assert [strip.title for strip in gallery.strips] == [
        f"{a} taken for {b}: 1 image of those recorded" for a, b in (("cat", "dog"), ("dog", "fox"), ("fox", "cat"))
    ]


def test_a_picture_that_opens_is_a_button_and_its_image_is_in_the_page_once(tmp_path) -> None:
    folder = _only(tmp_path / "a", "predictions")
    page = render(load(folder))
    shown = re.findall(r"background-image:url\((data:[^)]+)\)", page)
    assert len(shown) == len(set(shown)) == 8
    buttons = re.findall(r'<button type="button" class="tile opens" aria-label="([^"]+)"', page)
    assert len(buttons) == 3 + 8, "three mistakes by their classes, and all eight"
    assert all(text.endswith("; open it large") for text in buttons)
    assert page.count('<dialog id="large"') == 1
