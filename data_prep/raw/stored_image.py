"""Turns the bytes of a fetched image into the JPEG that is stored: upright, RGB, and at most as large as asked.

The same input gives the same JPEG. An image that is broken, too small, or too large to decode safely is dropped for a
named reason.
"""

import hashlib
import io
import re
from dataclasses import dataclass

from cykooz_resizer import FilterType, ResizeAlg, ResizeOptions, Resizer
from PIL import Image, UnidentifiedImageError

from data_prep.shards.ledger import Drop
from pipeline.pictures.decoding import CostlyPictureError, opened
from pipeline.pictures.perceptual_hash import perceptual_hash
from pipeline.pictures.plain_picture import NumberRangeError, on_white, true_colour, upright

JPEG_QUALITY = 95
OTHER_FORMATS = re.compile(
    rb"....ftyp(hei|hev|mif1|msf1|heif)|....JXL |\xff\x0a|....jP  |\xff\x4f\xff\x51|8BPS", re.DOTALL
)
"""How HEIF, JPEG XL, JPEG 2000 and Photoshop's files begin, which are pictures and not read."""
BICUBIC = ResizeOptions(resize_alg=ResizeAlg.convolution(FilterType.catmull_rom))
"""Pillow's bicubic filter, with SIMD instructions. The bytes are the same with each set of instructions."""


@dataclass(frozen=True)
class ImageLimits:
    """Bounds of an image. `max_side_px` is for the shorter side of the stored image, `max_pixels` for what is decoded,
    `max_aspect` for the longer side divided by the shorter."""

    min_side_px: int
    max_side_px: int
    max_pixels: int
    max_aspect: float | None = None

    def fault(self, width_px: int, height_px: int) -> str | None:
        """Why a picture of this size is dropped before it is decoded, or None."""
        short_px, long_px = sorted((width_px, height_px))
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


def store(content: bytes, limits: ImageLimits) -> StoredImage | Drop:
    """The JPEG to keep, or why there is none."""
    try:
        with opened(content, limits.max_pixels) as image:
            if fault := limits.fault(*image.size):
                return Drop(fault)
            wanted = 2 * limits.max_side_px
            if min(image.size) > wanted:
                scale = wanted / min(image.size)
                image.draft(None, (round(image.width * scale), round(image.height * scale)))
            image.load()
            return _encode(on_white(_fitted(true_colour(upright(image)), limits.max_side_px)))
    except (UnidentifiedImageError, NumberRangeError) as error:
        known = isinstance(error, NumberRangeError) or OTHER_FORMATS.match(content)
        return Drop("unsupported_format" if known else "not_an_image")
    except Image.DecompressionBombError:
        return Drop("pixel_cap")
    except CostlyPictureError:
        return Drop("costly_image")
    except Exception as error:  # decoders raise many kinds of errors on hostile bytes; the ledger counts each
        return Drop("truncated_image" if "truncated" in str(error) else "undecodable")


def _fitted(image: Image.Image, max_side_px: int) -> Image.Image:
    """A new picture without metadata, shrunk if the shorter side is longer than `max_side_px`."""
    short_px = min(image.size)
    if short_px <= max_side_px:
        plain = Image.new(image.mode, image.size)
        plain.paste(image)
        return plain
    width_px, height_px = (max(1, round(side * max_side_px / short_px)) for side in image.size)
    plain = Image.new(image.mode, (width_px, height_px))
    Resizer().resize_pil(image, plain, BICUBIC)
    return plain


def _encode(image: Image.Image) -> StoredImage:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return StoredImage(buffer.getvalue(), image.width, image.height, perceptual_hash(image))
