"""The paper's numbers are those of its tables, as ../shared/paper.md has them."""

import re

import pytest

from samovar.recipes import paper_numbers as p
from tests.conftest import SHARED

PAPER = SHARED / "paper.md"
MODELS = {
    "ResNet-50": "resnet50", "ResNet-101": "resnet101", "ResNet-152": "resnet152", "ResNet-50x2": "resnet50x2",
    "ResNet-101x2": "resnet101x2", "ResNet-152x2": "resnet152x2", "R50": "resnet50", "R152": "resnet152",
}  # fmt: skip
pytestmark = pytest.mark.skipif(not PAPER.is_file(), reason="needs ../shared/paper.md")


def key(name: str) -> str:
    """Our name of a network in a table: ViT-B/16-SAM is vit-b16-sam."""
    name, sam = name.removesuffix("-SAM"), "-sam" if name.endswith("-SAM") else ""
    return MODELS.get(name, name.lower().replace("/", "")) + sam


def section(title: str) -> list[list[list[str]]]:
    """The tables of a section, each as rows of cells; the rule below a head is left out."""
    text = PAPER.read_text(encoding="utf-8").split(f"\n## {title}")[1].split("\n## ")[0]
    tables: list[list[list[str]]] = [[]]
    for line in text.splitlines():
        if line.startswith("|") and not set(line) <= set("|- "):
            tables[-1].append([cell.strip() for cell in line.strip("|").split("|")])
        elif not line.startswith("|") and tables[-1]:
            tables.append([])
    return [table for table in tables if table]


def number(cell: str) -> float:
    return float(re.findall(r"-?\d[\d.]*", cell)[0])


def pair(cell: str) -> tuple[float, float]:
    value, gain = re.findall(r"\d[\d.]*|[-+]\d[\d.]*", cell)[:2]
    return float(value), float(gain)


def test_table_1() -> None:
    head, _, *rows = section("1.1")[0]
    for row, column in zip(rows, ("kappa", "lambda_max", "top1", "corruption"), strict=True):
        assert {key(name): number(cell) for name, cell in zip(head[1:], row[1:], strict=True)} == {
            model: numbers[column] for model, numbers in p.TABLE_1.items()
        }


def test_what_only_later_versions_have_is_marked() -> None:
    head, *rows = section("1.1")[1]
    found = {row[0].partition(" ")[0]: row[1:-1] for row in rows}
    columns = {"training_loss": "L_train", "flatness": "L^N_train"}
    for column, title in columns.items():
        values = {key(name): number(cell) for name, cell in zip(head[1:-1], found[title], strict=True)}
        assert values == {model: numbers[column] for model, numbers in p.UNVERIFIED.items()}
    for column, title in {"lambda_max": "lambda_max", "top1": "ImageNet", "corruption": "ImageNet-C"}.items():
        assert number(found[title][1]) == p.UNVERIFIED["resnet152-sam"][column]


def test_table_2() -> None:
    rows = section("1.2")[0][1:]
    assert {key(row[0]).removesuffix("-sam"): tuple(map(pair, row[3:])) for row in rows} == p.TABLE_2


def test_table_2_less_its_gains_is_the_copy_in_another_paper() -> None:
    names = {"IN": "top1", "ReaL": "real", "V2": "v2", "R": "r", "C": "corruption"}
    head, *rows = section("1.2")[1]
    unlike = set()
    for row in rows:
        model = key(row[0].partition(" ")[0])
        for title, cell in zip(head[1:], row[1:], strict=True):
            column = p.BENCHMARKS.index(names[title])
            if p.plain_and_sam(p.TABLE_2[model][column])[0] != pytest.approx(number(cell), abs=0.051):
                unlike.add((model, names[title]))
    # a point in one cell of Mixer-S/32, and a network that was trained again
    assert unlike == {("mixer-s32", "r"), *(("vit-b32", column) for column in p.BENCHMARKS[:4])}


def test_table_3() -> None:
    rows = section("1.3")[0][1:]
    assert {key(row[0]): tuple(map(number, row[1:])) for row in rows} == p.TABLE_3


def test_figure_2() -> None:
    rows = section("1.4")[0][1:]
    found = {key(row[0].removesuffix(" (%)")): tuple(number(cell) for cell in row[1:] if cell) for row in rows}
    assert found == p.FIGURE_2


def test_table_4() -> None:
    head, *rows = section("1.5")[0]
    assert len(head) == 12
    names = [
        "resnet152", "resnet152-sam", "vit-b16", "vit-b16-sam", "vit-b16-aug", "vit-b16-aug-sam",
        "mixer-b16", "mixer-b16-sam", "mixer-b16-aug", "mixer-b16-aug-sam",
    ]  # fmt: skip
    found = [dict(zip(names, map(number, row[2:]), strict=True)) for row in rows]
    assert found == list(p.TABLE_4.values())


def test_table_5() -> None:
    rows = section("1.7")[0][1:]
    assert {key(row[0]).removesuffix("-sam"): tuple(map(pair, row[1:])) for row in rows} == p.TABLE_5


def test_table_6() -> None:
    head, *rows = section("1.9")[0]
    assert tuple(key(name) for name in head[1:]) == p.TABLE_6_MODELS
    names = {"CIFAR-10": "cifar10", "CIFAR-100": "cifar100", "Flowers": "flowers102", "Pets": "pets"}
    found = {names.get(row[0], row[0].lower()): tuple(map(number, row[1:])) for row in rows}
    assert found == p.TABLE_6


def test_table_10() -> None:
    head, *rows = section("1.10")[0]
    for row in rows:
        cells = {float(rho): float(cell) for rho, cell in zip(head[1:], row[1:], strict=True) if cell != "–"}
        assert cells == p.TABLE_10[key(row[0])]


def test_contrastive() -> None:
    text = PAPER.read_text(encoding="utf-8").split("\n## 1.8")[1].split("\n## ")[0]
    for name, numbers in p.CONTRASTIVE.items():
        title = name.replace("vit-", "ViT-").replace("s16", "S/16").replace("b16", "B/16")
        assert re.search(rf"{title} ([\d.]+) -> ([\d.]+)", text).groups() == tuple(f"{n:.1f}" for n in numbers)
