"""Defines one row of a table of images, which every reader of tables gives."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from data_prep.shards.ledger import Drop
from data_prep.tables.unicode_text import without_surrogates


class Place(NamedTuple):
    """Where the bytes of one image are in a file of this machine."""

    file: Path
    offset: int
    size: int

    def read(self) -> bytes:
        with self.file.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


class Cell(NamedTuple):
    """The cell of a parquet table that holds the bytes of one image; `column` is the dotted name, as image.bytes."""

    file: Path
    column: str
    row: int


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
    place: Place | Cell | None = None
    """Where the image is, if the table itself holds it; `url` then only says where it came from."""
    joined: int = 0
    """How many later rows of the table had the same picture; their captions are here."""


def text_of(value: Any) -> str:
    """A value as a stripped text; empty if it is no text."""
    return without_surrogates(value).strip() if isinstance(value, str) else ""


def captions_of(value: Any) -> tuple[str, ...]:
    """A caption, or a list of captions; blank ones are left out."""
    values = value if isinstance(value, list | tuple) else [value]
    return tuple(filter(None, map(text_of, values)))
