"""Test devices and precisions, seeds that do not collide, and the provenance of a run."""

import os

import pytest
import torch

from samovar import runtime
from samovar.config import RunConfig
from samovar.runtime import machine


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="--run.device tpu is no"):
        runtime.resolve_device("tpu")
    with pytest.raises(ValueError, match="torch sees"):
        runtime.resolve_device("cuda:77")
    assert runtime.resolve_device("cpu") == torch.device("cpu")


def test_precision_without_hardware_is_refused_with_advice(monkeypatch) -> None:
    monkeypatch.setattr(machine, "has_native", lambda dtype, device: False)
    for name in ("bf16", "fp16"):
        with pytest.raises(ValueError, match=f"--run.precision {name} has no hardware support .* slower; give fp32"):
            runtime.resolve_precision(name, torch.device("cpu"))
    assert runtime.resolve_precision("auto", torch.device("cpu")) == torch.float32


def test_seeds_depend_on_every_number_and_their_order() -> None:
    seeds = {runtime.mix(a, b, c) for a in range(12) for b in range(12) for c in range(12)}
    assert len(seeds) == 12**3
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert runtime.mix(0) == 0xE220A8397B1DCDAF >> 1  # first output of splitmix64 from state 0


def test_one_process_starts_without_a_group_and_says_what_it_is() -> None:
    with runtime.started(RunConfig(device="cpu")) as here:
        assert (here.rank, here.world_size, here.is_main) == (0, 1, True)
        facts = runtime.provenance(here)
    assert torch.__version__.startswith(facts["versions"]["torch"])
    assert facts["device"] == "cpu"
    assert not torch.distributed.is_initialized()


def test_deterministic_algorithms_are_asked_for_inside_and_put_back(monkeypatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    with runtime.started(RunConfig(device="cpu", deterministic=True)):
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.backends.cudnn.benchmark
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.backends.cudnn.benchmark


def test_an_operation_without_a_deterministic_algorithm_is_refused() -> None:
    with (
        pytest.raises(ValueError, match=r"^put_ has no deterministic algorithm .* train without --run.deterministic$"),
        runtime.started(RunConfig(device="cpu", deterministic=True)),
    ):
        torch.zeros(3).put_(torch.tensor([0]), torch.ones(1))
    assert not torch.are_deterministic_algorithms_enabled()
    with pytest.raises(RuntimeError, match="size"), runtime.started(RunConfig(device="cpu", deterministic=True)):
        torch.zeros(3) @ torch.zeros(2)
