"""The paper's other training regimes, each a function from a config to a config."""

from __future__ import annotations

from dataclasses import replace

from samovar.config import AdversarialConfig, Config, OptimConfig

FRACTIONS = {"half": 2, "quarter": 4, "tenth": 10}
"""Words in the names of recipes for the subsets of Table 4: each takes 1 / N of the images."""


def strong(config: Config) -> Config:
    """Return a config with strong augmentation: RandAugment, 2 layers of magnitude 15, mixup 0.5.

    ViT and Mixer also take lr 1e-3, weight decay 0.1 and stochastic depth 0.1.

    Source: section 5.2 and appendix E.3 of arXiv:2106.01548."""
    data = replace(config.data, randaugment_layers=2, randaugment_magnitude=15, mixup=0.5)
    if config.model.name.startswith("resnet"):
        return replace(config, data=data)
    optim = replace(config.optim, lr=1e-3, weight_decay=0.1)
    return replace(config, data=data, optim=optim, model=replace(config.model, drop_path=0.1))


def subset(config: Config, parts: int) -> Config:
    """Return a config that trains on 1 / `parts` of the images in about the same number of steps.

    The batch shrinks with the images, as in the paper: to a half and a quarter, and for a tenth of
    the images to an eighth. The learning rate and all other settings stay.

    Source: appendix E.2 of arXiv:2106.01548."""
    batch = config.data.batch_size // min(parts, 8)
    data = replace(config.data, fraction=config.data.fraction / parts, batch_size=batch)
    # a group of SAM is at most the batch
    return replace(config, data=data, sam=replace(config.sam, m=min(config.sam.m, batch)))


def momentum(config: Config, lr: float, weight_decay: float) -> Config:
    """Return a config with SGD and momentum 0.9; the paper publishes no numbers for it."""
    kept = {"warmup_steps": config.optim.warmup_steps, "schedule": config.optim.schedule}
    optim = OptimConfig(name="sgd", lr=lr, weight_decay=weight_decay, clip_norm=1.0, **kept)  # type: ignore[arg-type]
    return replace(config, optim=optim)


def small_momentum(config: Config) -> Config:
    """Return `momentum` for networks on small images: lr 0.1 for a batch of 128, decay 5e-4."""
    return momentum(config, lr=0.1 * config.data.batch_size / 128, weight_decay=5e-4)


def adversarial(config: Config) -> Config:
    """Return a config with fast adversarial training: FGSM from a random start within 2/255.

    Source: section 5.4 and appendix E.5 of arXiv:2106.01548."""
    return replace(config, adversarial=AdversarialConfig(eps=2 / 255))
