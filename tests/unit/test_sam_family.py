"""Each relative of SAM is its formula, written out here on flat vectors, and keeps SAM's promises."""

import io
import pickle
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samovar.sam import SAM, SamMemory, plain_backward, sam_backward
from samovar.sam.variant import SamVariant
from tests.unit.test_sam import ROUNDING, NoSync, batch, grads, loss_on, net, snapshot

pytestmark = pytest.mark.costly

RHO, LR, MAX_NORM, STEPS = 0.1, 0.05, 0.05, 5
NORMS = ("1.weight", "1.bias")  # of the LayerNorm in `net`


@pytest.fixture(autouse=True)
def _one_thread_one_seed():
    torch.set_num_threads(1)
    torch.manual_seed(0)


# --- the formulas: `at(e)` is the gradient [P] of a group at w + e, `at(e, part=True)` that of a quarter of it --------

At = Callable[..., Tensor]
Kept = dict[str, Any]


def along(g: Tensor, rho: float = RHO) -> Tensor:
    return rho * g / g.square().sum().sqrt()


def plain(groups: list[At], kept: Kept, t: int) -> Tensor:
    return sum(at(None) for at in groups)


def sam(groups: list[At], kept: Kept, t: int) -> Tensor:
    return sum(at(along(at(None))) for at in groups)


def quarter(groups: list[At], kept: Kept, t: int) -> Tensor:
    return sum(at(along(at(None, part=True))) for at in groups)


def every(groups: list[At], kept: Kept, t: int) -> Tensor:
    return sam(groups, kept, t) if t % 2 == 0 else plain(groups, kept, t)


def looksam(groups: list[At], kept: Kept, t: int) -> Tensor:
    sizes = [len(each) for each in kept["weights"]]
    g = plain(groups, kept, t).split(sizes)
    if t % 3:
        return torch.cat([each + 0.7 * each.square().sum().sqrt() * v for each, v in zip(g, kept["v"], strict=True)])
    g_s = sam(groups, kept, t)
    v = [b - (b @ a) / (a @ a) * a for a, b in zip(g, g_s.split(sizes), strict=True)]
    kept["v"] = [each / each.square().sum().sqrt() for each in v]
    return g_s


def msam(groups: list[At], kept: Kept, t: int) -> Tensor:
    v = kept["momentum"]
    return sum(at(None if v is None else -along(v)) for at in groups)


def sam_on(groups: list[At], kept: Kept, t: int) -> Tensor:
    return sum(at(along(at(None) * kept["norms"])) for at in groups)


def gsam(groups: list[At], kept: Kept, t: int) -> Tensor:
    total = 0
    for at in groups:
        g = at(None)
        g_s = at(along(g))
        perpendicular = g - (g @ g_s) / (g_s @ g_s) * g_s
        total += g_s - 0.4 * perpendicular
    return total


def fsam(groups: list[At], kept: Kept, t: int) -> Tensor:
    average, total, g = kept.get("average"), 0, plain(groups, kept, t)
    for at in groups:
        own = at(None)
        total += at(along(own if average is None else own - 0.8 * average / len(groups)))
    kept["average"] = g if average is None else 0.6 * average + 0.4 * g
    return total


def wsam(groups: list[At], kept: Kept, t: int) -> Tensor:
    weight, total = 0.8 / (1 - 0.8), 0
    for at in groups:
        g = at(None)
        total += g + weight * (at(along(g)) - g)
    return total


def wsam_decoupled(groups: list[At], kept: Kept, t: int) -> Tensor:
    g = plain(groups, kept, t)
    kept["beside"] = LR * 0.8 / (1 - 0.8) * (sam(groups, kept, t) - g)
    return g


def two_steps(groups: list[At], kept: Kept, t: int) -> Tensor:
    total = 0
    for at in groups:
        e = along(at(None), RHO / 2)
        total += at(e + along(at(e), RHO / 2))
    return total


def layerwise(groups: list[At], kept: Kept, t: int) -> Tensor:
    w, total = kept["weights"], 0
    whole = torch.cat(w).square().sum().sqrt()
    for at in groups:
        g = at(None).split([len(each) for each in w])
        e = [along(g_l, RHO * w_l.square().sum().sqrt() / whole) for g_l, w_l in zip(g, w, strict=True)]
        total += at(torch.cat(e))
    return total


def gsam_looked_up(groups: list[At], kept: Kept, t: int) -> Tensor:
    """LookSAM whose climbs are GSAM's: settings go together."""
    steps_between = looksam(groups, kept, t)
    return steps_between if t % 3 else gsam(groups, kept, t)


def stale(groups: list[At], kept: Kept, t: int) -> Tensor:
    before = kept.get("previous")
    e = None if before is None else along(before)
    kept["previous"] = sum(at(e) for at in groups)
    return kept["previous"]


ETA, DECAY = 30.0, 0.7


def rows(w: Tensor, shape: torch.Size) -> Tensor:
    """A flat parameter as its rows; a vector has one number in each."""
    return w.view(shape[0], -1)


def arwp(groups: list[At], kept: Kept, t: int) -> Tensor:
    """sigma N(0, |row|^2) / sqrt(1 + eta S), S the row's sum of Adam's second moments or of our own running mean."""
    adams = kept["second"]
    s = kept.get("squares") if adams is None else adams

    def drawn() -> Tensor:
        parts = []
        for i, (w, shape) in enumerate(zip(kept["weights"], kept["shapes"], strict=True)):
            length = rows(w, shape).square().sum(1, keepdim=True).sqrt() if len(shape) > 1 else w.square().sum().sqrt()
            e = RHO * torch.randn(shape, dtype=torch.float64).view(shape[0], -1) * length
            if s is not None:
                here = s.split([len(each) for each in kept["weights"]])[i]
                e = e / (1 + ETA * rows(here, shape).sum(1, keepdim=True)).sqrt()
            parts.append(e.flatten())
        return torch.cat(parts)

    g = sum(at(drawn) for at in groups)
    kept["squares"] = DECAY * kept.get("squares", 0) + (1 - DECAY) * g**2
    return g


C, C_DECAY = 1.5, 0.8  # the threshold is moved by a test of its own


def ae_sam(groups: list[At], kept: Kept, t: int) -> Tensor:
    def moved(x: Tensor) -> tuple[Tensor, Tensor]:
        mean = C_DECAY * kept.get("mean", 0) + (1 - C_DECAY) * x
        return mean, C_DECAY * kept.get("variance", 0) + (1 - C_DECAY) * (x - mean) ** 2

    total, squares = 0, []
    c = kept.get("c", lambda t: C)(t)
    for at in groups:
        g = at(None)
        squares.append(g @ g)
        mean, variance = moved(g @ g)
        climbs = bool(g @ g >= mean + c * variance.sqrt())
        kept.setdefault("climbs", []).append(climbs)
        total += at(along(g)) if climbs else g
    kept["mean"], kept["variance"] = moved(sum(squares) / len(squares))
    return total


