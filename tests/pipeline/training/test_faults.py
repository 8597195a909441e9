"""What goes wrong in a run: losses that are not finite, a full disk, one rank's faults, another run, other weights."""

import json
import os
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.training import checkpoint
from pipeline.weights import native
from tests.support.gloo_ranks import run_on_ranks
from tests.support.small_disk import fill, mounted
from tests.support.tiny_runs import Write, lines_of, train_here


def train_with_bad_losses(arguments: list[str], bad_steps: list[int], factor: float) -> Any:
    """Rank 1's loss of some steps is multiplied by a factor; what became of the weights in each step."""
    from pipeline.training import loop
    from pipeline.training.stage2_task import Stage2Task

    forward, train_step, sums = Stage2Task.forward, loop.train_step, []

    def watched(engine: Any, *others: Any) -> Any:
        current.append(others[3].step)
        before = torch.cat([p.detach().flatten() for p in engine.module.bridge.parameters()]).clone()
        values = train_step(engine, *others)
        after = torch.cat([p.detach().flatten() for p in engine.module.bridge.parameters()])
        sums.append(bool(torch.equal(before, after)))
        return values

    def spoilt(self: Any, *others: Any) -> Any:
        values = forward(self, *others)
        if current[-1] in bad_steps and os.environ["RANK"] == "1":
            values["loss"] = values["loss"] * factor
        return values

    current: list[int] = []
    with mock.patch.object(Stage2Task, "forward", spoilt), mock.patch.object(loop, "train_step", watched):
        return *train_here(arguments), sums


def test_a_loss_that_is_not_finite_skips_the_step_on_every_rank(folder: Path, write: Write) -> None:
    arguments = write("nan", batch={"global_size": 4, "micro_size": 2}, run={"keep_checkpoints": 9})
    for code, _, errors, unchanged in run_on_ranks(2, train_with_bad_losses, arguments, [1, 4], float("nan")):
        assert code == 0, errors
        assert [step for step, same in enumerate(unchanged) if same] == [1, 4]
    lines = lines_of(folder / "nan")
    assert [line["skipped_steps"] for line in lines] == [0, 1, 1, 1, 2, 2, 2, 2]
    assert all(line["loss"] == line["loss"] for line in lines if "loss" in line)
    state = json.loads((checkpoint.folder_of(folder / "nan", 8) / "state.json").read_text())
    assert state["skipped"] == 2
    last = load_file(checkpoint.folder_of(folder / "nan", 8) / native.FILE_NAME)
    for step in (4, 6, 8):
        shutil.rmtree(checkpoint.folder_of(folder / "nan", step))
    # From step 2, of which one was skipped: AdamW has made one step, not two.
    for code, _, errors, _ in run_on_ranks(2, train_with_bad_losses, arguments, [4], float("nan")):
        assert code == 0, errors
    again = load_file(checkpoint.folder_of(folder / "nan", 8) / native.FILE_NAME)
    assert all(torch.equal(again[name], last[name]) for name in last)


def test_a_leap_of_the_loss_is_skipped_and_too_many_stop_the_run_unsaved(folder: Path, write: Write) -> None:
    faults = {"spike_factor": 3.0, "stop_after": 2}
    arguments = write("leap", batch={"global_size": 4, "micro_size": 2}, faults=faults, run={"steps": 16})
    answers = run_on_ranks(2, train_with_bad_losses, arguments, [7, 10, 11], 50.0)
    for code, _, _, unchanged in answers:
        assert code == 1 and [step for step, same in enumerate(unchanged) if same] == [7, 10, 11]
    [line] = [line for line in answers[0][2].splitlines() if line.startswith("error")]
    assert "2 steps in a row" in line and "step 11" in line
    assert checkpoint.complete_checkpoints(folder / "leap")[-1].name == "step_00000010"


