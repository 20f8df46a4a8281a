"""Test the picture of the first batch: its pixels, its captions, that the stream passes unchanged."""

import numpy as np
import pytest
import torch
from PIL import Image

from samovar.data.loader import Batch
from samovar.train.batch_picture import FILE, LARGEST, LINE, MARGIN, MOST_IMAGES, draw, pictured

CLASSES = ["cat", "dog", "a name that is much longer than an image is wide, which is cut"]


def batch(count: int = 5, channels: int = 3, side: int = 24) -> Batch:
    pixels = torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(0))
    return Batch(pixels, torch.arange(count) % 3)


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "L")])
def test_the_pixels_are_those_of_the_batch(channels: int, mode: str) -> None:
    made = batch(channels=channels)
    page = draw(made, CLASSES)
    assert page.mode == mode
    shown = np.asarray(page.convert("RGB"))[MARGIN : MARGIN + 96 : 4, MARGIN : MARGIN + 96 : 4]  # enlarged 4 times
    wanted = made.images[0] if channels != 4 else made.images[0].mean(0, keepdim=True)
    assert np.abs(shown / 255 - wanted.permute(1, 2, 0).expand(-1, -1, 3).numpy()).max() < 1 / 255


def test_at_most_64_images_are_shown_and_large_ones_reduced() -> None:
    few, many = draw(batch(MOST_IMAGES), CLASSES), draw(batch(MOST_IMAGES + 9), CLASSES)
    assert few.size == many.size
    assert draw(batch(1, side=400), CLASSES).width == LARGEST + 2 * MARGIN


def inked(page: Image.Image, line: int = 0) -> int:
    """Dark pixels in a line of the first caption, below an image of 96 pixels."""
    top = MARGIN + 96 + line * LINE
    return int((np.asarray(page.convert("L"))[top : top + LINE, MARGIN : MARGIN + 96] < 128).sum())


def test_captions_name_the_classes_with_their_shares_under_mixup() -> None:
    plain = batch()
    assert inked(draw(plain, CLASSES)) > 0
    mixed = Batch(plain.images, plain.labels, torch.tensor([[0.7, 0.3, 0.0]] * 5))
    page = draw(mixed, CLASSES)
    assert inked(page) > 0
    assert inked(page, line=1) > 0
    page = draw(plain, ["", *CLASSES[1:]])
    assert inked(page) == 0


def test_a_long_name_stays_below_its_own_image() -> None:
    made = batch(2)
    made = Batch(made.images, torch.tensor([2, 0]))
    page = np.asarray(draw(made, ["", "", CLASSES[2]]).convert("L"))
    assert (page[MARGIN + 96 :, : MARGIN + 96] < 128).any()
    assert not (page[MARGIN + 96 :, MARGIN + 97 :] < 128).any()


def test_the_stream_passes_unchanged_and_the_first_batch_is_saved(tmp_path) -> None:
    made = [batch(3), batch(2)]
    assert list(pictured(made, CLASSES, tmp_path)) == made
    with Image.open(tmp_path / FILE) as saved:
        assert np.array_equal(np.asarray(saved), np.asarray(draw(made[0], CLASSES)))
    assert list(pictured([], CLASSES, tmp_path)) == []