RELATIVES: dict[str, tuple[SamVariant, Callable[[list[At], Kept, int], Tensor]]] = {
    "sam": (SamVariant(), sam),
    "quarter": (SamVariant(), quarter),
    "every": (SamVariant(every=2), every),
    "looksam": (SamVariant(every=3, reuse=0.7), looksam),
    "msam": (SamVariant(momentum=True), msam),
    "sam-on": (SamVariant(norms_only=True), sam_on),
    "gsam": (SamVariant(alpha=0.4), gsam),
    "fsam": (SamVariant(sigma=0.8, sigma_decay=0.6), fsam),
    "wsam": (SamVariant(gamma=0.8), wsam),
    "wsam-decoupled": (SamVariant(gamma=0.8, decoupled=True), wsam_decoupled),
    "two-step": (SamVariant(ascent_steps=2), two_steps),
    "layerwise": (SamVariant(layerwise=True), layerwise),
    "gsam+looksam": (SamVariant(alpha=0.4, every=3, reuse=0.7), gsam_looked_up),
    "stale": (SamVariant(stale=True), stale),
    "arwp": (SamVariant(noise=True, noise_eta=ETA, noise_decay=DECAY), arwp),
    "ae-sam": (SamVariant(sharp_only=True, c_first=C, c_last=C, c_decay=C_DECAY), ae_sam),
    "ae-sam, unread": (SamVariant(sharp_only=True, c_first=C, c_last=C, c_decay=C_DECAY, c_skip=False), ae_sam),
}
ONE_PASS = [name for name, (variant, _) in RELATIVES.items() if variant.one_pass]
HAS_MEMORY = [name for name, (variant, _) in RELATIVES.items() if variant.remembers]


# --- the optimizers, on flat vectors ----------------------------------------------------------------------------------


class Sgd:
    momentum: Tensor | None = None

    def step(self, w: Tensor, g: Tensor, t: int) -> Tensor:
        self.momentum = g if self.momentum is None else 0.9 * self.momentum + g
        return w - LR * self.momentum

    @staticmethod
    def theirs(params) -> torch.optim.Optimizer:
        return torch.optim.SGD(params, lr=LR, momentum=0.9)


class AdamW:
    momentum: Tensor | None = None
    second: Tensor | None = None

    def step(self, w: Tensor, g: Tensor, t: int) -> Tensor:
        first = 0.0 if self.momentum is None else self.momentum
        second = 0.0 if self.second is None else self.second
        self.momentum, self.second = 0.9 * first + 0.1 * g, 0.99 * second + 0.01 * g**2
        m_hat, v_hat = self.momentum / (1 - 0.9 ** (t + 1)), self.second / (1 - 0.99 ** (t + 1))
        return w - LR * 0.3 * w - LR * m_hat / (v_hat.sqrt() + 1e-8)

    @staticmethod
    def theirs(params) -> torch.optim.Optimizer:
        return torch.optim.AdamW(params, lr=LR, betas=(0.9, 0.99), weight_decay=0.3)


def flat(tensors) -> Tensor:
    return torch.cat([each.detach().flatten() for each in tensors])


def trained(
    name: str,
    model: nn.Module,
    rule: type,
    groups_of: Callable[[int], list],
    steps: int = STEPS,
    clip: bool = True,
    begun: Kept | None = None,
) -> Tensor:
    """Weights [P] after some steps by the formula. `groups_of(t)` lists (seed, loss of a group, loss of its part)."""
    optimizer, formula, model = rule(), RELATIVES[name][1], deepcopy(model)
    named = dict(model.named_parameters())
    sizes = [p.numel() for p in named.values()]
    kept: Kept = {} if begun is None else begun
    kept["norms"] = flat(torch.full_like(p, float(key in NORMS)) for key, p in named.items())
    kept["shapes"] = [p.shape for p in named.values()]
    for t in range(steps):
        w = flat(named.values())
        second = getattr(optimizer, "second", None)
        kept |= {"momentum": optimizer.momentum, "second": second, "weights": w.split(sizes)}

        def at(seed, whole, quarter, e, part=False, w=w):
            torch.manual_seed(seed)
            e = e() if callable(e) else e  # noise is drawn before the pass
            nn.utils.vector_to_parameters(w if e is None else w + e, named.values())
            return flat(torch.autograd.grad((quarter if part else whole)(model), list(named.values())))

        g = formula([lambda *a, one=one, **k: at(*one, *a, **k) for one in groups_of(t)], kept, t)
        length = float(g.square().sum().sqrt())
        if clip:
            assert length > MAX_NORM, "clipping must act"
            g = g * MAX_NORM / (length + 1e-6)  # 1e-6 as in torch.nn.utils.clip_grad_norm_
        nn.utils.vector_to_parameters(optimizer.step(w, g, t) - kept.pop("beside", 0), named.values())
    return flat(named.values())


class Data(NamedTuple):
    """A batch cut in groups and their micro-batches; each with its losses, weighted to the mean of the batch."""

    x: Tensor
    y: Tensor
    num_groups: int = 1
    micro: int = 1

    def loss_fns(self, group: int, share: float = 1.0) -> list[Callable[[nn.Module], Tensor]]:
        size = len(self.y) // self.num_groups
        used = int(size * share)
        first, step = group * size, used // self.micro
        starts = range(first, first + used, step)
        weight = step / used / self.num_groups
        return [loss_on(self.x[i : i + step], self.y[i : i + step], weight) for i in starts]

    def seeded(self, t: int) -> list[tuple]:
        def summed(loss_fns):
            return lambda model: sum(each(model) for each in loss_fns)

        return [(100 * t + i, summed(self.loss_fns(i)), summed(self.loss_fns(i, 0.25))) for i in range(self.num_groups)]


def steps_by_backward(name, model, optimizer, data: Data, memory: SamMemory, steps: range, clip: bool = True) -> None:
    variant = RELATIVES[name][0]
    for t in steps:
        optimizer.zero_grad()
        for i in range(data.num_groups):
            torch.manual_seed(100 * t + i)
            part = data.loss_fns(i, 0.25) if name == "quarter" else None
            sam_backward(
                data.loss_fns(i), model, rho=RHO, variant=variant, memory=memory, num_groups=data.num_groups,
                optimizer=optimizer, ascent_loss_fn=part,
            )  # fmt: skip
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
        optimizer.step()
        memory.subtract_(optimizer, variant)


