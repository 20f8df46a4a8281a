"""The folder of a comparison with made numbers, for tests of what reads one."""

import math
from dataclasses import replace
from pathlib import Path

from samovar import config as configs
from samovar.cli.compare import parse as parse_compare
from samovar.runs.records import RunDir
from samovar.studies.compare.cost import Cost
from samovar.studies.compare.recorded import records_of
from samovar.studies.compare.results import results

COSTS = {name: Cost(ratio, ratio - 0.1, ratio + 0.1, 0.01 * ratio, math.ceil(ratio)) for name, ratio in
         (("plain", 1.0), ("sam", 2.0), ("quarter", 1.25), ("late", 1.2), ("msam", 1.1))}  # fmt: skip
ACCURACY = {"plain": 70.0, "sam": 74.0, "quarter": 73.9, "late": 72.0, "msam": 69.0}
SPREAD = {"sam": (-1.1, 0.1, 1.0), "quarter": (-1.0, 0.0, 1.1)}
"""Of the seeds around the mean, where it is not that of plain."""


def make_comparison(folder: Path, budgets: tuple[str, ...] = ("steps",), **accuracy: list[float]) -> Path:
    """A folder as `samovar compare` writes it, of made numbers; three seeds."""
    seeds = {name: [mean + each for each in SPREAD.get(name, (-1.0, 0.1, 0.9))] for name, mean in ACCURACY.items()}
    found, _ = parse_compare(["vit-digits", "--output", str(folder), "--sam", ",".join(COSTS)])
    run = RunDir(folder)
    folder.mkdir(parents=True)
    run.write_json("config.json", configs.to_dict(replace(found.base, name=folder.name, recipe="compare vit-digits")))
    run.write_json("provenance.json", {"versions": {"python": "3.11"}, "device": "cpu"})
    for budget in budgets:
        values = {
            name: {
                "top1": accuracy.get(name, seeds[name]), "lambda_max": [1000 / mean] * 3,
                "corruption": [mean - 30] * 3,
            }
            for name, mean in ACCURACY.items()
        }  # fmt: skip
        steps = {name: round(1000 * (2 / COSTS[name].ratio if budget == "time" else 1)) for name in values}
        steps["sam"] = 1000
        run.append(*records_of(results(budget, COSTS, steps, values, 3), found))
    return folder
