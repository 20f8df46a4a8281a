"""Laws of the images of adversarial training, for any pictures, radius, steps and groups."""

import math
from fractions import Fraction

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from samovar.attacks import Ball
from samovar.config import AdversarialConfig
from samovar.objectives import adversarial

SEEDS = st.integers(0, 2**31 - 1)
SHARES = st.integers(0, 1000).map(lambda thousandths: thousandths / 1000)
quick = settings(max_examples=50, deadline=None)


def pictures(seed: int, count: int) -> Tensor:
    """Random pixels, many of them black or white."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(count, 2, 3, 3, generator=generator) * 2 - 0.5).clamp(0, 1)


def slopes(seed: int, like: Tensor) -> Tensor:
    """Gradients of any size, zeros among them."""
    generator = torch.Generator().manual_seed(seed)
    slope = torch.randn(like.shape, generator=generator)
    slope *= 10.0 ** torch.randint(-30, 30, like.shape, generator=generator)
    return slope * (torch.rand(like.shape, generator=generator) < 0.8)


@quick
@given(
    seed=SEEDS,
    eps=st.floats(1e-6, 1.0),
    num_steps=st.integers(1, 5),
    step_size=st.floats(0.0, 3.0),
    clean_share=SHARES,
    size=st.integers(1, 9),
)
def test_images_never_leave_the_ball_or_the_range_of_pixels(seed, eps, num_steps, step_size, clean_share, size):
    images = pictures(seed, 8)
    attack = adversarial.begin(images, AdversarialConfig(eps, num_steps, step_size, clean_share), seed)
    clean = adversarial.clean_places(8, clean_share)
    if attack is None:
        assert clean.all()
        return
    for step in range(num_steps + 1):
        points = attack.points
        assert points.min() >= 0
        assert points.max() <= 1
        assert (points - images).abs().max() <= eps + 1e-7  # a pixel near 1 is rounded by 6e-8
        assert torch.equal(points[clean], images[clean])
        for part, piece in zip(attack.split(size), slopes(seed + step, points).split(size), strict=True):
            part.move([piece])


@quick
@given(seed=SEEDS, eps=st.floats(1e-3, 1.0), size=st.integers(1, 9), micro=st.integers(1, 9))
def test_groups_and_pieces_move_as_the_whole_batch_does(seed, eps, size, micro):
    images, config = pictures(seed, 8), AdversarialConfig(eps)
    whole, parts = adversarial.begin(images, config, seed), adversarial.begin(images, config, seed)
    slope = slopes(seed, images)
    whole.move([slope])
    for part, piece in zip(parts.split(size), slope.split(size), strict=True):
        part.move(piece.split(micro))
    assert torch.equal(parts.points, whole.points)


@quick
@given(count=st.integers(1, 300), share=SHARES)
def test_every_run_of_places_has_its_share_of_clean_ones_to_below_one(count, share):
    exact = Fraction(share).limit_denominator(1000)
    before = torch.cat([torch.zeros(1), adversarial.clean_places(count, share).cumsum(0)]).tolist()
    assert abs(before[-1] - count * exact) <= Fraction(1, 2)
    for size in {1, 2, 3, 32, count} & set(range(count + 1)):
        wanted = {math.floor(size * exact), math.ceil(size * exact)}
        assert {int(b - a) for a, b in zip(before, before[size:], strict=False)} <= wanted


@quick
@given(seed=SEEDS, radius=st.floats(0.0, 2.0))
def test_a_ball_of_lengths_with_a_radius_an_image_holds_its_points_too(seed, radius):
    images = pictures(seed, 8)
    radii = torch.tensor([0.0, radius]).repeat(4).view(8, 1, 1, 1)
    ball = Ball(images, radii, "2")
    points = ball.climb(ball.random(torch.Generator().manual_seed(seed)), slopes(seed, images), 0.5)
    lengths = (points - images).flatten(1).norm(dim=1)
    assert (lengths <= radii.flatten() + 1e-6).all()  # 18 pixels, each rounded by 6e-8
    assert points.min() >= 0
    assert points.max() <= 1
