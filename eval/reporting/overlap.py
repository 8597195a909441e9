"""Overlap of training and evaluation: pictures that look alike, and training sources that contain the set."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eval.reporting.evaluations import Evaluation
from eval.reporting.training_hashes import training_hashes
from eval.reporting.training_sources import known_overlaps, of_unknown_training
from eval.sets.official_files import SampleId
from pipeline.pictures.near_hashes import near_pairs
from pipeline.pictures.perceptual_hash import hash_of_file

SHOWN = 10  # pictures of a set
NAMES_SHOWN = 3  # training pictures for each of them


@dataclass(frozen=True)
class Search:
    """What the comparison of perceptual hashes found.

    `hits` are the first evaluation pictures found, with the names of the training pictures that look like them.
    `not_compared` says how many pictures have no hash, and why.
    """

    num_pictures: int
    num_training: int
    num_hits: int
    hits: list[tuple[SampleId, str]]
    not_compared: list[str]


@dataclass(frozen=True)
class SetOverlap:
    """What is known of one evaluation set: shared sources (source, why), runs with unknown training data, a search."""

    title: str
    sources: list[tuple[str, str]]
    unknown: list[str]
    search: Search | None

    @property
    def is_empty(self) -> bool:
        return not (self.sources or self.unknown or self.search)


def set_overlaps(evaluations: Sequence[Evaluation], training: Sequence[Path]) -> list[SetOverlap]:
    """One entry for each evaluation set. Without training hashes nothing is compared (`search` is None)."""
    by_set: dict[Any, list[Evaluation]] = {}
    for each in evaluations:
        by_set.setdefault((each.task["annotations_sha256"], each.task["split"]), []).append(each)
    overlaps = []
    for same in by_set.values():
        images = {image: path for each in same for image, path in each.images.items()}
        title = max(same, key=lambda each: len(each.images)).title
        unknown = [each.folder.name for each in of_unknown_training(same)]
        found = _search(images, training) if training else None
        overlaps.append(SetOverlap(title, known_overlaps(same), unknown, found))
    return overlaps


def _search(images: Mapping[SampleId, Path], training: Sequence[Path]) -> Search:
    hashed, flat, unreadable = list[tuple[SampleId, int]](), 0, list[str]()
    for image, path in images.items():
        try:
            value = hash_of_file(path)
        except ValueError as error:
            unreadable.append(str(error))
            continue
        if value is None:
            flat += 1
        else:
            hashed.append((image, value))
    own = np.array([value for _, value in hashed], np.uint64)
    compared, hits = 0, dict[SampleId, list[str]]()
    for names, hashes in training_hashes(tuple(training)):
        compared += len(hashes)
        for e, t in near_pairs(own, hashes):
            hits.setdefault(hashed[e][0], []).append(str(names[t]))
    not_compared = [f"{flat} too flat for a hash"] if flat else []
    not_compared += [f"{len(unreadable)} not readable ({unreadable[0]})"] if unreadable else []
    shown = [(image, _first_of(names)) for image, names in list(hits.items())[:SHOWN]]
    return Search(len(hashed), compared, len(hits), shown, not_compared)


def _first_of(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMES_SHOWN]) + (", ..." if len(names) > NAMES_SHOWN else "")
