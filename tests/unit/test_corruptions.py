"""The parts of the corruptions, each against its definition computed another way."""

import colorsys
import os
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from samovar.data.corruptions import (
    CORRUPTIONS,
    SEVERITIES,
    blur,
    corrupt,
    digital,
    drops,
    filters,
    image_seed,
    randomness,
    sampling,
    weather,
)
from samovar.data.corruptions.constants import CIFAR, IMAGENET

ROOT = Path(__file__).parents[2]


def pattern(height: int = 40, width: int = 37) -> np.ndarray:
    """Edges, slopes and every grey level, by integer arithmetic alone."""
    y, x = np.mgrid[:height, :width]
    channels = [(x * y * 3 // 7 + x * 5) % 256, (x * x // 9 + y * 3) % 256, (y * y // 5 + x) % 256]
    return np.stack(channels, -1).astype(np.uint8)


def smooth_image(size: int = 96) -> np.ndarray:
    coarse = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC))


def rng(seed: int = 0) -> np.random.Generator:
    return randomness.generator(seed, "test", 1)


# --- what goes in, what comes out ------------------------------------------------------------------------------------


def test_every_kind_of_image_comes_back_as_it_came_with_the_same_pixels():
    image = pattern()
    expected = corrupt(image, "fog", severity=3)
    pillow = corrupt(Image.fromarray(image), "fog", severity=3)
    tensor = corrupt(torch.from_numpy(image).permute(2, 0, 1), "fog", severity=3)
    assert pillow.mode == "RGB"
    assert np.array_equal(np.asarray(pillow), expected)
    assert tensor.shape == (3, 40, 37)
    assert tensor.is_contiguous()
    assert np.array_equal(tensor.permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_grey_comes_back_grey_in_every_kind(name):
    image = pattern()[..., 0].copy()
    expected = corrupt(image, name, severity=2)
    assert expected.shape == image.shape
    assert np.array_equal(np.asarray(corrupt(Image.fromarray(image), name, severity=2)), expected)
    assert np.array_equal(corrupt(torch.from_numpy(image)[None], name, severity=2)[0].numpy(), expected)
    assert np.array_equal(corrupt(image[..., None], name, severity=2)[..., 0], expected)
    assert np.array_equal(image, expected) == (name == "saturate")  # grey has no saturation


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_the_input_is_left_alone_and_the_output_is_the_callers_own(name):
    image = pattern()
    before = image.copy()
    image.flags.writeable = False
    out = corrupt(image, name, severity=5)
    assert np.array_equal(image, before)
    assert out.flags.writeable
    assert not np.shares_memory(out, image)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_the_callers_default_dtype_does_not_matter(name):
    expected = corrupt(pattern(), name, severity=2)
    torch.set_default_dtype(torch.float64)
    try:
        assert np.array_equal(corrupt(pattern(), name, severity=2), expected)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (pattern().astype(np.float32) / 255, r"array \[40, 37, 3\] of float32.*\* 255"),
        (np.zeros((8, 8, 4), np.uint8), "4 channels.*colour channels"),
        (np.zeros((2, 8, 8, 3), np.uint8), r"array \[2, 8, 8, 3\] of uint8.*one image at a time"),
        (np.zeros((0, 8, 3), np.uint8), "without pixels"),
        (Image.new("RGBA", (8, 8)), r"mode RGBA.*convert\(\"RGB\"\)"),
        (Image.new("P", (8, 8)), "mode P"),
        (torch.zeros(3, 8, 8), r"tensor \[3, 8, 8\] of torch.float32.*\* 255"),
        (torch.zeros(8, 8, 3, dtype=torch.uint8), "8 channels.*first in a tensor"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), "one image at a time"),
        (
            [[14264673278752485357, 14318817763372226298], [14264673278752485357, 14318817763372226298]],
            "a list.*numpy.asarray",
        ),
    ],
)
def test_a_wrong_image_is_refused_in_one_line_that_says_what_to_do(image, said):
    with pytest.raises(ValueError, match=said) as caught:
        corrupt(image, "fog", severity=1)
    assert "allowed are 8 bits" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"name": "gausian_noise", "severity": 1}, "did you mean gaussian_noise"),
        ({"name": "zzz", "severity": 1}, "known: gaussian_noise, shot_noise"),
        ({"name": "fog", "severity": 0}, "severity=0 .* 1, 2, 3, 4, 5"),
        ({"name": "fog", "severity": 6}, "severity=6"),
        ({"name": "fog", "severity": 2.0}, r"severity=2\.0"),
        ({"name": "fog", "severity": "2"}, "severity='2'"),
        ({"name": "fog", "severity": 2, "constants": "tiny"}, '"auto", "imagenet" or "cifar"'),
    ],
)
def test_wrong_arguments_are_refused_with_what_is_allowed(arguments, said):
    with pytest.raises(ValueError, match=said):
        corrupt(pattern(), **arguments)


