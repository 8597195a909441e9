"""`python -m pipeline.mirror RUN --to wandb|mlflow`: show the numbers of a run's metrics.jsonl there while it trains.

It follows the file, and ends when the run has saved its last step. Started again, it goes on where it was: the run
folder notes what was sent. The training knows nothing of it, so a service that is down holds up nothing.
W&B and MLflow read their own variables, such as WANDB_PROJECT, WANDB_MODE, MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME.
"""

import importlib
import json
import os
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict

from pipeline.command_line import Parser, finish, print_settings, seconds
from pipeline.files import lock_file, open_lock, parse_json, read_lines, read_validated, read_whole, replace_file
from pipeline.training.metric_groups import grouped

LAST_STEP = 10**12


class Note(BaseModel):
    """RUN/mirror_SERVICE.json: the run's id there, and the last step that was sent of each split."""

    model_config = ConfigDict(strict=True, extra="forbid")
    run_id: str
    sent: dict[str, int] = {}


class Service(Protocol):
    """What takes the numbers."""

    run_id: str

    def send(self, step: int, numbers: dict[str, float]) -> None:
        """The numbers of a line, in groups. Steps never fall."""

    def close(self) -> None:
        """Nothing more comes from this process."""


class Wandb:
    """A run of W&B whose id is ours, so that a second start continues it."""

    def __init__(self, run: Path, run_id: str | None) -> None:
        self.run_id = run_id or uuid.uuid4().hex
        self._run = _package("wandb").init(
            id=self.run_id, name=run.name, resume="allow", dir=str(run), config=_recipe(run)
        )
        if self._run.disabled:
            raise ValueError("--to wandb: it is disabled, as by WANDB_MODE, and would take nothing; unset the variable")

    def send(self, step: int, numbers: dict[str, float]) -> None:
        self._run.log(numbers, step=step)

    def close(self) -> None:
        self._run.finish()


class Mlflow:
    """A run of MLflow, whose server names it."""

    def __init__(self, run: Path, run_id: str | None) -> None:
        self._mlflow = _package("mlflow")
        started = self._mlflow.start_run(run_id=run_id, run_name=None if run_id else run.name)
        self.run_id: str = started.info.run_id
        if run_id is None:
            self._mlflow.log_dict(_recipe(run), "recipe.yaml")

    def send(self, step: int, numbers: dict[str, float]) -> None:
        self._mlflow.log_metrics(numbers, step=step)

    def close(self) -> None:
        self._mlflow.end_run()


SERVICES: dict[str, Callable[[Path, str | None], Service]] = {"wandb": Wandb, "mlflow": Mlflow}


@contextmanager
def _one_line_faults(name: str) -> Iterator[None]:
    """The packages raise errors of many kinds: a server that is down, a key that is wrong."""
    try:
        yield
    except (ValueError, OSError):
        raise
    except Exception as error:
        raise ValueError(f"--to {name}: {error}; nothing is lost, run the same command again") from error


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(f"--to {name}: its package cannot be imported ({error}); `pip install {name}`") from error


def _recipe(run: Path) -> Any:
    import yaml

    return yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))


def lines_of(run: Path) -> Iterator[tuple[str, int, dict[str, float]]]:
    """Split, step and finite numbers of each whole line. A line that is being written comes the next time.

    A step that no run reaches is left out: the real ones after it would never be sent.
    """
    path = run / "metrics.jsonl"
    for line in read_lines(path) if os.path.lexists(path) else ():
        try:
            content = json.loads(line.decode(errors="replace")) if line.endswith(b"\n") else None
        except (ValueError, RecursionError):
            continue
        if isinstance(content, dict) and type(step := content.get("step")) is int and 0 <= step <= LAST_STEP:
            split = str(content.get("split", ""))
            told = {name: each for name, each in content.items() if _is_finite(each) and name != "step"}
            yield split, step, {grouped(name, split): float(value) for name, value in told.items()}


def _is_finite(value: Any) -> bool:
    """Whether it is a number of JSON that is a finite float: a whole number may have hundreds of digits."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def is_complete(run: Path) -> bool:
    """Whether the run has saved its last step, after which it writes no more lines."""
    try:
        steps = parse_json(read_whole(run / "environment.json"))["steps"]
        return (run / "checkpoints" / f"step_{steps:08d}" / "COMPLETE").exists()
    except (OSError, ValueError, KeyError, TypeError):
        return False


def send_new(run: Path, note_path: Path, note: Note, service: Service) -> None:
    """Send the lines after those that the note has, and note each: a run that was resumed writes steps again."""
    for split, step, numbers in lines_of(run):
        if step > note.sent.get(split, -1):
            service.send(step, numbers)
            note.sent[split] = step
            replace_file(note_path, note.model_dump_json() + "\n")


def mirror(run: Path, name: str, once: bool, every_s: float) -> None:
    """Follow the run until it is complete. Raises ValueError when another process does so already."""
    if not (run / "recipe.yaml").is_file():
        raise ValueError(f"{run}: is not a run folder, or its training has not begun; it has no recipe.yaml")
    note_path = run / f"mirror_{name}.json"
    with open_lock(run / f".mirror_{name}.lock") as lock, _one_line_faults(name):
        try:
            lock_file(lock, note_path)
        except BlockingIOError as error:
            raise ValueError(f"{run}: another pipeline.mirror sends it to {name}; let that one work") from error
        note = read_validated(note_path, Note, "a note of pipeline.mirror") if note_path.exists() else None
        service = SERVICES[name](run, note.run_id if note else None)
        try:
            note = note or Note(run_id=service.run_id)
            replace_file(note_path, note.model_dump_json() + "\n")
            while True:
                ended = once or is_complete(run)  # asked before the file is read: no line comes after it
                send_new(run, note_path, note, service)
                if ended:
                    return
                time.sleep(every_s)
        finally:
            service.close()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m pipeline.mirror", description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="the run folder")
    parser.add_argument("--to", choices=list(SERVICES), required=True, help="where the numbers go")
    parser.add_argument("--once", action="store_true", help="send what is there and exit")
    parser.add_argument("--every-s", type=seconds, default=30.0, help="without --once: seconds between looks (30)")
    options = parser.parse_args(arguments)
    print_settings(options)
    return finish(lambda: mirror(options.run, options.to, options.once, options.every_s))


if __name__ == "__main__":
    sys.exit(main())
