"""An output folder of `eval.run`: its settings and pictures in task.json, and COMPLETE when all is predicted."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from eval.catalogue import TASKS, Kind
from eval.sets.official_files import SampleId
from eval.tasks.task_file import Picture, TaskFile
from pipeline.files import read_validated, replace_file

NOT_COMPARED = (  # places, names and speed: they change no prediction
    *("weights", "weights_format", "step", "data", "annotations", "images", "batch_size", "answers"),
    *("data_set", "is_published_set", "is_of_published_set", "recipe", "converted_from"),
    *("vision", "language"),  # names; `towers` has the fingerprints
)
SHOWN_CHARACTERS = 12
# What eval.run and eval.score write into a folder.
WRITTEN = ("predictions*", "scores.npz", "work", "COMPLETE", "metrics.json", "per_sample.jsonl")


def official_name(task: str) -> str:
    """The file of eval.run that eval.score takes."""
    return "scores.npz" if TASKS[task].kind == Kind.RETRIEVAL else "predictions.json"


class TaskFolder:
    """The folder of one evaluation of one checkpoint."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.task_file, self.complete_file = path / "task.json", path / "COMPLETE"

    def adopt(self, settings: dict[str, Any]) -> dict[str, Any]:
        """The settings; those that are None are taken from an earlier task.json of the same task.

        Raises ValueError naming the first difference when the folder holds predictions with other settings, or the
        first file when it holds predictions without a task.json.
        """
        if not self.task_file.is_file():
            if left := sorted(path.name for name in WRITTEN for path in self.path.glob(name)):
                raise ValueError(
                    f"--output {self.path}: it holds {left[0]}, but no task.json with its settings; name another "
                    "folder, or remove this one"
                )
            return settings
        earlier = self._earlier().model_dump(exclude_unset=True)
        for name, value in settings.items():
            if name not in NOT_COMPARED and value is not None and earlier.get(name) != value:
                field, before, now = _difference(name, earlier.get(name), value)
                raise ValueError(
                    f"--output {self.path}: it holds predictions with {field} {_shown(before)}, not {_shown(now)}; "
                    "name another folder, or remove this one"
                )
        return {name: earlier.get(name) if value is None else value for name, value in settings.items()}

    def is_complete(self) -> bool:
        return self.complete_file.is_file()

    def describe(self, settings: dict[str, Any], image_paths: Mapping[SampleId, Path]) -> None:
        """Write task.json if it is not there. Each picture's size and time are in it, if pictures are shown."""
        self.path.mkdir(parents=True, exist_ok=True)
        if not self.task_file.is_file():
            stamp = _stamp if settings["image_source"] != "none" else lambda *_: []
            images = [[each, str(path.absolute()), *stamp(each, path)] for each, path in image_paths.items()]
            replace_file(self.task_file, json.dumps(settings | {"images": images}, indent=1) + "\n")

    def check_pictures(self, image_paths: Mapping[SampleId, Path], used: Collection[SampleId]) -> None:
        """Raise ValueError, naming id and file, when a picture has changed since predictions were made with it.

        `used` are the pictures that predictions depend on. Another one may change (a damaged file that was repaired):
        its new size and time are noted. The pictures' present paths are noted as well.
        """
        if not self.task_file.is_file():
            return
        earlier = self._earlier()
        images = [self._noted_now(image, image_paths.get(image[0]), used) for image in earlier.images]
        if images != [list(image) for image in earlier.images]:
            settings = earlier.model_dump(exclude_unset=True)
            replace_file(self.task_file, json.dumps(settings | {"images": images}, indent=1) + "\n")

    def _noted_now(self, image: Picture, path: Path | None, used: Collection[SampleId]) -> list[SampleId]:
        """A picture's entry in task.json with its present path, size and time."""
        image_id, _, *stamp = image
        if path is None:  # not among the pictures of this run
            return list(image)
        now = _stamp(image_id, path) if stamp else []
        if stamp != now and image_id in used:
            raise ValueError(
                f"--output {self.path}: it holds predictions of another picture of image {image_id!r}: {path} has "
                "changed in size or time; name another folder, or remove this one"
            )
        return [image_id, str(path.absolute()), *now]

    def _earlier(self) -> TaskFile:
        """The earlier task.json. Raises ValueError, naming file and field, when eval.run did not write it."""
        try:
            return read_validated(self.task_file, TaskFile, "a task.json of eval.run")
        except ValueError as error:
            raise ValueError(f"{error}; remove {self.path} to start again") from error

    def finish(self) -> None:
        replace_file(self.complete_file, "")


def _stamp(image_id: SampleId, path: Path) -> list[int]:
    """A file's size in bytes and its time of change in ns. They are known without reading the file."""
    try:
        status = path.stat()
    except OSError as error:
        raise ValueError(f"image {image_id!r}: {error}; add the picture") from error
    return [status.st_size, status.st_mtime_ns]


def _difference(name: str, before: Any, now: Any) -> tuple[str, Any, Any]:
    """Of two mappings, as of towers to their fingerprints, the first entry that differs."""
    if not isinstance(before, dict) or not isinstance(now, dict):
        return name, before, now
    key = next(each for each in (before | now) if before.get(each) != now.get(each))
    return f"{name}.{key}", before.get(key), now.get(key)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:SHOWN_CHARACTERS]}..."
