"""Adversarial training against loops written out, and everything that a step must leave as it was."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from itertools import islice
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from samovar import recipes
from samovar.attacks import pgd
from samovar.config import AdversarialConfig, Config, OptimConfig, RunConfig, SamConfig
from samovar.data.loader import Batch, batches, eval_batches
from samovar.objectives import adversarial, make_objective
from samovar.runs.records import RunDir
from samovar.runtime import Runtime
from samovar.sam import InputAscent, sam_backward
from samovar.train.fit import fit, prepare
from samovar.train.loop import TrainState, backward, steps
from tests.conftest import assert_refused

CPU = Runtime(torch.device("cpu"), torch.float32)
ROUNDING = {"rtol": 1e-12, "atol": 1e-14}  # float64: a few hundred operations of 1e-16 each
EPS, STEP = 0.1, 0.05


# --- sam_backward with inputs that climb, in float64 -----------------------------------------------------------------


def net(dropout: float = 0.0, norm: bool = False) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Linear(6, 8), nn.BatchNorm1d(8) if norm else nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 3)]
    return nn.Sequential(*layers).double()


def task(size: int = 12) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.rand(size, 6, dtype=torch.float64), torch.randint(3, (size,))


class Seen(NamedTuple):
    """What each call of the loss function saw."""

    inputs: list[Tensor]
    weights: list[list[Tensor]]
    flags: list[bool]


def watched(x: Tensor, y: Tensor, weight: float = 1.0) -> tuple[Callable[[nn.Module], Tensor], Seen]:
    seen = Seen([], [], [])

    def loss_fn(model: nn.Module) -> Tensor:
        seen.inputs.append(x.detach().clone())
        seen.weights.append([p.detach().clone() for p in model.parameters()])
        seen.flags.append(x.requires_grad)
        return weight * F.cross_entropy(model(x), y)

    return loss_fn, seen


def signs(*inputs: Tensor, num_steps: int = 1, got: list | None = None) -> InputAscent:
    def move(grads):
        if got is not None:
            got.append([g.clone() for g in grads])
        for each, g in zip(inputs, grads, strict=True):
            each += STEP * g.sign()

    return InputAscent(inputs, move, num_steps)


def grads(model: nn.Module) -> list[Tensor]:
    return [p.grad for p in model.parameters()]


def assert_same(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, **ROUNDING)


def weights_moved(model: nn.Module, g: list[Tensor], rho: float, adaptive: bool) -> nn.Module:
    """w + rho T^2 g / |T g|, with T of ASAM, on a copy."""
    model = deepcopy(model)
    named = dict(model.named_parameters())
    t = [w.detach().abs() + 0.01 if adaptive and "weight" in n else torch.ones_like(w) for n, w in named.items()]
    norm = sum(float(((a * b) ** 2).sum()) for a, b in zip(t, g, strict=True)) ** 0.5
    with torch.no_grad():
        for w, gi, ti in zip(model.parameters(), g, t, strict=True):
            w += rho * ti**2 * gi / norm if rho else 0
    return model


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("num_steps", [1, 3])
@pytest.mark.parametrize("rho", [0.0, 0.3])
def test_both_ascents_start_at_the_same_point_and_the_gradient_is_that_of_both_moved(rho, num_steps, adaptive):
    model, (x, y), got = net(), task(), []
    # the loop written out: images climb at the clean weights, the weights from where the images' last step starts
    points = x.clone().requires_grad_()
    slopes = []
    for _ in range(num_steps):
        *g, slope = torch.autograd.grad(F.cross_entropy(model(points), y), [*model.parameters(), points])
        slopes.append(slope)
        start, points = points, (points + STEP * slope.sign()).detach().requires_grad_()
    top = weights_moved(model, g, rho, adaptive)
    wanted = torch.autograd.grad(F.cross_entropy(top(points), y), list(top.parameters()))
    loss_before_the_last_move = F.cross_entropy(model(start), y)

    loss_fn, seen = watched(x, y)
    loss = sam_backward(loss_fn, model, rho=rho, adaptive=adaptive, input_ascent=signs(x, num_steps=num_steps, got=got))
    assert_same([each[0] for each in got], slopes)
    assert_same([seen.inputs[-2], seen.inputs[-1]], [start, points])
    assert_same(seen.weights[-1], list(top.parameters()))
    assert_same(grads(model), list(wanted))
    torch.testing.assert_close(loss, loss_before_the_last_move, **ROUNDING)
    assert len(seen.inputs) == num_steps + 1


def test_micro_batches_of_one_group_are_that_group():
    (x, y), whole, parts = task(), net(), net()
    xs = [piece.clone() for piece in x.split(5)]
    losses = [watched(xi, yi, len(yi) / 12)[0] for xi, yi in zip(xs, y.split(5), strict=True)]
    sam_backward(losses, parts, rho=0.3, input_ascent=signs(*xs, num_steps=2))
    sam_backward(watched(x, y)[0], whole, rho=0.3, input_ascent=signs(x, num_steps=2))
    assert torch.equal(torch.cat(xs), x)
    assert_same(grads(parts), grads(whole))


@pytest.mark.parametrize("rho", [0.0, 0.3])
def test_inputs_need_a_gradient_in_the_ascent_only_and_never_keep_one(rho):
    model, (x, y) = net(), task()
    loss_fn, seen = watched(x, y)
    sam_backward(loss_fn, model, rho=rho, input_ascent=signs(x, num_steps=2))
    assert seen.flags == [True, True, False]
    assert x.grad is None
    assert not x.requires_grad


@pytest.mark.parametrize("rho", [0.0, 0.3])
def test_all_passes_have_the_dropout_masks_of_an_ordinary_pass(rho):
    model, (x, y), masks = net(dropout=0.5), task(), []
    model[2].register_forward_hook(lambda _, args, out: masks.append(out.detach() == 0))
    torch.manual_seed(5)
    model(x)
    after = torch.rand(3)
    torch.manual_seed(5)
    sam_backward(watched(x, y)[0], model, rho=rho, input_ascent=signs(x, num_steps=3))
    assert torch.equal(torch.rand(3), after)
    assert len(masks) == 5
    assert all(torch.equal(mask, masks[0]) for mask in masks)


@pytest.mark.parametrize("num_steps", [1, 3])
@pytest.mark.parametrize("rho", [0.0, 0.3])
def test_batchnorm_counts_the_weights_own_ascent_once_and_no_other_pass(rho, num_steps):
    model, (x, y) = net(norm=True), task()
    twin = deepcopy(model)
    loss_fn, seen = watched(x, y)
    sam_backward(loss_fn, model, rho=rho, input_ascent=signs(x, num_steps=num_steps))
    twin(seen.inputs[num_steps - 1])
    assert model[1].num_batches_tracked == 1
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), twin.buffers(), strict=True))


@pytest.mark.parametrize("fail_at", [1, 2, 3])
def test_an_exception_in_any_pass_leaves_weights_and_flags_as_they_were(fail_at):
    model, (x, y), calls = net(norm=True), task(), []
    before = deepcopy(model)

    def loss_fn(model):
        calls.append(1)
        loss = F.cross_entropy(model(x), y)
        if len(calls) == fail_at:
            raise KeyboardInterrupt
        return loss

    with pytest.raises(KeyboardInterrupt):
        sam_backward(loss_fn, model, rho=0.3, input_ascent=signs(x, num_steps=2))
    assert not x.requires_grad
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters(), strict=True))
    assert model[1].num_batches_tracked == int(fail_at > 1)


class BadGradient(torch.autograd.Function):
    """Identity whose gradient is not finite in the first three elements."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        g = g.clone()
        g.view(-1)[:3] = torch.tensor([float("nan"), float("inf"), -float("inf")])
        return g


