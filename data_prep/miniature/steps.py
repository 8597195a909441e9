"""Runs the commands of the demo, side by side where their needs allow it, each once; it survives kill -9.

A finished step leaves `steps/NAME.json`. It is skipped while its output exists, and its command, its recipe files and
all steps that it needs are the same.
"""

import hashlib
import json
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from data_prep.miniature.processes import Running, end_marked, give_way, start
from data_prep.miniature.schedule import Step, seconds_left, startable, time_to_end, usual_s
from pipeline.files import replace_file

POLL_S = 0.25
MOST_AT_ONCE = 4
"""More steps at the same time would need more than 8 GB."""


class StepFailed(Exception):
    """A command ended with an error; the text names the step and its log."""


def steps_at_once() -> int:
    """One for each core. The two ranks of a training wait for each other often: another step then uses their cores."""
    return min(MOST_AT_ONCE, max(2, len(os.sched_getaffinity(0))))


class Runner:
    """Runs steps in a folder, and notes their seconds and memory."""

    def __init__(self, folder: Path, steps: Sequence[Step], at_once: int) -> None:
        self.folder, self.steps, self.at_once, self.number = folder, steps, at_once, 0
        for name in ("steps", "begun", "logs"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        end_marked(self._mark())
        self.time_to_end = time_to_end(steps)
        self.keys: dict[str, str] = {}
        for step in steps:
            self.keys[step.name] = self._key(step)
        self.waiting: list[Step] = []
        self.running: dict[Step, Running] = {}
        self.servers: dict[tuple[str, ...], Running] = {}
        self.peaks: dict[Step, int] = {}

    def run(self) -> None:
        """Run all steps, each after those it needs. Raises StepFailed when one fails; the others are then ended."""
        self.waiting = [step for step in self.steps if not self._is_done(step)]
        for step in self.steps:
            if step not in self.waiting:
                print(f"{self._title(step)}: already done", flush=True)
        try:
            while self.waiting or self.running:
                for step in startable(self.waiting, self.running, self.at_once):
                    self._start(step)
                time.sleep(POLL_S)
                self._poll()
        finally:
            for each in (*self.running.values(), *self.servers.values()):
                each.end()

    def _mark(self, *parts: str) -> str:
        return "/".join([str(self.folder.resolve()), *parts])

    def _title(self, step: Step) -> str:
        self.number += 1
        return f"[{self.number}/{len(self.steps)}] {step.name}"

    def _key(self, step: Step) -> str:
        recipes = [Path(word).read_text(encoding="utf-8") for word in step.command if word.endswith(".yaml")]
        needs = [self.keys[name] for name in step.needs]
        return hashlib.sha256(json.dumps([needs, step.command, recipes]).encode()).hexdigest()

    def _stamp(self, step: Step) -> Path:
        return self.folder / "steps" / f"{step.name}.json"

    def _is_done(self, step: Step) -> bool:
        stamp = self._stamp(step)
        return (
            stamp.exists()
            and json.loads(stamp.read_text(encoding="utf-8"))["key"] == self.keys[step.name]
            and step.output.exists()
        )

    def _start(self, step: Step) -> None:
        _print(f"{self._title(step)}\n    {shlex.join(step.command)}")
        self._make_room(step)
        if step.beside and step.beside not in self.servers:
            self.servers[step.beside] = self._launch(f"{step.name}-beside", step.beside)
        running = self._launch(step.name, step.command)
        if any(self.time_to_end[other.name] > self.time_to_end[step.name] for other in self.running):
            give_way(running)
        self.running[step] = running
        self.waiting.remove(step)

    def _launch(self, name: str, command: tuple[str, ...]) -> Running:
        return start(name, command, self.folder / "logs" / f"{name}.log", self._mark(name))

    def _make_room(self, step: Step) -> None:
        begun, key = self.folder / "begun" / step.name, self.keys[step.name]
        if step.folder and step.folder.exists() and begun.exists() and begun.read_text(encoding="utf-8") != key:
            old = step.folder.with_name(f"{step.folder.name}.old")
            shutil.rmtree(old, ignore_errors=True)
            step.folder.rename(old)
            _print(f"    {step.name} was started with other settings; its old folder is now {old}")
        begun.write_text(key, encoding="utf-8")

    def _poll(self) -> None:
        """Look at every running command once, and note those that ended."""
        for server in self.servers.values():
            if (code := server.process.poll()) is not None:
                raise StepFailed(server.failure(code))
        together = sum(each.resident_mib() for each in self.running.values())
        for step, each in list(self.running.items()):
            self.peaks[step] = max(self.peaks.get(step, 0), together)
            code = each.process.poll()
            if code is None:
                continue
            if code != 0 or not step.output.exists():
                raise StepFailed(each.failure(code))
            self.running.pop(step).end()
            self._note_done(step, each.elapsed_s())
        needed = {step.beside for step in (*self.waiting, *self.running)}
        for command in set(self.servers) - needed:
            self.servers.pop(command).end()
        self._show()

    def _note_done(self, step: Step, seconds: float) -> None:
        content = {"key": self.keys[step.name], "seconds": round(seconds, 1), "peak_rss_mb": self.peaks[step]}
        replace_file(self._stamp(step), json.dumps({**content, "command": step.command}))
        left = len(self.waiting) + len(self.running)
        ending = f"; left: {left} steps, about {self._time_left()}" if left else ""
        look = f"\n    look at {step.output}" if step.output.suffix == ".html" else ""
        _print(f"    {step.name}: {seconds:.0f} s{ending}{look}")

    def _time_left(self) -> str:
        """The time until the last step, as slow as the finished steps were."""
        done = [step for step in self.steps if step not in self.waiting and step not in self.running]
        took_s = sum(json.loads(self._stamp(step).read_text(encoding="utf-8"))["seconds"] for step in done)
        slowness = took_s / sum(map(usual_s, done)) if done else 1.0
        elapsed_s = {step: each.elapsed_s() for step, each in self.running.items()}
        left_s = seconds_left(self.waiting, elapsed_s, self.at_once, lambda step: slowness * usual_s(step))
        minutes, seconds = divmod(round(left_s), 60)
        return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"

    def _show(self) -> None:
        """On a terminal: one line with the time left, and the last line of each running step's log."""
        if not sys.stdout.isatty():
            return
        parts = [f"{self._time_left()} left"]
        parts += [f"{step.name} {each.elapsed_s():.0f} s: {each.last_line()}" for step, each in self.running.items()]
        width = (os.get_terminal_size().columns - len(parts[0])) // max(1, len(self.running)) - 7
        line = " | ".join([parts[0], *(part[:width] for part in parts[1:])])
        print(f"\r\033[K    {line}", end="", flush=True)


def _print(text: str) -> None:
    clear = "\r\033[K" if sys.stdout.isatty() else ""
    print(f"{clear}{text}", flush=True)


def run_all(folder: Path, steps: Sequence[Step]) -> int:
    """Run the steps in a folder. The exit code: 0, 1 after a failed step, 75 after Ctrl-C or SIGTERM."""

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    try:
        Runner(folder, steps, steps_at_once()).run()
    except StepFailed as failure:
        print(failure, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; run the same command again to continue", file=sys.stderr)
        return 75
    return 0
