"""The order of an epoch in which sources are mixed by weight: a pure function of (seed, epoch, manifest, weights).

The rule. A source of N samples and weight w has, in every epoch, `floor(w)` whole passes over its samples and
T = round((w - floor(w)) * N) samples more; a sample's occurrence 0, 1, ... is the pass that it comes in. Those T are
the next T of one fixed random cycle of the source's samples (shards permuted, rows permuted within), which starts at a
random place: each sample has the same chance T / N, and in any E epochs two samples' occurrences differ by at most one
(with w = 0.5, each sample once in two epochs). Weight 0 leaves a source out. So every epoch has the same number of
samples, the sum of floor(w) * N + T, and a sample occurs w times an epoch on average, to within 1 / (2 N). Where all
weights are 1, the order is order.py's.

Interleaving. A source's passes follow each other, each with its shards permuted again, as one sequence of (parts of)
shards. The epoch is cut into as many blocks as make about `shuffle_shards` such parts a block, and each block takes
an equal stretch of each source's sequence and permutes the samples it got: to within a sample, every block has the
same mixture, and reading stays within about `shuffle_shards` shards and one more a source.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from pipeline.config import Data, SampleKind
from pipeline.data.manifest import Manifest
from pipeline.data.order import Order, SampleOrder, generator_of, sizes_of


@dataclass(frozen=True)
class Source:
    """A source's shards, as indices in the manifest; an epoch has `passes` whole passes and `rest` samples more."""

    name: str
    shards: NDArray[np.int64]
    samples: int
    passes: int
    rest: int

    @property
    def samples_of_epoch(self) -> int:
        return self.passes * self.samples + self.rest


def _weigh(name: str, shards: list[int], sizes: NDArray[np.int64], weight: float) -> Source:
    samples, passes = int(sizes[shards].sum()), int(weight)
    source = Source(name, np.array(shards), samples, passes, round((weight - passes) * samples))
    if weight and samples and not source.samples_of_epoch:
        raise ValueError(
            f"data.source_weights.{name} {weight}: none of its {samples} samples would occur; set a larger weight, or 0"
        )
    return source


@dataclass(frozen=True)
class _Plan:
    """An epoch before samples are permuted.

    `parts` is int64 [parts, 4]: (shard, occurrence, first place in the shard's permutation, samples), one source after
    the other; `part_begins` is where each begins among all samples laid end to end. Block b takes from source s
    those from `cuts[b, s]` up to `cuts[b + 1, s]`, and begins at position `block_begins[b]` of the epoch.
    """

    parts: NDArray[np.int64]
    part_begins: NDArray[np.int64]
    cuts: NDArray[np.int64]
    block_begins: NDArray[np.int64]


