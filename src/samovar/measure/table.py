"""The measurements by name: each a generator of Records about a Subject."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Generator

from samovar.config import MeasureConfig
from samovar.curvature import (
    Estimate,
    Hessian,
    blocks,
    match,
    spectral_density,
    top_eigenvalues,
    trace,
)
from samovar.measure.accuracy import accuracy
from samovar.measure.activations import activations
from samovar.measure.attention import attention
from samovar.measure.features import knn, linear
from samovar.measure.flatness import average_flatness
from samovar.measure.landscape import landscape
from samovar.measure.ntk import ntk_condition_number
from samovar.measure.predictions import predictions
from samovar.measure.robustness import attack, robustness
from samovar.measure.sharpness import sam_sharpness
from samovar.measure.subject import Subject, arrays_name
from samovar.measure.testset import testset
from samovar.runs.records import Record

Measurement = Callable[[Subject, MeasureConfig, Path], Iterator[Record]]

PAPER = "arXiv:2106.01548"


OF_HESSIAN = ("hessian", "blocks", "trace", "density")
"""Measurements in the precision of `--dtype`."""
HELD_OUT = ("predictions", "accuracy", "robustness", "attack", "testset", "knn", "linear")
"""Measurements that are of the validation split unless told otherwise."""


def default_split(name: str) -> Literal["train", "val"]:
    """The split a measurement is of when no flag says which."""
    return "val" if name in HELD_OUT else "train"


def measure(name: str, subject: Subject, config: MeasureConfig, arrays: Path) -> Iterator[Record]:
    """Records of one measurement, with the subject's protocol and the seconds it took."""
    start = begun = time.perf_counter()
    dtype = {
        "dtype": config.dtype if name in OF_HESSIAN else "float64" if name == "ntk" else "float32"
    }
    for record in MEASUREMENTS[name](subject, config, arrays):
        seconds = round(time.perf_counter() - start, 3)
        # the first of several numbers that come of one computation has its cost, the others have
        # none
        taken = (
            {}
            if seconds < 1e-2 and record.cost.get("seconds") is None and start != begun
            else {"seconds": seconds}
        )
        yield replace(
            record,
            where=subject.where | record.where,
            settings=subject.settings | dtype | record.settings,
            cost=taken | record.cost,
        )
        start = time.perf_counter()


def _hessian(subject: Subject, params: list[str] | None, config: MeasureConfig) -> Hessian:
    dtype = torch.float64 if config.dtype == "float64" else torch.float32
    batches = subject.batches.share(subject.runtime)
    distributed = subject.runtime.world_size > 1
    return Hessian(
        subject.model, subject.loss, batches, params=params, dtype=dtype, distributed=distributed
    )


def _generator(config: MeasureConfig) -> Generator:
    return Generator().manual_seed(config.seed)


def _lambda_max(subject: Subject, config: MeasureConfig, _: Path) -> Iterator[Record]:
    """The k eigenvalues of the loss's Hessian that are largest in magnitude."""
    op = _hessian(subject, None, config)
    for rank, record in enumerate(_eigenvalues(op, config.k, config)):
        name = "hessian/lambda_max" if rank == 0 else "hessian/eigenvalue"
        yield replace(record, name=name, where={} if rank == 0 else {"rank": rank + 1})


def _blocks(subject: Subject, config: MeasureConfig, _: Path) -> Iterator[Record]:
    """lambda_max of each block of Table 3, or of the parameters that `--params` names."""
    chosen = (
        {p: match(subject.model, p) for p in config.params}
        if config.params
        else blocks(subject.model)
    )
    for block, names in chosen.items():
        (record,) = _eigenvalues(_hessian(subject, names, config), 1, config)
        yield replace(
            record,
            name="hessian/block_lambda_max",
            where={"block": block},
            source=f"{PAPER}, Table 3",
        )


def _eigenvalues(op: Hessian, k: int, config: MeasureConfig) -> Iterator[Record]:
    pairs = top_eigenvalues(
        op,
        k,
        tol=config.tol,
        max_steps=config.max_steps,
        generator=_generator(config),
        vectors=False,
    )
    for value, residual in zip(pairs.values.tolist(), pairs.residuals.tolist(), strict=True):
        yield Record(
            "hessian/lambda_max",
            value,
            residual=residual,
            settings={"method": "Lanczos", "tol": config.tol, "max_steps": config.max_steps},
            cost={"matvecs": pairs.num_products},
            source=f"{PAPER}, appendix C",
            converged=pairs.converged,
        )