@pytest.mark.parametrize("rho", [0.0, 0.3])
def test_where_a_gradient_is_not_finite_the_input_stays_and_the_others_move(rho):
    model, (x, y), got = net(), task(), []
    start = x.clone()

    def loss_fn(model):
        return F.cross_entropy(model(BadGradient.apply(x) if x.requires_grad else x), y)

    sam_backward(loss_fn, model, rho=rho, input_ascent=signs(x, got=got))
    assert torch.equal(x.flatten()[:3], start.flatten()[:3])
    assert (x != start).flatten()[3:].all()
    assert all(g.isfinite().all() for g in grads(model))


def test_an_input_that_no_loss_reads_gets_a_gradient_of_zeros():
    model, (x, y), got = net(), task(), []
    idle = torch.ones(2, 2)
    sam_backward(watched(x, y)[0], model, rho=0.3, input_ascent=signs(x, idle, got=got))
    assert torch.equal(got[0][1], torch.zeros(2, 2))
    assert torch.equal(idle, torch.ones(2, 2))


def test_a_scaler_changes_neither_the_path_of_the_inputs_nor_the_gradient():
    ours, theirs, (x, y) = net(), net(), task()
    twin = x.clone()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    loss = sam_backward(watched(x, y)[0], ours, rho=0.3, scaler=scaler, input_ascent=signs(x, num_steps=2))
    plain = sam_backward(watched(twin, y)[0], theirs, rho=0.3, input_ascent=signs(twin, num_steps=2))
    assert torch.equal(x, twin)
    assert torch.equal(loss, plain)
    assert_same(grads(ours), [1024 * g for g in grads(theirs)])


