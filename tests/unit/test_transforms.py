import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from samovar.config import DataConfig
from samovar.data.draws import Purpose, hashes
from samovar.data.pipeline import augment, crop_each, frame
from samovar.data.seeded import autoaugment, mix, randaugment, seeded
from samovar.data.transforms import (
    affine,
    crop_resize,
    flip,
    inception_attempt,
    inception_boxes,
    pad_crop,
    resize,
    resize_central,
)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def smooth(*shape: int, seed: int = 0) -> torch.Tensor:
    coarse = torch.rand(*shape[:2], 5, 5, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, size=shape[2:], mode="bicubic").clamp(0, 1)


# --- flip, pad-and-crop, affine --------------------------------------------------------------------------------------


def test_flip_mirrors_those_below_one_half_and_leaves_its_input():
    images = noise(4, 3, 5, 6)
    before = images.clone()
    out = flip(images, np.array([[0.0], [0.5], [0.499], [0.9]]))
    assert torch.equal(out, torch.stack([images[0].flip(-1), images[1], images[2].flip(-1), images[3]]))
    assert torch.equal(images, before)


@pytest.mark.parametrize("kind", [torch.uint8, torch.float32])
def test_pad_crop_cuts_every_place_of_the_padded_image(kind):
    pad, places = 2, [(i, j) for i in range(5) for j in range(5)]
    images = noise(25, 3, 6, 7).to(kind)
    u = (np.array(places) + 0.5) / 5
    out = pad_crop(images, u, pad)
    padded = torch.nn.functional.pad(images, (pad,) * 4)
    expected = [padded[n, :, i : i + 6, j : j + 7] for n, (i, j) in enumerate(places)]
    assert torch.equal(out, torch.stack(expected))
    assert torch.equal(pad_crop(images, np.full((25, 2), 1 - 2**-53), pad)[0], padded[0, :, 4:, 4:])


def test_affine_in_the_middle_of_its_range_changes_nothing():
    images = noise(2, 3, 9, 9)
    assert torch.equal(affine(images, np.full((2, 4), 0.5), 10, 0.1, 0.1), images)


@pytest.mark.parametrize("which", [0, 1, 2, 3])
def test_affine_is_torchvisions(which):
    images = smooth(1, 3, 24, 24)
    u = np.full((1, 4), 0.5)
    u[0, which] = 0.9
    signed = 2 * u[0] - 1
    theirs = tv.affine(
        images,
        angle=20 * signed[0],
        scale=1 + 0.3 * signed[1],
        # Ours shifts the window, torchvision the picture.
        translate=[-0.25 * 24 * signed[2], -0.25 * 24 * signed[3]],
        shear=[0.0, 0.0],
        interpolation=v2.InterpolationMode.BILINEAR,
    )
    ours = affine(images, u, 20, 0.25, 0.3)
    inside = (..., slice(7, 17), slice(7, 17))  # their border is the fill value's, ours fades
    assert (ours - theirs)[inside].abs().max() < 1e-5  # float32 grids
    assert (ours - images)[inside].abs().max() > 0.01


def test_affine_rounds_bytes_to_the_nearest():
    images, u = noise(8, 1, 8, 8), np.random.default_rng(0).random((8, 4))
    exact = affine(images.float(), u, 10, 0.1, 0.1)
    assert (affine(images, u, 10, 0.1, 0.1) - exact).abs().max() <= 0.5


# --- the Inception crop ----------------------------------------------------------------------------------------------


def reference_attempt(height: int, width: int, u: list[float]) -> tuple[int, int, int, int] | None:
    """TensorFlow's GenerateRandomCrop, one step at a time, with our order of draws."""
    aspect = 0.75 + u[0] * (1.33 - 0.75)
    min_area, max_area = 0.05 * height * width, 1.0 * height * width
    low, high = round(math.sqrt(min_area / aspect)), round(math.sqrt(max_area / aspect))
    if round(high * aspect) > width:
        high = int((width + 0.5 - 1e-7) / aspect)
        if round(high * aspect) > width:
            high -= 1
    high = min(high, height)
    low = min(low, high)
    h = low + int(u[1] * (high - low + 1)) if low < high else low
    w = round(h * aspect)
    if h * w < min_area:
        h += 1
        w = round(h * aspect)
    if h * w > max_area:
        h -= 1
        w = round(h * aspect)
    if not (min_area <= h * w <= max_area and 0 < w <= width and 0 < h <= height):
        return None
    top = int(u[2] * (height - h)) if h < height else 0
    left = int(u[3] * (width - w)) if w < width else 0
    return top, left, h, w


def test_inception_attempts_are_tensorflows():
    rng = np.random.default_rng(0)
    heights, widths = rng.integers(1, 400, 3000), rng.integers(1, 400, 3000)
    u = rng.random((3000, 4))
    boxes, fits = inception_attempt(heights, widths, u)
    expected = [reference_attempt(*row) for row in zip(heights.tolist(), widths.tolist(), u.tolist(), strict=True)]
    assert fits.tolist() == [box is not None for box in expected]
    assert boxes[fits].tolist() == [list(box) for box in expected if box]


