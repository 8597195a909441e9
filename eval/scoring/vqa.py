"""VQA: accuracy under both published rules, overall and by answer and question type."""

from pathlib import Path
from typing import Any

import numpy as np

from eval.metrics.bootstrap import mean_with_interval
from eval.metrics.vqa_accuracy import LEGACY, OFFICIAL, legacy_accuracy, official_accuracy
from eval.official_files import check_same_ids, read_answers, read_predictions, read_questions
from eval.scoring.rows import metric_row, metrics_file


def score_vqa(
    predictions_path: Path, annotations_path: Path, questions_path: Path | None = None
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Every question of the annotation file must be answered once, and no other."""
    annotations = read_answers(annotations_path)
    questions = read_questions(questions_path) if questions_path else {}
    if questions_path:
        check_same_ids(annotations_path, annotations, questions_path, questions)
    predictions = read_predictions(predictions_path, "question_id", "answer")
    check_same_ids(predictions_path, predictions, annotations_path, annotations)

    samples = []
    for question_id, annotation in annotations.items():
        prediction = predictions[question_id]
        samples.append(
            {
                "question_id": question_id,
                "image_id": annotation.image_id,
                "question": questions[question_id][1] if questions else None,
                "answer": prediction,
                "answers": list(annotation.answers),
                "answer_type": annotation.answer_type,
                "question_type": annotation.question_type,
                OFFICIAL: official_accuracy(prediction, annotation.answers),
                LEGACY: legacy_accuracy(prediction, annotation.answers),
            }
        )
    subsets = ["overall"]
    for field in ("answer_type", "question_type"):
        subsets += [f"{field}={kind}" for kind in sorted({str(sample[field]) for sample in samples} - {""})]
    columns = {subset: place for place, subset in enumerate(subsets)}
    member = np.zeros((len(samples), len(subsets)))
    member[:, 0] = 1
    for place, sample in enumerate(samples):
        for field in ("answer_type", "question_type"):
            if sample[field]:
                member[place, columns[f"{field}={sample[field]}"]] = 1

    rows = []
    images = [str(sample["image_id"]) for sample in samples]
    for protocol in (OFFICIAL, LEGACY):
        accuracy = np.array([sample[protocol] for sample in samples])
        means, low, high = mean_with_interval(np.repeat(accuracy[:, None], len(subsets), axis=1), member, images)
        rows += [
            metric_row("accuracy", protocol, subset, round(means[place], 2), low[place], high[place])
            for place, subset in enumerate(subsets)
        ]
    return metrics_file("vqa", len(samples), rows), samples
