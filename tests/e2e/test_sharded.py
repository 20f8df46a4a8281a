"""SAM on parameters that fully_shard has split over 2 and 4 gloo processes, and over 2 x 2, equals one process."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F

from samovar import Hessian
from samovar.sam import SAM, InputAscent, SamMemory, sam_backward
from samovar.sam.shards import clip_, local, whole
from samovar.sam.variant import SamVariant
from tests.e2e.ranks import run_ranks
from tests.e2e.test_sam_ddp import net
from tests.unit.test_sam_family import LR, RELATIVES, STEPS

RANKS, SECONDS, RHO, MAX_NORM = 4, 400, 0.1, 0.5
EXACT = {"rtol": 0.0, "atol": 1e-12}  # float64
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "adamw": lambda params: torch.optim.AdamW(params, lr=LR, weight_decay=0.3),
    "sgd": lambda params: torch.optim.SGD(params, lr=LR, momentum=0.9),
}
NAMES = [name for name, (variant, _) in RELATIVES.items() if not variant.noise]


class Layout(NamedTuple):
    """Ranks that share the weights, and the number of such sets."""

    shards: int
    replicas: int = 1


LAYOUTS = {"full 2": Layout(2), "full 4": Layout(4), "hybrid 2 x 2": Layout(2, 2)}
CASES = [
    *((layout, kind, name) for layout in ("full 4", "hybrid 2 x 2") for kind in OPTIMIZERS for name in NAMES),
    # of two ranks those that differ in what is sent: nothing, numbers of the whole and of each parameter
    *(("full 2", kind, name) for kind in OPTIMIZERS for name in ("sam", "gsam+looksam", "layerwise")),
]


def batch(t: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(10 + t)
    x = torch.randn(16, 5, dtype=torch.float64, generator=generator)
    return x, torch.randint(3, (16,), generator=generator)


def mean_loss(x: Tensor, y: Tensor, share: float = 1.0, weight: float = 1.0) -> Callable[[nn.Module], Tensor]:
    """The first quarter of a rank's examples is not that of the batch, so every fourth is taken instead."""
    chosen = slice(None, None, int(1 / share))
    return lambda model: weight * F.cross_entropy(model(x[chosen]), y[chosen])


def sharded(model: nn.Module, mesh: Any) -> nn.Module:
    fully_shard(model[4], mesh=mesh)  # 3 rows: one of 4 ranks holds none
    return fully_shard(model, mesh=mesh)


def backward_steps(
    name: str, model: nn.Module, optimizer: torch.optim.Optimizer, groups_of: Callable[[int], list], **options: Any
) -> SamMemory:
    variant, memory = RELATIVES[name][0], SamMemory(STEPS)
    for t in range(STEPS):
        optimizer.zero_grad()
        groups = groups_of(t)
        for x, y in groups:
            weight = 1 / len(groups)
            part = mean_loss(x, y, 0.25, weight) if name == "quarter" else None
            sam_backward(
                mean_loss(x, y, weight=weight), model, rho=RHO, variant=variant, memory=memory,
                num_groups=len(groups), optimizer=optimizer, ascent_loss_fn=part, **options,
            )  # fmt: skip
        clip_(model.parameters(), MAX_NORM, memory.shards)
        optimizer.step()
        memory.subtract_(optimizer, variant)
    return memory


def adapter_steps(name: str, model: nn.Module, base: torch.optim.Optimizer, groups_of: Callable[[int], list]) -> SAM:
    sam = SAM(base, rho=RHO, variant=RELATIVES[name][0], model=model, clip_norm=MAX_NORM, num_steps=STEPS)
    for t in range(STEPS):
        ((x, y),) = groups_of(t)

        def closure(share: float = 1.0, x=x, y=y):
            mean_loss(x, y, share)(model).backward()

        sam.step(closure, ascent_closure=(lambda c=closure: c(0.25)) if name == "quarter" else None)
    return sam


def groups(t: int, count: int) -> list[tuple[Tensor, Tensor]]:
    x, y = batch(t)
    return list(zip(x.chunk(count), y.chunk(count), strict=True))


def flat(model: nn.Module) -> Tensor:
    return torch.cat([whole(each).detach().flatten() for each in model.parameters()])


@contextmanager
def counted(owner: Any, name: str) -> Iterator[list[int]]:
    """The sizes of what is sent inside."""
    sizes, function = [], getattr(owner, name)

    def counting(tensor: Tensor, *args: Any, **options: Any) -> Any:
        sizes.append(tensor.numel())
        return function(tensor, *args, **options)

    setattr(owner, name, counting)
    try:
        yield sizes
    finally:
        setattr(owner, name, function)


