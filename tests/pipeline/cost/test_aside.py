"""Work in a fork: it runs beside this process, and where the fork fails it is done here, with its error."""

import os
import signal
import sys
import time

import pytest

from pipeline.command_line import STOPPED, finish
from pipeline.cost.aside import Aside


def test_work_is_done_in_another_process() -> None:
    here = os.getpid()
    made, parent = Aside(lambda: (os.getpid(), os.getppid())).result()
    assert made != here and parent == here


@pytest.mark.parametrize("end", [lambda: int("no number"), lambda: sys.exit(3), lambda: os._exit(3)])
def test_work_that_fails_in_a_fork_is_done_here(end: object, capfd: pytest.CaptureFixture[str]) -> None:
    here = os.getpid()

    def work() -> int:
        if os.getpid() != here:
            end()  # type: ignore[operator]
        return os.getpid()

    assert Aside(work).result() == here
    assert capfd.readouterr() == ("", ""), "the fork's fault is not the user's"


def test_its_error_is_raised_here() -> None:
    aside = Aside(lambda: int("no number"))
    with pytest.raises(ValueError, match="no number"):
        aside.result()


def test_a_signal_that_its_parent_hears_ends_it_in_silence(capfd: pytest.CaptureFixture[str]) -> None:
    """As Ctrl-C does, which every process of a terminal gets."""

    def work() -> None:
        aside = Aside(lambda: time.sleep(60))
        time.sleep(0.5)  # until it has begun
        assert aside.process.pid
        os.kill(aside.process.pid, signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    assert finish(work) == STOPPED
    out, err = capfd.readouterr()
    assert not out and err == "stopped by SIGINT; run the same command again to continue\n"
