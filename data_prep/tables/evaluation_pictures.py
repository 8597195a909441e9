"""Finds rows whose picture belongs to an evaluation, by COCO's numbers of pictures.

Half of Visual Genome's pictures are COCO's. Its `image_data.json` has their `coco_id`; null and -1 mean that there is
none. Pictures that are shared without a `coco_id` are found by `data_prep.duplicates`, from the pictures themselves.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data_prep.shards.ledger import Drop
from data_prep.tables.json_files import fault_of, load_json
from data_prep.tables.row import Row

HELD_OUT = ("val", "test")
"""The splits of a Karpathy file that are evaluation sets."""
NO_COCO_ID = (None, -1)
QUESTIONS_NAME = re.compile(r"v2_OpenEnded_mscoco_([a-z]+20\d\d)_questions")


@dataclass(frozen=True)
class EvaluationPictures:
    """Evaluation set -> COCO's numbers of its pictures; and for Visual Genome: picture -> its COCO number, or None."""

    sets: Mapping[str, frozenset[int]]
    coco_ids: Mapping[int, int | None] | None = None
    image_data: Path | None = None

    def sizes(self) -> dict[str, int]:
        return {name: len(ids) for name, ids in sorted(self.sets.items())}

    def digest(self) -> str:
        """The sha256 of all that decides which rows are dropped."""
        shared = sorted((mine, coco) for mine, coco in (self.coco_ids or {}).items() if coco is not None)
        content = [sorted((name, sorted(ids)) for name, ids in self.sets.items()), shared]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def marked(self, rows: Iterable[Row]) -> Iterator[Row]:
        """The rows; those with an evaluation picture are marked to be dropped. Raises ValueError on a picture of which
        the COCO number is not known."""
        evaluation = frozenset[int]().union(*self.sets.values())
        for row in rows:
            coco_id = row.picture_id
            if coco_id is None:
                raise ValueError(f"--not-in: {row.url} has no cocoid in its annotation file; leave --not-in out")
            if self.coco_ids is not None:
                if coco_id not in self.coco_ids:
                    raise ValueError(
                        f"--image-data {self.image_data}: does not list picture {coco_id}; give the whole file"
                    )
                coco_id = self.coco_ids[coco_id]
            yield replace(row, drop=Drop("coco_evaluation")) if coco_id in evaluation else row


def read_evaluation_sets(paths: Sequence[Path]) -> dict[str, frozenset[int]]:
    """Name -> COCO's numbers of the pictures of evaluation sets.

    A file may be Karpathy's dataset_coco.json (its val and test splits: karpathy_val, karpathy_test), a question file
    of VQA (vqav2_val2014), or a JSON list of numbers, which has the name of the file. Raises ValueError on others.
    """
    sets: dict[str, frozenset[int]] = {}
    for path in paths:
        content = load_json(path, "--not-in")
        try:
            found = _sets_of(path, content)
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"--not-in {path}: an entry has no number of a COCO picture ({fault_of(error)})"
            ) from error
        for name, ids in found.items():
            if name in sets or not ids:
                raise ValueError(f"--not-in {path}: {name} has no picture, or comes twice; name each file once")
            sets[name] = ids
    return sets


def _sets_of(path: Path, content: Any) -> dict[str, frozenset[int]]:
    if isinstance(content, list):
        return {path.stem: frozenset(map(_number, content))}
    if isinstance(content, dict) and isinstance(content.get("questions"), list):
        told = QUESTIONS_NAME.fullmatch(path.stem)
        name = f"vqav2_{told[1]}" if told else path.stem
        return {name: frozenset(_number(each["image_id"]) for each in content["questions"])}
    if isinstance(content, dict) and isinstance(content.get("images"), list):
        images = content["images"]
        return {
            f"karpathy_{split}": frozenset(_number(each["cocoid"]) for each in images if each["split"] == split)
            for split in HELD_OUT
        }
    raise ValueError(f"--not-in {path}: is neither Karpathy's JSON, nor a question file of VQA, nor a list of numbers")


def read_coco_ids(path: Path) -> dict[int, int | None]:
    """Visual Genome's picture -> its COCO number or None, from image_data.json. Raises ValueError on another file."""
    content = load_json(path, "--image-data")
    if not isinstance(content, list):
        raise ValueError(f"--image-data {path}: is of type {type(content).__name__}, expected a list of pictures")
    coco_ids: dict[int, int | None] = {}
    for number, entry in enumerate(content):
        try:
            coco_id = entry["coco_id"]
            known = None if coco_id in NO_COCO_ID else _number(coco_id)
            coco_ids[_number(entry["image_id"] if "image_id" in entry else entry["id"])] = known
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"--image-data {path}: picture {number} has no image_id and coco_id ({fault_of(error)})"
            ) from error
    return coco_ids


def _number(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise TypeError(f"{str(value)[:40]!r}, expected a whole number")
    return value
