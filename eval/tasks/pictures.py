"""The picture that a sample is shown: its own, another image's (a baseline), or none; threads load them ahead."""

import random
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from eval.sets.official_files import SampleId

if TYPE_CHECKING:
    from torch import Tensor

Ablation = Literal["own", "none", "shuffled"]
LOADING_THREADS = 4
BATCHES_AHEAD = 2


def shown_images(image_paths: Mapping[SampleId, Path], ablation: Ablation, seed: int) -> dict[SampleId, Path]:
    """For each image, the picture that is shown: its own, or another one by a seeded cycle through all images."""
    if ablation != "shuffled":
        return dict(image_paths)
    if len(image_paths) < 2:
        raise ValueError(f"--images shuffled: needs at least 2 images, found {len(image_paths)}; raise --limit")
    order = list(image_paths)
    random.Random(f"shuffled images, seed {seed}").shuffle(order)
    return {image_id: image_paths[other] for image_id, other in zip(order, [*order[1:], order[0]], strict=True)}


def load_batches(
    batches: Sequence[Sequence[SampleId]], paths: Mapping[SampleId, Path], size_px: int
) -> Iterator["Tensor"]:
    """uint8 [B, 3, S, S] of each batch of image ids, in order, decoded before they are needed.

    Raises ValueError naming id and file for a picture that cannot be read.
    """
    import torch

    from pipeline.data.transforms import load_evaluation_pixels

    def load(image_id: SampleId) -> "Tensor":
        try:
            return load_evaluation_pixels(paths[image_id], size_px)
        except (OSError, ValueError) as error:
            raise ValueError(f"image {image_id!r}: {error}; add or repair the picture") from error

    with ThreadPoolExecutor(LOADING_THREADS) as pool:
        waiting = [pool.map(load, batch) for batch in batches[:BATCHES_AHEAD]]
        for place in range(len(batches)):
            if place + BATCHES_AHEAD < len(batches):
                waiting.append(pool.map(load, batches[place + BATCHES_AHEAD]))
            yield torch.stack(list(waiting.pop(0)))