def _trace(subject: Subject, config: MeasureConfig, _: Path) -> Iterator[Record]:
    """The trace of the Hessian, by Hutch++."""
    op = _hessian(subject, None, config)
    found: Estimate = trace(
        op, method="hutch++", num_probes=config.probes * 6, generator=_generator(config)
    )
    yield Record(
        "hessian/trace", found.value, stderr=found.stderr, n=found.n, settings={"method": "hutch++"}
    )


def _density(subject: Subject, config: MeasureConfig, arrays: Path) -> Iterator[Record]:
    """The density of the Hessian's eigenvalues, by stochastic Lanczos quadrature."""
    op = _hessian(subject, None, config)
    found = spectral_density(
        op, num_probes=config.probes, num_steps=config.density_steps, generator=_generator(config)
    )
    name = arrays_name("density", subject, config)
    columns = {
        key: getattr(found, key).numpy()
        for key in ("grid", "density", "stderr", "nodes", "weights")
    }
    if subject.runtime.is_main:
        np.savez(arrays / name, **columns)
    settings = {"probes": config.probes, "steps": config.density_steps, "sigma": found.sigma}
    cost: dict[str, float] = {"matvecs": found.num_products}
    for power, title in ((1, "mean_eigenvalue"), (2, "mean_square_eigenvalue")):
        moment = found.moment(power)
        yield Record(
            f"hessian/{title}", moment.value, stderr=moment.stderr, n=moment.n, settings=settings, cost=cost,
            arrays=f"arrays/{name}",
        )  # fmt: skip


def _flatness(subject: Subject, config: MeasureConfig, _: Path) -> Iterator[Record]:
    """The loss under Gaussian noise on the weights, on average over draws."""
    found = average_flatness(
        subject.model,
        subject.loss,
        subject.batches,
        sigma=config.sigma,
        num_draws=config.draws,
        scaling=config.noise,
        generator=_generator(config),
    )
    settings: dict[str, Any] = {"sigma": config.sigma, "noise": config.noise}
    source = f"L^N of {PAPER} v3; its sigma and draws are not published"
    yield Record(
        "sharpness/average_flatness",
        found.value,
        "nats",
        found.stderr,
        found.n,
        settings=settings,
        source=source,
    )
    yield Record("sharpness/clean_loss", found.clean, "nats", n=subject.settings["images"])


def _sharpness(subject: Subject, config: MeasureConfig, _: Path) -> Iterator[Record]:
    """The rise of the loss at SAM's point, and at the highest point found in the ball; plain and
    adaptive."""
    for title, steps, adaptive in (
        ("sam", 1, False),
        ("worst", config.ascent_steps, False),
        ("adaptive", 1, True),
    ):
        rho = config.rho * (10 if adaptive else 1)
        found = sam_sharpness(
            subject.model,
            subject.loss,
            subject.batches,
            rho=rho,
            num_steps=steps,
            adaptive=adaptive,
        )
        settings = {
            "rho": rho,
            "ascent_steps": steps,
            "adaptive": adaptive,
            "perturbation": "one for all images",
        }
        yield Record(
            f"sharpness/{title}",
            found.value,
            "nats",
            found.stderr,
            settings=settings,
            cost={"gradients": found.num_gradients},
            source="arXiv:2102.11600" if adaptive else "arXiv:2010.01412",
        )


def _ntk(subject: Subject, config: MeasureConfig, _: Path) -> Iterator[Record]:
    """The condition number of the neural tangent kernel, per batch of 48 images, averaged."""
    few = subject.batches.few(config.ntk_batch * config.ntk_batches, config.seed)
    images = torch.cat([batch.images for batch in few])
    output: Any = int(config.ntk_output) if config.ntk_output.isdigit() else config.ntk_output
    found = ntk_condition_number(
        subject.model,
        images,
        batch_size=min(config.ntk_batch, len(images)),
        output=output,
        relu=config.ntk_relu,
        head=config.ntk_head,
        generator=_generator(config),
    )
    settings = {
        "batch": found.batch_size, "output": config.ntk_output, "relu": config.ntk_relu, "head": config.ntk_head,
        "kernel_dtype": "float64", "average": "mean of condition numbers",
    }  # fmt: skip
    yield Record(
        "ntk/condition_number", found.value, "", found.stderr, found.n, settings=settings,
        source=f"{PAPER}, appendix D", converged=found.converged,
    )  # fmt: skip


MEASUREMENTS: dict[str, Measurement] = {
    "hessian": _lambda_max,
    "blocks": _blocks,
    "trace": _trace,
    "density": _density,
    "flatness": _flatness,
    "sharpness": _sharpness,
    "ntk": _ntk,
    "landscape": landscape,
    "activations": activations,
    "attention": attention,
    "predictions": predictions,
    "accuracy": accuracy,
    "robustness": robustness,
    "attack": attack,
    "testset": testset,
    "knn": knn,
    "linear": linear,
}
