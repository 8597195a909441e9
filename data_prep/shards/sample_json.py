"""Writes and checks the JSON of a sample, the file beside its picture in a tar (in the code: its record)."""

import json
import re
from typing import Any

KEY_PATTERN = re.compile(r"[A-Za-z0-9_-]{1,90}")
"""Keys have no dot, because WebDataset splits names at the first dot. With its ending a key fits a USTAR name."""
LONGEST_SIDE_PX = 1 << 20
LARGEST_ID = (1 << 63) - 1
MOST_ANSWERS = 1_000_000
LARGEST_SCORE = 1e6
"""JSON sets no limit for whole numbers, and Python cannot convert huge ones to floats."""


def encode_record(record: dict[str, Any]) -> bytes:
    """Compact JSON with sorted keys: the same record gives the same bytes. Raises ValueError on NaN or infinity."""
    return json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def record_fault(record: Any) -> str | None:
    """Why a decoded JSON is not that of a sample, or None. Readers rely on these fields and their types."""
    if not isinstance(record, dict):
        return "it is not a JSON object"
    return _field_fault(record) or _caption_fault(record) or _question_fault(record)


def questions_of(record: dict[str, Any]) -> list[dict[str, Any]]:
    """The questions of a sample: id, question, and its answers -> how many people gave each. [] for captions alone."""
    found: list[dict[str, Any]] = record.get("questions", [])
    return found


def _field_fault(record: dict[str, Any]) -> str | None:
    kinds = {"key": str, "sha256": str, "width": int, "height": int}
    if wrong := [name for name, kind in kinds.items() if not isinstance(record.get(name), kind)]:
        return f"{wrong[0]} is missing or its type is not {kinds[wrong[0]].__name__}"
    if wrong := [name for name in ("width", "height") if not 0 < record[name] <= LONGEST_SIDE_PX]:
        return f"{wrong[0]} is not between 1 and {LONGEST_SIDE_PX}"
    if not KEY_PATTERN.fullmatch(record["key"]):
        return "key is not 1 to 90 letters, digits, _ or -"
    return None


def _caption_fault(record: dict[str, Any]) -> str | None:
    columns = [record.get(name) for name in ("captions", "scores", "sources")]
    if not all(isinstance(column, list) for column in columns) or len({len(column or ()) for column in columns}) != 1:
        return "captions, scores and sources are not three lists of equal length"
    texts, numbers = [*(columns[0] or ()), *(columns[2] or ())], columns[1] or ()
    if not all(isinstance(text, str) for text in texts):
        return "a caption or a source is not a text"
    fit = all(each is None or (isinstance(each, int | float) and abs(each) <= LARGEST_SCORE) for each in numbers)
    return None if fit else f"a score is not a number of at most {LARGEST_SCORE:g}"


def _question_fault(record: dict[str, Any]) -> str | None:
    questions = record.get("questions", [])
    if not isinstance(questions, list) or not all(isinstance(each, dict) for each in questions):
        return "questions is not a list of objects"
    if questions and not isinstance(record.get("question_set"), str):
        return "question_set is missing or not a text"
    for number, each in enumerate(questions):
        if fault := _fault_of_one(each):
            return f"question {number}: {fault}"
    ids = [each["id"] for each in questions]
    return None if len(set(ids)) == len(ids) else "two questions have one id"


def _fault_of_one(question: dict[str, Any]) -> str | None:
    text, answers = question.get("question"), question.get("answers")
    if not _whole(question.get("id"), 0, LARGEST_ID):
        return f"its id is not a whole number from 0 to {LARGEST_ID}"
    if not isinstance(text, str) or not text.strip():
        return "its question is empty or not a text"
    if not isinstance(answers, dict) or not answers or not all(map(str.strip, answers)):
        return "it has no answers, or an empty one"
    if not all(_whole(count, 1, MOST_ANSWERS) for count in answers.values()):
        return f"a count of its answers is not from 1 to {MOST_ANSWERS}"
    return None


def _whole(number: Any, least: int, most: int) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and least <= number <= most
