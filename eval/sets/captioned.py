"""Samples of the published captioning and retrieval sets, with the paths of their pictures; none is opened here.

A data folder holds the annotation file and the pictures: `dataset_coco.json` and `images/val2014/COCO_val2014_*.jpg`.
"""

import re
from pathlib import Path
from typing import Any

from eval.sets.captioned_images import (
    CaptionedImage,
    DataSet,
    captioned_images,
    check_not_coco,
    check_not_nocaps,
    is_captioned_images,
)
from eval.sets.official_files import SampleId, field_of, listed
from eval.sets.samples import PictureFinder, RetrievalData, Sample, TaskData, find_file

KARPATHY_FILES = ("dataset_coco.json", "dataset_flickr30k.json")
LAVIS_FILES = ("coco_karpathy_{}.json", "flickr30k_{}.json")
NOCAPS_FILES = {"val": "nocaps_val_4500_captions.json", "test": "nocaps_test_image_info.json"}
NOCAPS_IMAGES = {"val": 4_500, "test": 10_600}
MAX_RETRIEVAL_WORDS = 50
_NOCAPS_NAME = re.compile(r"nocaps_(val|test)_")
_RETRIEVAL_PUNCTUATION = re.compile(r"[.!\"()*#:;~]")


def load_captioning(folder: Path, split: str, limit: int | None = None) -> TaskData:
    """COCO or Flickr30K with Karpathy's splits."""
    annotations, data_set, images = _captioned(folder, split, limit)
    paths = {image.id: path for image, path in images}
    return TaskData(annotations, data_set, paths, tuple(Sample(image_id, image_id) for image_id in paths))


def load_nocaps(folder: Path, split: str, limit: int | None = None) -> TaskData:
    """NoCaps' JSON: {images: [{id, file_name, ...}]}."""
    if split not in NOCAPS_FILES:
        raise ValueError(f"--split {split!r}: NoCaps has {', '.join(NOCAPS_FILES)}")
    annotations, content = find_file(folder, [NOCAPS_FILES[split]], _is_nocaps)
    entries = listed(annotations, content, "images")
    check_not_coco(annotations, entries)
    told = _NOCAPS_NAME.match(annotations.name)
    for other in NOCAPS_FILES.keys() - {split}:
        if (told and told[1] == other) or len(entries) == NOCAPS_IMAGES[other]:
            raise ValueError(f"{annotations}: of NoCaps {other} ({len(entries):,} images), not {split}; give --split "
                             f"{other}, or name the other file")  # fmt: skip
    find = PictureFinder(folder, annotations)
    paths: dict[SampleId, Path] = {}
    for image in entries[:limit]:
        image_id = field_of(annotations, image, "id", (int, str))
        if image_id in paths:
            raise ValueError(f"{annotations}: image id {image_id!r} occurs twice; remove one of them")
        paths[image_id] = find(field_of(annotations, image, "file_name", (str,)))
    data_set = DataSet(f"NoCaps {split}", len(entries) == NOCAPS_IMAGES[split])
    return TaskData(annotations, data_set, paths, tuple(Sample(image_id, image_id) for image_id in paths))


def load_retrieval(folder: Path, split: str, limit: int | None = None) -> RetrievalData:
    """Karpathy's split of COCO or Flickr30K: its images, and all their captions as BLIP cleans them for retrieval."""
    annotations, data_set, images = _captioned(folder, split, limit)
    texts = [(row, retrieval_text(each)) for row, (image, _) in enumerate(images) for each in image.captions]
    return RetrievalData(
        annotations,
        data_set,
        {image.id: path for image, path in images},
        tuple(text for _, text in texts),
        tuple(row for row, _ in texts),
    )


def retrieval_text(caption: str) -> str:
    """Lower case, some punctuation as spaces, at most 50 words: published retrieval numbers rank these texts."""
    return " ".join(_RETRIEVAL_PUNCTUATION.sub(" ", caption.lower()).split()[:MAX_RETRIEVAL_WORDS])


def _captioned(folder: Path, split: str, limit: int | None) -> tuple[Path, DataSet, list[tuple[CaptionedImage, Path]]]:
    names = [*KARPATHY_FILES, *(name.format(split) for name in LAVIS_FILES)]
    if len(both := [folder / name for name in KARPATHY_FILES if (folder / name).is_file()]) > 1:
        raise ValueError(f"--data {folder}: it holds two sets ({both[0]}, {both[1]}); give each set its own folder")
    annotations, content = find_file(folder, names, is_captioned_images)
    check_not_nocaps(annotations, content, "use --task nocaps")
    images, data_set = captioned_images(annotations, content, split)
    find = PictureFinder(folder, annotations)
    return annotations, data_set, [(image, find(image.place)) for image in images[:limit]]


def _is_nocaps(content: Any) -> bool:
    images = content.get("images") if isinstance(content, dict) else None
    first = images[0] if isinstance(images, list) and images else None
    return isinstance(first, dict) and {"id", "file_name"} <= first.keys()
