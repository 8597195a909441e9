"""Planned memory against measured: what real steps keep for the way back, what real engines hold, real files."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from pipeline.config import Recipe, load_recipe, parse_recipe
from pipeline.cost.dry_run import LANGUAGE_BACKWARD, UnweightedRecipe, on_lines
from pipeline.cost.estimate import NEXT_BATCH, Assumptions, Planner
from pipeline.cost.gpus import gpu_named
from pipeline.cost.states import FP32, bridge_states, sharded_language, tensors_of
from pipeline.cost.unweighted import caption_batch
from pipeline.cost.zero_policy import read_policy
from pipeline.training import checkpoint
from pipeline.training.engine import resolve_ds_config
from pipeline.training.parts import build_parts
from pipeline.training.task import StepPlace
from tests.support.gloo_ranks import run_on_ranks
from tests.support.tiny_runs import ROOT, train_here, write_recipe
from tests.support.tiny_shards import tiny_manifest
from tests.support.tiny_towers import (
    save_tiny_bert,
    save_tiny_opt,
    save_tiny_t5,
    save_tiny_vision,
    tiny_recipe,
)

KINDS: dict[str, tuple[int, str | None, tuple[int, int]]] = {
    "stage 1": (1, None, (0, 9)),
    "opt": (2, "opt", (0, 9)),
    "t5": (2, "t5", (4, 7)),
}
TOLERANCE = 0.10


@pytest.mark.parametrize(("kind", "trained"), [("opt", False), ("t5", True)])
def test_two_runs_give_the_memory_of_all_sizes_to_the_byte(towers: Path, kind: str, trained: bool) -> None:
    recipe = recipe_of(towers, kind, dropout=0.1)
    if trained:
        more = {"trained": True, "activation_checkpointing": True}
        recipe = parse_recipe(recipe.model_dump(mode="json") | {"vision": recipe.vision.model_dump() | more})
    planner = Planner(recipe, resolve_ds_config(recipe, 2), gpu_named("a100-40gb"), Assumptions(2, 8, 0.4, 12, 50e9))
    runs = {size: planner.dry_run(size) for size in (2, 6)}
    for size in (5, 37):
        found, own = on_lines(size, runs), planner.dry_run(size)
        assert found is not None and (found.peak, found.vision_peak) == (own.peak, own.vision_peak)
        assert abs(sum(planner.memory(found).values()) - planner.total_bytes(size)) <= 1  # a share is rounded
    assert on_lines(3, {2: runs[2], 6: replace(runs[6], moments=runs[6].moments[:-1])}) is None
    with mock.patch.object(Planner, "total_bytes", side_effect=AssertionError("a third run")):
        assert planner.largest_micro() > 1000


@pytest.fixture(scope="module")
def medium(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Towers of eight times the tiny ones' width."""
    folder = tmp_path_factory.mktemp("medium")
    save_tiny_vision(folder / "vision", depth=4, width=256)
    save_tiny_bert(folder / "bert", width=256, num_layers=6)
    save_tiny_opt(folder / "opt", width=256)
    save_tiny_t5(folder / "t5", width=256)
    return folder


def recipe_of(towers: Path, kind: str, **qformer: Any) -> Recipe:
    stage, language, _ = KINDS[kind]
    content: dict[str, Any] = tiny_recipe(towers, towers / "none.json", towers / "run", stage, language)
    content["qformer"] |= {"dropout": 0.0, **qformer}  # a CPU's dropout keeps four times what a GPU's does
    return parse_recipe(content)


