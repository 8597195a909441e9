"""Finished and half-finished predictions meet other settings: refused by name, never taken for what is asked."""

import shutil
from pathlib import Path

import pytest
import torch

from tests.eval.test_run import SHORT, Folders, run


def test_other_settings_in_the_same_folder_are_refused_and_the_same_ones_skipped(
    checkpoints: Folders, sets: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(checkpoints["opt"], "vqa", sets["vqav2"], out) == 0
    assert run(checkpoints["opt"], "vqa", sets["vqav2"], out) == 0
    assert "already complete" in capsys.readouterr().out
    for flag, value, named in (("--prompt", "{}?", "prompt"), ("--num-beams", 3, "num_beams 5, not 3")):
        assert run(checkpoints["opt"], "vqa", sets["vqav2"], out, flag, value) == 1
        assert named in capsys.readouterr().err
    assert run(checkpoints["t5"], "vqa", sets["vqav2"], out) == 1
    assert "weights_sha256" in capsys.readouterr().err
    other = tmp_path / "other"
    assert run(checkpoints["opt"], "vqa", sets["vqav2"], other, "--prompt", "{}?", "--limit", 1) == 0
    assert run(checkpoints["opt"], "vqa", sets["vqav2"], other, "--limit", 1) == 1
    assert "prompt '{}?', not 'Question: {} Answer:'" in capsys.readouterr().err
    assert run(checkpoints["opt"], "vqa", sets["vqav2"], other, "--prompt", "{}?", "--limit", 1) == 0


def test_answers_to_another_models_prompt_are_never_taken_for_those_to_ones_own(
    checkpoints: Folders, sets: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from pipeline.prompts import QUESTION_PROMPTS

    for language, others in (("opt", "seq2seq"), ("t5", "causal")):
        asked = (checkpoints[language], "vqa", sets["vqav2"], tmp_path / language, "--limit", 1)
        assert run(*asked, "--prompt", QUESTION_PROMPTS[others]) == 0
        assert run(*asked) == 1
        assert "it holds predictions with prompt" in capsys.readouterr().err
        (tmp_path / language / "COMPLETE").unlink()  # nor are half of them continued
        assert run(*asked) == 1


@pytest.mark.parametrize("left", ["predictions.rank0.jsonl", "metrics.json", "per_sample.jsonl", "COMPLETE", "work"])
def test_nothing_is_predicted_beside_what_cannot_be_told(
    left: str, checkpoints: Folders, sets: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    (out / left).mkdir(parents=True)
    assert run(checkpoints["t5"], "captioning", sets["coco"], out, *SHORT) == 1
    assert f"it holds {left}, but no task.json" in capsys.readouterr().err


def test_new_weights_at_an_old_path_never_give_old_answers(
    checkpoints: Folders, sets: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from pipeline.weights.native import read_weights, save_weights

    weights = tmp_path / "run"
    shutil.copytree(checkpoints["opt"], weights)
    assert run(weights, "vqa", sets["vqav2"], tmp_path / "out") == 0
    recipe, tensors = read_weights(weights)
    changed = torch.nn.ParameterDict({name.replace(".", "!"): tensor + 0.01 for name, tensor in tensors.items()})
    save_weights(changed, recipe, 4, weights / "checkpoints/step_00000004")
    assert run(weights, "vqa", sets["vqav2"], tmp_path / "out") == 1
    assert "weights_sha256" in capsys.readouterr().err
