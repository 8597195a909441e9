"""Held-out losses: the plain mean over the samples, the same at any number of ranks, and the best checkpoint kept."""

import json
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from data_prep.split import main as split
from pipeline.config import load_recipe
from pipeline.data.manifest import load_manifest
from pipeline.data.order import SampleOrder
from pipeline.data.stream import SampleStream
from pipeline.training import checkpoint
from pipeline.training.parts import build_parts
from pipeline.training.task import StepPlace
from pipeline.weights import native
from tests.support.gloo_ranks import run_on_ranks
from tests.support.tiny_runs import ROOT, lines_of, train_here, write_recipe
from tests.support.tiny_shards import tiny_manifest


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("validation")
    tiny_manifest(folder / "data", 40, samples_per_shard=16)
    tiny_manifest(folder / "held_out", 12, samples_per_shard=8)
    return folder


def arguments_of(folder: Path, towers: Path, name: str, ranks: int, zero: str, **run: Any) -> list[str]:
    run = {"zero": str(ROOT / "ds_configs" / f"{zero}.json"), "steps": 6, "checkpoint_every_steps": 1} | run
    return write_recipe(
        folder, towers, folder / "data" / "train.json", name, 2, "opt",
        batch={"global_size": 4, "micro_size": 4 // ranks}, run=run, qformer={"dropout": 0.0},
        validation={"manifest": str(folder / "held_out" / "train.json"), "every_steps": 2, "samples": 9},
    )  # fmt: skip


def held_out_lines(run_folder: Path) -> list[dict[str, Any]]:
    return [line for line in lines_of(run_folder) if line.get("split") == "validation"]  # type: ignore[comparison-overlap]


def test_held_out_losses_are_the_mean_over_the_samples_at_any_number_of_ranks(folder: Path, towers: Path) -> None:
    found = {}
    for ranks, zero in ((1, "zero1"), (2, "zero3")):
        name = f"{ranks} ranks"
        for code, _, errors in run_on_ranks(ranks, train_here, arguments_of(folder, towers, name, ranks, zero)):
            assert code == 0, errors
        found[ranks] = held_out_lines(folder / name)
    assert [line["step"] for line in found[1]] == [2, 4, 6]
    assert [line["loss"] for line in found[2]] == pytest.approx([line["loss"] for line in found[1]], rel=1e-4)
    recipe = load_recipe(folder / "1 ranks.yaml")
    task, collate = build_parts(recipe, "cpu")
    native.load_into(task.bridge, native.read_weights(folder / "1 ranks")[1], folder)
    task.eval()
    assert recipe.validation is not None
    manifest = load_manifest(recipe.validation.manifest)
    settings = recipe.data.model_copy(update={"crop_scale": (1.0, 1.0)})
    stream = SampleStream(manifest, SampleOrder(manifest, 0, 64), settings, recipe.vision.image_size_px)
    losses = []
    for begin in (0, 4):  # of 9 samples, two whole passes of 4
        batch = collate([stream[0, position] for position in range(begin, begin + 4)])
        place = StepPlace(0, 1 / task.num_scored_tokens(batch), batch.target.ids.shape[1], 0)
        with torch.no_grad():
            losses.append(float(task(batch, place)["loss"]))
    assert found[1][-1]["loss"] == pytest.approx(sum(losses) / 2, rel=1e-5)


def train_with_losses(arguments: list[str], losses: list[float]) -> tuple[int, str, str]:
    from pipeline.training.validation import Validation

    remaining = iter(losses)
    with mock.patch.object(Validation, "losses", lambda *_, **_beat: {"loss": next(remaining)}):
        return train_here(arguments)


def test_the_checkpoint_with_the_lowest_held_out_loss_is_kept(folder: Path, towers: Path) -> None:
    arguments = arguments_of(folder, towers, "best", 1, "zero1", steps=10, keep_checkpoints=1)
    [(code, _, errors)] = run_on_ranks(1, train_with_losses, arguments, [3.0, 1.0, 2.0, 2.5, 4.0])
    assert code == 0, errors
    kept = checkpoint.complete_checkpoints(folder / "best")
    scores = [json.loads((path / "state.json").read_text())["validation_loss"] for path in kept]
    assert [path.name for path in kept] == ["step_00000004", "step_00000010"] and scores == [1.0, 4.0]


def test_a_run_on_both_parts_of_a_divided_data_set(folder: Path, towers: Path) -> None:
    manifest = folder / "data" / "train.json"
    assert split([str(manifest), "--share", "0.3"]) == 0
    arguments = arguments_of(folder, towers, "parts", 1, "zero1", steps=2)
    edits = [f"data.manifest={manifest.with_suffix('.train.json')}"]
    held_out = [f"validation.manifest={manifest.with_suffix('.validation.json')}"]
    trained_on = [f"validation.manifest={manifest}"]
    [(code, _, errors)] = run_on_ranks(1, train_here, [*arguments, "--set", *edits, *trained_on])
    assert code == 1 and "has samples that data.manifest" in errors.splitlines()[-1]
    [(code, _, errors)] = run_on_ranks(1, train_here, [*arguments, "--set", *edits, *held_out])
    assert code == 0, errors
    assert [line["step"] for line in held_out_lines(folder / "parts")] == [2]
