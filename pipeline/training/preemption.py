"""A request to stop: SIGTERM, SIGUSR1, Ctrl-C or the death of the launcher; the loop asks for it between two steps."""

import logging
import signal
from types import FrameType

from pipeline.distributed.launcher import Launcher

log = logging.getLogger(__name__)

EXIT_STOPPED = 75  # sysexits' EX_TEMPFAIL: stopped on a signal, all saved; the same command resumes


class StopRequest:
    """Installed on construction; `requested` turns true on the first signal, or once the launcher is gone."""

    def __init__(self) -> None:
        self._signalled, self._launcher = False, Launcher()
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._signalled = True

    @property
    def requested(self) -> bool:
        if not self._signalled and self._launcher.has_died():
            log.warning("the launcher of this rank was killed: saving, then ending")
            self._signalled = True
        return self._signalled
