"""Perceptual hashes of pictures, and which of many hashes lie near some: for the guard against train/test overlap.

The hash is pHash as the ImageHash library computes it (grey, 32x32, discrete cosine transform, the 8x8 lowest
frequencies above their median), the one that the ledgers of data preparation hold. E evaluation, T training hashes.
"""

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SIDE_PX, LOW = 32, 8
LEAST_CONTRAST = 4.0  # grey levels of standard deviation; a flatter picture has no hash
MOST_BITS_APART = 4  # as data preparation counts two pictures as copies
BAND_STARTS = (0, 13, 26, 39, 52)  # of the hash's bits; hashes at most 4 bits apart agree in one of five bands
BAND_BITS = 13  # of all but the last, which has the twelve that are left
Hashes = NDArray[np.uint64]


def perceptual_hash(path: Path) -> int | None:
    """64 bits, first row first; None for a flat picture. Raises ValueError for one that cannot be read."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as file:
            grey_image = ImageOps.exif_transpose(file).convert("L")
            small = grey_image.resize((SIDE_PX, SIDE_PX), Image.Resampling.LANCZOS)
    except Exception as error:  # a damaged file makes Pillow raise many kinds
        raise ValueError(f"{path}: not readable as a picture ({error})") from error
    grey = np.asarray(small, np.float64)
    if grey.std() < LEAST_CONTRAST:
        return None
    frequencies = _transform() @ grey @ _transform().T
    bits = np.packbits(frequencies > np.median(frequencies))
    return int.from_bytes(bits.tobytes(), "big")


@cache
def _transform() -> NDArray[np.float64]:
    angles = np.outer(np.arange(LOW), 2 * np.arange(SIDE_PX) + 1) * np.pi / (2 * SIDE_PX)
    return 2 * np.cos(angles)


def near_pairs(evaluation_E: Hashes, training_T: Hashes, bits: int = MOST_BITS_APART) -> Iterator[tuple[int, int]]:
    """(e, t) of hashes at most `bits` (0 to 4) apart, in order of t, each pair once."""
    assert 0 <= bits <= MOST_BITS_APART
    found, mask = set[tuple[int, int]](), np.uint64((1 << BAND_BITS) - 1)
    for shift in map(np.uint64, BAND_STARTS):
        own = (evaluation_E >> shift) & mask
        order = np.argsort(own, kind="stable")
        wanted = (training_T >> shift) & mask
        first = np.searchsorted(own[order], wanted, "left")
        count = np.searchsorted(own[order], wanted, "right") - first
        t = np.repeat(np.arange(len(training_T)), count)
        within = np.arange(len(t)) - np.repeat(np.cumsum(count) - count, count)
        e = order[np.repeat(first, count) + within]
        near = np.bitwise_count(evaluation_E[e] ^ training_T[t]) <= bits
        found.update(zip(e[near].tolist(), t[near].tolist(), strict=True))
    yield from sorted(found, key=lambda pair: (pair[1], pair[0]))
