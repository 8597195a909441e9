"""What an evaluation task is: its name, data, scores and how the report calls them. One file beside this declares
each."""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from eval.scoring.tables import Scored
    from eval.sets.samples import RetrievalData, TaskData

    Data = TaskData | RetrievalData


class Kind(StrEnum):
    """What is predicted. It decides the stage of the weights, the prompts and the official format.

    The value is the heading in the report.
    """

    CAPTIONS = "Captions"
    QUESTIONS = "Visual question answering"
    RETRIEVAL = "Retrieval"


@dataclass(frozen=True)
class EvaluationTask:
    """One task of eval.run. Nothing here needs torch; what scores imports its parts when it is called."""

    name: str
    kind: Kind
    split: str
    """The split without --split."""
    load: Callable[[Path, str, int | None], "Data"]
    """The samples of a published set: of (folder, split, limit)."""
    score: Callable[[argparse.Namespace, Path], "Scored"]
    """The scores of a prediction file, by the flags of eval.score."""
    predictions: str
    """What eval.score takes, for its --help."""
    load_own: Callable[[Path, Path | None, int | None], "Data"] | None = None
    """The samples of a file of one's own: of (file, folder of its pictures or None, limit)."""
    scorer: str = ""
    """The name in eval.score, if it is another."""
    annotations: str = "the official file"
    """What --annotations of eval.score takes; empty: the flag is not there."""
    has_question_file: bool = False
    """Whether eval.score can check the answers against a file of the questions alone."""
    rules: Mapping[str, str] = field(default_factory=dict)
    """Protocol of a score -> what the tables of the report call it."""
    answer_rule: str = ""
    """Of questions: the protocol by which the report's samples are right or wrong."""

    @property
    def scored_as(self) -> str:
        return self.scorer or self.name