def test_inception_boxes_obey_the_published_law():
    n, height, width = 20_000, 375, 500
    top, left, h, w = inception_boxes(np.full(n, height), np.full(n, width), 0, np.arange(n)).T
    share, aspect = h * w / (height * width), w / h
    assert share.min() >= 0.05
    assert share.max() > 0.95
    assert 0.74 < aspect.min() < 0.76
    assert 1.32 < aspect.max() < 1.34
    assert ((top + h < height) | (h == height)).all()
    assert ((left + w < width) | (w == width)).all()
    # Between the limits of its aspect a height is uniform: here near aspect 1, from sqrt(5 %) of the area to 375.
    near = h[abs(aspect - 1) < 0.02]
    low = math.sqrt(0.05 * height * width)
    assert abs(near.mean() - (low + height) / 2) < 4 * (height - low) / 12**0.5 / len(near) ** 0.5
    centre = (top / np.maximum(height - h, 1))[h < height - 50]
    assert abs(centre.mean() - 0.5) < 0.02  # four standard errors, and half a pixel of rounding


def test_an_image_too_elongated_for_any_crop_is_kept_whole():
    boxes = inception_boxes(np.array([20, 300]), np.array([640, 300]), 0, np.arange(2))
    assert boxes[0].tolist() == [0, 0, 20, 640]
    assert boxes[1].tolist() != [0, 0, 300, 300]


@pytest.mark.parametrize("shape", [(30, 300), (30, 900), (10, 2000), (2000, 10), (2, 400)])
@pytest.mark.parametrize("antialias", [False, True])
def test_the_inception_crop_of_a_strip_is_scaled_once_to_its_final_size(shape, antialias, monkeypatch):
    made, scaled = [], F.interpolate
    monkeypatch.setattr(F, "interpolate", lambda *args, **rest: made.append(rest["size"]) or scaled(*args, **rest))
    config = DataConfig(image_size=16, crop="inception", antialias=antialias)
    for position in range(5):
        (out,) = crop_each([noise(1, 3, *shape)[0]], config, 0, np.array([position]))
        assert out.shape == (3, 16, 16)
    assert set(made) == {(16, 16)}


def test_a_box_does_not_depend_on_its_neighbours():
    heights, widths = np.array([20, 300, 200]), np.array([300, 300, 100])
    together = inception_boxes(heights, widths, 3, np.array([5, 6, 7]))
    alone = inception_boxes(heights[1:2], widths[1:2], 3, np.array([6]))
    assert np.array_equal(together[1:2], alone)


@pytest.mark.parametrize("size", [7, 32, 50])
def test_crop_resize_is_crop_then_bilinear_without_antialias(size):
    images = noise(4, 3, 33, 41)
    boxes = np.array([[0, 0, 33, 41], [3, 5, 20, 11], [32, 40, 1, 1], [10, 0, 5, 41]])
    expected = torch.stack(
        [tv.resized_crop(i.float(), *box, [size, size], antialias=False) for i, box in zip(images, boxes, strict=True)]
    )
    assert (crop_resize(images.float(), boxes, size) - expected).abs().max() < 0.02  # of 255: float32 grid positions
    assert (crop_resize(images, boxes, size) - expected).abs().max() < 0.52


@pytest.mark.parametrize("antialias", [True, False])
def test_resize_of_bytes_is_torchvisions(antialias):
    images = noise(2, 3, 40, 30)
    assert torch.equal(resize(images, 17, 23, antialias=antialias), tv.resize(images, [17, 23], antialias=antialias))


@pytest.mark.parametrize("shape", [(300, 400), (400, 300), (20, 30), (64, 64)])
def test_evaluation_frames_as_the_paper_did(shape):
    image = noise(1, 3, *shape)
    expected = tv.center_crop(tv.resize(image, [64], antialias=True), [56, 56])  # 56 * 256 / 224 = 64
    ours = resize_central(image, 56)
    assert ours.shape == expected.shape
    assert (ours.int() - expected.int()).abs().float().mean() < 6  # they floor the longer side, we round it


