"""TensorBoard's event files of scores over steps: what they show, and a new file that continues them.

An existing file is never changed, because an open TensorBoard reads no file twice. A new file begins with a restart at
the first new step and repeats all points from there in order. TensorBoard then drops the points that it showed from
that step on: without its data server because of the restart, with it because each tag's steps begin again.
"""

import io
import re
from pathlib import Path

import numpy as np

from pipeline.files import replace_file

NAME = "events.out.tfevents.{:010d}.eval"
NUMBER = re.compile(r"tfevents\.(\d+)")
TEMPORARY = ".new"  # TensorBoard reads every file with "tfevents" in its name
Point = tuple[float, float]  # value, when it was scored
Curves = dict[str, dict[int, Point]]  # by tag and step


def shown(folder: Path) -> dict[str, dict[int, float]]:
    """Value by tag and step, as TensorBoard has it after all files of the folder."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
    from tensorboard.compat.proto.event_pb2 import SessionLog

    lines: dict[str, dict[int, float]] = {}
    for path in _files(folder):
        for event in LegacyEventFileLoader(str(path)).Load():
            if event.session_log.status == SessionLog.START:
                lines = {tag: {at: line[at] for at in line if at < event.step} for tag, line in lines.items()}
            for value in event.summary.value:
                lines.setdefault(value.tag, {})[event.step] = value.simple_value
    return lines


def add_what_is_new(folder: Path, found: Curves) -> Path | None:
    """Write a file of all points from the first step that is new or has another value; None when there is none."""
    before = shown(folder)
    new = [
        step
        for tag, line in found.items()
        for step, (value, _) in line.items()
        if before.get(tag, {}).get(step) != float(np.float32(value))  # as a file holds it
    ]
    if not new:
        return None
    numbers = [int(match[1]) for path in _files(folder) if (match := NUMBER.search(path.name))]
    target = folder / NAME.format(max(numbers, default=-1) + 1)
    replace_file(folder / TEMPORARY, _events(found, min(new)))
    (folder / TEMPORARY).replace(target)
    return target


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*tfevents*"))


def _events(found: Curves, start: int) -> bytes:
    """The content of a file of the points from step `start` on."""
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter

    points = sorted((step, tag, *line[step]) for tag, line in found.items() for step in line if step >= start)
    begun = min(at for *_, at in points)
    restart = Event(wall_time=begun, step=start, session_log=SessionLog(status=SessionLog.START))
    # Twice: a reader ignores the first restart that it meets, and files of older versions have none.
    events = [Event(wall_time=begun, file_version="brain.Event:2"), restart, restart]
    for step, tag, value, at in points:
        summary = Summary(value=[Summary.Value(tag=tag, simple_value=value)])
        events.append(Event(wall_time=at, step=step, summary=summary))
    content = io.BytesIO()
    writer = RecordWriter(content)
    for event in events:
        writer.write(event.SerializeToString())
    return content.getvalue()
