"""The order of samples: a pure function of (seed, epoch, manifest, data.sample), so that any step is reached at once.

A sample is a picture, or one of the captions or questions that a picture has: the n-th of its shard, as they follow one
another in its rows. Shards alone are kept in memory; how many a row has is looked up in the shard's table (stream.py).

An epoch permutes the shards, takes them in blocks of `shuffle_shards`, and permutes the samples within a block: reading
stays within a few open tars. The last `samples mod global batch` samples of an epoch's order are left out of that epoch
(another seed or epoch leaves out others).
"""

import hashlib
from collections.abc import Iterator
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.config import SampleKind
from pipeline.data.manifest import Manifest

TOTALS: dict[SampleKind, str] = {"image": "samples", "caption": "captions", "question": "questions"}
"""The field of a manifest's shard that says how many it holds."""


def generator_of(*parts: object) -> np.random.Generator:
    """Random numbers that depend on `parts`, printed, and on nothing else."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return np.random.default_rng(np.frombuffer(digest, dtype=np.uint32))


def sizes_of(manifest: Manifest, sample: SampleKind) -> NDArray[np.int64]:
    """Samples of each shard, int64 [shards]."""
    return np.array([getattr(shard, TOTALS[sample]) for shard in manifest.shards], dtype=np.int64)


class Order(Protocol):
    """Position in an epoch -> sample, for any epoch and position at once. Every epoch has `samples` positions."""

    seed: int
    samples: int

    def locate(self, epoch: int, position: int) -> tuple[int, int]:
        """(index of the shard in the manifest, sample in that shard) of the epoch's sample at `position`."""

    def occurrence(self, epoch: int, position: int) -> int:
        """How many whole passes over its source the epoch had begun before this one: 0 the first time."""


class SampleOrder:
    """The order in which every sample occurs once an epoch. An `Order`; that of a weighted epoch is in mixture.py."""

    def __init__(self, manifest: Manifest, seed: int, shuffle_shards: int, sample: SampleKind = "image") -> None:
        self.seed, self.shuffle_shards, self.digest = seed, shuffle_shards, manifest.digest()
        self.sizes = sizes_of(manifest, sample)
        self.samples = int(self.sizes.sum())
        self._shards_of_epoch = lru_cache(maxsize=2)(self._permute_shards)
        self._rows_of_block = lru_cache(maxsize=2)(self._permute_block)

    def _permute_shards(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Shards in the epoch's order, and the position at which each begins (and, last, the end)."""
        shards = generator_of(self.digest, self.seed, epoch, "shards").permutation(len(self.sizes))
        return shards, np.concatenate([[0], np.cumsum(self.sizes[shards])])

    def _permute_block(self, epoch: int, block: int) -> NDArray[np.int64]:
        """The block's samples, as positions relative to its begin, in the epoch's order."""
        _, begins = self._shards_of_epoch(epoch)
        first = block * self.shuffle_shards
        last = min(first + self.shuffle_shards, len(self.sizes))
        return generator_of(self.digest, self.seed, epoch, "block", block).permutation(begins[last] - begins[first])

    def locate(self, epoch: int, position: int) -> tuple[int, int]:
        """(index of the shard in the manifest, sample in that shard) of the epoch's sample at `position`."""
        shards, begins = self._shards_of_epoch(epoch)
        place = int(np.searchsorted(begins, position, side="right")) - 1
        block = place // self.shuffle_shards
        begin = begins[block * self.shuffle_shards]
        position = int(begin + self._rows_of_block(epoch, block)[position - begin])
        place = int(np.searchsorted(begins, position, side="right")) - 1
        return int(shards[place]), int(position - begins[place])

    def occurrence(self, epoch: int, position: int) -> int:  # noqa: ARG002  # an Order's signature
        return 0


class MicroBatches:
    """This rank's micro batches from a step on: lists of (epoch, position). A batch sampler for torch's DataLoader.

    A step's global batch is cut into `accumulation` parts, each part into one micro batch a rank, in rank order: the
    same samples make the same global batch at any world size. Every rank has as many steps.
    """

    def __init__(
        self, samples: int, global_size: int, micro_size: int, rank: int, world_size: int, first_step: int, steps: int
    ) -> None:
        assert samples >= global_size, "Batch.check_samples comes before"
        self.steps_per_epoch = samples // global_size
        self.global_size, self.micro_size, self.rank, self.world_size = global_size, micro_size, rank, world_size
        self.first_step, self.steps = first_step, steps

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        stride = self.micro_size * self.world_size
        for step in range(self.first_step, self.steps):
            epoch, step_of_epoch = divmod(step, self.steps_per_epoch)
            for part in range(0, self.global_size, stride):
                begin = step_of_epoch * self.global_size + part + self.rank * self.micro_size
                yield [(epoch, position) for position in range(begin, begin + self.micro_size)]

    def __len__(self) -> int:
        return (self.steps - self.first_step) * (self.global_size // (self.micro_size * self.world_size))
