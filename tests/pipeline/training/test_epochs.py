"""Runs whose length is in epochs: steps follow from the manifest; cut short, a run ends with the same bits."""

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import yaml
from safetensors.torch import load_file

from data_prep.index import index_shards
from pipeline.config import load_recipe
from pipeline.training import checkpoint
from pipeline.training.run_folder import initial_state
from pipeline.weights import native
from tests.reference.training import train_plainly
from tests.support.gloo_ranks import run_on_ranks
from tests.support.tiny_runs import ROOT, lines_of, train_here, write_recipe
from tests.support.tiny_shards import tiny_manifest, write_tiny_shards

SAMPLES, GLOBAL_SIZE, EPOCHS = 11, 4, 3  # two steps an epoch, and three samples left over


def train_until_step_4_fails(arguments: list[str]) -> int:
    """A fault in the middle of the last epoch."""
    from pipeline.training import loop

    train_step = loop.train_step

    def fail_in_step_4(engine: Any, batches: Any, places: Any, recipe: Any, progress: Any, ahead: Any) -> Any:
        if progress.step == 4:
            raise OSError("the machine is gone")
        return train_step(engine, batches, places, recipe, progress, ahead)

    with mock.patch.object(loop, "train_step", fail_in_step_4):
        return train_here(arguments)[0]


def test_epochs_make_the_steps_and_a_resume_makes_the_same_bits(tmp_path: Path, towers: Path) -> None:
    manifest, weights = tiny_manifest(tmp_path / "data", SAMPLES, samples_per_shard=4), {}
    sections = {
        "run": {"steps": 0, "epochs": EPOCHS, "checkpoint_every_steps": 0},
        "optimizer": {"schedule": "staircase", "warmup_start": 1e-8},
        "batch": {"global_size": GLOBAL_SIZE, "micro_size": GLOBAL_SIZE},
    }
    for name in ("whole", "cut"):
        arguments = write_recipe(tmp_path, towers, manifest, name, 1, None, **sections)
        if name == "cut":
            assert run_on_ranks(1, train_until_step_4_fails, arguments) == [1]
            assert checkpoint.complete_checkpoints(tmp_path / name)[-1].name == "step_00000004"
        [(code, _, errors)] = run_on_ranks(1, train_here, arguments)
        assert code == 0, errors
        lines = [line for line in lines_of(tmp_path / name) if "loss" in line]
        assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
        assert [line["learning_rate"] for line in lines][2::2] == [lines[3]["learning_rate"], lines[5]["learning_rate"]]
        saved = [path.name for path in checkpoint.complete_checkpoints(tmp_path / name)]
        assert saved == ["step_00000004", "step_00000006"]
        weights[name] = load_file(checkpoint.folder_of(tmp_path / name, 6) / native.FILE_NAME)
        written = yaml.safe_load((tmp_path / name / "recipe.yaml").read_text())["run"]
        assert (written["steps"], written["epochs"], written["checkpoint_every_steps"]) == (0, EPOCHS, 0)
        assert native.read_weights(tmp_path / name)[0].run.epochs == EPOCHS
    assert all(torch.equal(weights["cut"][key], tensor) for key, tensor in weights["whole"].items())


@pytest.mark.parametrize("language", ["opt", "t5"])
def test_two_ranks_fine_tune_as_one_plain_process_does(tmp_path: Path, towers: Path, language: str) -> None:
    """Captions as samples, a prompt, the staircase, a weight in the loss: losses of all steps, and the last weights."""
    for source in ("web", "human"):
        write_tiny_shards(tmp_path / source, 4, captions_per_sample=2, source=source)
    index_shards([tmp_path / "web", tmp_path / "human"], tmp_path / "train.json")
    sections = {
        "run": {"steps": 0, "epochs": 3, "checkpoint_every_steps": 0},
        "data": {"sample": "caption", "loss_weights": {"web": 0.25}},
        "optimizer": {"schedule": "staircase"},
        "qformer": {"dropout": 0.0},
        "batch": {"global_size": 4, "micro_size": 1},
    }
    arguments = write_recipe(tmp_path, towers, tmp_path / "train.json", "run", 2, language, **sections)
    edits = ["language.prompt='a picture of'"]
    recipe = load_recipe(Path(arguments[1]), edits).in_steps(16)
    losses, _, weights = train_plainly(recipe)
    for code, _, errors in run_on_ranks(2, train_here, [*arguments, "--set", *edits]):
        assert code == 0, errors
    assert len(losses) == 12
    assert [line["loss"] for line in lines_of(tmp_path / "run")] == pytest.approx(losses, rel=1e-5)
    found = load_file(checkpoint.folder_of(tmp_path / "run", 12) / native.FILE_NAME)
    # AdamW turns rounding of near-zero gradients into whole steps, of 1e-3 each.
    assert all(torch.allclose(tensor, weights[name], rtol=0, atol=1e-3) for name, tensor in found.items())


@pytest.mark.parametrize("language", ["opt", "t5"])
def test_a_run_on_questions_asks_each_one_once_an_epoch(tmp_path: Path, towers: Path, language: str) -> None:
    write_tiny_shards(tmp_path / "shards", 3, questions_per_sample=2)
    index_shards([tmp_path / "shards"], tmp_path / "train.json")
    sections = {
        "run": {"steps": 0, "epochs": 2, "checkpoint_every_steps": 0},
        "data": {"sample": "question"},
        "qformer": {"question": "question"},
        "batch": {"global_size": 3, "micro_size": 3},
        "validation": {"manifest": str(tmp_path / "train.json"), "every_steps": 0, "on_training_data": True},
    }
    arguments = write_recipe(tmp_path, towers, tmp_path / "train.json", language, 2, language, **sections)
    edits = ["--set", "language.prompt='question {} answer'"]
    [(code, _, errors)] = run_on_ranks(1, train_here, [*arguments, *edits])
    assert code == 0, errors
    lines = lines_of(tmp_path / language)
    assert [line["step"] for line in lines if "split" not in line] == [1, 2, 3, 4]  # 6 questions, 3 a step
    assert [line["step"] for line in lines if "split" in line] == [2, 4]  # the held-out ones, at the end of each epoch
    assert all(0 < line["loss"] < 20 for line in lines)


def test_a_run_of_epochs_is_known_again_by_them_and_not_by_the_steps_that_follow() -> None:
    path = ROOT / "pipeline" / "recipes" / "stage2_vitg_opt2.7b.yaml"
    edits = ["run.steps=0", "run.epochs=2", "data.sample=caption", "language.prompt='a photo of'"]
    recipe = load_recipe(path, edits)
    one, other = (initial_state(recipe.in_steps(samples), "digest").settings for samples in (5_000, 9_000))
    assert one == other and one["run"]["epochs"] == 2 and "steps" not in one["run"]
    assert (one["data"]["sample"], one["language"]["prompt"]) == ("caption", "a photo of")
    assert initial_state(load_recipe(path), "digest").settings["run"]["steps"] == 80_000
