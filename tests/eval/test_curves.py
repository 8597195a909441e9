"""Scores to TensorBoard while it is open: event files are only added, and late points stand in their place."""

import fcntl
import json
import os
import re
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any

import pytest

from eval import report
from eval.curves import main, write_tensorboard

ROOT = Path(__file__).parents[2]
TAG = "vqa/accuracy vqa v2"
Points = list[tuple[int, float]]


def score(run: Path, step: int, value: float, name: str = "vqa") -> Path:
    """What eval.score leaves of an evaluation."""
    row = {"name": "accuracy", "protocol": "vqa/v2", "subset": "overall", "value": value, "low": None, "high": None}
    folder = run / f"step_{step:08d}" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.json").write_text(json.dumps({"task": "vqa", "n": 1, "metrics": [row]}))
    return folder / "metrics.json"


def draw(run: Path) -> Path | None:
    written, faults = write_tensorboard(run)
    assert not faults
    return written


def event_files(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((run / "tensorboard").glob("*tfevents*"))}


def old_event_file(run: Path, points: Points) -> None:
    """The single file of versions before, which was written anew each time and had no restarts."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter

    (run / "tensorboard").mkdir(parents=True)
    with (run / "tensorboard" / "events.out.tfevents.0000000000.eval").open("wb") as file:
        writer = RecordWriter(file)
        writer.write(Event(wall_time=1.0, file_version="brain.Event:2").SerializeToString())
        for step, value in points:
            summary = Summary(value=[Summary.Value(tag=TAG, simple_value=value)])
            writer.write(Event(wall_time=1.0, step=step, summary=summary).SerializeToString())


class Open:
    """TensorBoard's own readers of a folder, of both kinds, which stay open."""

    def __init__(self, run: Path) -> None:
        from tensorboard.backend.event_processing import event_accumulator, plugin_event_accumulator

        folder = str(run / "tensorboard")
        self.legacy: Any = event_accumulator.EventAccumulator(folder)
        self.slow: Any = plugin_event_accumulator.EventAccumulator(folder)

    def points(self, tag: str = TAG) -> Points:
        from tensorboard.util.tensor_util import make_ndarray

        self.legacy.Reload()
        self.slow.Reload()
        points = [(each.step, round(each.value, 3)) for each in self.legacy.Scalars(tag)]
        slow = [(each.step, round(float(make_ndarray(each.tensor_proto)), 3)) for each in self.slow.Tensors(tag)]
        assert points == slow
        return points


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "stage2").mkdir()
    return tmp_path / "stage2"


def test_open_readers_see_each_new_point_in_its_place_and_no_file_changes(run: Path) -> None:
    score(run, 2, 20)
    score(run, 6, 60)
    draw(run)
    reader = Open(run)
    assert reader.points() == [(2, 20), (6, 60)]
    wanted = {2: 20.0, 6: 60.0}
    for step, value in ((8, 80), (4, 40), (6, 61.5), (1, 10)):  # the next, a late one, one scored again, the first
        before = event_files(run)
        score(run, step, value)
        wanted[step] = value
        written = draw(run)
        assert written and list(event_files(run)) == [*before, written.name]  # its name sorts last
        assert before.items() <= event_files(run).items()
        assert reader.points() == sorted(wanted.items()) == Open(run).points()


def test_a_late_point_of_one_evaluation_leaves_the_others_whole(run: Path) -> None:
    for step in (2, 4):
        score(run, step, step)
    draw(run)
    reader = Open(run)
    reader.points()
    score(run, 2, 22, "blind")
    draw(run)
    assert reader.points() == [(2, 2), (4, 4)] and reader.points(TAG.replace("vqa/", "blind/", 1)) == [(2, 22)]


