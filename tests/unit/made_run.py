"""A run folder with weights that were drawn and not trained, for tests of what is done with a run."""

from pathlib import Path

import torch

from samovar import config as configs
from samovar.config import Config
from samovar.models.factory import Classifier, create
from samovar.runs import checkpoint
from samovar.runs.records import RunDir


def drawn(config: Config, *, classes: int, channels: int, seed: int = 0) -> Classifier:
    """Its network with a head that is not 0, in eval mode."""
    torch.manual_seed(seed)
    model = create(config.model, num_classes=classes, image_size=config.data.image_size, channels=channels).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)  # logits far from 0, and no two alike
    return model


def made_run(folder: Path, config: Config, *, classes: int, channels: int, steps: tuple[int, ...] = (3,)) -> RunDir:
    """A run of this config with a checkpoint for each step, drawn by the step."""
    run = RunDir.create(folder, "made")
    configs.save(config, run.config_path)
    for step in steps:
        model = drawn(config, classes=classes, channels=channels, seed=step)
        checkpoint.save(run.checkpoints, checkpoint.Checkpoint(step, model.body.state_dict(), {}, {}), "made")
    return run
