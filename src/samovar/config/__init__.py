"""The settings of a run: frozen dataclasses, their checks, JSON, and the flags that replay them;
without torch."""

from samovar.config.checks import validate, validate_corrupt, validate_layout, validate_measure
from samovar.config.derived import image_gradients, num_steps, passes, sam_words, stages
from samovar.config.encoded import differences, flatten, from_dict, load, save, to_dict, to_flags
from samovar.config.settings import (
    AdversarialConfig,
    AutoAugment,
    Config,
    ContrastiveConfig,
    CorruptConfig,
    DataConfig,
    GridConfig,
    HeadConfig,
    Logger,
    Loss,
    MeasureConfig,
    ModelConfig,
    OptimConfig,
    Precision,
    RunConfig,
    SamConfig,
)

__all__ = [
    "AdversarialConfig",
    "AutoAugment",
    "Config",
    "ContrastiveConfig",
    "CorruptConfig",
    "DataConfig",
    "GridConfig",
    "HeadConfig",
    "Logger",
    "Loss",
    "MeasureConfig",
    "ModelConfig",
    "OptimConfig",
    "Precision",
    "RunConfig",
    "SamConfig",
    "differences",
    "flatten",
    "from_dict",
    "image_gradients",
    "load",
    "num_steps",
    "passes",
    "sam_words",
    "save",
    "stages",
    "to_dict",
    "to_flags",
    "validate",
    "validate_corrupt",
    "validate_layout",
    "validate_measure",
]