def test_nothing_new_writes_no_file(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = score(run, 2, 1 / 3)
    assert draw(run)
    before = event_files(run)
    os.utime(path, (5, 5))  # scored again, to the same number
    assert draw(run) is None and event_files(run) == before
    assert main([str(run)]) == 0 and "nothing new" in capsys.readouterr().out


def test_the_single_file_of_older_versions_goes_on_without_duplicates(run: Path) -> None:
    old_event_file(run, [(2, 20), (6, 60), (8, 80)])
    reader = Open(run)
    assert reader.points() == [(2, 20), (6, 60), (8, 80)]
    before = event_files(run)
    for step, value in ((2, 20), (4, 40), (6, 60), (8, 80)):
        score(run, step, value)
    draw(run)
    assert before.items() <= event_files(run).items() and len(event_files(run)) == 2
    assert reader.points() == [(2, 20), (4, 40), (6, 60), (8, 80)] == Open(run).points()


def test_an_event_file_cut_short_is_made_up_for(run: Path) -> None:
    for step in (2, 4):
        score(run, step, step)
    written = draw(run)
    assert written
    os.truncate(written, written.stat().st_size - 5)
    draw(run)
    assert Open(run).points() == [(2, 2), (4, 4)]


def wait_until_waited_for(lock: IO[str]) -> None:
    """Until another process or thread waits for this lock."""
    number = f":{os.fstat(lock.fileno()).st_ino} "
    wait_for(lambda: any("->" in line and number in line for line in Path("/proc/locks").read_text().splitlines()), 60)


def test_scores_are_read_while_no_other_job_draws(run: Path) -> None:
    """The job that waits draws what was scored meanwhile, too; else its file would take the other's point away."""
    score(run, 4, 40)
    draw(run)
    score(run, 2, 20)
    with (run / "tensorboard" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        waiting = threading.Thread(target=write_tensorboard, args=[run])
        waiting.start()
        wait_until_waited_for(lock)
        score(run, 6, 60)
    waiting.join()
    assert Open(run).points() == [(2, 20), (4, 40), (6, 60)]


@pytest.mark.parametrize("content", ["", '{"metrics": [', "[]", '{"task": "vqa", "n": 1, "metrics": [{}]}'])
def test_a_file_that_is_not_readable_is_named_and_the_others_are_drawn(
    content: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in (2, 4, 6):
        score(run, step, step)
    bad = run / "step_00000004" / "vqa" / "metrics.json"
    bad.write_text(content)
    for _ in range(2):
        assert main([str(run)]) == 1
        error = capsys.readouterr().err
        assert str(bad) in error and error.count("\n") == 1
        assert Open(run).points() == [(2, 2), (6, 6)]
    score(run, 4, 4)
    assert main([str(run)]) == 0 and Open(run).points() == [(2, 2), (4, 4), (6, 6)]


def test_a_folder_without_scores_is_named(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run)]) == 1
    assert f"{run}: no step_" in capsys.readouterr().err and not (run / "tensorboard").exists()


def test_an_open_tensorboard_follows_with_and_without_its_data_server(run: Path) -> None:
    score(run, 2, 20)
    score(run, 6, 60)
    draw(run)
    with ExitStack() as stack:
        servers = [stack.enter_context(tensorboard(run, kind)) for kind in ("true", "false")]
        for step, value in ((6, 60), (8, 80), (4, 40), (8, 81)):
            score(run, step, value)
            draw(run)
            wanted = [(at, float(json.loads(path.read_text())["metrics"][0]["value"])) for at, path in scored(run)]
            for server in servers:
                wait_for(partial(shows, server, wanted), 60)


def scored(run: Path) -> list[tuple[int, Path]]:
    return [(int(path.parts[-3].removeprefix("step_")), path) for path in sorted(run.glob("step_*/*/metrics.json"))]


@contextmanager
def tensorboard(run: Path, load_fast: str) -> Iterator[str]:
    """The address of a server on loopback."""
    program = Path(sys.prefix) / "bin" / "tensorboard"
    options = [f"--logdir={run}", "--host=127.0.0.1", "--port=0", f"--load_fast={load_fast}", "--reload_interval=1"]
    log = run.parent / f"{load_fast}.log"
    with log.open("w") as output:
        process = subprocess.Popen([program, *options], stdout=output, stderr=output, stdin=subprocess.DEVNULL)
    try:
        found = wait_for(lambda: re.search(r"http://127.0.0.1:\d+", log.read_text()), 120)
        yield found[0]
    finally:
        process.terminate()
        process.wait(timeout=30)


def shows(address: str, wanted: Points) -> bool:
    return served(address) == wanted


def served(address: str) -> Points:
    query = urllib.parse.urlencode({"run": "tensorboard", "tag": TAG})
    try:
        with urllib.request.urlopen(f"{address}/data/plugin/scalars/scalars?{query}", timeout=10) as answer:
            return [(step, round(value, 3)) for _, step, value in json.load(answer)]
    except urllib.error.HTTPError:  # it has not read the run yet
        return []


def wait_for(reached: Callable[[], Any], deadline_s: float) -> Any:
    end = time.monotonic() + deadline_s
    while not (found := reached()):
        assert time.monotonic() < end, f"not reached in {deadline_s} s"
        time.sleep(0.1)
    return found


def test_of_two_reports_the_last_one_shows_all_scores(run: Path) -> None:
    """Jobs that score at the same time write one page; it is read and written under a lock, as the curves are."""
    run.mkdir(exist_ok=True)
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    summary, page = run / "summary.json", run / "report.html"
    command = [sys.executable, "-m", "eval.report", str(run), "--output", str(page), "--summary", str(summary)]
    with (run / ".report.html.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as waiting:
            wait_until_waited_for(lock)
            summary.write_text('{"scored meanwhile": 61.25}')
            fcntl.flock(lock, fcntl.LOCK_UN)
    assert waiting.returncode == 0 and "scored meanwhile" in page.read_text()


def test_a_pipe_in_the_place_of_a_reports_lock_is_named(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run.mkdir(exist_ok=True)
    os.mkfifo(run / ".report.html.lock")
    assert report.main([str(run), "--output", str(run / "report.html")]) == 1
    assert ".report.html.lock: is not a regular file, and a lock is; remove it" in capsys.readouterr().err
