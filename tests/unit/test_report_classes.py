"""The chapter of classes: the confusion matrix, recall and precision by hand, damage."""

import numpy as np
import pytest

from samovar.report.chapters.classes import classes, counts
from samovar.report.outcomes import outcomes
from samovar.report.parts import Group
from tests.unit.report_runs import load, make_run


@pytest.fixture
def folder(tmp_path):
    made = make_run(tmp_path / "a", points=3)
    np.savez(made / "arrays" / "outcomes.npz", labels=[0, 0, 0, 1, 1, 2], predicted=[0, 0, 1, 1, 0, 0],
             probability=[0.9] * 6, probability_true=[0.9] * 6, classes=np.array(["cat", "dog", "fox"]))  # fmt: skip
    return made


def test_counts_recall_precision_and_predictions(folder) -> None:
    (run,) = load(folder)
    assert counts(outcomes(run)).tolist() == [[2, 1, 0], [1, 1, 0], [1, 0, 0]]
    matrix, recall, precision = classes([run]).parts
    assert isinstance(matrix, Group)
    (figure,) = matrix.parts
    assert figure.plot["data"][0]["text"] == [["2", "1", ""], ["1", "1", ""], ["1", "", ""]]
    assert "cat for dog (1)" in figure.caption
    assert figure.data.rows[2] == (2, "cat", "dog", 0, 0.9, 0.9)
    assert len(figure.data.rows) == 6
    assert recall.plot["data"][0]["y"] == pytest.approx([2 / 3, 1 / 2, 0.0])
    assert [row[1] for row in precision.data.rows] == ["cat", "dog"], "nothing was called fox"
    assert precision.plot["data"][0]["y"] == pytest.approx([1 / 2, 1 / 2])
    assert all(row[3] <= row[2] <= row[4] for row in recall.data.rows)


@pytest.mark.parametrize("damage", ["gone", "other", "class"])
def test_damaged_outcomes_are_said(folder, damage: str) -> None:
    path = folder / "arrays" / "outcomes.npz"
    if damage == "gone":
        path.unlink()
    elif damage == "other":
        np.savez(path, labels=np.zeros(3))
    else:
        np.savez(path, labels=[7], predicted=[0], probability=[1.0], probability_true=[1.0], classes=np.array(["a"]))
    found = classes(load(folder))
    assert not found.parts
    assert len(found.notes) == 1
    assert "outcomes.npz" in found.notes[0]
