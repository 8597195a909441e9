"""Runs the commands of the demo in order, some at the same time, each once; it survives kill -9 at any point.

A finished step leaves `steps/NAME.json`. It is skipped while its output exists, and its command, its recipe files and
all earlier steps are the same. Every process of a step has the step's name in its environment. So processes that a
killed demo left running are found and ended before anything is started again.
"""

import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from pipeline.files import replace_file

POLL_S = 0.25
STOP_GRACE_S = 10.0
MIB = 1 << 20
MARK = "BLIP2_DEMO_STEP"


@dataclass(frozen=True)
class Step:
    """One command as a user would type it. It is done when `output` exists.

    `beside` is a command that runs at the same time, once for all steps of a group that name the same. `folder` is
    moved aside when the step was started with another command, recipe or earlier steps: its content would be refused or
    mixed.
    """

    name: str
    command: tuple[str, ...]
    output: Path
    beside: tuple[str, ...] | None = None
    folder: Path | None = None


class StepFailed(Exception):
    """A command ended with an error; the text names the step and its log."""


def _started_by(mark: str) -> list[psutil.Process]:
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


def _end(mark: str) -> None:
    """Terminate the processes of a mark; kill those that do not end."""
    members = _started_by(mark)
    for act in (psutil.Process.terminate, psutil.Process.kill):
        for process in members:
            with suppress(psutil.Error):
                act(process)
        _, members = psutil.wait_procs(members, timeout=STOP_GRACE_S)


class Runner:
    """Runs steps in a folder, and notes their seconds and memory."""

    def __init__(self, folder: Path, num_steps: int) -> None:
        self.folder, self.num_steps, self.number = folder, num_steps, 0
        self.chain = ""
        for name in ("steps", "begun", "logs"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        _end(self._mark())

    def _mark(self, *parts: str) -> str:
        return "/".join([str(self.folder.resolve()), *parts])

    def run_group(self, group: Sequence[Step]) -> None:
        """Run steps at the same time, each once. Raises StepFailed when one fails; the others are then ended too."""
        keys = {step.name: self._key(step) for step in group}
        pending = []
        for step in group:
            self.number += 1
            title = f"[{self.number}/{self.num_steps}] {step.name}"
            if self._is_done(step, keys[step.name]):
                print(f"{title}: already done", flush=True)
            else:
                print(f"{title}\n    {shlex.join(step.command)}", flush=True)
                pending.append(step)
        with ExitStack() as started:
            besides = {
                f"{name}-beside": started.enter_context(self._start(f"{name}-beside", command))
                for command, name in {step.beside: step.name for step in pending if step.beside}.items()
            }
            for step in pending:
                self._make_room(step, keys[step.name])
            steps = {step: started.enter_context(self._start(step.name, step.command)) for step in pending}
            self._wait(steps, keys, besides)
        self.chain = hashlib.sha256("".join([self.chain, *keys.values()]).encode()).hexdigest()

    def _key(self, step: Step) -> str:
        recipes = [Path(word).read_text() for word in step.command if word.endswith(".yaml")]
        return hashlib.sha256(json.dumps([self.chain, step.command, recipes]).encode()).hexdigest()

    def _stamp(self, step: Step) -> Path:
        return self.folder / "steps" / f"{step.name}.json"

    def _is_done(self, step: Step, key: str) -> bool:
        stamp = self._stamp(step)
        return stamp.exists() and json.loads(stamp.read_text())["key"] == key and step.output.exists()

    def _make_room(self, step: Step, key: str) -> None:
        begun = self.folder / "begun" / step.name
        if step.folder and step.folder.exists() and begun.exists() and begun.read_text() != key:
            old = step.folder.with_name(f"{step.folder.name}.old")
            shutil.rmtree(old, ignore_errors=True)
            step.folder.rename(old)
            print(f"    {step.name} was started with other settings; its old folder is now {old}", flush=True)
        begun.write_text(key)

    @contextmanager
    def _start(self, name: str, command: tuple[str, ...]) -> "Iterator[_Running]":
        """A running command. When the context ends, the command and all its processes are ended."""
        log = self.folder / "logs" / f"{name}.log"
        with log.open("ab") as output:
            output.write(f"$ {shlex.join(command)}\n".encode())
            output.flush()
            environment = os.environ | {MARK: self._mark(name)}
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
        try:
            yield _Running(process, log, time.monotonic())
        finally:
            _end(self._mark(name))
            process.wait()

    def _wait(self, running: dict[Step, "_Running"], keys: dict[str, str], besides: dict[str, "_Running"]) -> None:
        peaks = dict.fromkeys(running, 0)
        together = 0
        while running:
            time.sleep(POLL_S)
            for name, each in besides.items():
                if (code := each.process.poll()) is not None:
                    raise StepFailed(_failure(name, each.log, code))
            sizes = {step: _resident_mib(each.process.pid) for step, each in running.items()}
            together = max(together, sum(sizes.values()))
            _show({step.name: each for step, each in running.items()})
            for step, each in list(running.items()):
                peaks[step] = max(peaks[step], sizes[step])
                code = each.process.poll()
                if code is None:
                    continue
                del running[step]
                if code != 0 or not step.output.exists():
                    raise StepFailed(_failure(step.name, each.log, code))
                seconds = time.monotonic() - each.started
                self._note_done(step, keys[step.name], seconds, max(together, peaks[step]))

    def _note_done(self, step: Step, key: str, seconds: float, peak_rss_mb: int) -> None:
        content = {"key": key, "seconds": round(seconds, 1), "peak_rss_mb": peak_rss_mb, "command": step.command}
        replace_file(self._stamp(step), json.dumps(content))
        clear = "\r\033[K" if sys.stdout.isatty() else ""
        print(f"{clear}    {step.name}: {seconds:.0f} s", flush=True)


@dataclass(frozen=True)
class _Running:
    process: subprocess.Popen[bytes]
    log: Path
    started: float


def _resident_mib(leader: int) -> int:
    """The resident memory of a command and all its processes; shared pages are counted for each process."""
    total = 0
    try:
        top = psutil.Process(leader)
        members = [top, *top.children(recursive=True)]
    except psutil.Error:
        return 0
    for process in members:
        try:
            total += process.memory_info().rss
        except psutil.Error:
            continue
    return total // MIB


def _last_line(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 2000))
        lines = file.read().decode(errors="replace").replace("\r", "\n").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _show(running: dict[str, _Running]) -> None:
    """On a terminal: one line with the running steps, their seconds and the last line of their logs."""
    if not sys.stdout.isatty():
        return
    parts = [
        f"{name} {time.monotonic() - each.started:.0f} s: {_last_line(each.log)}" for name, each in running.items()
    ]
    width = os.get_terminal_size().columns // max(1, len(parts)) - 7
    print("\r\033[K    " + " | ".join(part[:width] for part in parts), end="", flush=True)


def _failure(name: str, log: Path, code: int) -> str:
    tail = "\n".join(log.read_text(errors="replace").replace("\r", "\n").splitlines()[-15:])
    return f"{tail}\nerror: step {name}: ended with exit code {code}; correct the cause (log: {log}) and run this again"


def stop_on_signals() -> None:
    """Let SIGTERM end the demo as Ctrl-C does: its processes are ended too."""

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
