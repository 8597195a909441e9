"""What a fine-tuned model answers right that the model it started from did not, and the reverse, with pictures."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from eval.catalogue import Kind
from eval.reporting.evaluations import PER_SAMPLE, Evaluation, read_evaluation
from eval.reporting.galleries import RIGHT_FROM, Card, Gallery, Sample
from eval.reporting.retrieval_gallery import RetrievalCard, retrieval_card, retrieval_data, retrieval_samples
from pipeline.pages.thumbnails import thumbnail

SAME_SAMPLES = ("task", "annotations_sha256", "split", "limit", "image_source")
Pair = tuple[Sample, Sample]  # now, before
AnyCard = Card | RetrievalCard
Groups = list[tuple[str, list[AnyCard]]]


def changes(evaluations: Sequence[Evaluation], before: Sequence[Path], each: int, seed: int) -> list[Gallery]:
    """For each folder of `before`, a gallery beside every one of the evaluations that is of the same samples; of the
    fine-tuned ones alone, if there are any.

    `each` is the number of samples shown of each kind. Raises ValueError in one line when there is none of the same
    samples, or when scores of samples are missing.
    """
    galleries = []
    for folder in before:
        earlier = read_evaluation(folder)
        same = [now for now in evaluations if _of_same_samples(now, earlier) and now.folder != earlier.folder]
        if not same:
            raise ValueError(f"--before {folder}: no DIR is an evaluation of the same samples ({earlier.title}); give "
                             "one of the same task, data, split, limit and pictures")  # fmt: skip
        tuned = [now for now in same if now.tuned_on]
        galleries += [_gallery(now, earlier, each, seed) for now in tuned or same]
    return galleries


def _of_same_samples(one: Evaluation, other: Evaluation) -> bool:
    return all(one.task.get(name) == other.task.get(name) for name in SAME_SAMPLES)


def _gallery(now: Evaluation, before: Evaluation, number: int, seed: int) -> Gallery:
    for each in (now, before):
        if not each.samples:
            raise ValueError(f"--before {before.folder}: {each.folder} has no scores of samples; run eval.score with "
                             f"--per-sample {each.folder / PER_SAMPLE}")  # fmt: skip
    title, name = f"What has changed: {now.title}", f"{now.folder.name} after {before.folder.name}"
    rng = random.Random(f"changes, seed {seed}")
    if now.predicts == Kind.QUESTIONS:
        return Gallery(title, name, *_right_and_wrong(now, before, number, rng))
    if now.predicts == Kind.RETRIEVAL:
        return Gallery(title, name, *_first_ranks(now, before, number, rng))
    return Gallery(title, name, *_captions(now, before, number))


def _right_and_wrong(now: Evaluation, before: Evaluation, each: int, rng: random.Random) -> tuple[Groups, str]:
    """Answers that are right (two of ten people gave them) in one of the two alone, drawn at random."""
    score = now.answer_score
    pairs = _pairs(now, before, lambda sample: sample["question_id"])

    def card(pair: Pair) -> Card:
        said = [("before", str(pair[1]["answer"]))]
        picture = thumbnail(now.images[pair[0]["image_id"]])
        return Card("answer", picture, str(pair[0]["answer"]), pair[0], float(pair[0][score]), said)

    gained, lost, note = _divide(pairs, lambda sample: bool(sample[score] >= RIGHT_FROM), "questions", "right")
    groups = (("Right now, not before", gained), ("Right before, not now", lost))
    return [_drawn(title, found, each, rng, card) for title, found in groups], note


def _captions(now: Evaluation, before: Evaluation, each: int) -> tuple[Groups, str]:
    """The captions whose CIDEr has risen or fallen most."""
    pairs = _pairs(now, before, lambda sample: sample["image_id"])
    pairs.sort(key=lambda pair: float(pair[1]["cider"]) - float(pair[0]["cider"]))

    def card(pair: Pair) -> Card:
        said = [(f"before, CIDEr {pair[1]['cider']:.0f}", str(pair[1]["caption"]))]
        picture = thumbnail(now.images[pair[0]["image_id"]])
        return Card("caption", picture, str(pair[0]["caption"]), pair[0], float(pair[0]["cider"]), said)

    risen = sum(pair[0]["cider"] > pair[1]["cider"] for pair in pairs)
    fallen = sum(pair[0]["cider"] < pair[1]["cider"] for pair in pairs)
    up, down = pairs[: min(each, risen)], pairs[::-1][: min(each, fallen)]
    note = f"Of {len(pairs):,} captions, CIDEr has risen for {risen:,} and fallen for {fallen:,}."
    return [("CIDEr has risen most", list(map(card, up))), ("CIDEr has fallen most", list(map(card, down)))], note


def _first_ranks(now: Evaluation, before: Evaluation, each: int, rng: random.Random) -> tuple[Groups, str]:
    """Queries of both directions whose right result comes first in one of the two alone, drawn at random."""
    data = retrieval_data(now)
    (protocol, _), (earlier, _) = (retrieval_samples(of, data) for of in (now, before))
    if protocol != earlier:
        raise ValueError(f"--before {before.folder}: ranked by {earlier}, but {now.folder} by {protocol}; evaluate "
                         "both with the same --k-test")  # fmt: skip
    groups: Groups = []
    notes = []
    for direction, queries in (("image", "images"), ("text", "texts")):
        pairs = [pair for pair in _pairs(now, before, _query) if direction in pair[0]]

        def card(pair: Pair, direction: str = direction) -> RetrievalCard:
            rank = int(pair[1][protocol]["rank"]) + 1
            return retrieval_card(direction, pair[0], protocol, data, before=rank)

        gained, lost, note = _divide(pairs, lambda sample: sample[protocol]["rank"] == 0, queries, "first")
        notes.append(note)
        for title, found in (
            (f"First now, not before: {queries}", gained),
            (f"First before, not now: {queries}", lost),
        ):
            groups.append(_drawn(title, found, each, rng, card))
    return groups, " ".join(notes)


def _query(sample: Sample) -> tuple[str, int]:
    return ("image", sample["image"]) if "image" in sample else ("text", sample["text"])


def _pairs(now: Evaluation, before: Evaluation, identity: Callable[[Sample], Any]) -> list[Pair]:
    """The samples of both, by their ids. Raises ValueError when one has other ones."""
    earlier = {identity(sample): sample for sample in before.samples}
    if earlier.keys() != {identity(sample) for sample in now.samples}:
        raise ValueError(
            f"--before {before.folder}: {PER_SAMPLE} has other samples than that of {now.folder}; score both again"
        )
    return [(sample, earlier[identity(sample)]) for sample in sorted(now.samples, key=lambda each: str(identity(each)))]


def _divide(
    pairs: Sequence[Pair], is_right: Callable[[Sample], bool], what: str, right: str
) -> tuple[list[Pair], list[Pair], str]:
    """The pairs that are right now alone, before alone, and a sentence with all counts."""
    gained = [pair for pair in pairs if is_right(pair[0]) and not is_right(pair[1])]
    lost = [pair for pair in pairs if is_right(pair[1]) and not is_right(pair[0])]
    both = sum(is_right(now) and is_right(before) for now, before in pairs)
    neither = len(pairs) - both - len(gained) - len(lost)
    note = (f"Of {len(pairs):,} {what}, {right} in both: {both:,}, now alone: {len(gained):,}, before alone: "
            f"{len(lost):,}, in neither: {neither:,}.")  # fmt: skip
    return gained, lost, note


def _drawn(
    title: str, pairs: Sequence[Pair], each: int, rng: random.Random, card: Callable[[Pair], AnyCard]
) -> tuple[str, list[AnyCard]]:
    chosen = rng.sample(list(pairs), min(each, len(pairs)))
    return f"{title}, {len(chosen)} of {len(pairs)}", [card(pair) for pair in chosen]
