"""What ends a run from outside: killed at random moments, a rank that hangs, a signal to all processes of a rank."""

import contextlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file

from pipeline.training import checkpoint
from pipeline.weights import native
from tests.support.gloo_ranks import run_on_ranks
from tests.support.tiny_runs import ROOT, Write, lines_of, train_here


def test_killed_at_20_random_moments_it_ends_with_the_same_bits(folder: Path, write: Write) -> None:
    """With a trained encoder; tests/pipeline/training/test_training_run.py kills runs with a frozen one."""
    sections: dict[str, Any] = {"vision": {"trained": True}, "optimizer": {"layer_decay": 0.9}}
    sections |= {"batch": {"global_size": 2, "micro_size": 2}, "run": {"steps": 160, "checkpoint_every_steps": 3}}
    whole = write("whole", **sections)
    [(code, _, errors)] = run_on_ranks(1, train_here, whole)
    assert code == 0, errors
    [_, recipe] = write("killed", **sections)
    command = [sys.executable, "-m", "tests.support.kill_loop", "20", "1", recipe]
    loop = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert loop.returncode == 0, loop.stderr
    deaths = json.loads(loop.stdout.splitlines()[-1])
    print(f"killed at steps {[step for step, _ in deaths]}, {sum(saving for _, saving in deaths)} in a save")
    assert len(deaths) == 20 and any(saving for _, saving in deaths)
    for name in (native.FILE_NAME, checkpoint.OPTIMIZER):
        found, wanted = (checkpoint.folder_of(folder / run, 160) / name for run in ("killed", "whole"))
        one, other = load_file(found), load_file(wanted)
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    keys = ("step", "samples", "loss", "gradient_norm")
    found, wanted = ([[line[key] for key in keys] for line in lines_of(folder / run)] for run in ("killed", "whole"))
    assert found == wanted


def hang_rank_1(arguments: list[str], how: str, errors: str) -> None:
    """In its third step. The ranks' errors go to files, as their ends leave no time to return them."""
    from pipeline import train
    from pipeline.training import loop, watchdog

    train_step = loop.train_step

    def hanging(engine: Any, batches: Any, places: Any, recipe: Any, progress: Any, ahead: Any) -> Any:
        if progress.step == 2 and os.environ["RANK"] == "1":
            if how == "stops its worker":
                [worker] = multiprocessing.active_children()
                assert worker.pid is not None
                Path(f"{errors}.worker").write_text(str(worker.pid))
                os.kill(worker.pid, signal.SIGSTOP)
                return train_step(engine, batches, places, recipe, progress, ahead)
            if how == "stops":
                os.kill(os.getpid(), signal.SIGSTOP)
            time.sleep(600)
        return train_step(engine, batches, places, recipe, progress, ahead)

    os.dup2(os.open(f"{errors}{os.environ['RANK']}", os.O_CREAT | os.O_WRONLY), 2)
    with (
        mock.patch.object(loop, "train_step", hanging),
        mock.patch.object(watchdog, "GRACE_S", 2.0),
        mock.patch.object(sys, "argv", ["pipeline.train", *arguments]),
    ):
        train.main()


def wait_until_ended(pid: int) -> None:
    """A killed process needs a moment to end. A zombie has ended."""
    stat = Path("/proc", str(pid), "stat")
    for _ in range(300):
        try:
            if ") Z " in stat.read_text():
                return
        except OSError:
            return
        time.sleep(0.1)
    raise AssertionError(f"process {pid} goes on: {stat.read_text()}")


@pytest.mark.parametrize("how", ["sleeps", "stops", "stops its worker"])
def test_a_hung_rank_leaves_every_ranks_stacks_and_ends_the_job(
    how: str, folder: Path, write: Write, tmp_path: Path
) -> None:
    """A rank that is stopped can write none: the others name it. Its stopped worker ends with it."""
    batch, started = {"global_size": 4, "micro_size": 2}, time.monotonic()
    arguments = write(how, batch=batch, data={"num_workers": 1}, run={"hang_deadline_s": 5.0})
    with pytest.raises(AssertionError, match="died without an answer"):
        run_on_ranks(2, hang_rank_1, arguments, how, str(tmp_path / "errors"))
    assert time.monotonic() - started < 300  # of 600 that the rank would sleep
    stacks = [(folder / how / "stacks" / f"rank{rank}.txt").read_text() for rank in range(2)]
    errors = (tmp_path / "errors0").read_text()
    if how == "stops its worker":  # some prefetched batches later
        assert "rank 1 hung for so many seconds in step" in (tmp_path / "errors1").read_text()
        assert "dataloader.py" in stacks[1]
        wait_until_ended(int((tmp_path / "errors.worker").read_text()))
        return
    assert "train_step" in stacks[0]  # in a collective of it
    assert [path.name for path in checkpoint.complete_checkpoints(folder / how)] == ["step_00000002"]
    assert "rank 0 hung for so many seconds in step 2" in errors
    if how == "stops":
        assert not stacks[1] and "has the stacks of all ranks, but of 1: stopped (SIGSTOP)" in errors
    else:
        last = [json.loads((folder / how / "stacks" / f"rank{n}.collectives.json").read_bytes()) for n in range(2)]
        waiting, hung = (each["entries"] for each in last)
        assert len(waiting) == len(hung) + 1 and waiting[-1]["profiling_name"].startswith("gloo:")
        assert "hanging" in stacks[1] and "test_stops.py" in stacks[1] and "but of" not in errors


def test_a_run_saves_and_ends_with_its_launcher(folder: Path, write: Write, tmp_path: Path) -> None:
    """The user's process is killed, and nothing else."""
    arguments = write("no launcher", batch={"global_size": 2, "micro_size": 2}, run={"steps": 100_000})
    script = tmp_path / "torchrun"
    script.write_text("import subprocess, sys; subprocess.run([sys.executable, '-m', 'pipeline.train', *sys.argv[1:]])")
    options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    command = [sys.executable, str(script), *arguments]
    with subprocess.Popen(command, cwd=ROOT, start_new_session=True, **options) as launcher:
        metrics, deadline = folder / "no launcher" / "metrics.jsonl", time.monotonic() + 300
        while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.1)
        launcher.kill()
        try:
            output, _ = launcher.communicate(timeout=120)  # that of the rank, to its end
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(launcher.pid, signal.SIGKILL)
    assert "the launcher of this rank was killed: stopping" in output and "stopping on a signal" in output
    last = lines_of(folder / "no launcher")[-1]["step"]
    assert checkpoint.complete_checkpoints(folder / "no launcher")[-1].name == f"step_{last:08.0f}"


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT], ids=["SIGTERM", "SIGUSR1", "Ctrl-C"]
)
def test_a_signal_to_a_rank_and_its_workers_is_the_ranks(folder: Path, write: Write, number: signal.Signals) -> None:
    """As SLURM and a terminal send it, to every process of a step."""
    name, run = f"group {number.name}", {"steps": 100_000, "checkpoint_every_steps": 50_000}
    arguments = write(name, batch={"global_size": 2, "micro_size": 2}, data={"num_workers": 2}, run=run)
    command = [sys.executable, "-m", "pipeline.train", *arguments]
    options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, cwd=ROOT, start_new_session=True, **options) as process:
        metrics, deadline = folder / name / "metrics.jsonl", time.monotonic() + 300
        while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
            assert process.poll() is None, process.stdout.read() if process.stdout else ""
            time.sleep(0.1)
        os.killpg(process.pid, number)
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 75, output
    assert len(checkpoint.complete_checkpoints(folder / name)) == 1
