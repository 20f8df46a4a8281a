"""Check numbers on a GPU: against the CPU, restored and resumed bits, adapter, DDP."""

import io
import itertools
import tempfile
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from gpu_checks.bench import TYPES, Bench, Found, rounded, take, weights
from samovar.config import Config
from samovar.runtime import Runtime
from samovar.sam import SAM, SamVariant, sam_backward
from samovar.train import resume
from samovar.train.loop import build


def environment(bench: Bench) -> Found:
    """Say what the machine is."""
    found: Found = {"torch": torch.__version__, "timm": timm.__version__, "device": "cpu"}
    if bench.cuda:
        device = torch.cuda.get_device_properties(0)
        found |= {"device": device.name, "GiB": rounded(device.total_memory / 2**30)}
    return found


def equals_cpu(bench: Bench) -> Found:
    """Compare three steps of each family with the CPU: losses, and moves of the weights."""
    found: Found = {}
    for (model, side), rho in itertools.product(bench.families.items(), (0.0, 0.05)):
        config = bench.config(model, side, bench.batch, rho)
        state, run = bench.training(config, "fp32", torch.device("cpu"))
        start = weights(state.model)
        losses = [float(next(run).loss) for _ in range(3)]
        moved = weights(state.model) - start
        for kind in bench.types:
            other, run = bench.training(config, kind)
            theirs = [float(next(run).loss) for _ in range(3)]
            worst = max(abs(a - b) / abs(b) for a, b in zip(theirs, losses, strict=True))
            apart = (weights(other.model) - start - moved).norm() / moved.norm()
            name = f"{model} {'sam' if rho else 'plain'} {kind}"
            found[name] = {"loss": rounded(worst), "weights": rounded(float(apart))}
    worst = max(value["loss"] for name, value in found.items() if "fp32" in name)
    return {"passed": worst < 1e-3, "largest_fp32": worst, "relative_difference": found}


VARIANTS: dict[str, Found] = {
    "sam": {},
    "asam": {"adaptive": True},
    "gsam": {"variant": SamVariant(alpha=0.1)},
    "two steps": {"variant": SamVariant(ascent_steps=2)},
    "layerwise": {"variant": SamVariant(layerwise=True)},
}


def restore(bench: Bench) -> Found:
    """Check that `sam_backward` leaves the weights to the bit, also where the descent fails."""
    cases = itertools.product(bench.families, bench.types)
    wrong = [line for model, kind in cases for line in _not_restored(bench, model, kind)]
    return {"passed": not wrong, "wrong": wrong}


def _not_restored(bench: Bench, model: str, kind: str) -> list[str]:
    """Return the variants after which the weights of a family are others."""
    config = bench.config(model, bench.families[model], 8)
    runtime = Runtime(bench.device, TYPES[kind])
    net = build(config, runtime, num_classes=10, channels=3).model
    loss, before, calls, wrong = bench.loss(config, runtime, 8), weights(net), itertools.count(), []

    def failing(module: nn.Module) -> Tensor:
        if next(calls):
            raise ArithmeticError
        return loss(module)

    for name, settings in VARIANTS.items():
        scaler = torch.amp.GradScaler(bench.device.type) if kind == "fp16" else None
        sam_backward(loss, net, rho=0.05, scaler=scaler, **settings)
        if not torch.equal(weights(net), before):
            wrong.append(f"{model} {kind} {name}")
    try:
        sam_backward(failing, net, rho=0.05)
    except ArithmeticError:
        if not torch.equal(weights(net), before):
            wrong.append(f"{model} {kind}, a descent that fails")
    else:
        wrong.append(f"{model} {kind}: the error of the descent was lost")
    return wrong


