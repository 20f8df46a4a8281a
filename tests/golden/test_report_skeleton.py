"""The skeleton of a report on two runs that have everything: a change of it is meant, and shows here."""

from samovar.report.parts import Group
from tests.unit.report_runs import SECTIONS, load, make_run

SKELETON = {
    "verdict": ["verdicts"],
    "headline": ["headline-table", "all-records", "records-table"],
    "training": ["train-loss", "val-loss", "val-accuracy", "train-grad-norm",
                 "more-curves", "train-lr", "train-images-per-second"],
    "watch": ["watch-lambda-max", "watch-sam-sharpness", "watch-grad-norm"],
    "landscape": ["surfaces-random", "surface-random-0", "surface-random-1",
                  "contours-random", "contour-random-0", "contour-random-1"],
    "spectrum": ["density"],
    "blocks": ["blocks-figure", "blocks-table"],
    "activations": ["inside-active-fraction-mlp", "inside-activation-norm", "inside-weight-norm"],
    "attention": ["maps", "attention-0", "attention-1", "distance"],
    "classes": ["confusion", "confusion-0", "confusion-1", "recall-0", "precision-0"],
    "predictions": ["confused-classes", "confused-0", "confused-1", "examples", "predictions-0", "predictions-1"],
    "robustness": ["corruptions", "corruptions-0", "corruptions-1", "corruptions-difference", "attack-curve",
                   "reliability", "spoilt", "spoilt-0", "spoilt-1"],
    "settings": ["settings-differ", "settings-same", "settings-shared"],
    "provenance": ["provenance-differ", "provenance-same", "provenance-shared"],
}  # fmt: skip

HEADLINE = ["Accuracy, best", "Accuracy, last", "λ_max", "Average flatness", "Clean loss", "Training time", "Images/s",
            "Accuracy, measured", "Corrupted images", "PGD attack"]  # fmt: skip


def _walk(parts):
    for part in parts:
        yield part
        yield from part.parts if isinstance(part, Group) else ()


def test_the_parts_of_a_report_are_these(tmp_path) -> None:
    runs = load(make_run(tmp_path / "a"), make_run(tmp_path / "b", recipe="vit-digits-sam", flat=8.0))
    sections = {name: build(runs) for name, build in SECTIONS.items()}
    found = {name: [part.id for part in _walk(section.parts)] for name, section in sections.items()}
    assert found == SKELETON
    assert [column.title for column in sections["headline"].parts[0].columns] == HEADLINE
    assert all(not section.missing and not section.notes for section in sections.values())
