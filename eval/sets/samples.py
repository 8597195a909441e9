"""What an evaluation predicts: samples with the paths of their pictures, and how a folder's files are found.

A data folder holds the annotation file and the pictures. The file is found by its published name, or else by its
content.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from eval.sets.captioned_images import DataSet
from eval.sets.official_files import SampleId, read_json

PICTURE_FOLDERS = ("images", ".", "flickr30k-images")
LONGEST_QUESTION = 1_000  # characters; the longest of VQAv2 has about 100


@dataclass(frozen=True)
class Sample:
    """One thing to predict: a caption (its id is the image's), or the answer to a question."""

    id: SampleId
    image_id: SampleId
    question: str | None = None


@dataclass(frozen=True)
class TaskData:
    """The samples of a task, in the annotation file's order, and where their pictures lie."""

    annotations: Path
    data_set: DataSet
    image_paths: dict[SampleId, Path]
    samples: tuple[Sample, ...]


@dataclass(frozen=True)
class RetrievalData:
    """A gallery of images and texts; `text_image` [texts] is the row of the image that a text describes."""

    annotations: Path
    data_set: DataSet
    image_paths: dict[SampleId, Path]
    texts: tuple[str, ...]
    text_image: tuple[int, ...]


def check_length(annotations: Path, sample: Sample) -> None:
    """Raise ValueError for a question that is too long to be one."""
    if sample.question is not None and len(sample.question) > LONGEST_QUESTION:
        raise ValueError(
            f"{annotations}: question_id {sample.id!r} has a question of {len(sample.question):,} characters, at most "
            f"{LONGEST_QUESTION:,} are read; shorten it, or leave it out"
        )


def find_file(folder: Path, names: Sequence[str], is_wanted: Callable[[Any], bool]) -> tuple[Path, Any]:
    """The first file with a known name, else the only JSON file with the wanted content; and its content."""
    places = (folder, folder / "annotations")
    for name in names:
        for place in places:
            if (place / name).is_file():
                return place / name, read_json(place / name)
    found = []
    for path in (path for place in places for path in sorted(place.glob("*.json"))):
        content = read_json(path)
        if is_wanted(content):
            found.append((path, content))
    if len(found) > 1:
        shown = ", ".join(str(path) for path, _ in found)
        raise ValueError(f"--data {folder}: several files fit ({shown}); keep one in the folder")
    if not found:
        raise ValueError(f"--data {folder}: no {' or '.join(names)} in it; name the folder of the official files")
    return found[0]


class PictureFinder:
    """Finds a set's pictures: in `images/`, in the data folder or in Flickr30K's folder, with or without a subset's
    folder (`val2014/`)."""

    def __init__(self, folder: Path, annotations: Path) -> None:
        self.folder, self.annotations = folder, annotations
        self.layout: tuple[str, bool] | None = None

    def __call__(self, relative: str) -> Path:
        """The path of a picture. Raises ValueError when it is outside the data folder, or the first one is missing."""
        parts = PurePosixPath(relative)
        if parts.is_absolute() or ".." in parts.parts or "\\" in relative:
            raise ValueError(f"{self.annotations}: picture {relative!r} is outside the data folder; correct its name")
        if self.layout is None:
            layouts = [(below, whole) for below in PICTURE_FOLDERS for whole in (True, False)]
            self.layout = next((each for each in layouts if self._at(each, parts).is_file()), None)
            if self.layout is None:
                raise ValueError(
                    f"--data {self.folder}: picture {relative} is not in it, nor in images/; add the pictures"
                )
        return self._at(self.layout, parts)

    def _at(self, layout: tuple[str, bool], parts: PurePosixPath) -> Path:
        below, whole = layout
        return self.folder / below / (parts if whole else parts.name)
