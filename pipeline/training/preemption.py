"""A request to stop: SIGTERM, SIGUSR1, Ctrl-C or the death of the launcher; the loop asks for it between two steps."""

import logging
import signal
import threading
from types import FrameType

from pipeline.distributed.launcher import Launcher

log = logging.getLogger(__name__)

EXIT_STOPPED = 75  # sysexits' EX_TEMPFAIL: stopped on a signal, all saved; the same command resumes
DEAF_S = 60.0
"""Seconds that a signal may wait for the end of a collective. A rank that reads slowly keeps the others waiting, too,
and all are to save when it has come."""


class StopRequest:
    """Installed on construction; `requested` turns true on the first signal, or once the launcher is gone."""

    def __init__(self) -> None:
        self.heard, self._launcher = threading.Event(), Launcher()
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self.heard.set()

    @property
    def requested(self) -> bool:
        if not self.heard.is_set() and self._launcher.has_died():
            log.warning("the launcher of this rank was killed: saving, then ending")
            self.heard.set()
        return self.heard.is_set()
