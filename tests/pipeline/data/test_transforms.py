"""Pictures to pixels: every mode and orientation decoded, crops inside the picture, damaged files named as such."""

import io
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from pipeline.data import transforms

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8))


def encoded(picture: Image.Image, form: str = "PNG", **options: object) -> bytes:
    content = io.BytesIO()
    picture.save(content, form, **options)
    return content.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "RGBA", "P", "1", "LA"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    form = "TIFF" if mode == "CMYK" else "PNG"
    pixels = transforms.decode(encoded(PICTURE.convert(mode), form))
    assert pixels.shape == (3, 24, 40) and pixels.dtype == torch.uint8
    expected = np.asarray(PICTURE.convert(mode).convert("RGB"))
    assert np.array_equal(pixels.permute(1, 2, 0).numpy(), expected)


def test_the_exif_orientation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned a quarter
    pixels = transforms.decode(encoded(PICTURE, "PNG", exif=exif))
    assert torch.equal(pixels, transforms.decode(encoded(PICTURE)).flip(1).transpose(1, 2))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("orientation", [None, 6])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_has_the_pixels_that_pillow_gives(mode: str, orientation: int | None, progressive: bool) -> None:
    options: dict[str, object] = {"quality": 95, "progressive": progressive}
    if orientation:
        exif = Image.Exif()
        exif[0x0112] = orientation
        options["exif"] = exif
    content = encoded(PICTURE.convert(mode), "JPEG", **options)
    with Image.open(io.BytesIO(content)) as image:
        expected = np.array(ImageOps.exif_transpose(image).convert("RGB"))
    assert np.array_equal(transforms.decode(content).permute(1, 2, 0).numpy(), expected)


def test_a_file_is_read_as_its_bytes_are(tmp_path: Path) -> None:
    content = encoded(PICTURE, "JPEG")
    (tmp_path / "picture.jpg").write_bytes(content)
    assert torch.equal(
        transforms.load_evaluation_pixels(tmp_path / "picture.jpg", 32), transforms.load_evaluation_pixels(content, 32)
    )


def test_damaged_pictures_are_named_in_one_line(tmp_path: Path) -> None:
    whole = encoded(PICTURE, "JPEG")
    damaged = [b"", b"not a picture", whole[: len(whole) // 2], encoded(PICTURE)[:60]]
    for content in damaged:
        path = tmp_path / "damaged.jpg"
        path.write_bytes(content)
        for source, named in ((content, "a picture"), (path, str(path))):
            with pytest.raises(ValueError, match="not readable as a picture") as error:
                transforms.decode(source)
            assert str(error.value).startswith(named) and "\n" not in str(error.value)


def coordinates(height: int, width: int) -> torch.Tensor:
    """Each pixel says where it is: rows in the first channel, columns in the second."""
    rows, columns = torch.arange(height), torch.arange(width)
    grid = torch.stack([rows[:, None].expand(height, width), columns.expand(height, width), torch.zeros(height, width)])
    return grid.to(torch.int64)


@pytest.mark.parametrize(("height", "width"), [(48, 64), (200, 31), (1, 1), (3, 250)])
def test_crops_stay_inside_and_follow_scale_and_aspect(
    height: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transforms, "_resize", lambda pixels, _size_px: pixels)
    rng, flips, areas, tops = random.Random(0), 0, [], set()
    for _ in range(400):
        crop = transforms.random_resized_crop(coordinates(height, width), 8, (0.5, 1.0), True, rng)
        rows, columns = crop[0, :, 0], crop[1, 0]
        flipped = len(columns) > 1 and bool(columns[0] > columns[-1])
        flips += flipped
        columns = columns.flip(0) if flipped else columns
        assert torch.equal(rows, torch.arange(int(rows[0]), int(rows[0]) + len(rows))) and rows[-1] < height
        assert torch.equal(columns, torch.arange(int(columns[0]), int(columns[0]) + len(columns)))
        assert columns[-1] < width
        areas.append(len(rows) * len(columns) / (height * width))
        tops.add(int(rows[0]))
        whole = (len(rows), len(columns)) == (height, width)  # what is left for very long pictures
        assert whole or 0.72 < len(columns) / len(rows) < 1.38
    if (height, width) == (48, 64):
        assert 0.48 < min(areas) < 0.55 and max(areas) > 0.9 and len(tops) > 10
        assert 160 < flips < 240  # 4 standard deviations


def test_without_flip_nothing_is_mirrored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transforms, "_resize", lambda pixels, _size_px: pixels)
    rng = random.Random(0)
    crops = [transforms.random_resized_crop(coordinates(20, 20), 8, (0.5, 1.0), False, rng) for _ in range(50)]
    assert all(bool((crop[1, 0].diff() == 1).all()) for crop in crops)


def test_evaluation_takes_the_whole_picture() -> None:
    pixels = transforms.load_evaluation_pixels(encoded(PICTURE), 32)
    reference = PICTURE.resize((32, 32), Image.Resampling.BICUBIC)
    assert pixels.shape == (3, 32, 32) and pixels.dtype == torch.uint8
    difference = np.abs(pixels.permute(1, 2, 0).numpy().astype(int) - np.asarray(reference).astype(int))
    assert difference.max() <= 1
