"""One decoder for all programs: the formats of the web, equal pixels everywhere, a bound on time and memory."""

import ast
import io
import itertools
import os
import resource
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_prep.captioning.candidates import decode as decode_for_capfilt
from data_prep.raw.stored_image import ImageLimits, StoredImage, store
from data_prep.shards.ledger import Drop
from pipeline.data.transforms import decode
from pipeline.pages.thumbnails import thumbnail
from pipeline.pictures import decoding
from pipeline.pictures.perceptual_hash import hash_of_file
from tests.support import costly_pictures

ROOT = Path(__file__).parents[3]
LIMITS = ImageLimits(min_side_px=8, max_side_px=512, max_pixels=50_000_000)
RED = Image.new("RGB", (64, 48), (200, 30, 30))
RAMP = Image.fromarray(np.linspace(0, 65535, 48 * 64).reshape(48, 64).astype(np.uint16))


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def half_transparent() -> Image.Image:
    image = Image.new("RGBA", (64, 48), (0, 0, 0, 0))
    image.paste((200, 30, 30, 255), (0, 0, 32, 48))
    return image


OTHER = Image.new("RGB", (64, 48), (0, 0, 255))
ODD = {
    "transparency": (encoded(half_transparent()), "white"),
    "grey with transparency": (encoded(Image.new("LA", (64, 48), (90, 0))), "white"),
    "16-bit grey": (encoded(RAMP), "ramp"),
    "16-bit TIFF": (encoded(RAMP, "TIFF"), "ramp"),
    "palette": (encoded(RED.quantize(4)), "red"),
    "palette with transparency": (encoded(RED.quantize(4), transparency=bytes([255] * 4)), "red"),
    "CMYK JPEG": (encoded(RED.convert("CMYK"), "JPEG", quality=95), "red"),
    "CMYK TIFF": (encoded(RED.convert("CMYK"), "TIFF"), "red"),
    "AVIF": (encoded(RED, "AVIF", quality=95), "red"),
    "WebP": (encoded(RED, "WEBP", lossless=True), "red"),
    "animated GIF": (encoded(RED, "GIF", save_all=True, append_images=[OTHER]), "red"),
    "animated PNG": (encoded(RED, save_all=True, append_images=[OTHER]), "red"),
    "two pictures in a JPEG": (encoded(RED, "MPO", save_all=True, append_images=[OTHER], quality=95), "red"),
    "BMP": (encoded(RED, "BMP"), "red"),
}


@pytest.mark.parametrize("name", ODD)
def test_an_odd_picture_has_the_same_pixels_in_all_programs(name: str, tmp_path: Path) -> None:
    content, look = ODD[name]
    seen = decode(content).permute(1, 2, 0).numpy().astype(int)
    if look == "red":
        assert np.abs(seen - (200, 30, 30)).max() <= 8
    elif look == "ramp":
        assert np.abs(seen[..., 0] - np.asarray(RAMP) / 257).max() < 3
    else:
        assert seen[:, 40:].min() > 250
    (tmp_path / "picture").write_bytes(content)
    captioned = decode_for_capfilt(content)
    assert np.array_equal(seen, decode(tmp_path / "picture").permute(1, 2, 0).numpy())
    assert captioned is not None and np.array_equal(seen, np.asarray(captioned))
    stored = store(content, LIMITS)
    assert isinstance(stored, StoredImage)
    assert np.abs(seen - decode(stored.jpeg).permute(1, 2, 0).numpy()).mean() < 4
    assert thumbnail(content).width == 64


def exif(*entries: tuple[int, int, int, bytes], data: bytes = b"") -> bytes:
    """A TIFF directory with orientation 6, odd tags, and `data` after it."""
    every = sorted([(0x0112, 3, 1, struct.pack("<HH", 6, 0)), *entries])
    body = struct.pack("<H", len(every)) + b"".join(struct.pack("<HHI", *each[:3]) + each[3] for each in every)
    return b"Exif\0\0II*\0" + struct.pack("<I", 8) + body + bytes(4) + data


AFTER = struct.pack("<I", 8 + 2 + 2 * 12 + 4)
ODD_TAGS = {
    "rational by zero": exif((0x011A, 10, 1, AFTER), data=struct.pack("<ii", -1, 0)),
    "negative in an unsigned tag": exif((0x829A, 10, 1, AFTER), data=struct.pack("<ii", -1, 3)),
    "negative size": exif((0x0101, 9, 1, struct.pack("<i", -5))),
    "bytes for a width": exif((0x0100, 7, 4, b"\1\2\3\4")),
    "text for a width": exif((0x0100, 2, 4, b"abc\0")),
    "infinite": exif((0x011A, 11, 1, struct.pack("<f", float("inf")))),
    "directory in itself": exif((0x8769, 4, 1, struct.pack("<I", 8))),
}


@pytest.mark.parametrize("name", ODD_TAGS)
def test_an_odd_tag_loses_no_picture_and_no_turn(name: str, tmp_path: Path) -> None:
    jpeg, block = encoded(RED, "JPEG"), ODD_TAGS[name]
    content = jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + jpeg[2:]
    (tmp_path / "a.jpg").write_bytes(content)
    assert decode(content).shape == decode(tmp_path / "a.jpg").shape == (3, 64, 48)
    stored = store(content, LIMITS)
    assert isinstance(stored, StoredImage) and (stored.width_px, stored.height_px) == (48, 64)
    assert (thumbnail(content).width, thumbnail(content).height) == (48, 64)


