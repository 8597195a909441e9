"""The emulated SLURM cluster of `slurm_cluster.sh` for tests: start it, submit to it, watch its jobs, end it."""

import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

SCRIPT = Path(__file__).with_suffix(".sh")
POLL_S = 0.5  # a look starts three processes
OF_A_CLUSTER = re.compile(r"(SLURM|SBATCH|SRUN|BLIP2)_|MASTER_|RANK$|WORLD_SIZE$|LOCAL_RANK$")


class NoClusterError(Exception):
    """This machine cannot run one; the message is the reason."""


class Cluster:
    """A running cluster whose state lies in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def act(self, action: str, *arguments: str) -> None:
        subprocess.run([SCRIPT, action, self.folder, *arguments], check=True, timeout=60)

    def run(
        self, command: list[str], variables: dict[str, str] | None = None, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """A command on the controller's host, with `variables` and nothing of another cluster's in its environment."""
        environment = {name: value for name, value in os.environ.items() if not OF_A_CLUSTER.match(name)}
        return subprocess.run(
            [SCRIPT, "enter", self.folder, *command],
            check=False,
            cwd=cwd,
            env=environment | (variables or {}),
            capture_output=True,
            text=True,
            timeout=600,
        )

    def answer(self, *command: str) -> str:
        """The standard output of a command that must succeed."""
        done = self.run(list(command))
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def facts(self, job: str) -> dict[str, str]:
        """What `scontrol show job` says: JobState, Restarts, NodeList, ExitCode, ..."""
        words = self.answer("scontrol", "--oneliner", "show", "job", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait_for(self, job: str, reached: Callable[[dict[str, str]], bool], deadline_s: float = 240) -> dict[str, str]:
        """The job's facts as soon as they are as wanted. Raises AssertionError with them at the deadline."""
        end = time.monotonic() + deadline_s
        while not reached(facts := self.facts(job)):
            assert time.monotonic() < end, f"job {job} is not there after {deadline_s} s: {facts}"
            time.sleep(POLL_S)
        return facts

    def wait_until_ended(self, job: str, deadline_s: float = 240) -> dict[str, str]:
        waiting = ("PENDING", "RUNNING", "SIGNALING", "COMPLETING", "CONFIGURING", "REQUEUED")
        return self.wait_for(job, lambda facts: facts["JobState"] not in waiting, deadline_s)


@contextmanager
def running_cluster(folder: Path, nodes: int) -> Iterator[Cluster]:
    """A cluster of `nodes` nodes for the length of the block. It ends with this process too, however that ends."""
    process = subprocess.Popen(
        [SCRIPT, "up", folder, str(nodes)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdin and process.stdout and process.stderr
    try:
        if process.stdout.readline() != "ready\n":
            raise NoClusterError(process.stderr.read().strip())
        yield Cluster(folder)
    finally:
        process.stdin.close()  # the cluster lives as long as this pipe
        process.wait(timeout=30)
        process.stdout.close()
        process.stderr.close()