def relatives(rank: int, meshes: dict[str, Any]) -> dict[Any, Tensor]:
    found = {}
    for layout, (count, replicas) in LAYOUTS.items():
        mesh, across = meshes[layout]
        place = rank % count + count * (rank // count if replicas > 1 else 0)
        mine = lambda t, place=place, n=count * replicas: groups(t, n)[place : place + 1]  # noqa: E731
        for name in NAMES:
            for kind, optimizer_of in OPTIMIZERS.items():
                model = sharded(net(), mesh)
                if (layout, kind, name) not in CASES:
                    continue
                backward_steps(name, model, optimizer_of(model.parameters()), mine, replicas=across)
                found[layout, name, kind] = flat(model)
                if layout == "full 4" and kind == "adamw":
                    model = sharded(net(), mesh)
                    adapter_steps(name, model, optimizer_of(model.parameters()), mine)
                    found[layout, name, kind, "adapter"] = flat(model)
    return found


def groups_of_m(rank: int, mesh: Any) -> Tensor:
    """m-sharpness: two groups a step, each the same share of all ranks' examples."""
    model = sharded(net(), mesh)

    def mine(t: int) -> list[tuple[Tensor, Tensor]]:
        return [(x.chunk(RANKS)[rank], y.chunk(RANKS)[rank]) for x, y in groups(t, 2)]

    backward_steps("fsam", model, OPTIMIZERS["adamw"](model.parameters()), mine)
    return flat(model)


def exactness(rank: int, mesh: Any) -> dict[str, Any]:
    """Weights come back bit for bit, also after an error and gathered weights; what a call sends and keeps."""
    model, (x, y), found = sharded(net(), mesh), batch(0), {}
    params = list(model.parameters())  # after an evaluation the root names gathered ones
    before, places = [local(p).clone() for p in params], [local(p).data_ptr() for p in params]
    with torch.no_grad():
        model(x)  # leaves the root's weights gathered
    with counted(dist, "all_reduce") as sent:
        sam_backward(mean_loss(x, y), model, rho=RHO)
    found["sent"] = sent
    calls = []

    def fails(model: nn.Module) -> Tensor:
        loss = F.cross_entropy(model(x), y)
        calls.append(1)
        if len(calls) == 2:
            raise ZeroDivisionError
        return loss

    with pytest.raises(ZeroDivisionError):
        sam_backward(fails, model, rho=RHO)
    with torch.no_grad():
        found["loss after an error"] = F.cross_entropy(model(x), y)
    found["same"] = all(torch.equal(local(p), b) for p, b in zip(params, before, strict=True))
    found["same"] &= [local(p).data_ptr() for p in params] == places
    return found


def memory(rank: int, mesh: Any) -> dict[str, int]:
    """Bytes of the tensors that are there when the descent begins, beyond those before the call."""
    model = nn.Sequential(*(nn.Linear(256, 256) for _ in range(4)))
    for block in model:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    x, found = torch.randn(4, 256), []

    def loss_fn(model: nn.Module) -> Tensor:
        found.append(live())
        return model(x).square().mean()

    for _ in range(2):  # the first call sets FSDP up
        model.zero_grad()
        found.clear()
        before = live()
        sam_backward(loss_fn, model, rho=RHO)
    return {"extra": found[1] - before, "shard": sum(local(p).nbytes for p in model.parameters())}


def live() -> int:
    gc.collect()
    tensors = [each for each in gc.get_objects() if isinstance(each, Tensor) and not hasattr(each, "placements")]
    return sum({s.data_ptr(): s.nbytes() for s in (each.untyped_storage() for each in tensors)}.values())


def scaled(rank: int | None, mesh: Any) -> dict[str, Any]:
    """A gradient scaler over three steps, the second of which is not finite in an example of the last rank."""
    model = net() if rank is None else sharded(net(), mesh)
    optimizer, scaler = OPTIMIZERS["adamw"](model.parameters()), torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for t in range(3):
        x, y = batch(t)
        x[-1] = torch.nan if t == 1 else x[-1]
        if rank is not None:
            x, y = x.chunk(RANKS)[rank], y.chunk(RANKS)[rank]
        optimizer.zero_grad()
        sam_backward(mean_loss(x, y), model, rho=RHO, scaler=scaler)
        scaler.step(optimizer)
        scaler.update()
    return {"weights": flat(model), "scale": scaler.get_scale()}


def inputs(rank: int, mesh: Any) -> Tensor:
    """Images that climb with the weights: the gradient left."""
    model = sharded(net(), mesh)
    x, y = (each.chunk(RANKS)[rank].clone() for each in batch(0))
    sam_backward(mean_loss(x, y), model, rho=RHO, input_ascent=climbing(x))
    return torch.cat([whole(each.grad).flatten() for each in model.parameters()])


def climbing(x: Tensor) -> InputAscent:
    return InputAscent([x], lambda grads: x.add_(0.01 * grads[0].sign()))


def refused(rank: int, mesh: Any) -> list[str]:
    (x, y), messages = batch(0), []
    model, partly, unsynced = sharded(net(), mesh), net(), sharded(net(), mesh)
    fully_shard(partly[0], mesh=mesh)
    unsynced.set_requires_gradient_sync(False)
    sgd = OPTIMIZERS["sgd"]
    for call in (
        lambda: sam_backward(mean_loss(x, y), model, rho=RHO, variant=SamVariant(noise=True), memory=SamMemory()),
        lambda: sam_backward(mean_loss(x, y), partly, rho=RHO),
        lambda: SAM(sgd(model.parameters())).step(lambda: mean_loss(x, y)(model).backward()),
        lambda: sam_backward(mean_loss(x, y), unsynced, rho=RHO),
        lambda: Hessian(model, lambda m, b: F.cross_entropy(m(b[0]), b[1]), [(x, y)]),
    ):
        try:
            call()
        except (ValueError, RuntimeError) as error:
            messages.append(str(error))
    return messages


def resumed(rank: int, meshes: dict[str, Any]) -> dict[str, Tensor]:
    """LookSAM's adapter: three steps, its state loaded as it is and gathered, two more."""
    mesh, _ = meshes["full 4"]
    mine = lambda t: groups(t, RANKS)[rank : rank + 1]  # noqa: E731
    model = sharded(net(), mesh)
    sam = adapter_steps("looksam", model, OPTIMIZERS["sgd"](model.parameters()), mine)
    state = sam.state_dict()["sam"]
    found = {"kinds": all(hasattr(v, "placements") for v in state["component"].values())}
    memory = SamMemory()
    memory.load_state_dict(state | {"component": {n: whole(v) for n, v in state["component"].items()}})
    memory.attach(sam._params(), sam.memory.shards)
    found["parts"] = all(torch.equal(memory.component[n], v) for n, v in sam.memory.component.items())
    return found


def work(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(str(folder / "store"), RANKS), rank=rank, world_size=RANKS)
    square = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replica", "shard"))
    full = init_device_mesh("cpu", (RANKS,))
    meshes = {
        "full 2": (square["shard"], None),
        "full 4": (full, None),
        "hybrid 2 x 2": (square["shard"], square["replica"].get_group()),
    }
    found = {
        "relatives": relatives(rank, meshes),
        "m": groups_of_m(rank, full),
        "exactness": exactness(rank, full),
        "memory": memory(rank, full),
        "scaled": scaled(rank, full),
        "inputs": inputs(rank, full),
        "refused": refused(rank, full),
        "resumed": resumed(rank, meshes),
    }
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("sharded")
    run_ranks(work, folder, RANKS, SECONDS)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(RANKS)]


