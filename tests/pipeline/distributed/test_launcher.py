"""Ranks notice that their launcher was killed; a rank that waits for others hears signals."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.distributed import process_group
from pipeline.distributed.launcher import Launcher
from tests.support.gloo_ranks import free_port
from tests.support.tiny_runs import ROOT

RANK = """
import sys, time
from pipeline.distributed.launcher import Launcher
launcher = Launcher()
print(len(launcher.processes), launcher.has_died(), flush=True)
sys.stdin.readline()  # until the test has killed the launcher
for _ in range(600):
    if launcher.has_died():
        print("noticed", flush=True)
        break
    time.sleep(0.05)
"""
LAUNCH = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[2]])"
RUNNER = "import subprocess, sys; subprocess.run([sys.executable, '-c', *sys.argv[1:]])"


@pytest.mark.parametrize("above", ["deepspeed", "torchrun", "shell"])
def test_a_rank_notices_that_its_launcher_was_killed(above: str, tmp_path: Path) -> None:
    """The user's process, not the rank's parent, is killed. A shell with the same words is no launcher."""
    script = tmp_path / ("something" if above == "shell" else above)
    script.write_text(RUNNER)
    module = "deepspeed and its words" if above == "shell" else "deepspeed.launcher.launch"
    command = [sys.executable, str(script), LAUNCH, module, RANK]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    runner = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    with runner:
        assert runner.stdout is not None and runner.stdin is not None
        found = 0 if above == "shell" else 2
        assert runner.stdout.readline().split() == [str(found), "False"]
        if above == "shell":
            runner.stdin.close()
            runner.kill()
            return
        runner.kill()
        os.waitid(os.P_PID, runner.pid, os.WEXITED | os.WNOWAIT)
        runner.stdin.write("\n")
        runner.stdin.flush()
        assert runner.stdout.readline() == "noticed\n"


def test_a_process_that_no_launcher_started_has_none() -> None:
    assert Launcher().processes == [] and not Launcher().has_died()


ENDING = """
import sys, time
from pipeline.command_line import finish
from pipeline.distributed.launcher import end_with_launcher
def work():
    end_with_launcher()
    print("ready", flush=True)
    time.sleep(60)
print(finish(work), flush=True)
"""


def test_an_evaluation_ends_with_its_launcher(tmp_path: Path) -> None:
    """Its ranks look at no flag between two steps: SIGTERM ends them."""
    script = tmp_path / "torchrun"
    script.write_text(RUNNER)
    command = [sys.executable, str(script), ENDING]
    options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, **options) as runner:
        assert runner.stdout is not None and runner.stderr is not None
        assert runner.stdout.readline() == "ready\n"
        runner.kill()
        assert runner.stdout.readline() == "75\n"  # of the rank, which has its launcher's outputs
        assert "launcher of this rank was killed" in runner.stderr.read()


WAITING = """
import sys
import torch.distributed
from pipeline.command_line import finish
from pipeline.distributed import process_group
print("ready", flush=True)
sys.exit(finish(process_group.initialise))
"""


def test_a_rank_that_waits_for_others_hears_sigterm() -> None:
    place = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    with subprocess.Popen(
        [sys.executable, "-c", WAITING], cwd=ROOT, env=os.environ | place, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as rank:  # fmt: skip
        assert rank.stdout is not None
        assert rank.stdout.readline() == "ready\n"
        with pytest.raises(subprocess.TimeoutExpired):
            rank.wait(1.0)
        rank.send_signal(signal.SIGTERM)
        _, errors = rank.communicate(timeout=60)
    assert rank.returncode == 75 and "stopped by SIGTERM" in errors


@pytest.mark.parametrize(("step_tasks", "ranks"), [("1", 1), ("8", 8), (None, 8)])
def test_a_shell_in_an_allocation_of_eight_tasks_is_one_rank(
    step_tasks: str | None, ranks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shell that salloc opens is a step of one task; srun's step has as many as there are ranks."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.delenv("SLURM_STEP_NUM_TASKS", raising=False)
    monkeypatch.setenv("SLURM_STEP_ID", "4294967290")
    monkeypatch.setenv("SLURM_NTASKS", "8")
    if step_tasks:
        monkeypatch.setenv("SLURM_STEP_NUM_TASKS", step_tasks)
    assert process_group.world_size() == ranks
