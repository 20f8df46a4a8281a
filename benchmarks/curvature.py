"""Measure the cost of the largest Hessian eigenvalue, beside PyHessian and two other packages.

    python benchmarks/curvature.py --repeats 3

The others are hessian-eigenthings, and curvlinops with scipy. Time is processor time of one thread
for a whole solve with the set-up of its operator, so that other work on the machine counts less.
Every repetition runs every row once, in rotated order, each on a copy of the same briefly trained
model; a ratio is the median of the ratios within repetitions. All rows use math attention, without
which none of the packages runs on a timm ViT.

PyHessian stops at a small change, 1e-3 by its own rule. It runs once with that rule and once with
the rule tightened tenfold until the residual is 1e-3; how often is found beforehand. The other two
cannot stop at a residual, so they take the number of steps that samovar needs from a random start,
and more if that is not enough. `residual` is |Hv - lambda v| / lambda, and `error` compares with
samovar at 1e-6 in float64; both are computed after the clock stopped. `loader` has 8 batches of a
quarter of the size. `check` is the cost of the check of a first product in products of a retained
graph, for batches of several sizes, products and checks in turn. `two processes` compares one
process over 8 batches with two over 4 each, for the same products.
"""

import argparse
import copy
import os
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import nets
from samovar.curvature import Hessian, top_eigenvalues
from samovar.curvature.check import check_products

TOL, LOADER_BATCHES = 1e-3, 8
CHECKED_SIZES = (8, 16, 32)
SETTINGS = ["one", "loader", "check", "processes"]
Batches = list[tuple[Tensor, Tensor]]
Found = tuple[float, Tensor, int]  # eigenvalue, vector [P], products
Row = Callable[[nn.Module, Batches, int], Found]


def vit32() -> tuple[nn.Module, int, int, float]:
    return nets.vit32(), 32, 8, 3e-4


def resnet18() -> tuple[nn.Module, int, int, float]:
    return timm.create_model("resnet18", num_classes=10), 64, 16, 1e-3


CASES = {"vit32": vit32, "resnet18": resnet18}


def images(pixels: int, indices: Tensor) -> tuple[Tensor, Tensor]:
    """Return a batch of enlarged digits."""
    digits = load_digits()
    x = torch.tensor(digits.images, dtype=torch.float32)[indices, None] / 8 - 1
    return F.interpolate(x.repeat(1, 3, 1, 1), size=pixels, mode="bilinear"), torch.tensor(
        digits.target
    )[indices]