def test_an_outer_autocast_does_not_hide_that_inputs_have_moved():
    inner, outer, (x, y) = net().float(), net().float(), task()
    x, twin = x.float(), x.float()

    def inside(model):
        with torch.autocast("cpu", torch.bfloat16):
            return F.cross_entropy(model(x).float(), y)

    sam_backward(inside, inner, rho=2.0, input_ascent=signs(x, num_steps=3))
    with torch.autocast("cpu", torch.bfloat16):
        loss_fn = watched(twin, y)[0]
        sam_backward(loss_fn, outer, rho=2.0, input_ascent=signs(twin, num_steps=3))
    assert torch.equal(x, twin)
    assert all(torch.equal(a, b) for a, b in zip(grads(inner), grads(outer), strict=True))


@pytest.mark.costly
def test_a_compiled_model_is_compiled_for_the_ascent_and_for_the_descent_and_never_again():
    torch._dynamo.reset()
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    model, eager, (x, y) = net(norm=True), net(norm=True), task()
    compiled = torch.compile(model, backend=backend)
    for _ in range(2):
        a, b = x.clone(), x.clone()
        model.zero_grad()
        eager.zero_grad()
        sam_backward(watched(a, y)[0], compiled, rho=0.3, input_ascent=signs(a, num_steps=2))
        sam_backward(watched(b, y)[0], eager, rho=0.3, input_ascent=signs(b, num_steps=2))
    assert_same(grads(model), grads(eager))
    assert_same(list(model.buffers()), list(eager.buffers()))
    assert len(graphs) == 2


def test_no_steps_are_refused_in_one_line():
    model, (x, y) = net(), task()
    with pytest.raises(ValueError, match="num_steps=0 moves no input"):
        sam_backward(watched(x, y)[0], model, rho=0.3, input_ascent=signs(x, num_steps=0))


# --- the attack ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_steps", "given", "wanted"), [(1, 0.0, 1.25 * EPS), (5, 0.0, EPS / 2), (1, 0.03, 0.03), (5, 0.03, 0.03)]
)
def test_the_usual_step_is_a_quarter_more_than_eps_and_several_go_two_and_a_half_eps(num_steps, given, wanted):
    config = AdversarialConfig(eps=EPS, num_steps=num_steps, step_size=given)
    assert adversarial.step_size(config) == pytest.approx(wanted, rel=1e-12)


def test_a_random_start_is_a_function_of_its_seeds_alone_and_uniform():
    images = torch.full((64, 1, 8, 8), 0.5)
    config = AdversarialConfig(eps=EPS)
    state = torch.get_rng_state()
    start = adversarial.begin(images, config, 0, 7, 0).points
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    assert torch.equal(adversarial.begin(images, config, 0, 7, 0).points, start)
    for other in ((1, 7, 0), (0, 8, 0), (0, 7, 1)):
        assert not torch.equal(adversarial.begin(images, config, *other).points, start)
    change = (start - 0.5) / EPS
    # 4096 draws from U(-1, 1): 4 standard errors of the mean and of the mean square
    assert abs(float(change.mean())) < 4 * (1 / 3 / 4096) ** 0.5
    assert abs(float(change.square().mean()) - 1 / 3) < 4 * (4 / 45 / 4096) ** 0.5


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 0.3, 0.5, 1 / 3, 0.9, 0.999, 1.0])
def test_any_images_in_a_row_have_their_share_of_clean_ones(share):
    clean = adversarial.clean_places(200, share).tolist()
    assert sum(clean) == pytest.approx(200 * share, abs=0.51)
    for size in (1, 2, 5, 10, 32, 64):
        wanted = size * share
        nearest = {round(wanted)} if abs(wanted - round(wanted)) < 1e-9 else {int(wanted), int(wanted) + 1}
        assert {sum(clean[first : first + size]) for first in range(200 - size)} <= nearest


