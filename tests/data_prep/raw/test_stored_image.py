"""What is stored is an upright RGB JPEG within the limits, the same bytes each time; the rest is dropped by name."""

import io
import resource
import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from skimage import data

from data_prep.raw.stored_image import ImageLimits, StoredImage, store
from data_prep.shards.ledger import Drop
from pipeline.pictures.plain_picture import on_white
from tests.support.costly_pictures import tiff

LIMITS = ImageLimits(min_side_px=16, max_side_px=64, max_pixels=1_000_000)


def picture(width_px=100, height_px=50):
    """Smooth, with a red left and a blue top, so that turns and colours can be told."""
    y, x = np.mgrid[0 : 1 : height_px * 1j, 0 : 1 : width_px * 1j]
    return Image.fromarray((np.stack([1 - x, 0.3 * np.ones_like(x), 1 - y], axis=-1) * 255).astype(np.uint8))


def encoded(image, kind="JPEG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(stored):
    assert isinstance(stored, StoredImage), stored
    with Image.open(io.BytesIO(stored.jpeg)) as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (stored.width_px, stored.height_px))
        assert not image.getexif()
        return np.asarray(image, np.float32)


@pytest.mark.parametrize("orientation, turn", [(1, None), (3, 3), (6, 2), (8, 4), (2, 0)])
def test_exif_orientation_is_applied(orientation, turn):
    small = picture(40, 20)
    turned = small if turn is None else small.transpose(Image.Transpose(turn))
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.abs(pixels(store(encoded(turned, exif=exif, quality=95), LIMITS)) - np.asarray(small)).mean() < 3


def test_unreadable_exif_loses_no_picture():
    assert isinstance(store(encoded(picture(), exif=b"Exif\0\0nonsense"), LIMITS), StoredImage)


@pytest.mark.parametrize("kind, mode", [("JPEG", "L"), ("JPEG", "CMYK"), ("PNG", "RGB"), ("WEBP", "RGB"), ("GIF", "P")])
def test_other_formats_and_modes_become_rgb_jpeg(kind, mode):
    small = picture(40, 20)
    image = small.quantize(128, dither=Image.Dither.NONE) if mode == "P" else small.convert(mode)
    expected = np.asarray(image.convert("RGB"), np.float32)
    assert np.abs(pixels(store(encoded(image, kind), LIMITS)) - expected).mean() < 6


def test_transparency_falls_on_white():
    image = Image.new("RGBA", (32, 32), (255, 0, 0, 0))
    assert pixels(store(encoded(image, "PNG"), LIMITS)).min() > 250


def test_sixteen_bit_grey_keeps_its_range():
    ramp = np.linspace(0, 65535, 32 * 32).reshape(32, 32).astype(np.uint16)
    stored = pixels(store(encoded(Image.fromarray(ramp), "PNG"), LIMITS))
    assert np.abs(stored[..., 0] - ramp / 257).mean() < 3


@pytest.mark.parametrize("size, expected", [((400, 200), (128, 64)), ((90, 300), (64, 213)), ((64, 40), (64, 40))])
def test_the_shorter_side_is_shrunk_and_the_aspect_kept(size, expected):
    stored = store(encoded(picture(*size)), LIMITS)
    assert (stored.width_px, stored.height_px) == expected


def test_a_large_jpeg_is_shrunk_as_a_plain_resize_would():
    large = picture(900, 600)
    plain = np.asarray(large.resize((96, 64), Image.Resampling.BICUBIC), np.float32)
    assert np.abs(pixels(store(encoded(large, quality=95), LIMITS)) - plain).mean() < 2


