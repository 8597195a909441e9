"""The hash is ImageHash's pHash, holds through what the web does to pictures, and tells pictures apart."""

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw
from scipy.fft import dct
from skimage import data

from data_prep.copies.picture_rules import Rules
from pipeline.pictures.perceptual_hash import perceptual_hash

PHOTOS = (
    "astronaut",
    "camera",
    "coffee",
    "chelsea",
    "rocket",
    "coins",
    "moon",
    "page",
    "immunohistochemistry",
    "brick",
)


def photo(name: str) -> Image.Image:
    """A photograph that scikit-image carries in its package."""
    try:
        return Image.fromarray(getattr(data, name)()).convert("RGB")
    except Exception as error:  # not every version carries every picture; others would be fetched
        pytest.skip(f"scikit-image has no {name} here: {error}")


def textbook(image: Image.Image) -> int:
    """pHash as its description says, by scipy's cosine transform."""
    grey = np.asarray(image.convert("L").resize((32, 32), Image.Resampling.LANCZOS), np.float64)
    low = dct(dct(grey, axis=0), axis=1)[:8, :8]
    return int("".join("1" if bit else "0" for bit in (low > np.median(low)).flatten()), 2)


def recompressed(image: Image.Image, quality: int) -> Image.Image:
    content = io.BytesIO()
    image.save(content, "JPEG", quality=quality)
    return Image.open(content)


def shrunk(image: Image.Image, short_px: int) -> Image.Image:
    scale = short_px / min(image.size)
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)


def marked(image: Image.Image) -> Image.Image:
    copy = image.copy()
    ImageDraw.Draw(copy).text((copy.width - 60, copy.height - 14), "example", fill="white")
    return copy


def bits_apart(one: Image.Image, other: Image.Image) -> int:
    first, second = perceptual_hash(one), perceptual_hash(other)
    assert first is not None and second is not None
    return (first ^ second).bit_count()


@pytest.mark.parametrize("name", PHOTOS)
def test_it_is_phash_by_its_description(name: str) -> None:
    assert perceptual_hash(photo(name)) == textbook(photo(name))


@pytest.mark.parametrize("name", PHOTOS)
def test_a_copy_stays_near(name: str) -> None:
    image = photo(name)
    copies = [shrunk(image, 256), shrunk(image, 128), recompressed(image, 60), recompressed(shrunk(image, 200), 75)]
    if name != "brick":  # on an even texture a mark is seen
        copies.append(marked(image))
    for copy in copies:
        assert bits_apart(image, copy) <= Rules.bits_apart


def test_different_pictures_lie_far_apart() -> None:
    images = [photo(name) for name in PHOTOS if hasattr(data, name)]
    for position, image in enumerate(images):
        for other in [*images[:position], image.transpose(Image.Transpose.ROTATE_90)]:
            assert bits_apart(image, other) > 12


def test_a_flat_picture_has_none() -> None:
    assert perceptual_hash(Image.new("RGB", (300, 200), "white")) is None
    noise = np.random.default_rng(0).normal(128, 10, (256, 256, 3)).clip(0, 255).astype(np.uint8)
    assert perceptual_hash(Image.fromarray(noise)) is None