def steps_by_adapter(name, model, sam: SAM, data: Data, steps: range) -> None:
    def closure(share: float = 1.0):
        for loss_fn in data.loss_fns(0, share):
            loss_fn(model).backward()

    for t in steps:
        torch.manual_seed(100 * t)
        sam.step(closure, ascent_closure=partial(closure, 0.25) if name == "quarter" else None)


def adapter_of(name, model, rule, clip: bool = True, **options) -> SAM:
    options = {"variant": RELATIVES[name][0], "rho": RHO, "model": model} | options
    return SAM(rule.theirs(model.parameters()), clip_norm=MAX_NORM if clip else None, **options)


# --- the claims -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RELATIVES)
def test_one_gradient_is_the_formula(name):
    model, data = net(dropout=0.5), Data(*batch())
    before = flat(model.parameters())
    expected = trained(name, model, Sgd, data.seeded, steps=1, clip=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9)
    steps_by_backward(name, model, optimizer, data, SamMemory(), range(1), clip=False)
    torch.testing.assert_close(flat(model.parameters()), expected, **ROUNDING)
    assert not torch.allclose(before, expected)


@pytest.mark.parametrize(("num_groups", "micro"), [(1, 1), (1, 2), (4, 2)])
@pytest.mark.parametrize("rule", [Sgd, AdamW])
@pytest.mark.parametrize("name", RELATIVES)
def test_five_clipped_steps_are_the_formula(name, rule, num_groups, micro):
    model, data = net(dropout=0.5), Data(*batch(), num_groups, micro)
    expected = trained(name, model, rule, data.seeded)
    steps_by_backward(name, model, rule.theirs(model.parameters()), data, SamMemory(), range(STEPS))
    torch.testing.assert_close(flat(model.parameters()), expected, **ROUNDING)


@pytest.mark.parametrize("micro", [1, 2])
@pytest.mark.parametrize("rule", [Sgd, AdamW])
@pytest.mark.parametrize("name", RELATIVES)
def test_five_clipped_steps_of_the_adapter_are_the_formula(name, rule, micro):
    model, data = net(dropout=0.5), Data(*batch(), 1, micro)
    expected = trained(name, model, rule, data.seeded)
    steps_by_adapter(name, model, adapter_of(name, model, rule), data, range(STEPS))
    torch.testing.assert_close(flat(model.parameters()), expected, **ROUNDING)


@pytest.mark.parametrize("by", ["backward", "adapter"])
def test_ae_sams_threshold_moves_over_the_run_and_what_it_skips_is_not_paid(by, monkeypatch):
    variant = SamVariant(sharp_only=True, c_first=4.0, c_last=-2.0, c_decay=C_DECAY)
    monkeypatch.setitem(RELATIVES, "moved", (variant, ae_sam))
    model, data, calls = net(dropout=0.5), Data(*batch()), []
    begun: Kept = {"c": lambda t: 4.0 - 6.0 * t / STEPS}
    expected = trained("moved", model, Sgd, data.seeded, begun=begun)
    assert set(begun["climbs"]) == {True, False}, "steps of both kinds"
    model.register_forward_hook(lambda *_: calls.append(1))
    if by == "backward":
        memory = SamMemory(num_steps=STEPS)
        steps_by_backward("moved", model, Sgd.theirs(model.parameters()), data, memory, range(STEPS))
    else:
        adapter = adapter_of("moved", model, Sgd, num_steps=STEPS)
        memory = adapter.memory
        steps_by_adapter("moved", model, adapter, data, range(STEPS))
    torch.testing.assert_close(flat(model.parameters()), expected, **ROUNDING)
    assert len(calls) == STEPS + sum(begun["climbs"])
    assert int(memory.sharpness["climbs"]) == sum(begun["climbs"])
    for name in ("mean", "variance"):
        torch.testing.assert_close(memory.sharpness[name], begun[name], **ROUNDING)


@pytest.mark.parametrize("num_groups", [1, 2])
def test_ae_sam_that_reads_nothing_takes_the_same_steps(num_groups):
    data, ends = Data(*batch(), num_groups), []
    for name in ("ae-sam", "ae-sam, unread"):
        torch.manual_seed(0)
        model = net(dropout=0.5)
        steps_by_backward(name, model, Sgd.theirs(model.parameters()), data, SamMemory(), range(STEPS))
        ends.append(flat(model.parameters()))
    torch.testing.assert_close(*ends, **ROUNDING)


@pytest.mark.parametrize("name", RELATIVES)
def test_relatives_differ_from_sam(name):
    model, data = net(dropout=0.5), Data(*batch())
    ours, of_sam = (trained(each, model, Sgd, data.seeded) for each in (name, "sam"))
    assert (ours - of_sam).norm() > 1e-6 or name == "sam"


@pytest.mark.parametrize(("start", "end", "climbs"), [(2, None, "ppsss"), (0, 3, "sssppp"), (1, 3, "pssppp")])
def test_the_adapter_climbs_between_start_and_end(start, end, climbs, monkeypatch):
    windowed = SamVariant(), lambda groups, kept, t: {"p": plain, "s": sam}[climbs[t]](groups, kept, t)
    monkeypatch.setitem(RELATIVES, "windowed", windowed)
    model, data = net(dropout=0.5), Data(*batch())
    expected = trained("windowed", model, Sgd, data.seeded)
    steps_by_adapter("windowed", model, adapter_of("windowed", model, Sgd, start=start, end=end), data, range(STEPS))
    torch.testing.assert_close(flat(model.parameters()), expected, **ROUNDING)


@pytest.mark.parametrize("name", HAS_MEMORY)
def test_three_steps_saved_and_two_more_are_five_bit_for_bit(name):
    model, data, memory = net(dropout=0.5), Data(*batch(), num_groups=2), SamMemory()
    optimizer = AdamW.theirs(model.parameters())
    steps_by_backward(name, model, optimizer, data, memory, range(3))
    resumed, saved = deepcopy(model), saved_and_loaded(memory.state_dict())
    other = AdamW.theirs(resumed.parameters())
    other.load_state_dict(deepcopy(optimizer.state_dict()))
    steps_by_backward(name, model, optimizer, data, memory, range(3, 5))
    loaded = SamMemory()
    loaded.load_state_dict(saved)
    steps_by_backward(name, resumed, other, data, loaded, range(3, 5))
    assert torch.equal(flat(resumed.parameters()), flat(model.parameters()))