@pytest.mark.parametrize("name", ["astronaut", "coffee", "brick"])
def test_the_resized_picture_is_as_exact_as_pillows(name):
    """The exact result: Pillow's bicubic filter on floats, which is not rounded between its two passes."""
    photo = Image.fromarray(getattr(data, name)()).convert("RGB")
    limits = replace(LIMITS, max_side_px=200)
    size = (round(photo.width * 200 / min(photo.size)), round(photo.height * 200 / min(photo.size)))
    floats = [band.convert("F").resize(size, Image.Resampling.BICUBIC) for band in photo.split()]
    exact = np.stack([np.asarray(band) for band in floats], axis=-1).clip(0, 255)
    plain = photo.resize(size, Image.Resampling.BICUBIC)
    errors = [
        np.abs(picture - exact).mean()
        for picture in (pixels(store(encoded(photo, "PNG"), limits)), pixels(store(encoded(plain, "PNG"), limits)))
    ]
    assert errors[0] < errors[1] * 1.01


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_a_transparent_picture_is_shrunk_as_pillow_would(mode):
    """Colours of transparent pixels must not bleed into their neighbours."""
    image = picture(300, 200).convert(mode)
    if mode == "RGBA":
        image.putalpha(Image.fromarray(np.tile(np.linspace(0, 255, 300).astype(np.uint8), (200, 1))))
    small = image.resize((96, 64), Image.Resampling.BICUBIC)
    plain = np.asarray(on_white(small), np.float32)
    assert np.abs(pixels(store(encoded(image, "PNG"), LIMITS)) - plain).mean() < 2


def test_the_same_bytes_come_out_each_time():
    original = encoded(picture())
    assert store(original, LIMITS) == store(original, LIMITS)


def bomb(width_px, height_px):
    """A PNG header that claims a size, with next to no data."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width_px, height_px, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def huge(kind):
    """The few bytes with which a picture of 60,000 x 60,000 pixels begins (WebP: 16,384 x 16,384)."""
    if kind == "GIF":
        frame = struct.pack("<BHHHHB", 44, 0, 0, 60_000, 60_000, 0)
        return b"GIF89a" + struct.pack("<HHBBB", 64, 64, 0, 0, 0) + frame + b"\x02\x02\x4c\x01\x00;"
    if kind == "BMP":
        sizes = struct.pack("<IiiHHIIiiII", 40, 60_000, 60_000, 1, 24, 0, 0, 0, 0, 0, 0)
        return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + sizes
    if kind == "TIFF":
        entries = [(256, 4, 1, 60_000), (257, 4, 1, 60_000), (258, 3, 1, 8), (262, 3, 1, 1), (273, 4, 1, 8)]
        return tiff(entries, bytes(8))
    chunk = b"\x2f" + struct.pack("<I", 16_383 | 16_383 << 14) + bytes(40)
    return b"RIFF" + struct.pack("<I", 12 + len(chunk)) + b"WEBPVP8L" + struct.pack("<I", len(chunk)) + chunk


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "WEBP"])
def test_a_few_bytes_that_claim_a_huge_picture_cost_nothing(kind):
    before = resource.getrusage(resource.RUSAGE_SELF)
    assert store(huge(kind), LIMITS) == Drop("pixel_cap")
    after = resource.getrusage(resource.RUSAGE_SELF)
    assert after.ru_utime - before.ru_utime < 1 and after.ru_maxrss - before.ru_maxrss < 100_000


@pytest.mark.parametrize(
    "original, reason",
    [
        (b"<!DOCTYPE html><html></html>", "not_an_image"),
        (b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', "not_an_image"),
        (b"", "not_an_image"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99), "unsupported_format"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic" + bytes(99), "unsupported_format"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(99), "unsupported_format"),
        (encoded(picture(), "JPEG2000"), "unsupported_format"),
        (encoded(picture(15, 80)), "too_small"),
        (encoded(picture(1200, 900)), "pixel_cap"),
        (bomb(30_000, 30_000), "pixel_cap"),
        (encoded(picture(300, 200))[:1500], "truncated_image"),
        (bomb(100, 100), "truncated_image"),
    ],
)
def test_what_cannot_be_stored_is_dropped_for_its_reason(original, reason):
    assert store(original, LIMITS) == Drop(reason)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damaged_bytes_never_raise():
    rng = np.random.default_rng(0)
    originals = [encoded(picture(), kind) for kind in ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP")]
    for i in range(300):
        damaged = bytearray(originals[i % len(originals)])
        for place in rng.integers(0, len(damaged), 12):
            damaged[place] = rng.integers(256)
        assert isinstance(store(bytes(damaged), LIMITS), StoredImage | Drop)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_numbers_of_32_bits_without_a_range_are_no_black_picture(mode: str) -> None:
    buffer = io.BytesIO()
    Image.new(mode, (80, 60), 100).save(buffer, "TIFF")
    assert store(buffer.getvalue(), LIMITS) == Drop("unsupported_format")
