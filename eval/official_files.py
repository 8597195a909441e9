"""Prediction and annotation files in their published formats, read strictly: a fault is one line with file and id."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SampleId = int | str
IDS_SHOWN = 5


@dataclass(frozen=True)
class CaptionReferences:
    """Reference captions by image, in the file's order, and each image's domain where the file has one (NoCaps)."""

    captions: dict[SampleId, list[str]]
    domains: dict[SampleId, str]


@dataclass(frozen=True)
class QuestionAnswers:
    """One annotated question of a VQA file."""

    image_id: SampleId
    question_type: str
    answer_type: str
    answers: tuple[str, ...]


def read_json(path: Path) -> Any:
    """A JSON file's content. Raises ValueError in one line when it is missing or is no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: not readable as JSON ({error})") from error


def read_predictions(path: Path, id_field: str, text_field: str) -> dict[SampleId, str]:
    """A list of {id_field, text_field}, each id once."""
    content = read_json(path)
    if not isinstance(content, list):
        raise ValueError(f"{path}: expected a list of {{{id_field}, {text_field}}}, found {type(content).__name__}")
    predictions: dict[SampleId, str] = {}
    for entry in content:
        sample_id = _field(path, entry, id_field, (int, str))
        if sample_id in predictions:
            raise ValueError(f"{path}: {id_field} {sample_id!r} occurs twice")
        predictions[sample_id] = _field(path, entry, text_field, (str,))
    return predictions


def read_caption_references(path: Path, split: str | None = None) -> CaptionReferences:
    """Captions of a COCO-format file, or of one split of a Karpathy file (`dataset_coco.json`).

    COCO: {images: [{id, domain?}], annotations: [{image_id, caption}]}; Karpathy: {images: [{cocoid or imgid, split,
    sentences: [{raw}]}]}.
    """
    content = read_json(path)
    images = content.get("images") if isinstance(content, dict) else None
    if not isinstance(images, list) or not images:
        raise ValueError(f"{path}: expected an object with a list of images, as COCO's caption files have")
    captions: dict[SampleId, list[str]] = {}
    domains: dict[SampleId, str] = {}
    if "sentences" in images[0]:
        if split is None:
            raise ValueError(f"{path}: a Karpathy file; name one of its splits with --split")
        for image in images:
            if image.get("split") == split:
                captions[karpathy_id(image)] = [_field(path, each, "raw", (str,)) for each in image["sentences"]]
    else:
        for image in images:
            image_id = _field(path, image, "id", (int, str))
            captions[image_id] = []
            if "domain" in image:
                domains[image_id] = _field(path, image, "domain", (str,))
        for annotation in content.get("annotations", []):
            image_id = _field(path, annotation, "image_id", (int, str))
            if image_id not in captions:
                raise ValueError(f"{path}: a caption of image_id {image_id!r}, which is not among its images")
            captions[image_id].append(_field(path, annotation, "caption", (str,)))
    bare = [image_id for image_id, found in captions.items() if not found]
    if bare or not captions:
        raise ValueError(
            f"{path}: image {bare[0]!r} has no caption" if bare else f"{path}: no image of split {split!r}"
        )
    return CaptionReferences(captions, domains)


def karpathy_id(image: Mapping[str, Any]) -> SampleId:
    """COCO's image id in `dataset_coco.json`, the running number in `dataset_flickr30k.json`."""
    found: SampleId = image["cocoid"] if "cocoid" in image else image["imgid"]
    return found


def read_answers(path: Path) -> dict[SampleId, QuestionAnswers]:
    """A VQA annotation file: {annotations: [{question_id, image_id, question_type, answer_type, answers}]}."""
    entries = _listed(path, read_json(path), "annotations")
    found: dict[SampleId, QuestionAnswers] = {}
    for entry in entries:
        question_id = _field(path, entry, "question_id", (int, str))
        if question_id in found:
            raise ValueError(f"{path}: question_id {question_id!r} occurs twice")
        answers = tuple(_field(path, answer, "answer", (str,)) for answer in _field(path, entry, "answers", (list,)))
        if not answers:
            raise ValueError(f"{path}: question_id {question_id!r} has no answers")
        found[question_id] = QuestionAnswers(
            _field(path, entry, "image_id", (int, str)),
            str(entry.get("question_type", "")),
            str(entry.get("answer_type", "")),
            answers,
        )
    return found


def read_questions(path: Path) -> dict[SampleId, tuple[SampleId, str]]:
    """A VQA question file, {questions: [{question_id, image_id, question}]}: image id and question by question id."""
    found: dict[SampleId, tuple[SampleId, str]] = {}
    for entry in _listed(path, read_json(path), "questions"):
        question_id = _field(path, entry, "question_id", (int, str))
        if question_id in found:
            raise ValueError(f"{path}: question_id {question_id!r} occurs twice")
        found[question_id] = (_field(path, entry, "image_id", (int, str)), _field(path, entry, "question", (str,)))
    return found


def check_same_ids(path: Path, found: Iterable[SampleId], reference: Path, expected: Iterable[SampleId]) -> None:
    """Raise ValueError, naming ids, when one file lacks ids that the other has."""
    found_ids, expected_ids = dict.fromkeys(found), dict.fromkeys(expected)
    faults = [
        f"{len(ids)} {kind} ({', '.join(map(repr, ids[:IDS_SHOWN]))}{', ...' if len(ids) > IDS_SHOWN else ''})"
        for kind, ids in (
            ("missing", [each for each in expected_ids if each not in found_ids]),
            ("extra", [each for each in found_ids if each not in expected_ids]),
        )
        if ids
    ]
    if faults:
        raise ValueError(f"{path}: ids differ from those of {reference}: {', '.join(faults)}")


def _listed(path: Path, content: Any, name: str) -> Sequence[Any]:
    entries = content.get(name) if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{path}: expected an object with a list of {name}")
    return entries


def _field(path: Path, entry: Any, name: str, types: tuple[type, ...]) -> Any:
    if not isinstance(entry, dict) or name not in entry:
        raise ValueError(f"{path}: an entry without {name!r}: {str(entry)[:80]}")
    value = entry[name]
    if not isinstance(value, types) or isinstance(value, bool):
        wanted = " or ".join(each.__name__ for each in types)
        raise ValueError(f"{path}: {name} {value!r} is a {type(value).__name__}, expected {wanted}")
    return value
