"""Samples of an evaluation: best, worst and random ones, with picture, prediction, references and baselines."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from eval.reporting.evaluations import PER_SAMPLE, QUESTION_SCORES, Compared, Evaluation
from eval.reporting.retrieval_gallery import RetrievalCard, retrieval_data, retrieval_groups
from eval.reporting.scores import BASELINE_NAMES
from pipeline.pages.thumbnails import Thumbnail, thumbnail

RIGHT_FROM = 60.0  # percent: the accuracy when two of ten people gave this answer
REFERENCES_SHOWN = 5

Sample = dict[str, Any]


@dataclass(frozen=True)
class Card:
    """A picture and its prediction. `verdict` is the CSS class of an answer: right, partly or wrong."""

    kind: str  # answer, caption or unscored
    picture: Thumbnail
    prediction: str
    score: float = 0.0
    verdict: str = ""
    question: str = ""
    answers: list[tuple[str, int]] = field(default_factory=list)  # answer of people, and how many gave it
    references: list[str] = field(default_factory=list)
    domain: str = ""
    baselines: list[tuple[str, str]] = field(default_factory=list)  # name, prediction

    @property
    def num_answers(self) -> int:
        return sum(count for _, count in self.answers)


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
    if main.kind == "retrieval":
        try:
            data = retrieval_data(main)
        except ValueError as error:
            return Gallery(title, name, note=f"No samples: {error}")
        return Gallery(title, name, retrieval_groups(main, data, each, seed))
    asked = main.kind in QUESTION_SCORES
    score = QUESTION_SCORES.get(main.kind, "cider")
    identity, text = ("question_id", "answer") if asked else ("image_id", "caption")
    said = {
        BASELINE_NAMES[name].lower(): {sample[identity]: str(sample[text]) for sample in baseline.samples}
        for name, baseline in compared.baselines.items()
    }

    def card(sample: Sample) -> Card:
        baselines = [(name, texts[sample[identity]]) for name, texts in said.items() if sample[identity] in texts]
        picture = thumbnail(main.images[sample["image_id"]])
        return _answer(sample, score, picture, baselines) if asked else _caption(sample, picture, baselines)

    groups = _choices(main.samples, score, identity, each, seed)
    return Gallery(title, name, [(group, [card(sample) for sample in chosen]) for group, chosen in groups if chosen])


def _unscored(main: Evaluation, each: int, seed: int) -> list[tuple[str, list[Card]]]:
    """Random captions of an evaluation without scores."""
    drawn = _draw(random.Random(f"gallery, seed {seed}"), main.predictions, each)
    cards = [Card("unscored", thumbnail(main.images[entry["id"]]), str(entry["text"])) for entry in drawn]
    return [("Random, not scored", cards)]


def _answer(sample: Sample, score: str, picture: Thumbnail, baselines: list[tuple[str, str]]) -> Card:
    accuracy = float(sample[score])
    return Card(
        "answer",
        picture,
        sample["answer"],
        accuracy,
        verdict="right" if accuracy >= RIGHT_FROM else "partly" if accuracy > 0 else "wrong",
        question=sample["question"] or "",
        answers=Counter[str](sample["answers"]).most_common(),
        baselines=baselines,
    )


def _caption(sample: Sample, picture: Thumbnail, baselines: list[tuple[str, str]]) -> Card:
    return Card(
        "caption",
        picture,
        sample["caption"],
        float(sample["cider"]),
        references=sample["references"][:REFERENCES_SHOWN],
        domain=sample.get("domain", ""),
        baselines=baselines,
    )


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
