"""The catalog of measurements: records, requests and the settings that are read agree with each entry."""

import sys
import textwrap
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from samovar import config as configs
from samovar import plugins, recipes
from samovar.config import MeasureConfig
from samovar.data import testsets
from samovar.measure import catalog, command
from samovar.measure.catalog import CATALOG, EXECUTION, SUBJECT, Measurement
from samovar.measure.subject import Subject, open_subject
from samovar.runs.records import RunDir
from samovar.runtime import Runtime

pytestmark = pytest.mark.costly

CPU = Runtime(torch.device("cpu"), torch.float32)
SMALL = MeasureConfig(
    images=20, image_size=8, batch_size=10, max_steps=8, probes=2, density_steps=4, draws=1, ascent_steps=1,
    ntk_batch=4, ntk_batches=1, ntk_head="random", points=3, corruption_images=4, corruptions=("fog",),
    severities=(2,), attack_images=4, attack_steps=1, probe_images=20, pictures=2, workers=0, processes=1,
)  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> RunDir:
    return RunDir.create(tmp_path, "records")


def opened(split: str = "train") -> Subject:
    """A small network whose head is not zero, so that its Hessian and kernel are not degenerate."""
    subject = open_subject("vit-digits", replace(SMALL, split=split), CPU)
    with torch.no_grad():
        subject.model.body.head.weight.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    return subject


# --- settings that are read


def recorded(config: MeasureConfig, reads: set[str]) -> MeasureConfig:
    """The config, as one of a class that notes the settings that are read of it and of its copies."""
    names = {field.name for field in fields(config)}

    class Recorded(MeasureConfig):
        def __getattribute__(self, name: str):
            caller = sys._getframe(1)
            copying = caller.f_globals.get("__name__") == "dataclasses" and "replace" in caller.f_code.co_name
            if name in names and not copying:  # a copy notes its own reads
                reads.add(name)
            return super().__getattribute__(name)

    return Recorded(**{name: getattr(config, name) for name in names})


def undeclared(name: str, subject: Subject, config: MeasureConfig, arrays: Path) -> set[str]:
    """Settings that a measurement reads, beside those that it declares and those of every measurement."""
    reads: set[str] = set()
    assert list(command.measure(name, subject, recorded(config, reads), arrays))
    return reads - {*catalog.get(name).uses, *SUBJECT, *EXECUTION}


@pytest.mark.parametrize("name", [name for name in CATALOG if name not in ("landscape", "testset")])
def test_a_measurement_reads_the_settings_that_it_declares_and_no_others(name: str, tmp_path: Path) -> None:
    assert undeclared(name, opened(split=catalog.default_split(name)), SMALL, tmp_path) == set()


@pytest.mark.parametrize("kind", ["random", "eigenvectors", "between"])
def test_a_landscape_of_each_kind_reads_the_settings_that_it_declares(kind: str, folder: RunDir) -> None:
    configs.save(recipes.get("vit-digits").config(), folder.config_path)
    config = replace(SMALL, landscape=kind, checkpoint="init", other="init" if kind == "between" else "")
    subject = open_subject(str(folder.path), config, CPU)
    assert undeclared("landscape", subject, config, folder.arrays) == set()


def test_a_test_set_reads_the_settings_that_it_declares(tmp_path: Path, monkeypatch) -> None:
    subject = opened()
    conditions = tuple(
        testsets.Condition({"corruption": name, "severity": 1}, subject.batches.split) for name in ("fog", "snow")
    )
    tests = testsets.TestSet("made", "nowhere", 20, conditions, 10, subject.classes)
    monkeypatch.setattr("samovar.measure.testset.open_testset", lambda *args: tests)
    assert undeclared("testset", subject, SMALL, tmp_path) == set()


def test_reading_a_setting_that_is_not_declared_is_noticed(tmp_path: Path, monkeypatch) -> None:
    flatness = CATALOG["flatness"]
    monkeypatch.setitem(CATALOG, "flatness", replace(flatness, uses=("sigma", "noise")))
    assert undeclared("flatness", opened(), SMALL, tmp_path) == {"draws"}
    robustness = CATALOG["robustness"]  # which reads some settings of a copy
    monkeypatch.setitem(CATALOG, "robustness", replace(robustness, uses=("corruptions", "corruption_images")))
    assert undeclared("robustness", opened(), SMALL, tmp_path) == {"severities", "pictures"}


def test_every_setting_belongs_to_a_measurement_or_to_all() -> None:
    declared = {*SUBJECT, *EXECUTION}.union(*(each.uses for each in CATALOG.values()))
    assert declared == {field.name for field in fields(MeasureConfig)}


def test_a_setting_that_does_not_exist_cannot_be_declared() -> None:
    with pytest.raises(ValueError, match="measurement 'm' uses 'sigm', .* did you mean sigma?"):
        Measurement("m", "", "a:b", ("sigm",))


# --- what follows from an entry


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("hessian", "--dtype"),
        ("trace", "--dtype"),
        ("landscape", "--dtype"),
        ("ntk", "float64"),
        ("flatness", "float32"),
    ],
)
@pytest.mark.parametrize("asked", ["float32", "float64"])
def test_records_state_the_precision_that_the_catalog_declares(name, dtype, asked, tmp_path) -> None:
    config = replace(SMALL, dtype=asked, landscape="eigenvectors", dims=1)
    (record, *_) = command.measure(name, opened(), config, tmp_path)
    assert record.settings["dtype"] == (asked if dtype == "--dtype" else dtype)


