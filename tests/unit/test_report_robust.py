"""The robustness chapter: every number in it is a record's, and damaged arrays are said, not drawn."""

import numpy as np
import pytest

from samovar.report.chapters.robustness import robustness
from samovar.report.parts import Group
from tests.unit.report_runs import HOSTILE, MAKERS, load, make_run

OTHERS = tuple(name for name in ("training", *MAKERS) if name not in ("accuracy", "robustness", "attack"))


def parts_of(section):
    found = {}
    for part in section.parts:
        found[part.id] = part
        if isinstance(part, Group):
            found |= {inner.id: inner for inner in part.parts}
    return found


@pytest.fixture
def runs(tmp_path):
    return load(make_run(tmp_path / "a", without=OTHERS), make_run(tmp_path / "b", without=OTHERS, flat=8.0))


def test_heat_maps_hold_the_records_and_their_difference(runs):
    parts = parts_of(robustness(runs))
    first, second = (parts[f"corruptions-{k}"].plot["data"][0] for k in (0, 1))
    assert first["y"] == ["gaussian noise", "fog", "contrast"]
    assert first["x"] == ["1", "2", "3", "4", "5"]
    for run, plot in zip(runs, (first, second), strict=True):
        values = {(r.where["corruption"], r.where["severity"]): r.value
                  for r in run.records["robustness/corruption_accuracy"]}  # fmt: skip
        assert plot["z"][1] == pytest.approx([values["fog", severity] for severity in range(1, 6)])
    difference = parts["corruptions-difference"].plot["data"][0]
    assert np.array(difference["z"]) == pytest.approx(100 * (np.array(second["z"]) - np.array(first["z"])), abs=1e-4)
    assert difference["zmin"] == -difference["zmax"]
    assert len(parts["corruptions-0"].data.rows) == 15


def test_the_attack_curve_is_sorted_by_radius_and_in_255ths(runs):
    figure = parts_of(robustness(runs))["attack-curve"]
    line = figure.plot["data"][0]
    assert line["x"] == pytest.approx([0, 1, 2, 4])
    assert line["y"] == pytest.approx([0.9, 0.75, 0.6, 0.3])
    assert "largest change of a pixel" in figure.plot["layout"]["xaxis"]["title"]["text"]


def test_empty_bins_are_not_drawn_and_the_error_is_the_records(runs):
    figure = parts_of(robustness(runs))["reliability"]
    line = figure.plot["data"][1]
    assert line["x"] == pytest.approx([0.3, 0.5, 0.7, 0.9])
    assert line["y"] == pytest.approx([0.09, 0.25, 0.49, 0.81])
    assert line["customdata"] == [10, 40, 150, 300]
    assert "10.0 %" in figure.caption


def test_pictures_say_what_was_made_of_them(runs):
    gallery = parts_of(robustness(runs))["spoilt-0"]
    corrupted, clean, attacked = gallery.strips
    assert [picture.caption for picture in corrupted.pictures] == ["clean", "gaussian noise", "fog", "contrast"]
    assert [picture.tone for picture in corrupted.pictures] == ["right", "right", "wrong", "right"]
    assert [picture.tone for picture in clean.pictures] == ["right", "right", "right"]
    assert [picture.caption for picture in attacked.pictures] == ["0", "2, not 1", "2"]
    assert len(gallery.data.rows) == 4 * 2 + 2 * 3


def test_runs_without_are_told_the_commands(tmp_path):
    section = robustness(load(make_run(tmp_path / "bare", without=("training", *MAKERS))))
    assert not section.parts
    assert [command.split()[-1] for note in section.missing for command in note.commands] == [
        "robustness", "attack", "accuracy",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["corrupted", "attacked", "calibration"])
@pytest.mark.parametrize("damage", ["gone", "cut", "other"])
def test_damaged_arrays_are_said_and_the_rest_is_drawn(tmp_path, name, damage):
    folder = make_run(tmp_path / "a", without=OTHERS)
    path = folder / "arrays" / f"{name}.npz"
    if damage == "gone":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:40])
    else:
        np.savez(path, images=np.zeros(3))
    section = robustness(load(folder))
    assert len(section.notes) == 1
    assert "measure" in section.notes[0]
    assert "corruptions-0" in parts_of(section)


def test_hostile_class_names_are_text(tmp_path):
    folder = make_run(tmp_path / "a", without=OTHERS, classes=HOSTILE)
    gallery = parts_of(robustness(load(folder)))["spoilt-0"]
    assert "<script>" in gallery.strips[1].pictures[0].caption  # escaped by the template, as all text
