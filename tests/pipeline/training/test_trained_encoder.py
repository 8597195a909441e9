"""Runs that train the image encoder: learning rates by layer under every ZeRO stage, resuming, starting, evaluating."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file

from pipeline.models.vision import VisionTower, build_vision
from pipeline.training import checkpoint
from pipeline.weights import native
from tests.support.gloo_ranks import run_on_ranks
from tests.support.tiny_runs import ROOT, lines_of, train_here, write_recipe
from tests.support.tiny_shards import tiny_manifest

STEPS, DECAY, PEAK, BLOCKS = 4, 0.5, 1e-3, 2
ENCODER = "vision.encoder.model."
FACTORS = {  # of the learning rate: DECAY^(BLOCKS + 1 - i), i = 0 before the blocks, j + 1 in block j
    f"{ENCODER}patch_embed.proj.weight": 0.125,
    f"{ENCODER}cls_token": 0.125,
    f"{ENCODER}blocks.0.attn.qkv.weight": 0.25,
    f"{ENCODER}blocks.0.norm1.bias": 0.25,
    f"{ENCODER}blocks.1.mlp.fc2.weight": 0.5,
    "ln_vision.weight": 1.0,
    "language_projection.weight": 1.0,
}
Write = Callable[..., list[str]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    tiny_manifest(folder / "data", 20, samples_per_shard=8)
    return folder


@pytest.fixture(scope="module")
def write(folder: Path, towers: Path) -> Write:
    def write(name: str, stage: int, language: str | None, zero: str = "zero1", **sections: Any) -> list[str]:
        given = {
            "vision": {"trained": True},
            "batch": {"global_size": 4, "micro_size": 2},
            "optimizer": {"layer_decay": DECAY, "peak_learning_rate": PEAK, "warmup_steps": 0, "weight_decay": 0.0},
            "run": {"steps": STEPS, "zero": str(ROOT / "ds_configs" / f"{zero}.json"), "checkpoint_every_steps": 2},
        }
        for section, fields in sections.items():
            given[section] = given.get(section, {}) | fields if isinstance(fields, dict) else fields
        return write_recipe(folder, towers, folder / "data" / "train.json", name, stage, language, **given)

    return write


@pytest.fixture(scope="module")
def captioner(folder: Path, write: Write) -> Path:
    """A stage-2 run with a trained encoder, on two ranks."""
    for code, _, errors in run_on_ranks(2, train_here, write("captioner", 2, "opt")):
        assert code == 0, errors
    return folder / "captioner"


def train_and_measure(arguments: list[str]) -> dict[str, float]:
    """The largest change of named weights in a run's first step, by AdamW's rule its learning rate."""
    from deepspeed.utils import safe_get_full_fp32_param

    from pipeline.training import loop

    train_step, changes = loop.train_step, {}

    def measured(engine: Any, *others: Any) -> Any:
        named = dict(engine.module.bridge.named_parameters())
        before = {name: safe_get_full_fp32_param(named[name]).clone() for name in FACTORS}
        values = train_step(engine, *others)
        for name in FACTORS if not changes else ():
            changes[name] = float((safe_get_full_fp32_param(named[name]) - before[name]).abs().max())
        return values

    with mock.patch.object(loop, "train_step", measured):
        code, _, errors = train_here(arguments)
    assert code == 0, errors
    return changes


@pytest.mark.parametrize("zero", ["zero1", "zero2", "zero3"])
def test_each_layer_moves_by_its_own_learning_rate(folder: Path, write: Write, zero: str) -> None:
    arguments = write(zero, 2, "opt", zero, run={"steps": 1})
    for changes in run_on_ranks(2, train_and_measure, arguments):
        assert changes == pytest.approx({name: PEAK * factor for name, factor in FACTORS.items()}, rel=1e-3)
    [line] = lines_of(folder / zero)
    found = {name: rate for name, rate in line.items() if name.startswith("learning_rate")}
    factors = {"": 1.0, "_patch": 0.125, "_block_0": 0.25, "_block_1": 0.5}
    assert found == pytest.approx({f"learning_rate{layer}": PEAK * factor for layer, factor in factors.items()})


def test_a_resumed_run_has_the_same_bits(folder: Path, write: Write, captioner: Path) -> None:
    again = folder / "again"
    shutil.copytree(checkpoint.folder_of(captioner, 2), checkpoint.folder_of(again, 2))
    for code, _, errors in run_on_ranks(2, train_here, write("again", 2, "opt")):
        assert code == 0, errors
    for name in (native.FILE_NAME, checkpoint.OPTIMIZER):
        found, wanted = (load_file(checkpoint.folder_of(run, STEPS) / name) for run in (again, captioner))
        assert found.keys() == wanted.keys() and all(torch.equal(found[each], wanted[each]) for each in wanted)


def test_evaluation_uses_the_encoder_of_the_run(captioner: Path) -> None:
    recipe, tensors = native.read_weights(captioner)
    model = native.load_model(captioner, "cpu")
    assert isinstance(model.vision, VisionTower) and not any(p.requires_grad for p in model.vision.parameters())
    original = build_vision(recipe.vision.model_copy(update={"trained": False}))
    for name, parameter in model.vision.encoder.model.named_parameters():
        assert torch.equal(parameter, tensors[f"{ENCODER}{name}"])
    pixels = torch.arange(3 * 32 * 32, dtype=torch.uint8).view(1, 3, 32, 32)
    with torch.no_grad():
        assert not torch.equal(model.vision(pixels), original(pixels))


def test_fine_tuning_starts_from_a_run_with_a_frozen_encoder(folder: Path, write: Write) -> None:
    frozen = write("frozen", 2, "opt", vision={"trained": False}, optimizer={"layer_decay": 1.0})
    for code, _, errors in run_on_ranks(2, train_here, frozen):
        assert code == 0, errors
    arguments = write(
        "tuned",
        2,
        "opt",
        init_weights=str(folder / "frozen"),
        optimizer={"peak_learning_rate": 1e-9, "minimum_learning_rate": 0.0},
    )
    for code, _, errors in run_on_ranks(2, train_here, arguments):
        assert code == 0, errors
    recipe, before = native.read_weights(folder / "frozen")
    encoder = build_vision(recipe.vision).encoder.model.state_dict()
    _, after = native.read_weights(folder / "tuned")
    wanted = before | {f"{ENCODER}{name}": tensor for name, tensor in encoder.items()}
    for name, tensor in after.items():
        torch.testing.assert_close(tensor, wanted[name], rtol=0, atol=1e-7)


def test_a_trained_encoder_is_not_given_to_a_recipe_that_freezes_it(write: Write, captioner: Path) -> None:
    plain = {"vision": {"trained": False}, "optimizer": {"layer_decay": 1.0}}
    [(code, _, errors)] = run_on_ranks(
        1, train_here, write("refused", 2, "opt", **plain, init_weights=str(captioner), batch={"micro_size": 4})
    )
    [line] = [line for line in errors.splitlines() if line.startswith("error")]
    assert code == 1 and "vision.trained=true" in line and str(captioner) in line


def test_a_run_does_not_go_on_with_its_encoder_frozen(folder: Path, write: Write, captioner: Path) -> None:
    shutil.copytree(checkpoint.folder_of(captioner, 2), checkpoint.folder_of(folder / "other", 2))
    plain = {"vision": {"trained": False}, "optimizer": {"layer_decay": 1.0}, "batch": {"micro_size": 4}}
    plain["run"] = {"resume_despite": ["optimizer"]}
    [(code, _, errors)] = run_on_ranks(1, train_here, write("other", 2, "opt", **plain))
    [line] = [line for line in errors.splitlines() if line.startswith("error")]
    assert code == 1 and "vision.trained was True when it was saved and is False now" in line


def test_the_curves_in_tensorboard_have_the_layers(captioner: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(captioner / "tensorboard"))
    events.Reload()
    for layer in ("", "_patch", "_block_0", "_block_1"):
        assert len(events.Scalars(f"optimizer/lr{layer}")) == STEPS
    state = json.loads((checkpoint.folder_of(captioner, STEPS) / "state.json").read_text())
    assert "vision" not in state["towers"]  # it changes
