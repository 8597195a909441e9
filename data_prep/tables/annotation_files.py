"""Reads image lists from official annotation files: Karpathy's COCO and Flickr30K JSON, Visual Genome's regions."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.tables.row import Row
from data_prep.tables.unicode_text import without_surrogates
from pipeline.files import LARGEST_FOREIGN, read_whole

TRAINING_SPLITS = ("train", "restval")
"""In Karpathy's COCO, `restval` marks images of the validation set that belong to training."""


def karpathy_rows(path: Path, split: str) -> Iterator[Row]:
    """The images of one split ("train" includes restval), each with all its captions; row = its place in the file."""
    splits = TRAINING_SPLITS if split == "train" else (split,)
    found: set[str] = set()
    images = _load(path, "images")
    for row, image in enumerate(images):
        try:
            found.add(image["split"])
            if image["split"] not in splits:
                continue
            captions = tuple(without_surrogates(sentence["raw"]).strip() for sentence in image["sentences"])
            file = without_surrogates(str(Path(image.get("filepath", ""), image["filename"])))
            yield Row(row, file, tuple(filter(None, captions)), picture_id=_coco_id(image))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"--input {path}: image {row} is not an entry of a Karpathy split ({error!r})") from error
    if not found & set(splits):
        splits_found = ", ".join(sorted(map(str, found))) or "none"
        raise ValueError(f"--split {split}: {path} has no image of this split; its splits are {splits_found}")


def _coco_id(image: dict[str, Any]) -> int | None:
    """COCO's number of the picture; the entries of Flickr30K have none."""
    coco_id = image.get("cocoid")
    return coco_id if isinstance(coco_id, int) else None


def visual_genome_rows(path: Path) -> Iterator[Row]:
    """The images of `region_descriptions.json`, each with the phrases of all its regions, without repeats."""
    for row, image in enumerate(_load(path, None)):
        try:
            phrases = (without_surrogates(region["phrase"]).strip() for region in image["regions"])
            picture_id = int(image["id"])
            yield Row(row, f"{picture_id}.jpg", tuple(dict.fromkeys(filter(None, phrases))), picture_id=picture_id)
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
            raise ValueError(f"--input {path}: image {row} is not a list of region descriptions ({error!r})") from error


def _load(path: Path, key: str | None) -> list[Any]:
    try:
        content = json.loads(read_whole(path, LARGEST_FOREIGN).decode())
        images = content[key] if key else content
    except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
        raise ValueError(f"--input {path}: is not an annotation file ({error!r})") from error
    if not isinstance(images, list):
        raise ValueError(f"--input {path}: its images are of type {type(images).__name__}, expected a list")
    return images
