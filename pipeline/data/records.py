"""The JSON of a sample: its key, and the texts of the picture from which one is drawn. Nothing in it is trusted."""

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.config import SampleKind
from pipeline.data.captions import clean_caption, clean_question, has_words, is_text

MOST_ANSWERS = 1_000_000  # people who gave one answer


@dataclass(frozen=True)
class Texts:
    """Of what a sample's text is drawn: captions, or the answers to `question`, each so often as it was given."""

    question: str
    choices: tuple[str, ...]
    counts: tuple[int, ...] | None = None

    def shares(self) -> tuple[tuple[str, float], ...]:
        """Every answer, with its share of the counts."""
        assert self.counts is not None, "captions have no counts"
        total = sum(self.counts)
        return tuple((text, count / total) for text, count in zip(self.choices, self.counts, strict=True))

    def draw(self, rng: random.Random) -> str:
        """A caption as training uses it, or an answer as it is."""
        if self.counts is None:
            return clean_caption(rng.choice(self.choices))
        return rng.choices(self.choices, self.counts)[0]


def read_record(
    text: bytes, sample: SampleKind = "image", which: int = 0, picture: bytes | None = None
) -> tuple[str, Texts]:
    """Key and texts of a sample: all captions of a picture, its caption `which`, or its question `which`.

    Captions without words are passed over. Raises ValueError when no text is left, or when the `picture` is not the one
    whose sha256 the JSON has.
    """
    try:
        content = json.loads(text)
    except RecursionError as error:
        raise ValueError("its JSON is nested too deep") from error
    if not isinstance(content, dict) or not is_text(content.get("key")):
        raise ValueError("its JSON has no key")
    if picture is not None and "sha256" in content and hashlib.sha256(picture).hexdigest() != content["sha256"]:
        raise ValueError("its picture differs from its sha256")
    if sample == "question":
        return content["key"], _question(_list_of(content, "questions"), which)
    captions = _list_of(content, "captions")
    if sample == "caption" and which >= len(captions):
        raise ValueError(f"its JSON has no caption {which}")
    chosen = captions if sample == "image" else captions[which : which + 1]
    return content["key"], captions_of(chosen)


def foreign_caption(text: bytes) -> str | None:
    """The caption in a JSON of img2dataset, whose key counts within its tar alone; None when it has none."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return None
    caption = content.get("caption") if isinstance(content, dict) else None
    return caption if isinstance(caption, str) else None


def captions_of(captions: Sequence[object]) -> Texts:
    """The captions that have words. Raises ValueError when none has."""
    usable = tuple(caption for caption in captions if has_words(caption))
    if not usable:
        raise ValueError("it has no caption with a letter or digit")
    return Texts("", usable)


def _list_of(content: dict[str, Any], name: str) -> list[Any]:
    found = content.get(name)
    if not isinstance(found, list) or not found:
        raise ValueError(f"its JSON has no {name}")
    return found


def _question(questions: list[Any], which: int) -> Texts:
    found = questions[which] if which < len(questions) and isinstance(questions[which], dict) else {}
    question, answers = found.get("question"), found.get("answers")
    if not is_text(question) or not isinstance(answers, dict) or not answers or not all(map(is_text, answers)):
        raise ValueError(f"its JSON has no question {which} with answers")
    if not all(type(count) is int and 0 < count <= MOST_ANSWERS for count in answers.values()):
        raise ValueError(f"the answers of its question {which} are not counted from 1 to {MOST_ANSWERS}")
    return Texts(clean_question(question), tuple(answers), tuple(answers.values()))
