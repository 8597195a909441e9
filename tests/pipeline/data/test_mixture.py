"""Weighted epochs: how often samples occur, that sources are interleaved, and that any position is reached at once."""

from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import Data, parse_recipe
from pipeline.data.manifest import Manifest, Shard, load_manifest
from pipeline.data.mixture import WeightedOrder, build_order
from pipeline.data.order import MicroBatches, SampleOrder
from pipeline.data.stream import SampleStream
from tests.support.tiny_shards import tiny_manifest

Shards = list[tuple[str, int]]


def manifest_of(shards: Shards) -> Manifest:
    listed = [Shard(f"{i}.tar", f"{i}.npy", name, 1, f"digest {i}", n, n) for i, (name, n) in enumerate(shards)]
    return Manifest(Path("none"), tuple(listed))


def epoch_of(order: WeightedOrder, epoch: int) -> list[tuple[int, int, int]]:
    """(shard, row, occurrence) of each position."""
    positions = range(order.samples)
    return [(*order.locate(epoch, position), order.occurrence(epoch, position)) for position in positions]


some_shards = st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 9)), min_size=1, max_size=12)
some_weights = st.fixed_dictionaries({name: st.sampled_from([0, 0.5, 1, 1.25, 2, 3.7]) for name in "abc"})


@settings(max_examples=80, deadline=None)
@given(some_shards, some_weights, st.integers(0, 3), st.integers(1, 14))
def test_every_epoch_holds_each_sample_floor_of_its_weight_times_and_the_rest_in_turns(
    shards: Shards, weights: dict[str, float], seed: int, shuffle_shards: int
) -> None:
    sizes = Counter()
    for name, size in shards:
        sizes[name] += size
    for name in sizes:
        if weights[name] and not round(weights[name] * sizes[name]):
            weights[name] = 1.0
    order = WeightedOrder(manifest_of(shards), seed, shuffle_shards, weights)
    passes = {name: int(weights[name]) for name in sizes}
    rest = {name: round((weights[name] - passes[name]) * sizes[name]) for name in sizes}
    assert order.samples == sum(passes[name] * sizes[name] + rest[name] for name in sizes)
    total = Counter()
    for epoch in range(5):
        found = epoch_of(order, epoch)
        assert len(set(found)) == len(found)  # no occurrence twice
        for shard, row, occurrence in found:
            name, size = shards[shard]
            assert 0 <= row < size and 0 <= occurrence <= passes[name]
        counts = Counter((shard, row) for shard, row, _ in found)
        total += counts
        for shard, (name, size) in enumerate(shards):
            for row in range(size):
                occurrences = sorted(o for s, r, o in found if (s, r) == (shard, row))
                assert occurrences == list(range(counts[shard, row]))
                assert passes[name] <= counts[shard, row] <= passes[name] + 1
        for name in sizes:
            extra = sum(occurrence == passes[name] for shard, _, occurrence in found if shards[shard][0] == name)
            assert extra == rest[name]
    for name in sizes:
        counts = [total[s, r] for s, (of, size) in enumerate(shards) if of == name for r in range(size)]
        assert max(counts) - min(counts) <= 1  # over any number of epochs, none is ahead of another by more than one


@pytest.mark.parametrize("weight", [0.3, 1.6])
def test_every_sample_has_the_same_chance_in_an_epoch(weight: float) -> None:
    """Over seeds, a sample occurs as often as its weight says, at the begin of its shard as at the end."""
    shards, seeds = [("a", 7), ("b", 5), ("a", 13)], 400
    counts = Counter()
    for seed in range(seeds):
        order = WeightedOrder(manifest_of(shards), seed, 2, {"a": weight})
        counts += Counter((shard, row) for shard, row, _ in epoch_of(order, 3))
    for shard, row in [(0, row) for row in range(7)] + [(2, row) for row in range(13)]:
        deviation = (weight % 1 * (1 - weight % 1) / seeds) ** 0.5
        assert abs(counts[shard, row] / seeds - weight) < 4.5 * deviation
    assert all(counts[1, row] == seeds for row in range(5))


