"""The paper's other regimes, each a function from a config to a config."""

from __future__ import annotations

from dataclasses import replace

from samovar.config import AdversarialConfig, Config, OptimConfig

FRACTIONS = {"half": 2, "quarter": 4, "tenth": 10}
"""Words in a recipe's name for the subsets of Table 4."""


def strong(config: Config) -> Config:
    """RandAugment with 2 layers of magnitude 15, mixup 0.5; for ViT and Mixer lr 1e-3, decay 0.1,
    stochastic depth 0.1.

    Source: section 5.2 and appendix E.3 of arXiv:2106.01548."""
    data = replace(config.data, randaugment_layers=2, randaugment_magnitude=15, mixup=0.5)
    if config.model.name.startswith("resnet"):
        return replace(config, data=data)
    optim = replace(config.optim, lr=1e-3, weight_decay=0.1)
    return replace(config, data=data, optim=optim, model=replace(config.model, drop_path=0.1))


def subset(config: Config, parts: int) -> Config:
    """A share of the training images that there are, in batches so small that the number of steps
    stays about the same.

    As the paper: halves and quarters shrink the batch with them, a tenth to an eighth; lr and all
        else stay.

    Source: appendix E.2 of arXiv:2106.01548."""
    batch = config.data.batch_size // min(parts, 8)
    return replace(
        config, data=replace(config.data, fraction=config.data.fraction / parts, batch_size=batch)
    )


def momentum(config: Config, lr: float, weight_decay: float) -> Config:
    """SGD with momentum 0.9 in place of AdamW; the paper's numbers for it are not published."""
    kept = {"warmup_steps": config.optim.warmup_steps, "schedule": config.optim.schedule}
    optim = OptimConfig(name="sgd", lr=lr, weight_decay=weight_decay, clip_norm=1.0, **kept)  # type: ignore[arg-type]
    return replace(config, optim=optim)


def adversarial(config: Config) -> Config:
    """Fast adversarial training, FGSM from a random start within 2/255; all else as without.

    Source: section 5.4 and appendix E.5 of arXiv:2106.01548."""
    return replace(config, adversarial=AdversarialConfig(eps=2 / 255))
