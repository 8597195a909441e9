"""The order of samples: every sample once an epoch, the same global batches at any world size, reached at any step."""

from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import Batch
from pipeline.data.manifest import Manifest, Shard
from pipeline.data.order import MicroBatches, SampleOrder


def manifest_of(sizes: list[int]) -> Manifest:
    shards = [Shard(f"{i}.tar", f"{i}.npy", "x", 1, f"digest {i}", size, size) for i, size in enumerate(sizes)]
    return Manifest(Path("none"), tuple(shards))


def epoch_of(order: SampleOrder, epoch: int, samples: int) -> list[tuple[int, int]]:
    return [order.locate(epoch, position) for position in range(samples)]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(0, 5), st.integers(0, 3), st.integers(1, 14))
def test_an_epoch_is_a_permutation_of_all_samples(sizes: list[int], seed: int, epoch: int, shuffle_shards: int) -> None:
    found = epoch_of(SampleOrder(manifest_of(sizes), seed, shuffle_shards), epoch, sum(sizes))
    assert sorted(found) == [(shard, row) for shard, size in enumerate(sizes) for row in range(size)]


def test_reading_stays_within_a_few_shards() -> None:
    sizes, shuffle_shards = [10] * 12, 3
    found = epoch_of(SampleOrder(manifest_of(sizes), 1, shuffle_shards), 0, 120)
    for block in range(0, 120, 10 * shuffle_shards):
        assert len({shard for shard, _ in found[block : block + 10 * shuffle_shards]}) == shuffle_shards


def test_the_order_depends_on_seed_epoch_and_content_and_on_nothing_else() -> None:
    sizes = [7, 5, 9, 4, 6]
    first = epoch_of(SampleOrder(manifest_of(sizes), 1, 2), 0, 31)
    backwards = SampleOrder(manifest_of(sizes), 1, 2)
    assert [backwards.locate(0, position) for position in reversed(range(31))] == first[::-1]
    others = [
        epoch_of(SampleOrder(manifest_of(sizes), 2, 2), 0, 31),
        epoch_of(SampleOrder(manifest_of(sizes), 1, 2), 1, 31),
        epoch_of(SampleOrder(manifest_of([*sizes, 1]), 1, 2), 0, 31),
    ]
    assert all(other != first for other in others)


def test_every_block_of_every_epoch_is_shuffled_anew() -> None:
    def rows(seed: int, epoch: int) -> list[list[int]]:
        """The rows of two blocks of one shard each, in the order in which they are read."""
        found = epoch_of(SampleOrder(manifest_of([30, 30]), seed, 1), epoch, 60)
        return [[row for _, row in found[:30]], [row for _, row in found[30:]]]

    orders = [*rows(0, 0), *rows(0, 1), *rows(0, 2), *rows(1, 0)]
    assert len({tuple(order) for order in orders}) == 8 and list(range(30)) not in orders


@pytest.mark.parametrize("accumulation", [1, 2])
def test_global_batches_are_the_same_at_any_world_size(accumulation: int) -> None:
    global_size, steps, samples = 8, 9, 21  # 2 steps an epoch

    def global_batches(world_size: int) -> list[set[tuple[int, int]]]:
        micro_size = global_size // accumulation // world_size
        ranks = [
            list(MicroBatches(samples, global_size, micro_size, rank, world_size, 0, steps))
            for rank in range(world_size)
        ]
        assert {len(batches) for batches in ranks} == {steps * accumulation}
        assert all(len(micro) == micro_size for batches in ranks for micro in batches)
        parts = [slice(step * accumulation, (step + 1) * accumulation) for step in range(steps)]
        return [{place for batches in ranks for micro in batches[part] for place in micro} for part in parts]

    alone = global_batches(1)
    assert all(len(batch) == global_size for batch in alone)
    assert alone == global_batches(2) == global_batches(4)
    places = [place for batch in alone for place in batch]
    assert len(set(places)) == len(places)  # nothing twice, until an epoch ends
    assert {epoch for epoch, _ in places} == {0, 1, 2, 3, 4} and max(position for _, position in places) == 15


def test_joined_micro_batches_keep_the_order_of_the_ranks() -> None:
    [alone] = MicroBatches(8, 8, 8, 0, 1, 0, 1)
    assert [
        place for rank in range(4) for [*places] in MicroBatches(8, 8, 2, rank, 4, 0, 1) for place in places
    ] == alone


@pytest.mark.parametrize("first_step", [0, 1, 5, 8])
def test_resuming_continues_where_it_stopped(first_step: int) -> None:
    whole = list(MicroBatches(21, 8, 2, 1, 2, 0, 9))
    resumed = MicroBatches(21, 8, 2, 1, 2, first_step, 9)
    assert list(resumed) == whole[first_step * 2 :] and len(resumed) == len(whole) - first_step * 2


def test_a_global_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(ValueError, match=r"batch\.global_size 8: the manifest has only 7 samples"):
        Batch(global_size=8, micro_size=8).check_samples(7)
    Batch(global_size=8, micro_size=8).check_samples(8)


def test_the_middle_of_a_large_data_set_is_reached_without_what_is_before() -> None:
    order = SampleOrder(manifest_of([10_000] * 2_000), 0, 8)
    batches = MicroBatches(20_000_000, 2_000, 500, 2, 4, 7_777, 10_000)
    [micro] = islice(batches, 1)
    assert len({order.locate(*place) for place in micro}) == 500
    assert order._rows_of_block.cache_info().misses <= 2  # of 250 blocks
