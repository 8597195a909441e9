"""Samples to look at: best, worst and random, with picture, prediction, references and what the baselines said."""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from eval.reporting.evaluations import PER_SAMPLE, QUESTION_SCORES, Compared, Evaluation
from eval.reporting.retrieval_gallery import retrieval_gallery
from eval.reporting.scores import BASELINE_NAMES
from pipeline.pages.page import picture

RIGHT_FROM = 60.0  # percent: at least two of ten people said so
REFERENCES_SHOWN = 5

Sample = dict[str, Any]


def gallery_section(compared: Compared, each: int, seed: int) -> str:
    """`each` samples of each kind: right and wrong answers, best and worst captions, and random ones."""
    main = compared.main
    heading = f"<h2>{escape(main.title)} <small>{escape(main.folder.name)}</small></h2>"
    if not main.samples:
        if main.metrics is None:
            return heading + _unscored(main, each, seed) if main.predictions else ""
        wanted = escape(str(main.folder / PER_SAMPLE))
        return f'{heading}<p class="note">No samples: run eval.score with --per-sample {wanted}.</p>'
    if main.kind == "retrieval":
        return heading + retrieval_gallery(main, each, seed)
    asked = main.kind in QUESTION_SCORES
    score = QUESTION_SCORES.get(main.kind, "cider")
    identity, text = ("question_id", "answer") if asked else ("image_id", "caption")
    others = {
        BASELINE_NAMES[name]: {sample[identity]: str(sample[text]) for sample in baseline.samples}
        for name, baseline in compared.baselines.items()
    }
    card: Callable[[Sample], str] = lambda sample: _card(  # noqa: E731  (with its type)
        score, sample, picture(main.images[sample["image_id"]], str(sample[text])),
        {name: texts[sample[identity]] for name, texts in others.items() if sample[identity] in texts},
    )  # fmt: skip
    parts = []
    for title, chosen in _choices(main.samples, score, identity, each, seed):
        if chosen:
            parts.append(f'<h3>{title}</h3><div class="cards">{"".join(map(card, chosen))}</div>')
    return heading + "".join(parts)


def _unscored(main: Evaluation, each: int, seed: int) -> str:
    """Random predictions of an evaluation that nobody scored: a picture and what was said of it."""
    cards = [
        f'<article class="card"><div class="picture">{picture(main.images[entry["id"]], str(entry["text"]))}</div>'
        f'<div class="body"><p class="prediction">{_text(str(entry["text"]))}</p></div></article>'
        for entry in _draw(random.Random(f"gallery, seed {seed}"), main.predictions, each)
    ]
    return f'<h3>Random, not scored</h3><div class="cards">{"".join(cards)}</div>'


def _choices(
    samples: Sequence[Sample], score: str, identity: str, each: int, seed: int
) -> list[tuple[str, list[Sample]]]:
    """Titled picks. Answers: by a seeded draw among the right and among the wrong; captions: by their score."""
    order = sorted(samples, key=lambda sample: str(sample[identity]))
    rng = random.Random(f"gallery, seed {seed}")
    if score != "cider":
        right = [sample for sample in order if sample[score] >= RIGHT_FROM]
        wrong = [sample for sample in order if sample[score] == 0]
        return [
            (f"Random answers, {each} of {len(order)}", _draw(rng, order, each)),
            (f"Right answers, {each} of {len(right)}", _draw(rng, right, each)),
            (f"Wrong answers, {each} of {len(wrong)}", _draw(rng, wrong, each)),
        ]
    by_score = sorted(order, key=lambda sample: -float(sample[score]))
    return [
        ("Random", _draw(rng, order, each)),
        ("Best by CIDEr", by_score[:each]),
        ("Worst by CIDEr", by_score[::-1][:each]),
    ]


def _draw(rng: random.Random, samples: Sequence[Sample], count: int) -> list[Sample]:
    return rng.sample(list(samples), min(count, len(samples)))


def _card(score: str, sample: Sample, shown: str, others: dict[str, str]) -> str:
    body = _caption(sample) if score == "cider" else _answer(sample, sample[score])
    baselines = "".join(
        f'<p class="other"><span>{escape(name.lower())}</span> {_text(text)}</p>' for name, text in others.items()
    )
    return (
        f'<article class="card"><div class="picture">{shown}</div><div class="body">{body}{baselines}</div></article>'
    )


def _answer(sample: Sample, accuracy: float) -> str:
    verdict = "right" if accuracy >= RIGHT_FROM else "partly" if accuracy > 0 else "wrong"
    people: Counter[str] = Counter(sample["answers"])
    given = ", ".join(
        f"{escape(answer)}{f' &times;{count}' if count > 1 else ''}" for answer, count in people.most_common()
    )
    return (
        f'<p class="question">{escape(sample["question"] or "")}</p>'
        f'<p class="prediction {verdict}">{_text(sample["answer"])}<span class="score">{accuracy:.0f}</span></p>'
        f'<p class="references">{"People" if len(sample["answers"]) > 1 else "Answer"}: {given}</p>'
    )


def _caption(sample: Sample) -> str:
    domain = f'<span class="chip">{escape(sample["domain"])}</span>' if "domain" in sample else ""
    references = "".join(f"<li>{escape(each)}</li>" for each in sample["references"][:REFERENCES_SHOWN])
    return (
        f'<p class="prediction">{_text(sample["caption"])}<span class="score">CIDEr {sample["cider"]:.0f}</span></p>'
        f'{domain}<ul class="references">{references}</ul>'
    )


def _text(text: str) -> str:
    return escape(text) or "<i>(nothing)</i>"
