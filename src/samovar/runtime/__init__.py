"""The machine a run sees: device, precision, processes, random state, provenance."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from samovar.config import Precision, RunConfig

_MASK = (1 << 64) - 1


@dataclass(frozen=True)
class Runtime:
    """Where this process computes, and as which rank of how many."""

    device: torch.device
    dtype: torch.dtype
    """Compute type of forward and backward passes: float32, bfloat16 or float16 (autocast; weights
    stay float32)."""
    rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        """True on the one rank that writes and prints."""
        return self.rank == 0

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Autocast to `dtype`, or nothing under float32."""
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.dtype)


@contextlib.contextmanager
def started(config: RunConfig) -> Iterator[Runtime]:
    """The runtime `config` asks for; joins the process group when launched by torchrun, and leaves
    it.

    Raises:
        ValueError: a device or precision this machine has not."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    device = resolve_device(config.device, int(os.environ.get("LOCAL_RANK", "0")))
    dtype = resolve_precision(config.precision, device)
    if config.threads:
        torch.set_num_threads(config.threads)
    if device.type == "cpu":
        keep_freed_memory()
    if world_size == 1:
        yield Runtime(device, dtype)
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(minutes=30))
    try:
        yield Runtime(device, dtype, dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


def keep_freed_memory() -> None:
    """Let the allocator keep what tensors give back: 5 % of a training step on a CPU, 10 to 15 % of
    a forward pass.

    glibc returns freed memory to the system beyond twice the largest block it saw freed, which
    counts up to 32 MiB; with nothing seen, the pages of every layer's output are faulted in anew.
    The block is never touched."""
    torch.empty((32 << 20) - (64 << 10), dtype=torch.uint8)


def resolve_device(name: str, local_rank: int = 0) -> torch.device:
    """The torch device of `--run.device`; under torchrun each process takes the GPU of its local
    rank.

    Raises:
        ValueError: an unknown device, or one that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(
            f"--run.device {name} is no device; give auto, cpu, cuda, cuda:N or mps"
        ) from error
    if device.type not in ("cpu", "cuda", "mps"):
        raise ValueError(
            f"--run.device {name} is not supported; give auto, cpu, cuda, cuda:N or mps"
        )
    if device.type == "cuda":
        count = torch.cuda.device_count()
        index = local_rank if device.index is None else device.index
        if index >= count:
            raise ValueError(
                f"--run.device {name} asks for GPU {index}, but torch sees {count}; give auto or cpu"
            )
        return torch.device("cuda", index)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError(
            "--run.device mps asks for an Apple GPU, but torch sees none; give auto or cpu"
        )
    return device


def resolve_precision(precision: Precision, device: torch.device) -> torch.dtype:
    """The compute type of `--run.precision` on `device`.

    Raises:
        ValueError: a type the device computes only by emulation (12 times slower, measured on an
            AVX2 CPU)."""
    if precision == "auto":
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if fast else torch.float32
    if precision == "fp32":
        return torch.float32
    dtype = torch.bfloat16 if precision == "bf16" else torch.float16
    if not has_native(dtype, device):
        raise ValueError(
            f"--run.precision {precision} has no hardware support on this {device.type}"
            " and would be many times slower; give fp32 or auto"
        )
    return dtype


def has_native(dtype: torch.dtype, device: torch.device) -> bool:
    """True where `device` multiplies matrices of `dtype` in hardware."""
    if device.type == "cuda":
        return dtype == torch.float16 or torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "mps":
        return True
    if hasattr(torch.cpu, "get_capabilities"):
        capabilities = torch.cpu.get_capabilities()
        names = (
            ("amx_bf16", "avx512_bf16", "bf16")
            if dtype == torch.bfloat16
            else ("amx_fp16", "avx512_fp16", "fp16")
        )
        return any(capabilities.get(name, False) for name in names)
    return dtype == torch.bfloat16 and bool(
        torch.cpu._is_avx512_bf16_supported()
    )  # torch 2.9 has no public question


def mix(*numbers: int) -> int:
    """A 63-bit seed that depends on every number and their order (splitmix64)."""
    state = 0
    for number in numbers:
        state = (state + (number & _MASK) + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state >> 1


def seed_everything(*numbers: int) -> None:
    """Seed torch's generators of all devices from `numbers`, for instance (seed, step, rank)."""
    torch.manual_seed(mix(*numbers))


def provenance(runtime: Runtime) -> dict[str, Any]:
    """What produced a run: versions, hardware, layout, command, state of the source tree."""
    packages = ("samovar", "torch", "torchvision", "timm", "numpy")
    return {
        "versions": {"python": platform.python_version()}
        | {name: _version(name) for name in packages},
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(runtime.device)
        if runtime.device.type == "cuda"
        else runtime.device.type,
        "dtype": str(runtime.dtype).removeprefix("torch."),
        "world_size": runtime.world_size,
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "git": _git_state(),
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _git_state() -> str:
    """Commit of the source tree this package runs from, with `-dirty`; empty where it is not a git
    tree."""
    here = Path(__file__).parent
    command = [
        "git",
        "-C",
        str(here),
        "describe",
        "--always",
        "--dirty",
        "--abbrev=12",
        "--exclude=*",
    ]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout.strip() if answer.returncode == 0 else ""
