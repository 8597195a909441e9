"""Questions of VQAv2, OK-VQA and GQA, as published, with the paths of their pictures.

VQAv2 and OK-VQA give COCO's picture numbers (`val2014/COCO_val2014_000000000042.jpg`); GQA gives its own picture ids.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eval.sets.captioned_images import DataSet
from eval.sets.gqa_files import gqa_questions, is_gqa
from eval.sets.official_files import SampleId
from eval.sets.samples import PictureFinder, Sample, TaskData, check_length, find_file
from eval.sets.vqa_files import OK_VQA, VQA_V2, Question, check_set, questions_of

SUBSETS = {
    VQA_V2: {"train": "train2014", "val": "val2014", "test-dev": "test-dev2015", "test": "test2015"},
    OK_VQA: {"train": "train2014", "val": "val2014"},
}
FILES = {
    VQA_V2: "v2_OpenEnded_mscoco_{}_questions.json",
    OK_VQA: "OpenEnded_mscoco_{}_questions.json",
}
PUBLISHED_QUESTIONS = {
    VQA_V2: {"train": 443_757, "val": 214_354, "test-dev": 107_394, "test": 447_793},
    OK_VQA: {"train": 9_009, "val": 5_046},
    "GQA": {"train": 943_000, "val": 132_062, "test-dev": 12_578, "test": 95_336},
}
GQA_NAMES = {"test-dev": "testdev"}
GQA_FILE = re.compile(r"(train|val|testdev|test|challenge|submission)_(?:balanced|all)_questions")


def load_vqa(folder: Path, split: str, limit: int | None = None) -> TaskData:
    """VQAv2's question file of a split (val, train, test-dev, test) and COCO's pictures."""
    return _load_coco_questions(VQA_V2, folder, split, limit)


def load_okvqa(folder: Path, split: str, limit: int | None = None) -> TaskData:
    """OK-VQA's question file of a split (val, train) and COCO's pictures."""
    return _load_coco_questions(OK_VQA, folder, split, limit)


def load_gqa(folder: Path, split: str, limit: int | None = None) -> TaskData:
    """GQA's balanced questions of a split (test-dev, val, train, test)."""
    if split not in PUBLISHED_QUESTIONS["GQA"]:
        raise ValueError(f"--split {split!r}: GQA has {', '.join(PUBLISHED_QUESTIONS['GQA'])}")
    names = [f"{GQA_NAMES.get(split, split)}_balanced_questions.json"]
    annotations, content = find_file(folder, names, is_gqa)
    told = GQA_FILE.match(annotations.name)
    if told and told[1] != GQA_NAMES.get(split, split):
        raise ValueError(
            f"{annotations}: its name says split {told[1]!r}, not {split!r}; change --split, or name the other file"
        )
    questions = gqa_questions(annotations, content)
    data_set = DataSet(f"GQA {split}", len(questions) == PUBLISHED_QUESTIONS["GQA"][split])
    found = {question_id: (each.image_id, each.question) for question_id, each in questions.items()}
    return _task_data(folder, annotations, data_set, found, limit, "{}.jpg")


def _load_coco_questions(name: str, folder: Path, split: str, limit: int | None) -> TaskData:
    subset = SUBSETS[name].get(split)
    if subset is None:
        raise ValueError(f"--split {split!r}: {name} has {', '.join(SUBSETS[name])}")
    annotations, content = find_file(folder, [FILES[name].format(subset)], _has_questions)
    check_set(annotations, content, name)
    told = content.get("data_subtype") if isinstance(content, dict) else None
    if told not in (None, subset):
        raise ValueError(
            f"{annotations}: data_subtype {told!r}, but split {split!r} of {name} is {subset!r}; change --split, or "
            "name the other file"
        )
    questions = questions_of(annotations, content)
    data_set = DataSet(f"{name} {split}", len(questions) == PUBLISHED_QUESTIONS[name][split])
    pictures = subset.replace("test-dev", "test")  # test-dev asks about a part of test2015's pictures
    place = f"{pictures}/COCO_{pictures}_{{:0>12}}.jpg"
    return _task_data(folder, annotations, data_set, questions, limit, place)


def _has_questions(content: Any) -> bool:
    return isinstance(content, dict) and isinstance(content.get("questions"), list)


def _task_data(
    folder: Path,
    annotations: Path,
    data_set: DataSet,
    questions: Mapping[SampleId, Question],
    limit: int | None,
    place: str,
) -> TaskData:
    chosen = dict(list(questions.items())[:limit])
    samples = [Sample(question_id, image_id, question) for question_id, (image_id, question) in chosen.items()]
    for sample in samples:
        check_length(annotations, sample)
    find = PictureFinder(folder, annotations)
    image_ids = dict.fromkeys(image_id for image_id, _ in chosen.values())
    paths = {image_id: find(place.format(image_id)) for image_id in image_ids}
    return TaskData(annotations, data_set, paths, tuple(samples))
