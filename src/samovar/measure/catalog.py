"""The catalog of measurements: one entry says everything that the other rooms know about each.

To add a measurement, write a function in a file of its own and one entry here. Other packages add
theirs under the entry point group `samovar.measurements`, where each object is a `Measurement`.
This file imports no torch, so that `samovar measure --help` stays fast.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from samovar import plugins
from samovar.config import MeasureConfig, MeasurePrecision
from samovar.words import suggest

if TYPE_CHECKING:
    from samovar.measure.subject import Subject
    from samovar.runs.records import Record

MeasureFunction: TypeAlias = "Callable[[Subject, MeasureConfig, Path], Iterator[Record]]"
"""Yields the records of one measurement; its last argument is the folder for arrays."""

SUBJECT = (
    "checkpoint", "model", "mean", "std", "source", "root", "split", "images", "image_size",
    "batch_size", "loss", "seed",
)  # fmt: skip
"""Settings that every measurement uses: they choose the weights, the images and the loss."""
EXECUTION = ("check", "processes", "output", "name", "device", "threads", "workers")
"""Settings that say where and how a measurement runs; they change no number beyond rounding."""


@dataclass(frozen=True)
class Measurement:
    """One measurement: how it is called, what it does, which settings change its numbers."""

    name: str
    help: str
    """One line of plain English, for `samovar measure --help` and the reference."""
    function: str
    """`module:function`, imported when the measurement runs."""
    uses: tuple[str, ...] = ()
    """Fields of `MeasureConfig` that it reads, beside those of `SUBJECT` and `EXECUTION`."""
    split: Literal["train", "val"] = "train"
    """Split that is measured unless `--split` names another."""
    dtype: Literal["float32", "float64", "--dtype", "--precision"] = "float32"
    """Precision that its records state; `--dtype` and `--precision` stand for the values of these
    flags."""

    def __post_init__(self) -> None:
        known = {field.name for field in fields(MeasureConfig)}
        if unknown := sorted({*self.uses} - known):
            raise ValueError(
                f"measurement {self.name!r} uses {unknown[0]!r}, which MeasureConfig does not "
                f"have; {suggest(unknown[0], known)}"
            )


_DTYPES = {"fp32": "float32", "tf32": "float32", "bf16": "bfloat16", "fp16": "float16"}
_HESSIAN = "samovar.measure.hessian"
CATALOG: dict[str, Measurement] = {
    each.name: each
    for each in (
        Measurement(
            "hessian",
            "lambda_max of the loss's Hessian (--k more eigenvalues), with the Ritz residual",
            f"{_HESSIAN}:hessian",
            ("dtype", "k", "tol", "max_steps"),
            dtype="--dtype",
        ),
        Measurement(
            "blocks",
            "lambda_max of each block, as Table 3 of the paper, or of --params PATTERN ...",
            f"{_HESSIAN}:blocks",
            ("dtype", "tol", "max_steps", "params"),
            dtype="--dtype",
        ),
        Measurement(
            "trace",
            "trace of the Hessian, with standard error",
            f"{_HESSIAN}:trace",
            ("dtype", "probes"),
            dtype="--dtype",
        ),
        Measurement(
            "density",
            "density of the Hessian's eigenvalues",
            f"{_HESSIAN}:density",
            ("dtype", "probes", "density_steps"),
            dtype="--dtype",
        ),
        Measurement(
            "flatness",
            "average loss under weight noise",
            "samovar.measure.flatness:flatness",
            ("sigma", "draws", "noise"),
        ),
        Measurement(
            "sharpness",
            "rise of the loss in SAM's ball: one step, several, adaptive",
            "samovar.measure.sharpness:sharpness",
            ("rho", "ascent_steps"),
        ),
        Measurement(
            "ntk",
            "condition number of the neural tangent kernel",
            "samovar.measure.ntk:ntk_condition",
            ("ntk_batch", "ntk_batches", "ntk_output", "ntk_relu", "ntk_head"),
            dtype="float64",
        ),
        Measurement(
            "landscape",
            "loss and accuracy on a plane or line through the weights",
            "samovar.measure.landscape:landscape",
            (
                "dtype", "landscape", "other", "dims", "points", "span", "landscape_images",
                "tol", "max_steps", "precision",
            ),
            dtype="--dtype",
        ),
        Measurement(
            "activations",
            "active fraction, weight and activation norm of each block",
            "samovar.measure.activations:activations",
        ),
        Measurement(
            "attention",
            "attention maps and distances; token mixing of Mixers, channel means of ResNets",
            "samovar.measure.attention_pictures:attention",
            ("pictures",),
        ),
        Measurement(
            "predictions",
            "examples, worst mistakes first",
            "samovar.measure.predictions:predictions",
            ("pictures", "precision"),
            split="val",
            dtype="--precision",
        ),
        Measurement(
            "accuracy",
            "top-1, top-5, each class, calibration",
            "samovar.measure.accuracy:accuracy",
            ("precision",),
            split="val",
            dtype="--precision",
        ),
        Measurement(
            "robustness",
            "accuracy under 19 corruptions at 5 severities",
            "samovar.measure.robustness:robustness",
            ("corruptions", "severities", "corruption_images", "pictures", "precision"),
            split="val",
            dtype="--precision",
        ),
        Measurement(
            "attack",
            "accuracy under PGD",
            "samovar.measure.attack:attack",
            (
                "attack_eps", "attack_steps", "attack_norm", "attack_restarts", "attack_images",
                "pictures", "precision",
            ),
            split="val",
            dtype="--precision",
        ),
        Measurement(
            "testset",
            "accuracy on a published test set, --testset imagenet-r:PATH and others",
            "samovar.measure.testset:testset",
            ("testset", "corruptions", "severities", "precision"),
            split="val",
            dtype="--precision",
        ),
        Measurement(
            "knn",
            "accuracy of nearest neighbours among the features of training images",
            "samovar.measure.features:knn",
            ("probe_images", "knn_k", "knn_temperature"),
            split="val",
        ),
        Measurement(
            "linear",
            "accuracy of a linear classifier of features",
            "samovar.measure.features:linear",
            ("probe_images",),
            split="val",
        ),
    )
}  # fmt: skip
"""The measurements of this package by name, in the order in which help and reference list them."""


def names() -> tuple[str, ...]:
    """Return the names of all measurements: ours in order, then those of other packages, sorted."""
    return (*CATALOG, *(name for name in plugins.names("measurements") if name not in CATALOG))


def get(name: str) -> Measurement:
    """Return a measurement by name.

    Raises:
        ValueError: no such measurement, or another package adds something that is none."""
    if name in CATALOG:
        return CATALOG[name]
    if name not in plugins.names("measurements"):
        raise ValueError(f"cannot measure {name!r}; {suggest(name, names(), count=1)}")
    found = plugins.load("measurements", name)
    if not isinstance(found, Measurement):
        raise ValueError(
            f"{name!r} of samovar.measurements is a {type(found).__name__}; "
            "its entry point must name a samovar.measure.catalog.Measurement"
        )
    return found


def load(name: str) -> MeasureFunction:
    """Import and return the function of a measurement.

    Raises:
        ValueError: as `get`, or the function does not import."""
    module, _, attribute = get(name).function.partition(":")
    try:
        found: Any = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"measurement {name!r} does not import from {module}:{attribute}: {error}; "
            "correct its `function`"
        ) from error
    function: MeasureFunction = found
    return function


def default_split(name: str) -> Literal["train", "val"]:
    """Return the split that a measurement takes unless `--split` names another."""
    return get(name).split


def dtype(name: str, config: MeasureConfig) -> str:
    """Return the precision that the records of a measurement state."""
    stated = get(name).dtype
    if stated == "--precision":
        return _DTYPES[precision(name, config)]
    return config.dtype if stated == "--dtype" else stated


def precision(name: str, config: MeasureConfig) -> MeasurePrecision:
    """Return the precision in which a measurement computes what is in no type of its own."""
    return config.precision if "precision" in get(name).uses else "fp32"


def protocol(name: str, config: MeasureConfig) -> dict[str, str | bool]:
    """Return what the records of a measurement state about precision."""
    chosen = precision(name, config)
    stated: dict[str, str | bool] = {"dtype": dtype(name, config), "tf32": chosen == "tf32"}
    return stated | ({"precision": chosen} if "precision" in get(name).uses else {})


def request(name: str, config: MeasureConfig) -> str:
    """Return the settings that a measurement uses as text, such as `rho=0.05 ascent_steps=10`.

    Two requests of a measurement on the same subject are equal only if their numbers are."""
    values = {key: getattr(config, key) for key in (*get(name).uses, "batch_size")}
    # tuples are written as lists, as in the records of earlier versions
    return " ".join(f"{k}={list(v) if isinstance(v, tuple) else v}" for k, v in values.items())
