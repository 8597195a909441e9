"""How commands end on a signal."""

import os
import signal

import pytest

from pipeline.command_line import STOPPED, finish


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
