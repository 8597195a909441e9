"""What a checkpoint's state says of its run, and what of it may differ when the run goes on."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from pipeline.models.fingerprint import fingerprint
from pipeline.training.checkpoint import State, read_state

SETTINGS = {"optimizer": {"peak_learning_rate": 0.1, "warmup_steps": 3}, "stage": 1}
SAVED = State(7, 56, 42, 2, "abc", SETTINGS, {"vision": "v1"}, {"a.safetensors": "0"}, skipped=1, loss_scale=(4.0, 2))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "state.json").write_text(json.dumps(asdict(SAVED)))
    return tmp_path


def test_progress_comes_from_the_checkpoint_and_the_rest_from_this_run(folder: Path) -> None:
    now = replace(SAVED, step=0, consumed=0, world_size=5, digests={}, skipped=0, loss_scale=(1.0, 0))
    found = read_state(folder, now)
    assert found == replace(SAVED, world_size=5)


@pytest.mark.parametrize(
    ("now", "named", "allowed"),
    [
        ({"manifest": "def"}, "manifest was 'abc' when it was saved and is 'def' now", "manifest"),
        ({"towers": {"vision": "v2"}}, "towers.vision was 'v1'", "towers"),
        ({"seed": 43}, "seed was 42", "seed"),
        (
            {"settings": {**SETTINGS, "optimizer": {"peak_learning_rate": 0.2, "warmup_steps": 3}}},
            "optimizer.peak_learning_rate was 0.1 when it was saved and is 0.2 now",
            "optimizer.peak_learning_rate",
        ),
        ({"settings": {**SETTINGS, "stage": 2}}, "stage was 1 when it was saved and is 2 now", "stage"),
    ],
    ids=["shards", "frozen weights", "seed", "a field of the recipe", "another model"],
)
def test_what_differs_is_named_and_taken_only_when_told(
    now: dict[str, object], named: str, allowed: str, folder: Path
) -> None:
    expected = replace(SAVED, **now)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="resume_despite") as refused:
        read_state(folder, expected)
    assert named in str(refused.value) and "\n" not in str(refused.value)
    with pytest.raises(ValueError, match="resume_despite"):
        read_state(folder, expected, ("else", allowed + "_more"))
    assert read_state(folder, expected, (allowed,)).step == 7


def test_a_field_that_came_into_recipes_later_had_its_default(folder: Path) -> None:
    """A checkpoint of an earlier version of the project goes on, unless the new field asks for something else."""
    today = {**SETTINGS, "optimizer": {**SETTINGS["optimizer"], "layer_decay": 1.0}}  # type: ignore[dict-item]
    assert read_state(folder, replace(SAVED, settings=today)).step == 7
    other = {**SETTINGS, "optimizer": {**SETTINGS["optimizer"], "layer_decay": 0.9}}  # type: ignore[dict-item]
    with pytest.raises(ValueError, match=r"optimizer.layer_decay was 1.0 when it was saved and is 0.9 now"):
        read_state(folder, replace(SAVED, settings=other))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"step": 3}', "[" * 3])
def test_an_unreadable_state_is_one_line(text: str, folder: Path) -> None:
    (folder / "state.json").write_text(text)
    with pytest.raises(ValueError, match=r"state\.json is not"):
        read_state(folder, SAVED)


def test_a_fingerprint_knows_weights_names_and_types() -> None:
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
    first = fingerprint(module)
    assert fingerprint(module) == first
    assert fingerprint(torch.nn.Sequential(module[0].bfloat16(), module[1])) != first
    module[0].float()
    torch.manual_seed(0)
    again = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
    assert fingerprint(again) == first
    with torch.no_grad():
        again[0].weight.copy_(again[0].weight.flip(0))
    assert fingerprint(again) != first, "rows changed places"
    with torch.no_grad():
        again[0].weight.copy_(again[0].weight.flip(0))
        again[0].weight[2, 1] += 1e-6
    assert fingerprint(again) != first
    counted = torch.nn.BatchNorm1d(3)
    first = fingerprint(counted)
    counted.running_mean += 1
    assert fingerprint(counted) != first, "a saved buffer"
