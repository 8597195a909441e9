"""Samples by (epoch, position): seek in the tar, decode, crop, choose a text; draws depend on (seed, epoch, key).

Where a sample is one of a picture's captions or questions, its draws depend on which one it is as well. Where weights
make a sample occur again in an epoch, they depend on which occurrence it is, too.
"""

import logging
import os
import random
import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pipeline.config import Data
from pipeline.data.manifest import PLACES, Manifest, check_record
from pipeline.data.order import TOTALS, Order
from pipeline.data.records import Texts, read_record
from pipeline.data.transforms import decode, random_resized_crop

log = logging.getLogger(__name__)
MAX_OPEN_TARS = 128  # more than a block of shuffle_shards has, or each sample opens its tar again
MAX_CORRUPT_IN_A_ROW = 64
MAX_CORRUPT_SHARDS = 3  # in a row; more of them are a disk that is gone
LARGEST_MEMBER = 1 << 28  # bytes; a damaged table must not ask for all memory


class UnreadableShardError(ValueError):
    """Too many samples in a row cannot be read. It may happen on one rank alone, which then prints it."""


@dataclass(frozen=True)
class Sample:
    """One picture and the text of it to train on: a caption, or, with a `question`, the answer.

    In the place of one answer it may have all `answers`, with their shares of the loss. Collation draws from `rng`,
    too; `corrupt` counts the pictures that were to be read before, and could not.
    """

    key: str
    pixels_3SS: Tensor
    caption: str
    rng: random.Random
    corrupt: int
    question: str = ""
    loss_weight: float = 1.0
    answers: tuple[tuple[str, float], ...] = ()
    source: str = ""

    def texts(self) -> tuple[tuple[str, float], ...]:
        """What is trained on, and its share of the loss."""
        return self.answers or ((self.caption, 1.0),)


def draw_sample(
    key: str, pixels_3HW: Tensor, texts: Texts, corrupt: int, rng: random.Random, settings: Data, size_px: int
) -> Sample:
    """Choose one of the texts, unless all are trained on, and a crop, both from `rng`."""
    answers = texts.shares() if settings.answers == "all" else ()
    text = "" if answers else texts.draw(rng)
    pixels_3SS = random_resized_crop(pixels_3HW, size_px, settings.crop_scale, settings.horizontal_flip, rng)
    return Sample(key, pixels_3SS, text, rng, corrupt, texts.question, answers=answers)


