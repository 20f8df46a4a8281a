"""SAM's relatives on two gloo processes: each rank climbs and combines on its own, the mean is applied and kept."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel as DDP  # noqa: N817

from samovar.sam import SAM, SamMemory, sam_backward
from samovar.sam.variant import SamVariant
from tests.e2e.ranks import run_ranks
from tests.e2e.test_sam_ddp import batch, net
from tests.unit.test_sam_family import LR, MAX_NORM, RELATIVES, STEPS, AdamW, flat, trained

RANKS, SECONDS, RHO = 2, 400, 0.1
ROUNDING = {"rtol": 1e-10, "atol": 1e-12}  # float64, and as AdamW divides by small second moments
NAMES = [name for name in RELATIVES if name not in ("sam", "every")]
OPTIONS: dict[str, dict[str, Any]] = {"as it is": {}, "views": {"gradient_as_bucket_view": True}}
# All-reduces of a step that climbs: one for what is applied, and one for every vector that is kept.
SENT = {"looksam": 3, "fsam": 2, "wsam-decoupled": 2, "gsam+looksam": 3, "ae-sam": 2, "ae-sam, unread": 2}

KEEPS = ("looksam", "gsam", "fsam", "wsam-decoupled", "stale", "ae-sam")


def part(x: Tensor, y: Tensor, group: int, num_groups: int, share: float) -> Callable[[nn.Module], Tensor]:
    size = len(y) // num_groups
    chosen = slice(group * size, group * size + int(size * share))
    return lambda model: F.cross_entropy(model(x[chosen]), y[chosen]) / num_groups


def backward_steps(name: str, model: DDP, rank: int, num_groups: int) -> None:
    """Five clipped steps."""
    variant, memory = RELATIVES[name][0], SamMemory()
    optimizer = AdamW.theirs(model.parameters())
    for t in range(STEPS):
        x, y = batch(rank, t)
        optimizer.zero_grad()
        for i in range(num_groups):
            torch.manual_seed(seed_of(t, i, rank))
            climbs = part(x, y, i, num_groups, 0.25) if name == "quarter" else None
            with nullcontext() if i == num_groups - 1 else model.no_sync():
                sam_backward(
                    part(x, y, i, num_groups, 1.0), model, rho=RHO, variant=variant, memory=memory,
                    num_groups=num_groups, optimizer=optimizer, ascent_loss_fn=climbs,
                )  # fmt: skip
        nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
        optimizer.step()
        memory.subtract_(optimizer, variant)


def adapter_steps(name: str, model: DDP, rank: int) -> None:
    sam = SAM(AdamW.theirs(model.parameters()), rho=RHO, variant=RELATIVES[name][0], model=model, clip_norm=MAX_NORM)
    for t in range(STEPS):
        x, y = batch(rank, t)

        def closure(share: float = 1.0, x=x, y=y):
            part(x, y, 0, 1, share)(model).backward()

        torch.manual_seed(seed_of(t, 0, rank))
        sam.step(closure, ascent_closure=partial(closure, 0.25) if name == "quarter" else None)


def seed_of(t: int, group: int, rank: int) -> int:
    return 1000 * t + 10 * group + rank


def buffers(rank: int) -> dict[str, Any]:
    """BatchNorm's statistics after steps of every relative, and how often buffers were sent."""
    found = {}
    for name in NAMES:
        model = DDP(net(nn.BatchNorm1d))
        with counted(model, "_sync_buffers") as sent:
            backward_steps(name, model, rank, 1)
        found[name] = [each.clone() for each in model.module.buffers()], len(sent)
    return found


def shared(rank: int) -> dict[str, Tensor]:
    """Weights after F-SAM steps whose ascents are shared, by the adapter under DDP that lends views of its buckets."""
    found = {}
    for options in OPTIONS:
        model = DDP(net(), **OPTIONS[options])
        variant = SamVariant(sigma=1.0)
        sam = SAM(torch.optim.SGD(model.parameters(), lr=LR), rho=RHO, variant=variant, shared_ascent=True)
        for t in range(4):
            x, y = batch(rank, t)
            sam.step(lambda x=x, y=y, model=model: part(x, y, 0, 1, 1.0)(model).backward())
        found[options] = flat(model.parameters())
    return found


def channels_last(rank: int) -> list[Tensor]:
    """Weights after a GSAM step of a convolution whose weights are channels last, by a fused optimizer and another."""
    found = []
    for fused in (False, True):
        torch.manual_seed(1)
        model = DDP(nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=fused)
        torch.manual_seed(10 + rank)
        x = torch.randn(2, 3, 5, 5)
        sam_backward(lambda m, x=x: m(x).square().mean(), model, rho=RHO, variant=SamVariant(alpha=0.4))
        optimizer.step()
        found.append(flat(model.parameters()))
    return found


class HalfUsed(nn.Module):
    """Its second layer is used on rank 0 alone."""

    def __init__(self, used: bool) -> None:
        super().__init__()
        self.first, self.second, self.used = net(), nn.Linear(3, 3).double(), used

    def forward(self, x):
        x = self.first(x)
        return self.second(x) if self.used else x


