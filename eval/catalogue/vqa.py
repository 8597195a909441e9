"""The task vqa: questions of VQAv2, or one's own."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from eval.catalogue.task import EvaluationTask, Kind
from eval.metrics.vqa_accuracy import LEGACY, OFFICIAL
from eval.sets.own_lines import is_lines
from eval.sets.own_sets import load_own_questions
from eval.sets.question_sets import load_vqa

if TYPE_CHECKING:
    from eval.scoring.tables import Scored


def _score(options: argparse.Namespace, predictions: Path) -> "Scored":
    if is_lines(options.annotations):
        from eval.scoring.own_questions import score_own_questions

        if options.questions:
            raise ValueError(
                f"--questions {options.questions}: {options.annotations} has the questions too; leave it out"
            )
        return score_own_questions(predictions, options.annotations)
    from eval.scoring.vqa import score_vqa

    return score_vqa(predictions, options.annotations, options.questions)


VQA = EvaluationTask(
    name="vqa",
    kind=Kind.QUESTIONS,
    split="val",
    load=load_vqa,
    load_own=load_own_questions,
    score=_score,
    predictions="JSON list of {question_id, answer}",
    annotations="the official answers, or your own .jsonl",
    has_question_file=True,
    rules={
        OFFICIAL: "official rule",
        LEGACY: "legacy rule",
        "own/exact": "equal to an answer",
        "own/normalised": "equal to an answer, both sides normalised",
    },
    answer_rule=OFFICIAL,
)