@pytest.mark.parametrize("name", HAS_MEMORY)
def test_the_adapters_three_steps_saved_and_two_more_are_five_bit_for_bit(name):
    model, data = net(dropout=0.5), Data(*batch())
    sam = adapter_of(name, model, AdamW, start=1)
    steps_by_adapter(name, model, sam, data, range(3))
    resumed, saved = deepcopy(model), saved_and_loaded(sam.state_dict())
    steps_by_adapter(name, model, sam, data, range(3, 5))
    other = adapter_of(name, resumed, AdamW, start=1)
    other.load_state_dict(saved)
    steps_by_adapter(name, resumed, other, data, range(3, 5))
    assert torch.equal(flat(resumed.parameters()), flat(model.parameters()))
    AdamW.theirs(resumed.parameters()).load_state_dict(saved)  # the base optimizer leaves the rest aside


def saved_and_loaded(state: dict) -> dict:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("copied", [deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])  # noqa: S301
@pytest.mark.parametrize("name", ["looksam", "fsam", "wsam-decoupled", "msam", "sam-on", "stale", "arwp", "ae-sam"])
def test_a_copy_of_model_and_adapter_trains_on_alike(name, copied):
    model, data = net(dropout=0.5), Data(*batch())
    sam = adapter_of(name, model, Sgd)
    steps_by_adapter(name, model, sam, data, range(2))
    twin, other = copied((model, sam))
    steps_by_adapter(name, model, sam, data, range(2, 5))
    steps_by_adapter(name, twin, other, data, range(2, 5))
    assert torch.equal(flat(twin.parameters()), flat(model.parameters()))


# Of each examples once over, on average over a cycle of steps: (forwards, backwards).
COSTS = {
    "sam": (2, 2), "quarter": (1.25, 1.25), "every": (1.5, 1.5), "looksam": (4 / 3, 4 / 3), "msam": (1, 1),
    "sam-on": (2, 2), "gsam": (2, 2), "fsam": (2, 2), "wsam": (2, 2), "wsam-decoupled": (2, 2), "two-step": (3, 3),
    "layerwise": (2, 2), "gsam+looksam": (4 / 3, 4 / 3), "stale": (1, 1), "arwp": (1, 1), "ae-sam, unread": (2, 2),
}  # fmt: skip


@pytest.mark.parametrize("by", ["backward", "adapter"])
@pytest.mark.parametrize("name", COSTS)
def test_passes_counted_in_examples(name, by):
    model, data, seen = net(), Data(*batch()), {"forward": 0, "backward": 0}

    def forward(_module, _inputs, output):
        seen["forward"] += len(output)

    def backward(_module, _inputs, outputs):
        seen["backward"] += len(outputs[0])

    model[4].register_forward_hook(forward)
    model[4].register_full_backward_hook(backward)
    steps = range(6)  # whole cycles of 2 and 3
    if by == "adapter":
        steps_by_adapter(name, model, adapter_of(name, model, Sgd), data, steps)
    else:
        steps_by_backward(name, model, Sgd.theirs(model.parameters()), data, SamMemory(), steps)
    found = tuple(seen[each] / len(data.y) / len(steps) for each in ("forward", "backward"))
    assert found == pytest.approx(COSTS[name])


def test_sam_on_asks_for_no_gradient_but_of_norm_layers_in_its_ascent():
    model, loss_fn, asked = net(), loss_on(*batch()), []
    for name, param in model.named_parameters():
        param.register_hook(lambda _, name=name: asked.append(name))
    sam_backward(loss_fn, model, rho=RHO, variant=SamVariant(norms_only=True))
    assert sorted(asked) == sorted([*dict(model.named_parameters()), *NORMS])


def test_sam_on_moves_norm_layers_of_every_make_and_nothing_else():
    model = nn.ModuleDict(
        {
            "batch": nn.BatchNorm1d(4), "group": nn.GroupNorm(2, 4), "rms": nn.RMSNorm(4), "bare": nn.Linear(4, 4),
            "normed": nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), "frozen": nn.LayerNorm(4),
        }
    )  # fmt: skip
    model["frozen"].requires_grad_(False)
    seen = []

    def loss_fn(model):
        seen.append({name: p.detach().clone() for name, p in model.named_parameters()})
        return sum((p**2).sum() for p in model.parameters())

    for p in model.parameters():
        nn.init.normal_(p)
    sam_backward(loss_fn, model, rho=RHO, variant=SamVariant(norms_only=True))
    moved = {name.split(".")[0] for name in seen[0] if not torch.equal(seen[0][name], seen[1][name])}
    assert moved == {"batch", "group", "rms"}


def test_the_first_step_of_msam_is_plain_and_an_optimizer_without_momentum_is_refused():
    model, loss_fn = net(), loss_on(*batch())
    twin, variant = deepcopy(model), SamVariant(momentum=True)
    optimizer = torch.optim.AdamW(model.parameters())
    sam_backward(loss_fn, model, rho=RHO, variant=variant, optimizer=optimizer)
    plain_backward(loss_fn, twin)
    assert all(torch.equal(a, b) for a, b in zip(grads(model), grads(twin), strict=True))
    for bad in (torch.optim.SGD(model.parameters(), lr=0.1), torch.optim.Adagrad(model.parameters())):
        with pytest.raises(ValueError, match="keeps no momentum to climb along; give it some"):
            sam_backward(loss_fn, model, rho=RHO, variant=variant, optimizer=bad)
        with pytest.raises(ValueError, match="keeps no momentum to climb along; give it some"):
            SAM(bad, rho=RHO, variant=variant).step(lambda: loss_fn(model).backward())


@pytest.mark.parametrize("name", [name for name in RELATIVES if name != "ae-sam"])  # which reads once for each group
def test_the_host_never_waits_for_the_device(name):
    model, data, memory = net(), Data(*batch(), num_groups=2), SamMemory()
    optimizer = Sgd.theirs(model.parameters())
    with NoSync():
        steps_by_backward(name, model, optimizer, data, memory, range(3), clip=False)
        model.zero_grad()
        # only fused optimizers skip a step on the device
        adapter = adapter_of(name, model, Sgd, clip=False, skip_nonfinite=False)
        steps_by_adapter(name, model, adapter, data._replace(num_groups=1), range(3))


def test_the_host_does_not_read_whether_a_gradient_of_a_fused_optimizer_is_finite() -> None:
    (x, y), model = batch(), net()
    sam = SAM(torch.optim.AdamW(model.parameters(), fused=True))

    def closure():
        sam.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss

    with NoSync():
        for _ in range(2):
            sam.step(closure)
    assert sam.skipped == 0