# --- a step of training ----------------------------------------------------------------------------------------------


def config(**changes) -> Config:
    base = recipes.get("vit-digits").config()
    settings = {"adversarial": AdversarialConfig(eps=EPS)} | changes
    return replace(base, **{"steps": 6, "optim": OptimConfig(lr=1e-3, clip_norm=1.0), **settings})


def changed(settings: Config, section: str, **values) -> Config:
    return replace(settings, **{section: replace(getattr(settings, section), **values)})


def start(settings: Config, runtime: Runtime = CPU) -> tuple[TrainState, Batch]:
    """A state a few steps from the start (a zero head has no gradient below it), and a batch."""
    source, state = prepare(settings, runtime)
    torch.manual_seed(4)
    head = state.model.body.get_classifier()
    nn.init.normal_(head.weight, std=0.1)
    return state, next(batches(source, settings.data, seed=0, stop=1, device=runtime.device))


def gradient(settings: Config, runtime: Runtime = CPU) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Loss, gradient, and the images of each forward pass."""
    (state, batch), images = start(settings, runtime), []
    state.model.train()
    state.model.register_forward_pre_hook(lambda _, args: images.append(args[0].detach().clone()))
    torch.manual_seed(0)
    loss = backward(state, batch, make_objective(settings, 10), settings, runtime)
    return loss, grads(state.model), images


class Work:
    """Counts images through forward and backward passes."""

    def __init__(self, model: nn.Module) -> None:
        self.forward, self.backward = [], []
        model.register_forward_hook(lambda module, args, out: self.forward.append(len(out)))
        model.register_full_backward_hook(lambda module, grads, out: self.backward.append(len(out[0])))


@pytest.mark.parametrize("micro_batch", [0, 8])
@pytest.mark.parametrize("m", [0, 32])
@pytest.mark.parametrize(
    ("rho", "attack", "passes"),
    [
        (0.0, {"eps": 0.0}, 1),
        (0.1, {"eps": 0.0}, 2),
        (0.0, {"eps": EPS}, 2),
        (0.1, {"eps": EPS}, 2),
        (0.0, {"eps": EPS, "num_steps": 3}, 4),
        (0.1, {"eps": EPS, "num_steps": 3}, 4),
        (0.0, {"eps": EPS, "clean_share": 1.0}, 1),
        (0.1, {"eps": EPS, "clean_share": 1.0}, 2),
    ],
)
def test_sam_with_fgsm_costs_two_forward_and_two_backward_passes_and_pgd_one_a_step_more(
    rho, attack, passes, m, micro_batch
):
    settings = config(
        adversarial=AdversarialConfig(**attack), sam=SamConfig(rho=rho, m=m), run=RunConfig(micro_batch=micro_batch)
    )
    state, batch = start(settings)
    work = Work(state.model.body.blocks[0])
    backward(state, batch, make_objective(settings, 10), settings, CPU)
    pieces = 64 // micro_batch if micro_batch else 64 // m if m and rho else 1
    assert work.forward == work.backward == [64 // pieces] * (passes * pieces)


@pytest.mark.parametrize("rho", [0.0, 0.1])
@pytest.mark.parametrize("m", [0, 16])
def test_the_gradient_of_a_step_is_the_loops_written_out(rho, m):
    """Over groups of m, from the step's random start; the ball by torch.clamp alone."""
    settings = config(sam=SamConfig(rho=rho, m=m), adversarial=AdversarialConfig(eps=EPS, num_steps=2))
    state, batch = start(settings)
    state.model.train()
    points = adversarial.begin(batch.images, settings.adversarial, 0, 0, 0).points
    total = [torch.zeros_like(p) for p in state.model.parameters()]
    size = m if rho and m else len(batch)
    for x, clean, y in zip(*(part.split(size) for part in (points, batch.images, batch.labels)), strict=True):
        for _ in range(2):
            x = x.detach().requires_grad_()
            *g, slope = torch.autograd.grad(F.cross_entropy(state.model(x), y), [*state.model.parameters(), x])
            x = (clean + (x + 1.25 * EPS * slope.sign() - clean).clamp(-EPS, EPS)).clamp(0, 1).detach()
        top = weights_moved(state.model, g, rho, adaptive=False)
        parts = torch.autograd.grad(F.cross_entropy(top(x), y), list(top.parameters()))
        total = [t + part * size / len(batch) for t, part in zip(total, parts, strict=True)]
    _, ours, _ = gradient(settings)
    difference = sum(float((a - b).square().sum()) for a, b in zip(ours, total, strict=True)) ** 0.5
    # float32: the order of sums differs, and of some pixels of no slope to speak of the sign
    assert difference < 1e-3 * sum(float(b.square().sum()) for b in total) ** 0.5


