"""`python -m eval.watch LIST.yaml [--once]`: submit what is missing of a run's evaluations, once each.

LIST names run folders and what each whole checkpoint is evaluated on (eval/watching/wanted.py has its fields). An
evaluation is a GPU job (eval.run) and a CPU job that follows it (eval.score, curves, report). Any number of these may
run at the same time: one works, the others leave. One that failed is named, and comes again when its folder is removed.
"""

import argparse
import fcntl
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.command_line import Parser, finish, print_settings

if TYPE_CHECKING:
    from eval.watching.wanted import Evaluation

LOCK = ".watch.lock"
AGAIN = "remove the folder to evaluate again"
FAULTS = {
    "failed": f"its jobs ended without predictions, see their output there; {AGAIN}",
    "not scored": "its jobs ended without scores, see their output there; remove submitted.json to score its "
    "predictions again",
    "outdated": f"it is of other weights than the checkpoint's now; {AGAIN}",
    "asked otherwise": f"outdated: it was asked otherwise than the list asks now; {AGAIN}",
    "scored otherwise": "outdated: it was scored with other flags than the list has now; remove submitted.json (and "
    "metrics.json, if there) to score its predictions again",
    "predicted": "its jobs ended without scores and its checkpoint is gone; slurm/score.sbatch scores its predictions",
    "lost": "its jobs ended without scores and its checkpoint is gone; remove the folder, and have the training keep "
    "the checkpoints that every_steps evaluates (run.keep_every_steps)",
}
FAULTY = "not submitted"
SCRIPTS = Path(__file__).resolve().parent.parent / "slurm"


@contextmanager
def only_one(folder: Path) -> Iterator[int | None]:
    """The lock's descriptor when this process may submit now, else None; the kernel takes the lock back when this
    process, and what it handed the descriptor to, have ended, however they do."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        yield file.fileno()


def look_once(path: Path, scripts: Path) -> int:
    """Submit what is missing now; prints a line for each submission and failure, and a count. Returns how many had a
    fault of their own. Raises ValueError at the end when a run's folder is not there, at once when SLURM is silent."""
    from eval.watching.jobs import NOTE, queued_jobs
    from eval.watching.wanted import begun_without_checkpoint, evaluations, read_watch_list

    wanted, counts = read_watch_list(path), Counter[str]()
    with only_one(wanted.output) as lock:
        if lock is None:
            print(f"another one watches {wanted.output} at this moment", flush=True)
            return 0
        queued = queued_jobs()
        seen = set()
        for evaluation in chain(evaluations(wanted), begun_without_checkpoint(wanted, NOTE)):
            if evaluation.folder not in seen:  # its checkpoint may have gone in the course of this look
                seen.add(evaluation.folder)
                counts[look_at(evaluation, queued, scripts, lock)] += 1
        print(", ".join(f"{count} {state}" for state, count in sorted(counts.items())) or "no whole checkpoint yet")
        sys.stdout.flush()
    gone = [str(run) for run in wanted.runs if not run.is_dir()]
    if gone:
        raise ValueError(f"{path}: runs: no folder {', '.join(gone)}; correct it, or wait until its training has begun")
    return counts[FAULTY]


def look_at(evaluation: "Evaluation", queued: set[str], scripts: Path, lock: int) -> str:
    """Submit an evaluation if it is missing; returns its state. A fault of its own is printed, and stops no other."""
    from eval.watching.jobs import UnansweredError, jobs_at_work, state_of, submit

    try:
        state = state_of(evaluation, queued)
        if state == "missing":
            jobs = submit(evaluation, scripts, lock)
            state = "submitted" if jobs else "failed"
    except UnansweredError:
        raise
    except (ValueError, OSError) as error:
        if isinstance(error, FileNotFoundError) and not evaluation.has_checkpoint:
            return "pruned meanwhile"
        print(f"error: {evaluation.folder}: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        return FAULTY
    if state == "submitted":
        print(f"{evaluation.folder}: submitted {' '.join(jobs)}", flush=True)
    if state in FAULTS:
        at_work = jobs_at_work(evaluation, queued)
        cancel = f" (scancel {' '.join(at_work)} before)" if at_work else ""
        print(f"{evaluation.folder}: {FAULTS[state]}{cancel}", file=sys.stderr)
    return state


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m eval.watch", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("list", type=Path, metavar="LIST.yaml")
    parser.add_argument("--once", action="store_true", help="look once and leave, as cron and scrontab want it")
    parser.add_argument("--every-s", type=float, default=300.0, help="else look again after so many seconds (300)")
    parser.add_argument("--scripts", type=Path, default=SCRIPTS, help="folder of eval.sbatch and score.sbatch")
    options = parser.parse_args(arguments)
    print_settings(options)

    num_faulty = 0

    def work() -> None:
        nonlocal num_faulty
        from eval.watching.wanted import read_watch_list

        if options.once:
            num_faulty = look_once(options.list, options.scripts)
            return
        read_watch_list(options.list)  # a wrong list ends it; what comes later is told and tried again
        while True:
            try:
                look_once(options.list, options.scripts)
            except (ValueError, OSError) as error:
                print(f"error: {error}", file=sys.stderr, flush=True)
            time.sleep(options.every_s)

    return finish(work) or min(num_faulty, 1)


if __name__ == "__main__":
    sys.exit(main())
