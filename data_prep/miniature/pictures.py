"""Writes scenes as JPEG files: clean ones as in data sets, and varied ones as on the web."""

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from data_prep.miniature.rendering import render
from data_prep.miniature.scenes import Scene
from data_prep.shards.processes import map_in_order

ORIENTATION_TAG = 0x0112
"""The EXIF tag that says how a viewer must turn the stored pixels."""
TURNS = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
"""Orientation value -> how upright pixels are turned before they are stored with this value."""
ROTATED_SHARE, GREY_SHARE, CMYK_SHARE = 0.05, 0.02, 0.03
"""Shares of web pictures stored rotated, in grey, and in CMYK."""

FEW = 100
"""So many pictures are drawn in less time than processes need to start."""
AT_ONCE = 64
"""Pictures that a process takes at a time."""

Style = Literal["dataset", "web"]


@dataclass(frozen=True)
class Picture:
    """One file to write: its path, scene and style. Only `seed` decides its random choices."""

    path: Path
    scene: Scene
    style: Style
    seed: tuple[int, ...]


def write_pictures(pictures: Sequence[Picture], *, processes: int | None = None) -> None:
    """Write all pictures in a few processes; the bytes do not depend on their number."""
    for folder in {picture.path.parent for picture in pictures}:
        folder.mkdir(parents=True, exist_ok=True)
    workers = 1 if len(pictures) < FEW else processes or len(os.sched_getaffinity(0))
    for _ in map_in_order(
        _write_all, [pictures[at : at + AT_ONCE] for at in range(0, len(pictures), AT_ONCE)], workers
    ):
        pass


def _write_all(pictures: Sequence[Picture]) -> None:
    for picture in pictures:
        write_picture(picture)


def write_picture(picture: Picture) -> None:
    rng = np.random.default_rng(picture.seed)
    jpeg = dataset_jpeg(picture.scene, rng) if picture.style == "dataset" else web_jpeg(picture.scene, rng)
    picture.path.write_bytes(jpeg)


def dataset_jpeg(scene: Scene, rng: np.random.Generator) -> bytes:
    """An upright RGB JPEG of good quality, with 128 to 200 px on the shorter side."""
    width_px, height_px = _draw_size(rng, shortest_px=128, longest_short_px=200, longest_px=256)
    image = Image.fromarray(render(scene, width_px, height_px, rng))
    return _encode(image, quality=int(rng.integers(85, 96)))


def web_jpeg(scene: Scene, rng: np.random.Generator) -> bytes:
    """A JPEG like those of the web: 90 to 320 px, quality 45 to 96; some are rotated by EXIF, grey, or CMYK."""
    width_px, height_px = _draw_size(rng, shortest_px=90, longest_short_px=240, longest_px=320)
    image = Image.fromarray(render(scene, width_px, height_px, rng))
    quality = int(rng.integers(45, 97))
    subsampling = int(rng.choice([0, 2]))
    kind = rng.random()
    if kind < ROTATED_SHARE:
        orientation = int(rng.choice(list(TURNS)))
        exif = Image.Exif()
        exif[ORIENTATION_TAG] = orientation
        return _encode(image.transpose(TURNS[orientation]), quality, subsampling, exif)
    if kind < ROTATED_SHARE + GREY_SHARE:
        return _encode(image.convert("L"), quality, subsampling)
    if kind < ROTATED_SHARE + GREY_SHARE + CMYK_SHARE:
        return _encode(image.convert("CMYK"), quality, subsampling)
    return _encode(image, quality, subsampling)


def _draw_size(
    rng: np.random.Generator, *, shortest_px: int, longest_short_px: int, longest_px: int
) -> tuple[int, int]:
    short_px = int(rng.integers(shortest_px, longest_short_px + 1))
    long_px = min(longest_px, round(short_px * (1 + 0.6 * rng.random() ** 1.5)))
    return (short_px, long_px) if rng.random() < 0.4 else (long_px, short_px)


def _encode(image: Image.Image, quality: int, subsampling: int = 2, exif: Image.Exif | None = None) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, subsampling=subsampling, exif=exif or Image.Exif())
    return buffer.getvalue()
