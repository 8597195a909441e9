"""The task okvqa: questions of OK-VQA."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from eval.catalogue.task import EvaluationTask, Kind
from eval.sets.question_sets import load_okvqa

if TYPE_CHECKING:
    from eval.scoring.tables import Scored


def _score(options: argparse.Namespace, predictions: Path) -> "Scored":
    from eval.scoring.vqa import score_vqa

    return score_vqa(predictions, options.annotations, options.questions, "okvqa")


OKVQA = EvaluationTask(
    name="okvqa",
    kind=Kind.QUESTIONS,
    split="val",
    load=load_okvqa,
    score=_score,
    predictions="JSON list of {question_id, answer}",
    has_question_file=True,
    rules={
        "okvqa/official-2021": "official rule",
        "okvqa/legacy-2017": "legacy rule",
        "okvqa/official-2021+lemmas": "official rule, lemmas",
        "okvqa/legacy-2017+lemmas": "legacy rule, lemmas",
    },
    answer_rule="okvqa/official-2021+lemmas",
)
