"""ZeRO in every stage and layout trains as one plain process does, and a checkpoint goes on under any of them."""

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipeline.config import load_recipe
from pipeline.training import checkpoint
from pipeline.weights import native
from tests.reference.training import train_plainly
from tests.support.gloo_ranks import run_on_ranks
from tests.support.tiny_runs import ROOT, lines_of, train_and_watch, train_here, write_recipe
from tests.support.tiny_shards import tiny_manifest

STEPS, GLOBAL = 20, 8
KINDS = {"t5": (2, "t5"), "opt": (2, "opt")}  # all others are of stage 1
MORE: dict[str, dict[str, Any]] = {
    "stage 1, encoder trained": {
        "vision": {"trained": True, "activation_checkpointing": True}, "optimizer": {"layer_decay": 0.8},
    },
    "stage 1, no ITG": {"objectives": {"itg_weight": 0.0}},  # a head that gets no gradient
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zero")
    tiny_manifest(folder / "data", 40, samples_per_shard=16)
    policy = json.loads((ROOT / "ds_configs" / "zero3_hpz.json").read_text())
    policy["zero_optimization"]["zero_hpz_partition_size"] = 2  # of 8 GPUs a node
    (folder / "zero3_hpz.json").write_text(json.dumps(policy))
    policy = json.loads((ROOT / "ds_configs" / "zero1_overlap.json").read_text())
    policy["zero_optimization"]["reduce_bucket_size"] = 20_000  # so that most are sent during the backward pass
    (folder / "zero1_overlap.json").write_text(json.dumps(policy))
    return folder


def arguments_of(
    folder: Path, towers: Path, name: str, kind: str, zero: str, ranks: int, layout: str = "replicated", **more: Any
) -> list[str]:
    policy = next(path for path in (folder / f"{zero}.json", ROOT / "ds_configs" / f"{zero}.json") if path.exists())
    run = {"steps": STEPS, "zero": str(policy), "layout": layout, "checkpoint_every_steps": 10}
    batch, data = {"global_size": GLOBAL, "micro_size": GLOBAL // ranks}, folder / "data" / "train.json"
    sections = MORE.get(kind, {}) | {"batch": batch, "qformer": {"dropout": 0.0}, "run": run | more}
    return write_recipe(folder, towers, data, name, *KINDS.get(kind, (1, None)), **sections)


@pytest.fixture(scope="module")
def plain(folder: Path, towers: Path) -> Callable[[str], tuple[list[float], Any, Any]]:
    """Losses, image ids and last weights of a kind of task without any engine."""

    @cache
    def train(kind: str) -> tuple[list[float], Any, Any]:
        [_, path] = arguments_of(folder, towers, f"plain {kind}", kind, "zero1", 1)
        return train_plainly(load_recipe(Path(path)))

    return train


WAYS = [  # each start of ranks takes some ten seconds: not every kind of task with every policy
    ("stage 1", "zero1", 1, "replicated"),
    ("stage 1", "zero2", 2, "replicated"),
    ("stage 1", "zero3", 2, "replicated"),
    ("opt", "zero2_offload", 2, "replicated"),
    ("opt", "zero3", 2, "sharded"),
    ("t5", "zero2", 2, "replicated"),
    ("t5", "zero3_hpz", 4, "sharded"),
    ("stage 1, encoder trained", "zero1_overlap", 2, "replicated"),
    ("stage 1, encoder trained", "zero2", 2, "replicated"),
    ("stage 1, encoder trained", "zero3", 2, "replicated"),
    ("stage 1, no ITG", "zero1", 2, "replicated"),
    ("stage 1, no ITG", "zero3", 2, "replicated"),
]


@pytest.mark.parametrize(("kind", "zero", "ranks", "layout"), WAYS)
def test_every_way_trains_as_one_plain_process_does(
    plain: Callable[[str], Any], folder: Path, towers: Path, kind: str, zero: str, ranks: int, layout: str
) -> None:
    losses, ids, weights = plain(kind)
    name = f"{kind} {zero} {ranks} {layout}"
    answers = run_on_ranks(ranks, train_and_watch, arguments_of(folder, towers, name, kind, zero, ranks, layout))
    for code, errors, _, dtypes in answers:
        assert code == 0, errors
        assert set(dtypes.values()) == {"torch.float32"}  # no engine casts the bridge, its norms or temperature
    found = [line["loss"] for line in lines_of(folder / name)]
    assert found == pytest.approx(losses, rel=1e-5)
    joined = [[number for answer in answers for number in answer[2][step]] for step in range(STEPS)]
    assert joined == ids
    last = native.read_weights(folder / name)[1]
    # One part in a thousand of a weight's 20 steps: AdamW turns rounding of near-zero gradients into whole steps.
    assert all(torch.allclose(last[each], weights[each], rtol=0, atol=2e-3) for each in weights)


def test_a_checkpoint_goes_on_at_any_world_size_and_zero_stage(folder: Path, towers: Path) -> None:
    """The same samples in the same global batches, and the losses of the run that nothing interrupted."""
    whole = run_on_ranks(2, train_and_watch, arguments_of(folder, towers, "whole", "t5", "zero2", 2))
    losses = [line["loss"] for line in lines_of(folder / "whole")]
    joined = [[number for answer in whole for number in answer[2][step]] for step in range(STEPS)]
    for zero, ranks, layout in (
        ("zero1", 1, "replicated"),
        ("zero3", 4, "sharded"),
        ("zero2_offload", 2, "replicated"),
    ):
        name = f"resumed {zero}"
        shutil.copytree(checkpoint.folder_of(folder / "whole", 10), checkpoint.folder_of(folder / name, 10))
        answers = run_on_ranks(ranks, train_and_watch, arguments_of(folder, towers, name, "t5", zero, ranks, layout))
        assert all(answer[0] == 0 for answer in answers), answers[0][1]
        found = [line["loss"] for line in lines_of(folder / name)]
        assert len(found) == STEPS - 10 and found == pytest.approx(losses[10:], rel=1e-4)
        resumed = [[number for answer in answers for number in answer[2][step]] for step in range(STEPS - 10)]
        assert resumed == joined[10:]


def test_restoring_and_saving_again_gives_the_same_bytes(folder: Path, towers: Path) -> None:
    """Through ZeRO-3 on three ranks, whose parts are padded: no element of a moment moves."""
    arguments = arguments_of(folder, towers, "whole once", "opt", "zero1", 1)
    assert run_on_ranks(1, train_here, [*arguments, "--set", "run.checkpoint_every_steps=1"])[0][0] == 0
    saved = load_file(checkpoint.folder_of(folder / "whole once", STEPS) / checkpoint.OPTIMIZER)
    [found] = {str(each) for each in run_on_ranks(3, restored_moments, str(folder / "whole once"), arguments[1])}
    assert found == str({name: float(tensor.double().sum()) for name, tensor in sorted(saved.items())})


def restored_moments(run_folder: str, recipe_path: str) -> dict[str, float]:
    from pipeline.distributed import process_group
    from pipeline.training import engine_state
    from pipeline.training.engine import build_engine, resolve_ds_config
    from pipeline.training.parts import build_parts

    recipe = load_recipe(
        Path(recipe_path), ["batch.global_size=6", "batch.micro_size=2", f"run.zero={ROOT}/ds_configs/zero3.json"]
    )
    process_group.initialise(even_alone=True)
    engine = build_engine(build_parts(recipe, "cpu")[0], recipe, resolve_ds_config(recipe, 3))
    moments = load_file(checkpoint.folder_of(Path(run_folder), STEPS) / checkpoint.OPTIMIZER)
    engine_state.restore(engine, moments, STEPS)
    _, again = engine_state.gather(engine, keep=True)
    process_group.shut_down()
    assert all(torch.equal(again[name], moments[name]) for name in moments)
    return {name: float(tensor.double().sum()) for name, tensor in sorted(again.items())}
