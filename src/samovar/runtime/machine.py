"""Device and precision, process group, random state, provenance of a run."""

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
from samovar.runtime import DEVICES

_MASK = (1 << 64) - 1


@dataclass(frozen=True)
class Runtime:
    """Device, compute type and rank of this process."""

    device: torch.device
    dtype: torch.dtype
    """Type of forward and backward passes: float32, or bfloat16 or float16 by autocast, under which
    weights stay float32."""
    rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        """True on the one rank that writes and prints."""
        return self.rank == 0

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Return a context of autocast to `dtype`; under float32 it does nothing."""
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.dtype)


@contextlib.contextmanager
def started(config: RunConfig, flag: str = "--run.device") -> Iterator[Runtime]:
    """Yield the runtime that `config` asks for; under torchrun, join the process group meanwhile.

    Args:
        flag: the flag behind `config.device`, for messages.

    Raises:
        ValueError: this machine lacks the device or the precision."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    device = resolve_device(config.device, int(os.environ.get("LOCAL_RANK", "0")), flag)
    dtype = resolve_precision(config.precision, device)
    if config.threads:
        torch.set_num_threads(config.threads)
    if device.type == "cpu":
        keep_freed_memory()
    with deterministic_algorithms() if config.deterministic else contextlib.nullcontext():
        # torchrun with one process needs no group, and skips its set-up
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


@contextlib.contextmanager
def deterministic_algorithms() -> Iterator[None]:
    """Compute inside by algorithms that give the same bits each time; restore the choice after it.

    Raises:
        ValueError: torch has none for an operation that was called."""
    before = torch.are_deterministic_algorithms_enabled()
    searches = torch.backends.cudnn.benchmark
    # read when the first product on a GPU begins; without it cuBLAS may split sums differently
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True)
    try:
        yield
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        operation = str(error).split(" does not", 1)[0]
        raise ValueError(
            f"{operation} has no deterministic algorithm on this device; train without "
            "--run.deterministic"
        ) from error
    finally:
        torch.use_deterministic_algorithms(before)
        torch.backends.cudnn.benchmark = searches


def keep_freed_memory() -> None:
    """Make glibc keep the memory that tensors free, instead of returning it to the system.

    Saves 5 % of a training step on a CPU and 10 to 15 % of a forward pass. glibc returns freed
    memory beyond twice the largest block it has seen freed, of up to 32 MiB; before it has seen
    one, the pages of every layer's output are faulted in anew. This frees such a block, whose
    pages are never touched."""
    torch.empty((32 << 20) - (64 << 10), dtype=torch.uint8)


def resolve_device(name: str, local_rank: int = 0, flag: str = "--run.device") -> torch.device:
    """Return the torch device that a flag names.

    Args:
        local_rank: the GPU that `auto` and `cuda` take.
        flag: its spelling, for messages.

    Raises:
        ValueError: the device is unknown, or this machine lacks it."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"{flag} {name} is no device; give {DEVICES}") from error
    if device.type not in ("cpu", "cuda", "mps"):
        raise ValueError(f"{flag} {name} is not supported; give {DEVICES}")
    if device.type == "cuda":
        count = torch.cuda.device_count()
        index = local_rank if device.index is None else device.index
        if index >= count:
            raise ValueError(
                f"{flag} {name} asks for GPU {index}, but torch sees {count}; give auto or cpu"
            )
        return torch.device("cuda", index)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError(f"{flag} mps asks for an Apple GPU, but torch sees none; give auto or cpu")
    return device


def resolve_precision(precision: Precision, device: torch.device) -> torch.dtype:
    """Return the compute type that `--run.precision` names on a device.

    Raises:
        ValueError: the device would only emulate it (12 times slower, measured on an AVX2 CPU)."""
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
    """Return True if a device multiplies matrices of `dtype` in hardware."""
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
    # torch 2.9 has no public function for this
    return dtype == torch.bfloat16 and bool(torch.cpu._is_avx512_bf16_supported())


def mix(*numbers: int) -> int:
    """Mix numbers into a 63-bit seed that depends on each of them and on their order.

    Source: splitmix64, Steele et al., OOPSLA 2014."""
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
    """Return what produces a run: versions, hardware, ranks, command, state of the source tree."""
    packages = ("samovar", "torch", "torchvision", "timm", "numpy")
    versions = {"python": platform.python_version()} | {name: _version(name) for name in packages}
    on_gpu = runtime.device.type == "cuda"
    return {
        "versions": versions,
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(runtime.device) if on_gpu else runtime.device.type,
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
    # on Linux platform.processor() is empty or only the architecture
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _git_state() -> str:
    """Return the commit this package runs from, `-dirty` if changed; empty outside a git tree."""
    command = ["git", "-C", str(Path(__file__).parent)]
    command += ["describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout.strip() if answer.returncode == 0 else ""
