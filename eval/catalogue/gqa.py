"""The task gqa: the balanced questions of GQA."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from eval.catalogue.task import EvaluationTask, Kind
from eval.sets.question_sets import load_gqa

if TYPE_CHECKING:
    from eval.scoring.tables import Scored


def _score(options: argparse.Namespace, predictions: Path) -> "Scored":
    from eval.scoring.gqa import score_gqa

    return score_gqa(predictions, options.annotations)


GQA = EvaluationTask(
    name="gqa",
    kind=Kind.QUESTIONS,
    split="test-dev",
    load=load_gqa,
    score=_score,
    predictions="JSON list of {question_id, answer}, or GQA's {questionId, prediction}",
    rules={
        "gqa/exact": "exact",
        "gqa/normalised": "both sides normalised",
        "gqa/lavis": "prediction normalised",
    },
    answer_rule="gqa/exact",
)