def test_each_step_and_rank_of_a_run_has_a_random_start_of_its_own():
    settings = replace(config(), seed=3)
    for rank in (0, 1):
        (state, batch), images = start(settings), []
        state.model.register_forward_pre_hook(lambda _, args, seen=images: seen.append(args[0].detach().clone()))
        runtime = replace(CPU, rank=rank)
        for _ in steps(state, [batch] * 2, make_objective(settings, 10), settings, runtime, 6):
            pass
        for step, seen in enumerate(images[::2]):
            assert torch.equal(seen, adversarial.begin(batch.images, settings.adversarial, 3, step, rank).points)


def test_the_random_start_depends_on_neither_groups_nor_micro_batches():
    whole = config(sam=SamConfig(rho=0.1))
    _, _, images = gradient(whole)
    for m, micro_batch in ((16, 0), (16, 4), (0, 5)):
        settings = replace(whole, sam=SamConfig(rho=0.1, m=m), run=RunConfig(micro_batch=micro_batch))
        _, _, pieces = gradient(settings)
        size = m or 64
        ascents = [torch.cat(part) for part in halves(pieces, 64 // size)]
        assert torch.equal(torch.cat(ascents), images[0])


def halves(pieces: list[Tensor], groups: int) -> list[list[Tensor]]:
    """Of each group's passes, which are its ascent and its descent, the first."""
    each = len(pieces) // groups
    return [pieces[i * each : i * each + each // 2] for i in range(groups)]


@pytest.mark.parametrize(
    "changes",
    [
        {"data": {"mixup": 0.2}},
        {"loss": "sigmoid", "label_smoothing": 0.1},
        {"run": {"channels_last": True}, "model": {"name": "resnet-digits"}},
        {"run": {"micro_batch": 24}, "sam": {"m": 32, "rho": 0.1}},
        {"model": {"dropout": 0.1, "drop_path": 0.1}},
        {"sam": {"rho": 0.5, "adaptive": True}, "model": {"name": "mixer-digits"}},
    ],
    ids=lambda changes: "-".join(changes),
)
@pytest.mark.parametrize("clean_share", [0.0, 0.25])
def test_whatever_else_is_on_the_attack_raises_the_loss_within_its_ball(changes, clean_share):
    settings = config(adversarial=AdversarialConfig(eps=EPS, clean_share=clean_share))
    for name, value in changes.items():
        settings = changed(settings, name, **value) if isinstance(value, dict) else replace(settings, **{name: value})
    state, batch = start(settings)
    _, found, images = gradient(settings)
    passes = [torch.cat(images[i : i + len(images) // 2]) for i in (0, len(images) // 2)] if not settings.sam.m else []
    for points in passes:
        change = (points - batch.images).abs().amax(dim=(1, 2, 3))
        assert change.max() <= EPS + 1e-7
        assert points.min() >= 0
        assert points.max() <= 1
        assert int((change == 0).sum()) == round(64 * clean_share)
    if settings.run.channels_last:
        assert all(each.is_contiguous(memory_format=torch.channels_last) for each in images)
    objective = make_objective(settings, 10)
    with torch.no_grad():
        losses = [objective(state.model.eval(), replace(batch, images=points)).value for points in passes]
    assert losses == sorted(losses)
    assert all(g.isfinite().all() for g in found)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rho", [0.0, 0.1])
def test_half_precision_attacks_nearly_the_same_pixels(dtype, rho):
    settings = config(sam=SamConfig(rho=rho))
    _, _, exact = gradient(settings)
    runtime = Runtime(torch.device("cpu"), dtype)
    _, _, rough = gradient(settings, runtime)
    moved = exact[1] != exact[0]
    agreed = ((rough[1] - rough[0]).sign() == (exact[1] - exact[0]).sign())[moved].float().mean()
    assert agreed > 0.95  # 8 or 11 bits turn the sign of slopes near 0
    state, batch = start(settings, runtime)
    done = list(steps(state, [batch] * 5, make_objective(settings, 10), settings, runtime, 6))
    assert all(bool(step.finite) for step in done[1:])  # fp16 may need one step to find its scale
    assert done[-1].loss < done[0].loss


class NoSync(TorchDispatchMode):
    """Refuses what makes the host wait for a device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket not in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero), func
        return func(*args, **(kwargs or {}))


def test_the_host_never_waits_for_the_device():
    settings = config(sam=SamConfig(rho=0.1, m=16), adversarial=AdversarialConfig(EPS, num_steps=2, clean_share=0.3))
    state, batch = start(settings)
    with NoSync():
        backward(state, batch, make_objective(settings, 10), settings, CPU)


@pytest.mark.parametrize("rho", [0.0, 0.1])
@pytest.mark.parametrize("attack", [{"eps": 0.0}, {"eps": EPS, "clean_share": 1.0}])
def test_eps_0_or_a_clean_share_of_1_is_ordinary_training_bit_for_bit(rho, attack):
    ordinary = config(sam=SamConfig(rho=rho, m=16), adversarial=AdversarialConfig())
    (state, batch), (twin, _) = start(ordinary), start(ordinary)
    off = replace(ordinary, adversarial=AdversarialConfig(**attack))
    for _ in zip(
        steps(state, [batch] * 3, make_objective(ordinary, 10), ordinary, CPU, 6),
        steps(twin, [batch] * 3, make_objective(off, 10), off, CPU, 6),
        strict=True,
    ):
        assert all(torch.equal(a, b) for a, b in zip(grads(state.model), grads(twin.model), strict=True))


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_a_clean_share_holds_in_every_group_and_micro_batch_and_those_images_do_not_move(share):
    attack = AdversarialConfig(eps=EPS, num_steps=2, clean_share=share)
    settings = config(sam=SamConfig(rho=0.1, m=16), run=RunConfig(micro_batch=4), adversarial=attack)
    _, batch = start(settings)
    _, _, images = gradient(settings)
    descents = [piece for group in range(4) for piece in images[12 * group + 8 : 12 * group + 12]]
    still = torch.cat(descents).eq(batch.images).flatten(1).all(1)
    assert [int(part.sum()) for part in still.split(4)] == [4 * share] * 16


def test_a_resumed_adversarial_run_continues_bit_for_bit(tmp_path):
    settings = config(sam=SamConfig(rho=0.1, m=32), adversarial=AdversarialConfig(EPS, clean_share=0.25))
    settings = changed(changed(settings, "run", eval_every=3), "model", dropout=0.1)
    ends = []
    for stops in ((3, 6), (6,)):
        run = RunDir.create(tmp_path, f"{len(stops)}")
        for stop in stops:
            source, state = prepare(settings, CPU)
            for progress in fit(settings, run, CPU, source, state):
                if progress.kind == "train" and progress.step == 5 and stop == 3:
                    break  # between checkpoints, so that two steps are done again
        ends.append([p.detach().clone() for p in state.model.parameters()])
        assert state.step == 6
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


@pytest.mark.parametrize("eps", ["1.01", "-0.1", "nan"])
def test_a_radius_outside_of_pixels_is_refused_in_one_line(eps, capsys):
    line = "is out of range; give a radius in pixels from 0 to 1, such as 0.00784 for 2/255"
    assert_refused(f"train vit-digits --adversarial.eps={eps}", line, capsys)


def pgd_accuracy(settings: Config, eps: float) -> float:
    source, state = prepare(settings, CPU)
    stream = batches(source, settings.data, seed=settings.seed, stop=settings.steps, device=CPU.device)
    for _ in steps(state, stream, make_objective(settings, 10), settings, CPU, settings.steps):
        pass
    right = []
    for batch in islice(eval_batches(source.val, settings.data, batch_size=64, device=CPU.device), 5):
        points = pgd(state.model, batch.images, batch.labels, eps=eps, step_size=eps / 4, num_steps=10)
        right.append(state.model.eval()(points).argmax(1) == batch.labels)
    return torch.cat(right).float().mean().item()


def test_adversarial_training_makes_a_network_robust():
    """A Mixer on digits, 50 steps: some 30 points, of which the standard error on 320 images is 4."""
    eps, base = 0.08, replace(recipes.get("mixer-digits").config(), steps=50)
    base = replace(base, optim=OptimConfig(lr=3e-3, warmup_steps=20))
    clean, robust = (pgd_accuracy(replace(base, adversarial=AdversarialConfig(eps=each)), eps) for each in (0.0, eps))
    assert robust > clean + 0.15