class SampleStream:
    """A map-style data set over (epoch, position).

    A picture that cannot be read is replaced by that of the next row of its shard (round to the first after the last)
    and counted: which one stands in depends on the files alone, so no two ranks can disagree. Of several captions or
    questions each is replaced by one of the row that stands in, the n-th by its n-th, counted round. Where a whole
    shard, or MAX_CORRUPT_IN_A_ROW of its rows, cannot be read, those of the next shard stand in.
    """

    def __init__(self, manifest: Manifest, order: Order, settings: Data, image_size_px: int) -> None:
        self.manifest, self.order, self.settings, self.image_size_px = manifest, order, settings, image_size_px
        self._offsets = lru_cache(maxsize=MAX_OPEN_TARS)(self._read_offsets)
        self._ends = lru_cache(maxsize=MAX_OPEN_TARS)(self._read_ends)
        self._files: dict[int, int] = {}
        self._told: set[int] = set()

    def _read_offsets(self, shard: int) -> NDArray[np.int64]:
        return self.manifest.table(self.manifest.shards[shard])

    def _read_ends(self, shard: int) -> NDArray[np.int64]:
        """Of each row, how many captions or questions the shard has up to its last one."""
        listed, sample = self.manifest.shards[shard], self.settings.sample
        counts = self.manifest.counts(listed)[:, 0 if sample == "caption" else 1]
        ends: NDArray[np.int64] = np.cumsum(counts)
        if ends[-1] != getattr(listed, TOTALS[sample]) or counts.min() < 0:
            raise UnreadableShardError(
                f"shard {listed.path}: {ends[-1]} {sample}s are in its table, {getattr(listed, TOTALS[sample])} in the "
                "manifest; write the manifest again with `python -m data_prep.index`"
            )
        return ends

    def _rows(self, shard: int, number: int) -> Iterator[tuple[int, int]]:
        """(row, which of its texts) of a shard's sample `number`, and then of those that stand in for it, in turn."""
        rows = self.manifest.shards[shard].samples
        if self.settings.sample == "image":
            yield from (((number + further) % rows, 0) for further in range(rows))
            return
        ends = self._ends(shard)
        first = int(np.searchsorted(ends, number, side="right"))
        counts = np.diff(ends, prepend=0)
        which = number - int(ends[first] - counts[first])
        holding = ((first + further) % rows for further in range(rows))
        yield from ((row, which % int(counts[row])) for row in holding if counts[row])

    def _shards_from(self, shard: int) -> Iterator[int]:
        """A shard, and then those that stand in for it: the next ones that hold samples of this kind, counted round."""
        shards = self.manifest.shards
        for further in range(len(shards)):
            each = (shard + further) % len(shards)
            if getattr(shards[each], TOTALS[self.settings.sample]):
                yield each

    def _file(self, shard: int) -> int:
        """An open file descriptor of the shard's tar; the one opened first is closed when there are too many."""
        if shard not in self._files:
            if len(self._files) >= MAX_OPEN_TARS:
                os.close(self._files.pop(next(iter(self._files))))
            listed = self.manifest.shards[shard]
            path = self.manifest.shard_path(listed)
            file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # opening a pipe would wait for its writer
            found = os.fstat(file)
            if not stat.S_ISREG(found.st_mode) or found.st_size > listed.bytes:  # one that was cut still has samples
                os.close(file)
                if not stat.S_ISREG(found.st_mode):
                    raise ValueError(f"{path}: is not a regular file")
                raise ValueError(
                    f"{path}: was replaced: it has {found.st_size} bytes, the manifest says {listed.bytes}"
                )
            self._files[shard] = file
        return self._files[shard]

    def _read(self, shard: int, row: int, which: int) -> tuple[bytes, str, Texts]:
        """JPEG bytes, key and texts of one row. Raises OSError or ValueError when the tar does not hold them."""
        places = self._offsets(shard)[row]
        jpg_offset, jpg_bytes, json_offset, json_bytes = (int(number) for number in places[:PLACES])
        file = self._file(shard)
        if max(jpg_bytes, json_bytes) > LARGEST_MEMBER or min(jpg_offset, jpg_bytes, json_offset, json_bytes) < 0:
            raise ValueError(
                f"{self.manifest.shards[shard].path}: row {row} cannot be there; run data_prep.index again"
            )
        picture, text = os.pread(file, jpg_bytes, jpg_offset), os.pread(file, json_bytes, json_offset)
        if len(picture) != jpg_bytes or len(text) != json_bytes:
            raise ValueError(f"{self.manifest.shards[shard].path}: ends before row {row}")
        try:
            check_record(text, places)
            return picture, *read_record(text, self.settings.sample, which, picture)
        except ValueError as error:
            raise ValueError(f"{self.manifest.shards[shard].path}: row {row} is damaged: {error}") from error

    def __getitem__(self, place: tuple[int, int]) -> Sample:
        epoch, position = place
        shard, number = self.order.locate(epoch, position)
        corrupt, fault = 0, ""
        for each in islice(self._shards_from(shard), MAX_CORRUPT_SHARDS):
            try:
                self._file(each)  # a fault of the whole shard, which no other row of it can mend
                self._offsets(each)
                for row, which in islice(self._rows(each, number if each == shard else 0), MAX_CORRUPT_IN_A_ROW):
                    try:
                        picture, key, texts = self._read(each, row, which)
                        return self._sample(epoch, position, each, which, key, decode(picture), texts, corrupt)
                    except (OSError, ValueError) as error:
                        corrupt, fault = corrupt + 1, str(error)
            except (OSError, ValueError) as error:
                corrupt, fault = corrupt + 1, str(error)
            if each not in self._told:
                self._told.add(each)
                log.warning("shard %s: %s; samples of the next shard stand in", self.manifest.shards[each].path, fault)
        raise UnreadableShardError(
            f"shard {self.manifest.shard_path(self.manifest.shards[shard])}, and those after it: no readable sample "
            f"in {corrupt} tries ({fault}); check the data with `python -m data_prep.verify MANIFEST`"
        )

    def _sample(
        self,
        epoch: int,
        position: int,
        shard: int,
        which: int,
        key: str,
        pixels_3HW: Tensor,
        texts: Texts,
        corrupt: int,
    ) -> Sample:
        occurrence = self.order.occurrence(epoch, position)
        of = "" if self.settings.sample == "image" else f"/{self.settings.sample} {which}"
        again = f"/{occurrence}" if occurrence else ""
        rng = random.Random(f"{self.order.seed}/{epoch}/{key}{of}{again}")
        sample = draw_sample(key, pixels_3HW, texts, corrupt, rng, self.settings, self.image_size_px)
        source, weights = self.manifest.shards[shard].source, self.settings.loss_weights or {}
        return replace(sample, source=source, loss_weight=weights.get(source, 1.0))
