"""What a comparison takes: the relatives, their runs, what is measured of each. Nothing in this
file needs torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from samovar import config as configs
from samovar import recipes
from samovar.config import Config, MeasureConfig
from samovar.recipes.relatives import RELATIVES, related, relative
from samovar.studies.compare.cost import Cost, steps_for
from samovar.studies.reproduce.plan import Job, Measured, check_measure

Budget = Literal["steps", "time"]

BUDGETS: dict[str, tuple[Budget, ...]] = {
    "steps": ("steps",),
    "time": ("time",),
    "both": ("steps", "time"),
}
"""By the word that `--budget` takes."""

YARDSTICKS = ("plain", "sam")
"""Relatives that are in every comparison: what is gained is between them."""

RELATIVES_COMPARED = (
    "plain", "sam", "quarter", "every5", "looksam", "late", "msam", "sam-on", "gsam", "fsam", "wsam"
)  # fmt: skip
"""Where `--sam` names none."""

MEASURE = MeasureConfig(
    checkpoint="last", threads=1, workers=0, processes=1, images=1000, corruption_images=300
)

MEASUREMENTS = ("hessian", "robustness")

MARK = "compare.json"
"""The file that tells the folder of a comparison from a run's."""

CHOSEN = ("seed", "name", "output")
"""Settings that a comparison chooses itself."""

ASIDE = (
    "recipe", "name", "output", "seed", "run.threads", "run.log_every", "run.keep", "run.loggers", "data.root",
    "data.workers", "data.loader",
)  # fmt: skip
"""Settings in which a comparison may differ from when it was begun."""


@dataclass(frozen=True)
class Asked:
    """What a command line asks for."""

    recipe: str
    base: Config
    """Trains with SAM; the relatives are changes of it."""
    relatives: tuple[str, ...]
    """Names of `RELATIVES`, some joined by + with others or with settings; plain and sam come
    first."""
    seeds: int
    output: Path
    budgets: tuple[Budget, ...] = ("steps",)
    measure: MeasureConfig = MEASURE
    jobs: int = 1


@dataclass(frozen=True)
class Run(Job):
    """A run of a relative."""

    relative: str
    seed: int
    budget: Budget

    @property
    def title(self) -> str:
        """The relative, the seed, and the budget where that is not the recipe's steps."""
        return f"{self.relative}, seed {self.seed}" + (
            ", SAM's time" if self.budget == "time" else ""
        )


def with_sam(recipe: str, config: Config) -> Config:
    """The settings of a recipe, with SAM as its twin has it where it has none."""
    twin = f"{recipe}-sam"
    if config.sam.rho or twin not in recipes.RECIPES:
        return config
    return replace(config, sam=recipes.get(twin).config().sam)


def relatives_of(text: str | None) -> tuple[str, ...]:
    """The relatives that a list with commas names, behind the yardsticks.

    Raises:
        ValueError: it names none."""
    names = RELATIVES_COMPARED if text is None else tuple(filter(None, text.split(",")))
    if not names:
        raise ValueError(
            f"--sam {text!r} names nothing; give some of {', '.join(RELATIVES)}, with commas between them"
        )
    return tuple(dict.fromkeys((*YARDSTICKS, *names)))


def check(asked: Asked) -> None:
    """Refuse what cannot be compared.

    Raises:
        ValueError: a recipe without a radius or of a relative, relatives that do not fit it, a
            folder of other runs."""
    base = asked.base
    if not base.sam.rho:
        raise ValueError(
            f"{asked.recipe} with --sam.rho 0 has no SAM to compare; give a radius, or a recipe with SAM"
        )
    if words := configs.sam_words(base.sam):
        raise ValueError(
            f"{asked.recipe} with {words} is a relative of SAM itself; give SAM's recipe, and name it by --sam"
        )
    configs.validate(base)
    for name in asked.relatives:
        config_of(asked, name)
    check_measure(asked.measure)
    _check_place(asked)


def config_of(asked: Asked, name: str) -> Config:
    """The settings of a relative.

    Raises:
        ValueError: an unknown name; one that means nothing with this recipe, which it names."""
    where = f"--sam {name}"
    try:
        relative(name)
        where += f" with {asked.recipe}"
        return related(asked.base, name)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _check_place(asked: Asked) -> None:
    """Refuse an output that is a file, a run, or a comparison of other settings."""
    saved = asked.output / "config.json"
    if asked.output.exists() and not asked.output.is_dir():
        raise ValueError(f"--output {asked.output} is a file; give a folder")
    if not saved.is_file():
        return
    if not (asked.output / MARK).is_file():
        raise ValueError(f"{asked.output} is a run, not a comparison; give another --output")
    for name, (before, now) in configs.differences(configs.load(saved), asked.base).items():
        if name not in ASIDE:
            flag = "--" + name.replace("_", "-")
            raise ValueError(
                f"{asked.output} compares runs with {flag} {before}, not {now}; give another --output"
            )


# --- runs
# ------------------------------------------------------------------------------------------------------------


def run_of(
    asked: Asked, name: str, seed: int, budget: Budget, costs: Mapping[str, Cost], total: int
) -> Run:
    """The run of a relative; SAM's is the same under every budget, for its time is what the others
    get.

    Args:
        total: steps of the recipe."""
    budget = "steps" if name == "sam" else budget
    config = config_of(asked, name)
    if budget == "time":
        config = replace(config, steps=steps_for(total, costs[name], costs["sam"]))
    parts = [
        asked.recipe.removesuffix("-sam"),
        name,
        "time" if budget == "time" else "",
        f"seed{seed}",
    ]
    folder = "-".join(part for part in parts if part)
    config = replace(config, seed=seed, output=asked.output, name=folder)
    return Run(config, measured(asked), name, seed, budget)


def measured(asked: Asked) -> tuple[Measured, ...]:
    """What is measured of every run; corrupted images are drawn from all that are held out."""
    base = replace(asked.measure, device=asked.base.run.device)
    return tuple(
        Measured(name, replace(base, images=0) if name == "robustness" else base)
        for name in MEASUREMENTS
    )


def runs_of(asked: Asked, costs: Mapping[str, Cost], total: int) -> list[Run]:
    """All runs, each once. Seeds take turns, so that what there is when one stops is of all
    relatives."""
    runs = [
        run_of(asked, name, seed, budget, costs, total)
        for seed in range(asked.seeds)
        for budget in asked.budgets
        for name in asked.relatives
    ]
    return list({run.folder: run for run in runs}.values())
