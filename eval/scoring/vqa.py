"""VQAv2 and OK-VQA: accuracy under both published rules, by answer and question type; OK-VQA also by lemmas."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eval.metrics.lemmas import lemmatise
from eval.metrics.vqa_accuracy import LEGACY, OFFICIAL, legacy_accuracy, official_accuracy
from eval.scoring.tables import Key, Scored, Table, means_table
from eval.sets.official_files import SampleId, check_same_ids, read_json, read_predictions
from eval.sets.vqa_files import (
    OK_VQA,
    VQA_V2,
    Question,
    answers_of,
    check_same_pictures,
    check_same_set,
    check_set,
    questions_of,
)

SETS = {"vqa": VQA_V2, "okvqa": OK_VQA}
Rule = Callable[[str, Sequence[str]], float]
RULES: dict[str, dict[str, Rule]] = {
    "vqa": {OFFICIAL: official_accuracy, LEGACY: legacy_accuracy},
    "okvqa": {
        "okvqa/official-2021": official_accuracy,
        "okvqa/legacy-2017": legacy_accuracy,
        "okvqa/official-2021+lemmas": lambda answer, people: official_accuracy(lemmatise(answer), people),
        "okvqa/legacy-2017+lemmas": lambda answer, people: legacy_accuracy(lemmatise(answer), people),
    },
}
PUBLISHED_DECIMALS = 2


def score_vqa(
    predictions_path: Path, annotations_path: Path, questions_path: Path | None = None, task: str = "vqa"
) -> Scored:
    """Every question of the annotation file must be answered once, and no other."""
    content = read_json(annotations_path)
    check_set(annotations_path, content, SETS[task])
    annotations, questions = answers_of(annotations_path, content), dict[SampleId, Question]()
    if questions_path:
        asked = read_json(questions_path)
        check_set(questions_path, asked, SETS[task])
        questions = questions_of(questions_path, asked)
        check_same_set(annotations_path, content, questions_path, asked)
        check_same_ids(annotations_path, annotations, questions_path, questions)
        check_same_pictures(annotations_path, annotations, questions_path, questions)
    predictions = read_predictions(predictions_path, "question_id", "answer")
    check_same_ids(predictions_path, predictions, annotations_path, annotations)

    samples: list[dict[str, Any]] = []
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
                **{protocol: rule(prediction, annotation.answers) for protocol, rule in RULES[task].items()},
            }
        )
    tables = [accuracy_table(samples, protocol, ("answer_type", "question_type")) for protocol in RULES[task]]
    return Scored(task, len(samples), tables, samples)


def accuracy_table(samples: Sequence[dict[str, Any]], protocol: str, fields: Sequence[str]) -> Table:
    """The mean of `protocol` over all samples and over those of each value of each field, clustered by image."""
    subsets = ["overall"]
    for field in fields:
        subsets += [f"{field}={kind}" for kind in sorted({str(sample[field]) for sample in samples} - {""})]
    columns = {subset: place for place, subset in enumerate(subsets)}
    member = np.zeros((len(samples), len(subsets)))
    member[:, 0] = 1
    for place, sample in enumerate(samples):
        for field in fields:
            if sample[field]:
                member[place, columns[f"{field}={sample[field]}"]] = 1
    accuracy = np.array([sample[protocol] for sample in samples], dtype=np.float64)
    values = np.repeat(accuracy[:, None], len(subsets), axis=1)
    keys: list[Key] = [("accuracy", protocol, subset) for subset in subsets]
    return means_table(keys, values, member, [str(sample["image_id"]) for sample in samples], PUBLISHED_DECIMALS)
