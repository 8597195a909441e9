"""A forked command is the command: the same output, exit code and end as `python -m`, and it dies with the demo."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from data_prep.miniature.forks import MODULES, Fork

DEADLINE_S = 30.0
COMMANDS = [
    *((sys.executable, "-m", module, "--help") for module in MODULES),
    (sys.executable, "-m", "data_prep.miniature.towers", "--world", "nowhere", "--output", "x", "--steps-scale", "0"),
    (sys.executable, "-m", "eval.run", "--task", "singing"),
    (sys.executable, "-m", "no.such.module"),
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command[2:5]))
def test_a_fork_says_and_returns_what_python_m_does(command: tuple[str, ...], tmp_path: Path) -> None:
    log = tmp_path / "log"
    real = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert Fork(command, log, {}).wait() == real.returncode
    assert log.read_text().splitlines()[-1].split(": ", 1)[-1] == real.stdout.splitlines()[-1].split(": ", 1)[-1]
    if "no.such.module" not in command:
        assert log.read_text() == real.stdout


def test_a_fork_has_the_environment_that_it_was_given(tmp_path: Path) -> None:
    program = tmp_path / "says.py"
    program.write_text("import os, sys; print(os.environ['SAID'], sys.argv[1:], __name__); sys.exit('bad luck')")
    sys.path.insert(0, str(tmp_path))
    try:
        assert Fork((sys.executable, "-m", "says", "one", "two"), tmp_path / "log", {"SAID": "hello"}).wait() == 1
    finally:
        sys.path.remove(str(tmp_path))
    assert (tmp_path / "log").read_text() == "hello ['one', 'two'] __main__\nbad luck\n"
    assert "SAID" not in os.environ


RANK = """import os, sys
names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
print(*(os.environ[name] for name in names), sys.argv[1:], "data_prep.miniature.forks" in sys.modules, flush=True)
sys.exit(int(os.environ["RANK"]) * int(sys.argv[-1]))
"""


@pytest.mark.parametrize("code", [0, 7])
def test_a_launchers_ranks_are_forks_with_its_variables_and_its_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """The launchers are DeepSpeed's own. The second rank ends with the code."""
    (tmp_path / "rank.py").write_text(RANK)
    monkeypatch.syspath_prepend(str(tmp_path))
    launcher = str(Path(sys.executable).with_name("deepspeed"))
    options = ("--num_gpus", "2", "--master_port", "29876", "--module", "rank", "--set", str(code))
    assert Fork((launcher, *options), tmp_path / "log", {"DS_ACCELERATOR": "cpu"}).wait() == code
    said = sorted(line for line in (tmp_path / "log").read_text().splitlines() if " 127.0.0.1 29876 [" in line)
    wanted = [f"{rank} {rank} 2 127.0.0.1 29876 ['--local_rank={rank}', '--set', '{code}'] True" for rank in range(2)]
    assert said == wanted or code  # a failed rank may end the other before it speaks
    assert subprocess.Popen.__name__ == "Popen"  # in this process


def test_a_fork_is_killed_with_its_parent(tmp_path: Path) -> None:
    (tmp_path / "waits.py").write_text("import os, time; open('pid', 'w').write(str(os.getpid())); time.sleep(600)")
    fork = "from pathlib import Path; from data_prep.miniature.forks import Fork; import sys\n"
    fork += "Fork((sys.executable, '-m', 'waits'), Path('log'), {}).wait()"
    environment = os.environ | {"PYTHONPATH": f"{Path.cwd()}:{tmp_path}"}
    parent = subprocess.Popen([sys.executable, "-c", fork], cwd=tmp_path, env=environment)
    end = time.monotonic() + DEADLINE_S
    while not ((tmp_path / "pid").exists() and (tmp_path / "pid").read_text()):
        assert time.monotonic() < end and parent.poll() is None
        time.sleep(0.05)
    pid = int((tmp_path / "pid").read_text())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < end, "the fork outlives its parent"
        time.sleep(0.05)