def test_images_below_64_pixels_get_cifars_constants():
    for size, constants in (((63, 200), "cifar"), ((200, 63), "cifar"), ((64, 64), "imagenet")):
        image = pattern(*size)
        auto = corrupt(image, "contrast", severity=3)
        assert np.array_equal(auto, corrupt(image, "contrast", severity=3, constants=constants))
    assert not np.array_equal(auto, corrupt(image, "contrast", severity=3, constants="cifar"))


def test_both_sets_of_constants_cover_every_severity_of_every_corruption():
    for constants in (IMAGENET, CIFAR):
        assert set(constants) == set(CORRUPTIONS)
        assert all(len(levels) == len(SEVERITIES) for levels in constants.values())
        assert all(len({len(level) for level in levels}) == 1 for levels in constants.values())


# --- the same bits everywhere ----------------------------------------------------------------------------------------

GOLDEN = {
    "gaussian_noise": "aca7b5bf",
    "shot_noise": "67e7e3c7",
    "impulse_noise": "83b9c0dc",
    "defocus_blur": "dd453ca6",
    "glass_blur": "82c193a7",
    "motion_blur": "d065a6b2",
    "zoom_blur": "2057f384",
    "snow": "4bfd2c8d",
    "frost": "c23cc7d2",
    "fog": "47e0eed1",
    "brightness": "aba21554",
    "contrast": "d17e7ec6",
    "elastic_transform": "e5ac8e9a",
    "speckle_noise": "baab71ce",
    "gaussian_blur": "e8688115",
    "spatter": "b1e1724f",
    "saturate": "61ff9e25",
}


def digest(name: str) -> str:
    """CRC over all severities on an image of each set of constants."""
    images = [pattern(32, 32), pattern(67, 80)]
    pixels = [corrupt(image, name, severity=severity, seed=7) for image in images for severity in SEVERITIES]
    return f"{zlib.crc32(b''.join(array.tobytes() for array in pixels)):08x}"


@pytest.mark.parametrize("name", GOLDEN)
def test_pixels_are_those_of_every_earlier_version(name):
    """A change here makes results incomparable with earlier ones: it belongs in CHANGELOG.md."""
    assert digest(name) == GOLDEN[name]


def test_only_what_pillow_does_is_not_held_to_the_bit():
    assert set(CORRUPTIONS) - set(GOLDEN) == {"jpeg_compression", "pixelate"}


def test_bits_do_not_depend_on_the_instruction_set_or_on_threads():
    from numpy._core._multiarray_umath import __cpu_dispatch__ as optional

    plain = {"ATEN_CPU_CAPABILITY": "default", "NPY_DISABLE_CPU_FEATURES": " ".join(optional), "OMP_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.unit.test_corruptions"],
        cwd=ROOT,
        env=os.environ | plain,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [digest(name) for name in CORRUPTIONS]


def test_seeds_of_images_differ_and_stay_what_they_are():
    seeds = [image_seed(seed, index) for seed in (0, 1) for index in range(100)]
    assert len(set(seeds)) == 200
    assert seeds[:2] == [14264673278752485357, 14318817763372226298]


# --- randomness ------------------------------------------------------------------------------------------------------


def test_draws_are_those_of_the_bit_generator():
    words = randomness.words(rng(), 3, 5)
    raw = rng().bit_generator.random_raw(4)
    assert words.shape == (3, 5)
    assert words.ravel()[:8].tolist() == [int(word) >> shift & 0xFFFF for word in raw[:2] for shift in (0, 16, 32, 48)]


def test_tables_make_normal_and_even_draws():
    normals = randomness.normals(rng(), 400_000)
    assert abs(normals.mean()) < 0.01
    assert abs(normals.std() - 1) < 0.01
    assert abs((np.abs(normals) < 1).mean() - 0.6827) < 0.005
    evens = randomness.odd_bytes(rng(), 400_000)
    assert set(evens.tolist()) == set(range(-255, 256, 2))
    assert abs(evens.mean()) < 1


