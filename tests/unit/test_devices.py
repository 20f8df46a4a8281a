"""Copies to devices, and devices without float64 (Apple's GPUs), on a fake one."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import samovar
from samovar.anymodel import devices
from samovar.anymodel.devices import to_device
from samovar.config import DataConfig, MeasureConfig
from samovar.curvature import power_iteration
from samovar.data.loader import batches, eval_batches
from samovar.data.sources import open_source
from samovar.measure import catalog, command
from samovar.measure.subject import open_subject
from samovar.runtime import Runtime
from tests.fake_mps import OnMps, fake_mps

pytestmark = pytest.mark.costly

SOURCE = Path(samovar.__file__).parent


def test_one_file_makes_non_blocking_copies() -> None:
    found = [path.name for path in SOURCE.rglob("*.py") if "non_blocking" in path.read_text()]
    assert found == ["devices.py"]


@pytest.mark.parametrize(("kind", "expected"), [("cpu", False), ("mps", False), ("cuda", True), ("cuda:1", True)])
def test_only_copies_to_cuda_are_non_blocking(monkeypatch, kind, expected) -> None:
    calls = []
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *args, **kwargs: calls.append((args, kwargs)) or self)
    to_device(torch.zeros(2), torch.device(kind))
    assert calls == [((torch.device(kind),), {"non_blocking": expected})]


@pytest.mark.parametrize("loader", ["resident", "streaming"])
def test_no_loader_makes_a_non_blocking_copy_to_mps(loader) -> None:
    config = DataConfig(loader=loader, workers=0, batch_size=8, crop="pad", pad=1)
    source = open_source(config)
    with fake_mps() as device:  # which refuses one
        (trained,) = batches(source, config, seed=0, stop=1, device=device)
        held = next(eval_batches(source.val, config, batch_size=4, device=device))
        assert isinstance(trained.images, OnMps)
        assert isinstance(held.labels, OnMps)
    (here,) = batches(source, config, seed=0, stop=1, device=torch.device("cpu"))
    torch.testing.assert_close(trained.images.cpu(), here.images)


# --- float64


def network() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2))
    return model, torch.randn(8, 3), torch.randint(2, (8,))


def loss(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


NUMBERS = {
    "lanczos": lambda op: samovar.top_eigenvalues(op, k=2, tol=1e-4).values,
    "vectors": lambda op: samovar.top_eigenvalues(op, tol=1e-4).vectors.cpu().abs(),
    "power": lambda op: power_iteration(op, num_steps=20).values,
    "hutchinson": lambda op: torch.tensor(samovar.trace(op, num_probes=4).value),
    "hutch++": lambda op: torch.tensor(samovar.trace(op, method="hutch++", num_probes=12).value),
    "exact": lambda op: torch.tensor(samovar.trace(op, method="exact").value),
    "density": lambda op: samovar.spectral_density(op, num_probes=2, num_steps=5).density,
}


@pytest.mark.parametrize("name", NUMBERS)
def test_curvature_works_in_float32_where_there_is_no_float64(name) -> None:
    model, images, labels = network()
    here = NUMBERS[name](samovar.Hessian(model, loss, [(images, labels)]))
    with fake_mps() as device:
        on_device = [(to_device(images, device), to_device(labels, device))]
        there = NUMBERS[name](samovar.Hessian(model.to(device), loss, on_device))
    torch.testing.assert_close(there, here, rtol=1e-3, atol=1e-4)


def test_float64_curvature_is_refused_where_there_is_no_float64() -> None:
    model, images, labels = network()
    with fake_mps() as device, pytest.raises(ValueError, match="float64 does not exist on mps; give float32"):
        samovar.Hessian(model.to(device), loss, [(images, labels)], dtype=torch.float64)


def test_the_float64_kernel_is_computed_on_the_host() -> None:
    model, images, _ = network()
    here = samovar.ntk_condition_number(model, images, batch_size=4)
    with fake_mps() as device:
        there = samovar.ntk_condition_number(model.to(device), to_device(images, device), batch_size=4)
    assert there.values == pytest.approx(here.values, rel=1e-9)


NAMES = [(name, "vit-digits") for name in catalog.CATALOG if name != "testset"]  # which needs files of its own


@pytest.mark.parametrize(("name", "model"), [*NAMES, ("attention", "mixer-digits")])
def test_every_measurement_works_without_float64(name, model, tmp_path) -> None:
    config = MeasureConfig(
        split=catalog.default_split(name), images=20, image_size=8, max_steps=3, probes=2, density_steps=2, draws=2,
        ascent_steps=1, ntk_batch=4, ntk_batches=1, ntk_head="random", points=2, dims=1, landscape_images=20,
        corruptions=("fog",), severities=(3,), attack_steps=1, pictures=2, probe_images=60, workers=0, processes=1,
    )  # fmt: skip
    if name == "landscape":
        config = replace(config, landscape="eigenvectors")
    with fake_mps() as device:
        subject = open_subject(model, config, Runtime(device, torch.float32))
        found = list(command.measure(name, subject, config, tmp_path))
    assert found


def test_a_device_says_whether_it_has_float64() -> None:
    assert [devices.supports_float64(torch.device(kind)) for kind in ("cpu", "cuda", "mps")] == [True, True, False]
