"""Samples of retrieval: the texts found for an image and the images found for a text, with the right ones marked."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from eval.reporting.evaluations import PER_SAMPLE, Evaluation
from eval.sets.captioned import load_retrieval
from eval.sets.own_sets import own_gallery
from eval.sets.samples import RetrievalData
from pipeline.pages.thumbnails import Thumbnail, thumbnail

FOUND_SHOWN = 5


@dataclass(frozen=True)
class RetrievalCard:
    """A query (an image or a text) with the first results, each with whether it is right.

    `rank` is that of the first right result, from 1; `before` is that of an earlier model, if there is one.
    """

    kind: str  # image or text
    query: Thumbnail | str
    found: Sequence[tuple[str | Thumbnail, bool]]
    rank: int
    before: int | None = None


def retrieval_data(main: Evaluation) -> RetrievalData:
    """The images and texts of the evaluation. Raises ValueError when they are missing or not readable."""
    limit = None if main.task["limit"] == "all" else int(main.task["limit"])
    if main.is_own:
        return own_gallery(Path(main.task["data"]), main.images, limit)
    return load_retrieval(Path(main.task["data"]), main.task["split"], limit)


def retrieval_groups(
    main: Evaluation, data: RetrievalData, each: int, seed: int
) -> list[tuple[str, list[RetrievalCard]]]:
    """Random, best and worst queries of both directions, by the last stage that was scored.

    Many queries share the best rank: random ones of them are shown.
    """
    protocol, ranked = retrieval_samples(main, data)
    groups = []
    for direction, title in (("image", "Texts for an image"), ("text", "Images for a text")):
        queries = [sample for sample in ranked if direction in sample]
        rng = random.Random(f"gallery, seed {seed}")
        drawn = rng.sample(queries, min(each, len(queries)))
        worst = sorted(queries, key=lambda sample: -int(sample[protocol]["rank"]))[:each]
        top = min((sample[protocol]["rank"] for sample in queries), default=0)
        best = [sample for sample in queries if sample[protocol]["rank"] == top]
        best = rng.sample(best, min(each, len(best)))
        for kind, chosen in (("random", drawn), ("best", best), ("worst", worst)):
            cards = [retrieval_card(direction, sample, protocol, data) for sample in chosen]
            groups.append((f"{title}, {kind}", cards))
    return groups


def retrieval_samples(main: Evaluation, data: RetrievalData) -> tuple[str, list[dict[str, Any]]]:
    """The last stage that was scored, and its samples. Raises ValueError when they are of other images or texts."""
    protocol = [name for name in main.samples[0] if name.startswith("ret/")][-1]
    ranked = [sample for sample in main.samples if protocol in sample]
    _check_range(main, ranked, protocol, data)
    return protocol, ranked


def retrieval_card(
    direction: str, sample: dict[str, Any], protocol: str, data: RetrievalData, before: int | None = None
) -> RetrievalCard:
    """A query of one direction (`image` or `text`) and what it found."""
    make = _image_card if direction == "image" else _text_card
    return replace(make(sample[direction], sample[protocol], data), before=before)


def _check_range(main: Evaluation, ranked: list[dict[str, Any]], protocol: str, data: RetrievalData) -> None:
    """Raise ValueError when the scores are not of the images and texts that the data folder has now."""
    images, texts = len(data.image_paths), len(data.texts)
    for sample in ranked:
        query, found = ("image", texts) if "image" in sample else ("text", images)
        size = images if query == "image" else texts
        if not (0 <= sample[query] < size and all(0 <= place < found for place in sample[protocol]["first"])):
            raise ValueError(
                f"{main.folder / PER_SAMPLE}: {query} {sample[query]} is not among the {images} images and {texts} "
                f"texts of {data.annotations}; run eval.score again"
            )


def _image_card(image: int, ranking: dict[str, Any], data: RetrievalData) -> RetrievalCard:
    found = [(data.texts[text], data.text_image[text] == image) for text in ranking["first"][:FOUND_SHOWN]]
    return RetrievalCard("image", _picture(data, image), found, ranking["rank"] + 1)


def _text_card(text: int, ranking: dict[str, Any], data: RetrievalData) -> RetrievalCard:
    right = data.text_image[text]
    found = [(_picture(data, image), image == right) for image in ranking["first"][:FOUND_SHOWN]]
    return RetrievalCard("text", data.texts[text], found, ranking["rank"] + 1)


def _picture(data: RetrievalData, image: int) -> Thumbnail:
    return thumbnail(list(data.image_paths.values())[image])