class WeightedOrder:
    """The order of weighted epochs. An `Order`."""

    def __init__(
        self,
        manifest: Manifest,
        seed: int,
        shuffle_shards: int,
        weights: dict[str, float],
        sample: SampleKind = "image",
    ) -> None:
        self.seed, self.shuffle_shards, self.digest = seed, shuffle_shards, manifest.digest()
        self.sizes = sizes_of(manifest, sample)
        shards: dict[str, list[int]] = {}
        for index, shard in enumerate(manifest.shards):
            shards.setdefault(shard.source, []).append(index)
        weighed = [_weigh(name, shards[name], self.sizes, weights.get(name, 1.0)) for name in sorted(shards)]
        self.sources = [source for source in weighed if source.samples_of_epoch]
        self.samples = sum(source.samples_of_epoch for source in self.sources)
        self.passes = np.zeros_like(self.sizes)
        for source in self.sources:
            self.passes[source.shards] = source.passes
        self._plan_of = lru_cache(maxsize=2)(self._make_plan)
        self._rows_of_block = lru_cache(maxsize=2)(self._permute_block)
        self._rows_of_pass = lru_cache(maxsize=4 * shuffle_shards)(self._permute_pass)

    def _whole_pass(self, source: Source, epoch: int, occurrence: int) -> NDArray[np.int64]:
        shards = generator_of(self.digest, self.seed, epoch, source.name, occurrence).permutation(source.shards)
        zeros = np.zeros_like(shards)
        return np.stack([shards, zeros + occurrence, zeros, self.sizes[shards]], axis=1)

    def _rest(self, source: Source, epoch: int) -> NDArray[np.int64]:
        """The parts of shards that hold the epoch's stretch of the source's cycle, in an order of the epoch's own."""
        of_cycle = generator_of(self.digest, self.seed, source.name, "cycle")
        shards = np.tile(of_cycle.permutation(source.shards), 2)
        start = (int(of_cycle.integers(source.samples)) + epoch * source.rest) % source.samples
        ends = np.cumsum(self.sizes[shards])
        begins = ends - self.sizes[shards]
        low, high = np.maximum(begins, start), np.minimum(ends, start + source.rest)
        parts = np.stack([shards, np.full_like(shards, source.passes), low - begins, high - low], axis=1)[high > low]
        return generator_of(self.digest, self.seed, epoch, source.name, source.passes).permutation(parts)

    def _make_plan(self, epoch: int) -> _Plan:
        parts = []
        for source in self.sources:
            parts += [self._whole_pass(source, epoch, occurrence) for occurrence in range(source.passes)]
            parts += [self._rest(source, epoch)] if source.rest else []
        joined = np.concatenate(parts)
        blocks = np.arange(-(-len(joined) // self.shuffle_shards) + 1)
        totals = np.array([source.samples_of_epoch for source in self.sources])
        shares = blocks[:, None] * totals // blocks[-1]
        cuts = shares + np.cumsum(totals) - totals
        return _Plan(joined, np.cumsum(joined[:, 3]) - joined[:, 3], cuts, shares.sum(axis=1))

    def _permute_block(self, epoch: int, block: int) -> NDArray[np.int64]:
        begins = self._plan_of(epoch).block_begins
        return generator_of(self.digest, self.seed, epoch, "mixed block", block).permutation(
            begins[block + 1] - begins[block]
        )

    def _permute_pass(self, shard: int, *of: object) -> NDArray[np.int64]:
        """The shard's rows in the order in which they come `of` an (epoch, occurrence), or without one of the cycle."""
        return generator_of(self.digest, self.seed, "rows", shard, *of).permutation(self.sizes[shard])

    def _part_at(self, epoch: int, position: int) -> tuple[int, int, int]:
        """(shard, occurrence, place in the shard's permutation) of the epoch's sample at `position`."""
        plan = self._plan_of(epoch)
        block = int(np.searchsorted(plan.block_begins, position, side="right")) - 1
        inner = self._rows_of_block(epoch, block)[position - plan.block_begins[block]]
        ends = np.cumsum(plan.cuts[block + 1] - plan.cuts[block])
        source = int(np.searchsorted(ends, inner, side="right"))
        place = plan.cuts[block + 1, source] - (ends[source] - inner)
        part = int(np.searchsorted(plan.part_begins, place, side="right")) - 1
        shard, occurrence, first, _ = plan.parts[part]
        return int(shard), int(occurrence), int(first + place - plan.part_begins[part])

    def locate(self, epoch: int, position: int) -> tuple[int, int]:
        shard, occurrence, place = self._part_at(epoch, position)
        of_pass = (epoch, occurrence) if occurrence < self.passes[shard] else ()
        return shard, int(self._rows_of_pass(shard, *of_pass)[place])

    def occurrence(self, epoch: int, position: int) -> int:
        return self._part_at(epoch, position)[1]


def build_order(manifest: Manifest, settings: Data, seed: int) -> Order:
    """The order of the data's epochs. Raises ValueError naming a weight of a source that the manifest does not have."""
    sources = {shard.source for shard in manifest.shards}
    settings.check_sources(sources)
    weights = settings.source_weights or {}
    if all(weights.get(name, 1.0) == 1.0 for name in sources):
        return SampleOrder(manifest, seed, settings.shuffle_shards, settings.sample)
    return WeightedOrder(manifest, seed, settings.shuffle_shards, weights, settings.sample)
