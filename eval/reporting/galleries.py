"""Samples of an evaluation: best, worst and random ones, with picture, prediction, references and baselines."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from eval.catalogue import Kind
from eval.reporting.evaluations import PER_SAMPLE, Compared, Evaluation
from eval.reporting.retrieval_gallery import RetrievalCard, retrieval_data, retrieval_groups
from eval.reporting.scores import BASELINE_NAMES
from pipeline.pages.thumbnails import Thumbnail, thumbnail

RIGHT_FROM = 60.0  # percent: the accuracy when two of ten people gave this answer
REFERENCES_SHOWN = 5

Sample = dict[str, Any]


@dataclass(frozen=True)
class Card:
    """A picture, its prediction, and the rest of the line in per_sample.jsonl or predictions.jsonl (`sample`)."""

    kind: str  # answer, caption or unscored
    picture: Thumbnail
    prediction: str
    sample: Sample
    score: float = 0.0
    baselines: Sequence[tuple[str, str]] = ()  # name, prediction

    @property
    def verdict(self) -> str:
        """The CSS class of an answer."""
        return "right" if self.score >= RIGHT_FROM else "partly" if self.score > 0 else "wrong"

    @property
    def answers(self) -> list[tuple[str, int]]:
        """The answers of people, and how many people gave each."""
        return Counter[str](self.sample["answers"]).most_common()

    @property
    def references(self) -> list[str]:
        return list(self.sample["references"][:REFERENCES_SHOWN])


@dataclass(frozen=True)
class Gallery:
    """The samples of one evaluation, in groups with a title. `note` says why there are none."""

    title: str
    folder_name: str
    groups: Sequence[tuple[str, Sequence[Card | RetrievalCard]]] = ()
    note: str = ""


def gallery_of(compared: Compared, each: int, seed: int) -> Gallery | None:
    """`each` samples of each kind: right and wrong answers, best and worst captions, and random ones.

    None when there is nothing to show: no scores and no captions.
    """
    main = compared.main
    title, name = main.title, main.folder.name
    if not main.samples:
        if main.metrics is None:
            return Gallery(title, name, _unscored(main, each, seed)) if main.predictions else None
        return Gallery(title, name, note=f"No samples: run eval.score with --per-sample {main.folder / PER_SAMPLE}.")
    if main.predicts == Kind.RETRIEVAL:
        try:
            data = retrieval_data(main)
        except ValueError as error:
            return Gallery(title, name, note=f"No samples: {error}")
        return Gallery(title, name, retrieval_groups(main, data, each, seed))
    asked = main.predicts == Kind.QUESTIONS
    score = main.answer_score or "cider"
    identity, text = ("question_id", "answer") if asked else ("image_id", "caption")
    said = {
        BASELINE_NAMES[name].lower(): {sample[identity]: str(sample[text]) for sample in baseline.samples}
        for name, baseline in compared.baselines.items()
    }

    def card(sample: Sample) -> Card:
        baselines = [(name, texts[sample[identity]]) for name, texts in said.items() if sample[identity] in texts]
        picture = thumbnail(main.images[sample["image_id"]])
        return Card(text, picture, str(sample[text]), sample, float(sample[score]), baselines)

    groups = _choices(main.samples, score, identity, each, seed)
    return Gallery(title, name, [(group, [card(sample) for sample in chosen]) for group, chosen in groups if chosen])


def _unscored(main: Evaluation, each: int, seed: int) -> list[tuple[str, list[Card]]]:
    """Random captions of an evaluation without scores."""
    drawn = _draw(random.Random(f"gallery, seed {seed}"), main.predictions, each)
    cards = [Card("unscored", thumbnail(main.images[entry["id"]]), str(entry["text"]), entry) for entry in drawn]
    return [("Random, not scored", cards)]


def _choices(
    samples: Sequence[Sample], score: str, identity: str, each: int, seed: int
) -> list[tuple[str, list[Sample]]]:
    """Groups with a title. Answers: random ones of all, the right and the wrong. Captions: random, best, worst."""
    order = sorted(samples, key=lambda sample: str(sample[identity]))
    rng = random.Random(f"gallery, seed {seed}")
    if score != "cider":
        right = [sample for sample in order if sample[score] >= RIGHT_FROM]
        wrong = [sample for sample in order if sample[score] == 0]
        kinds = (("Random answers", order), ("Right answers", right), ("Wrong answers", wrong))
        return [(f"{title}, {min(each, len(kind))} of {len(kind)}", _draw(rng, kind, each)) for title, kind in kinds]
    by_score = sorted(order, key=lambda sample: -float(sample[score]))
    return [
        ("Random", _draw(rng, order, each)),
        ("Best by CIDEr", by_score[:each]),
        ("Worst by CIDEr", by_score[::-1][:each]),
    ]


def _draw(rng: random.Random, samples: Sequence[Sample], count: int) -> list[Sample]:
    return rng.sample(list(samples), min(count, len(samples)))
