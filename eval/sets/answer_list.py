"""A closed list of answers, of which each question takes one: a JSON list of texts, or a text file with one a line."""

from dataclasses import dataclass
from pathlib import Path

from eval.sets.official_files import read_json
from pipeline.files import read_whole


@dataclass(frozen=True)
class AnswerList:
    """Distinct answers in the file's order; empty ones and repeats are left out, and counted."""

    path: Path
    answers: tuple[str, ...]
    num_empty: int
    num_repeats: int

    def __str__(self) -> str:
        left = f", without {self.num_empty:,} empty and {self.num_repeats:,} repeated"
        return f"--answers {self.path}: {len(self.answers):,} answers" + (
            left if self.num_empty or self.num_repeats else ""
        )


def read_answers(path: Path) -> AnswerList:
    """White space around and within an answer is one space; two answers are the same when their texts are.

    Raises ValueError in one line when the file is missing, holds something else, or fewer than two answers.
    """
    texts = [" ".join(text.split()) for text in _texts(path)]
    distinct = tuple(dict.fromkeys(text for text in texts if text))
    num_empty = texts.count("")
    if len(distinct) < 2:
        raise ValueError(
            f"--answers {path}: {len(distinct)} distinct answers leave no choice; name a list of two or more"
        )
    return AnswerList(path, distinct, num_empty, len(texts) - num_empty - len(distinct))


def _texts(path: Path) -> list[str]:
    if path.suffix == ".json":
        content = read_json(path)
        if not isinstance(content, list):
            raise ValueError(f"--answers {path}: holds {type(content).__name__}, not a list of texts; write that list")
        other = next((place for place, text in enumerate(content) if not isinstance(text, str)), None)
        if other is not None:
            raise ValueError(f"--answers {path}: entry {other}, {content[other]!r}, is not a text; correct it")
        return content
    try:
        return read_whole(path).decode().splitlines()
    except (OSError, ValueError) as error:
        raise ValueError(
            f"--answers {path}: not readable ({error}); name a text file in UTF-8, an answer a line"
        ) from error