def train_on_a_full_disk(arguments: list[str], full_step: int) -> Any:
    """No space is left when a certain step's optimizer file is to be written."""
    import safetensors.torch

    save = safetensors.torch.save_file

    def full(tensors: Any, path: Path, *others: Any, **more: Any) -> None:
        if Path(path).name == checkpoint.OPTIMIZER and Path(path).parent.name == f"step_{full_step:08d}":
            raise OSError(28, "No space left on device")
        save(tensors, path, *others, **more)

    with mock.patch.object(safetensors.torch, "save_file", full):
        return train_here(arguments)


@pytest.mark.parametrize("policy", ["stop", "continue"])
def test_a_full_disk_leaves_the_last_good_checkpoint(folder: Path, write: Write, policy: str) -> None:
    batch = {"global_size": 4, "micro_size": 2}
    arguments = write(f"full {policy}", batch=batch, faults={"save_failure": policy}, run={"keep_checkpoints": 9})
    answers = run_on_ranks(2, train_on_a_full_disk, arguments, 4)
    steps = [int(path.name[5:]) for path in checkpoint.complete_checkpoints(folder / f"full {policy}")]
    if policy == "continue":
        assert [code for code, _, _ in answers] == [0, 0] and steps == [2, 6, 8]
        return
    assert [code for code, _, _ in answers] == [1, 1] and steps == [2]
    [line] = [line for line in answers[0][2].splitlines() if line.startswith("error")]
    assert "No space left on device" in line and "step_00000002" in line
    assert not checkpoint.folder_of(folder / f"full {policy}", 4).exists()


def test_a_disk_that_is_really_full_loses_curves_and_not_the_run(write: Write, tmp_path: Path) -> None:
    """A small file system, filled to the last byte while a step runs and emptied later."""
    with mounted(tmp_path / "small", "32m") as small:
        run = {"output": str(small / "run"), "steps": 8, "checkpoint_every_steps": 2, "keep_checkpoints": 9}
        arguments = write(
            "really full", batch={"global_size": 2, "micro_size": 2}, faults={"save_failure": "continue"}, run=run
        )
        [(code, _, errors)] = run_on_ranks(1, train_on_a_filling_disk, arguments, str(small))
        assert code == 0, errors
        saved = [int(path.name[5:]) for path in checkpoint.complete_checkpoints(small / "run")]
        assert saved == [2, 6, 8]
        assert {1, 2, 7, 8} <= {line["step"] for line in lines_of(small / "run")}


def train_on_a_filling_disk(arguments: list[str], disk: str) -> Any:
    """Full from the third step's beginning to the sixth's end."""
    from pipeline.training import loop

    train_step = loop.train_step

    def filling(engine: Any, batches: Any, places: Any, recipe: Any, progress: Any, ahead: Any) -> Any:
        if progress.step == 2:
            fill(Path(disk))
        values = train_step(engine, batches, places, recipe, progress, ahead)
        if progress.step == 5:
            (Path(disk) / "filler").unlink()
        return values

    with mock.patch.object(loop, "train_step", filling):
        return train_here(arguments)


def fail_on_rank_1(arguments: list[str], gone: str) -> tuple[int, str, str]:
    """A manifest that one node does not see."""
    edits = [f"{gone}={gone}.json"] if os.environ["RANK"] == "1" else []
    return train_here([*arguments, "--set", "seed=1", *edits])


@pytest.mark.parametrize("gone", ["data.manifest", "validation.manifest"])
def test_a_fault_of_one_rank_ends_all_and_is_said_by_it(folder: Path, write: Write, gone: str) -> None:
    held_out = {"manifest": str(folder / "data" / "train.json"), "on_training_data": True}
    arguments = write(f"one {gone}", batch={"global_size": 4, "micro_size": 2}, validation=held_out)
    (code, _, errors), (code_1, _, errors_1) = run_on_ranks(2, fail_on_rank_1, arguments, gone)
    assert code == code_1 == 1 and not [line for line in errors.splitlines() if line.startswith("error")]
    [line] = [line for line in errors_1.splitlines() if line.startswith("error")]
    assert f"{gone}.json" in line