def resume_bits(bench: Bench) -> Found:
    """Compare six steps with the same six again, and with three, a snapshot, and three more.

    With torch's deterministic algorithms and without."""
    found: Found = {}
    kinds = itertools.product((False, True), bench.families.items(), bench.types)
    for deterministic, (model, side), kind in kinds:
        torch.use_deterministic_algorithms(deterministic)
        config = bench.config(model, side, bench.batch)
        whole, again = (_six_steps(bench, config, kind) for _ in range(2))
        state, run = bench.training(config, kind)
        take(run, 3)
        file = io.BytesIO()
        snapshot = resume.snapshot(state)
        torch.save(snapshot.state, file)
        file.seek(0)
        kept = {name: value.cpu().clone() for name, value in snapshot.model.items()}
        saved = replace(snapshot, state=torch.load(file, weights_only=True), model=kept)
        fresh, _ = bench.training(config, kind)
        resume.restore(fresh, saved)
        take(bench.go_on(fresh, config, Runtime(bench.device, TYPES[kind])), 3)
        found[f"{model} {kind}{' deterministic' if deterministic else ''}"] = {
            "repeats": torch.equal(whole, again),
            "resumes": torch.equal(whole, weights(fresh.model)),
        }
    torch.use_deterministic_algorithms(False)
    sure = [each for name, each in found.items() if "deterministic" in name or not bench.cuda]
    return {"passed": all(each["resumes"] for each in sure), "same_bits": found}


def _six_steps(bench: Bench, config: Config, kind: str) -> Tensor:
    state, run = bench.training(config, kind)
    take(run, 6)
    return weights(state.model)


def adapter(bench: Bench) -> Found:
    """Compare `SAM` with GradScaler in a loop by hand with `sam_backward`; overflow is skipped."""
    kind = torch.float16 if bench.cuda else torch.bfloat16
    x, y = torch.randn(64, 64, device=bench.device), torch.arange(64, device=bench.device) % 10

    def start() -> tuple[nn.Module, torch.optim.Optimizer, torch.amp.GradScaler]:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 10)).to(bench.device)
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
        return net, optimizer, torch.amp.GradScaler(bench.device.type, enabled=bench.cuda)

    def loss_of(net: nn.Module) -> Tensor:
        with torch.autocast(bench.device.type, kind):
            return F.cross_entropy(net(x), y)

    net, optimizer, scaler = start()
    sam = SAM(optimizer, rho=0.05)

    def closure(factor: float = 1.0) -> Tensor:
        loss = loss_of(net) * factor
        scaler.scale(loss).backward()
        return loss

    for _ in range(5):
        sam.zero_grad()
        sam.step(closure, scaler=scaler)
        scaler.update()
    other, plain, second = start()
    for _ in range(5):
        plain.zero_grad()
        sam_backward(loss_of, other, rho=0.05, scaler=second)
        second.step(plain)
        second.update()
    apart = float((weights(net) - weights(other)).abs().max())
    before = weights(net)
    if bench.cuda:
        sam.zero_grad()
        sam.step(lambda: closure(float("inf")), scaler=scaler)
        scaler.update()
    skipped = torch.equal(weights(net), before)
    return {"passed": apart < 1e-6 and skipped, "apart": apart, "overflow_skipped": skipped}


def one_rank(bench: Bench) -> Found:
    """Compare SAM's gradient under DDP in a process group of one with the one without DDP."""
    config = bench.config(bench.small, bench.side, bench.batch)
    runtime = Runtime(bench.device, TYPES[bench.half])
    loss = bench.loss(config, runtime, bench.batch)

    def gradient(wrap: Callable[[nn.Module], nn.Module], **settings: Any) -> Tensor:
        net = build(config, runtime, num_classes=10, channels=3).model
        sam_backward(loss, wrap(net), rho=0.05, **settings)
        return torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])

    cases: dict[str, tuple[Found, Found]] = {
        "ddp": ({"broadcast_buffers": False}, {}),
        "shared ascent": ({}, {"shared_ascent": True}),
        "bucket views": ({"gradient_as_bucket_view": True}, {}),
        "static graph": ({"static_graph": True}, {}),
        "gsam": ({}, {"variant": SamVariant(alpha=0.1)}),
    }
    backend = "nccl" if bench.cuda else "gloo"
    place = f"file://{tempfile.mkdtemp()}/store"
    torch.distributed.init_process_group(backend, init_method=place, rank=0, world_size=1)
    ids = [bench.device] if bench.cuda else None
    found: Found = {}
    try:
        for name, (how, settings) in cases.items():
            wrap = lambda net, how=how: DistributedDataParallel(net, device_ids=ids, **how)  # noqa: E731
            ours, alone = gradient(wrap, **settings), gradient(lambda net: net, **settings)
            found[name] = rounded(float((ours - alone).norm() / alone.norm()))
    finally:
        torch.distributed.destroy_process_group()
    return {"passed": max(found.values()) < 1e-3, "backend": backend, "relative": found}
