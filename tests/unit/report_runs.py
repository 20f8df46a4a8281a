"""Run folders with every record a report can show, made of formulas: no training, no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from samovar import config as configs
from samovar import recipes
from samovar.report.contents import CHAPTERS
from samovar.report.read import RunData, read_runs
from samovar.report.run_names import named
from samovar.runs.records import Record, RunDir

HOSTILE = (
    "<script>alert(1)</script>", "</script><b>", "<!-- comment", "a\u2028b\u2029c", "'quote\"", "%{x} $\\frac{1}$",
    "日本語 ñ 🦊", "=1+1", "\u202eright to left", "long " * 200,
)  # fmt: skip

BEST, LAST = 160, 200  # steps

SECTIONS = {
    name: entry.build for name, entry in CHAPTERS.items() if name not in ("reproduction", "comparison", "tuning")
}
"""The chapters of a run that is not a study, a comparison or a search."""


@dataclass(frozen=True)
class Plan:
    """What a made-up run is like."""

    folder: Path
    recipe: str = "vit-digits"
    seed: int = 0
    family: str = "vit"
    flat: float = 1.0
    """What curvature is divided by."""
    without: tuple[str, ...] = ()
    """Measurements left out; `training` is one."""
    classes: tuple[str, ...] = tuple("0123456789")
    side: int = 8
    points: int = 9
    log_lines: int = 20
    config: dict[str, Any] = field(default_factory=dict)
    """Settings other than the recipe's, nested as in config.json."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings of all measurements."""

    @property
    def images(self) -> Any:
        """The same in every run: uint8 [8, side, side, 3]."""
        return np.random.default_rng(1).integers(0, 256, (8, self.side, self.side, 3), dtype=np.uint8)

    def save(self, name: str, **arrays: Any) -> str:
        """Write arrays, return their path as records have it."""
        np.savez(self.folder / "arrays" / f"{name}.npz", **arrays)
        return f"arrays/{name}.npz"


def make_run(folder: Path, **options: Any) -> Path:
    """A run folder as `Plan` describes it."""
    plan = Plan(folder, **options)
    run = RunDir(folder)
    run.checkpoints.mkdir(parents=True)
    run.arrays.mkdir()
    values = configs.to_dict(replace(recipes.get(plan.recipe).config(), seed=plan.seed))
    run.write_json("config.json", _merged(values, plan.config))
    if "training" not in plan.without:
        _train(run, plan)
    for name, make in MAKERS.items():
        if name not in plan.without:
            for record in make(plan):
                run.append(record if name == "watch" else _measured(record, name, plan))
    return folder


def load(*folders: Path) -> list[RunData]:
    """The runs as the report's functions take them."""
    return named(read_runs(folders))


