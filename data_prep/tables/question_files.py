"""Reads questions about pictures: the official files of VQAv2 and Visual Genome, and LAVIS's lists of both.

A row is one picture with all its questions, also with those of a second file. Rows are in the order in which the files
name the pictures first. A question that cannot be used is dropped for a named reason, which its row holds.
"""

import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from data_prep.shards.sample_json import LARGEST_ID
from data_prep.tables.json_files import fault_of, load_json
from data_prep.tables.row import Question, Row
from data_prep.tables.unicode_text import without_surrogates
from pipeline.answers import normalise

LONGEST_QUESTION = 1_000
"""Characters. The longest question of VQAv2 has about 100."""
LONGEST_ANSWER = 300
"""Characters. A longer answer is left out."""
MOST_ANSWERS = 1_000
"""Of one question. VQAv2 has ten."""
COCO_NAME = re.compile(r"(?:.*/)?COCO_([a-z]+20\d\d)_(\d{12})\.jpg", re.ASCII)
VISUAL_GENOME_NAME = re.compile(r"(?:.*/)?(\d{1,12})\.jpg", re.ASCII)
VISUAL_GENOME = "visual_genome"


class Asked(NamedTuple):
    """A question as its file has it."""

    picture: "Picture"
    id: int
    text: str
    answers: list[str]


class Picture(NamedTuple):
    """The file of a picture below the image root, its number, and the set of its questions."""

    url: str
    id: int
    question_set: str


@dataclass
class _Found:
    questions: list[Question] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)


def vqa_rows(paths: Sequence[Path], annotations: Sequence[Path]) -> Iterator[Row]:
    """The pictures of VQAv2 with their questions. Answers are normalised as the VQA team's script does.

    `paths` are official question files, which need their `annotations`, or LAVIS's lists (vqa_train.json), which hold
    their answers. Raises ValueError, with file and entry, on what is neither.
    """
    answers: dict[int, list[str]] = {}
    subsets = [_add_answers(path, answers) for path in annotations]
    asked = (each for path in paths for each in _vqa_file(path, answers, annotations, subsets))
    return _rows(asked, {})


def visual_genome_qa_rows(paths: Sequence[Path]) -> Iterator[Row]:
    """The pictures of Visual Genome's question_answers.json, or of LAVIS's vg_qa.json, with their questions.

    An answer is in lower case, without its full stop. Raises ValueError, with file and entry, on other files.
    """
    pictures: dict[Picture, _Found] = {}
    return _rows((each for path in paths for each in _visual_genome_file(path, pictures)), pictures)


def visual_genome_answer(answer: str) -> str:
    return answer.lower().strip().rstrip(".").rstrip()


def _rows(asked: Iterator[Asked], pictures: dict[Picture, _Found]) -> Iterator[Row]:
    """One row for each picture. `pictures` may have pictures without a question."""
    ids: set[int] = set()
    for each in asked:
        found = pictures.setdefault(each.picture, _Found())
        answers = _counted(
            each.answers, normalise if each.picture.question_set != VISUAL_GENOME else visual_genome_answer
        )
        text = without_surrogates(each.text).strip()
        if reason := _fault(each.id, text, answers, ids):
            found.lost.append(reason)
            continue
        ids.add(each.id)
        found.questions.append(Question(each.id, text, answers))
    for row, (picture, found) in enumerate(pictures.items()):
        yield Row(row, picture.url, (), tuple(found.questions), picture.question_set, tuple(found.lost), picture.id)


def _fault(question_id: int, text: str, answers: tuple[tuple[str, int], ...], known: set[int]) -> str | None:
    if question_id in known:
        return "repeated_question"
    if not text:
        return "empty_question"
    if len(text) > LONGEST_QUESTION:
        return "question_too_long"
    return None if answers else "no_answer"


def _counted(answers: list[str], normalised: Callable[[str], str]) -> tuple[tuple[str, int], ...]:
    """Each answer and its count, the most frequent first. Empty answers and far too long ones are left out."""
    counts = Counter[str]()
    for answer in answers:
        if len(answer) <= LONGEST_ANSWER and (text := normalised(" ".join(without_surrogates(answer).split()))):
            counts[sys.intern(text)] += 1
    return tuple(sorted(counts.items(), key=lambda each: (-each[1], each[0])))


