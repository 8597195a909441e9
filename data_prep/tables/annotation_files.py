"""Reads image lists from annotation files: COCO captions, Karpathy's JSON, Visual Genome's regions, LLaVA's lists."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.shards.ledger import Drop
from data_prep.tables.row import Row, captions_of, text_of
from data_prep.tables.unicode_text import without_surrogates
from pipeline.files import LARGEST_FOREIGN, read_whole

TRAINING_SPLITS = ("train", "restval")
"""In Karpathy's COCO, `restval` marks images of the validation set that belong to training."""
OTHERWISE = (
    "name the source's own file; for a plain list of pictures give the source `table` with --caption-column caption"
)
NO_FILE = Drop("no_picture")


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


def coco_caption_rows(path: Path) -> Iterator[Row]:
    """The images of `captions_*.json`, each with all its captions. An annotation whose image is not listed is a row
    that is dropped."""
    captions: dict[Any, list[str]] = {}
    for number, each in enumerate(_load(path, "annotations")):
        try:
            captions.setdefault(int(each["image_id"]), []).append(without_surrogates(each["caption"]).strip())
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"--input {path}: annotation {number} has no image_id and caption ({error!r})") from error
    images = _load(path, "images")
    for row, image in enumerate(images):
        try:
            picture_id, file = int(image["id"]), without_surrogates(image["file_name"])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"--input {path}: image {row} has no id and file_name ({error!r})") from error
        yield Row(row, file, tuple(filter(None, captions.pop(picture_id, ()))), picture_id=picture_id)
    for row, (picture_id, texts) in enumerate(captions.items(), len(images)):
        yield Row(row, "", tuple(filter(None, texts)), picture_id=picture_id, drop=NO_FILE)


def llava_rows(path: Path) -> Iterator[Row]:
    """The entries of a list of conversations, each with the first answer as its caption. Entries without a picture are
    rows that are dropped."""
    for row, entry in enumerate(_load(path, None)):
        try:
            turns = entry["conversations"]
            answers = [turn["value"] for turn in turns if turn["from"] == "gpt"]
            file = text_of(entry.get("image"))
            yield Row(row, file, captions_of(answers[:1]), drop=None if file else NO_FILE)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"--input {path}: entry {row} has no list of conversations ({error!r})") from error


def _load(path: Path, key: str | None) -> list[Any]:
    try:
        content = json.loads(read_whole(path, LARGEST_FOREIGN).decode())
        images = content[key] if key else content
    except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
        raise ValueError(f"--input {path}: is not an annotation file ({error!r}); {OTHERWISE}") from error
    if not isinstance(images, list):
        raise ValueError(
            f"--input {path}: its images are of type {type(images).__name__}, expected a list; {OTHERWISE}"
        )
    return images