COSTLY = {
    "scans of a progressive JPEG": costly_pictures.progressive_with_scans(2000, 2000, 2000),
    "empty scans of a JPEG": costly_pictures.baseline_with_empty_scans(2000, 2000, 2000),
    "a tile of a TIFF": costly_pictures.tiff_with_a_large_tile(64, 11_000),
}


@pytest.mark.parametrize("name", COSTLY)
def test_a_picture_that_costs_too_much_is_refused_everywhere_without_decoding_it(name: str, tmp_path: Path) -> None:
    content, before = COSTLY[name], resource.getrusage(resource.RUSAGE_SELF)
    (tmp_path / "costly.jpg").write_bytes(content)
    assert store(content, LIMITS) == Drop("costly_image")
    for source in (content, tmp_path / "costly.jpg"):
        with pytest.raises(ValueError, match="readable as a picture"):
            decode(source)
    with pytest.raises(ValueError, match="cannot be decoded"):
        hash_of_file(tmp_path / "costly.jpg")
    assert decode_for_capfilt(content) is None and thumbnail(content).fault
    after = resource.getrusage(resource.RUSAGE_SELF)
    assert after.ru_utime - before.ru_utime < 2 and after.ru_maxrss - before.ru_maxrss < 200_000


def test_ordinary_progressive_pictures_of_any_size_pass() -> None:
    content = costly_pictures.progressive_with_scans(400, 300, 90)
    assert decode(content).shape == (3, 300, 400)
    assert 12 * decoding.MAX_PIXELS < decoding.MAX_SCANNED_PIXELS


def test_what_pillow_reads_step_by_step_has_a_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    content = costly_pictures.tiff_with_many_strips(300, 200, 30_000)
    monkeypatch.setattr(decoding, "MAX_READ_S", 0.1)
    assert store(content, LIMITS) == Drop("costly_image")
    with pytest.raises(ValueError, match=r"takes more than 0\.1 s"):
        decode(content)


def test_pillow_reads_nothing_more_after_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = itertools.count(step=decoding.MAX_READ_S / 100)  # at the clock, before each read
    monkeypatch.setattr(time, "thread_time", lambda: next(looks))
    with pytest.raises(ValueError, match=r"takes more than 10 s"):
        decode(costly_pictures.tiff_with_many_strips(300, 200, 30_000))
    assert next(looks) < 1.1 * decoding.MAX_READ_S


def test_a_picture_with_too_many_pixels_is_not_decoded() -> None:
    content = encoded(Image.new("1", (12_000, 10_001)))
    with pytest.raises(ValueError, match="more than 120000000"):
        decode(content)
    assert store(content, LIMITS) == Drop("pixel_cap")


def blank(kind: str, mode: str, num_pixels: int, **options: Any) -> bytes:
    content = io.BytesIO()
    Image.new(mode, (num_pixels // 100, 100)).save(content, kind, **options)
    return content.getvalue()


@pytest.mark.parametrize(
    ("kind", "mode", "most", "options"),
    [
        ("WEBP", "RGB", 30_000, {"lossless": True}), ("AVIF", "RGB", 37_500, {}), ("PNG", "LA", 37_500, {}),
        ("PNG", "P", 37_500, {"transparency": 0}), ("TIFF", "CMYK", 66_600, {}), ("PNG", "L", 120_000, {}),
        ("GIF", "P", 120_000, {}), ("JPEG", "RGB", 120_000, {}),
    ],
)  # fmt: skip
def test_what_takes_more_memory_a_pixel_has_fewer_pixels(
    kind: str, mode: str, most: int, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousandth of the real bound: a blank WebP of 119 megapixels has 40 bytes, and took 1.8 GB."""
    monkeypatch.setattr(decoding, "MAX_MEMORY", decoding.MAX_MEMORY // 1000)
    with decoding.opened(blank(kind, mode, most, **options)) as image:
        image.load()
    with pytest.raises(Image.DecompressionBombError, match="pixels, more than"):
        decoding.decode_rgb(blank(kind, mode, most + 100, **options))


def test_no_program_is_started_for_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called, ghostscript = tmp_path / "called", tmp_path / "gs"
    ghostscript.write_text(f"#!/bin/sh\ntouch {called}\necho 10.0\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    page = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\n%%EOF\n"
    (tmp_path / "page.jpg").write_bytes(page)
    for source in (page, tmp_path / "page.jpg"):
        with pytest.raises(ValueError, match="readable as a picture"):
            decode(source)
        assert thumbnail(source).fault
    assert store(page, LIMITS) == Drop("not_an_image") and not called.exists()


def test_pillow_is_told_the_formats_wherever_it_opens_a_picture() -> None:
    calls = [
        (path, call)
        for hall in ("pipeline", "data_prep", "eval")
        for path in (ROOT / hall).rglob("*.py")
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call) and ast.unparse(call.func) in ("Image.open", "PIL.Image.open")
    ]
    assert calls
    assert not [path for path, call in calls if "formats" not in {word.arg for word in call.keywords}]


def test_a_pipe_in_place_of_a_picture_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(ValueError, match=r"pipe.jpg: is not a regular file"):
        decode(tmp_path / "pipe.jpg")
