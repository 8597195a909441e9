"""Work in a fork of this process, beside its own: a plan's runs are independent, and each takes seconds of one core."""

import signal
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, Generic, TypeVar

from pipeline.command_line import STOPS

Result = TypeVar("Result")


class Aside(Generic[Result]):
    """Begins `work` in a fork, where the platform has one; `result()` waits for it.

    Where the fork fails, the work is done here: so its error is raised here. In a process that has run a backward pass
    before, torch refuses another one in a fork.
    """

    def __init__(self, work: Callable[[], Result]) -> None:
        self.work = work
        context: Any = get_context("fork")
        self.receiver, sender = context.Pipe(duplex=False)
        self.process = context.Process(target=_send, args=(work, sender), daemon=True)
        self.process.start()
        sender.close()

    def result(self) -> Result:
        try:
            found: Result = self.receiver.recv()
        except EOFError:
            found = self.work()
        finally:
            self.process.join()
        return found


def _send(work: Callable[[], Any], sender: Connection) -> None:
    for number in STOPS:  # the parent tells of them
        signal.signal(number, signal.SIG_DFL)
    with suppress(Exception):
        sender.send(work())
