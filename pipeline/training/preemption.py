"""A request to stop: SIGTERM, SIGUSR1 or Ctrl-C; the loop asks for it between two steps."""

import signal
import threading
from types import FrameType

EXIT_STOPPED = 75  # sysexits' EX_TEMPFAIL: stopped on a signal, all saved; the same command resumes
DEAF_S = 60.0
"""Seconds that a signal may wait for the end of a collective. A rank that reads slowly keeps the others waiting, too,
and all are to save when it has come."""


class StopRequest:
    """Installed on construction; `requested` turns true on the first signal."""

    def __init__(self) -> None:
        self.heard = threading.Event()
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self.heard.set()

    @property
    def requested(self) -> bool:
        return self.heard.is_set()