@pytest.mark.parametrize("name", RELATIVES)
def test_weights_and_buffers_come_back_also_when_any_pass_raises(name):
    variant, (x, y) = RELATIVES[name][0], batch()
    for fail_at in (1, 2, 3):
        model, memory, calls = net(norm=nn.BatchNorm1d).float(), SamMemory(), []
        optimizer = Sgd.theirs(model.parameters())
        plain_backward(lambda m: F.cross_entropy(m(x.float()), y), model)
        optimizer.step()
        before = snapshot(model)
        addresses = [p.data_ptr() for p in model.parameters()]

        def loss_fn(model, calls=calls, fail_at=fail_at):
            calls.append(1)
            if len(calls) == fail_at:
                raise ZeroDivisionError
            return F.cross_entropy(model(x.float()), y)

        def backward(model=model, memory=memory, loss_fn=loss_fn, optimizer=optimizer):
            sam_backward(loss_fn, model, rho=RHO, variant=variant, memory=memory, optimizer=optimizer)

        try:
            backward()
        except ZeroDivisionError:
            assert memory.step == 0
        for key, param in model.named_parameters():
            assert torch.equal(param, before[key]), key
        assert [p.data_ptr() for p in model.parameters()] == addresses
        assert int(model[1].num_batches_tracked) == 1 + (fail_at > 1)
        calls.extend([1] * 3)  # none of the later ones fails
        backward()


@pytest.mark.parametrize("name", RELATIVES)
def test_an_error_in_a_later_group_ends_the_step_and_the_next_one_starts_clean(name):
    data, models = Data(*batch(), num_groups=2), []
    for fails in (False, True):
        torch.manual_seed(1)
        model, memory = net(), SamMemory()
        optimizer, variant = Sgd.theirs(model.parameters()), RELATIVES[name][0]
        options = {"rho": RHO, "variant": variant, "memory": memory, "num_groups": 2, "optimizer": optimizer}
        if fails:
            sam_backward(data.loss_fns(0), model, **options)
            with pytest.raises(ZeroDivisionError):
                sam_backward(lambda m: 1 / 0, model, **options)
        steps_by_backward(name, model, optimizer, data, memory, range(3))
        models.append(flat(model.parameters()))
    assert torch.equal(*models)


def test_loading_a_memory_ends_a_step_that_was_under_way():
    data, model, memory = Data(*batch(), num_groups=2), net(), SamMemory()
    variant = RELATIVES["fsam"][0]
    saved = memory.state_dict()
    sam_backward(data.loss_fns(0), model, rho=RHO, variant=variant, memory=memory, num_groups=2)
    memory.load_state_dict(saved)
    for i in range(2):
        sam_backward(data.loss_fns(i), model, rho=RHO, variant=variant, memory=memory, num_groups=2)
    assert memory.step == 1