def unused(rank: int) -> dict[str, Tensor]:
    found = {}
    for name in KEEPS:
        model = DDP(HalfUsed(rank == 0), find_unused_parameters=True)
        backward_steps(name, model, rank, 1)
        found[name] = flat(model.parameters())
    return found


WAYS: dict[str, Callable[[str, DDP, int], None]] = {
    **{options: partial(backward_steps, num_groups=1) for options in OPTIONS},
    "groups": partial(backward_steps, num_groups=2),
    **{f"adapter, {options}": adapter_steps for options in OPTIONS},
}
WATCHED = ("as it is", "groups", "adapter, as it is")


@contextmanager
def counted(owner: Any, name: str) -> Iterator[list[int]]:
    """Counts the calls of a function inside; far quicker than a profiler."""
    calls, function = [], getattr(owner, name)
    setattr(owner, name, lambda *args, **options: calls.append(1) or function(*args, **options))
    try:
        yield calls
    finally:
        setattr(owner, name, function)


def by_python(_: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """What DDP does with a bucket, where it can be counted."""
    return dist.all_reduce(bucket.buffer() / RANKS, async_op=True).get_future().then(lambda f: f.value()[0])


def work(rank: int, folder: Path) -> None:
    """One process: every relative, in every way; writes weights and counts."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(str(folder / "store"), RANKS), rank=rank, world_size=RANKS)
    found: dict[str, Any] = {}
    for name in NAMES:
        for way, steps in WAYS.items():
            model = DDP(net(dropout=0.5), **OPTIONS.get(way.removeprefix("adapter, "), {}))
            if way in WATCHED:
                model.register_comm_hook(None, by_python)
            with counted(dist, "all_reduce") as sent:
                steps(name, model, rank)
            found[name, way] = flat(model.parameters()), len(sent)
    found["buffers"] = buffers(rank)
    found["shared"] = shared(rank)
    found["unused"] = unused(rank)
    found["channels_last"] = channels_last(rank)
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("family")
    run_ranks(work, folder, RANKS, SECONDS)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(RANKS)]


def by_formula(name: str, num_groups: int) -> Tensor:
    """The ranks' groups are groups of one batch, each of which weighs a RANKS-th of its own mean."""

    def halved(loss_fn):
        return lambda model: loss_fn(model) / RANKS

    def groups_of(t: int) -> list[tuple]:
        found = []
        for rank in range(RANKS):
            x, y = batch(rank, t)
            for i in range(num_groups):
                losses = [halved(part(x, y, i, num_groups, share)) for share in (1.0, 0.25)]
                found.append((seed_of(t, i, rank), *losses))
        return found

    return trained(name, net(dropout=0.5), AdamW, groups_of)


@pytest.mark.parametrize("name", NAMES)
def test_both_ranks_hold_the_formulas_weights_in_equal_bits_after_five_steps(ranks, name):
    expected = {1: by_formula(name, 1), 2: by_formula(name, 2)}
    for way in WAYS:
        first, second = (result[name, way][0] for result in ranks)
        assert torch.equal(first, second), way
        torch.testing.assert_close(
            first, expected[1 + (way == "groups")], **ROUNDING, msg=lambda m, way=way: f"{way}: {m}"
        )


@pytest.mark.parametrize("name", NAMES)
def test_a_step_sends_one_vector_and_one_more_for_each_that_is_kept(ranks, name):
    variant = RELATIVES[name][0]
    for result in ranks:
        for way in WATCHED:
            expected = [1 if t % variant.every else SENT.get(name, 1) for t in range(STEPS)]
            assert result[name, way][1] == sum(expected), way


def test_batchnorms_statistics_are_rank_0s_and_sent_once_a_step(ranks):
    for name in NAMES:
        (first, sent), (second, _) = (result["buffers"][name] for result in ranks)
        climbed = (STEPS - 1) % RELATIVES[name][0].every == 0 and not RELATIVES[name][0].one_pass
        # after a plain step each rank has its own, until the next one begins, as DDP does it
        assert all(torch.equal(a, b) for a, b in zip(first[:2], second[:2], strict=True)) == climbed, name
        assert int(first[-1]) == STEPS, "counted once a step"
        assert sent == STEPS, "and sent once"


def test_fsams_average_is_of_ascent_gradients_also_where_ddp_lends_views_of_its_buckets(ranks):
    for result in ranks:
        for options in OPTIONS:
            torch.testing.assert_close(result["shared"][options], result["shared"]["as it is"], **ROUNDING)


def test_a_layer_that_one_rank_alone_uses_is_equal_on_both(ranks):
    for name in KEEPS:
        first, second = (result["unused"][name] for result in ranks)
        assert torch.equal(first, second), name
        assert bool(first.isfinite().all())


def test_a_fused_optimizer_gets_gradients_in_the_memory_order_of_their_parameters(ranks):
    for result in ranks:
        one_by_one, fused = result["channels_last"]
        torch.testing.assert_close(fused, one_by_one, rtol=1e-6, atol=1e-7)  # float32
