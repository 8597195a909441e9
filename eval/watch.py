"""`python -m eval.watch LIST.yaml [--once]`: submit or run the missing evaluations of every checkpoint, each once.

LIST names run folders and what their checkpoints are evaluated on; eval/README.md describes its fields. One evaluation
is a GPU job (eval.run) and a CPU job after it (eval.score, eval.curves, eval.report), of SLURM or, with --run-here, of
this machine. Any number of watchers may run at the same time: one works, the others do nothing. A failed evaluation is
named; it is begun again when its folder is removed.
"""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.command_line import Parser, finish, one_line, positive, print_settings, seconds
from pipeline.files import lock_file, open_lock

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
FAILED_NOW = "failed now"
SCRIPTS = Path(__file__).resolve().parent.parent / "slurm"


@contextmanager
def only_one(folder: Path) -> Iterator[int | None]:
    """The lock's descriptor when this process may submit now, else None.

    The kernel releases the lock when this process and its children that inherited the descriptor have ended.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open_lock(folder / LOCK) as file:
        try:
            lock_file(file, folder / LOCK)
        except BlockingIOError:
            yield None
            return
        yield file.fileno()


def look_once(path: Path, site: "Site") -> int:
    """Submit or run what is missing now; print a line for each and for each fault, then the count of each state.

    Returns how many could not be submitted, or failed here now. Raises ValueError when a run's folder is missing, after
    all others were looked at, and UnansweredError at once when SLURM does not answer.
    """
    from eval.watching.notes import NOTE
    from eval.watching.wanted import begun_without_checkpoint, evaluations, read_watch_list

    wanted, counts = read_watch_list(path), Counter[str]()
    with only_one(wanted.output) as lock:
        if lock is None:
            print(f"{wanted.output}: another eval.watch is at work there; nothing done", flush=True)
            return 0
        queued = site.queued()
        seen = set()
        for evaluation in chain(evaluations(wanted), begun_without_checkpoint(wanted, NOTE)):
            if evaluation.folder not in seen:  # a checkpoint that is removed during this look would come twice
                seen.add(evaluation.folder)
                counts[look_at(evaluation, queued, site, lock)] += 1
        print(", ".join(f"{count} {state}" for state, count in sorted(counts.items())) or "no complete checkpoint yet")
        sys.stdout.flush()
    gone = [str(run) for run in wanted.runs if not run.is_dir()]
    if gone:
        raise ValueError(f"{path}: runs: no folder {', '.join(gone)}; correct the path, or wait for its training")
    return counts[FAULTY] + counts[FAILED_NOW]


@dataclass(frozen=True)
class Site:
    """Where evaluations are done: as jobs of SLURM, by these scripts, or here, on so many GPUs."""

    scripts: Path
    gpus_here: int | None = None

    def queued(self) -> set[str]:
        """The numbers of SLURM's jobs that wait or run; none where SLURM does not answer and is not needed."""
        from eval.watching.slurm_commands import queued_jobs

        try:
            return queued_jobs()
        except ValueError:
            if not self.gpus_here:
                raise
            return set()

    def begin(self, evaluation: "Evaluation", lock: int) -> tuple[str, str]:
        """The state that a missing evaluation has now, and what to print about it."""
        if self.gpus_here:
            from eval.watching.here import evaluate

            print(f"{evaluation.folder}: evaluating", flush=True)
            state = evaluate(evaluation, self.gpus_here, lock)
            return (FAILED_NOW if state in FAULTS else state), FAULTS.get(state, state)
        from eval.watching.jobs import submit

        jobs = submit(evaluation, self.scripts, lock)
        return ("submitted", f"submitted {' '.join(jobs)}") if jobs else ("failed", "")


def look_at(evaluation: "Evaluation", queued: set[str], site: Site, lock: int) -> str:
    """Begin an evaluation if it is missing; returns its state. Its faults are printed; they stop no other."""
    from eval.watching.slurm_commands import UnansweredError
    from eval.watching.states import jobs_at_work, state_of

    try:
        state = state_of(evaluation, queued)
        if state == "missing":
            state, told = site.begin(evaluation, lock)
            if told:
                is_fault = state == FAILED_NOW
                print(f"{evaluation.folder}: {told}", file=sys.stderr if is_fault else sys.stdout, flush=True)
    except UnansweredError:
        raise
    except (ValueError, OSError) as error:
        if isinstance(error, FileNotFoundError) and not evaluation.has_checkpoint:
            return "checkpoint removed meanwhile"
        print(f"error: {evaluation.folder}: {one_line(error)}", file=sys.stderr, flush=True)
        return FAULTY
    if state in FAULTS:
        at_work = jobs_at_work(evaluation, queued)
        cancel = f" (scancel {' '.join(at_work)} before)" if at_work else ""
        print(f"{evaluation.folder}: {FAULTS[state]}{cancel}", file=sys.stderr)
    return state


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m eval.watch", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("list", type=Path, metavar="LIST.yaml", help="run folders and their evaluations")
    parser.add_argument("--once", action="store_true", help="look once and exit, for cron or scrontab")
    parser.add_argument("--every-s", type=seconds, default=300.0, help="without --once: seconds between looks (300)")
    parser.add_argument("--scripts", type=Path, default=SCRIPTS, help="folder of eval.sbatch and score.sbatch")
    parser.add_argument("--run-here", action="store_true", help="run them on this machine, one after another")
    parser.add_argument("--gpus", type=positive, default=1, metavar="N", help="of --run-here: GPUs of eval.run (1)")
    options = parser.parse_args(arguments)
    if options.gpus > 1 and not options.run_here:
        parser.error(f"--gpus {options.gpus}: is for --run-here; jobs take GPUs by the list's sbatch options")
    print_settings(options)
    site = Site(options.scripts, options.gpus if options.run_here else None)

    def work() -> int:
        from eval.watching.wanted import read_watch_list

        if options.once:
            return min(look_once(options.list, site), 1)
        read_watch_list(options.list)  # a wrong list ends the command; later faults are printed and tried again
        while True:
            try:
                look_once(options.list, site)
            except (ValueError, OSError) as error:
                print(f"error: {one_line(error)}", file=sys.stderr, flush=True)
            time.sleep(options.every_s)

    return finish(work)


if __name__ == "__main__":
    sys.exit(main())
