"""GQA's question files (questions, answers and types in one) and predictions, as published."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.sets.official_files import SampleId, field_of, read_json, read_predictions

TYPES = ("structural", "semantic")  # of GQA's breakdown


@dataclass(frozen=True)
class GqaQuestion:
    """One question; `answer` is None in the files of the hidden test set."""

    image_id: SampleId
    question: str
    answer: str | None
    types: dict[str, str]


def is_gqa(content: Any) -> bool:
    """Whether a file's content is {question_id: {imageId, question, ...}}."""
    first = next(iter(content.values()), None) if isinstance(content, dict) else None
    return isinstance(first, dict) and {"imageId", "question"} <= first.keys()


def gqa_questions(path: Path, content: Any) -> dict[SampleId, GqaQuestion]:
    """The questions by id. Raises ValueError in one line for a file of another format."""
    if not is_gqa(content):
        raise ValueError(
            f"{path}: not GQA's questions, an object of question_id: {{imageId, question, answer}}; name the official "
            "file"
        )
    found: dict[SampleId, GqaQuestion] = {}
    for question_id, entry in content.items():
        of = f"question_id {question_id!r}"
        if isinstance(entry, dict) and entry.get("isBalanced") is False:
            raise ValueError(f"{path}: {of} is not one of the balanced questions, which GQA's accuracy counts "
                             "(isBalanced is false); name a *_balanced_questions.json")  # fmt: skip
        types = field_of(path, entry, "types", (dict,), of) if "types" in entry else {}
        found[question_id] = GqaQuestion(
            field_of(path, entry, "imageId", (int, str), of),
            field_of(path, entry, "question", (str,), of),
            field_of(path, entry, "answer", (str,), of) if "answer" in entry else None,
            {name: str(types[name]) for name in TYPES if types.get(name)},
        )
    return found


def read_gqa_predictions(path: Path) -> dict[SampleId, str]:
    """A list of {question_id, answer}, or GQA's own {questionId, prediction}; ids are strings there."""
    content = read_json(path)
    own = isinstance(content, list) and content and isinstance(content[0], dict) and "questionId" in content[0]
    names = ("questionId", "prediction") if own else ("question_id", "answer")
    found: dict[SampleId, str] = {}
    for sample_id, text in read_predictions(path, *names).items():
        if str(sample_id) in found:
            raise ValueError(
                f"{path}: {names[0]} {sample_id} occurs twice, as number and as string; remove one of them"
            )
        found[str(sample_id)] = text
    return found
