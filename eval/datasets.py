"""Official evaluation sets, as published, to samples with the paths of their pictures. No picture is opened here.

A data folder holds the annotation file and the pictures: `dataset_coco.json` and `images/val2014/COCO_val2014_*.jpg`,
or `v2_OpenEnded_mscoco_val2014_questions.json` and `val2014/COCO_val2014_*.jpg`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from eval.official_files import SampleId, karpathy_id, read_json, read_questions

KARPATHY_FILES = ("dataset_coco.json", "dataset_flickr30k.json")
NOCAPS_FILES = ("nocaps_val_4500_captions.json", "nocaps_test_image_info.json")
VQA_SPLITS = {"train": "train2014", "val": "val2014", "test-dev": "test-dev2015", "test": "test2015"}
MAX_RETRIEVAL_WORDS = 50
_RETRIEVAL_PUNCTUATION = re.compile(r"[.!\"()*#:;~]")


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
    image_paths: dict[SampleId, Path]
    samples: tuple[Sample, ...]


@dataclass(frozen=True)
class RetrievalData:
    """A gallery of images and texts; `text_image` [texts] is the row of the image that a text describes."""

    annotations: Path
    image_paths: dict[SampleId, Path]
    texts: tuple[str, ...]
    text_image: tuple[int, ...]


def load_captioning(folder: Path, split: str, limit: int | None = None) -> TaskData:
    """COCO or Flickr30K with Karpathy's splits."""
    annotations, images = _karpathy(folder, split, limit)
    paths = {karpathy_id(image): path for image, path in images}
    return TaskData(annotations, paths, tuple(Sample(image_id, image_id) for image_id in paths))


def load_nocaps(folder: Path, split: str, limit: int | None = None) -> TaskData:
    """NoCaps' JSON: {images: [{id, file_name, ...}]}."""
    annotations = _first_file(folder, [name for name in NOCAPS_FILES if name.startswith(f"nocaps_{split}")], split)
    entries = _images(annotations)[:limit]
    find = _PictureFinder(folder, annotations)
    paths = {image["id"]: find(image["file_name"]) for image in entries}
    return TaskData(annotations, paths, tuple(Sample(image_id, image_id) for image_id in paths))


def load_vqa(folder: Path, split: str, limit: int | None = None) -> TaskData:
    """VQAv2's question file of a split (val, train, test-dev, test) and COCO's pictures."""
    subset = VQA_SPLITS.get(split)
    if subset is None:
        raise ValueError(f"--split {split!r}: VQAv2 has {', '.join(VQA_SPLITS)}")
    annotations = _first_file(folder, [f"v2_OpenEnded_mscoco_{subset}_questions.json"], split)
    questions = dict(list(read_questions(annotations).items())[:limit])
    pictures = subset.replace("test-dev", "test")  # test-dev's pictures are a part of test2015
    find = _PictureFinder(folder, annotations)
    paths = {
        image_id: find(f"{pictures}/COCO_{pictures}_{image_id:0>12}.jpg")
        for image_id in dict.fromkeys(image_id for image_id, _ in questions.values())
    }
    samples = (Sample(question_id, image_id, question) for question_id, (image_id, question) in questions.items())
    return TaskData(annotations, paths, tuple(samples))


def load_retrieval(folder: Path, split: str, limit: int | None = None) -> RetrievalData:
    """Karpathy's split of COCO or Flickr30K: its images, and all their captions as BLIP cleans them for retrieval."""
    annotations, images = _karpathy(folder, split, limit)
    texts = [(row, retrieval_text(each["raw"])) for row, (image, _) in enumerate(images) for each in image["sentences"]]
    return RetrievalData(
        annotations,
        {karpathy_id(image): path for image, path in images},
        tuple(text for _, text in texts),
        tuple(row for row, _ in texts),
    )


def retrieval_text(caption: str) -> str:
    """Lower case, some punctuation as spaces, at most 50 words: the texts that published retrieval numbers rank."""
    return " ".join(_RETRIEVAL_PUNCTUATION.sub(" ", caption.lower()).split()[:MAX_RETRIEVAL_WORDS])


def _karpathy(folder: Path, split: str, limit: int | None) -> tuple[Path, list[tuple[Mapping[str, Any], Path]]]:
    annotations = _first_file(folder, list(KARPATHY_FILES), split)
    entries = [image for image in _images(annotations) if image.get("split") == split][:limit]
    if not entries:
        found = sorted({str(image.get("split")) for image in _images(annotations)})
        raise ValueError(f"{annotations}: no image of split {split!r}; it has {', '.join(found)}")
    find = _PictureFinder(folder, annotations)
    return annotations, [(image, find(_joined(image.get("filepath", ""), image["filename"]))) for image in entries]


def _joined(*parts: str) -> str:
    return "/".join(part for part in parts if part)


def _images(annotations: Path) -> list[Mapping[str, Any]]:
    content = read_json(annotations)
    images = content.get("images") if isinstance(content, dict) else None
    if not isinstance(images, list) or not images:
        raise ValueError(f"{annotations}: expected an object with a list of images")
    return images


def _first_file(folder: Path, names: list[str], split: str) -> Path:
    for place in (folder, folder / "annotations"):
        for name in names:
            if (place / name).is_file():
                return place / name
    wanted = f"no {' or '.join(names)}" if names else f"nothing for split {split!r}"
    raise ValueError(f"--data {folder}: {wanted} in it; name the folder of the official files")


class _PictureFinder:
    """Where a set's pictures lie: below `images/` or the folder itself, with or without the subset's own folder."""

    def __init__(self, folder: Path, annotations: Path) -> None:
        self.folder, self.annotations = folder, annotations
        self.layout: tuple[str, bool] | None = None

    def __call__(self, relative: str) -> Path:
        """The path of a picture. Raises ValueError when its name leads out of the folder, or none is there."""
        parts = PurePosixPath(relative)
        if parts.is_absolute() or ".." in parts.parts or "\\" in relative:
            raise ValueError(f"{self.annotations}: picture {relative!r} leads out of the data folder")
        if self.layout is None:
            layouts = [(below, whole) for below in ("images", ".") for whole in (True, False)]
            self.layout = next((each for each in layouts if self._at(each, parts).is_file()), None)
            if self.layout is None:
                raise ValueError(f"--data {self.folder}: picture {relative} is not there, nor below images/")
        return self._at(self.layout, parts)

    def _at(self, layout: tuple[str, bool], parts: PurePosixPath) -> Path:
        below, whole = layout
        return self.folder / below / (parts if whole else parts.name)
