"""What the checks of a GPU share: sizes, states, made images, times."""

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from samovar.config import Config, DataConfig, ModelConfig, OptimConfig, SamConfig
from samovar.data.loader import Batch
from samovar.objectives import make_objective
from samovar.runtime import Runtime
from samovar.train.loop import TrainState, build, steps

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
Found = dict[str, Any]


class Bench:
    """The device, and the sizes of what is tried on it."""

    def __init__(self, device: str, tiny: bool) -> None:
        self.device = torch.device(device)
        self.cuda, self.tiny = self.device.type == "cuda", tiny
        families = {"vit-cifar": 32, "mixer-cifar": 32, "resnet-cifar": 32}
        self.families = {"vit-digits": 8} if tiny else families
        self.small, self.side = next(iter(self.families.items()))
        self.large = ("vit-digits", 8, 8) if tiny else ("vit-s16", 224, 128)
        self.batch = 8 if tiny else 64
        self.half = "bf16" if self.cuda else "fp32"
        self.types = ("fp32", "bf16", "fp16") if self.cuda else ("fp32",)

    def config(
        self, model: str, side: int, batch: int, rho: float = 0.05, **changes: Any
    ) -> Config:
        """Return AdamW training; a change is named `section__field`."""
        config = Config(
            steps=1000,
            model=ModelConfig(name=model),
            optim=OptimConfig(lr=1e-3, weight_decay=0.1, clip_norm=1.0),
            data=DataConfig(source="made", image_size=side, batch_size=batch, crop="none"),
            sam=SamConfig(rho=rho),
        )
        for name, value in changes.items():
            section, _, field = name.partition("__")
            if field:
                value = replace(getattr(config, section), **{field: value})
            config = replace(config, **{section: value})
        return config

    def images(self, count: int, side: int, device: torch.device | None = None) -> Batch:
        """Return made images with labels below ten."""
        pixels = torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(1))
        device = device or self.device
        return Batch(pixels.to(device), (torch.arange(count) % 10).to(device))

    def training(
        self, config: Config, kind: str, device: torch.device | None = None, stream: Any = None
    ) -> tuple[TrainState, Iterator[Any]]:
        """Return a state and its steps over one batch, or over a stream."""
        runtime = Runtime(device or self.device, TYPES[kind])
        state = build(config, runtime, num_classes=10, channels=3)
        return state, self.go_on(state, config, runtime, stream)

    def go_on(
        self, state: TrainState, config: Config, runtime: Runtime, stream: Any = None
    ) -> Iterator[Any]:
        """Return the steps from a state on, over one batch or over a stream."""
        batch = self.images(config.data.batch_size, config.data.image_size, runtime.device)
        objective = make_objective(config, 10, 1)
        return steps(state, stream or itertools.repeat(batch), objective, config, runtime, 1000)

    def loss(self, config: Config, runtime: Runtime, count: int) -> Callable[[nn.Module], Tensor]:
        """Return the training loss over made images as a function of the network."""
        batch = self.images(count, config.data.image_size)
        objective = make_objective(config, 10, 1)

        def loss(module: nn.Module) -> Tensor:
            with runtime.autocast():
                return objective(module, batch).value

        return loss

    def seconds(self, work: Callable[[], Any], times: int, warm: int = 1) -> float:
        """Return the mean seconds of some work, once it has been done `warm` times."""
        for _ in range(warm):
            work()
        self.wait()
        start = time.perf_counter()
        for _ in range(times):
            work()
        self.wait()
        return (time.perf_counter() - start) / times

    def wait(self) -> None:
        """Wait until the device has done what it was given."""
        if self.cuda:
            torch.cuda.synchronize()

    def peak(self, work: Callable[[], Any]) -> int:
        """Return the bytes of tensors at the worst moment of some work; 0 on a CPU."""
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        work()
        return torch.cuda.max_memory_allocated() if self.cuda else 0


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().double().cpu().flatten() for p in model.parameters()])


def rounded(value: float) -> float:
    return float(f"{value:.4g}")


def take(run: Iterator[Any], count: int) -> None:
    for _ in range(count):
        next(run)
