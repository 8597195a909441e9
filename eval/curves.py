"""`python -m eval.curves FOLDER...`: write the scores of FOLDER/step_N/NAME/metrics.json to TensorBoard, by step.

A new event file in FOLDER/tensorboard takes the scores that are not shown there yet. Jobs may therefore come in any
order, or twice, and an open TensorBoard follows. A metrics.json that is not readable is named; the others are drawn.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from eval.reporting.files import score_files, scores_at_step
from eval.watching.event_files import Curves, add_what_is_new
from pipeline.command_line import Parser, finish, one_line, print_settings
from pipeline.files import lock_file, open_lock


def scalars(folder: Path) -> tuple[Curves, list[str]]:
    """Each overall number by `NAME/metric protocol` and step, and a line for each file that is not readable."""
    found: Curves = {}
    faults = []
    for path in score_files(folder):
        try:
            step, rows = scores_at_step(path)
            scored = path.stat().st_mtime
        except (ValueError, OSError) as error:
            faults.append(one_line(error))
            continue
        for row in rows:
            if row["subset"] == "overall":
                tag = f"{path.parent.name}/{row['name']} {row['protocol'].replace('/', ' ')}"
                found.setdefault(tag, {})[step] = (float(row["value"]), scored)
    return found, faults


def write_tensorboard(folder: Path) -> tuple[Path | None, list[str]]:
    """The new event file (None when nothing is new), and a line for each file that is not readable.

    Raises ValueError when nothing is scored yet.
    """
    if not score_files(folder):
        raise ValueError(f"{folder}: no step_*/*/metrics.json in it; name OUTPUT/RUN of eval.watch")
    target = folder / "tensorboard"
    target.mkdir(exist_ok=True)
    path = target / ".lock"
    with open_lock(path) as lock:
        lock_file(lock, path, wait=True)
        found, faults = scalars(folder)  # under the lock, so that scores that came while it waited count too
        return add_what_is_new(target, found), faults


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m eval.curves", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER", help="OUTPUT/RUN of eval.watch")
    options = parser.parse_args(arguments)
    print_settings(options)

    def work() -> int:
        code = 0
        for folder in options.folders:
            written, faults = write_tensorboard(folder)
            for fault in faults:
                code = 1
                print(f"error: {fault}", file=sys.stderr)
            print(written or f"{folder / 'tensorboard'}: nothing new")
        return code

    return finish(work)


if __name__ == "__main__":
    sys.exit(main())
