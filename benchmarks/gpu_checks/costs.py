"""Measure costs on a GPU: host reads, memory, speed; and the command line as a person uses it."""

import collections
import itertools
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import timm
import torch
from torch import nn
from torch.nn import functional as F

from gpu_checks.bench import TYPES, Bench, Found, rounded, take
from samovar.curvature import Hessian, top_eigenvalues
from samovar.data.loader import batches
from samovar.data.splits import Arrays, Source
from samovar.measure.plane import filter_direction, loss_plane
from samovar.runtime import Runtime
from samovar.train.loop import build
from samovar.train.utilization import forward_flops, peak_flops

SETTINGS: dict[str, Found] = {
    "plain": {"rho": 0.0},
    "sam": {},
    "sam m=16 micro=8": {"sam__m": 16, "run__micro_batch": 8},
    "asam": {"sam__adaptive": True},
    "gsam": {"sam__alpha": 0.1},
    "wsam": {"sam__gamma": 0.8, "sam__decoupled": True},
    "fsam": {"sam__sigma": 1.0},
    "looksam": {"sam__every": 2, "sam__reuse": 0.5},
    "msam": {"sam__momentum": True},
    "quarter": {"sam__fraction": 0.25},
    "average of weights": {"optim__ema": 0.99},
    "lamb": {"optim__name": "lamb"},
    "lion": {"optim__name": "lion"},
    "sgd": {"optim__name": "sgd"},
    "mixup, cutmix": {"data__mixup": 0.5, "data__cutmix": 1.0},
    "pad, mirror": {"data__crop": "pad", "data__flip": True},
}


def host_reads(bench: Bench) -> Found:
    """Count the waits of the host for the GPU in a training step, and say where they come from."""
    found: Found = {}
    pixels = np.random.default_rng(0).integers(0, 255, (256, 3, bench.side, bench.side), np.uint8)
    arrays = Arrays(np.arange(256) % 10, pixels, "made")
    source = Source("made", tuple("0123456789"), arrays, arrays, 3, bench.side)
    for name, changes in SETTINGS.items():
        config = bench.config(bench.small, bench.side, bench.batch, **changes)
        stream = batches(source, config.data, seed=0, start=0, stop=20, device=bench.device)
        with closing(stream), warnings.catch_warnings(record=True) as told:
            _, run = bench.training(config, bench.half, stream=stream)
            take(run, 3)
            bench.wait()
            warnings.simplefilter("always")
            if bench.cuda:
                torch.cuda.set_sync_debug_mode("warn")
            try:
                take(run, 4)
            finally:
                if bench.cuda:
                    torch.cuda.set_sync_debug_mode("default")
        waits = [each for each in told if "synchroniz" in str(each.message)]
        places = collections.Counter(f"{Path(w.filename).name}:{w.lineno}" for w in waits)
        found[name] = {"a_step": len(waits) / 4, "where": dict(places.most_common(4))}
    if not bench.cuda:
        return {"left_out": f"{len(found)} settings ran, but only CUDA counts waits"}
    return {"passed": not any(each["a_step"] for each in found.values()), "waits": found}


def memory_copies(bench: Bench) -> Found:
    """Count the copies of the weights that each relative of SAM holds beyond plain training."""
    model, side = (bench.small, bench.side) if bench.tiny else ("vit-b16", 224)
    peaks: dict[str, float] = {}
    names = ("plain", "sam", "asam", "gsam", "wsam", "fsam", "looksam", "msam")
    for name in names:
        state, run = bench.training(bench.config(model, side, 4, **SETTINGS[name]), bench.half)
        take(run, 3)
        copy = sum(p.numel() for p in state.model.parameters()) * 4
        peaks[name] = bench.peak(lambda run=run: take(run, 2)) / copy  # type: ignore[misc]
        del state, run
    if not bench.cuda:
        return {"left_out": f"{len(peaks)} relatives ran, but only CUDA counts memory"}
    return {"copies": {name: rounded(peak - peaks["plain"]) for name, peak in peaks.items()}}


def speed(bench: Bench) -> Found:
    """Time steps beside a loop by hand with timm's network: images/s, MFU, SAM over plain."""
    model, side, batch = bench.large
    peak = peak_flops(torch.cuda.get_device_name(), torch.bfloat16) if bench.cuda else None
    flops = forward_flops(
        build(bench.config(model, side, 1), Runtime(bench.device, torch.float32), num_classes=10,
              channels=3).model,
        torch.zeros(1, 3, side, side, device=bench.device),
    )  # fmt: skip
    found: Found = {}
    for compiled, rho in itertools.product((False,) if bench.tiny else (False, True), (0.0, 0.05)):
        config = bench.config(model, side, batch, rho, run__compile=compiled)
        _, run = bench.training(config, bench.half)
        loops = {"samovar": lambda run=run: next(run)}
        loops["by hand"] = _by_hand(bench, model, side, batch, rho, compiled)
        for who, step in loops.items():
            seconds = bench.seconds(step, 1 if bench.tiny else 12, warm=4)
            name = f"{who} {'sam' if rho else 'plain'}{' compiled' if compiled else ''}"
            found[name] = {"images_per_second": rounded(batch / seconds)}
            if peak:
                used = 3 * flops * (2 if rho else 1) * batch / seconds
                found[name]["mfu"] = rounded(used / peak)
    speeds = {name: each["images_per_second"] for name, each in found.items()}
    pairs = {name: name.replace("plain", "sam") for name in speeds if "plain" in name}
    ratios = {plain: rounded(speeds[plain] / speeds[sam]) for plain, sam in pairs.items()}
    return {"sam_over_plain": ratios, "speed": found}


