"""Draw the first training batch as the network sees it: a grid of images with their classes."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from samovar.data.loader import Batch

FILE = "batch.png"
"""The picture's name in the run folder."""
MOST_IMAGES = 64
SIDE = 96
"""Fewest pixels of a side; smaller images are enlarged by a whole factor."""
LARGEST = 160
"""Pixels that a larger image is reduced to."""
GAP, LINE, MARGIN = 6, 15, 8
_PAPER, _INK = 255, 40


def pictured(
    stream: Iterable[Batch], classes: Sequence[str], folder: Path
) -> Generator[Batch, None, None]:
    """Yield the batches of a stream; draw the first into `batch.png`.

    Raises:
        OSError: the file cannot be written."""
    batches = iter(stream)
    first = next(batches, None)
    if first is None:
        return
    draw(first, classes).save(folder / FILE, compress_level=1)
    yield first
    del first  # a name would keep the batch's memory through the whole run
    yield from batches


def draw(batch: Batch, classes: Sequence[str]) -> Image.Image:
    """Return a picture of at most 64 images of a batch, with a caption below each.

    The pixels are those that the network gets, after augmentation and before its own
    normalization. A caption is the class, or under mixup and cutmix the two classes with their
    shares. It is cut where it is wider than the image, and left out where little would be left.

    Args:
        batch: images [B, C, H, W] in [0, 1], of one channel or three.
        classes: names of the classes, in the order of the logits."""
    count = min(len(batch), MOST_IMAGES)
    tiles = _tiles(batch.images[:count])
    height, width = tiles.shape[1:3]
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    lines = 1 if batch.targets is None else 2
    across, down = width + GAP, height + lines * LINE + GAP
    size = (columns * across - GAP + 2 * MARGIN, rows * down - GAP + 2 * MARGIN)
    colored = tiles.shape[-1] == 3
    mode, paper, ink = ("RGB", (_PAPER,) * 3, (_INK,) * 3) if colored else ("L", _PAPER, _INK)
    page = Image.new(mode, size, paper)
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(12)
    for place in range(count):
        row, column = divmod(place, columns)
        x, y = MARGIN + column * across, MARGIN + row * down
        page.paste(Image.fromarray(tiles[place] if colored else tiles[place, ..., 0]), (x, y))
        for line, text in enumerate(_caption(batch, place, classes)):
            where = (x, y + height + 1 + line * LINE)
            pen.text(where, _fitting(text, width, font), fill=ink, font=font)
    return page


def _tiles(images: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Return images as [B, H, W, C] uint8, small ones enlarged and large ones reduced."""
    if images.shape[1] not in (1, 3):
        images = images.mean(1, keepdim=True)
    side = max(images.shape[-2:])
    if side > LARGEST:
        scale = LARGEST / side
        images = torch.nn.functional.interpolate(
            images, scale_factor=scale, mode="bilinear", antialias=True
        )
    factor = max(1, math.ceil(SIDE / side))
    pixels = (images.detach().float().clamp(0, 1) * 255).round().byte().cpu().numpy()
    pixels = pixels.repeat(factor, axis=2).repeat(factor, axis=3)
    return np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))


def _caption(batch: Batch, place: int, classes: Sequence[str]) -> list[str]:
    """Return the lines below an image."""
    if batch.targets is None:
        return [classes[int(batch.labels[place])]]
    shares, labels = batch.targets[place].topk(min(2, len(classes)))
    return [
        f"{share:.0%} {classes[label]}"
        for share, label in zip(shares.tolist(), labels.tolist(), strict=True)
        if share > 0
    ]


def _fitting(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """Cut a text to a width in pixels."""
    if font.getlength(text) <= width:
        return text
    while len(text) > 2 and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…" if len(text) > 2 else ""
