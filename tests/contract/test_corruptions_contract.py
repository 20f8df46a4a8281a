"""Every entry of CORRUPTIONS keeps to its protocol at every severity and size."""

import itertools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

from samovar.data.corruptions import CORRUPTIONS, EXTRA, MAIN, SEVERITIES, corrupt, image_seed

DETERMINISTIC = {
    "defocus_blur",
    "zoom_blur",
    "brightness",
    "contrast",
    "pixelate",
    "jpeg_compression",
    "gaussian_blur",
    "saturate",
}

TOO_WEAK_FOR_8_PIXELS = {
    "zoom_blur": "CIFAR-10-C's enlargements at 1 are by less than a pixel",
    "spatter": "64 pixels may stay without a drop",
}

# Where the published constants do not make a severity change the image more than the one below it.
NOT_RISING = {
    "imagenet": {
        "glass_blur": "at 4 and 5 fewer shuffles, farther, than at 3",
        "snow": "3 has as much as 2, in larger flakes",
        "frost": "4 has as much ice as 3; and which photograph is imitated matters more than the severity",
        "fog": "from 3 on rougher rather than thicker",
        "saturate": "1 and 2 take colour away, 3 to 5 add it",
    },
    "cifar": {
        "glass_blur": "less smoothing at 4 than at 3, and at 2 to 3 only that",
        "frost": "which photograph is imitated matters more than 2 to 5, which trade image for ice",
        "elastic_transform": "finer bends, but a smaller affine map",
        "spatter": "water up to 3, then mud, of which there is less",
        "saturate": "1 and 2 take colour away, 3 to 5 add it",
    },
}


@pytest.fixture(scope="module")
def photos() -> list[np.ndarray]:
    """Two photographs, square, in full."""
    return [image[:427, 100:527] for image in load_sample_images().images]


def resized(image: np.ndarray, width: int, height: int) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BOX))


def change(image: np.ndarray, name: str, severity: int, seed: int = 0) -> float:
    """Mean absolute difference from the clean image, in grey levels."""
    return float(np.abs(corrupt(image, name, severity=severity, seed=seed).astype(int) - image).mean())


def test_the_table_names_the_15_and_the_4():
    assert len(MAIN) == 15
    assert EXTRA == ("speckle_noise", "gaussian_blur", "spatter", "saturate")
    assert (*MAIN, *EXTRA) == tuple(CORRUPTIONS)


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("size", [(8, 8), (32, 32), (64, 64), (130, 97), (224, 224)])
def test_shape_and_dtype_stay_and_the_pixels_do_not(photos, name, size):
    image = resized(photos[0], *size)
    for severity in SEVERITIES:
        out = corrupt(image, name, severity=severity)
        assert out.shape == image.shape
        assert out.dtype == np.uint8
        if min(size) > 8 or name not in TOO_WEAK_FOR_8_PIXELS:
            assert not np.array_equal(out, image)


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("constants", ["imagenet", "cifar"])
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (1, 9), (70, 5)])
def test_no_image_is_too_small(name, constants, size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    for severity in SEVERITIES:
        assert corrupt(image, name, severity=severity, constants=constants).shape == image.shape


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("level", [0, 255])
def test_black_and_white_images_do_not_break_it(name, level):
    image = np.full((40, 40, 3), level, np.uint8)
    for constants in ("imagenet", "cifar"):
        with np.errstate(all="raise"):
            assert corrupt(image, name, severity=5, constants=constants).shape == image.shape


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_digits_work(name):
    digit = (load_digits().images[0] * 15.9).astype(np.uint8)
    for severity in SEVERITIES:
        assert corrupt(digit, name, severity=severity).shape == (8, 8)


@pytest.mark.parametrize(("constants", "side"), [("imagenet", 224), ("cifar", 32)])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_higher_severities_change_more(photos, name, constants, side):
    images = [resized(photo, side, side) for photo in photos]
    draws = 1 if name in DETERMINISTIC else 6 if side > 100 else 40
    changes = [np.mean([change(i, name, s, seed) for i in images for seed in range(draws)]) for s in SEVERITIES]
    rising = all(low < high for low, high in itertools.pairwise(changes))
    if name in NOT_RISING[constants]:
        assert changes[4] > 0.5 * max(changes)
    else:
        assert rising, changes


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_the_seed_decides_the_draws_and_nothing_else_does(photos, name):
    image = resized(photos[1], 96, 96)
    first = corrupt(image, name, severity=4, seed=5)
    np.random.seed(1)
    assert np.array_equal(corrupt(image, name, severity=4, seed=5), first)
    assert np.array_equal(corrupt(image, name, severity=4, seed=6), first) == (name in DETERMINISTIC)


@pytest.mark.parametrize("name", sorted(set(CORRUPTIONS) - DETERMINISTIC))
def test_severities_do_not_share_their_draws(name):
    from samovar.data.corruptions.randomness import generator

    drawn = {generator(0, name, severity).bit_generator.random_raw() for severity in SEVERITIES}
    assert len(drawn) == len(SEVERITIES)


def test_order_and_number_of_workers_do_not_matter(photos):
    images = [resized(photos[index % 2], 64 + index, 64) for index in range(4)]
    jobs = [(index, name) for index in range(4) for name in CORRUPTIONS]

    def work(job: tuple[int, str]) -> bytes:
        index, name = job
        return corrupt(images[index], name, severity=3, seed=image_seed(0, index)).tobytes()

    alone = [work(job) for job in jobs]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(work, reversed(jobs)))
    assert together[::-1] == alone
