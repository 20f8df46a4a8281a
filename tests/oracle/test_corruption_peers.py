"""The corruptions against imagecorruptions-imaug, at every severity of ImageNet-C's constants."""

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from samovar.data.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from samovar.data.corruptions.drops import _edges, _equalized
from samovar.data.corruptions.filters import smooth

theirs = pytest.importorskip("imagecorruptions")
cv2 = pytest.importorskip("cv2")
pytestmark = pytest.mark.oracle

WITHOUT_DRAWS = (
    "defocus_blur",
    "zoom_blur",
    "brightness",
    "contrast",
    "pixelate",
    "jpeg_compression",
    "gaussian_blur",
    "saturate",
)

# Images corrupted by each side: enough for a standard error of 2 to 3 % of the mean change.
DRAWS = {"frost": 240, "fog": 160, "spatter": 160, "motion_blur": 60, "snow": 40}


@pytest.fixture(scope="module")
def photos() -> list[np.ndarray]:
    """Two photographs at 224 px, a detail of one, and one that is not square."""
    temple, flower = (Image.fromarray(image) for image in load_sample_images().images)
    crops = [
        (temple, (100, 0, 527, 427), (224, 224)),
        (flower, (100, 0, 527, 427), (224, 224)),
        (temple, (100, 150, 300, 350), (224, 224)),
        (flower, (0, 0, 640, 427), (150, 97)),
    ]
    return [np.asarray(image.crop(box).resize(size, Image.Resampling.BICUBIC)) for image, box, size in crops]


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("name", WITHOUT_DRAWS)
def test_without_draws_the_images_are_the_same_to_2_grey_levels(photos, name, severity):
    for photo in photos:
        ours = corrupt(photo, name, severity=severity).astype(int)
        difference = np.abs(ours - theirs.corrupt(photo, severity, name))
        assert np.percentile(difference, 99) <= 2  # both drop fractions, and ours sums in fixed point


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("name", sorted(set(CORRUPTIONS) - set(WITHOUT_DRAWS)))
def test_with_draws_the_images_change_as_much_to_10_percent(photos, name, severity):
    images = [np.ascontiguousarray(photo[48:176, 48:176]) for photo in photos[:3]]
    np.random.seed(severity)  # theirs draws from here; numba, for glass_blur, from a seed of its own
    ours, peers = [], []
    for draw in range(DRAWS.get(name, 12)):
        image = images[draw % 3]
        ours.append(np.abs(corrupt(image, name, severity=severity, seed=draw).astype(int) - image).mean())
        peers.append(np.abs(theirs.corrupt(image, severity, name).astype(int) - image).mean())
    assert np.mean(ours) == pytest.approx(np.mean(peers), rel=0.1)


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("name", ["gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise"])
def test_noise_has_the_same_distribution_at_each_grey_level(name, severity):
    for grey in (0, 40, 128, 230, 255):
        image = np.full((150, 150, 3), grey, np.uint8)
        np.random.seed(severity)
        ours = np.bincount(corrupt(image, name, severity=severity).ravel(), minlength=256).cumsum() / image.size
        peers = np.bincount(theirs.corrupt(image, severity, name).ravel(), minlength=256).cumsum() / image.size
        assert np.abs(ours - peers).max() < 0.01  # Kolmogorov-Smirnov; 67500 draws on each side


def test_edges_of_drops_are_opencvs():
    for sigma in (2, 3, 4):
        noise = np.random.default_rng(sigma).integers(-255, 256, (200, 180, 1))
        layer = smooth(noise, (sigma, sigma))[..., 0]
        drops = np.where(layer > layer.std(), 180 + 4 * layer, 0).clip(0, 255).astype(np.uint8)
        expected = cv2.Canny(drops, 50, 150) > 0
        assert expected.any()
        assert (_edges(drops) != expected).mean() < 0.001


def test_equalization_is_opencvs():
    layer = (np.random.default_rng(0).random((60, 60)) ** 2 * 21).astype(np.uint8)
    assert np.array_equal(_equalized(layer), cv2.equalizeHist(layer))
    assert np.array_equal(_equalized(np.full((5, 5), 20, np.uint8)), cv2.equalizeHist(np.full((5, 5), 20, np.uint8)))