def test_shot_noise_counts_photons():
    image = np.repeat(np.array([0, 10, 128, 255], np.uint8), 30_000).reshape(4, -1, 1)
    counts = np.rint(np.ceil(corrupt(image, "shot_noise", severity=1, constants="imagenet")) / 255 * 60)
    rates = np.array([0, 10, 128, 255]) / 255 * 60
    assert counts[0].max() == 0
    np.testing.assert_allclose(counts.mean((1, 2))[1:3], rates[1:3], rtol=0.01)
    np.testing.assert_allclose(counts.var((1, 2))[1:3], rates[1:3], rtol=0.05)
    assert counts[3].max() == 60  # white cannot get whiter


def test_impulse_noise_sets_the_stated_share_half_to_each_end():
    out = corrupt(np.full((300, 300, 3), 100, np.uint8), "impulse_noise", severity=5)
    assert abs((out == 0).mean() - 0.135) < 0.005
    assert abs((out == 255).mean() - 0.135) < 0.005
    assert set(np.unique(out)) == {0, 100, 255}


def test_noise_on_grey_is_as_strong_as_on_a_channel():
    image = np.full((200, 200), 128, np.uint8)
    assert abs(corrupt(image, "gaussian_noise", severity=1).std() - 0.08 * 255) < 0.3


# --- sums and samples ------------------------------------------------------------------------------------------------


def test_sums_of_shifts_are_exact_in_any_order():
    image, random = pattern(), np.random.default_rng(0)
    weights = filters.fixed_point(random.random(25).tolist(), 16)
    taps = [(i, j, weights[5 * i + j]) for i in range(5) for j in range(5)]
    sums = filters.sum_of_shifts(image, taps)
    padded = np.pad(image, ((0, 4), (0, 4), (0, 0)), "edge").astype(np.int64)
    assert np.array_equal(sums, sum(w * padded[i : i + 40, j : j + 37] for i, j, w in taps))
    random.shuffle(taps)
    assert np.array_equal(sums, filters.sum_of_shifts(image, taps))


def test_weights_in_fixed_point_sum_to_one_exactly():
    for bits in (12, 16):
        assert sum(filters.fixed_point([1.0, 0.3, 0.7, 1e-9, 3.0], bits)) == 2**bits


@pytest.mark.parametrize("sigma", [0.05, 0.4, 1, 2.5, 6])
def test_smoothing_is_scipys_to_a_fifth_of_a_grey_level(sigma):
    image = pattern(64, 50)
    theirs = ndimage.gaussian_filter(image.astype(np.float64), (sigma, sigma, 0), mode="nearest")
    # 12-bit weights are off by up to 2^-13 each, and values between the passes by 1/32
    assert np.abs(filters.smooth(image, (sigma, sigma)) - theirs).max() < 0.2


def test_a_dot_streaks_into_half_a_gaussian():
    dot = np.zeros((21, 41, 1), np.uint8)
    dot[10, 30] = 255
    row = filters.streak(dot, 10, 3, 0)[10, :, 0]
    half = np.exp(-0.5 * (np.arange(21) / 3) ** 2)
    np.testing.assert_allclose(row[30:9:-1], 255 * half / half.sum(), atol=0.01)
    up = filters.streak(dot, 10, 3, 90)[..., 0]
    assert np.count_nonzero(up.any(0)) == 1