class Spoiled(torch.autograd.Function):
    """Identity whose gradient is not finite."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return g * float("inf")


@pytest.mark.parametrize("spoiled", [1, 2])
@pytest.mark.parametrize("name", ["looksam", "fsam", "wsam-decoupled", "stale", "arwp", "ae-sam"])
def test_what_is_not_finite_is_not_remembered(name, spoiled):
    (x, y), variant, calls = batch(), RELATIVES[name][0], []
    model, memory = net(), SamMemory()
    optimizer = Sgd.theirs(model.parameters())

    def loss_fn(model):
        calls.append(1)
        out = model(x)
        return F.cross_entropy(Spoiled.apply(out) if len(calls) == spoiled else out, y)

    sam_backward(loss_fn, model, rho=RHO, variant=variant, memory=memory)
    before = flat(model.parameters())
    memory.subtract_(optimizer, variant)
    assert torch.equal(flat(model.parameters()), before)
    vectors = (memory.average, memory.component, memory.previous, memory.squares, memory.sharpness)
    kept = [each for held in vectors for each in held.values()]
    assert kept or name == "wsam-decoupled"
    assert all(bool(each.isfinite().all()) for each in kept)


def test_the_first_finite_gradient_is_fsams_average():
    variant, memory, model = RELATIVES["fsam"][0], SamMemory(), net()
    loss_fn = loss_on(*batch())
    sam_backward(lambda m: Spoiled.apply(loss_fn(m)), model, rho=RHO, variant=variant, memory=memory)
    sam_backward(loss_fn, model, rho=RHO, variant=variant, memory=memory)
    clean = torch.autograd.grad(loss_fn(model), list(model.parameters()))
    assert torch.equal(flat(memory.average.values()), flat(clean))


@pytest.mark.parametrize("name", RELATIVES)
def test_under_a_scaler_steps_are_the_same(name):
    model, (x, y) = net(), batch()
    twin, loss_fn = deepcopy(model), loss_on(x, y)
    variant, part = RELATIVES[name][0], loss_on(x[:8], y[:8]) if name == "quarter" else None
    for net_, scaler in ((model, torch.amp.GradScaler("cpu", init_scale=1024.0)), (twin, None)):
        optimizer, memory = Sgd.theirs(net_.parameters()), SamMemory()
        torch.manual_seed(0)
        for _ in range(4):
            optimizer.zero_grad()
            sam_backward(
                loss_fn, net_, rho=RHO, variant=variant, memory=memory, optimizer=optimizer, ascent_loss_fn=part,
                scaler=scaler,
            )  # fmt: skip
            if scaler:
                scaler.step(optimizer)
                scaler.update()
            else:
                optimizer.step()
            memory.subtract_(optimizer, variant)
    # GradScaler inverts the scale in float32, exactly for a power of two
    torch.testing.assert_close(flat(model.parameters()), flat(twin.parameters()), **ROUNDING)


@pytest.mark.parametrize("name", RELATIVES)
def test_the_adapter_under_a_scaler_takes_the_same_steps(name):
    model, (x, y) = net(), batch()
    twin = deepcopy(model)
    for net_, scaler in ((model, torch.amp.GradScaler("cpu", init_scale=1024.0)), (twin, None)):
        sam = adapter_of(name, net_, Sgd)
        torch.manual_seed(0)

        def closure(size=32, net_=net_, scaler=scaler):
            loss = F.cross_entropy(net_(x[:size]), y[:size])
            (scaler.scale(loss) if scaler else loss).backward()
            return loss

        for _ in range(4):
            part = (lambda closure=closure: closure(8)) if name == "quarter" else None
            sam.step(closure, scaler=scaler, ascent_closure=part)
            if scaler:
                scaler.update()
    torch.testing.assert_close(flat(model.parameters()), flat(twin.parameters()), **ROUNDING)


def test_an_overflow_of_the_descent_alone_costs_decoupled_wsam_its_difference_only():
    (x, y), variant, calls = batch(), RELATIVES["wsam-decoupled"][0], []
    model, memory = net(), SamMemory()
    twin = deepcopy(model)
    optimizers = [torch.optim.SGD(each.parameters(), lr=0.1) for each in (model, twin)]

    def loss_fn(model):
        calls.append(1)
        out = model(x)
        return F.cross_entropy(Spoiled.apply(out) if len(calls) == 2 else out, y)

    sam_backward(loss_fn, model, rho=RHO, variant=variant, memory=memory)
    plain_backward(loss_on(x, y), twin)
    for optimizer in optimizers:
        optimizer.step()
    memory.subtract_(optimizers[0], variant)
    assert torch.equal(flat(model.parameters()), flat(twin.parameters()))


# --- gradients that come in odd shapes --------------------------------------------------------------------------------

USES_BOTH = ["looksam", "gsam", "wsam", "wsam-decoupled"]


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("name", USES_BOTH)
def test_a_transposed_gradient_reaches_the_optimizer_in_the_order_of_its_parameter(name, fused):
    variant, c = RELATIVES[name][0], torch.arange(1.0, 13).view(4, 3)
    model = nn.ParameterDict({"w": torch.zeros(3, 4)})
    optimizer, memory = torch.optim.SGD(model.parameters(), lr=1.0, fused=fused), SamMemory()
    sam_backward(lambda m: (m["w"].t() * c).sum(), model, rho=RHO, variant=variant, memory=memory)
    optimizer.step()  # a fused one reads memory, whatever its strides
    torch.testing.assert_close(model["w"].detach(), -c.t(), rtol=1e-5, atol=0)  # g = g_s = c, in float32


class Shared(torch.autograd.Function):
    """Sum of two tensors, whose gradient is one tensor for both."""

    @staticmethod
    def forward(ctx, a, b):
        return a + b

    @staticmethod
    def backward(ctx, g):
        return g, g


@pytest.mark.parametrize("name", USES_BOTH)
def test_two_parameters_never_share_a_gradient_that_clipping_would_scale_twice(name):
    model = nn.ParameterDict({"a": torch.zeros(3), "b": torch.zeros(3)})
    sam_backward(
        lambda m: Shared.apply(m["a"], m["b"]).sum(), model, rho=RHO, variant=RELATIVES[name][0], memory=SamMemory()
    )
    assert model["a"].grad.data_ptr() != model["b"].grad.data_ptr()


@pytest.mark.parametrize("name", [name for name in RELATIVES if name not in ("sam-on", "msam")])
def test_sparse_gradients_give_the_steps_of_dense_ones(name):
    words, variant, ends = torch.tensor([0, 3, 3]), RELATIVES[name][0], []
    for sparse in (True, False):
        torch.manual_seed(0)
        model, memory = nn.Embedding(6, 3, sparse=sparse).double(), SamMemory()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(4):
            optimizer.zero_grad()
            sam_backward(lambda m: m(words).pow(4).sum(), model, rho=RHO, variant=variant, memory=memory)
            optimizer.step()
            memory.subtract_(optimizer, variant)
        ends.append(flat(model.parameters()))
    torch.testing.assert_close(*ends, **ROUNDING)


class Alternating(nn.Module):
    """Uses `odd` in every second call only."""

    def __init__(self):
        super().__init__()
        self.always, self.odd, self.norm, self.calls = nn.Linear(5, 3), nn.Linear(5, 3), nn.LayerNorm(3), 0
        self.double()

    def forward(self, x):
        self.calls += 1
        out = self.norm(self.always(x))
        return out + self.odd(x) if self.calls % 2 else out


@pytest.mark.parametrize("name", RELATIVES)
def test_a_parameter_unused_in_one_pass_counts_as_zero_there_and_comes_back(name):
    model, memory, data = Alternating(), SamMemory(), Data(*batch())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)
    before = snapshot(model)
    steps_by_backward(name, model, optimizer, data, memory, range(4), clip=False)
    steps_by_adapter(name, model, adapter_of(name, model, Sgd, clip=False, rho=RHO), data, range(0))
    assert all(torch.equal(value, before[key]) or name == "wsam-decoupled" for key, value in model.state_dict().items())
    assert all(bool(p.isfinite().all()) for p in model.parameters())


def test_gsam_of_a_parameter_used_at_the_clean_weights_alone_is_minus_alpha_times_its_gradient():
    model, (x, y) = Alternating(), batch()
    sam_backward(loss_on(x, y), model, rho=RHO, variant=SamVariant(alpha=0.4))
    model.calls = 0
    clean = torch.autograd.grad(loss_on(x, y)(model), list(model.odd.parameters()))
    torch.testing.assert_close(flat(p.grad for p in model.odd.parameters()), -0.4 * flat(clean), **ROUNDING)


def test_names_that_only_a_wrapper_could_tell_apart_are_kept_apart():
    model = nn.Module()
    model.module, model.weight = nn.Linear(3, 1, bias=False), nn.Parameter(torch.ones(1, 3))
    twin = deepcopy(model)

    def loss_fn(m):
        return (m.module(m.weight) ** 3).sum()

    sam_backward(loss_fn, model, rho=0.0)
    sam_backward(loss_fn, twin, rho=1e-9)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


@pytest.mark.parametrize("name", [name for name in RELATIVES if name != "msam"])  # which needs a step for its momentum
def test_gradients_add_to_those_that_were_there(name):
    model, data = net(), Data(*batch())
    twin, variant = deepcopy(model), RELATIVES[name][0]
    for each in (model, twin):
        part = data.loss_fns(0, 0.25) if name == "quarter" else None
        for p in each.parameters():
            p.grad = torch.ones_like(p) if each is model else None
        torch.manual_seed(0)
        sam_backward(data.loss_fns(0), each, rho=RHO, variant=variant, memory=SamMemory(), ascent_loss_fn=part)
    torch.testing.assert_close(flat(grads(model)), flat(grads(twin)) + 1, **ROUNDING)


def test_tied_weights_are_in_the_norm_once_in_every_relative():
    for name, (variant, _) in RELATIVES.items():
        if name in ("sam-on", "msam", "quarter"):
            continue
        tied = nn.ModuleList([nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)]).double()
        tied[1].weight = tied[0].weight
        single = nn.ModuleList([deepcopy(tied[0])])
        x = torch.randn(6, 4, dtype=torch.float64)
        torch.manual_seed(1)
        sam_backward(
            lambda m, x=x: m[1](m[0](x).tanh()).square().mean(), tied, rho=RHO, variant=variant, memory=SamMemory()
        )
        torch.manual_seed(1)
        sam_backward(
            lambda m, x=x: m[0](m[0](x).tanh()).square().mean(), single, rho=RHO, variant=variant, memory=SamMemory()
        )
        torch.testing.assert_close(flat(grads(tied)), flat(grads(single)), **ROUNDING)


@pytest.mark.parametrize(
    "name", ["gsam", "looksam", "fsam", "wsam-decoupled", "two-step", "sam-on", "msam", "stale", "arwp", "ae-sam"]
)
def test_weights_of_several_precisions_train_and_come_back(name):
    variant, (x, y) = RELATIVES[name][0], batch()
    model, memory = net(), SamMemory()
    model[4].fc.float()
    model[5].bfloat16()

    def loss_fn(model):
        hidden = model[:4](x)
        hidden = hidden + model[4].fc(hidden.float())
        return F.cross_entropy(model[5](hidden.bfloat16()).double(), y)

    optimizer = Sgd.theirs(model.parameters())
    for _ in range(4):
        before = snapshot(model)
        optimizer.zero_grad()
        sam_backward(loss_fn, model, rho=RHO, variant=variant, memory=memory, optimizer=optimizer)
        assert all(torch.equal(p, before[key]) for key, p in model.named_parameters())
        assert all(p.grad.dtype == p.dtype and bool(p.grad.isfinite().all()) for p in model.parameters())
        optimizer.step()
        memory.subtract_(optimizer, variant)


@pytest.mark.parametrize("name", RELATIVES)
def test_a_compiled_model_takes_the_same_steps(name):
    data, ends = Data(*batch()), []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = net(norm=nn.BatchNorm1d)
        called = torch.compile(model, backend="eager") if compiled else model
        optimizer, memory = Sgd.theirs(model.parameters()), SamMemory()
        steps_by_backward(name, called, optimizer, data, memory, range(3))
        ends.append(torch.cat([flat(model.parameters()), flat(b.double() for b in model.buffers())]))
        assert not any("_orig_mod" in key for key in memory.state_dict()["average"] | memory.state_dict()["component"])
    torch.testing.assert_close(*ends, **ROUNDING)


@pytest.mark.parametrize("name", [name for name in RELATIVES if name != "arwp"])  # which takes no pass at w
def test_buffers_are_of_the_ascent_alone(name):
    model, data = net(norm=nn.BatchNorm1d), Data(*batch())
    alone = deepcopy(model)
    share = 0.25 if name == "quarter" else 1.0
    plain_backward(data.loss_fns(0, share), alone)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)
    steps_by_backward(name, model, optimizer, data, SamMemory(), range(1))
    for ours, theirs in zip(model.buffers(), alone.buffers(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", [name for name in RELATIVES if name != "arwp"])  # which draws its noise first
def test_random_numbers_go_on_as_after_one_pass_over_the_group(name):
    model, data = net(dropout=0.5), Data(*batch())
    torch.manual_seed(0)
    plain_backward(data.loss_fns(0), deepcopy(model))
    expected = torch.rand(())
    steps_by_backward(name, model, Sgd.theirs(model.parameters()), data, SamMemory(), range(1))  # seeds with 0
    assert torch.equal(torch.rand(()), expected)


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variant", "words"),
    [
        (SamVariant(momentum=True), "with momentum=True, which takes no gradient for its climb"),
        (SamVariant(alpha=0.4), "with alpha=0.4: the two gradients would be of different examples"),
        (SamVariant(gamma=0.8), "with gamma=0.8: the two gradients would be of different examples"),
        (SamVariant(decoupled=True), "with decoupled=True: the two gradients would be of different examples"),
        (SamVariant(stale=True), "with stale=True, which takes no gradient for its climb"),
        (SamVariant(noise=True), "with noise=True, which takes no gradient for its climb"),
        (SamVariant(sharp_only=True, c_last=1.0), "with sharp_only=True: the two gradients would be of different"),
        (SamVariant(every=2, reuse=0.5), "with reuse=0.5: the two gradients would be of different examples"),
    ],
)
def test_an_ascent_on_other_examples_is_refused_where_it_means_nothing(variant, words):
    model, loss_fn = net(), loss_on(*batch())
    optimizer = Sgd.theirs(model.parameters())
    with pytest.raises(ValueError, match=f"ascent_loss_fn {words}"):
        sam_backward(
            loss_fn, model, rho=RHO, variant=variant, memory=SamMemory(), optimizer=optimizer, ascent_loss_fn=loss_fn
        )
    sam = SAM(optimizer, rho=RHO, variant=variant)
    with pytest.raises(ValueError, match=f"ascent_closure {words}"):
        sam.step(lambda: loss_fn(model).backward(), ascent_closure=lambda: loss_fn(model).backward())


@pytest.mark.parametrize(
    ("variant", "words"),
    [
        (SamVariant(sigma=-1.0), "sigma=-1.0 is out of range; give a number of 0 or more"),
        (SamVariant(sigma=float("nan")), "sigma=nan is out of range"),
        (SamVariant(sigma_decay=1.0), "sigma_decay=1.0 is out of range; give a decay from 0 up to 1"),
        (SamVariant(ascent_steps=0), "ascent_steps=0 is out of range"),
        (SamVariant(every=0), "every=0 is out of range"),
        (SamVariant(reuse=-0.1), "reuse=-0.1 is out of range"),
        (SamVariant(alpha=float("inf")), "alpha=inf is out of range"),
        (SamVariant(gamma=1.0), "gamma=1.0 is out of range; give a number from 0"),
        (SamVariant(momentum=True, every=2), "momentum=True with every=2"),
        (SamVariant(momentum=True, sigma=1.0), "momentum=True with sigma=1.0"),
        (SamVariant(momentum=True, ascent_steps=2), "momentum=True with ascent_steps=2"),
        (SamVariant(momentum=True, alpha=0.1), "momentum=True with alpha=0.1"),
        (SamVariant(momentum=True, gamma=0.8), "momentum=True with gamma=0.8"),
        (SamVariant(momentum=True, decoupled=True), "momentum=True with decoupled=True"),
        (SamVariant(noise_eta=-1.0), "noise_eta=-1.0 is out of range; give a number of 0 or more"),
        (SamVariant(c_first=float("nan")), "c_first=nan is out of range; give a number"),
        (SamVariant(c_decay=1.0), "c_decay=1.0 is out of range"),
        (SamVariant(stale=True, sigma=1.0), "stale=True with sigma=1.0: the gradient of the step before is the whole"),
        (SamVariant(noise=True, every=2), "noise=True with every=2: a step along it costs what a plain one does"),
        (SamVariant(momentum=True, stale=True), "momentum=True with stale=True: each is a direction of its own"),
        (SamVariant(momentum=True, noise=True), "momentum=True with noise=True"),
        (SamVariant(stale=True, noise=True), "stale=True with noise=True"),
        (SamVariant(stale=True, sharp_only=True), "stale=True with sharp_only=True"),
        (SamVariant(noise=True, layerwise=True), "noise=True with layerwise=True: the noise has a length of its own"),
        (SamVariant(sharp_only=True, every=2), "every=2 with sharp_only=True|sharp_only=True with every=2: each says"),
        (SamVariant(sharp_only=True, alpha=0.1), "sharp_only=True with alpha=0.1"),
        (SamVariant(sharp_only=True, decoupled=True), "sharp_only=True with decoupled=True"),
        (SamVariant(alpha=0.1, gamma=0.8), "alpha=0.1 with gamma=0.8"),
        (SamVariant(alpha=0.1, decoupled=True), "alpha=0.1 with decoupled=True"),
        (SamVariant(every=2, reuse=0.1, decoupled=True), "reuse=0.1 with decoupled=True"),
        (SamVariant(reuse=0.1), "reuse=0.1 with every=1"),
        (SamVariant(alpha=0.1, every=2), "alpha=0.1 with every=2"),
    ],
)
def test_settings_that_mean_nothing_are_refused_by_their_names(variant, words):
    model = net()
    optimizer = Sgd.theirs(model.parameters())
    for refused in (
        lambda: sam_backward(loss_on(*batch()), model, rho=RHO, variant=variant, memory=SamMemory()),
        lambda: SAM(optimizer, rho=RHO, variant=variant),
    ):
        with pytest.raises(ValueError, match=words) as caught:
            refused()
        assert "\n" not in str(caught.value)


def test_what_a_variant_needs_is_asked_for():
    model, loss_fn = net(), loss_on(*batch())
    for variant, words in (
        (SamVariant(sigma=1.0), "make one memory=SamMemory"),
        (SamVariant(every=2), "make one memory=SamMemory"),
        (SamVariant(decoupled=True), "make one memory=SamMemory"),
        (SamVariant(stale=True), "make one memory=SamMemory"),
        (SamVariant(noise=True), "make one memory=SamMemory"),
        (SamVariant(sharp_only=True, c_last=1.0), "make one memory=SamMemory"),
        (SamVariant(momentum=True), "give optimizer="),
    ):
        with pytest.raises(ValueError, match=words):
            sam_backward(loss_fn, model, rho=RHO, variant=variant)
    with pytest.raises(ValueError, match="layerwise=True with adaptive=True"):
        sam_backward(loss_fn, model, rho=RHO, adaptive=True, variant=SamVariant(layerwise=True))
    with pytest.raises(ValueError, match="noise=True with adaptive=True"):
        sam_backward(loss_fn, model, rho=RHO, adaptive=True, variant=SamVariant(noise=True), memory=SamMemory())
    ae_sam_variant, words = SamVariant(sharp_only=True), r"moves c from 1.0 to -1.0 over the run; give its length"
    with pytest.raises(ValueError, match=words):
        sam_backward(loss_fn, model, rho=RHO, variant=ae_sam_variant, memory=SamMemory())
    with pytest.raises(ValueError, match=words):
        SAM(Sgd.theirs(model.parameters()), rho=RHO, variant=ae_sam_variant)
    with pytest.raises(ValueError, match="num_groups=0 is not positive"):
        sam_backward(loss_fn, model, rho=RHO, variant=SamVariant(every=2), memory=SamMemory(), num_groups=0)
    with pytest.raises(ValueError, match="no normalization layer that trains"):
        sam_backward(lambda m: m.weight.sum(), nn.Linear(2, 2), rho=RHO, variant=SamVariant(norms_only=True))
    with pytest.raises(ValueError, match="give model="):
        SAM(Sgd.theirs(model.parameters()), variant=SamVariant(norms_only=True))
    with pytest.raises(ValueError, match="start=3 with end=2"):
        SAM(Sgd.theirs(model.parameters()), start=3, end=2)


def test_a_variant_in_a_group_with_rho_zero_leaves_its_parameters_where_they_are():
    model, data, seen = net(), Data(*batch()), []
    groups = [{"params": model[0].parameters(), "rho": 0.0}, {"params": model[1:].parameters()}]
    sam = SAM(torch.optim.SGD(groups, lr=0.0), rho=RHO, variant=SamVariant(ascent_steps=2, layerwise=True))

    def closure():
        seen.append(snapshot(model))
        data.loss_fns(0)[0](model).backward()

    sam.step(closure)
    first, last = seen[0], seen[-1]
    assert len(seen) == 3
    assert torch.equal(first["0.weight"], last["0.weight"])
    assert not torch.equal(first["5.weight"], last["5.weight"])


@pytest.mark.parametrize("sizes", [(6, 2), (3, 4, 1)])
def test_groups_of_unequal_size_lose_their_own_share_of_fsams_average(sizes) -> None:
    """Each group's ascent is g_i - sigma (n_i / n) average; the sum over groups is g - sigma average."""
    x, y = batch()
    x, y = x[: sum(sizes)], y[: sum(sizes)]
    variant, memory = SamVariant(sigma=0.8, sigma_decay=0.6), SamMemory()
    model, params = net(), None
    for step in range(2):
        parts = list(zip(x.split(list(sizes)), y.split(list(sizes)), strict=True))
        average = memory.average.copy()
        model.zero_grad()
        for a, b in parts:
            share = len(a) / len(x)
            loss_fn = lambda m, a=a, b=b, share=share: F.cross_entropy(m(a), b) * share  # noqa: E731
            sam_backward(loss_fn, model, rho=RHO, variant=variant, memory=memory, num_groups=len(sizes), share=share)
        if step == 0:
            continue
        found = flat([p.grad for p in model.parameters()])
        params = list(model.parameters())
        expected = torch.zeros_like(found)
        start = [p.detach().clone() for p in params]
        for a, b in parts:
            share = len(a) / len(x)
            own = torch.autograd.grad(F.cross_entropy(model(a), b) * share, params)
            directions = [
                g - 0.8 * share * average[name] for g, (name, _) in zip(own, model.named_parameters(), strict=True)
            ]
            length = flat(directions).norm()
            with torch.no_grad():
                for p, d in zip(params, directions, strict=True):
                    p += RHO * d / length
            expected += flat(torch.autograd.grad(F.cross_entropy(model(a), b) * share, params))
            with torch.no_grad():
                for p, before in zip(params, start, strict=True):
                    p.copy_(before)
        torch.testing.assert_close(found, expected, **ROUNDING)


def test_a_share_out_of_range_is_refused() -> None:
    x, y = batch()
    for share in (0.0, 1.5, float("nan")):
        with pytest.raises(ValueError, match=f"share={share} is out of range; give a share above 0, up to 1"):
            sam_backward(lambda m: F.cross_entropy(m(x), y), net(), rho=RHO, share=share)