def _merged(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    return values | {k: _merged(values[k], v) if isinstance(v, dict) else v for k, v in changes.items()}


def _measured(record: Record, measurement: str, plan: Plan) -> Record:
    settings = {
        "model": "vit-digits", "weights": f"step-{BEST:08}", "source": "digits", "split": "train", "images": 269,
        "augmentation": "none", "mode": "eval", "loss": "softmax", "dtype": "float32", "seed": 0,
        "measurement": measurement, "request": "k=1",
    }  # fmt: skip
    where = {"split": "train", "step": BEST} | record.where
    cost = {"seconds": 1.5}
    return replace(record, settings=settings | record.settings | plan.settings, where=where, cost=cost)


def _train(run: RunDir, plan: Plan) -> None:
    versions = {"python": "3.11", "samovar": "0.1.0"}
    command = ["samovar", "train", plan.recipe]
    run.write_json(
        "provenance.json",
        {"versions": versions, "device": "cpu", "dtype": "float32", "command": command, "git": "abc"},
    )
    (run.checkpoints / "best.json").write_text(f'{{"step": {BEST}}}')
    rng = np.random.default_rng(plan.seed)
    for step in np.linspace(LAST / plan.log_lines, LAST, plan.log_lines).round().astype(int).tolist():
        where = {"step": step}
        run.append(
            Record("train/loss", float(2.3 * np.exp(-3 * step / LAST) + 0.02 * rng.random()), "nats", where=where)
        )
        run.append(Record("train/lr", 1e-3 * (1 - step / LAST), where=where))
        run.append(Record("train/grad_norm", float(1 + rng.random()), where=where))
        run.append(Record("train/images_per_second", 1000.0, "images/s", where=where))
    for step in (40, 80, 120, BEST, LAST):
        accuracy = float(0.9 - 0.3 * abs(BEST - step) / LAST + 0.01 * rng.random())
        where = {"split": "val", "step": step}
        run.append(Record("val/loss", 1 - accuracy, "nats", n=500, where=where, settings={"loss": "softmax"}))
        run.append(Record("val/accuracy", accuracy, "1", 0.01, 500, where, {"loss": "softmax"}))


def _hessian(plan: Plan) -> list[Record]:
    return [Record("hessian/lambda_max", (40 + plan.seed) / plan.flat, residual=0.02, source="paper")]


def _flatness(plan: Plan) -> list[Record]:
    settings = {"sigma": 0.05, "noise": "isotropic"}
    return [
        Record("flatness/average_flatness", 2.5 / plan.flat, "nats", 0.1, 10, settings=settings),
        Record("flatness/clean_loss", 0.02, "nats", n=269),
    ]


def _blocks(plan: Plan) -> list[Record]:
    values = {"embedding": 3.0, "msa": 10.0, "mlp": 17.0, "block1": 24.0, "whole": 40.0}
    return [
        Record("hessian/block_lambda_max", value / plan.flat, residual=0.01, where={"block": name},
               converged=name != "mlp")
        for name, value in values.items()
    ]  # fmt: skip


def _density(plan: Plan) -> list[Record]:
    scaled = np.linspace(-3, 45, 100)
    density = (np.exp(-(scaled**2)) + 1e-6 * np.exp(-((scaled - 40) ** 2))) * plan.flat
    path = plan.save("density", grid=scaled / plan.flat, density=density, stderr=density / 10)
    return [Record("hessian/mean_eigenvalue", 0.001, stderr=1e-4, n=8, arrays=path)]


def _landscape(plan: Plan) -> list[Record]:
    axis = np.linspace(-1, 1, plan.points)
    height = 14 / plan.flat * (axis[:, None] ** 2 + 0.6 * axis[None] ** 2)
    path = plan.save("landscape", x=axis, y=axis, loss=0.02 + height, accuracy=np.exp(-height), center_loss=0.02,
                     center_accuracy=0.99)  # fmt: skip
    settings = {"kind": "random", "dims": 2, "points": plan.points, "span": 1.0, "normalization": "filter"}
    return [Record("landscape/height", float(height.max()), "nats", n=height.size, settings=settings, arrays=path)]


def _activations(plan: Plan) -> list[Record]:
    layers = {"vit": ("mlp",), "mixer": ("token", "channel"), "resnet": ("relu",)}[plan.family]
    found = [
        Record("inside/active_fraction", 0.4 / (k + 1), "1", n=269,
               where={"block": f"blocks.{k}", "layer": layer, "index": k})
        for layer in layers
        for k in range(4)
    ]  # fmt: skip
    norms = ("inside/activation_norm", "inside/weight_norm")
    return found + [
        Record(name, 10.0 + k, where={"block": f"blocks.{k}", "index": k}) for name in norms for k in range(4)
    ]


def _attention(plan: Plan) -> list[Record]:
    rng = np.random.default_rng(plan.seed)
    n, k = 8, len(plan.classes)
    predicted = (np.arange(n) + (np.arange(n) == 2)) % k  # the third is taken for the fourth
    arrays: dict[str, Any] = {"images": plan.images, "labels": np.arange(n) % k, "predicted": predicted}
    if plan.family == "vit":
        arrays |= {"kind": "attention", "maps": rng.random((n, 4, 4, 4)), "heads": rng.random((n, 3, 4, 4)),
                   "rollout": rng.random((n, 4, 4)), "distance": 2 + rng.random((4, 3))}  # fmt: skip
        path = plan.save("attention", **arrays)
        return [
            Record(
                "attention/distance", 3.0 + b, "pixels", n=n, where={"block": f"blocks.{b}", "index": b}, arrays=path
            )
            for b in range(4)
        ]
    if plan.family == "mixer":
        path = plan.save("attention", **arrays, kind="token-mixing", maps=rng.random((1, 16, 4, 4)) - 0.5)
        return [Record("attention/token_mixing", 0.5, "pixels", n=16, arrays=path)]
    stages = {f"maps{s}": rng.random((n, 2 ** (3 - s), 2 ** (3 - s))) for s in range(4)}
    path = plan.save("attention", **arrays, kind="channel-mean", **stages)
    return [Record("attention/channel_mean", 0.5, n=n, arrays=path)]


def _predictions(plan: Plan) -> list[Record]:
    n, k = 8, len(plan.classes)
    labels, worst = np.arange(n) % k, np.arange(n) < 3
    sure = np.linspace(0.99, 0.5, n)
    path = plan.save(
        "predictions", images=plan.images, labels=labels, predicted=np.where(worst, (labels + 1) % k, labels),
        probability=sure, probability_true=np.where(worst, 0.004, sure), loss=np.where(worst, np.arange(3.0, 11), 0.1),
        worst=worst, classes=np.array(plan.classes),
    )  # fmt: skip
    return [Record("predictions/accuracy", 0.9, "1", 0.01, 500, arrays=path)]


def _accuracy(plan: Plan) -> list[Record]:
    edges = np.linspace(0, 1, 6)
    counts = np.array([0, 10, 40, 150, 300])
    shown = np.where(counts > 0, (edges[:-1] + edges[1:]) / 2, np.nan)
    path = plan.save("calibration", edges=edges, confidence=shown, accuracy=shown**2, counts=counts)
    of = {"split": "val"}
    k = len(plan.classes)
    labels = np.arange(500) % k
    # 50 mistakes, 25 of them on images that every run misreads
    wrong = np.zeros(500, bool)
    wrong[:25] = wrong[100 + 25 * plan.seed : 125 + 25 * plan.seed] = True
    predicted = np.where(wrong, (labels + 1) % k, labels)
    sure = np.full(500, 0.8, np.float32)
    kept = plan.save("outcomes", labels=labels, predicted=predicted, probability=sure,
                     probability_true=np.where(wrong, 0.1, sure), classes=np.array(plan.classes))  # fmt: skip
    return [
        Record("accuracy/top1", 0.9, "1", 0.01, 500, where=of, interval=(0.87, 0.92), arrays=kept),
        Record("accuracy/ece", 0.1, "1", n=500, where=of, arrays=path),
    ]


def _robustness(plan: Plan) -> list[Record]:
    names = ("gaussian_noise", "fog", "contrast")
    path = plan.save(
        "corrupted", images=np.stack([plan.images[:2]] * 4), labels=np.array([0, 1]) % len(plan.classes),
        predicted=np.array([[0, 1], [0, 0], [1, 1], [0, 1]]) % len(plan.classes), probability=np.full((4, 2), 0.8),
        names=np.array(["clean", *names]), severity=np.array(3), classes=np.array(plan.classes),
        outcomes=np.arange(500)[None] < np.full((15, 1), 350), outcome_labels=np.arange(500) % len(plan.classes),
        outcome_clean=np.arange(500) < 450, outcome_corruptions=np.repeat(names, 5),
        outcome_severities=np.tile(np.arange(1, 6), 3),
    )  # fmt: skip
    mean = Record("robustness/mean_corruption_accuracy", 0.7, "1", 0.02, 500, where={"split": "val"}, arrays=path)
    return [mean] + [
        Record(
            "robustness/corruption_accuracy", 0.95 - 0.1 * severity / plan.flat**0.1, "1", 0.02, 500,
            where={"split": "val", "corruption": name, "severity": severity},
        )
        for name in names
        for severity in (1, 2, 3, 4, 5)
    ]  # fmt: skip


def _attack(plan: Plan) -> list[Record]:
    path = plan.save(
        "attacked", images=np.stack([plan.images[:3]] * 2), labels=np.arange(3) % len(plan.classes),
        predicted=np.array([[0, 1, 2], [0, 2, 2]]) % len(plan.classes), probability=np.full((2, 3), 0.6),
        names=np.array(["clean", "PGD"]), classes=np.array(plan.classes),
    )  # fmt: skip
    made = []
    for factor in (0.0, 0.5, 1.0, 2.0):
        name = "robustness/pgd_accuracy" if factor == 1 else "robustness/pgd_curve"
        where = {"split": "val", "eps": 2 / 255 * factor}
        settings = {"norm": "inf"}
        made.append(
            Record(name, 0.9 - 0.3 * factor, "1", 0.02, 500, where=where, settings=settings,
                   arrays=path if factor == 1 else "")
        )  # fmt: skip
    return made


def _watch(plan: Plan) -> list[Record]:
    found = []
    for step in range(20, LAST + 1, 20):
        where = {"step": step}
        value = 5 + 0.2 * step / plan.flat
        found += [
            Record("watch/lambda_max", value, where=where, residual=0.1, converged=step != 100),
            Record("watch/grad_norm", 1.0, where=where),
            Record("watch/sam_sharpness", 0.05, "nats", where=where),
            Record("watch/stability_threshold", 2000.0 if step < LAST else np.inf, where=where),
        ]
    return found


MAKERS: dict[str, Callable[[Plan], list[Record]]] = {
    "watch": _watch,
    "hessian": _hessian,
    "flatness": _flatness,
    "blocks": _blocks,
    "density": _density,
    "landscape": _landscape,
    "activations": _activations,
    "attention": _attention,
    "predictions": _predictions,
    "accuracy": _accuracy,
    "robustness": _robustness,
    "attack": _attack,
}

MEASUREMENTS = tuple(name for name in MAKERS if name != "watch")

NOTHING = ("training", *MAKERS)
"""For `without`: a folder with settings alone."""
