"""The loader, whole: what the ranks' loaders give together in an epoch, at every number of ranks and workers."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
import torch

from data_prep.index import index_shards
from pipeline.config import Recipe, parse_recipe
from pipeline.data.loader import build_loader, enlarged, open_source
from pipeline.data.manifest import Manifest, load_manifest
from pipeline.data.mixture import build_order
from pipeline.data.order import MicroBatches
from pipeline.data.stream import Sample
from tests.support.tiny_shards import write_tiny_shards

WEB, HUMAN, GLOBAL_SIZE = 41, 12, 12  # 12 is divided by 1, 2, 3 and 4 ranks
WEIGHTS = {"web": 0.5, "human": 2.25}
Ids = tuple[tuple[str, str, int], ...]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_tiny_shards(folder / "web", WEB, samples_per_shard=8, source="web")
    write_tiny_shards(folder / "human", HUMAN, 1, samples_per_shard=8, captions_per_sample=3, source="human")
    index_shards([folder / "web", folder / "human"], folder / "train.json")
    return folder / "train.json"


def recipe_of(manifest: Path, world_size: int, num_workers: int, **data: Any) -> Recipe:
    data = {"manifest": str(manifest), "num_workers": num_workers, "shuffle_shards": 3, **data}
    batch = {"global_size": GLOBAL_SIZE, "micro_size": GLOBAL_SIZE // world_size}
    run = {"output": "none", "steps": 9}
    return parse_recipe(
        {"stage": 1, "vision": {"name": "x", "image_size_px": 8}, "batch": batch, "run": run, "data": data}
    )


def ids_of(samples: Sequence[Sample]) -> Ids:
    """In place of a collation: key, caption and a checksum that tells one crop from another."""
    return tuple((sample.key, sample.caption, crc32(sample.pixels_3SS.numpy().tobytes())) for sample in samples)


def global_batches(recipe: Recipe, world_size: int, first_step: int = 0) -> list[list[tuple[str, str, int]]]:
    """What the ranks' real loaders give, joined in rank order, a list a step."""
    source = open_source(recipe, world_size)
    loaders: Any = [
        build_loader(recipe, source, ids_of, rank, world_size, first_step)  # type: ignore[arg-type]
        for rank in range(world_size)
    ]
    ranks: list[list[Ids]] = [list(loader) for loader in loaders]
    assert {len(rank) for rank in ranks} == {recipe.run.steps - first_step}
    return [[each for micro in step for each in micro] for step in zip(*ranks, strict=True)]


@pytest.fixture(scope="module", params=[None, WEIGHTS], ids=["each once", "weighted"])
def weights(request: pytest.FixtureRequest) -> dict[str, float] | None:
    return request.param


@pytest.fixture(scope="module")
def alone(manifest: Path, weights: dict[str, float] | None) -> list[list[tuple[str, str, int]]]:
    return global_batches(recipe_of(manifest, 1, 0, source_weights=weights), 1)


