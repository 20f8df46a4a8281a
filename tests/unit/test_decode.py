import io
import struct
import zlib

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


# --- the rule for each mode ------------------------------------------------------------------------------------------

GREY = np.add.outer(np.arange(6) * 20, np.arange(10) * 10).astype(np.uint8)  # 0 to 190
COLOUR = np.stack([GREY, GREY[::-1], 255 - GREY], axis=-1)
ALPHA = np.where(np.arange(60).reshape(6, 10) % 3 == 0, 0, np.where(np.arange(60).reshape(6, 10) % 3 == 1, 255, 128))
ALPHA = ALPHA.astype(np.uint8)
ON_WHITE = np.rint((COLOUR * (ALPHA / 255)[..., None]) + 255 * (1 - ALPHA / 255)[..., None])
GREY_ON_WHITE = np.rint(GREY * (ALPHA / 255) + 255 * (1 - ALPHA / 255))


def png(samples: np.ndarray, **chunks: bytes) -> bytes:
    """Return a 16-bit PNG of [H, W] or [H, W, C] samples, with further chunks before the data."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    height, width, channels = (*samples.shape, 1)[:3]
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    parts = [chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0))]
    parts += [chunk(name.encode(), body) for name, body in chunks.items()]
    return b"\x89PNG\r\n\x1a\n" + b"".join([*parts, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")])


def tiff(data: bytes, bits: tuple[int, ...], *, order: str = "<", **tags: int) -> bytes:
    """Return an uncompressed TIFF of 6 x 10 pixels; in separate planes, each is a strip of equal size."""
    numbers = {"photometric": 262, "max_sample": 281, "planes": 284, "sample_format": 339, "extra": 338}
    channels = len(bits)
    strips = channels if tags.get("planes") == 2 else 1
    fields = {256: [10], 257: [6], 258: [*bits], 259: [1], 262: [2 if channels > 2 else 1], 277: [channels], 278: [6]}
    fields |= {numbers[name]: [value] for name, value in tags.items()}
    fields |= {273: [0] * strips, 279: [len(data) // strips] * strips}
    after = 8 + 2 + 12 * len(fields) + 4
    # the data, then the lists that are too long for an entry
    fields[273] = [after + i * (len(data) // strips) for i in range(strips)]
    entries, tail = b"", b""
    for tag, values in sorted(fields.items()):
        packed = struct.pack(f"{order}{len(values)}H", *values)
        if len(packed) > 4:
            place = struct.pack(f"{order}I", after + len(data) + len(tail))
            tail += packed
        else:
            place = packed.ljust(4, b"\0")
        entries += struct.pack(f"{order}HHI", tag, 3, len(values)) + place
    start = b"II*\0" if order == "<" else b"MM\0*"
    return start + struct.pack(f"{order}IH", 8, len(fields)) + entries + bytes(4) + data + tail


def wide(samples: np.ndarray, order: str = "<", **tags: int) -> bytes:
    """Return a TIFF with 16 bits a sample."""
    channels = samples.shape[2] if samples.ndim == 3 else 1
    if tags.get("planes") == 2:
        samples = np.moveaxis(samples, -1, 0)
    return tiff(samples.astype(f"{order}u2").tobytes(), (16,) * channels, order=order, **tags)


def packed12(samples: np.ndarray) -> bytes:
    pairs = samples.reshape(-1, 2).astype(int)
    first, second = pairs[:, 0], pairs[:, 1]
    return np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], 1).astype(np.uint8).tobytes()


GREY16, COLOUR16, ALPHA16 = (part.astype(np.uint16) * 257 for part in (GREY, COLOUR, ALPHA))
GREY12 = GREY.astype(np.uint16) * 16 + 7
INDEXED = Image.fromarray(GREY % 4, "P")
INDEXED.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120])
PALETTE = np.array([[10, 20, 30], [40, 50, 60], [70, 80, 90], [100, 110, 120]])


def image_of(*parts: np.ndarray) -> Image.Image:
    return Image.fromarray(np.dstack(parts))


MADE = {
    "L png": (encode(Image.fromarray(GREY), "PNG"), GREY),
    "L png, one grey transparent": (
        encode(Image.fromarray(GREY), "PNG", transparency=20),
        np.where(GREY == 20, 255, GREY),
    ),
    "LA png": (encode(image_of(GREY, ALPHA), "PNG"), GREY_ON_WHITE),
    "LA tiff": (encode(image_of(GREY, ALPHA), "TIFF"), GREY_ON_WHITE),
    "P png": (encode(INDEXED, "PNG"), PALETTE[GREY % 4]),
    "P png, alpha per colour": (
        encode(INDEXED, "PNG", transparency=bytes([255, 0, 255, 255])),
        np.where((GREY % 4 == 1)[..., None], 255, PALETTE[GREY % 4]),
    ),
    "P gif, one colour transparent": (
        encode(INDEXED, "GIF", transparency=2),
        np.where((GREY % 4 == 2)[..., None], 255, PALETTE[GREY % 4]),
    ),
    "RGB png": (encode(image_of(COLOUR), "PNG"), COLOUR),
    "RGB png, one colour transparent": (
        encode(image_of(COLOUR), "PNG", transparency=tuple(COLOUR[0, 0].tolist())),
        np.where((COLOUR[0, 0] == COLOUR).all(-1)[..., None], 255, COLOUR),
    ),
    "RGBA png": (encode(image_of(COLOUR, ALPHA), "PNG"), ON_WHITE),
    "RGBA tiff": (encode(image_of(COLOUR, ALPHA), "TIFF"), ON_WHITE),
    "RGBA webp": (encode(image_of(COLOUR, ALPHA), "WEBP", lossless=True, exact=True), ON_WHITE),
    "CMYK tiff": (encode(Image.merge("CMYK", [*image_of(255 - COLOUR).split(), Image.new("L", SIZE)]), "TIFF"), COLOUR),
    "YCbCr tiff": (encode(image_of(COLOUR).convert("YCbCr"), "TIFF", compression="jpeg", quality=100), COLOUR),
    "1-bit png": (encode(Image.fromarray(GREY > 90), "PNG"), (GREY > 90) * 255),
    "1-bit tiff": (encode(Image.fromarray(GREY > 90), "TIFF"), (GREY > 90) * 255),
    "I;16 png": (png(GREY16), GREY),
    "I;16 png, one grey transparent": (
        png(GREY16, tRNS=struct.pack(">H", 20 * 257)),
        np.where(GREY == 20, 255, GREY),
    ),
    "I;16 png, all black": (png(GREY16 * 0), GREY * 0),
    "I;16 tiff": (wide(GREY16), GREY),
    "I;16 tiff, big-endian": (wide(GREY16, ">"), GREY),
    "I;16 tiff, 0 is white": (wide(65535 - GREY16, photometric=0), GREY),
    "16-bit pgm": (b"P5 10 6 65535\n" + GREY16.astype(">u2").tobytes(), GREY),
    "12-bit pgm": (b"P5 10 6 4095\n" + GREY12.astype(">u2").tobytes(), GREY),
    "12-bit pgm, dark": (b"P5 10 6 4095\n" + (GREY12 // 16).astype(">u2").tobytes(), GREY // 16),
    "16-bit LA png": (png(np.dstack([GREY16, ALPHA16])), GREY_ON_WHITE),
    "16-bit RGB png": (png(COLOUR16), COLOUR),
    "16-bit RGBA png": (png(np.dstack([COLOUR16, ALPHA16])), ON_WHITE),
    "16-bit RGB tiff": (wide(COLOUR16), COLOUR),
    "16-bit RGB tiff, big-endian": (wide(COLOUR16, ">"), COLOUR),
    "16-bit RGBA tiff": (wide(np.dstack([COLOUR16, ALPHA16]), extra=2), ON_WHITE),
    "12-bit tiff": (tiff(packed12(GREY12), (12,)), GREY),
    "12 bits in 16, tiff that says so": (wide(GREY12, max_sample=4095), GREY),
    "10 bits in 16, tiff that says so": (wide(GREY12 >> 2, max_sample=1023), GREY),
    "I tiff": (encode(Image.fromarray(GREY.astype(np.int32)), "TIFF"), GREY),
    "I tiff, unsigned": (tiff(GREY.astype("<u4").tobytes(), (32,)), GREY),
    "F tiff in [0, 1]": (encode(Image.fromarray(GREY.astype(np.float32) / 255), "TIFF"), GREY),
    "F tiff in [0, 1], 0 is white": (
        tiff((1 - GREY / 255).astype("<f4").tobytes(), (32,), sample_format=3, photometric=0),
        GREY,
    ),
    "F tiff of integers": (encode(Image.fromarray(GREY.astype(np.float32)), "TIFF"), GREY),
    "F tiff of dark integers": (encode(Image.fromarray((GREY % 4).astype(np.float32)), "TIFF"), GREY % 4),
}


@pytest.mark.parametrize("name", MADE)
def test_each_mode_becomes_8_bits_by_its_rule(name):
    data, expected = MADE[name]
    found = decode(data).permute(1, 2, 0).numpy().astype(int)
    if expected.ndim == 2:
        expected = np.dstack([expected] * 3)
        assert np.array_equal(decode(data, 1)[0].numpy(), found[..., 0])
    # half-transparent pixels are rounded once more by the composition, YCbCr twice; nothing else is inexact
    assert abs(found - expected).max() <= (1 if "A " in name else 2 if "YCbCr" in name else 0)


NO_RULE = {
    "12 bits in 16, png": (png(GREY12), "upper bits are not used"),
    "12 bits in 16, tiff": (wide(GREY12), "upper bits are not used"),
    "8 bits in 16, png": (png(GREY.astype(np.uint16)), "upper bits are not used"),
    "12 bits in 16, RGB png": (png(COLOUR16 >> 4), "upper bits are not used"),
    "12 bits in 16, RGBA png": (png(np.dstack([COLOUR16 >> 4, ALPHA16])), "upper bits are not used"),
    "12 bits in 16, RGB tiff": (wide(COLOUR16 >> 4), "upper bits are not used"),
    "12 bits in 16, CMYK tiff": (wide(np.dstack([COLOUR16 >> 4, GREY12]), photometric=5), "upper bits are not used"),
    "more than the tiff says": (wide(GREY16, max_sample=4095), "to 48830 in 12 bits"),
    "16-bit RGB png, one colour transparent": (png(COLOUR16, tRNS=bytes(6)), "one is transparent"),
    "16-bit planes": (wide(COLOUR16, planes=2), "in separate planes"),
    "signed bytes": (tiff(GREY.tobytes(), (8,), sample_format=2), "signed"),
    "signed 16 bits": (tiff(GREY16.astype("<i2").tobytes(), (16,), sample_format=2), "white is not known"),
    "I tiff": (encode(Image.fromarray(GREY16.astype(np.int32)), "TIFF"), "integers from 0 to 48830"),
    "I tiff, negative": (encode(Image.fromarray(GREY.astype(np.int32) - 1), "TIFF"), "integers from -1 to 189"),
    "F tiff, negative": (encode(Image.fromarray(GREY / np.float32(95) - 1), "TIFF"), "from -1 to 1, whose white"),
    "F tiff, large": (encode(Image.fromarray(GREY16.astype(np.float32)), "TIFF"), "from 0 to 48830, whose white"),
    "F tiff, small": (encode(Image.fromarray(GREY / np.float32(100)), "TIFF"), r"from 0 to 1.9, whose white"),
    "F tiff, NaN": (encode(Image.fromarray(np.where(GREY > 9, np.float32(0.5), np.nan)), "TIFF"), "from nan to nan"),
    "LAB tiff": (encode(Image.new("LAB", (10, 6)), "TIFF"), "mode LAB has no rule"),
    "floats in colour": (tiff((COLOUR / 255).astype("<f4").tobytes(), (32,) * 3, sample_format=3), "no image format"),
}


@pytest.mark.parametrize("name", NO_RULE)
def test_what_has_no_rule_is_unreadable_and_never_black_or_white(name):
    data, reason = NO_RULE[name]
    for channels in (1, 3):
        with pytest.raises(UnreadableImage, match=reason):
            decode(data, channels)


JPEGS = {
    f"{mode} {quality} {options}": encode(
        Image.fromarray(np.kron(COLOUR, np.ones((3, 3, 1), np.uint8))).convert(mode), "JPEG", quality=quality, **options
    )
    for mode in ("L", "RGB", "CMYK")
    for quality in (50, 95)
    for options in ({}, {"subsampling": 0}, {"progressive": True})
}


@pytest.mark.parametrize("name", JPEGS)
@pytest.mark.parametrize("channels", [1, 3])
def test_both_decoders_of_jpeg_give_the_same_bits(name, channels, monkeypatch):
    fast = decode(JPEGS[name], channels)
    monkeypatch.setattr(room, "decode_jpeg", None)
    assert torch.equal(decode(JPEGS[name], channels), fast)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_strips_and_huge_images_are_unreadable_before_they_fill_the_memory(kind, monkeypatch):
    for size in ((2, 402), (402, 2)):
        with pytest.raises(UnreadableImage, match=rf"{size[0]} x {size[1]} pixels, a strip longer than 200 times"):
            decode(encode(Image.new("RGB", size), kind))
    assert decode(encode(Image.new("RGB", (2, 400)), kind)).shape == (3, 400, 2)
    monkeypatch.setattr(room, "MAX_PIXELS", 99)
    with pytest.raises(UnreadableImage, match=r"10 x 10 pixels, more than 99 in all"):
        decode(encode(Image.new("RGB", (10, 10)), kind))


def test_predictions_corruptions_and_loaders_read_images_alike():
    from samovar.data import corrupt_folder, streaming
    from samovar.export import preprocessing

    assert all(user.decode is decode for user in (corrupt_folder, streaming, preprocessing))
