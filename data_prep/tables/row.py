"""Defines one row of a table of images, which every reader of tables gives."""

from dataclasses import dataclass

from data_prep.shards.ledger import Drop


@dataclass(frozen=True)
class Question:
    """One question about a picture; `answers` are pairs of (answer, how many people gave it), the most frequent
    first."""

    id: int
    text: str
    answers: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Row:
    """One row of a table: its number (from 0), the URL or the path below the image root, and its captions or its
    questions."""

    row: int
    url: str
    captions: tuple[str, ...]
    questions: tuple[Question, ...] = ()
    question_set: str = ""
    """Where the questions are from, such as vqav2_val2014; empty for a row of captions."""
    lost_questions: tuple[str, ...] = ()
    """Why the other questions about the picture were dropped."""
    picture_id: int | None = None
    """The number of the picture in COCO or in Visual Genome."""
    drop: Drop | None = None
    """Why the row must not be used at all."""
