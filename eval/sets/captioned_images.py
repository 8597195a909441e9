"""Captioned images of a file in one of the published layouts, and the published set that its content shows.

- Karpathy's `dataset_coco.json`, `dataset_flickr30k.json`: {images: [{filename, split, sentences: [{raw}], cocoid or
  imgid}]}.
- LAVIS' `coco_karpathy_test.json`, `flickr30k_test.json`: [{image, caption: [...]}], one split a file.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.sets.official_files import SampleId, field_of

COCO, FLICKR = "COCO Karpathy", "Flickr30K"
PUBLISHED_IMAGES = {
    (COCO, "train"): (82_783, 113_287),  # without and with restval
    (COCO, "val"): (5_000,),
    (COCO, "test"): (5_000,),
    (FLICKR, "train"): (29_000,),
    (FLICKR, "val"): (1_014,),
    (FLICKR, "test"): (1_000,),
}
SPLITS = ("test", "val", "train")
NOCAPS_DOMAINS = ("in-domain", "near-domain", "out-domain")
_OPEN_IMAGES_STEM = re.compile(r"[0-9a-f]{16}")
_NUMBER = re.compile(r"(\d+)$")


@dataclass(frozen=True)
class DataSet:
    """The published set whose format a file has, and whether it is that whole set (by its size and its own fields)."""

    name: str
    is_published: bool


@dataclass(frozen=True)
class CaptionedImage:
    """One image: its id, where it lies below the data folder, and its captions."""

    id: SampleId
    place: str
    captions: tuple[str, ...]


def is_captioned_images(content: Any) -> bool:
    """Whether a file's content is one of the two layouts."""
    images = content.get("images") if isinstance(content, dict) else content
    first = images[0] if isinstance(images, list) and images else None
    return isinstance(first, dict) and ("sentences" in first or {"image", "caption"} <= first.keys())


def captioned_images(path: Path, content: Any, split: str | None) -> tuple[list[CaptionedImage], DataSet]:
    """The images of a split (LAVIS: of the file), each id once. Raises ValueError in one line for anything else."""
    if not is_captioned_images(content):
        raise ValueError(
            f"{path}: neither Karpathy's layout nor LAVIS' list of {{image, caption}}; name the official file"
        )
    if isinstance(content, list):
        images = [_of_lavis(path, entry) for entry in content]
        kind = FLICKR if "flickr" in images[0].place.lower() else COCO
        says_so = all("COCO_" in each.place or kind == FLICKR for each in images)
        named = next((each for each in SPLITS if each in path.stem), None)  # LAVIS: one split a file, in its name
        if named and split and named != split:
            raise ValueError(
                f"{path}: holds split {named!r}, not {split!r}; give --split {named}, or name the other file"
            )
        says_so = says_so and named is not None
    else:
        if split is None:
            raise ValueError(f"{path}: a Karpathy file has several splits; name one with --split")
        entries = [each for each in content["images"] if field_of(path, each, "split", (str,)) == split]
        images = [_of_karpathy(path, entry) for entry in entries]
        kind = COCO if "cocoid" in content["images"][0] else FLICKR
        says_so = content.get("dataset", kind) in (kind, "coco" if kind == COCO else "flickr30k")
        if not images:
            found = sorted({str(image.get("split")) for image in content["images"]})
            raise ValueError(f"{path}: no image of split {split!r}; it has {', '.join(found)}")
    seen: set[SampleId] = set()
    for image in images:
        if image.id in seen:
            raise ValueError(f"{path}: image {image.id!r} occurs twice; remove one of them")
        seen.add(image.id)
    shown = split or next((each for each in SPLITS if each in path.stem), "")
    published = says_so and len(images) in PUBLISHED_IMAGES.get((kind, shown), ())
    return images, DataSet(f"{kind} {shown}".strip(), published)


def check_not_nocaps(path: Path, content: Any, instead: str) -> None:
    """Raise ValueError for NoCaps' images in any layout: by NoCaps' fields, or by Open Images' file names."""
    images = content.get("images") if isinstance(content, dict) else content
    entries = [each for each in images if isinstance(each, dict)] if isinstance(images, list) else []
    names = [str(each.get("file_name") or each.get("image") or each.get("filename")) for each in entries]
    if entries and (
        any("open_images_id" in each or each.get("domain") in NOCAPS_DOMAINS for each in entries)
        or all(_OPEN_IMAGES_STEM.fullmatch(name.rpartition("/")[2].partition(".")[0]) for name in names)
    ):
        raise ValueError(f"{path}: holds NoCaps' pictures, which are scored by NoCaps' own protocol; {instead}")


def check_not_coco(path: Path, images: Sequence[Any]) -> None:
    """Raise ValueError for COCO's images where NoCaps' are wanted, by the first image's file name."""
    name = str(images[0].get("file_name") if isinstance(images[0], dict) else "")
    if name.startswith("COCO_"):
        raise ValueError(
            f"{path}: holds COCO's pictures ({name}), not NoCaps'; name NoCaps' file, or choose the captions task"
        )


def _of_karpathy(path: Path, entry: Mapping[str, Any]) -> CaptionedImage:
    """COCO's image id where there is one, else the running number."""
    image_id = field_of(path, entry, "cocoid" if "cocoid" in entry else "imgid", (int, str))
    parts = [field_of(path, entry, name, (str,)) for name in ("filepath", "filename") if name in entry]
    place = "/".join(part for part in parts if part)
    sentences = field_of(path, entry, "sentences", (list,))
    of = f"image {image_id!r}"
    return CaptionedImage(image_id, place, tuple(field_of(path, each, "raw", (str,), of) for each in sentences))


def _of_lavis(path: Path, entry: Mapping[str, Any]) -> CaptionedImage:
    """The id is the number that ends the picture's name, COCO's id in COCO's pictures."""
    place = field_of(path, entry, "image", (str,))
    captions = field_of(path, entry, "caption", (str, list))
    if not all(isinstance(each, str) for each in captions):
        raise ValueError(f"{path}: image {place!r} has a caption that is not a string; correct it")
    stem = place.rpartition("/")[2].rpartition(".")[0]
    number = _NUMBER.search(stem)
    image_id: SampleId = int(number[1]) if number else stem
    return CaptionedImage(image_id, place, (captions,) if isinstance(captions, str) else tuple(captions))
