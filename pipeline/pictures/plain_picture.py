"""A decoded picture in one plain form: upright, RGB, transparency on white."""

from typing import Any

import numpy as np
from PIL import ExifTags, Image

TURNS: dict[Any, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes a picture of each EXIF orientation upright."""


def upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF orientation says. Other tags are not read; unreadable EXIF is ignored."""
    try:
        turn = TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # Pillow raises many kinds for odd tags, and the picture is good without them
        return image
    return image if turn is None else image.transpose(turn)


class NumberRangeError(ValueError):
    """A picture of 32-bit numbers, of which no header says which one is white."""


def true_colour(image: Image.Image) -> Image.Image:
    """In RGB, or in RGBA where it has transparency; 16-bit grey by its upper byte. Raises NumberRangeError."""
    if image.mode in ("RGB", "RGBA"):
        return image
    if image.mode in ("I", "F"):
        raise NumberRangeError("has numbers of 32 bits, and does not say which one is white")
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    return image.convert("RGBA" if image.has_transparency_data else "RGB")


def on_white(image: Image.Image) -> Image.Image:
    """In RGB; what was transparent is white."""
    if image.mode == "RGB":
        return image
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
