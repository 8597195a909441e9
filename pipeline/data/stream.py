"""Samples by (epoch, position): seek in the tar, decode, crop, choose a caption; draws depend on (seed, epoch, key).

Where weights make a sample occur again in an epoch, its draws depend on which occurrence it is as well.
"""

import json
import os
import random
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pipeline.config import Data
from pipeline.data.captions import clean_caption
from pipeline.data.manifest import Manifest
from pipeline.data.order import Order
from pipeline.data.transforms import decode, random_resized_crop

MAX_OPEN_TARS = 128  # more than a block of shuffle_shards has, or each sample opens its tar again
MAX_CORRUPT_IN_A_ROW = 64


class UnreadableShardError(ValueError):
    """Too many samples in a row cannot be read. It may happen on one rank alone, which then prints it."""


@dataclass(frozen=True)
class Sample:
    """One image and one of its captions. Collation draws from `rng`, too; `corrupt` counts skipped samples."""

    key: str
    pixels_3SS: Tensor
    caption: str
    rng: random.Random
    corrupt: int


def read_record(text: bytes) -> tuple[str, list[str]]:
    """Key and captions of a sample's JSON. Raises ValueError when they are not there."""
    content = json.loads(text)
    if not isinstance(content, dict) or not isinstance(content.get("key"), str):
        raise ValueError("its JSON has no key")
    captions = content.get("captions")
    if not isinstance(captions, list) or not captions:
        raise ValueError("its JSON has no captions")
    return content["key"], [str(caption) for caption in captions]


def draw_sample(
    key: str, pixels_3HW: Tensor, captions: list[str], corrupt: int, rng: random.Random, settings: Data, size_px: int
) -> Sample:
    """Choose one of the captions and a crop, both from `rng`."""
    caption = clean_caption(rng.choice(captions))
    pixels_3SS = random_resized_crop(pixels_3HW, size_px, settings.crop_scale, settings.horizontal_flip, rng)
    return Sample(key, pixels_3SS, caption, rng, corrupt)


class SampleStream:
    """A map-style data set over (epoch, position).

    A sample that cannot be read is replaced by the next row of its shard (round to the first after the last) and
    counted: which sample stands in depends on the files alone, so no two ranks can disagree.
    """

    def __init__(self, manifest: Manifest, order: Order, settings: Data, image_size_px: int) -> None:
        self.manifest, self.order, self.settings, self.image_size_px = manifest, order, settings, image_size_px
        self._offsets = lru_cache(maxsize=MAX_OPEN_TARS)(self._read_offsets)
        self._files: dict[int, int] = {}

    def _read_offsets(self, shard: int) -> NDArray[np.int64]:
        return self.manifest.offsets(self.manifest.shards[shard])

    def _file(self, shard: int) -> int:
        """An open file descriptor of the shard's tar; the one opened first is closed when there are too many."""
        if shard not in self._files:
            if len(self._files) >= MAX_OPEN_TARS:
                os.close(self._files.pop(next(iter(self._files))))
            self._files[shard] = os.open(self.manifest.shard_path(self.manifest.shards[shard]), os.O_RDONLY)
        return self._files[shard]

    def _read(self, shard: int, row: int) -> tuple[bytes, str, list[str]]:
        """JPEG bytes, key and captions of one row. Raises OSError or ValueError when the tar does not hold them."""
        jpg_offset, jpg_bytes, json_offset, json_bytes = (int(number) for number in self._offsets(shard)[row])
        file = self._file(shard)
        picture, text = os.pread(file, jpg_bytes, jpg_offset), os.pread(file, json_bytes, json_offset)
        if len(picture) != jpg_bytes or len(text) != json_bytes:
            raise ValueError(f"{self.manifest.shards[shard].path}: ends before row {row}")
        try:
            return picture, *read_record(text)
        except ValueError as error:
            raise ValueError(f"{self.manifest.shards[shard].path}: row {row} is damaged: {error}") from error

    def __getitem__(self, place: tuple[int, int]) -> Sample:
        epoch, position = place
        shard, row = self.order.locate(epoch, position)
        occurrence = self.order.occurrence(epoch, position)
        rows = self.manifest.shards[shard].samples
        tries = min(rows, MAX_CORRUPT_IN_A_ROW)
        fault: Exception | None = None
        for corrupt in range(tries):
            try:
                picture, key, captions = self._read(shard, (row + corrupt) % rows)
                pixels = decode(picture)
            except (OSError, ValueError) as error:
                fault = error
                continue
            again = f"/{occurrence}" if occurrence else ""
            rng = random.Random(f"{self.order.seed}/{epoch}/{key}{again}")
            return draw_sample(key, pixels, captions, corrupt, rng, self.settings, self.image_size_px)
        path = self.manifest.shard_path(self.manifest.shards[shard])
        raise UnreadableShardError(
            f"shard {path}: no readable sample in {tries} rows from row {row} on ({fault}); check the data with "
            "`python -m data_prep.verify MANIFEST`"
        )