def bytes_kept_for_backward(task: Any, batch: Any) -> int:
    """Of every storage that autograd keeps, weights apart."""
    weights = {p.untyped_storage().data_ptr() for p in task.bridge.parameters()}
    if task.towers.language:
        weights |= {p.untyped_storage().data_ptr() for p in task.towers.language.model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = task(batch, StepPlace(0, 1.0, batch.target.ids.shape[1], 0))["loss"]
    assert loss.isfinite()
    return sum(kept.values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", ["tiny", "medium"])
def test_activations_are_planned_within_a_tenth_of_what_autograd_keeps(
    towers: Path, medium: Path, size: str, kind: str, precision: str
) -> None:
    recipe = recipe_of(towers if size == "tiny" else medium, kind, precision=precision)
    lengths, micro_size = KINDS[kind][2], 24
    task, _ = build_parts(recipe, "cpu")
    measured = bytes_kept_for_backward(task.train(), caption_batch(recipe, micro_size, lengths))
    planned = UnweightedRecipe(recipe).run(micro_size, lengths)
    assert sum(planned.kept.values()) == pytest.approx(measured, rel=TOLERANCE)
    assert planned.peak >= sum(planned.kept.values())


def test_memory_without_weights_grows_with_the_ranks_as_the_joined_batch_does(towers: Path) -> None:
    """Similarities of B images with W*B texts, and the other way round, B*Q*W*B values each."""
    recipe = recipe_of(towers, "stage 1")
    run, micro_size = UnweightedRecipe(recipe), 16
    kept = [sum(run.run(micro_size, (0, 9), ranks).kept.values()) for ranks in (8, 16, 32)]
    queries = recipe.qformer.num_query_tokens
    assert kept[2] - kept[1] == 2 * (kept[1] - kept[0])
    assert kept[1] - kept[0] >= 8 * 2 * micro_size * queries * micro_size * FP32


def test_the_next_batchs_pass_through_the_vision_tower_is_counted(towers: Path) -> None:
    """It has a stream of its own, and torch's allocator gives the blocks of one stream to no other."""
    recipe = recipe_of(towers, "stage 1")
    policy, micro_size = resolve_ds_config(recipe, 2), recipe.batch.micro_size
    planner = Planner(recipe, policy, gpu_named("a100-40gb"), Assumptions(2, 8, 0.4, 12, 200e9))
    run = planner.dry_run(micro_size)
    parts = planner.memory(run)
    size_px, width = recipe.vision.image_size_px, planner.unweighted.task.bridge.qformer.shape.image_width
    patches = (size_px // 8) ** 2
    assert parts[NEXT_BATCH] == run.vision_peak >= FP32 * micro_size * (3 * size_px**2 + patches * width)
    assert sum(parts.values()) == planner.total_bytes(micro_size) > run.peak + run.vision_peak


def test_lora_is_counted_among_what_is_trained(towers: Path) -> None:
    plans = []
    for edits in ({}, {"rank": 8, "targets": ["q_proj", "v_proj"]}):
        content: dict[str, Any] = tiny_recipe(towers, towers / "none.json", towers / "run", 2, "opt")
        content["language"] |= {"lora": edits}
        recipe = parse_recipe(content)
        plans.append(
            Planner(recipe, resolve_ds_config(recipe, 2), gpu_named("a100-40gb"), Assumptions(2, 8, 0.4, 12, 200e9))
        )
    plain, trained = plans
    elements = 2 * 2 * 8 * (32 + 32)  # two layers, queries and values, A and B
    assert trained.bridge.elements - plain.bridge.elements == elements
    assert trained.language == plain.language
    parts = [each.memory(each.dry_run(2)) for each in plans]
    copied = elements // 2  # ZeRO-1 holds all gradients, and its rank's part of them twice
    assert parts[1]["bridge, gradients"] - parts[0]["bridge, gradients"] == FP32 * (elements + copied)
    assert parts[1]["activations, language model"] > parts[0]["activations, language model"]
    lengths = (0, 9)
    backward = [each.unweighted.run(2, lengths).flops[LANGUAGE_BACKWARD] for each in plans]
    assert backward[1] > backward[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planned")
    tiny_manifest(folder / "data", 40, samples_per_shard=16)
    for name in ("zero1", "zero2", "zero2_offload", "zero3"):
        policy = json.loads((ROOT / "ds_configs" / f"{name}.json").read_text())
        policy["zero_optimization"] |= {"reduce_bucket_size": 1_000_000}
        (folder / f"{name}.json").write_text(json.dumps(policy))
    return folder


def arguments_of(folder: Path, towers: Path, zero: str, layout: str) -> list[str]:
    stage, language = (1, None) if layout == "replicated" else (2, "opt")
    run = {"zero": str(folder / f"{zero}.json"), "layout": layout, "steps": 2}
    batch, manifest = {"global_size": 6, "micro_size": 2}, folder / "data" / "train.json"
    return write_recipe(folder, towers, manifest, f"{zero} {layout}", stage, language, batch=batch, run=run)


def held_bytes(arguments: list[str]) -> dict[str, int]:
    """What a rank's engine holds when the gradients of a step are there, by kind; and the most that buckets took."""
    from deepspeed.runtime.zero import stage_1_and_2

    from pipeline.training import loop

    held: dict[str, int] = {}
    train_step = loop.train_step

    def watched(engine: Any, *others: Any) -> Any:
        backward = engine.backward

        def and_look(loss: Tensor) -> None:
            backward(loss)
            held.update(_held(engine) | {"buckets": max(held.get("buckets", 0), _buckets(engine.optimizer))})

        with mock.patch.object(engine, "backward", and_look):
            return train_step(engine, *others)

    def and_note(optimizer: Any) -> None:
        setup_buckets(optimizer)
        held["buckets"] = max(held.get("buckets", 0), _buckets(optimizer))

    setup_buckets = stage_1_and_2.DeepSpeedZeroOptimizer.setup_buckets
    with (
        mock.patch.object(loop, "train_step", watched),
        mock.patch.object(stage_1_and_2.DeepSpeedZeroOptimizer, "setup_buckets", and_note),
    ):
        code, _, errors = train_here(arguments)
    assert code == 0, errors
    return held


def _size(tensors: Any) -> int:
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if t is not None}
    return sum(storages.values())


def _buckets(zero_optimizer: Any) -> int:
    found = []
    for bucket in zero_optimizer.ipg_buckets.values():
        found += bucket.buffer if isinstance(bucket.buffer, list) else [bucket.buffer]
    return _size(found)


def _held(engine: Any) -> dict[str, int]:
    zero_optimizer = engine.optimizer
    moments = [
        tensor for state in zero_optimizer.optimizer.state.values() for name, tensor in state.items() if name != "step"
    ]
    gradients = [t for group in getattr(zero_optimizer, "averaged_gradients", {}).values() for t in group or []]
    if hasattr(zero_optimizer, "fp32_partitioned_groups_flat"):
        weights = [p.ds_tensor for p in engine.module.bridge.parameters()]
        frozen = [p.ds_tensor for p in engine.module.parameters() if not p.requires_grad]
    else:
        weights = [*zero_optimizer.bit16_groups_flat, *zero_optimizer.single_partition_of_fp32_groups]
        frozen = []
        gradients += [t.grad for t in zero_optimizer.single_partition_of_fp32_groups]
    return {
        "weights": _size(weights),
        "gradients": _size(gradients),
        "moments": _size(moments),
        "language": _size(frozen),
    }


@pytest.mark.parametrize(
    ("zero", "layout"),
    [("zero1", "replicated"), ("zero2", "replicated"), ("zero2_offload", "replicated"), ("zero3", "sharded")],
)
def test_an_engine_holds_the_weights_gradients_and_moments_that_are_planned(
    folder: Path, towers: Path, zero: str, layout: str
) -> None:
    ranks, arguments = 3, arguments_of(folder, towers, zero, layout)
    recipe = load_recipe(Path(arguments[1]))
    policy = read_policy(resolve_ds_config(recipe, ranks))
    task = UnweightedRecipe(recipe).task
    bridge = tensors_of(task.bridge)
    planned = bridge_states(bridge, policy, ranks)
    for held in run_on_ranks(ranks, held_bytes, arguments):
        assert held["buckets"] == planned.buckets
        if policy.stage == 3:
            gathered = FP32 * bridge.elements  # which the plan takes as gathered all at once
            assert held["weights"] == pytest.approx(planned.weights - gathered, rel=0.001)
            language = sharded_language(tensors_of(task.towers.language.model), policy, ranks)[0]
            assert held["language"] == pytest.approx(language, rel=0.01)
        elif policy.offloads_optimizer:  # on a CPU the host's memory is the device's
            part = planned.host // 4
            assert held["weights"] == planned.weights + part and held["moments"] == 2 * part
            continue
        else:
            assert held["weights"] == planned.weights
        assert held["moments"] == pytest.approx(planned.moments, rel=0.001)
        split = FP32 * (max(bridge.matrices) + max(bridge.vectors))  # DeepSpeed holds all of a parameter cut in two
        assert held["gradients"] <= planned.gradients + split
        assert held["gradients"] >= planned.moments / 2 * 0.999  # at least a rank's own part


def test_a_checkpoint_has_the_size_that_is_planned(folder: Path, towers: Path) -> None:
    arguments = arguments_of(folder, towers, "zero1", "replicated")
    recipe = load_recipe(Path(arguments[1]), ["batch.micro_size=6", f"run.output={folder / 'saved'}"])
    edits = ["--set", "batch.micro_size=6", f"run.output={folder / 'saved'}"]
    assert run_on_ranks(1, train_here, [*arguments, *edits])[0][0] == 0
    bridge = tensors_of(UnweightedRecipe(recipe).task.bridge)
    files = list(checkpoint.folder_of(folder / "saved", 2).iterdir())
    written = sum(file.stat().st_size for file in files)
    names = 3 * (len(bridge.matrices) + len(bridge.vectors))
    assert 0 < written - 3 * FP32 * bridge.elements < 200 * names + 20_000  # headers, recipe and state
