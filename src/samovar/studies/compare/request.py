"""What a comparison is asked for: its recipe, relatives, schedules and budgets.

Nothing in this file needs torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from samovar import config as configs
from samovar import recipes
from samovar.config import Config, MeasureConfig
from samovar.config.encoded import dashed
from samovar.config.sections import Schedule
from samovar.recipes.relatives import RELATIVES, related, relative
from samovar.studies.jobs import check_measure
from samovar.words import suggest

Budget = Literal["steps", "time"]

BUDGETS: dict[str, tuple[Budget, ...]] = {
    "steps": ("steps",),
    "time": ("time",),
    "both": ("steps", "time"),
}
"""Budgets by the word that `--budget` takes."""

YARDSTICKS = ("plain", "sam")
"""Relatives that are in every comparison: SAM's gain is the difference between them."""

RELATIVES_COMPARED = (
    "plain", "sam", "quarter", "every5", "looksam", "late", "msam", "sam-on", "gsam", "fsam", "wsam"
)  # fmt: skip
"""Relatives compared without `--sam`."""

COMPARED = ("top1", "lambda_max", "corruption")
"""Names of the columns of `samovar.studies.columns` that are compared."""

# samples of images, so that measuring takes little time beside training
MEASURE = MeasureConfig(
    checkpoint="last", threads=1, workers=0, processes=1, images=1000, corruption_images=300
)

COMPARISON_FILE = "compare.json"
"""File that distinguishes the folder of a comparison from a run's."""

CHOSEN = ("seed", "name", "output")
"""Settings that a comparison chooses itself."""

ASIDE = (
    "recipe", "name", "output", "seed", "run.threads", "run.log_every", "run.keep", "run.loggers",
    "data.root", "data.workers", "data.loader",
)  # fmt: skip
"""Settings that may differ when a comparison goes on."""


@dataclass(frozen=True)
class CompareRequest:
    """A `samovar compare` command line."""

    recipe: str
    base: Config
    """Trains with SAM; the relatives are changes of it."""
    relatives: tuple[str, ...]
    """Names of `RELATIVES`, some joined by + with others or with settings, some with a schedule
    after @; plain and sam first."""
    seeds: int
    output: Path
    budgets: tuple[Budget, ...] = ("steps",)
    measure: MeasureConfig = MEASURE
    jobs: int = 1


def with_sam(recipe: str, config: Config) -> Config:
    """Return the settings of a recipe, with its twin's SAM where it has none."""
    twin = f"{recipe}-sam"
    if config.sam.rho or twin not in recipes.RECIPES:
        return config
    return replace(config, sam=recipes.get(twin).config().sam)


def relatives_of(text: str | None) -> tuple[str, ...]:
    """Parse a comma-separated list of relatives; the yardsticks come first.

    Raises:
        ValueError: the list is empty."""
    names = RELATIVES_COMPARED if text is None else tuple(filter(None, text.split(",")))
    if not names:
        raise ValueError(
            f"--sam {text!r} names nothing; give some of {', '.join(RELATIVES)}, "
            "with commas between them"
        )
    return tuple(dict.fromkeys((*YARDSTICKS, *names)))


def under_schedules(base: Config, names: Sequence[str], schedules: str | None) -> tuple[str, ...]:
    """Return each relative under each schedule of a comma-separated list that it fits.

    The recipe's own schedule needs no name. The yardsticks come first under each.

    Args:
        names: relatives without a schedule.
        schedules: None leaves the names as they are.

    Raises:
        ValueError: the list is empty or names an unknown schedule."""
    if schedules is None:
        return tuple(names)
    asked = list(filter(None, schedules.split(",")))
    if not asked:
        raise ValueError(f"--schedules {schedules!r} names nothing; give some, such as cosine,wsd")
    for each in asked:
        if each not in get_args(Schedule):
            raise ValueError(f"--schedules {each} is unknown; {suggest(each, get_args(Schedule))}")
    own = base.optim.schedule
    ends = ["" if each == own else f"@{each}" for each in asked]
    found = dict.fromkeys(YARDSTICKS)
    for name in dict.fromkeys((*YARDSTICKS, *names)):
        # a name with a schedule of its own keeps it
        fits = [end for end in ends if "@" not in name and _fits(base, name + end)]
        # what fits no schedule stays, and is refused with the reason
        found |= dict.fromkeys(name + end for end in fits or [""])
    return tuple(found)


def _fits(base: Config, name: str) -> bool:
    """Return whether a relative can train under its schedule; `decay` only can under `wsd`."""
    try:
        related(base, name)
    except ValueError:
        return False
    return True


def check(request: CompareRequest) -> None:
    """Check that the relatives can be compared.

    Raises:
        ValueError: a recipe without a radius or with a relative of SAM, relatives that do not fit
            it, a folder of other runs."""
    base = request.base
    if not base.sam.rho:
        raise ValueError(
            f"{request.recipe} with --sam.rho 0 has no SAM to compare; "
            "give a radius, or a recipe with SAM"
        )
    # relatives are defined as changes of SAM, not of each other
    if words := configs.sam_words(base.sam):
        raise ValueError(
            f"{request.recipe} with {words} trains with a relative of SAM already; "
            "give the recipe with SAM, and name relatives by --sam"
        )
    configs.validate(base)
    for name in request.relatives:
        config_of(request, name)
    check_measure(request.measure)
    _check_place(request)


def config_of(request: CompareRequest, name: str) -> Config:
    """Return the settings of a relative.

    Raises:
        ValueError: an unknown name, or one that does not fit the recipe."""
    where = f"--sam {name}"
    try:
        relative(name)
        where += f" with {request.recipe}"  # the name is known, so what fails is the combination
        return related(request.base, name)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def passes_of(request: CompareRequest) -> dict[str, float]:
    """Return the gradients of each image that a step of each relative takes."""
    return {name: configs.passes(config_of(request, name)) for name in request.relatives}


def _check_place(request: CompareRequest) -> None:
    """Refuse an output that is a file, a run, or a comparison of other settings."""
    output, saved = request.output, request.output / "config.json"
    if output.exists() and not output.is_dir():
        raise ValueError(f"--output {output} is a file; give a folder")
    if not saved.is_file():
        return
    if not (output / COMPARISON_FILE).is_file():
        raise ValueError(f"{output} is a run, not a comparison; give another --output")
    for name, (before, now) in configs.differences(configs.load(saved), request.base).items():
        if name not in ASIDE:
            raise ValueError(
                f"{output} compares runs with --{dashed(name)} {before}, not {now}; "
                "give another --output"
            )
