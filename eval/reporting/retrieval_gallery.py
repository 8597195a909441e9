"""Retrieval to look at: texts found for an image, and images found for a text, the right ones marked."""

import random
from html import escape
from pathlib import Path
from typing import Any

from eval.reporting.evaluations import PER_SAMPLE, Evaluation
from eval.sets.captioned import load_retrieval
from eval.sets.samples import RetrievalData
from pipeline.pages.page import picture

FOUND_SHOWN = 5


def retrieval_gallery(main: Evaluation, each: int, seed: int) -> str:
    """Random, best and worst queries of both directions, by the last stage that was scored; the best by a draw among
    those of the best rank, which are many."""
    task = main.task
    limit = None if task["limit"] == "all" else int(task["limit"])
    try:
        data = load_retrieval(Path(task["data"]), task["split"], limit)
    except ValueError as error:
        return f'<p class="note">No samples: {escape(str(error))}</p>'
    protocol = [name for name in main.samples[0] if name.startswith("ret/")][-1]
    ranked = [sample for sample in main.samples if protocol in sample]
    paths = list(data.image_paths.values())
    _check_range(main, ranked, protocol, data)
    parts = []
    for direction, title in (("image", "Texts for an image"), ("text", "Images for a text")):
        queries = [sample for sample in ranked if direction in sample]
        rng = random.Random(f"gallery, seed {seed}")
        chosen = rng.sample(queries, min(each, len(queries)))
        worst = sorted(queries, key=lambda sample: -int(sample[protocol]["rank"]))[:each]
        top = min((sample[protocol]["rank"] for sample in queries), default=0)
        best = [sample for sample in queries if sample[protocol]["rank"] == top]
        best = rng.sample(best, min(each, len(best)))
        card = _image_card if direction == "image" else _text_card
        for kind, picked in (("random", chosen), ("best", best), ("worst", worst)):
            cards = "".join(card(sample, sample[protocol], data, paths) for sample in picked)
            parts.append(f'<h3>{title}, {kind}</h3><div class="cards">{cards}</div>')
    return "".join(parts)


def _check_range(main: Evaluation, ranked: list[dict[str, Any]], protocol: str, data: RetrievalData) -> None:
    """Raise ValueError for samples of another gallery than the data folder has now."""
    images, texts = len(data.image_paths), len(data.texts)
    for sample in ranked:
        query, found = ("image", texts) if "image" in sample else ("text", images)
        size = images if query == "image" else texts
        if not (0 <= sample[query] < size and all(0 <= place < found for place in sample[protocol]["first"])):
            raise ValueError(
                f"{main.folder / PER_SAMPLE}: {query} {sample[query]}: not of the {images} images and {texts} texts of "
                f"{data.annotations}; score anew"
            )


def _image_card(sample: dict[str, Any], ranking: dict[str, Any], data: RetrievalData, paths: list[Path]) -> str:
    image = sample["image"]
    found = "".join(
        f'<li class="{"right" if data.text_image[text] == image else "wrong"}">{escape(data.texts[text])}</li>'
        for text in ranking["first"][:FOUND_SHOWN]
    )
    return (
        f'<article class="card"><div class="picture">{picture(paths[image], "the query")}</div><div class="body">'
        f'<ol class="found">{found}</ol>{_rank(ranking)}</div></article>'
    )


def _text_card(sample: dict[str, Any], ranking: dict[str, Any], data: RetrievalData, paths: list[Path]) -> str:
    text = sample["text"]
    right = data.text_image[text]
    found = "".join(
        f'<span class="{"right" if image == right else "wrong"}">{picture(paths[image], "found")}</span>'
        for image in ranking["first"][:FOUND_SHOWN]
    )
    return (
        f'<article class="card wide"><div class="body"><p class="question">{escape(data.texts[text])}</p>'
        f'<div class="strip">{found}</div>{_rank(ranking)}</div></article>'
    )


def _rank(ranking: dict[str, Any]) -> str:
    return f'<p class="references">first right one at place {ranking["rank"] + 1}</p>'
