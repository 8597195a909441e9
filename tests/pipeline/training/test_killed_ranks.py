"""Ranks and workers that are killed, by a person or by the kernel when memory runs out, and ranks that are stopped."""

import multiprocessing
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import get_worker_info

from pipeline.training import checkpoint
from pipeline.weights import native
from tests.support.gloo_ranks import ends_of_ranks
from tests.support.small_memory import memory_group, use_up_memory
from tests.support.tiny_runs import Write, lines_of

AT_STEP = 2
BATCH = {"global_size": 4, "micro_size": 2}


def train_until(
    arguments: list[str],
    output: str,
    fault: Callable[[str], None] | None,
    of_rank_0: Callable[[str], None] | None = None,
) -> int:
    """`pipeline.train` in a rank, its stderr in `output` and its number; in rank 1, `fault(output)` at a step."""
    from pipeline import train
    from pipeline.training import loop, watchdog

    train_step = loop.train_step

    def faulty(engine: Any, batches: Any, places: Any, recipe: Any, progress: Any, ahead: Any) -> Any:
        due = fault if os.environ["RANK"] == "1" else of_rank_0
        if due and progress.step == AT_STEP:
            due(output)
        return train_step(engine, batches, places, recipe, progress, ahead)

    Path(f"{output}{os.environ['RANK']}.pid").write_text(str(os.getpid()))  # before the ranks meet
    os.dup2(os.open(f"{output}{os.environ['RANK']}", os.O_CREAT | os.O_WRONLY | os.O_TRUNC), 2)
    with (
        mock.patch.object(loop, "train_step", faulty),
        mock.patch.object(sys, "argv", ["pipeline.train", *arguments]),
        mock.patch.object(train, "DEAF_S", 2.0),
        mock.patch.object(watchdog, "DEAF_S", 2.0),
    ):
        return train.main()


def die(group: Path | None) -> None:
    if group:
        use_up_memory(group)
    os.kill(os.getpid(), signal.SIGKILL)


def train_until_killed(arguments: list[str], output: str, group: Path | None, is_worker: bool) -> int:
    """Rank 1, or its worker, is killed."""
    from pipeline.data import loader

    collate, calls = loader.InSharedMemory.__call__, count()

    def dying(self: Any, samples: Any) -> Any:
        if get_worker_info() and os.environ["RANK"] == "1" and next(calls) == AT_STEP:
            die(group)
        return collate(self, samples)

    if not is_worker:
        return train_until(arguments, output, lambda _output: die(group))
    with mock.patch.object(loader.InSharedMemory, "__call__", dying):
        return train_until(arguments, output, None)


def assert_same_run(folder: Path, name: str) -> None:
    """It ended as the undisturbed one: weights, moments and metrics."""
    for file in (native.FILE_NAME, checkpoint.OPTIMIZER):
        one, other = (load_file(checkpoint.folder_of(folder / run, 8) / file) for run in (name, "whole"))
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    keys = ("step", "samples", "loss", "gradient_norm")
    one, other = ([[line[key] for key in keys] for line in lines_of(folder / run)] for run in (name, "whole"))
    assert one == other


@pytest.fixture(scope="module", autouse=True)
def whole(write: Write, folder: Path) -> None:
    assert ends_of_ranks(2, train_until, write("whole", batch=BATCH), str(folder / "said"), None) == [0, 0]


@pytest.mark.parametrize("how", ["killed", "without memory"])
@pytest.mark.parametrize("who", ["rank", "worker"])
def test_all_ranks_end_in_one_line_each_and_the_next_start_goes_on(
    who: str, how: str, folder: Path, write: Write, tmp_path: Path
) -> None:
    name, said, is_worker = f"{who} {how}", str(tmp_path / "said"), who == "worker"
    arguments = write(name, batch=BATCH, data={"num_workers": int(is_worker)})
    with ExitStack() as stack:
        group = stack.enter_context(memory_group()) if how == "without memory" else None
        codes = ends_of_ranks(2, train_until_killed, arguments, said, group, is_worker)
    assert codes == ([1, 1] if is_worker else [1, -signal.SIGKILL])
    lines = [[line for line in Path(f"{said}{rank}").read_text().splitlines() if "rror" in line] for rank in (0, 1)]
    [lost] = lines[0]
    assert lost.startswith("error: rank 0 of 2: another rank has ended") and "signal 9 when memory runs out" in lost
    if is_worker:
        [killed] = lines[1]
        assert "error: data.num_workers 1: a worker of the loader was killed" in killed and "lower data.num_w" in killed
    assert not [path for path in (folder / name).rglob("*") if path.suffix in (".partial", ".lock")]
    assert ends_of_ranks(2, train_until, arguments, said, None) == [0, 0]
    assert_same_run(folder, name)