def test_a_small_source_is_spread_evenly_over_the_epoch() -> None:
    """One shard of captions by people among 60 of the web's: no stretch of the epoch has more than its share."""
    shards = [("web", 50)] * 60 + [("coco", 90)]
    order = WeightedOrder(manifest_of(shards), 1, 4, {"coco": 2.0})
    found = epoch_of(order, 0)
    blocks = -(-62 // 4)
    per_block = [Counter(shards[shard][0] for shard, _, _ in part) for part in split(found, blocks)]
    assert all(abs(each["coco"] - 180 / blocks) <= 2 for each in per_block)
    first, second = ({row for shard, row, occurrence in found if shard == 60 and occurrence == o} for o in (0, 1))
    assert first == second == set(range(90))
    places = [position for position, (shard, _, occurrence) in enumerate(found) if shard == 60 and occurrence == 0]
    assert max(places) < len(found) * 0.6  # the second pass begins after the first
    rows = [row for shard, row, occurrence in found if shard == 60 and occurrence == 0]
    assert rows != sorted(rows) and len(set(rows[:12]) & set(range(12))) < 8  # a cut shard is no run of rows


def split(found: list[tuple[int, int, int]], parts: int) -> list[list[tuple[int, int, int]]]:
    return [found[len(found) * part // parts : len(found) * (part + 1) // parts] for part in range(parts)]


def test_reading_stays_within_a_few_shards() -> None:
    order = WeightedOrder(manifest_of([("web", 40)] * 24 + [("coco", 40)] * 3), 0, 6, {"web": 0.5, "coco": 2.0})
    found = epoch_of(order, 2)
    for position in range(0, len(found), 60):
        assert len({shard for shard, _, _ in found[position : position + 60]}) <= 2 * (6 + 2 * 2)


def test_the_order_depends_on_seed_epoch_content_and_weights_and_on_nothing_else() -> None:
    shards, weights = [("a", 7), ("b", 5), ("a", 9), ("b", 6)], {"a": 1.5}
    first = epoch_of(WeightedOrder(manifest_of(shards), 1, 2, weights), 2)
    backwards = WeightedOrder(manifest_of(shards), 1, 2, weights)
    assert [backwards.locate(2, position) for position in reversed(range(len(first)))] == [f[:2] for f in first[::-1]]
    others = [
        epoch_of(WeightedOrder(manifest_of(shards), 2, 2, weights), 2),
        epoch_of(WeightedOrder(manifest_of(shards), 1, 2, weights), 3),
        epoch_of(WeightedOrder(manifest_of([*shards, ("b", 1)]), 1, 2, weights), 2),
        epoch_of(WeightedOrder(manifest_of(shards), 1, 2, {"a": 1.6}), 2),
    ]
    assert all(other != first for other in others)


def test_weights_of_one_leave_the_order_as_it_is_without_weights() -> None:
    manifest = manifest_of([("a", 7), ("b", 5)])
    plain = SampleOrder(manifest, 3, 2)
    for weights in (None, {"a": 1.0}, {"a": 1.0, "b": 1.0}):
        order = build_order(manifest, Data(manifest=Path("none"), shuffle_shards=2, source_weights=weights), 3)
        assert [order.locate(1, p) for p in range(12)] == [plain.locate(1, p) for p in range(12)]
        assert [order.occurrence(1, p) for p in range(12)] == [0] * 12
    # Written down when weights came in: runs of before go on in the order that they began.
    assert [plain.locate(0, p) for p in range(12)] == [
        *[(1, 3), (1, 4), (0, 1), (1, 1), (0, 3), (0, 6)],
        *[(0, 2), (0, 0), (0, 5), (1, 0), (0, 4), (1, 2)],
    ]


def test_a_second_occurrence_has_another_crop_and_caption(tmp_path: Path) -> None:
    manifest = load_manifest(tiny_manifest(tmp_path, 20, captions_per_sample=3))
    data = Data(manifest=Path("none"), source_weights={"tiny": 2.0})
    order = build_order(manifest, data, 5)
    weighted = SampleStream(manifest, order, data, 16)
    plain = SampleStream(manifest, SampleOrder(manifest, 5, 2), data, 16)
    without = {sample.key: sample for sample in (plain[4, position] for position in range(20))}
    drawn = {(weighted[4, p].key, order.occurrence(4, p)): weighted[4, p] for p in range(40)}
    assert len(drawn) == 40
    for key, first in without.items():
        once, again = drawn[key, 0], drawn[key, 1]
        assert once.caption == first.caption and once.pixels_3SS.equal(first.pixels_3SS)  # as without weights
        assert not again.pixels_3SS.equal(once.pixels_3SS)
    assert sum(drawn[key, 0].caption == drawn[key, 1].caption for key in without) < 14  # 1 in 3 by chance


def test_the_middle_of_a_large_weighted_epoch_is_reached_without_what_is_before() -> None:
    shards = [("web", 10_000)] * 2_000 + [("coco", 1_000)] * 50
    order = WeightedOrder(manifest_of(shards), 0, 8, {"web": 0.5, "coco": 3.0})
    batches = MicroBatches(order.samples, 2_000, 500, 2, 4, 27_777, 100_000)
    [micro] = islice(batches, 1)
    assert len({order.locate(*place) for place in micro}) == 500
    assert order._rows_of_block.cache_info().misses <= 2 and order._rows_of_pass.cache_info().misses < 40


@pytest.mark.parametrize(
    ("data", "named"),
    [
        ({"source_weights": {"coco": -1}}, "data.source_weights.coco -1"),
        ({"source_weights": {"coco": "much"}}, "data.source_weights.coco 'much'"),
        ({"source_weights": {"coco": float("inf")}}, "data.source_weights.coco inf"),
    ],
)
def test_a_weight_that_cannot_be_is_named(data: dict[str, object], named: str) -> None:
    content = {"stage": 1, "vision": {"name": "x"}, "batch": {"global_size": 2, "micro_size": 2}}
    with pytest.raises(ValueError, match=named):
        parse_recipe(content | {"run": {"output": "x", "steps": 1}, "data": {"manifest": "x", **data}})


def test_weights_of_sources_that_are_not_there_or_of_no_sample_are_refused() -> None:
    manifest = manifest_of([("coco", 7), ("cc3m", 5)])
    with pytest.raises(ValueError, match=r"data\.source_weights\.laion: .*there are cc3m, coco$"):
        build_order(manifest, Data(manifest=Path("none"), source_weights={"laion": 1.0}), 0)
    with pytest.raises(ValueError, match=r"data\.source_weights\.coco 0\.01: none of its 7 samples"):
        build_order(manifest, Data(manifest=Path("none"), source_weights={"coco": 0.01}), 0)
