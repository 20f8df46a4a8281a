"""The precision of measurements: chosen, the same in all kinds of layers, recorded, and restored."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from samovar.config import MeasureConfig
from samovar.measure import catalog, command
from samovar.measure.catalog import CATALOG, Measurement
from samovar.measure.subject import Subject, open_subject
from samovar.runs.records import Record
from samovar.runtime import Runtime, precision
from tests.conftest import assert_refused

CPU = Runtime(torch.device("cpu"), torch.float32)
SMALL = MeasureConfig(
    images=20, image_size=8, max_steps=3, dims=1, points=3, landscape_images=20, corruptions=("fog",), severities=(3,),
    attack_steps=1, pictures=2, workers=0, processes=1,
)  # fmt: skip
FORWARD = ("predictions", "accuracy", "robustness", "attack", "landscape")


def backends() -> dict[str, str]:
    on = torch.backends
    places = {
        "cuda.matmul": on.cuda.matmul, "cudnn.conv": on.cudnn.conv, "cudnn.rnn": on.cudnn.rnn,
        "mkldnn.matmul": on.mkldnn.matmul, "mkldnn.conv": on.mkldnn.conv, "mkldnn.rnn": on.mkldnn.rnn,
    }  # fmt: skip
    return {name: place.fp32_precision for name, place in places.items()}


SEEN: list[tuple[dict[str, str], bool]] = []


def look(subject: Subject, config: MeasureConfig, _: object) -> Iterator[Record]:
    """Measure nothing; note the precision around each of two records."""
    for number in range(2):
        SEEN.append((backends(), torch.is_autocast_enabled("cpu")))
        yield Record("seen", float(number))


@pytest.fixture
def seen(monkeypatch) -> list[tuple[dict[str, str], bool]]:
    SEEN.clear()
    monkeypatch.setattr(precision, "has_native", lambda *args: True)
    monkeypatch.setitem(CATALOG, "always", Measurement("always", "looks", f"{__name__}:look"))
    monkeypatch.setitem(
        CATALOG, "chosen", Measurement("chosen", "looks", f"{__name__}:look", ("precision",), dtype="--precision")
    )
    return SEEN


@pytest.fixture
def reduced() -> Iterator[None]:
    """A program that has asked for TF32, and torch's own mixture of it: convolutions only."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def measured(name: str, tmp_path, **changes) -> list[Record]:
    config = replace(SMALL, split=catalog.default_split(name), **changes)
    return list(command.measure(name, open_subject("vit-digits", config, CPU), config, tmp_path))


@pytest.mark.parametrize("name", ["always", "chosen"])
def test_float32_is_float32_in_all_layers_inside_a_measurement(name, seen, reduced, tmp_path) -> None:
    before = backends()
    assert before["cuda.matmul"] == "tf32"
    records = measured(name, tmp_path)
    assert [flags for flags, _ in seen] == [dict.fromkeys(before, "ieee")] * 2
    assert backends() == before
    assert [record.settings["tf32"] for record in records] == [False, False]
    assert records[0].settings["dtype"] == "float32"


def test_the_precision_is_restored_between_records_and_after_an_error(seen, tmp_path) -> None:
    before = backends()
    config = replace(SMALL, split="val", precision="bf16")
    found = command.measure("chosen", open_subject("vit-digits", config, CPU), config, tmp_path)
    next(found)
    assert (backends(), torch.is_autocast_enabled("cpu")) == (before, False)
    with pytest.raises(RuntimeError, match="inside"), precision.computing("bf16", CPU.device):
        raise RuntimeError("inside")
    assert (backends(), torch.is_autocast_enabled("cpu")) == (before, False)


@pytest.mark.parametrize(("asked", "dtype"), [("fp32", "float32"), ("bf16", "bfloat16"), ("fp16", "float16")])
def test_half_precision_is_for_measurements_that_take_it(asked, dtype, seen, tmp_path) -> None:
    (record, _) = measured("chosen", tmp_path, precision=asked)
    assert [half for _, half in seen] == [asked != "fp32"] * 2
    assert (record.settings["dtype"], record.settings["precision"]) == (dtype, asked)
    seen.clear()
    (record, _) = measured("always", tmp_path, precision=asked)
    assert [half for _, half in seen] == [False, False]
    assert record.settings["dtype"] == "float32"
    assert "precision" not in record.settings


def test_tf32_is_set_for_products_and_convolutions_alike(monkeypatch) -> None:
    cuda = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    before = backends()
    with precision.computing("tf32", cuda):
        assert {name: value for name, value in backends().items() if name.startswith("cu")} == {
            "cuda.matmul": "tf32", "cudnn.conv": "tf32", "cudnn.rnn": "tf32",
        }  # fmt: skip
    assert backends() == before
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with pytest.raises(ValueError, match="--precision tf32 has no hardware support on this cuda; give fp32"):
        precision.check_precision("tf32", cuda)


def test_precision_without_hardware_is_refused_before_anything_is_opened(monkeypatch, capsys) -> None:
    monkeypatch.setattr(precision, "has_native", lambda *args: False)
    for asked in ("tf32", "bf16", "fp16"):
        line = f"--precision {asked} has no hardware support on this cpu; give fp32"
        assert_refused(
            f"measure vit-digits accuracy --source folder:gone --precision {asked} --device cpu", line, capsys
        )


def test_forward_measurements_take_the_precision_and_curvature_does_not() -> None:
    takes = {name for name, each in CATALOG.items() if "precision" in each.uses}
    assert takes == {*FORWARD, "testset"}


@pytest.mark.parametrize("name", FORWARD)
def test_forward_measurements_work_in_half_precision(name, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(precision, "has_native", lambda *args: True)
    whole, half = (measured(name, tmp_path, precision=asked) for asked in ("fp32", "bf16"))
    assert [record.name for record in half] == [record.name for record in whole]
    assert half[0].settings["precision"] == "bf16"


def test_another_precision_is_another_measurement(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(precision, "has_native", lambda *args: True)
    config = replace(SMALL, output=tmp_path, name="m", device="cpu")
    for asked in ("fp32", "bf16", "bf16"):
        folder = command.run("vit-digits", ["accuracy", "flatness"], replace(config, precision=asked))
    found = [record.settings["dtype"] for record in folder.records() if record.name == "accuracy/top1"]
    assert found == ["float32", "bfloat16"]
    assert len(list(folder.records("flatness/clean_loss"))) == 1


def test_an_attack_whose_gradients_would_vanish_is_refused(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(precision, "has_native", lambda *args: True)
    with pytest.raises(ValueError, match="--precision fp16 loses the small gradients of `attack`; give bf16 or fp32"):
        measured("attack", tmp_path, precision="fp16")
