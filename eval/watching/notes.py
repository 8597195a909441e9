"""submitted.json: the note that eval.watch leaves in an evaluation's folder about the jobs that it submitted."""

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from eval.watching.wanted import Evaluation
from pipeline.files import read_validated, replace_file

NOTE = "submitted.json"


class Note(BaseModel):
    """submitted.json. Notes of earlier versions have `jobs` alone; where a field is None, nothing is compared."""

    model_config = ConfigDict(strict=True)
    checkpoint: str | None = None
    stamp: list[int] | None = None
    asked: dict[str, Any] | None = None
    jobs: list[str]
    outputs: list[str] = []


def read_note(evaluation: Evaluation) -> Note | None:
    """The note, if there is one. Raises ValueError in one line when it is not one of eval.watch."""
    path = evaluation.folder / NOTE
    if not path.is_file():
        return None
    try:
        return read_validated(path, Note, "a note of eval.watch")
    except ValueError as error:
        raise ValueError(f"{error}; remove the file when its jobs have ended") from error


def write_note(folder: Path, note: Note, jobs: list[str]) -> None:
    """Write the note with these jobs."""
    replace_file(folder / NOTE, json.dumps(note.model_dump() | {"jobs": jobs}) + "\n")


def asked_of(evaluation: Evaluation, note: Note | None) -> dict[str, Any]:
    """The settings that the evaluation was submitted with; those of the list where no note says."""
    return evaluation.asked if note is None or note.asked is None else note.asked
