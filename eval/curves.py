"""`python -m eval.curves FOLDER...`: scores over checkpoints to TensorBoard, of FOLDER/step_N/NAME/metrics.json.

FOLDER/tensorboard is written anew from all that is scored, so that it does not matter which job comes first or twice.
"""

import argparse
import fcntl
import sys
from collections.abc import Sequence
from pathlib import Path

from eval.command_line import Parser, finish, print_settings
from eval.reporting.files import scores_over_steps

EVENTS = "events.out.tfevents.0000000000.eval"
Point = tuple[int, float, float]  # step, value, when it was scored


def scalars(folder: Path) -> dict[str, list[Point]]:
    """Each overall number by `NAME/metric protocol`, in the order of the steps."""
    found: dict[str, list[Point]] = {}
    for step, path, row in scores_over_steps(folder):
        if row["subset"] == "overall":
            tag = f"{path.parent.name}/{row['name']} {row['protocol'].replace('/', ' ')}"
            found.setdefault(tag, []).append((step, float(row["value"]), path.stat().st_mtime))
    return found


def write_tensorboard(folder: Path) -> Path:
    """The event file, whole or as it was. Raises ValueError when nothing is scored yet."""
    found = scalars(folder)
    if not found:
        raise ValueError(f"{folder}: no step_*/*/metrics.json in it; name a folder of eval.watch, below its output")
    target = folder / "tensorboard" / EVENTS
    target.parent.mkdir(exist_ok=True)
    with (folder / "tensorboard" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        temporary = target.with_name(".events.tmp")
        _write_events(temporary, found)
        temporary.replace(target)
    return target


def _write_events(path: Path, found: dict[str, list[Point]]) -> None:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter

    points = [(step, tag, value, at) for tag, line in found.items() for step, value, at in line]
    with path.open("wb") as file:
        writer = RecordWriter(file)
        writer.write(Event(wall_time=min(at for *_, at in points), file_version="brain.Event:2").SerializeToString())
        for step, tag, value, at in sorted(points):
            summary = Summary(value=[Summary.Value(tag=tag, simple_value=value)])
            writer.write(Event(wall_time=at, step=step, summary=summary).SerializeToString())
        writer.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m eval.curves", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    options = parser.parse_args(arguments)
    print_settings(options)

    def work() -> None:
        for folder in options.folders:
            print(write_tensorboard(folder))

    return finish(work)


if __name__ == "__main__":
    sys.exit(main())