def _vqa_file(
    path: Path, answers: dict[int, list[str]], annotations: Sequence[Path], subsets: Sequence[str]
) -> Iterator[Asked]:
    """The questions of a file, with those of `answers` that are theirs; `subsets` are those of the `annotations`."""
    content = load_json(path, "--input")
    if isinstance(content, list):
        if annotations:
            raise ValueError(
                f"--annotations {annotations[0]}: {path} holds its answers itself; leave --annotations out"
            )
        yield from _lavis_list(path, content, _coco_picture)
        return
    subset, questions = _subset(path, "--input", content, "questions")
    if not annotations:
        raise ValueError(f"--input {path}: has no answers; give --annotations v2_mscoco_{subset}_annotations.json")
    if subset not in subsets:
        raise ValueError(
            f"--annotations {annotations[0]}: has no answers of {subset}; give v2_mscoco_{subset}_annotations.json too"
        )
    images = subset.replace("test-dev", "test")
    for number, entry in enumerate(questions):
        try:
            image = _id(entry["image_id"])
            picture = _coco_picture(f"COCO_{images}_{image:012d}.jpg")
            question_id = _id(entry["question_id"])
            yield Asked(picture, question_id, _text(entry["question"]), answers.get(question_id, []))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"--input {path}: question {number} is not a question of VQA ({fault_of(error)})"
            ) from error


def _add_answers(path: Path, answers: dict[int, list[str]]) -> str:
    """Put the answers of an official annotation file into `answers` (question id -> texts); returns its subset."""
    content = load_json(path, "--annotations", _only_the_answer)
    subset, annotations = _subset(path, "--annotations", content, "annotations")
    for number, entry in enumerate(annotations):
        try:
            question_id = _id(entry["question_id"])
            if question_id in answers:
                raise ValueError(f"question_id {question_id} comes twice")
            answers[question_id] = _texts(entry["answers"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"--annotations {path}: annotation {number} is not an annotation of VQA ({fault_of(error)})"
            ) from error
    return subset


def _only_the_answer(entry: dict[str, Any]) -> Any:
    """The text of an answer in place of its object: VQAv2 has four million of them."""
    answer = entry.get("answer")
    return sys.intern(answer) if "answer_id" in entry and isinstance(answer, str) else entry


def _subset(path: Path, flag: str, content: Any, name: str) -> tuple[str, list[Any]]:
    """(the subset of COCO, such as val2014; the list `name`) of an official file."""
    entries, subset = (content.get(name), content.get("data_subtype")) if isinstance(content, dict) else (None, None)
    if not isinstance(entries, list) or not re.fullmatch(r"[a-z]+(-dev)?20\d\d", str(subset)):
        raise ValueError(f"{flag} {path}: has no list {name!r} and data_subtype; give the official file of VQAv2")
    return str(subset), entries


def _visual_genome_file(path: Path, pictures: dict[Picture, _Found]) -> Iterator[Asked]:
    """The questions of a file. Pictures without a question are put into `pictures` too."""
    content = load_json(path, "--input")
    if not isinstance(content, list):
        raise ValueError(
            f"--input {path}: is of type {type(content).__name__}, expected a list of questions and answers"
        )
    if content and isinstance(content[0], dict) and "qas" not in content[0]:
        yield from _lavis_list(path, content, _visual_genome_picture)
        return
    for number, entry in enumerate(content):
        try:
            picture = _visual_genome_picture(f"{_id(entry['id'] if 'id' in entry else entry['image_id'])}.jpg")
            pictures.setdefault(picture, _Found())
            for each in entry["qas"]:
                yield Asked(picture, _id(each["qa_id"]), _text(each["question"]), [_text(each["answer"])])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"--input {path}: picture {number} has no list of questions ({fault_of(error)})"
            ) from error


def _lavis_list(path: Path, entries: list[Any], picture_of: Callable[[str], Picture]) -> Iterator[Asked]:
    """The questions of vqa_train.json, vqa_val.json or vg_qa.json: the answer is a list of texts, or a text."""
    for number, entry in enumerate(entries):
        try:
            answer = entry["answer"]
            answers = [answer] if isinstance(answer, str) else _texts(answer)
            picture = picture_of(_text(entry["image"]))
            yield Asked(picture, _id(entry["question_id"]), _text(entry["question"]), answers)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"--input {path}: question {number} is not a question of LAVIS ({fault_of(error)})"
            ) from error


def _coco_picture(name: str) -> Picture:
    """Only the file's own name counts, so that the official files and LAVIS's give the same keys."""
    if not (match := COCO_NAME.fullmatch(name)):
        raise ValueError(f"image {name[:80]!r}, expected a name such as COCO_val2014_000000000042.jpg")
    return Picture(name.rpartition("/")[2], int(match[2]), f"vqav2_{sys.intern(match[1])}")


def _visual_genome_picture(name: str) -> Picture:
    if not (match := VISUAL_GENOME_NAME.fullmatch(name)):
        raise ValueError(f"image {name[:80]!r}, expected a name such as 42.jpg")
    return Picture(f"{int(match[1])}.jpg", int(match[1]), VISUAL_GENOME)


def _id(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= LARGEST_ID:
        raise ValueError(f"id {str(value)[:40]}, expected a whole number")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{type(value).__name__}, expected a text")
    return value


def _texts(answers: Any) -> list[str]:
    if not isinstance(answers, list) or len(answers) > MOST_ANSWERS:
        raise TypeError(f"answers are not a list of at most {MOST_ANSWERS}")
    return [_text(answer) for answer in answers]
