"""An output folder of `eval.run`: task.json says what was asked, addressed by content; COMPLETE, that it is done."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from eval.sets.official_files import SampleId, read_json
from pipeline.files import replace_file

FORMAT = "blip2-eval/1"  # changes when the same settings would give other predictions
NOT_COMPARED = (  # where things lie, what they are called, and how fast
    *("weights", "weights_format", "step", "data", "annotations", "images", "batch_size"),
    *("data_set", "is_published_set", "is_of_published_set", "recipe", "converted_from"),
)
SHOWN_CHARACTERS = 12
# What eval.run and eval.score leave in a folder.
WRITTEN = ("predictions*", "scores.npz", "work", "COMPLETE", "metrics.json", "per_sample.jsonl")


def official_name(task: str) -> str:
    """The file of eval.run that eval.score takes."""
    return "scores.npz" if task == "retrieval" else "predictions.json"


class TaskFolder:
    """The folder of one evaluation of one checkpoint."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.task_file, self.complete_file = path / "task.json", path / "COMPLETE"

    def adopt(self, settings: dict[str, Any]) -> dict[str, Any]:
        """The settings, with what is None taken from an earlier task.json of the same task.

        Raises ValueError naming the first difference when the folder holds the predictions of other settings, or the
        first file when it holds what cannot be told.
        """
        if not self.task_file.is_file():
            if left := sorted(path.name for name in WRITTEN for path in self.path.glob(name)):
                raise ValueError(
                    f"--output {self.path}: it holds {left[0]}, and no task.json that says what of; name another "
                    "folder, or remove it"
                )
            return settings
        earlier = self._earlier()
        for name, value in settings.items():
            if name not in NOT_COMPARED and value is not None and earlier.get(name) != value:
                raise ValueError(
                    f"--output {self.path}: it holds predictions with {name} {_shown(earlier.get(name))}, not "
                    f"{_shown(value)}; name another folder, or remove it"
                )
        return {name: earlier.get(name) if value is None else value for name, value in settings.items()}

    def is_complete(self) -> bool:
        return self.complete_file.is_file()

    def describe(self, settings: dict[str, Any], image_paths: Mapping[SampleId, Path]) -> None:
        """Write task.json, unless it is there, with each picture's size and time where pictures are shown."""
        self.path.mkdir(parents=True, exist_ok=True)
        if not self.task_file.is_file():
            stamp = _stamp if settings["image_source"] != "none" else lambda *_: []
            images = [[each, str(path.absolute()), *stamp(each, path)] for each, path in image_paths.items()]
            replace_file(self.task_file, json.dumps(settings | {"images": images}, indent=1) + "\n")

    def check_pictures(self, image_paths: Mapping[SampleId, Path], used: Collection[SampleId]) -> None:
        """Raise ValueError, naming id and file, when a picture is not the one that predictions were made of.

        `used` are those that there are predictions of; another that has changed since (a damaged one, repaired) is
        noted as it is now, and so is where each lies.
        """
        if not self.task_file.is_file():
            return
        earlier = self._earlier()
        changed = False
        for entry in earlier["images"]:
            image_id, place, *stamp = entry
            path = image_paths.get(image_id)
            if path is None:
                continue
            if place != str(path.absolute()):  # the data folder was moved
                entry[1], changed = str(path.absolute()), True
            if not stamp or stamp == (now := _stamp(image_id, path)):
                continue
            if image_id in used:
                raise ValueError(
                    f"--output {self.path}: it holds predictions of another picture of image {image_id!r}: {path} has "
                    "changed in size or time; name another folder, or remove it"
                )
            entry[2:], changed = now, True
        if changed:
            replace_file(self.task_file, json.dumps(earlier, indent=1) + "\n")

    def _earlier(self) -> dict[str, Any]:
        """What task.json says. Raises ValueError, naming it, when that is no task's description."""
        found = read_json(self.task_file)
        images = found.get("images") if isinstance(found, dict) else None
        if not isinstance(images, list) or not all(map(_is_stamped_image, images)):
            raise ValueError(f"{self.task_file}: not what eval.run writes there; remove {self.path} to begin anew")
        described: dict[str, Any] = found
        return described

    def finish(self) -> None:
        replace_file(self.complete_file, "")


def _is_stamped_image(entry: object) -> bool:
    """[id, path], with size and time where pictures are shown."""
    return (
        isinstance(entry, list)
        and len(entry) in (2, 4)
        and isinstance(entry[0], int | str)
        and all(isinstance(number, int) for number in entry[2:])
    )


def _stamp(image_id: SampleId, path: Path) -> list[int]:
    """A file's size in bytes and time of change in ns: told without reading it."""
    try:
        status = path.stat()
    except OSError as error:
        raise ValueError(f"image {image_id!r}: {error}") from error
    return [status.st_size, status.st_mtime_ns]


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:SHOWN_CHARACTERS]}..."
