"""`python -m eval.curves FOLDER...`: scores over checkpoints to TensorBoard, of FOLDER/step_N/NAME/metrics.json.

What FOLDER/tensorboard does not show yet goes into a new event file there, so that it does not matter which job comes
first or twice, and an open TensorBoard follows. A metrics.json that is not readable is named, and the others are drawn.
"""

import argparse
import fcntl
import sys
from collections.abc import Sequence
from pathlib import Path

from eval.reporting.files import score_files, scores_at_step
from eval.watching.event_files import Curves, add_what_is_new
from pipeline.command_line import Parser, finish, print_settings


def scalars(folder: Path) -> tuple[Curves, list[str]]:
    """Each overall number by `NAME/metric protocol` and step, and a line for each file that is not readable."""
    found: Curves = {}
    faults = []
    for path in score_files(folder):
        try:
            step, rows = scores_at_step(path)
            scored = path.stat().st_mtime
        except (ValueError, OSError) as error:
            faults.append(" ".join(str(error).split()))
            continue
        for row in rows:
            if row["subset"] == "overall":
                tag = f"{path.parent.name}/{row['name']} {row['protocol'].replace('/', ' ')}"
                found.setdefault(tag, {})[step] = (float(row["value"]), scored)
    return found, faults


def write_tensorboard(folder: Path) -> tuple[Path | None, list[str]]:
    """The new event file, None when there is nothing new, and a line for each file that is not readable.

    Raises ValueError when nothing is scored yet.
    """
    if not score_files(folder):
        raise ValueError(f"{folder}: no step_*/*/metrics.json in it; name a folder of eval.watch, below its output")
    target = folder / "tensorboard"
    target.mkdir(exist_ok=True)
    with (target / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found, faults = scalars(folder)  # not before: who had the lock may have drawn what came since
        return add_what_is_new(target, found), faults


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m eval.curves", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    options = parser.parse_args(arguments)
    print_settings(options)

    num_faults = 0

    def work() -> None:
        nonlocal num_faults
        for folder in options.folders:
            written, faults = write_tensorboard(folder)
            num_faults += len(faults)
            for fault in faults:
                print(f"error: {fault}", file=sys.stderr)
            print(written or f"{folder / 'tensorboard'}: nothing new")

    return finish(work) or min(num_faults, 1)


if __name__ == "__main__":
    sys.exit(main())
