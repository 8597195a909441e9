"""Turns an image as it was fetched into the JPEG that is stored: upright, RGB, no larger than asked, the same bytes
every time. What is no image, too small, or too large to decode safely is dropped for a named reason.
"""

import contextlib
import hashlib
import io
import struct
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from data_prep.shards.ledger import Drop
from pipeline.pictures.perceptual_hash import perceptual_hash

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
JPEG_QUALITY = 95


@dataclass(frozen=True)
class ImageLimits:
    """`max_side_px` bounds the shorter side of what is stored, `max_pixels` what is decoded at all, `max_aspect` the
    longer side by the shorter."""

    min_side_px: int
    max_side_px: int
    max_pixels: int
    max_aspect: float | None = None

    def fault(self, width_px: int, height_px: int) -> str | None:
        """Why a picture of this size is not even decoded, or None."""
        short_px, long_px = sorted((width_px, height_px))
        if short_px * long_px > self.max_pixels:
            return "pixel_cap"
        if short_px < self.min_side_px:
            return "too_small"
        return "aspect" if self.max_aspect is not None and long_px > self.max_aspect * short_px else None


@dataclass(frozen=True)
class StoredImage:
    jpeg: bytes
    width_px: int
    height_px: int
    phash: int | None

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.jpeg).hexdigest()


def store(original: bytes, limits: ImageLimits) -> StoredImage | Drop:
    """The JPEG to keep, or why there is none."""
    try:
        with Image.open(io.BytesIO(original), formats=FORMATS) as image:
            if fault := limits.fault(*image.size):
                return Drop(fault)
            wanted = 2 * limits.max_side_px
            if min(image.size) > wanted:
                scale = wanted / min(image.size)
                image.draft(None, (round(image.width * scale), round(image.height * scale)))
            image.load()
            return _encode(_on_white(_shrunk(_true_colour(_upright(image)), limits.max_side_px)))
    except UnidentifiedImageError:
        return Drop("not_an_image")
    except Image.DecompressionBombError:
        return Drop("pixel_cap")
    except Exception as error:  # decoders raise nearly anything on hostile bytes; each case is counted in the ledger
        return Drop("truncated_image" if "truncated" in str(error) else "undecodable")


def _upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF orientation says, in place; unreadable EXIF says nothing."""
    with contextlib.suppress(SyntaxError, ValueError, TypeError, KeyError, struct.error):
        ImageOps.exif_transpose(image, in_place=True)
    return image


def _true_colour(image: Image.Image) -> Image.Image:
    """In RGB, or in RGBA where it has transparency; 16-bit grey by its upper byte."""
    if image.mode in ("RGB", "RGBA"):
        return image
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    return image.convert("RGBA" if image.has_transparency_data else "RGB")


def _shrunk(image: Image.Image, max_side_px: int) -> Image.Image:
    short_px = min(image.size)
    if short_px <= max_side_px:
        return image
    width_px, height_px = (max(1, round(side * max_side_px / short_px)) for side in image.size)
    return image.resize((width_px, height_px), Image.Resampling.BICUBIC)


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _encode(image: Image.Image) -> StoredImage:
    buffer = io.BytesIO()
    plain = Image.new("RGB", image.size)
    plain.paste(image)
    plain.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return StoredImage(buffer.getvalue(), image.width, image.height, perceptual_hash(plain))