def _by_hand(
    bench: Bench, model: str, side: int, batch: int, rho: float, compiled: bool
) -> Callable[[], None]:
    """Return a step of the loop that people write: autocast, AdamW, clipping, textbook SAM."""
    torch.manual_seed(0)
    if model == "vit-s16":
        net = timm.create_model("vit_small_patch16_224", num_classes=10)
    else:
        net = timm.models.VisionTransformer(
            img_size=side, patch_size=2, embed_dim=64, depth=4, num_heads=2, num_classes=10
        )
    net = net.to(bench.device).train()
    params = list(net.parameters())
    called = torch.compile(net) if compiled else net
    optimizer = torch.optim.AdamW(params, lr=1e-3, weight_decay=0.1, fused=True)
    given = bench.images(batch, side)
    images, labels = given.images, given.labels

    def gradient() -> None:
        optimizer.zero_grad()
        half = TYPES[bench.half]
        with torch.autocast(bench.device.type, half, enabled=half != torch.float32):
            loss = F.cross_entropy(called(images).float(), labels)
        loss.backward()

    def step() -> None:
        gradient()
        if rho:
            gradients = [p.grad for p in params]
            norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
            before = [p.detach().clone() for p in params]
            with torch.no_grad():
                torch._foreach_add_(params, torch._foreach_mul(gradients, rho / (norm + 1e-12)))
            gradient()
            with torch.no_grad():
                torch._foreach_copy_(params, before)
        nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()

    return step


def lambda_max(bench: Bench) -> Found:
    """Find lambda_max of a stock ViT-S with fused attention: products, seconds, peak memory."""
    torch.manual_seed(0)
    small = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2}
    net = timm.models.VisionTransformer(
        **small if bench.tiny else {"embed_dim": 384, "num_heads": 6}
    )
    net = net.to(bench.device).eval()
    count, side = (8, 32) if bench.tiny else (128, 224)
    data = [(torch.rand(count // 2, 3, side, side), torch.arange(count // 2) % 10)] * 2
    operator = Hessian(net, lambda module, b: F.cross_entropy(module(b[0]), b[1]), data)
    answers = []
    start = time.perf_counter()
    peak = bench.peak(lambda: answers.append(top_eigenvalues(operator, 1, tol=1e-3, max_steps=20)))
    seconds, found = time.perf_counter() - start, answers[0]
    return {
        "lambda_max": float(found.values[0]),
        "residual": float(found.residuals[0]),
        "products": found.num_products,
        "seconds_a_product": rounded(seconds / max(1, found.num_products)),
        "peak_MiB": peak >> 20,
    }


def landscape(bench: Bench) -> Found:
    """Time points of a loss landscape in float32."""
    model, side, _ = bench.large
    runtime = Runtime(bench.device, torch.float32)
    net = build(bench.config(model, side, 8), runtime, num_classes=10, channels=3).model
    count = 8 if bench.tiny else 512
    generator = torch.Generator().manual_seed(0)
    directions = [filter_direction(net, generator) for _ in range(2)]
    ends = torch.linspace(-1, 1, 3)
    loss = lambda module, b: F.cross_entropy(module(b.images), b.labels)  # noqa: E731
    data = [bench.images(count, side)]
    seconds = bench.seconds(lambda: loss_plane(net, loss, data, directions, ends, ends), 1) / 9
    return {
        "points_per_second": rounded(1 / seconds),
        "images_per_second": rounded(count / seconds),
    }


def command_line(bench: Bench) -> Found:
    """Train on digits, go on with the run, and take every measurement."""
    steps_, device = "4" if bench.tiny else "60", ["--run.device", bench.device.type]
    names = ["accuracy", "hessian"] if bench.tiny else [
        "hessian", "flatness", "sharpness", "ntk", "accuracy", "attack", "attention", "landscape"
    ]  # fmt: skip
    train = ["train", "vit-digits-sam", "--steps", steps_, *device]
    commands = {"train": [*train, "--name", "a"]}
    if bench.cuda:
        commands["fp16"] = [*train, "--name", "b", "--run.precision", "fp16"]
        commands["compiled"] = [*train, "--name", "c", "--run.compile"]
    commands["measure"] = ["measure", "runs/a", *names, "--images", "64", "--points", "5"]
    commands["measure"] += ["--device", bench.device.type]
    found: Found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, words in commands.items():
            start = time.perf_counter()
            command = [sys.executable, "-m", "samovar", *words]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240)
            found[name] = {"seconds": rounded(time.perf_counter() - start)}
            if done.returncode:
                found[name]["failed"] = (done.stderr or done.stdout).strip()[-300:]
    return {"passed": not any("failed" in each for each in found.values()), "commands": found}