@pytest.mark.parametrize("factor", [1, 1.02, 1.1, 1.3, 2.5, 4.5])
@pytest.mark.parametrize("shape", [(64, 64), (97, 130)])
def test_enlargements_are_scipys(factor, shape):
    image = np.random.default_rng(0).random((*shape, 1), np.float32)
    crops = [int(np.ceil(size / factor)) for size in shape]
    starts = [(size - crop) // 2 for size, crop in zip(shape, crops, strict=True)]
    crop = image[starts[0] : starts[0] + crops[0], starts[1] : starts[1] + crops[1], 0]
    theirs = ndimage.zoom(crop, factor, order=1)
    margins = [(got - size) // 2 for got, size in zip(theirs.shape, shape, strict=True)]
    theirs = theirs[margins[0] : margins[0] + shape[0], margins[1] : margins[1] + shape[1]]
    np.testing.assert_allclose(sampling.zoomed(image, factor)[..., 0], theirs, atol=1e-4)


def test_samples_are_scipys_with_the_same_mirror():
    image, random = pattern(), np.random.default_rng(0)
    rows, cols = random.uniform(-50, 90, (2, 40, 37)).astype(np.float32)
    ours = sampling.sampled(image, rows, cols).astype(float)
    for channel in range(3):
        theirs = ndimage.map_coordinates(image[..., channel].astype(float), [rows, cols], order=1, mode="reflect")
        assert np.abs(ours[..., channel] - theirs).max() < 0.51  # rounded


# --- blur, colour, weather -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reach", [1, 2, 4])
def test_glass_shuffles_as_the_published_loop_does(reach):
    height, width = 23, 19
    steps = randomness.words(rng(), height * width).astype(int) * (2 * reach) ** 2 >> 16
    image = np.arange(height * width).reshape(height, width)
    for h in range(height - reach, reach, -1):
        for w in range(width - reach, reach, -1):
            down, along = divmod(int(steps[h * width + w]), 2 * reach)
            image[h, w] = image[h + down - reach, w + along - reach]
    assert np.array_equal(blur._shuffle(height, width, reach, rng()), image.ravel())


@pytest.mark.parametrize(("radius", "total"), [(0.3, 1), (1.5, 1), (6, 1), (8, 1.0129755), (10, 1.0107858)])
def test_the_disk_is_symmetric_and_sums_to_what_the_published_one_does(radius, total):
    kernel = np.array(blur._disk(radius, 0.5))
    assert np.array_equal(kernel, kernel[::-1])
    assert np.array_equal(kernel, kernel.T)
    assert kernel.sum() / 2**15 == pytest.approx(total, abs=2**-15)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_brightness_and_saturation_are_those_of_the_hexcone(severity):
    random = np.random.default_rng(0)
    colours = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    colours[0] = colours[0, :, :1]  # greys
    colours[0, 0] = 0
    summand = IMAGENET["brightness"][severity - 1][0]
    scale, offset = IMAGENET["saturate"][severity - 1]
    brighter = corrupt(colours, "brightness", severity=severity, constants="imagenet")
    saturated = corrupt(colours, "saturate", severity=severity, constants="imagenet")
    for place in np.ndindex(8, 8):
        h, s, v = colorsys.rgb_to_hsv(*(colours[place] / 255))
        expected = np.array(colorsys.hsv_to_rgb(h, s, min(v + summand, 1))) * 255
        assert np.abs(brighter[place] + 0.5 - expected).max() <= 0.5 + 1e-3  # the fraction is dropped
        expected = np.array(colorsys.hsv_to_rgb(h, min(s * scale + offset, 1), v)) * 255
        assert np.abs(saturated[place] + 0.5 - expected).max() <= 0.5 + 1e-3


def test_contrast_keeps_the_mean_and_shrinks_the_rest():
    image = smooth_image()
    out = corrupt(image, "contrast", severity=1)
    assert np.abs(out.mean((0, 1)) + 0.5 - image.mean((0, 1))).max() < 0.5
    np.testing.assert_allclose(out.std((0, 1)), 0.4 * image.std((0, 1)), rtol=0.02)


@pytest.mark.parametrize("decay", [1.4, 3])
def test_clouds_reach_from_0_to_1_and_tile(decay):
    clouds = weather.plasma(64, 64, decay, rng())
    assert clouds.min() == 0
    assert clouds.max() == 1
    inner = np.abs(np.diff(clouds, axis=0)).mean()
    assert np.abs(clouds[0] - clouds[-1]).mean() < 2 * inner


@pytest.mark.parametrize(("size", "side"), [(1, 224), (0.2, 32)])
def test_ice_has_the_mean_and_the_deviation_that_its_colours_count_on(size, side):
    ice = np.stack([weather._ice(side, side, size, rng(seed)) for seed in range(30)])
    assert abs(ice.mean()) < 0.1
    assert abs(ice.std() - 1) < 0.1


def test_the_affine_map_moves_its_corners_as_told():
    rows, cols = np.meshgrid(np.arange(32, dtype=np.float32), np.arange(32, dtype=np.float32), indexing="ij")
    moves = [[1.0, -2.0], [0.0, 3.0], [-1.0, 1.0]]
    y, x = digital._affine(rows, cols, moves)
    for corner, move in zip([(26, 26), (26, 6), (6, 6)], moves, strict=True):
        target = (corner[0] + int(move[0]), corner[1] + int(move[1]))
        assert (y[target], x[target]) == pytest.approx(corner, abs=1e-4)


def test_distances_are_scipys_up_to_20():
    edges = np.random.default_rng(0).random((90, 70)) < 0.003
    theirs = np.minimum(ndimage.distance_transform_edt(~edges), 20)
    np.testing.assert_allclose(drops._distance(edges), theirs, atol=1e-5)
    assert drops._distance(np.zeros((5, 5), bool)).min() == 20


def test_spatter_without_a_drop_changes_nothing():
    image = pattern(4, 4)
    clean = [np.array_equal(corrupt(image, "spatter", severity=1, seed=seed), image) for seed in range(20)]
    assert any(clean)


if __name__ == "__main__":
    print(*[digest(name) for name in CORRUPTIONS])
