"""How commands end on a signal, and what they print."""

import logging
import os
import signal

import pytest

from pipeline.command_line import STOPPED, finish, start_log


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
