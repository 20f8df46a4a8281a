"""Our relatives of SAM against pytorch_optimizer's: the same updates, or the difference explained and shown.

Where it differs from us: it adds 1e-8 to the length of LookSAM's component, and keeps a climb's norm in float32."""

from collections.abc import Callable
from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samovar.sam import SAM
from samovar.sam.variant import SamVariant

library = pytest.importorskip("pytorch_optimizer")
pytestmark = pytest.mark.oracle

RHO, STEPS = 0.1, 6
CLOSE = {"rtol": 1e-6, "atol": 1e-8}  # float64 on both sides, but for |g|, which is float32 there
BASES: list[tuple[type[torch.optim.Optimizer], dict[str, Any]]] = [
    (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
    (torch.optim.AdamW, {"lr": 0.01, "eps": 1e-3}),
]


@pytest.fixture(autouse=True)
def _one_thread_one_seed():
    torch.set_num_threads(1)
    torch.manual_seed(0)


class One(nn.Module):
    """A model with a single parameter, where "of a tensor" and "of the whole vector" are one."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 3, dtype=torch.float64))

    def forward(self, x):
        return torch.tanh(x @ self.weight)


def several() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Tanh(), nn.Linear(7, 3)).double()


def batches() -> list[tuple[Tensor, Tensor]]:
    return [(torch.randn(12, 5, dtype=torch.float64), torch.randint(3, (12,))) for _ in range(STEPS)]


def closure_of(model: nn.Module, x: Tensor, y: Tensor) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        model.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss

    return closure


def ours(model, base, hyper, data, variant: SamVariant, rho=lambda step: RHO) -> nn.Module:
    model = deepcopy(model)
    sam = SAM(base(model.parameters(), **hyper), rho=RHO, variant=variant)
    for step, (x, y) in enumerate(data):
        sam.param_groups[0]["rho"] = rho(step)
        sam.step(closure_of(model, x, y))
    return model


def theirs(model, data, build: Callable[[nn.Module], Any], clean_first: bool = True) -> nn.Module:
    """Trained by a library's optimizer, which wants the clean gradient there before its step, or takes it itself."""
    model = deepcopy(model)
    optimizer = build(model)
    for x, y in data:
        closure = closure_of(model, x, y)
        if clean_first:
            closure()
        optimizer.step(closure)
    return model


def distance(a: nn.Module, b: nn.Module) -> float:
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    return float(torch.cat([(p - q).detach().flatten() for p, q in pairs]).abs().max())


def assert_close(a: nn.Module, b: nn.Module) -> None:
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p, q, **CLOSE)


@pytest.mark.parametrize(("base", "hyper"), BASES)
def test_sam(base, hyper):
    model, data = several(), batches()
    other = theirs(model, data, lambda m: library.SAM(m.parameters(), base, rho=RHO, **hyper))
    assert_close(ours(model, base, hyper, data, SamVariant()), other)


@pytest.mark.parametrize("sigma", [1.0, 0.5])
@pytest.mark.parametrize(("base", "hyper"), BASES)
def test_friendly_sam(base, hyper, sigma):
    model, data = several(), batches()

    def build(m):
        return library.FriendlySAM(m.parameters(), base, rho=RHO, sigma=sigma, lmbda=0.6, **hyper)

    variant = SamVariant(sigma=sigma, sigma_decay=0.6)
    assert_close(ours(model, base, hyper, data, variant), theirs(model, data, build))


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize(("base", "hyper"), BASES)
def test_wsam_in_both_forms(base, hyper, decoupled):
    """Theirs has an eps of its own, beside |g|, and so none can be given to its AdamW."""
    model, data = several(), batches()
    hyper = {name: value for name, value in hyper.items() if name != "eps"}

    def build(m):
        return library.WSAM(m, m.parameters(), base, rho=RHO, gamma=0.8, decouple=decoupled, **hyper)

    variant = SamVariant(gamma=0.8, decoupled=decoupled)
    assert_close(ours(model, base, hyper, data, variant), theirs(model, data, build, clean_first=False))


