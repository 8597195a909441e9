"""GQA under three rules: equal strings (the official script), both sides normalised as in VQA, and the prediction alone
normalised (LAVIS: GQATask in lavis/tasks/vqa.py; a right "t-shirt" counts as wrong there).
"""

from pathlib import Path
from typing import Any

from eval.scoring.tables import Scored
from eval.scoring.vqa import accuracy_table
from eval.sets.gqa_files import TYPES, gqa_questions, read_gqa_predictions
from eval.sets.official_files import check_same_ids, read_json
from pipeline.answers import normalise

EXACT, NORMALISED, LAVIS = "gqa/exact", "gqa/normalised", "gqa/lavis"


def score_gqa(predictions_path: Path, questions_path: Path) -> Scored:
    """Every question of the file must be answered once, and no other."""
    questions = gqa_questions(questions_path, read_json(questions_path))
    predictions = read_gqa_predictions(predictions_path)
    check_same_ids(predictions_path, predictions, questions_path, questions)
    samples: list[dict[str, Any]] = []
    for question_id, entry in questions.items():
        if entry.answer is None:
            raise ValueError(
                f"{questions_path}: question_id {question_id!r} has no answer; the test set's answers are hidden, name "
                "another split's file"
            )
        answer = predictions[question_id]
        samples.append(
            {
                "question_id": question_id,
                "image_id": entry.image_id,
                "question": entry.question,
                "answer": answer,
                "answers": [entry.answer],
                **{name: entry.types.get(name, "") for name in TYPES},
                EXACT: 100.0 * (answer == entry.answer),
                NORMALISED: 100.0 * (normalise(answer) == normalise(entry.answer)),
                LAVIS: 100.0 * (normalise(answer) == entry.answer),
            }
        )
    tables = [accuracy_table(samples, protocol, TYPES) for protocol in (EXACT, NORMALISED, LAVIS)]
    return Scored("gqa", len(samples), tables, samples)
