"""A run of 60 steps on digits, for tests of what is measured on one."""

from dataclasses import replace
from pathlib import Path

import torch

from samovar import config as configs
from samovar import recipes
from samovar.config import RunConfig
from samovar.runs.records import RunDir
from samovar.runtime import Runtime
from samovar.train.fit import fit, prepare

CPU = Runtime(torch.device("cpu"), torch.float32)


def short_run(output: Path) -> RunDir:
    """Train it below `output`."""
    config = replace(recipes.get("vit-digits").config(), steps=60, run=RunConfig(eval_every=60, threads=1))
    run = RunDir.create(output, "r")
    configs.save(config, run.config_path)
    list(fit(config, run, CPU, *prepare(config, CPU)))
    return run
