"""Curvature of any model: operators, Lanczos, eigenvalues, trace and density. Needs only torch."""

from samovar.curvature.blocks import blocks
from samovar.curvature.inputs import match
from samovar.curvature.lanczos import Basis, Tridiagonal, lanczos
from samovar.curvature.operators import GaussNewton, Hessian, LinearOperator, LossFn, dense
from samovar.curvature.spectrum import (
    Density,
    Eigenpairs,
    Estimate,
    RitzValue,
    power_iteration,
    spectral_density,
    top_eigenvalues,
    trace,
)

__all__ = [
    "Basis",
    "Density",
    "Eigenpairs",
    "Estimate",
    "GaussNewton",
    "Hessian",
    "LinearOperator",
    "LossFn",
    "RitzValue",
    "Tridiagonal",
    "blocks",
    "dense",
    "lanczos",
    "match",
    "power_iteration",
    "spectral_density",
    "top_eigenvalues",
    "trace",
]
