"""The perceptual hash of a picture: 64 bits that resizing, recompression and small marks hardly change.

It is `pHash` as the ImageHash library computes it: grey, 32x32 pixels, discrete cosine transform, and for each of the
8x8 lowest frequencies one bit: is it above their median? Pictures without structure (blank pages, plain colours) have
no hash: their bits would be noise, and all of them would count as one picture.
"""

from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.pictures.decoding import decode_rgb, read_picture

SIDE_PX = 32
LOW = 8
LEAST_CONTRAST = 4.0
"""Standard deviation, in grey levels, of the 32x32 picture below which it is flat."""


def perceptual_hash(image: Image.Image) -> int | None:
    """The 64 bits, first row first and highest bit first; None for a flat picture."""
    grey = np.asarray(image.convert("L").resize((SIDE_PX, SIDE_PX), Image.Resampling.LANCZOS), np.float64)
    if grey.std() < LEAST_CONTRAST:
        return None
    cosines = _cosines()
    low = cosines @ grey @ cosines.T
    return int.from_bytes(np.packbits(low > np.median(low)).tobytes(), "big")


def hash_of_file(path: Path) -> int | None:
    """The perceptual hash of a picture file. Raises ValueError, naming the file, when it cannot be decoded."""
    try:
        return perceptual_hash(decode_rgb(read_picture(path)))
    except Exception as error:  # decoders raise nearly anything on a damaged file
        raise ValueError(f"{path}: cannot be decoded as a picture ({error})") from error


@cache
def _cosines() -> NDArray[np.float64]:
    """[LOW, SIDE_PX]: the lowest rows of the DCT-II, unnormalised."""
    frequency, place = np.mgrid[0:LOW, 0:SIDE_PX]
    rows: NDArray[np.float64] = 2 * np.cos(np.pi * frequency * (2 * place + 1) / (2 * SIDE_PX))
    return rows
