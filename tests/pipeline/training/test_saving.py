"""A checkpoint is written beside training: it holds its own step, one is written at a time, and an error waits."""

import threading
import time
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors.torch import load_file

from pipeline.training import checkpoint
from pipeline.weights import native
from tests.support.gloo_ranks import run_on_ranks
from tests.support.tiny_runs import Write, train_here

BATCH = {"global_size": 4, "micro_size": 2}


def train_past_a_save(arguments: list[str]) -> tuple[int, str, list[int], int]:
    """The write of step 2 begins to write when two more steps are done; saves of every second step wait for it.

    Exit code and errors; the steps done when each write began; and the most writes at the same time.
    """
    from pipeline.training import loop

    train_step, write = loop.train_step, checkpoint.write
    steps, begun, running, most = [], [], [], 0
    two_more = threading.Event()

    def counted(*parts: Any) -> Any:
        steps.append(train_step(*parts))
        if len(steps) == 4:
            two_more.set()
        return steps[-1]

    def late(*parts: Any) -> None:
        nonlocal most
        running.append(parts)
        most = max(most, len(running))
        assert two_more.wait(20), "no step was done beside the save"
        begun.append(len(steps))
        write(*parts)
        running.pop()

    with mock.patch.object(loop, "train_step", counted), mock.patch.object(checkpoint, "write", late):
        code, _, errors = train_here(arguments)
    return code, errors, begun, most


def test_steps_are_done_beside_a_save_which_holds_its_own_step(folder: Path, write: Write) -> None:
    for code, _, errors in run_on_ranks(2, train_here, write("plain", batch=BATCH, run={"keep_checkpoints": 9})):
        assert code == 0, errors
    answers = run_on_ranks(2, train_past_a_save, write("beside", batch=BATCH, run={"keep_checkpoints": 9}))
    assert [code for code, *_ in answers] == [0, 0], answers[0][1]
    [_, _, begun, most], [_, _, of_rank_1, _] = answers
    assert begun[0] >= 4 and len(begun) == 4 and of_rank_1 == [] and most == 1
    for step in (2, 4, 6, 8):
        for name in (native.FILE_NAME, checkpoint.OPTIMIZER):
            found, wanted = (load_file(checkpoint.folder_of(folder / run, step) / name) for run in ("beside", "plain"))
            assert found.keys() == wanted.keys() and all(torch.equal(found[each], wanted[each]) for each in wanted)


def fail_beside_a_save(arguments: list[str]) -> tuple[int, str, str]:
    """The third step fails while step 2 is being written."""
    from pipeline.training import loop

    train_step, write, steps = loop.train_step, checkpoint.write, []

    def failing(*parts: Any) -> Any:
        steps.append(0)
        if len(steps) == 3:
            raise ValueError("step 3 fails")
        return train_step(*parts)

    def slow(*parts: Any) -> None:
        time.sleep(1)
        write(*parts)

    with mock.patch.object(loop, "train_step", failing), mock.patch.object(checkpoint, "write", slow):
        return train_here(arguments)


def test_an_error_of_the_run_waits_for_what_is_being_saved(folder: Path, write: Write) -> None:
    arguments = write("failing", batch={"global_size": 2, "micro_size": 2})
    [(code, _, errors)] = run_on_ranks(1, fail_beside_a_save, arguments)
    assert code == 1 and "error: step 3 fails" in errors
    assert [path.name for path in checkpoint.complete_checkpoints(folder / "failing")] == ["step_00000002"]
