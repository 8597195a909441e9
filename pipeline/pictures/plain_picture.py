"""A decoded picture in one plain form: upright, RGB, transparency on white, as hashes and stored JPEGs need it."""

import contextlib
import struct

import numpy as np
from PIL import Image, ImageOps

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""The only decoders that are given bytes from outside."""


def upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF orientation says, in place; unreadable EXIF is ignored."""
    with contextlib.suppress(SyntaxError, ValueError, TypeError, KeyError, struct.error):
        ImageOps.exif_transpose(image, in_place=True)
    return image


def true_colour(image: Image.Image) -> Image.Image:
    """In RGB, or in RGBA where it has transparency; 16-bit grey by its upper byte."""
    if image.mode in ("RGB", "RGBA"):
        return image
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    return image.convert("RGBA" if image.has_transparency_data else "RGB")


def on_white(image: Image.Image) -> Image.Image:
    """In RGB; what was transparent is white."""
    if image.mode == "RGB":
        return image
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
