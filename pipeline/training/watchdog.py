"""A deadline for every step: a rank that hangs, or waits for a rank that hangs, writes its stacks and ends the job.

The last collectives are written, too. The one that a rank has not entered, or not ended, shows who waits for whom.
"""

import faulthandler
import multiprocessing
import os
import sys
import threading
import time
from pathlib import Path
from types import TracebackType

from pipeline.command_line import AGAIN
from pipeline.distributed import process_group
from pipeline.training.preemption import DEAF_S, EXIT_STOPPED, StopRequest

FIRST_STEP_FACTOR = 4  # the first step also starts loaders and kernels
GRACE_S = 10.0  # between a rank's stacks and its end, in which the others write theirs
STUCK_S = 10.0  # after it: a thread that holds Python's lock for ever is ended all the same
MARGIN_S = 300.0


def collective_timeout_s(deadline_s: float) -> float:
    """How long torch lets a collective last: longer than any deadline here, which also leaves the stacks."""
    return deadline_s * FIRST_STEP_FACTOR + MARGIN_S


class Watchdog:
    """`beat` at each step. After `deadline_s` without one, stacks go to RUN/stacks/rankN.txt and the process ends.

    Python's faulthandler writes them from a thread of its own: also when the interpreter is stuck in a library. A
    signal to stop does not wait so long for a rank that is stopped, or dead: DEAF_S or a few steps, until all `save`.
    """

    def __init__(self, run_folder: Path, deadline_s: float, stop: StopRequest) -> None:
        self.deadline_s, self.step, self.stop, self.saves = deadline_s, -1, stop, False
        self.longest_s = 0.0  # between two beats
        self.path = run_folder / "stacks" / f"rank{process_group.rank()}.txt"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.file = self.path.open("w", encoding="utf-8")
        self.done = threading.Event()
        self._arm(deadline_s * FIRST_STEP_FACTOR)
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def _arm(self, seconds: float) -> None:
        self.began = time.monotonic()
        self.ends = self.began + seconds
        faulthandler.dump_traceback_later(seconds, file=self.file)

    def beat(self, step: int | None = None) -> None:
        """`step` begins now; without a number, the same step has moved on."""
        if self.step >= 0:
            self.longest_s = max(self.longest_s, time.monotonic() - self.began)
        self.step = self.step if step is None else step
        self._arm(self.deadline_s)

    def save(self) -> None:
        """All ranks are here, and what is left is to write: a signal to stop waits for that."""
        self.saves = True

    def _watch(self) -> None:
        told = 0.0  # the deadline whose collectives are written
        heard = 0.0  # when the signal to stop was seen
        while not self.done.wait(1.0):
            if self.stop.requested and not self.saves:
                heard = heard or time.monotonic()
                patience_s = max(DEAF_S, 3 * self.longest_s)
                if time.monotonic() > max(heard, self.began) + patience_s:
                    print(
                        f"stopped by a signal, after {patience_s:.0f} s of waiting for others{AGAIN}", file=sys.stderr
                    )
                    sys.stderr.flush()
                    os._exit(EXIT_STOPPED)
            if time.monotonic() > self.ends != told:
                told = self.ends
                faulthandler.dump_traceback_later(GRACE_S + STUCK_S, file=self.file, exit=True)
                process_group.write_last_collectives(self.path.with_suffix(".collectives.json"))
            if time.monotonic() > self.ends + GRACE_S:
                for worker in multiprocessing.active_children():
                    worker.kill()  # one that is stopped would never notice that its rank has ended
                where = f"in step {self.step}" if self.step >= 0 else "before its first step"
                print(
                    f"error: run.hang_deadline_s {self.deadline_s:.0f}: rank {process_group.rank()} hung for so many "
                    f"seconds {where}; {self.path.parent} has the stacks of all ranks{self._silent()}",
                    file=sys.stderr,
                    flush=True,
                )
                os._exit(1)  # the main thread may be stuck for ever

    def _silent(self) -> str:
        """The ranks that wrote no stacks, though they share the folder: only a process that runs can write them."""
        files = {rank: self.path.with_name(f"rank{rank}.txt") for rank in range(process_group.world_size())}
        ranks = [str(rank) for rank, file in files.items() if file.exists() and not file.stat().st_size]
        return f", but of {', '.join(ranks)}: stopped (SIGSTOP), or on a machine that does not answer" if ranks else ""

    def __enter__(self) -> "Watchdog":
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _at: TracebackType | None
    ) -> None:
        self.done.set()
        faulthandler.cancel_dump_traceback_later()
        self.file.close()
        if not self.path.stat().st_size:
            self.path.unlink()
