"""The launcher that started this rank, of DeepSpeed or torch: a rank whose launcher was killed is nobody's any more."""

import logging
import os
import signal
import threading
import time
from pathlib import Path

log = logging.getLogger(__name__)
MODULES = {
    b"deepspeed.launcher.launch",  # the process of each node
    b"deepspeed.launcher.runner",  # the one of the user
    b"torch.distributed.run",
    b"torch.distributed.launch",
}
SCRIPTS = (b"/deepspeed", b"/torchrun")
POLL_S = 1.0


class Launcher:
    """The processes of the launcher above this one, as they are now; none where something else started this rank."""

    def __init__(self) -> None:
        self.processes: list[tuple[int, str]] = []
        pid = os.getppid()
        while pid > 1 and _is_launcher(pid):
            self.processes.append((pid, _started(pid)))
            pid = _parent(pid)

    def has_died(self) -> bool:
        """Whether one of them has ended since; a process number that is in use again counts as ended."""
        return any(_started(pid) != started for pid, started in self.processes)


def end_with_launcher() -> None:
    """SIGTERM for this process as soon as its launcher has died: also where its main thread waits in a collective."""
    launcher = Launcher()

    def watch() -> None:
        while not launcher.has_died():
            time.sleep(POLL_S)
        log.warning("the launcher of this rank was killed: stopping")
        os.kill(os.getpid(), signal.SIGTERM)

    if launcher.processes:
        threading.Thread(target=watch, name="launcher", daemon=True).start()


def _is_launcher(pid: int) -> bool:
    """Not a shell or `timeout` above it, which may end before it and mean nothing by it."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    is_script = len(words) > 1 and words[1].endswith(SCRIPTS) and b"python" in words[0]
    return is_script or not MODULES.isdisjoint(words)


def _fields(pid: int) -> list[str]:
    """Of /proc/PID/stat, those after the name: state, parent, ...; [] for a process that has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("ascii", "replace").rpartition(")")[2].split()
    except OSError:
        return []
    return fields if fields[0] not in ("Z", "X") else []


def _parent(pid: int) -> int:
    return int(fields[1]) if (fields := _fields(pid)) else 0


def _started(pid: int) -> str:
    """The kernel's time of its start; empty for a process that has ended."""
    return fields[19] if (fields := _fields(pid)) else ""