def trained(case: str, train_steps: int) -> tuple[nn.Module, Batches, Batches]:
    """Return a model after a few steps on digits, its batch, and its loader of 8 smaller ones."""
    torch.manual_seed(0)
    model, pixels, size, lr = CASES[case]()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    for _ in range(train_steps):
        x, y = images(pixels, torch.randint(1797, (32,)))
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    small = max(1, size // 4)
    loader = [
        images(pixels, torch.arange(i * small, (i + 1) * small)) for i in range(LOADER_BATCHES)
    ]
    return model.eval(), [images(pixels, torch.arange(size))], loader


def loss(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def ours(model: nn.Module, batches: Batches, steps: int) -> Found:
    pairs = top_eigenvalues(Hessian(model, loss, batches), tol=TOL)
    return float(pairs.values[0]), pairs.vectors[:, 0], pairs.num_products


def ours_fresh(model: nn.Module, batches: Batches, steps: int) -> Found:
    pairs = top_eigenvalues(Hessian(model, loss, batches, retain=False), tol=TOL)
    return float(pairs.values[0]), pairs.vectors[:, 0], pairs.num_products


def ours_unchecked(model: nn.Module, batches: Batches, steps: int) -> Found:
    pairs = top_eigenvalues(Hessian(model, loss, batches, check=False), tol=TOL)
    return float(pairs.values[0]), pairs.vectors[:, 0], pairs.num_products


def pyhessian(model: nn.Module, batches: Batches, steps: int, tol: float = TOL) -> Found:
    from pyhessian import hessian

    data = {"data": batches[0]} if len(batches) == 1 else {"dataloader": batches}
    with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings(), counted_grads() as calls:
        warnings.simplefilter("ignore")  # its create_graph leaks, of which torch warns every time
        solver = hessian(model, F.cross_entropy, cuda=False, **data)
        values, vectors = solver.eigenvalues(tol=tol)
    return (
        values[0],
        torch.cat([part.flatten() for part in vectors[0]]).detach(),
        calls[0] // len(batches),
    )


def pyhessian_on(model: nn.Module, batches: Batches, steps: int) -> Found:
    """Return PyHessian with its rule tightened to 10^-steps."""
    return pyhessian(model, batches, steps, tol=10.0**-steps)


@contextmanager
def counted_grads() -> Iterator[list[int]]:
    """Count calls of torch.autograd.grad, which are PyHessian's products."""
    real, calls = torch.autograd.grad, [0]

    def counting(*args: Any, **options: Any) -> Any:
        calls[0] += 1
        return real(*args, **options)

    torch.autograd.grad = counting
    try:
        yield calls
    finally:
        torch.autograd.grad = real


def eigenthings(model: nn.Module, batches: Batches, steps: int) -> Found:
    from hessian_eigenthings import HessianOperator, lanczos

    with sdpa_kernel(SDPBackend.MATH):
        operator = HessianOperator(model, batches, loss)
        found = lanczos(operator, k=1, max_iter=steps, tol=TOL, seed=0)
    return float(found.eigenvalues[0]), found.eigenvectors[0], found.iterations


def curvlinops(model: nn.Module, batches: Batches, steps: int) -> Found:
    from curvlinops import HessianLinearOperator
    from scipy.sparse.linalg import LinearOperator, eigsh

    params = [param for param in model.parameters() if param.requires_grad]
    calls = [0]
    with sdpa_kernel(SDPBackend.MATH):
        operator = HessianLinearOperator(
            model, nn.CrossEntropyLoss(), params, batches, check_deterministic=False
        )
        inner = operator.to_scipy()

        def counted(v: Any) -> Any:
            calls[0] += 1
            return inner @ v

        outer = LinearOperator(inner.shape, matvec=counted, dtype=inner.dtype)
        values, vectors = eigsh(outer, k=1, which="LM", tol=TOL, ncv=steps)
    return float(values[0]), torch.from_numpy(vectors[:, 0]).float(), calls[0]


ROWS: dict[str, Row] = {
    "samovar": ours,
    "samovar, retain=False": ours_fresh,
    "samovar, check=False": ours_unchecked,
    "PyHessian": pyhessian,
    "PyHessian to residual": pyhessian_on,
    "hessian-eigenthings": eigenthings,
    "curvlinops + eigsh": curvlinops,
}
TOLD = ("hessian-eigenthings", "curvlinops + eigsh", "PyHessian to residual")
TARGETS = {
    ("one batch", "PyHessian"): 0.55,
    ("loader", "PyHessian"): 0.35,
    ("one batch", "PyHessian to residual"): 0.55,
    ("loader", "PyHessian to residual"): 0.35,
    ("one batch", "hessian-eigenthings"): 0.6,
    ("one batch", "curvlinops + eigsh"): 0.6,
}


def timed(row: str, model: nn.Module, batches: Batches, steps: int) -> tuple[float, Found | str]:
    model = copy.deepcopy(model)
    start = time.process_time()
    try:
        found: Found | str = ROWS[row](model, batches, steps)
    except Exception as error:
        found = f"{type(error).__name__}: {str(error).splitlines()[0][:80]}"
    return time.process_time() - start, found


def report(case: str, setting: str, rows: list[str], repeats: int, train_steps: int) -> None:
    model, one, loader = trained(case, train_steps)
    batches = one if setting == "one batch" else loader
    exact = Hessian(model, loss, batches, dtype=torch.float64)
    best = top_eigenvalues(exact, 2, tol=1e-6)
    noise = torch.randn(exact.size, generator=torch.Generator().manual_seed(0))
    steps = top_eigenvalues(Hessian(model, loss, batches), tol=TOL, start=noise).num_products
    found: dict[str, list[tuple[float, Found | str]]] = {row: [] for row in rows}
    order, told = list(rows), dict.fromkeys(rows, steps) | {"PyHessian to residual": 4}
    for _ in range(repeats):
        for row in order:
            result = timed(row, model, batches, told[row])
            # these two run a given number of steps: add steps until the residual is small enough,
            # and count the last solve only
            while row in TOLD and told[row] < steps + 4 and off(exact, result[1]) > TOL:
                told[row] += 1
                result = timed(row, model, batches, told[row])
            found[row].append(result)
        order = order[1:] + order[:1]
    gap = abs(float(best.values[1] / best.values[0]))
    print(
        f"\n{case} after {train_steps} steps, {setting}: lambda_max {float(best.values[0]):.4f}, "
        f"next {gap:.2f} of it; "
        f"{steps} products from a random start"
    )
    print(
        f"{'row':<24}{'seconds':>8}{'products':>9}{'residual':>10}{'error':>9}   samovar / row "
        "[min, max], target"
    )
    for row in rows:
        show(row, found, exact, float(best.values[0]), TARGETS.get((setting, row)))


def off(exact: Hessian, found: Found | str) -> float:
    if isinstance(found, str):
        return 0.0
    v = found[1].double()
    v /= v.norm()
    return float((exact @ v - found[0] * v).norm()) / abs(found[0])


def show(
    row: str, found: dict[str, Any], exact: Hessian, best: float, target: float | None
) -> None:
    seconds, last = statistics.median(spent for spent, _ in found[row]), found[row][-1][1]
    if isinstance(last, str):
        print(f"{row:<24}does not run: {last}", flush=True)
        return
    ratios = sorted(a[0] / b[0] for a, b in zip(found["samovar"], found[row], strict=True))
    verdict = (
        ""
        if target is None
        else f", {'meets' if statistics.median(ratios) <= target else 'MISSES'} {target}"
    )
    print(
        f"{row:<24}{seconds:>8.2f}{last[2] or '?':>9}{off(exact, last):>10.1e}"
        f"{abs(last[0] / best - 1):>9.1e}   "
        f"{statistics.median(ratios):.2f} [{ratios[0]:.2f}, {ratios[-1]:.2f}]{verdict}",
        flush=True,
    )


def report_check(case: str, repeats: int) -> None:
    """Print what the check of a first product costs, in products of the whole batch."""
    _, pixels, _, _ = CASES[case]()
    model, _, _ = trained(case, 0)
    for size in CHECKED_SIZES:
        batch = images(pixels, torch.arange(size))
        op = Hessian(model, loss, [batch], check=False)
        v = torch.randn(op.size, generator=torch.Generator().manual_seed(0))
        op @ v  # retains the graph
        spent = []
        for _ in range(repeats):
            start = time.thread_time()
            op @ v
            middle = time.thread_time()
            checked = check_products(
                *(model, op.names, batch, torch.float32, "eval", op._graph, op._slope)
            )
            spent.append((middle - start, time.thread_time() - middle))
        ratios = sorted(check / product for product, check in spent)
        product, check = (statistics.median(each) for each in zip(*spent, strict=True))
        verdict = "meets" if statistics.median(ratios) <= 2 else "MISSES"
        print(
            f"{case}, batch of {size}: product {product:.3f} s, check {check:.3f} s"
            f"{'' if checked else ' (sees nothing)'}, {statistics.median(ratios):.2f} "
            f"[{ratios[0]:.2f}, {ratios[-1]:.2f}] products, {verdict} 2",
            flush=True,
        )


def work(rank: int, ranks: int, case: str, folder: str, steps: int) -> None:
    """Run one process of a group: solve over its share of the batches and write the times."""
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store{ranks}", ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
    model, _, _ = trained(case, 30)
    _, pixels, size, _ = CASES[case]()
    mine = range(rank, LOADER_BATCHES, ranks)
    batches = [images(pixels, torch.arange(i * size, (i + 1) * size)) for i in mine]
    op = Hessian(model, loss, batches, distributed=True)
    dist.barrier()
    wall, start = time.perf_counter(), time.process_time()
    pairs = top_eigenvalues(op, tol=1e-30, max_steps=steps)
    spent = time.process_time() - start, time.perf_counter() - wall, float(pairs.values[0])
    torch.save(spent, f"{folder}/{ranks}-{rank}.pt")
    dist.destroy_process_group()


def processes(case: str, ranks: int, steps: int) -> tuple[float, float, float]:
    """Return the largest processor and wall time over the processes, and the eigenvalue."""
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(work, (ranks, case, folder, steps), ranks, start_method="spawn")
        spent = [torch.load(f"{folder}/{ranks}-{rank}.pt") for rank in range(ranks)]
    return max(s[0] for s in spent), max(s[1] for s in spent), spent[0][2]


def report_processes(case: str, repeats: int, steps: int = 5) -> None:
    pairs = [(processes(case, 1, steps), processes(case, 2, steps)) for _ in range(repeats)]
    cpu = sorted(one[0] / two[0] for one, two in pairs)
    wall = sorted(one[1] / two[1] for one, two in pairs)
    apart = max(abs(one[2] / two[2] - 1) for one, two in pairs)
    verdict = "meets" if statistics.median(cpu) >= 1.7 else "MISSES"
    print(
        f"\n{case}, two processes: {statistics.median(cpu):.2f} [{cpu[0]:.2f}, {cpu[-1]:.2f}] x "
        "as fast by processor "
        f"time ({verdict} 1.7), {statistics.median(wall):.2f} by wall time; eigenvalues differ "
        f"by {apart:.1e}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--settings", nargs="+", choices=SETTINGS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--loader-repeats", type=int, default=1)
    parser.add_argument(
        "--train-steps",
        type=int,
        nargs="+",
        default=[30],
        help="of AdamW before; more than one: each",
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    cpu = next(
        (line.partition(": ")[2] for line in lines if line.startswith("model name")),
        platform.processor(),
    )
    print(
        f"torch {torch.__version__}, timm {timm.__version__}, Python "
        f"{platform.python_version()}, {cpu}"
    )
    print(
        f"1 thread, {args.repeats} repetitions (loader {args.loader_repeats}); "
        f"{' '.join(sys.argv[1:])}",
        flush=True,
    )
    settings = args.settings or SETTINGS
    few = [row for row in ROWS if row.startswith(("samovar", "PyHessian"))]
    for case in args.cases:
        for train_steps in args.train_steps:
            if "one" in settings:
                report(case, "one batch", list(ROWS), args.repeats, train_steps)
            if "loader" in settings:
                report(case, "loader", few, args.loader_repeats, train_steps)
        if "check" in settings:
            report_check(case, args.repeats)
        if "processes" in settings:
            report_processes(case, args.repeats)


if __name__ == "__main__":
    main()
