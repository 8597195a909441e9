"""A request to stop: SIGTERM or SIGUSR1 sets a flag that the loop reads between two steps."""

import signal
from types import FrameType

EXIT_STOPPED = 75  # sysexits' EX_TEMPFAIL: stopped on a signal, all saved; the same command resumes


class StopRequest:
    """Installed on construction; `requested` turns true on the first signal."""

    def __init__(self) -> None:
        self.requested = False
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._on_signal)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self.requested = True