def test_a_landscape_of_eigenvectors_in_another_precision_is_another_one(folder: RunDir) -> None:
    single = replace(SMALL, landscape="eigenvectors", dims=1)
    double = replace(single, dtype="float64")
    subject = opened()
    (first,) = command.measure_once("landscape", subject, single, folder)
    (second,) = command.measure_once("landscape", subject, double, folder)
    assert (first.settings["dtype"], second.settings["dtype"]) == ("float32", "float64")
    assert first.settings["residuals"] != second.settings["residuals"]
    assert first.arrays != second.arrays
    assert all((folder.path / record.arrays).is_file() for record in (first, second))
    assert command.measure_once("landscape", subject, double, folder) == [second]


def test_a_landscape_without_hessian_products_states_the_precision_of_its_loss(tmp_path: Path) -> None:
    (record,) = command.measure("landscape", opened(), replace(SMALL, dtype="float64", dims=1), tmp_path)
    assert record.settings["dtype"] == "float32"


@pytest.mark.parametrize("name", CATALOG)
def test_a_request_changes_with_each_setting_that_is_used_and_with_no_other(name: str) -> None:
    before, other = catalog.request(name, SMALL), MeasureConfig(batch_size=10)
    for field in fields(MeasureConfig):
        if getattr(SMALL, field.name) != getattr(other, field.name):
            changed = catalog.request(name, replace(SMALL, **{field.name: getattr(other, field.name)}))
            assert (changed != before) == (field.name in catalog.get(name).uses), field.name


def test_a_request_reads_as_in_the_records_of_earlier_versions() -> None:
    config = replace(SMALL, params=("head.*",), dtype="float64")
    assert catalog.request("blocks", config) == "dtype=float64 tol=0.001 max_steps=8 params=['head.*'] batch_size=10"


def test_an_unknown_name_gets_the_closest_one() -> None:
    with pytest.raises(ValueError, match="cannot measure 'hesian'; did you mean hessian?"):
        catalog.get("hesian")


# --- additions

ADDITION = """
    from samovar.measure.catalog import Measurement
    from samovar.runs.records import Record

    def bias(subject, config, arrays):
        \"\"\"Measure the mean of the classifier's biases.\"\"\"
        yield Record("mine/bias", subject.model.body.head.bias.mean().item(), settings={"k": config.k})

    ENTRY = Measurement("bias", "mean of the classifier's biases", "mine_of_samovar:bias", ("k",), split="val")
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch):
    """A module that another package would have, on the path."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "mine_of_samovar.py").write_text(textwrap.dedent(ADDITION), encoding="utf-8")
    monkeypatch.syspath_prepend(str(site))
    yield site
    sys.modules.pop("mine_of_samovar", None)
    plugins.names.cache_clear()


def check_addition(folder: RunDir) -> None:
    assert catalog.names() == (*(name for name in CATALOG if name != "bias"), "bias")
    assert catalog.default_split("bias") == "val"
    subjects = command.open_subjects("vit-digits", ["bias"], SMALL, CPU)
    (record,) = command.measure_once("bias", subjects["bias"], SMALL, folder)
    assert record.settings["request"] == "k=1 batch_size=10"
    assert (record.settings["split"], record.settings["dtype"]) == ("val", "float32")
    assert command.measure_once("bias", subjects["bias"], SMALL, folder) == [record]
    command.measure_once("bias", subjects["bias"], replace(SMALL, k=2), folder)
    assert len(list(folder.records())) == 2


def test_a_measurement_is_added_by_one_file_and_one_line(mine: Path, folder: RunDir, monkeypatch) -> None:
    import mine_of_samovar

    monkeypatch.setitem(CATALOG, "bias", mine_of_samovar.ENTRY)
    check_addition(folder)


def install(site: Path, value: str) -> None:
    info = site / "mine-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(f"[samovar.measurements]\nbias = {value}\n", encoding="utf-8")
    plugins.names.cache_clear()


def test_another_package_adds_a_measurement_by_an_entry_point(mine: Path, folder: RunDir) -> None:
    install(mine, "mine_of_samovar:ENTRY")
    assert "mine_of_samovar" not in sys.modules  # a name alone imports nothing
    check_addition(folder)


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ("mine_of_samovar:bias", "is a function; its entry point must name a samovar.measure.catalog.Measurement"),
        ("mine_of_samovar:nothing", "does not import from mine_of_samovar:nothing"),
    ],
)
def test_an_entry_point_to_something_else_is_one_line(mine: Path, value: str, line: str) -> None:
    install(mine, value)
    with pytest.raises(ValueError, match=line):
        catalog.get("bias")


def test_a_function_that_does_not_import_is_one_line(monkeypatch) -> None:
    monkeypatch.setitem(CATALOG, "bias", Measurement("bias", "", "samovar.measure.hessian:nothing"))
    with pytest.raises(ValueError, match="'bias' does not import from samovar.measure.hessian:nothing"):
        catalog.load("bias")
