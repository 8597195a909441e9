"""Questions of one's own. Ten answers each: VQA accuracy by both published rules. Otherwise an answer is right when it
equals one of the answers, as it is (`own/exact`) or with both sides normalised as in VQA (`own/normalised`).

The published rules leave each answer out once. With a single answer nobody would be left to agree with.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.metrics.vqa_accuracy import LEGACY, OFFICIAL, legacy_accuracy, official_accuracy
from eval.scoring.tables import Scored
from eval.scoring.vqa import accuracy_table
from eval.sets.official_files import check_same_ids, read_predictions
from eval.sets.own_lines import questions_with_answers
from eval.sets.vqa_files import NUM_ANSWERS
from pipeline.answers import normalise

EXACT, NORMALISED = "own/exact", "own/normalised"
Rules = Mapping[str, Callable[[str, Sequence[str]], float]]
OF_TEN: Rules = {OFFICIAL: official_accuracy, LEGACY: legacy_accuracy}
OF_ANY: Rules = {
    EXACT: lambda answer, right: 100.0 * (answer in right),
    NORMALISED: lambda answer, right: 100.0 * (normalise(answer) in map(normalise, right)),
}


def score_own_questions(predictions_path: Path, lines_path: Path) -> Scored:
    """Every line of the file must be answered once, and no other."""
    lines = questions_with_answers(lines_path)
    predictions = read_predictions(predictions_path, "question_id", "answer")
    check_same_ids(predictions_path, predictions, lines_path, [line.id for line in lines])
    rules = OF_TEN if all(len(line.answers) == NUM_ANSWERS for line in lines) else OF_ANY
    samples: list[dict[str, Any]] = [
        {
            "question_id": line.id,
            "image_id": line.image,
            "question": line.question,
            "answer": predictions[line.id],
            "answers": list(line.answers),
            **{protocol: rule(predictions[line.id], line.answers) for protocol, rule in rules.items()},
        }
        for line in lines
    ]
    return Scored("vqa", len(samples), [accuracy_table(samples, protocol, ()) for protocol in rules], samples)
