"""VQA accuracy under both published rules: `vqa/official-2021` (the VQA team's script) and `vqa/legacy-2017` (LAVIS).

Both compare a prediction with ten human answers: leave each answer out once, and take the mean of
min(1, matches among the other nine / 3). They differ in what they normalise:
- official: the prediction and the answers, and only when the ten answers differ
- legacy: the prediction always; of the answers only the punctuation, when they differ
"""

from collections.abc import Sequence

from pipeline.answers import normalise, normalise_punctuation

OFFICIAL = "vqa/official-2021"
LEGACY = "vqa/legacy-2017"
MATCHES_FOR_FULL_SCORE = 3


def official_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Accuracy in percent by `vqa/official-2021`: 0, 30, 60, 90 or 100 with ten answers."""
    prediction, stripped = _strip(prediction), [_strip(answer) for answer in answers]
    if len(set(stripped)) > 1:
        prediction, stripped = normalise(prediction), [normalise(answer) for answer in stripped]
    return _leave_one_out(prediction, stripped)


def legacy_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Accuracy in percent by `vqa/legacy-2017`."""
    compared = [normalise_punctuation(answer) for answer in answers] if len(set(answers)) > 1 else answers
    return _leave_one_out(normalise(_strip(prediction)), compared)


def _strip(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _leave_one_out(prediction: str, answers: Sequence[str]) -> float:
    if not answers:
        raise ValueError("answers: none, expected at least one (VQA has ten)")
    matches = sum(answer == prediction for answer in answers)
    without_a_match = min(1.0, matches / MATCHES_FOR_FULL_SCORE)
    without_another = min(1.0, max(0, matches - 1) / MATCHES_FOR_FULL_SCORE)
    return 100 * (matches * without_another + (len(answers) - matches) * without_a_match) / len(answers)
