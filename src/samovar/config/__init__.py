"""Settings: frozen dataclasses, their checks, their JSON, and the flags that replay them.

Nothing in this room imports torch."""

from samovar.config.checks import (
    shard_ranks,
    validate,
    validate_corrupt,
    validate_layout,
    validate_measure,
)
from samovar.config.derived import (
    cores,
    decay_start,
    image_gradients,
    num_steps,
    passes,
    sam_span,
    sam_words,
    shorten,
    shorter_schedule,
    stages,
)
from samovar.config.encoded import differences, flatten, from_dict, load, save, to_dict, to_flags
from samovar.config.measuring import CorruptConfig, MeasureConfig, MeasurePrecision
from samovar.config.schema import schema
from samovar.config.sections import AutoAugment, DataConfig, ModelConfig, OptimConfig
from samovar.config.settings import (
    LOGGERS,
    AdversarialConfig,
    Config,
    ContrastiveConfig,
    GridConfig,
    HeadConfig,
    Loss,
    Precision,
    RunConfig,
    SamConfig,
)

__all__ = [
    "LOGGERS",
    "AdversarialConfig",
    "AutoAugment",
    "Config",
    "ContrastiveConfig",
    "CorruptConfig",
    "DataConfig",
    "GridConfig",
    "HeadConfig",
    "Loss",
    "MeasureConfig",
    "MeasurePrecision",
    "ModelConfig",
    "OptimConfig",
    "Precision",
    "RunConfig",
    "SamConfig",
    "cores",
    "decay_start",
    "differences",
    "flatten",
    "from_dict",
    "image_gradients",
    "load",
    "num_steps",
    "passes",
    "sam_span",
    "sam_words",
    "save",
    "schema",
    "shard_ranks",
    "shorten",
    "shorter_schedule",
    "stages",
    "to_dict",
    "to_flags",
    "validate",
    "validate_corrupt",
    "validate_layout",
    "validate_measure",
]
