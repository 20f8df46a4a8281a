"""Model FLOPs utilization: known devices, the formula, and its record in a run."""

from dataclasses import replace

import pytest
import torch

from samovar import recipes
from samovar.config import SamConfig
from samovar.recipes.paper import FORWARD_GFLOPS
from samovar.runtime import Runtime
from samovar.train import keeper, utilization
from samovar.train.utilization import peak_flops, utilization_per_image
from tests.unit.short_run import short_run

ON_GPU = Runtime(torch.device("cuda"), torch.bfloat16, world_size=4)


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
        ("NVIDIA GeForce RTX 4090", 165),
        ("Tesla V100-SXM2-16GB", 125),
        ("NVIDIA A10G", None),  # not an A10
        ("NVIDIA L40", None),  # not an L4
    ],
)
def test_a_peak_is_that_of_the_very_device(name: str, teraflops: int | None) -> None:
    assert peak_flops(name, torch.bfloat16) == (teraflops and teraflops * 1e12)
    assert peak_flops(name, torch.float32) is None


@pytest.mark.parametrize(("rho", "gradients"), [(0.0, 1), (0.2, 2)])
def test_utilization_is_three_forward_passes_a_gradient_over_the_peak_of_all_gpus(
    rho: float, gradients: int, monkeypatch
) -> None:
    config = replace(recipes.get("vit-s32-imagenet").config(), sam=SamConfig(rho=rho))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100-SXM4-40GB")
    monkeypatch.setattr(utilization, "forward_flops", lambda model, image: FORWARD_GFLOPS["vit-s32"] * 1e9)
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *shape, device: zeros(*shape))
    found = utilization_per_image(torch.nn.Identity(), config, ON_GPU, 3)
    assert found == pytest.approx(3 * FORWARD_GFLOPS["vit-s32"] * 1e9 * gradients / (4 * 312e12))


def test_a_cpu_has_no_peak_and_its_runs_no_record(tmp_path) -> None:
    assert not list(short_run(tmp_path).records("train/mfu"))


def test_where_the_peak_is_known_each_log_line_has_it(tmp_path, monkeypatch) -> None:
    calls = []
    monkeypatch.setattr(keeper, "utilization_per_image", lambda *args: calls.append(args) or 1e-4)
    run = short_run(tmp_path)
    found, speeds = (list(run.records(name)) for name in ("train/mfu", "train/images_per_second"))
    assert len(found) == len(speeds) > 1
    assert [record.value for record in found] == pytest.approx([1e-4 * speed.value for speed in speeds])
    assert len(calls) == 1  # counted once
