"""What a checkpoint's state says of its run, and what of it may differ when the run goes on."""

import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from pipeline.models.fingerprint import fingerprint
from pipeline.training.checkpoint import OPTIMIZER, State, read_state
from pipeline.weights import native

SETTINGS = {"optimizer": {"peak_learning_rate": 0.1, "warmup_steps": 3}, "stage": 1}
DIGESTS = {native.FILE_NAME: "0", OPTIMIZER: "1"}
SAVED = State(7, 56, 42, 2, "abc", SETTINGS, {"vision": "v1"}, DIGESTS, skipped=1, loss_scale=(4.0, 2))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoints" / "step_00000007"
    folder.mkdir(parents=True)
    (folder / "state.json").write_text(json.dumps(asdict(SAVED)))
    return folder


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


def test_all_differences_are_told_at_once(folder: Path) -> None:
    """Each try to resume loads towers: a line for each difference would cost minutes."""
    other = {**SETTINGS, "optimizer": {"peak_learning_rate": 0.2, "warmup_steps": 4}}
    expected = replace(SAVED, settings=other, seed=9)
    with pytest.raises(ValueError, match="change that back") as refused:
        read_state(folder, expected)
    line = str(refused.value)
    assert "peak_learning_rate was 0.1 when it was saved and is 0.2 now; optimizer.warmup_steps was 3 when" in line
    names = re.findall(r"resume_despite=\[(.*)\]", line)[0].split(",")
    assert names == ["optimizer.peak_learning_rate", "optimizer.warmup_steps", "seed"]
    assert read_state(folder, expected, tuple(names)).step == 7
    wide = {f"field_{number}": 1 for number in range(6)}
    with pytest.raises(ValueError, match=r"field_3 was None when .* and 2 more; change that back"):
        read_state(folder, replace(SAVED, settings={**SETTINGS, **wide}))
    with pytest.raises(ValueError, match=r": stage was 1 when it was saved and is 2 now; change that back"):
        read_state(folder, replace(SAVED, settings={**other, "stage": 2}))


def test_a_field_that_came_into_recipes_later_had_its_default(folder: Path) -> None:
    """A checkpoint of an earlier version of the project goes on, unless the new field asks for something else."""
    today = {**SETTINGS, "optimizer": {**SETTINGS["optimizer"], "layer_decay": 1.0}}  # type: ignore[dict-item]
    assert read_state(folder, replace(SAVED, settings=today)).step == 7
    other = {**SETTINGS, "optimizer": {**SETTINGS["optimizer"], "layer_decay": 0.9}}  # type: ignore[dict-item]
    with pytest.raises(ValueError, match=r"optimizer.layer_decay was 1.0 when it was saved and is 0.9 now"):
        read_state(folder, replace(SAVED, settings=other))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"step": 3}', "[" * 3, "[" * 100_000, "9" * 5000])
def test_an_unreadable_state_is_one_line(text: str, folder: Path) -> None:
    (folder / "state.json").write_text(text)
    with pytest.raises(ValueError, match=r"state\.json is not"):
        read_state(folder, SAVED)


@pytest.mark.parametrize(
    "wrong",
    [
        {"step": -1}, {"step": 8}, {"step": 1 << 70}, {"step": "7"}, {"step": 7.5}, {"consumed": None}, {"skipped": 8},
        {"skipped": -1}, {"digests": {"../../../etc/passwd": "0"}}, {"digests": DIGESTS | {"/dev/zero": "0"}},
        {"loss_scale": [-1.0, 0]}, {"loss_scale": [float("inf"), 0]}, {"loss_scale": [1.0]}, {"recent_losses": "no"},
        {"settings": []}, {"towers": {"vision": 1}}, {"validation_loss": "low"},
    ],
    ids=str,
)  # fmt: skip
def test_a_state_that_cannot_be_is_one_line(wrong: dict[str, object], folder: Path) -> None:
    (folder / "state.json").write_text(json.dumps(asdict(SAVED) | wrong))
    with pytest.raises(ValueError, match=r"state\.json is not readable .*; remove the folder"):
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