def train_in_an_own_folder(arguments: list[str], folder: str) -> tuple[int, str, str]:
    """A relative output, seen from a folder of this rank's own."""
    os.chdir(Path(folder) / os.environ["RANK"])
    return train_here(arguments)


def test_ranks_that_do_not_see_one_checkpoint_are_refused(folder: Path, write: Write) -> None:
    batch = {"global_size": 4, "micro_size": 2}
    arguments = write("apart", batch=batch, run={"output": "apart", "steps": 8, "checkpoint_every_steps": 2})
    for rank in range(2):
        (folder / str(rank)).mkdir()
    [(code, _, errors)] = run_on_ranks(
        1, train_in_an_own_folder, [*arguments, "--set", "batch.micro_size=4"], str(folder)
    )
    assert code == 0, errors
    shutil.rmtree(checkpoint.folder_of(folder / "0" / "apart", 8))
    answers = run_on_ranks(2, train_in_an_own_folder, arguments, str(folder))
    assert [code for code, _, _ in answers] == [1, 1]
    [line] = [line for line in answers[0][2].splitlines() if line.startswith("error")]
    assert "different last checkpoints" in line and "[6, -1]" in line


def test_checkpoints_of_every_nth_step_stay(folder: Path, write: Write) -> None:
    batch, run = {"global_size": 2, "micro_size": 2}, {"keep_checkpoints": 1, "keep_every_steps": 4, "steps": 10}
    [(code, _, errors)] = run_on_ranks(1, train_here, write("kept", batch=batch, run=run))
    assert code == 0, errors
    steps = [int(path.name[5:]) for path in checkpoint.complete_checkpoints(folder / "kept")]
    assert steps == [4, 8, 10]


def test_two_runs_do_not_write_to_one_folder(folder: Path, write: Write) -> None:
    import fcntl

    (folder / "held").mkdir()
    with (folder / "held" / "lock").open("w") as lock:
        lock.write("host elsewhere, process 7\n")
        lock.flush()
        fcntl.lockf(lock, fcntl.LOCK_EX)
        [(code, _, errors)] = run_on_ranks(1, train_here, write("held", batch={"global_size": 2, "micro_size": 2}))
    [line] = [line for line in errors.splitlines() if line.startswith("error")]
    assert code == 1 and "host elsewhere, process 7" in line and "run.output" in line
    assert not (folder / "held" / "recipe.yaml").exists()


def test_changed_frozen_weights_and_files_are_refused_by_name(folder: Path, write: Write, towers: Path) -> None:
    moved = folder / "towers"
    shutil.copytree(towers / "vision", moved / "vision")
    vision, batch = {"name": f"local-dir:{moved / 'vision'}"}, {"global_size": 2, "micro_size": 2}
    arguments = write("changed", batch=batch, vision=vision, run={"steps": 4})
    first = [*arguments, "--set", "run.steps=4"]
    assert run_on_ranks(1, train_here, first)[0][0] == 0
    shutil.rmtree(checkpoint.folder_of(folder / "changed", 4))  # so that there is something to do
    tensors = load_file(moved / "vision" / "model.safetensors")
    tensors["blocks.0.norm1.weight"][0] += 1
    save_file(tensors, moved / "vision" / "model.safetensors")
    [(code, _, errors)] = run_on_ranks(1, train_here, first)
    [line] = [line for line in errors.splitlines() if line.startswith("error")]
    assert code == 1 and "towers.vision was" in line and "run.resume_despite=[towers.vision]" in line
    optimizer = checkpoint.folder_of(folder / "changed", 2) / checkpoint.OPTIMIZER
    whole = optimizer.read_bytes()
    optimizer.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    told = [*first, "run.resume_despite=[towers.vision]"]
    [(code, _, errors)] = run_on_ranks(1, train_here, told)
    [line] = [line for line in errors.splitlines() if line.startswith("error")]
    assert code == 1 and f"{checkpoint.OPTIMIZER} differs from the file that was saved" in line
    optimizer.write_bytes(whole)
    [(code, _, errors)] = run_on_ranks(1, train_here, told)
    assert code == 0, errors
