"""Laws of landscapes that hold for any weights, data and grid."""

import contextlib
import tempfile
from pathlib import Path

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from samovar.measure.grid import Execution
from samovar.measure.losses import mean_loss
from samovar.measure.plane import axis, filter_direction, loss_between, loss_plane

SEEDS = st.integers(0, 2**31 - 1)
SPANS = st.floats(1e-6, 10.0)
quick = settings(max_examples=25, deadline=None)


def task(seed: int, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    """A random small net, with batches of random sizes."""
    generator = torch.Generator().manual_seed(seed)
    width, *sizes = torch.randint(1, 9, (4,), generator=generator).tolist()
    model = nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 3)).to(dtype)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    draw = {"generator": generator}
    return model, [(torch.randn(n, 4, dtype=dtype, **draw), torch.randint(3, (n,), **draw)) for n in sizes]


def cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def directions(model: nn.Module, seed: int) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [filter_direction(model, generator) for _ in range(2)]


@quick
@given(seed=SEEDS, span=SPANS, points=st.integers(2, 6))
def test_the_centre_is_the_trained_loss_and_the_weights_come_back_to_the_bit(seed, span, points):
    model, batches = task(seed)
    before = [p.detach().clone() for p in model.parameters()]
    found = loss_plane(model, cross_entropy, batches, directions(model, seed), axis(points, span), axis(3, span))
    assert found.center_loss == mean_loss(model, cross_entropy, batches)
    assert points % 2 == 0 or found.loss[1, points // 2] == found.center_loss
    assert all(torch.equal(p, kept) for p, kept in zip(model.parameters(), before, strict=True))


@quick
@given(seed=SEEDS, span=SPANS)
def test_a_point_is_the_loss_of_a_model_with_those_weights(seed, span):
    model, batches = task(seed, torch.float64)
    a, b = directions(model, seed)
    found = loss_plane(model, cross_entropy, batches, [a, b], [span], [-0.5 * span])
    weights = {
        name: p.detach() + span * a.get(name, 0) - 0.5 * span * b.get(name, 0) for name, p in model.state_dict().items()
    }
    model.load_state_dict(weights)
    torch.testing.assert_close(found.loss.item(), mean_loss(model, cross_entropy, batches), rtol=1e-9, atol=1e-12)


@quick
@given(seed=SEEDS, span=SPANS)
def test_the_plane_turns_with_its_directions(seed, span):
    model, batches = task(seed, torch.float64)
    (a, b), x = directions(model, seed), axis(3, span)
    plane = loss_plane(model, cross_entropy, batches, [a, b], x, x).loss
    swapped = loss_plane(model, cross_entropy, batches, [b, a], x, x).loss
    minus = loss_plane(model, cross_entropy, batches, [{name: -d for name, d in a.items()}, b], x, x).loss
    torch.testing.assert_close(swapped, plane.T, rtol=1e-9, atol=1e-12)  # w + a + b is not w + b + a to the bit
    assert torch.equal(minus, plane.flip(1))


@quick
@given(seed=SEEDS, stop=st.integers(0, 15), points=st.integers(1, 4))
def test_wherever_a_grid_was_interrupted_it_ends_the_same(seed, stop, points):
    model, batches = task(seed)
    x, calls = torch.linspace(-1, 2, points), []

    def interrupted(model, batch):
        calls.append(batch)
        if len(calls) > stop * len(batches):
            raise KeyboardInterrupt
        return cross_entropy(model, batch)

    with tempfile.TemporaryDirectory() as folder:
        whole = loss_plane(model, cross_entropy, batches, directions(model, seed), x, axis(3, 1.0))
        with contextlib.suppress(KeyboardInterrupt):
            loss_plane(model, interrupted, batches, directions(model, seed), x, axis(3, 1.0), Execution(Path(folder)))
        resumed = loss_plane(
            model, cross_entropy, batches, directions(model, seed), x, axis(3, 1.0), Execution(Path(folder))
        )
    assert torch.equal(resumed.loss, whole.loss)
    assert resumed.center_loss == whole.center_loss


@quick
@given(seed=SEEDS, other=SEEDS)
def test_the_line_between_two_models_has_the_losses_of_both_at_its_ends(seed, other):
    model, batches = task(seed)
    there, _ = task(seed)
    with torch.no_grad():
        for p in there.parameters():
            p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(other)) * 10.0 ** (other % 9 - 6))
    found = loss_between(model, there, cross_entropy, batches, [0.0, 0.25, 1.0])
    ends = [mean_loss(each, cross_entropy, batches) for each in (model, there)]
    assert found.loss[[0, 2]].tolist() == ends


@quick
@given(seed=SEEDS, shape=st.lists(st.integers(1, 7), min_size=2, max_size=4), scale=st.floats(1e-6, 1e6))
def test_filters_of_a_direction_are_as_long_as_those_of_the_weights(seed, shape, scale):
    model = nn.Module()
    generator = torch.Generator().manual_seed(seed)
    model.weight = nn.Parameter(torch.randn(shape, generator=generator) * scale)
    direction = filter_direction(model, generator)["weight"]
    lengths = [w.detach().flatten(1).norm(dim=1) for w in (direction, model.weight)]
    torch.testing.assert_close(*lengths, rtol=1e-5, atol=0)  # float32
