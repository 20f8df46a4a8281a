import io

import numpy as np
import pytest
import torch
from PIL import Image

from samovar.data import decode as room
from samovar.data.decode import UnreadableImage, decode

SIZE = (10, 6)


def picture(mode: str) -> Image.Image:
    ramp = np.add.outer(np.arange(6) * 20, np.arange(10) * 10).astype(np.uint8)
    colour = Image.fromarray(np.stack([ramp, ramp[::-1], 255 - ramp], axis=-1))
    if mode == "LA":
        return colour.convert("RGBA").convert("LA")
    if mode == "I;16":
        return Image.fromarray(np.asarray(colour.convert("L")).astype(np.uint16) * 257)
    if mode == "P":
        return colour.convert("P", palette=Image.Palette.ADAPTIVE)  # the default palette is 216 colours, far off
    return colour.convert(mode)


def encode(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


FORMATS = {
    "jpeg": encode(picture("RGB"), "JPEG", quality=95),
    "progressive jpeg": encode(picture("RGB"), "JPEG", quality=95, progressive=True),
    "grey jpeg": encode(picture("L"), "JPEG", quality=95),
    "cmyk jpeg": encode(picture("CMYK"), "JPEG", quality=95),
    "png": encode(picture("RGB"), "PNG"),
    "grey png": encode(picture("L"), "PNG"),
    "16-bit grey png": encode(picture("I;16"), "PNG"),
    "png with alpha": encode(picture("RGBA"), "PNG"),
    "grey png with alpha": encode(picture("LA"), "PNG"),
    "palette png": encode(picture("P"), "PNG"),
    "palette png with transparency": encode(picture("P"), "PNG", transparency=b"\x00\xff"),
    "1-bit png": encode(picture("1"), "PNG"),
    "animated gif": encode(picture("P"), "GIF", save_all=True, append_images=[picture("P").transpose(0)]),
    "lossless webp": encode(picture("RGB"), "WEBP", lossless=True),
    "bmp": encode(picture("RGB"), "BMP"),
    "tiff": encode(picture("RGB"), "TIFF"),
    "float tiff": encode(picture("F"), "TIFF"),
    "ppm": encode(picture("RGB"), "PPM"),
}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_format_decodes_to_bytes_of_the_right_picture(name, channels):
    image = decode(FORMATS[name], channels)
    assert image.shape == (channels, 6, 10)
    assert image.dtype == torch.uint8
    grey = any(word in name for word in ("grey", "float"))
    expected = picture("L" if grey or channels == 1 else "RGB")
    if "1-bit" in name:
        assert set(image.unique().tolist()) == {0, 255}
        return
    error = image.permute(1, 2, 0).numpy() - np.asarray(expected).astype(int).reshape(6, 10, -1)
    assert abs(error).mean() < 5  # JPEG's loss on so small a picture; a wrong conversion is ten times as far off


def test_16_bits_are_scaled_not_cut_off():
    assert torch.equal(decode(FORMATS["16-bit grey png"]), decode(FORMATS["grey png"]))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_exif_orientation_is_applied(orientation, kind):
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x112] = orientation
    data = encode(picture("RGB"), kind, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    assert np.array_equal(decode(data).permute(1, 2, 0).numpy(), np.asarray(upright))


def test_without_torchvisions_decoder_pillow_gives_the_same_pixels(monkeypatch):
    fast = decode(FORMATS["jpeg"])
    monkeypatch.setattr(room, "decode_jpeg", None)
    assert (decode(FORMATS["jpeg"]).int() - fast.int()).abs().max() <= 2  # builds of libjpeg may round differently


UNREADABLE = {
    "empty file": b"",
    "no image format": b"this is no image",
    "truncated": FORMATS["jpeg"][: len(FORMATS["jpeg"]) // 2],
    "truncated png": FORMATS["png"][:60],
    "jpeg header only": b"\xff\xd8\xff\xe0",
    "damaged chunk": FORMATS["png"].replace(b"IDAT", b"IDAT\x00\x00"),
    "text": "ünïcode".encode(),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_cannot_be_decoded_whole_is_refused_with_a_reason(name):
    with pytest.raises(UnreadableImage, match=".") as error:
        decode(UNREADABLE[name])
    assert "0x" not in str(error.value)  # no addresses: the list of bad files is the same in every run
