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
from pathlib import Path

from eval.command_line import Parser, finish, print_settings

LOCK = ".watch.lock"
FAULTS = {
    "failed": "its jobs ended without scores, see their output there",
    "outdated": "it is of other weights than the checkpoint's now",
}
SCRIPTS = Path(__file__).resolve().parent.parent / "slurm"


@contextmanager
def only_one(folder: Path) -> Iterator[bool]:
    """Whether this process is the one that may submit now; the kernel takes the lock back however it ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def look_once(path: Path, scripts: Path) -> None:
    """Submit what is missing now; prints a line for each submission and failure, and a count."""
    from eval.watching.jobs import queued_jobs, state_of, submit
    from eval.watching.wanted import evaluations, read_watch_list

    wanted = read_watch_list(path)
    with only_one(wanted.output) as is_mine:
        if not is_mine:
            print(f"another one watches {wanted.output} at this moment", flush=True)
            return
        queued, counts = queued_jobs(), Counter[str]()
        for evaluation in evaluations(wanted):
            state = state_of(evaluation, queued)
            if state == "missing":
                jobs = submit(evaluation, scripts)
                state = "submitted"
                print(f"{evaluation.folder}: submitted {' '.join(jobs)}", flush=True)
            elif state in FAULTS:
                print(f"{evaluation.folder}: {FAULTS[state]}; remove the folder to evaluate again", file=sys.stderr)
            counts[state] += 1
        print(", ".join(f"{count} {state}" for state, count in sorted(counts.items())) or "no whole checkpoint yet")
        sys.stdout.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m eval.watch", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("list", type=Path, metavar="LIST.yaml")
    parser.add_argument("--once", action="store_true", help="look once and leave, as cron and scrontab want it")
    parser.add_argument("--every-s", type=float, default=300.0, help="else look again after so many seconds (300)")
    parser.add_argument("--scripts", type=Path, default=SCRIPTS, help="folder of eval.sbatch and score.sbatch")
    options = parser.parse_args(arguments)
    print_settings(options)

    def work() -> None:
        look_once(options.list, options.scripts)
        while not options.once:
            time.sleep(options.every_s)
            look_once(options.list, options.scripts)

    return finish(work)


if __name__ == "__main__":
    sys.exit(main())
