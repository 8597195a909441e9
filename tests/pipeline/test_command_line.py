"""How commands end on a signal, and what they print."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest

from pipeline import command_line
from pipeline.command_line import STOPPED, finish, start_log

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_is_not_lost_where_errors_are_swallowed(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    """As in the imports of large libraries, which try what they may do without."""

    def work() -> int:
        try:
            os.kill(os.getpid(), number)
            signal.pause()
        except Exception:
            return 0
        return 0

    before = signal.getsignal(number)
    assert finish(work) == STOPPED
    assert signal.Signals(number).name in capsys.readouterr().err
    assert signal.getsignal(number) == before


STEERING = "a \x1b[2J\x1b]0;title\x07 \x9b31m \u202e b"


def test_an_error_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> int:
        raise ValueError(f"--input {STEERING}\n: caf\u00e9")

    assert finish(work) == 1
    said = capsys.readouterr().err
    assert said == "error: --input a \\x1b[2J\\x1b]0;title\\x07 \\x9b31m \\u202e b : caf\u00e9\n"


def test_a_log_line_cannot_steer_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    start_log(logging.WARNING)
    logging.getLogger("a server").warning("it says %s\nand more", STEERING)
    said = capsys.readouterr().err
    assert said.endswith("\nand more\n") and said.removesuffix("\nand more\n").isprintable()


def _asks_torch() -> None:
    import torch

    torch.empty(1 << 60)


@pytest.mark.parametrize("work", [lambda: bytes(1 << 60), _asks_torch], ids=["Python's", "torch's"])
def test_memory_that_ran_out_is_one_line(work: Callable[[], None], capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.finish(work) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: memory ran out (") and said.endswith("give the job more memory\n")
    assert said.count("\n") == 1


DEAF = """
import ctypes, os, signal, sys, threading
from pipeline import command_line
command_line.DEAF_S = 0.5
def work():
    threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM)).start()
    ctypes.CDLL(None).system(b"exec sleep 30 >/dev/null 2>&1")  # in C, where a signal interrupts nothing
    print("not ended by the signal")
sys.exit(command_line.finish(work))
"""


def test_a_signal_that_the_main_thread_cannot_hear_ends_the_command() -> None:
    run = subprocess.run(
        [sys.executable, "-c", DEAF], check=False, cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (run.returncode, run.stdout) == (75, "") and "stopped by SIGTERM, which was not heard" in run.stderr


def test_a_signal_to_a_child_is_not_its_parents() -> None:
    """A forked child has the parent's handlers, and its pipe."""

    leave = os._exit

    def work() -> None:
        child = os.fork()
        if not child:
            signal.signal(signal.SIGTERM, lambda _number, _frame: leave(7))
            time.sleep(60)
        time.sleep(0.2)
        os.kill(child, signal.SIGTERM)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        time.sleep(0.5)

    with mock.patch.object(command_line, "DEAF_S", 0.1), mock.patch.object(os, "_exit") as ended:
        assert command_line.finish(work) == 0
    assert not ended.called


SPEAKING = r"""
import os, sys
from pipeline.command_line import Parser, finish
Parser().parse_args([])
def work():
    print("caf\u00e9 \u732b \U0001f600")
    print("/data/" + os.fsdecode(bytes([233])))
    raise ValueError("/data/\u732b \udcff: is missing")
sys.exit(finish(work))
"""


@pytest.mark.parametrize("encoding", ["ascii", "iso-8859-1", "utf-8"])
def test_what_a_terminal_cannot_show_is_escaped(encoding: str) -> None:
    """A path keeps its bytes, which may be another encoding's: a script reads the last line."""
    environment = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "1"}
    run = subprocess.run(
        [sys.executable, "-c", SPEAKING], check=False, cwd=ROOT, env=environment, capture_output=True, timeout=60
    )
    shown = {
        "ascii": b"caf\\xe9 \\u732b \\U0001f600",
        "iso-8859-1": b"caf\xe9 \\u732b \\U0001f600",
        "utf-8": "caf\u00e9 \u732b \U0001f600".encode(),
    }
    assert run.stdout.splitlines() == [shown[encoding], b"/data/\xe9"], run.stderr
    assert run.returncode == 1 and run.stderr.startswith(b"error: /data/") and b"Traceback" not in run.stderr


def test_in_a_locale_without_utf8_an_error_with_a_path_says_what_helps() -> None:
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    for text, helped in ((r"/data/\udcc3\udca9: is no folder", True), ("/data/e: is no folder", False)):
        code = f"from pipeline.command_line import one_line; print(one_line(ValueError('{text}')))"
        run = subprocess.run(
            [sys.executable, "-c", code], check=True, cwd=ROOT, env=environment, capture_output=True, text=True
        )
        assert ("PYTHONUTF8=1" in run.stdout) is helped
