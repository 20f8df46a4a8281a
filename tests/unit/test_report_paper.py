"""Figures for a paper: the formats open, are as wide as a column, and come from the same records."""

import re
import xml.etree.ElementTree as ET
import zlib

import matplotlib
import pytest
from PIL import Image

from samovar import cli, report
from samovar.report.chapters.curves import curves
from samovar.report.paper.figures import FIGURES
from samovar.report.paper.panels import ONE, TWO
from tests.unit.made_comparison import make_comparison
from tests.unit.report_runs import HOSTILE, NOTHING, load, make_run
from tests.unit.test_claims_figure import claim, make_study

pytestmark = pytest.mark.costly


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    twins = [make_run(folder / "a", points=5), make_run(folder / "b", recipe="vit-digits-sam", flat=8.0, points=5)]
    study = make_study(folder, [claim("a", 2.0, (1.0, 4.0)), claim("b", 3.0, (2.0, 4.0), unit="x")])
    report.figures([*twins, make_comparison(folder / "c"), study], folder / "figures", ("svg", "pdf", "png"))
    return [*twins, folder / "figures"]


@pytest.mark.costly
def test_every_figure_is_drawn_in_every_format(folders) -> None:
    names = {path.name for path in folders[-1].iterdir()}
    assert names == {f"{name}.{form}" for name in FIGURES for form in ("svg", "pdf", "png")}


@pytest.mark.parametrize("name", FIGURES)
def test_figures_are_one_or_two_columns_wide_in_every_format(folders, name: str) -> None:
    svg = ET.parse(folders[-1] / f"{name}.svg").getroot()  # a file of our own
    with Image.open(folders[-1] / f"{name}.png") as image:
        image.load()
        pixels = image.size
    box = re.search(rb"/MediaBox \[ ?0 0 ([\d.]+) ([\d.]+) ?\]", (folders[-1] / f"{name}.pdf").read_bytes())
    widths = [float(svg.attrib["width"].removesuffix("pt")) / 72, pixels[0] / 300, float(box.group(1)) / 72]
    assert widths[0] in (ONE, TWO)
    assert widths == pytest.approx([widths[0]] * 3, abs=0.01)


def test_text_is_7_or_8_points(folders) -> None:
    pdf = (folders[-1] / "training.pdf").read_bytes()
    pages = b""
    for stream in re.findall(rb"stream\r?\n(.*?)\r?\nendstream", pdf, re.DOTALL):
        try:
            pages += zlib.decompress(stream)
        except zlib.error:
            continue
    sizes = {float(size) for size in re.findall(rb"/F\d+ ([\d.]+) Tf", pages)}
    assert sizes
    assert sizes <= {7.0, 8.0}


@pytest.mark.costly
def test_drawing_leaves_the_settings_of_matplotlib_alone(tmp_path, folders) -> None:
    before = dict(matplotlib.rcParams)
    backend = matplotlib.get_backend()
    report.figures(folders[:1], tmp_path / "f", ("png",))
    assert dict(matplotlib.rcParams) == before
    assert matplotlib.get_backend() == backend


def test_lines_are_the_records(folders) -> None:
    runs = load(*folders[:2])
    losses = FIGURES["training"](runs).axes[0].get_lines()
    drawn = [line for line in losses if line.get_linestyle() == "-" and len(line.get_xdata()) > 1]
    for curve, line in zip(curves(runs, "train/loss"), drawn, strict=True):
        assert list(line.get_xdata()) == [point.step for point in curve.points]
        assert list(line.get_ydata()) == [point.value for point in curve.points]


def test_bars_that_did_not_converge_are_hollow(folders) -> None:
    bars = FIGURES["blocks"](load(*folders[:2])).axes[0].patches
    assert [bar.get_facecolor()[3] for bar in bars] == [1, 1, 0, 1, 1] * 2


def test_figures_without_records_are_left_out(tmp_path, capsys) -> None:
    folder = make_run(tmp_path / "a", without=tuple(n for n in NOTHING if n != "blocks"))
    cli.main(["report", str(folder), "--figures", str(tmp_path / "f"), "--format", "svg", "--format", "svg,png"])
    assert capsys.readouterr().out == f"figures: {tmp_path / 'f'} (2 files)\n"
    assert sorted(path.name for path in (tmp_path / "f").iterdir()) == ["blocks.png", "blocks.svg"]
    assert not (folder / "report.html").exists(), "figures alone were asked for"


@pytest.mark.parametrize("name", HOSTILE)
def test_any_name_can_be_drawn(tmp_path, name: str, capfd) -> None:
    folder = make_run(tmp_path / "a", config={"name": name}, without=tuple(n for n in NOTHING if n != "blocks"))
    other = make_run(tmp_path / "b", without=tuple(n for n in NOTHING if n != "blocks"))
    assert len(report.figures([folder, other], tmp_path / "f", ("svg",))) == 1
    assert capfd.readouterr() == ("", "")


def test_many_runs_are_drawn_by_recipe(tmp_path) -> None:
    folders = [make_run(tmp_path / str(k), seed=k, points=3, log_lines=3, without=("density",)) for k in range(9)]
    figure = FIGURES["training"](load(*folders))
    assert len(figure.axes[0].collections) == 1, "one band"
    assert FIGURES["landscape"](load(*folders)) is not None
    assert FIGURES["spectrum"](load(*folders)) is None
