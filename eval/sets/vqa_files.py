"""VQAv2's and OK-VQA's question and annotation files, as published, and how they are told apart.

A file shows its set by its `info`, by fields that only one set has, or by its published name. A file that shows nothing
counts as the user's own set, of any size, in the wanted format.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.sets.official_files import SampleId, field_of, listed

VQA_V2, VQA_V1, OK_VQA = "VQAv2", "VQA v1", "OK-VQA"
SAYS = {"data_type": "mscoco", "task_type": "Open-Ended"}  # other files: drawn scenes, multiple choice
NUM_ANSWERS = 10  # human answers to a question; both accuracy rules need ten
Question = tuple[SampleId, str]  # image id, question


@dataclass(frozen=True)
class QuestionAnswers:
    """One annotated question of a VQA file."""

    image_id: SampleId
    question_type: str
    answer_type: str
    answers: tuple[str, ...]


def answers_of(path: Path, content: Any) -> dict[SampleId, QuestionAnswers]:
    """Of {annotations: [{question_id, image_id, question_type, answer_type, answers}]}."""
    found: dict[SampleId, QuestionAnswers] = {}
    for entry in listed(path, content, "annotations"):
        question_id = _new_id(path, entry, found)
        of, given = f"question_id {question_id!r}", field_of(path, entry, "answers", (list,))
        answers = tuple(field_of(path, answer, "answer", (str,), of) for answer in given)
        if len(answers) != NUM_ANSWERS:
            raise ValueError(
                f"{path}: question_id {question_id!r} has {len(answers)} answers, not {NUM_ANSWERS}; name the official "
                "file"
            )
        found[question_id] = QuestionAnswers(
            field_of(path, entry, "image_id", (int, str)),
            _kind_of(path, entry, "question_type"),
            _kind_of(path, entry, "answer_type"),
            answers,
        )
    return found


def _kind_of(path: Path, entry: Any, name: str) -> str:
    """A type that an annotation may have; empty where it has none."""
    kind: str = field_of(path, entry, name, (str,)) if name in entry else ""
    return kind


def questions_of(path: Path, content: Any) -> dict[SampleId, Question]:
    """Of {questions: [{question_id, image_id, question}]}: image id and question by question id."""
    found: dict[SampleId, Question] = {}
    for entry in listed(path, content, "questions"):
        image_id, question = field_of(path, entry, "image_id", (int, str)), field_of(path, entry, "question", (str,))
        found[_new_id(path, entry, found)] = image_id, question
    return found


def _new_id(path: Path, entry: Any, found: Mapping[SampleId, Any]) -> SampleId:
    question_id: SampleId = field_of(path, entry, "question_id", (int, str))
    if question_id in found:
        raise ValueError(f"{path}: question_id {question_id!r} occurs twice; remove one of them")
    return question_id


def check_set(path: Path, content: Any, wanted: str) -> None:
    """Raise ValueError when a file is certainly of another set than the wanted one (VQAv2 or OK-VQA)."""
    if not isinstance(content, dict):
        return
    kind, why = _set_of(path, content)
    if kind not in ("", wanted):
        raise ValueError(f"{path}: of {kind} ({why}), not of {wanted}; name {wanted}'s file, or choose the other task")
    for name, only in SAYS.items():
        if content.get(name, only) != only:
            raise ValueError(f"{path}: {name} {content[name]!r}, but {wanted} has {only!r}; name {wanted}'s file")


def _set_of(path: Path, content: Mapping[str, Any]) -> tuple[str, str]:
    """The set, and what shows it; empty when nothing does."""
    info = _object(content.get("info"))
    described, version = str(info.get("description", "")), str(info.get("version", ""))
    why = f"info: {described[:60]!r}, version {version!r}"
    if "ok-vqa" in described.lower():
        return OK_VQA, why
    if "VQA dataset" in described:
        return VQA_V2 if version.startswith("2") else VQA_V1, why
    first = _first(content.get("annotations"))
    if "raw_answer" in _first(first.get("answers")):
        return OK_VQA, "its answers have raw_answer"
    if "multiple_choice_answer" in first:
        return VQA_V2, "its annotations have multiple_choice_answer"
    return (VQA_V2, "by its name") if path.name.startswith("v2_") else ("", "")


def check_same_set(annotations: Path, answers: Any, questions: Path, asked: Any) -> None:
    """Raise ValueError when two VQA files have different years, versions, subsets or kinds of pictures."""
    for name in ("data_subtype", "data_type", "version", "year"):
        in_info = name in ("version", "year")
        told = [_object(each.get("info") if in_info else each).get(name) for each in (answers, asked)]
        if None not in told and str(told[0]) != str(told[1]):
            raise ValueError(
                f"{annotations}: {name} {told[0]!r}, but {questions} has {told[1]!r}; name files of one set and year"
            )


def check_same_pictures(
    annotations: Path,
    answers: Mapping[SampleId, QuestionAnswers],
    questions: Path,
    asked: Mapping[SampleId, Question],
) -> None:
    """Raise ValueError for the first question that has different pictures in the two files."""
    for question_id, answer in answers.items():
        image_id = asked[question_id][0]
        if answer.image_id != image_id:
            raise ValueError(
                f"{annotations}: question_id {question_id!r} has image_id {answer.image_id!r}, but {image_id!r} in "
                f"{questions}; name files of one set"
            )


def _object(content: Any) -> Mapping[str, Any]:
    return content if isinstance(content, dict) else {}


def _first(entries: Any) -> Mapping[str, Any]:
    return _object(entries[0]) if isinstance(entries, Sequence) and not isinstance(entries, str) and entries else {}
