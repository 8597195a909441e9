"""`python -m eval.watch LIST.yaml [--once]`: submit the missing evaluations of every checkpoint, each of them once.

LIST names run folders and what their checkpoints are evaluated on; eval/README.md describes its fields. One evaluation
is a GPU job (eval.run) and a CPU job after it (eval.score, eval.curves, eval.report). Any number of watchers may run at
the same time: one works, the others do nothing. A failed evaluation is named; it is submitted again when its folder is
removed.
"""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.command_line import Parser, finish, one_line, print_settings
from pipeline.files import lock_file

if TYPE_CHECKING:
    from eval.watching.wanted import Evaluation

LOCK = ".watch.lock"
AGAIN = "remove the folder to evaluate again"
FAULTS = {
    "failed": f"its jobs ended without predictions; read their output in the folder; {AGAIN}",
    "not scored": "its jobs ended without scores; read their output in the folder; remove submitted.json to score its "
    "predictions again",
    "outdated": f"outdated: the checkpoint has other weights now; {AGAIN}",
    "other settings": f"outdated: it was evaluated with other settings than the list has now; {AGAIN}",
    "scored with other settings": "outdated: it was scored with other settings than the list has now; remove "
    "submitted.json (and metrics.json, if there) to score its predictions again",
    "predicted": "its jobs ended without scores and its checkpoint is gone; score its predictions with "
    "slurm/score.sbatch",
    "lost": "its jobs ended without predictions and its checkpoint is gone; remove the folder, and let the training "
    "keep the checkpoints that every_steps evaluates (run.keep_every_steps)",
}
FAULTY = "not submitted"
SCRIPTS = Path(__file__).resolve().parent.parent / "slurm"


@contextmanager
def only_one(folder: Path) -> Iterator[int | None]:
    """The lock's descriptor when this process may submit now, else None.

    The kernel releases the lock when this process and its children that inherited the descriptor have ended.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w", encoding="utf-8") as file:
        try:
            lock_file(file, folder / LOCK)
        except BlockingIOError:
            yield None
            return
        yield file.fileno()


def look_once(path: Path, scripts: Path) -> int:
    """Submit what is missing now; print a line for each submission and fault, then the count of each state.

    Returns how many evaluations could not be submitted. Raises ValueError when a run's folder is missing, after all
    others were looked at, and UnansweredError at once when SLURM does not answer.
    """
    from eval.watching.notes import NOTE
    from eval.watching.slurm_commands import queued_jobs
    from eval.watching.wanted import begun_without_checkpoint, evaluations, read_watch_list

    wanted, counts = read_watch_list(path), Counter[str]()
    with only_one(wanted.output) as lock:
        if lock is None:
            print(f"{wanted.output}: another eval.watch is at work there; nothing done", flush=True)
            return 0
        queued = queued_jobs()
        seen = set()
        for evaluation in chain(evaluations(wanted), begun_without_checkpoint(wanted, NOTE)):
            if evaluation.folder not in seen:  # a checkpoint that is removed during this look would come twice
                seen.add(evaluation.folder)
                counts[look_at(evaluation, queued, scripts, lock)] += 1
        print(", ".join(f"{count} {state}" for state, count in sorted(counts.items())) or "no complete checkpoint yet")
        sys.stdout.flush()
    gone = [str(run) for run in wanted.runs if not run.is_dir()]
    if gone:
        raise ValueError(f"{path}: runs: no folder {', '.join(gone)}; correct the path, or wait for its training")
    return counts[FAULTY]


def look_at(evaluation: "Evaluation", queued: set[str], scripts: Path, lock: int) -> str:
    """Submit an evaluation if it is missing; returns its state. Its faults are printed; they stop no other."""
    from eval.watching.jobs import submit
    from eval.watching.slurm_commands import UnansweredError
    from eval.watching.states import jobs_at_work, state_of

    try:
        state = state_of(evaluation, queued)
        if state == "missing":
            jobs = submit(evaluation, scripts, lock)
            state = "submitted" if jobs else "failed"
    except UnansweredError:
        raise
    except (ValueError, OSError) as error:
        if isinstance(error, FileNotFoundError) and not evaluation.has_checkpoint:
            return "checkpoint removed meanwhile"
        print(f"error: {evaluation.folder}: {one_line(error)}", file=sys.stderr, flush=True)
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
    parser.add_argument("list", type=Path, metavar="LIST.yaml", help="run folders and their evaluations")
    parser.add_argument("--once", action="store_true", help="look once and exit, for cron or scrontab")
    parser.add_argument("--every-s", type=float, default=300.0, help="without --once: seconds between looks (300)")
    parser.add_argument("--scripts", type=Path, default=SCRIPTS, help="folder of eval.sbatch and score.sbatch")
    options = parser.parse_args(arguments)
    print_settings(options)

    def work() -> int:
        from eval.watching.wanted import read_watch_list

        if options.once:
            return min(look_once(options.list, options.scripts), 1)
        read_watch_list(options.list)  # a wrong list ends the command; later faults are printed and tried again
        while True:
            try:
                look_once(options.list, options.scripts)
            except (ValueError, OSError) as error:
                print(f"error: {one_line(error)}", file=sys.stderr, flush=True)
            time.sleep(options.every_s)

    return finish(work)


if __name__ == "__main__":
    sys.exit(main())
