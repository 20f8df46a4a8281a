"""Say why SAM does not help: rules on the records of finished runs, each with its threshold.

The rules read what runs wrote and train nothing. The page docs/does-sam-help.md explains them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean

from samovar import config as configs
from samovar.studies.intervals import LEVEL, mean_interval
from samovar.studies.tune.finished import Pair, pair_of, read_runs

UNDERFITTED = 0.65
"""Training loss, in nats, above which a plain run is called underfitted. The paper's plain networks
end between 0.45 and 0.65."""

LOSS_RISE = 0.2
"""Rise of the training loss over plain training, in nats, that calls a rho too large."""

FEW_CLIMBS = 0.05
"""Share of the steps with a climb below which SAM has hardly started."""

FEW_EPOCHS = 30.0
"""Passes over the training images below which SAM has had little time. The paper takes 300."""

LARGE_GROUP = 128
"""Images that share a climb above which m is called large. The paper takes 32."""

NOT_FLATTER = 0.9
"""Ratio of lambda_max, SAM to plain, from which on SAM has not found flatter weights."""


# --- rules


def underfitted(pair: Pair) -> str:
    """Return a paragraph where plain training has not fitted its images."""
    loss, _ = pair.losses
    if not loss > UNDERFITTED:
        return ""
    return (
        f"Underfitted: plain training ends at a training loss of {loss:.2f} nats, above "
        f"{UNDERFITTED:g}. SAM keeps a network from memorising, and this one has not memorised. "
        "Train longer, lower dropout and augmentation, or take a larger network."
    )


def rho_too_large(pair: Pair) -> str:
    """Return a paragraph where SAM raises the training loss and loses accuracy in every seed."""
    before, after = pair.losses
    if not (after - before > LOSS_RISE and max(pair.gains) < 0):
        return ""
    return (
        f"rho too large: at rho {pair.sam[0].rho:g} the training loss is {after:.2f} nats, "
        f"{after - before:.2f} above plain training (threshold {LOSS_RISE:g}), and every seed "
        "loses accuracy. Try smaller radii: divide rho by 2 and by 4."
    )


def never_started(pair: Pair) -> str:
    """Return a paragraph where hardly a step climbs."""
    share = min(facts.climbs for facts in pair.sam)
    if share >= FEW_CLIMBS:
        return ""
    sam = pair.sam[0].config.sam
    return (
        f"SAM never started: {100 * share:.1f} % of the steps climb, below {100 * FEW_CLIMBS:g} %. "
        f"The settings are --sam.start {sam.start}, --sam.end {sam.end:g}, --sam.every "
        f"{sam.every}. Start earlier or climb more often."
    )


def too_few_epochs(pair: Pair) -> str:
    """Return a paragraph where the runs are short."""
    epochs = pair.sam[0].epochs
    if not epochs < FEW_EPOCHS:
        return ""
    return (
        f"Too few epochs: the compared runs take {epochs:.1f} passes over the training images, "
        f"below {FEW_EPOCHS:g}; the paper takes 300. Short runs favour plain training and a small "
        "rho. Train longer; samovar tune --full does not shorten its runs."
    )


def large_group(pair: Pair) -> str:
    """Return a paragraph where many images share a climb."""
    group = pair.sam[0].group
    if group <= LARGE_GROUP:
        return ""
    return (
        f"m is large: {group} images share a climb, above {LARGE_GROUP}; the paper takes 32. "
        "A climb for many images regularises less. Try --sam.m 32, at the same cost in passes."
    )


def not_flatter(pair: Pair) -> str:
    """Return a paragraph where SAM's weights are not flatter than those of plain training."""
    before, after = (fmean(r.lambda_max for r in runs) for runs in (pair.plain, pair.sam))
    if not (before > 0 and after >= NOT_FLATTER * before):
        return ""
    return (
        f"Not flatter: lambda_max is {after:.3g} with SAM and {before:.3g} without, a ratio of "
        f"{after / before:.2f} (threshold {NOT_FLATTER:g}). SAM had little effect on the weights. "
        "Try larger radii: multiply rho by 2 and by 4, or lower m."
    )


RULES: tuple[Callable[[Pair], str], ...] = (
    never_started,
    underfitted,
    rho_too_large,
    too_few_epochs,
    large_group,
    not_flatter,
)
"""Rules in the order of their paragraphs."""


# --- the verdict


def verdict(folders: Sequence[Path]) -> list[str]:
    """Return paragraphs: the gain, each cause found, and what is not measured.

    Args:
        folders: folders of searches and of runs.

    Raises:
        ValueError: as `read_runs`."""
    found = read_runs(folders)
    lost = sorted({f"{facts.rho:g}" for facts in found if not math.isfinite(facts.accuracy)})
    said = [f"Not finite: runs diverged at rho {', '.join(lost)}."] if lost else []
    pair = pair_of(found)
    if pair is None:
        missing = "without SAM" if all(facts.rho for facts in found) else "with SAM"
        if any(facts.rho for facts in found) and not all(facts.rho for facts in found):
            missing = "of the same number of steps and the same seed, with SAM and without,"
        return [
            *said,
            f"Gain unknown: there are no finite runs {missing} to compare. "
            "samovar tune RECIPE --rho 0,0.05,0.1 --full trains both.",
        ]
    causes = [text for rule in RULES if (text := rule(pair))]
    none = "No cause found: none of the rules fires on these runs."
    return [*said, gain(pair), *(causes or [none]), *unmeasured(pair)]


def gain(pair: Pair) -> str:
    """Return SAM's gain by seed, its mean, its interval, and its price."""
    gains, sam = pair.gains, pair.sam[0]
    each = ", ".join(f"{value:+.2f}" for value in gains)
    said = f"Gain at rho {sam.rho:g}, {sam.steps} steps, by seed: {each} points"
    if len(gains) > 1:
        low, high = mean_interval(gains)
        side = "above 0" if low > 0 else "below 0" if high < 0 else "around 0, so undecided"
        level = f"{100 * (1 - 2 * LEVEL):g} %"
        said += f"; mean {fmean(gains):+.2f}, {level} interval {low:+.2f} to {high:+.2f}, {side}."
    else:
        said += ". One seed decides nothing; give --seeds 3 or more."
    times = configs.passes(sam.config) / configs.passes(pair.plain[0].config)
    return f"{said} These runs are of equal steps, and SAM takes {times:.2f} times the gradients."


def unmeasured(pair: Pair) -> list[str]:
    """Return a paragraph for each number the rules lack, with the command that measures it."""
    said = []
    runs = (*pair.plain, *pair.sam)
    if not all(map(math.isfinite, pair.losses)):
        said.append(
            "Training loss: the logged one does not tell whether the images are memorised, as "
            "labels are mixed or smoothed, or none is logged. Train both with samovar train, then "
            "samovar measure RUN flatness, then samovar tune --verdict RUN RUN."
        )
    if not all(math.isfinite(facts.lambda_max) for facts in runs):
        said.append(
            "lambda_max: not measured in all of these runs. Train both with samovar train, then "
            "samovar measure RUN hessian, then samovar tune --verdict RUN RUN. Trials of a search "
            "keep no weights."
        )
    if not math.isfinite(pair.sam[0].epochs):
        said.append(
            "Epochs: not known, as the number of training images is not recorded: the runs were "
            "given --steps, or their search has not finished. The same samovar tune goes on."
        )
    recipe = pair.sam[0].config.recipe
    said.append(
        "Equal time: a comparison of equal steps cannot tell whether plain training would win "
        f"with SAM's time. samovar compare {recipe} --budget time measures it."
    )
    return said