@pytest.mark.parametrize("shape", [(300, 3600), (7, 150), (150, 7), (2, 41), (41, 2)])
def test_a_strip_is_framed_as_if_all_of_it_were_scaled(shape):
    image = noise(1, 3, *shape)
    scale = 64 / min(shape)
    whole = tv.resize(image, [round(side * scale) for side in shape], antialias=True)
    top, left = ((side - 56) // 2 for side in whole.shape[-2:])
    expected = whole[..., top : top + 56, left : left + 56]
    # both round the enlarged length to whole pixels, so the places differ by up to half of one; noise is 85 off
    assert (resize_central(image, 56).int() - expected.int()).abs().float().mean() < 6


@pytest.mark.parametrize("shape", [(2, 30_000), (30_000, 2), (1, 10**6)])
@pytest.mark.parametrize("crop", ["none", "inception"])
def test_a_strip_of_any_length_costs_no_more_than_an_image(shape, crop, monkeypatch):
    """Both of evaluation and of training; 2 x 30 000 pixels took 50 s and 8 GB."""
    largest = []
    scale = F.interpolate

    def counted(images, **options):
        made = scale(images, **options)
        largest.append(made.numel())
        return made

    monkeypatch.setattr(F, "interpolate", counted)
    image = torch.zeros(3, *shape, dtype=torch.uint8)
    if crop == "inception":
        (found,) = crop_each([image], DataConfig(image_size=56), 0, np.arange(1))
    else:
        found = frame(image[None], 56, fixed=False)[0]
    assert found.shape == (3, 56, 56)
    assert max(largest) <= 3 * 64 * 65 * 10  # 56 * 256 / 224 = 64, and half a pixel more for an odd length


# --- RandAugment, mixup, cutmix --------------------------------------------------------------------------------------


def test_randaugment_is_a_function_of_seed_and_position():
    images = noise(6, 3, 16, 16)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    out = randaugment(images, 0, np.arange(6), 2, 15)
    assert torch.equal(torch.get_rng_state(), before)
    backwards = randaugment(images.flip(0), 0, np.arange(6)[::-1].copy(), 2, 15)
    assert torch.equal(out, backwards.flip(0))
    assert not torch.equal(out, randaugment(images, 1, np.arange(6), 2, 15))
    assert out.dtype == torch.uint8


@pytest.mark.parametrize("policy", ["imagenet", "cifar10"])
def test_autoaugment_is_a_function_of_seed_and_position(policy):
    images = noise(12, 3, 8, 8)
    state = torch.get_rng_state()
    out = autoaugment(images, 0, np.arange(12), policy)
    assert torch.equal(torch.get_rng_state(), state)
    assert out.dtype == torch.uint8
    assert not torch.equal(out, images)
    backwards = autoaugment(images.flip(0), 0, np.arange(12)[::-1].copy(), policy)
    assert torch.equal(backwards.flip(0), out)
    for image, word, done in zip(images, hashes((0, Purpose.AUTOAUGMENT), np.arange(12), 1), out, strict=True):
        with seeded(int(word[0])):
            assert torch.equal(v2.AutoAugment(v2.AutoAugmentPolicy(policy))(image), done)
    assert not torch.equal(out, autoaugment(images, 1, np.arange(12), policy))


def test_autoaugments_policies_differ_and_take_grey_images():
    images, positions = noise(40, 1, 8, 8), np.arange(40)
    one, other = (autoaugment(images, 0, positions, policy) for policy in ("imagenet", "cifar10"))
    assert one.shape == images.shape
    assert not torch.equal(one, other)


def test_autoaugment_comes_before_randaugment():
    images, positions = noise(20, 3, 8, 8), np.arange(20)
    config = DataConfig(image_size=8, autoaugment="cifar10", randaugment_layers=2)
    both = augment(images, config, 0, positions)
    assert torch.equal(both, randaugment(autoaugment(images, 0, positions, "cifar10"), 0, positions, 2, 15))


def test_randaugment_takes_grey_images():
    assert randaugment(noise(40, 1, 8, 8), 0, np.arange(40), 2, 15).shape == (40, 1, 8, 8)


def test_mixup_mixes_neighbours_and_their_classes_by_one_share():
    images, labels = torch.rand(6, 3, 4, 4), torch.arange(6)
    before = torch.get_rng_state()
    mixed, targets = mix(images, labels, 0, 5, 7, 0.5, 0.0)
    assert torch.equal(torch.get_rng_state(), before)
    share = targets[0, 0]
    assert 0 < share < 1
    assert torch.allclose(mixed, share * images + (1 - share) * images.roll(1, 0), atol=1e-6)
    assert torch.allclose(targets.sum(1), torch.ones(6))
    assert torch.equal(mix(images, labels, 0, 5, 7, 0.5, 0.0)[0], mixed)
    assert not torch.equal(mix(images, labels, 0, 6, 7, 0.5, 0.0)[0], mixed)


def test_cutmix_targets_are_shares_of_pixels():
    images, labels = torch.rand(2, 1, 16, 16), torch.arange(2)
    for step in range(20):
        mixed, targets = mix(images, labels, 0, step, 2, 0.0, 1.0)
        kept = (mixed == images).float().mean(dim=(1, 2, 3))
        assert torch.allclose(targets.diagonal(), kept)


def test_with_both_on_half_the_batches_take_each():
    images, labels = torch.rand(2, 1, 8, 8), torch.arange(2)
    cut = 0
    for step in range(200):
        mixed, _ = mix(images, labels, 0, step, 2, 1.0, 1.0)
        cut += bool(((mixed == images) | (mixed == images.roll(1, 0))).all())
    assert 65 < cut < 135  # five standard deviations