def stop(processes: list[int], then: Callable[[], None]) -> None:
    """Stop this process, the last one, and others; a child of it does something when they are."""
    if not os.fork():
        try:
            while not all(") T " in Path(f"/proc/{each}/stat").read_text() for each in processes):
                time.sleep(0.05)
            then()
        finally:
            os._exit(0)
    for each in processes:
        os.kill(each, signal.SIGSTOP)


def stop_and_be_ended(output: str) -> None:
    """A child does what a launcher does: it asks all ranks to stop, and kills this one when the other has ended."""
    ranks = [int(Path(f"{output}{rank}.pid").read_text()) for rank in (0, 1)]

    def end() -> None:
        for rank in ranks:
            os.kill(rank, signal.SIGTERM)
        while Path(f"/proc/{ranks[0]}/fd/2").exists():  # of a zombie it is not
            time.sleep(0.1)
        os.kill(ranks[1], signal.SIGKILL)

    stop([ranks[1]], end)


def be_ended_after_stop(output: str) -> None:
    """Hear the signal when the other rank is stopped, and before waiting for it."""
    other = Path(f"/proc/{Path(f'{output}1.pid').read_text()}/stat")
    while ") T " not in other.read_text():
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGTERM)


def stop_until_killed(output: str) -> None:
    first = int(Path(f"{output}0.pid").read_text())

    def end() -> None:
        while Path(f"/proc/{first}/fd/2").exists():
            time.sleep(0.1)
        os.kill(os.getppid(), signal.SIGKILL)

    stop([os.getpid()], end)


def stop_for_a_moment(output: str) -> None:
    """This rank and its worker."""
    own = [*(each.pid for each in multiprocessing.active_children() if each.pid), os.getpid()]

    def go_on() -> None:
        time.sleep(1.0)
        Path(f"{output}.stopped").touch()
        for each in own:
            os.kill(each, signal.SIGCONT)

    stop(own, go_on)


def test_a_signal_ends_a_rank_that_waits_for_a_stopped_one_long_before_the_deadline(
    folder: Path, write: Write, tmp_path: Path
) -> None:
    arguments, said = write("deaf", batch=BATCH, run={"hang_deadline_s": 100_000.0}), str(tmp_path / "said")
    assert ends_of_ranks(2, train_until, arguments, said, stop_and_be_ended) == [75, -signal.SIGKILL]
    told = Path(f"{said}0").read_text()  # the signal came in the midst of a collective, or just before it
    assert re.search("stopped by (SIGTERM, which was not heard for|a signal, after) 2 s.*; run the same command", told)
    assert ends_of_ranks(2, train_until, arguments, said, None) == [0, 0]
    assert_same_run(folder, "deaf")


def test_a_signal_that_is_heard_before_the_wait_for_a_stopped_rank_ends_it_too(
    folder: Path, write: Write, tmp_path: Path
) -> None:
    arguments, said = write("heard", batch=BATCH, run={"hang_deadline_s": 100_000.0}), str(tmp_path / "said")
    assert ends_of_ranks(2, train_until, arguments, said, stop_until_killed, be_ended_after_stop) == [
        75,
        -signal.SIGKILL,
    ]
    assert "stopped by a signal, after 2 s of waiting for others; run the same" in Path(f"{said}0").read_text()
    assert ends_of_ranks(2, train_until, arguments, said, None) == [0, 0]
    assert_same_run(folder, "heard")


def test_a_stopped_rank_that_goes_on_in_time_changes_nothing(folder: Path, write: Write, tmp_path: Path) -> None:
    arguments, said = write("stopped", batch=BATCH, data={"num_workers": 1}), str(tmp_path / "said")
    assert ends_of_ranks(2, train_until, arguments, said, stop_for_a_moment) == [0, 0]
    assert Path(f"{said}.stopped").exists()
    assert_same_run(folder, "stopped")