@pytest.mark.parametrize(("base", "hyper"), BASES)
def test_gsam_with_a_radius_of_the_callers(base, hyper):
    """Theirs asks an object for the next radius when told to, and wants each batch by `set_closure`."""
    model, data = several(), batches()
    radii = [0.1, 0.08, 0.06, 0.05, 0.05, 0.04]
    twin, given = deepcopy(model), iter(radii)
    optimizer = library.GSAM(
        twin.parameters(), base(twin.parameters(), **hyper), twin, SimpleNamespace(step=lambda: next(given)), alpha=0.4
    )
    for step, (x, y) in enumerate(data):
        if step:
            optimizer.update_rho_t()
        optimizer.set_closure(F.cross_entropy, x, y)
        optimizer.step()
    assert_close(ours(model, base, hyper, data, SamVariant(alpha=0.4), radii.__getitem__), twin)


def looksams(model, data) -> tuple[nn.Module, nn.Module]:
    base, hyper = torch.optim.SGD, {"lr": 0.1}
    other = theirs(model, data, lambda m: library.LookSAM(m.parameters(), base, rho=RHO, k=3, alpha=0.7, **hyper))
    return ours(model, base, hyper, data, SamVariant(every=3, reuse=0.7)), other


def test_looksam_of_a_single_parameter():
    """There, 1e-8 is added to the length of the kept component, which is some 1e-3 here."""
    mine, other = looksams(One(), batches())
    for p, q in zip(mine.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


def test_looksam_of_several_parameters_decomposes_each_of_them():
    """The paper's g, g_s and g_v are gradients of all the weights; the library and we take them tensor by tensor."""
    model, data = several(), batches()
    mine, other = looksams(model, data)
    assert distance(mine, by_formula(model, data, whole=False)) < 1e-12
    assert distance(mine, other) < 1e-5  # their 1e-8 beside a component of 1e-3
    assert distance(mine, by_formula(model, data, whole=True)) > 1e-3


def by_formula(model: nn.Module, data: list[tuple[Tensor, Tensor]], whole: bool) -> nn.Module:
    """LookSAM under plain SGD, its decomposition of the whole vector or of each tensor by itself."""
    model = deepcopy(model)
    params = list(model.parameters())

    def gradient(x, y):
        return list(torch.autograd.grad(F.cross_entropy(model(x), y), params))

    def dot(a, b):
        dots = [(u * v).sum() for u, v in zip(a, b, strict=True)]
        return [sum(dots)] * len(a) if whole else dots

    for step, (x, y) in enumerate(data):
        g = gradient(x, y)
        if step % 3 == 0:
            before = [p.detach().clone() for p in params]
            length = sum((u * u).sum() for u in g).sqrt()
            with torch.no_grad():
                for p, u in zip(params, g, strict=True):
                    p += RHO * u / length
            g_s = gradient(x, y)
            with torch.no_grad():
                for p, w in zip(params, before, strict=True):
                    p.copy_(w)
            v = [b - d / n * a for a, b, d, n in zip(g, g_s, dot(g_s, g), dot(g, g), strict=True)]
            v = [u / n.sqrt() for u, n in zip(v, dot(v, v), strict=True)]
            applied = g_s
        else:
            applied = [u + 0.7 * n.sqrt() * c for u, n, c in zip(g, dot(g, g), v, strict=True)]
        with torch.no_grad():
            for p, u in zip(params, applied, strict=True):
                p -= 0.1 * u
    return model


def test_a_perturb_eps_there_shortens_the_climb_as_it_is_added_to_the_length_of_the_gradient():
    """Ours adds nothing: a climb is rho long whatever the gradient, and nowhere if that is zero."""
    model, data = several(), batches()[:1]
    base, hyper = torch.optim.SGD, {"lr": 0.1}
    mine = ours(model, base, hyper, data, SamVariant())
    ends = [
        theirs(model, data, lambda m, eps=eps: library.SAM(m.parameters(), base, rho=RHO, perturb_eps=eps, **hyper))
        for eps in (1e-12, 1.0)
    ]
    assert distance(mine, ends[0]) < 1e-8
    assert distance(mine, ends[1]) > 1e-4