def test_an_epoch_holds_each_sample_as_often_as_it_should_but_for_the_tail(
    alone: list[list[tuple[str, str, int]]], weights: dict[str, float] | None
) -> None:
    samples = WEB + HUMAN if weights is None else round(WEB / 2) + 2 * HUMAN + HUMAN // 4
    steps = samples // GLOBAL_SIZE
    for epoch in range(9 // steps):
        keys = Counter(key for batch in alone[epoch * steps : (epoch + 1) * steps] for key, _, _ in batch)
        assert keys.total() == steps * GLOBAL_SIZE  # the tail is samples mod 12
        if weights is None:
            assert set(keys.values()) == {1} and len(keys) == 48
        else:
            assert max(keys[key] for key in keys if key.startswith("web")) == 1
            assert max(keys[key] for key in keys if key.startswith("human")) <= 3
            assert sum(keys[key] for key in keys if key.startswith("human")) >= 27 - samples % GLOBAL_SIZE
    drawn = [each for batch in alone for each in batch]
    assert (
        len(set(drawn)) >= len(drawn) - 2
    )  # a sample that comes again has another crop, but for small pictures' chance


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than this machine has cores
@pytest.mark.parametrize("num_workers", [0, 1, 2, 3])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_real_loaders_of_any_ranks_and_workers_give_the_same_global_batches(
    manifest: Path,
    alone: list[list[tuple[str, str, int]]],
    weights: dict[str, float] | None,
    world_size: int,
    num_workers: int,
) -> None:
    """Not only each sample once: the same samples in the same order with the same crops and captions."""
    assert global_batches(recipe_of(manifest, world_size, num_workers, source_weights=weights), world_size) == alone


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize(("world_size", "num_workers"), [(1, 0), (2, 3), (3, 0), (4, 1)])
def test_a_resume_at_another_world_size_goes_on_where_it_stopped(
    manifest: Path,
    alone: list[list[tuple[str, str, int]]],
    weights: dict[str, float] | None,
    world_size: int,
    num_workers: int,
) -> None:
    recipe = recipe_of(manifest, world_size, num_workers, source_weights=weights)
    for first_step in (1, 5, 8) if num_workers == 0 else (5,):
        assert global_batches(recipe, world_size, first_step) == alone[first_step:]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_places_of_an_epoch_are_dealt_to_ranks_without_gap_or_double(
    manifest: Path, weights: dict[str, float] | None, world_size: int
) -> None:
    """The pure part, at every number of ranks and of accumulated passes; workers have no say in it."""
    recipe = recipe_of(manifest, 1, 0, source_weights=weights)
    source = open_source(recipe, 1)
    assert isinstance(source, Manifest)
    order = build_order(source, recipe.data, recipe.seed)
    steps = order.samples // GLOBAL_SIZE
    for passes in (passes for passes in (1, 2, 3) if GLOBAL_SIZE % (passes * world_size) == 0):
        micro = GLOBAL_SIZE // world_size // passes
        ranks = [MicroBatches(order.samples, GLOBAL_SIZE, micro, r, world_size, 0, 9) for r in range(world_size)]
        dealt = [place for rank in ranks for batch in islice(rank, steps * passes) for place in batch]
        assert sorted(dealt) == [(0, position) for position in range(steps * GLOBAL_SIZE)]
        located = {(*order.locate(*place), order.occurrence(*place)) for place in dealt}
        assert len(located) == steps * GLOBAL_SIZE


def test_a_weighted_epoch_smaller_than_a_global_batch_is_refused(manifest: Path) -> None:
    recipe = recipe_of(manifest, 1, 0, source_weights={"web": 0, "human": 0.5})
    with pytest.raises(ValueError, match=r"batch\.global_size 12: an epoch with these source_weights has only 6"):
        open_source(recipe, 1)


@pytest.mark.parametrize("on_gpu", [True, False])
def test_the_loader_of_a_rank_on_a_gpu_pins(manifest: Path, monkeypatch: pytest.MonkeyPatch, on_gpu: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: on_gpu)
    recipe = recipe_of(manifest, 1, 0)
    loader: Any = build_loader(recipe, open_source(recipe, 1), ids_of, 0, 1, 0)  # type: ignore[arg-type]
    assert loader.pin_memory == on_gpu


def test_training_above_the_stored_size_is_one_warning(manifest: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = load_manifest(manifest)
    stored = {shard.source: shard.short_side_px or 0 for shard in found.shards}
    assert all(32 <= size_px <= 64 for size_px in stored.values()), "the sizes of tiny pictures"
    least = min(shard.short_side_px or 0 for shard in found.shards)
    assert enlarged(found, least) is None
    warning = enlarged(found, 65)
    assert warning and warning.startswith(
        f"vision.image_size_px 65: {WEB + HUMAN} of {WEB + HUMAN} pictures are stored "
    )
    assert warning.endswith("download them again with --max-side-px 65 or more")
    only_web = [replace(each, short_side_px=50 if each.source == "web" else 64) for each in found.shards]
    assert f": {WEB} of {WEB + HUMAN} pictures" in (enlarged(Manifest(found.root, tuple(only_web)), 64) or "")
    unknown = [replace(each, short_side_px=None) for each in found.shards]
    assert enlarged(Manifest(found.root, tuple(unknown)), 65) is None, "manifests of earlier versions"
    with caplog.at_level(logging.WARNING):
        recipe = recipe_of(manifest, 2, 0)
        large = recipe.model_copy(update={"vision": recipe.vision.model_copy(update={"image_size_px": 80})})
        for rank in range(2):
            build_loader(large, open_source(large, 2), ids_of, rank, 2, 0)  # type: ignore[arg-type]
    assert [record.message for record in caplog.records] == [enlarged(found, 80)]
