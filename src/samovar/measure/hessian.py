"""Measurements of the loss's Hessian: its largest eigenvalues, whole and by block, trace, density.

All four take the precision of `--dtype`. Under torchrun the ranks share the products, each taking a
part of the images. Source: Chen et al., arXiv:2106.01548.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Generator

from samovar import curvature
from samovar.config import MeasureConfig
from samovar.curvature import Hessian
from samovar.measure.subject import Batches, Subject, arrays_name
from samovar.runs import saddle
from samovar.runs.records import Record

PAPER = "arXiv:2106.01548"


def hessian(subject: Subject, config: MeasureConfig, _: Path) -> Iterator[Record]:
    """Measure the `--k` eigenvalues of the loss's Hessian that are largest in magnitude.

    Where the first is negative, both ends of the spectrum follow."""
    # the first is the paper's number and has a name of its own; the others carry their rank
    op = hessian_of(subject, config)
    found, ends = _eigenvalues(op, config.k, config, "hessian/lambda_max")
    for rank, record in enumerate(found):
        name = "hessian/lambda_max" if rank == 0 else "hessian/eigenvalue"
        yield replace(record, name=name, where={} if rank == 0 else {"rank": rank + 1})
    yield from ends


def blocks(subject: Subject, config: MeasureConfig, _: Path) -> Iterator[Record]:
    """Measure lambda_max of each block of Table 3, or of the parameters that `--params` names."""
    chosen = (
        {pattern: curvature.match(subject.model, pattern) for pattern in config.params}
        if config.params
        else curvature.blocks(subject.model)
    )
    for block, names in chosen.items():
        op = hessian_of(subject, config, params=names)
        found, ends = _eigenvalues(op, 1, config, "hessian/block_lambda_max")
        for record in (*found, *ends):
            yield replace(record, where={"block": block}, source=f"{PAPER}, Table 3")


def trace(subject: Subject, config: MeasureConfig, _: Path) -> Iterator[Record]:
    """Measure the trace of the loss's Hessian, by Hutch++."""
    # 6 products a probe: Hutch++ needs as many for an error bar, and --probes may be 1
    op = hessian_of(subject, config)
    found = curvature.trace(
        op,
        method="hutch++",
        num_probes=config.probes * 6,
        generator=Generator().manual_seed(config.seed),
    )
    yield Record(
        "hessian/trace",
        found.value,
        stderr=found.stderr,
        n=found.n,
        settings={"method": "hutch++", "checked": op.checked},
    )


def density(subject: Subject, config: MeasureConfig, arrays: Path) -> Iterator[Record]:
    """Measure the density of the Hessian's eigenvalues, by stochastic Lanczos quadrature."""
    op = hessian_of(subject, config)
    found = curvature.spectral_density(
        op,
        num_probes=config.probes,
        num_steps=config.density_steps,
        generator=Generator().manual_seed(config.seed),
    )
    name = arrays_name("density", subject, config)
    if subject.runtime.is_main:
        keys = ("grid", "density", "stderr", "nodes", "weights")
        np.savez(arrays / name, **{key: getattr(found, key).numpy() for key in keys})
    # moments of the density have error bars, which the curve in the arrays has point by point
    for power, title in ((1, "mean_eigenvalue"), (2, "mean_square_eigenvalue")):
        moment = found.moment(power)
        yield Record(
            f"hessian/{title}",
            moment.value,
            stderr=moment.stderr,
            n=moment.n,
            settings={
                "probes": config.probes,
                "steps": config.density_steps,
                "sigma": found.sigma,
                "checked": op.checked,
            },
            cost={"matvecs": found.num_products},
            arrays=f"arrays/{name}",
        )


def hessian_of(
    subject: Subject,
    config: MeasureConfig,
    *,
    params: Sequence[str] | None = None,
    batches: Batches | None = None,
) -> Hessian:
    """Return the Hessian of the subject's mean loss, in the precision of `--dtype`.

    Args:
        params: names of the parameters it is taken over; None takes all that require a gradient.
        batches: images of the loss; None takes the subject's."""
    return Hessian(
        subject.model,
        subject.loss,
        (subject.batches if batches is None else batches).share(subject.runtime),
        params=params,
        dtype=torch.float64 if config.dtype == "float64" else torch.float32,
        distributed=subject.runtime.world_size > 1,
        check=config.check,
    )


def _eigenvalues(
    op: Hessian, k: int, config: MeasureConfig, name: str
) -> tuple[list[Record], list[Record]]:
    """Return records of the k eigenvalues that are largest in magnitude, and of the two ends.

    The ends are the largest and the smallest eigenvalue that the same products show; they are there
    only where the eigenvalue of largest magnitude is negative.

    Args:
        name: of the first record, a key of `saddle.LARGEST`."""
    pairs = curvature.top_eigenvalues(
        op,
        k,
        tol=config.tol,
        max_steps=config.max_steps,
        generator=Generator().manual_seed(config.seed),
        vectors=False,
    )

    def record(name: str, which: str, value: float, residual: float, converged: bool) -> Record:
        return Record(
            name,
            value,
            residual=residual,
            settings={
                "method": "Lanczos",
                "which": which,
                "tol": config.tol,
                "max_steps": config.max_steps,
                "checked": op.checked,
            },
            cost={"matvecs": pairs.num_products},
            source=f"{PAPER}, appendix C",
            converged=converged,
        )

    errors = zip(pairs.values.tolist(), pairs.residuals.tolist(), strict=True)
    found = [
        record(name, "largest magnitude", value, residual, pairs.converged)
        for value, residual in errors
    ]
    largest, smallest = pairs.largest, pairs.smallest
    # a single product shows one number, which is both ends
    if found[0].value >= 0 or largest is None or smallest is None or largest == smallest:
        return found, []
    ends = (
        ("largest", saddle.LARGEST[name], largest),
        ("smallest", saddle.SMALLEST[name], smallest),
    )
    return found, [
        replace(record(title, which, end.value, end.residual, end.converged), cost={})
        for which, title, end in ends
    ]
