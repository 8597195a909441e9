"""Starts and ends the processes of the demo's steps, and measures their memory.

Every process of a step has the step's name in its environment. So processes that a killed demo left running are found
and ended before anything is started again.
"""

import os
import shlex
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from data_prep.miniature import forks

STOP_GRACE_S = 10.0
MIB = 1 << 20
MARK = "BLIP2_DEMO_STEP"
LESS_URGENT = 10  # a tenth of a core beside a step that is urgent


@dataclass(frozen=True)
class Running:
    """A command that was started, and its log."""

    name: str
    process: subprocess.Popen[bytes] | forks.Fork
    mark: str
    log: Path
    started: float = field(default_factory=time.monotonic)

    def elapsed_s(self) -> float:
        return time.monotonic() - self.started

    def resident_mib(self) -> int:
        """The memory of the command and all its processes; shared pages are counted for each process."""
        total = 0
        with suppress(psutil.Error):
            top = psutil.Process(self.process.pid)
            for process in [top, *top.children(recursive=True)]:
                with suppress(psutil.Error):
                    total += process.memory_info().rss
        return total // MIB

    def end(self) -> None:
        """End the command and all processes that it started."""
        own = [psutil.Process(self.process.pid)] if self.process.poll() is None else []
        if isinstance(self.process, forks.Fork):  # whose forks die with it, and have no mark: ranks save first
            with suppress(psutil.Error):
                _end([child for top in own for child in top.children(recursive=True)])
        _end(list({*own, *_marked(self.mark)}))
        self.process.wait()

    def last_line(self) -> str:
        with self.log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 2000))
            lines = file.read().decode(errors="replace").replace("\r", "\n").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    def failure(self, code: int) -> str:
        """The end of the log, and one line that names the step."""
        tail = "\n".join(self.log.read_text(errors="replace", encoding="utf-8").replace("\r", "\n").splitlines()[-15:])
        return (
            f"{tail}\nerror: step {self.name}: ended with exit code {code}; "
            f"correct the cause (log: {self.log}) and run this again"
        )


def start(name: str, command: tuple[str, ...], log: Path, mark: str) -> Running:
    """Start a command; its output is appended to the log."""
    environment = os.environ | {MARK: mark}
    with log.open("ab") as output:
        output.write(f"$ {shlex.join(command)}\n".encode())
        output.flush()
        if forks.can_fork(command):
            forks.import_training() if Path(command[0]).name == forks.LAUNCHER else forks.import_libraries()
            return Running(name, forks.Fork(command, log, environment), mark, log)
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
        return Running(name, process, mark, log)


def give_way(running: Running) -> None:
    """From now on, the command's processes compute when others leave a core to them."""
    with suppress(OSError):  # it has ended
        niceness = os.getpriority(os.PRIO_PROCESS, running.process.pid)
        os.setpriority(os.PRIO_PROCESS, running.process.pid, min(niceness + LESS_URGENT, 19))


def end_marked(mark: str) -> None:
    _end(_marked(mark))


def _end(members: list[psutil.Process]) -> None:
    """Terminate processes; kill those that do not end."""
    for act in (psutil.Process.terminate, psutil.Process.kill):
        for process in members:
            with suppress(psutil.Error):
                act(process)
        _, members = psutil.wait_procs(members, timeout=STOP_GRACE_S)


def _marked(mark: str) -> list[psutil.Process]:
    """Running processes whose environment has the mark, or one that begins with the mark and a slash."""
    members = []
    for process in psutil.process_iter():
        try:
            found = process.environ().get(MARK, "")
        except (psutil.Error, OSError):
            continue
        if found == mark or found.startswith(f"{mark}/"):
            members.append(process)
    return members