def alone(name: str, kind: str, num_groups: int) -> Tensor:
    model = net()
    backward_steps(name, model, OPTIMIZERS[kind](model.parameters()), lambda t: groups(t, num_groups))
    return flat(model)


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("name", NAMES)
def test_every_relative_equals_one_process_after_five_steps(ranks, name, kind):
    for layout, (_, replicas) in LAYOUTS.items():
        expected = alone(name, kind, replicas)
        way = (layout, name, kind)
        ways = [way] * ((layout, kind, name) in CASES)
        ways += [(*way, "adapter")] * ((layout, kind) == ("full 4", "adamw"))
        for way in ways:
            for result in ranks:
                torch.testing.assert_close(
                    result["relatives"][way], expected, **EXACT, msg=lambda m, way=way: f"{way}: {m}"
                )


def test_groups_of_m_are_groups_of_all_ranks(ranks):
    torch.testing.assert_close(ranks[0]["m"], alone("fsam", "adamw", 2), **EXACT)


def test_shards_come_back_bit_for_bit_and_a_norm_sends_one_number(ranks):
    model, (x, y) = net(), batch(0)
    for result in ranks:
        found = result["exactness"]
        assert found["same"]
        assert found["sent"] == [1]
        torch.testing.assert_close(found["loss after an error"], F.cross_entropy(model(x), y).detach(), **EXACT)


def test_sam_keeps_one_copy_of_the_shard(ranks):
    for result in ranks:
        extra, shard = result["memory"]["extra"], result["memory"]["shard"]
        assert shard == 4 * 256 * 257 * 4 / RANKS
        assert shard <= extra <= shard + 2 * 4 * 256 * 4, "and no more than two activations [4, 256] besides"


def test_a_gradient_scaler_skips_the_step_on_all_ranks(ranks):
    expected = scaled(None, None)
    assert expected["scale"] == 2.0**9
    for result in ranks:
        assert result["scaled"]["scale"] == 2.0**9
        torch.testing.assert_close(result["scaled"]["weights"], expected["weights"], **EXACT)


def test_inputs_climb_with_sharded_weights(ranks):
    model, (x, y) = net(), batch(0)
    sam_backward(mean_loss(x, y), model, rho=RHO, input_ascent=climbing(x))
    expected = torch.cat([each.grad.flatten() for each in model.parameters()])
    torch.testing.assert_close(ranks[0]["inputs"], expected, **EXACT)


def test_what_cannot_be_right_is_refused_with_the_way_out(ranks):
    for result in ranks:
        noise, partly, unnamed, unsynced, curvature = result["refused"]
        assert "use DDP for ARWP" in noise
        assert "2 of 6 trainable parameters are sharded" in partly
        assert "SAM(base_optimizer, model=model)" in unnamed
        assert "set_requires_gradient_sync(False)" in unsynced
        assert "measure whole weights" in curvature


def test_what_a_relative_keeps_is_sharded_in_its_state_and_loads_whole(ranks):
    assert all(result["resumed"] == {"kinds": True, "parts": True} for result in ranks)
