"""img2dataset that fails or is killed by the kernel: the download ends in one line, and waits for no lost work."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from data_prep.web import fetching
from data_prep.web.fetch_worker import KILLED
from tests.support.small_memory import memory_group

SETTINGS = fetching.FetchSettings(5.0, 20.0, 0, 0.1, 1, 1, 10_000, "tests", True)
ROOT = Path(__file__).parents[3]
POOL = """
import multiprocessing, os, signal, sys, time
from pathlib import Path
from data_prep.web import fetch_worker
from tests.support import small_memory
group = sys.argv.pop(1)
def die(number):
    time.sleep(0.6)  # img2dataset's need seconds to start
    if number == 1:
        if group:
            small_memory.use_up_memory(Path(group))
        os.kill(os.getpid(), signal.SIGKILL)
    return number
fetch_worker.GRACE_S = 1.0
fetch_worker.end_with_killed_process()
with multiprocessing.get_context("fork").Pool(2, maxtasksperchild=1) as pool:
    print(sorted(pool.imap_unordered(die, [int(each) for each in sys.argv[1:]])))
    pool.apply_async(time.sleep, [60])
    time.sleep(0.5)
time.sleep(2)  # the pool has ended this one by SIGTERM
"""


def ended_with(group: Path | None, numbers: str) -> int:
    command = [sys.executable, "-c", POOL, str(group or ""), *numbers.split()]
    return subprocess.run(command, check=False, cwd=ROOT, capture_output=True, timeout=60).returncode


@pytest.mark.parametrize(("numbers", "code"), [("0 2 3 4 5", 0), ("0 2 1 3 4", KILLED)])
def test_a_pool_ends_with_a_killed_process_and_not_with_one_that_has_done_its_work(numbers: str, code: int) -> None:
    assert ended_with(None, numbers) == code


def test_a_pool_ends_with_a_process_that_the_kernel_kills_for_memory() -> None:
    with memory_group() as group:
        assert ended_with(group, "0 2 1 3 4") == KILLED


@pytest.mark.parametrize("code", [KILLED, -9])
def test_the_download_says_that_memory_was_short(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "_run_worker", lambda *_arguments: code)
    with pytest.raises(ValueError, match=r"--processes 1: a process of img2dataset was killed by signal 9, .* memory"):
        fetching.fetch({0: "http://localhost/a.jpg"}, tmp_path / "work", SETTINGS)


def test_the_log_that_is_left_cannot_steer_the_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(folder: Path, *_others: Any) -> int:
        (folder / "log.txt").write_bytes(b"a server: \x1b[2J\x9b31m\nthe end: \x1b]0;title\x07\n")
        return 3

    monkeypatch.setattr(fetching, "_run_worker", fail)
    with pytest.raises(ValueError, match=r"img2dataset ended with 3 and without a result \(the end: "):
        fetching.fetch({0: "http://localhost/a.jpg"}, tmp_path / "work", SETTINGS)
    [log] = (tmp_path / "work").rglob("log.txt")
    text = log.read_text()
    assert text.replace("\n", "").isprintable() and "\\x1b[2J" in text
