"""A rank that fails ends at once, and torch lets no collective end a run before the deadlines of the run do."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist

from tests.support.gloo_ranks import run_on_ranks
from tests.support.tiny_runs import ROOT, train_here, write_recipe
from tests.support.tiny_shards import tiny_manifest


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory, towers: Path) -> list[str]:
    """A run of two ranks."""
    folder = tmp_path_factory.mktemp("failing")
    manifest = tiny_manifest(folder / "data", 12)
    run = {"zero": str(ROOT / "ds_configs" / "zero1.json"), "steps": 2, "hang_deadline_s": 77}
    return write_recipe(folder, towers, manifest, "run", 1, None, batch={"global_size": 4, "micro_size": 2}, run=run)


class ProcessEndedError(BaseException):
    """In the place of the end of this process."""


def ends(main: Callable[[], int], backend: str) -> tuple[int | None, bool]:
    """The exit code with which a group's rank ends on the spot (None: it returns), and whether it left the group."""
    with (
        mock.patch.object(dist, "is_initialized", return_value=True),
        mock.patch.object(dist, "get_backend", return_value=backend),
        mock.patch.object(dist, "destroy_process_group") as leave,
        mock.patch.object(os, "_exit", side_effect=ProcessEndedError) as end,
    ):
        try:
            assert main() == 1
        except ProcessEndedError:
            return end.call_args.args[0], leave.called
        return None, leave.called


@pytest.mark.parametrize("fault", [ValueError("a field"), OSError(5, "disk"), RuntimeError("CUDA error")])
def test_a_failing_rank_waits_for_nobody_under_nccl(fault: Exception, capfd: Any, tmp_path: Path) -> None:
    """Destroying a communicator of NCCL waits for every rank."""
    from eval import run as evaluation
    from pipeline import train

    flags = ["eval.run", "--weights", "w", "--task", "vqa", "--data", "d", "--output", str(tmp_path / "out")]
    with (
        mock.patch.object(train, "_run", side_effect=fault),
        mock.patch.object(evaluation, "predict", side_effect=fault),
        mock.patch.object(sys, "argv", ["pipeline.train", "--recipe", "r.yaml"]),
    ):
        for main in (train.main, lambda: evaluation.main(flags[1:])):
            assert ends(main, "nccl") == (1, False)
            assert str(fault) in capfd.readouterr().err
            assert ends(main, "gloo") == (None, True)


def fail_in_a_step(arguments: list[str], fault: type[Exception]) -> tuple[int, str, str]:
    from pipeline.training import loop

    train_step = loop.train_step

    def failing(*others: Any) -> Any:
        if os.environ["RANK"] == "1":
            raise fault("CUDA out of memory. Tried to allocate 20 GiB.")
        return train_step(*others)

    with mock.patch.object(loop, "train_step", failing):
        return train_here(arguments)


def test_a_gpu_without_memory_is_one_line_that_names_the_micro_batch(arguments: list[str]) -> None:
    answers = run_on_ranks(2, fail_in_a_step, arguments, torch.OutOfMemoryError)
    assert [code for code, _, _ in answers] == [1, 1]  # nobody waits: the other one's connection is gone
    [line] = [line for line in answers[1][2].splitlines() if line.startswith("error: ")]
    assert "batch.micro_size 2: the GPU of rank 1 has no memory left (CUDA out of memory." in line
    assert "Traceback" not in answers[1][2]
    [line] = [line for line in answers[0][2].splitlines() if line.startswith("error: ")]  # it lost the other one
    assert "rank 0 of 2: another rank has ended" in line and "signal 9" in line and "Traceback" not in answers[0][2]


def test_a_fault_of_the_program_keeps_its_traceback(arguments: list[str]) -> None:
    answers = run_on_ranks(2, fail_in_a_step, arguments, AssertionError)
    assert [code for code, _, _ in answers] == [1, 1]
    assert "Traceback" in answers[1][2] and "in failing" in answers[1][2]


def timeouts_of_all_groups(arguments: list[str]) -> list[float]:
    """In seconds, while a run trains: the world's and those that DeepSpeed made."""
    from pipeline.training import loop

    found: list[float] = []

    def look(*others: Any) -> bool:
        for group in dist.distributed_c10d._world.pg_map:
            backend: Any = group._get_backend(torch.device("cpu"))
            found.append(backend.options._timeout.total_seconds())
        return True

    with mock.patch.object(loop, "fit", look):
        assert train_here(arguments)[0] == 0
    return found


def test_no_collective_ends_before_the_deadline_of_a_step(arguments: list[str]) -> None:
    for timeouts in run_on_ranks(2, timeouts_of_all_groups, arguments):
        assert len(timeouts) > 1 and set(timeouts) == {77 * 4 + 300}
