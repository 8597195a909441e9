"""Captions: BLEU, ROUGE-L and CIDEr overall; for NoCaps also by domain, under one idf over the whole set."""

from pathlib import Path
from typing import Any

import numpy as np

from eval.metrics.bootstrap import Floats, interval
from eval.metrics.captions import MAX_NGRAM, CaptionScores, caption_scores, corpus_bleu
from eval.metrics.ptb_tokens import tokenize
from eval.official_files import check_same_ids, read_caption_references, read_predictions
from eval.scoring.rows import metric_row, metrics_file

PROTOCOLS = {"captions": "captions/pycocoevalcap-1.2", "nocaps": "nocaps/idf-all"}
DOMAINS = ("in-domain", "near-domain", "out-domain")
NAMES = (*(f"bleu_{n}" for n in range(1, MAX_NGRAM + 1)), "rouge_l", "cider")


def score_captions(
    task: str, predictions_path: Path, annotations_path: Path, split: str | None = None
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Every image of the annotation file (of its split) must have one caption, and no other image one."""
    references = read_caption_references(annotations_path, split)
    predictions = read_predictions(predictions_path, "image_id", "caption")
    check_same_ids(predictions_path, predictions, annotations_path, references.captions)
    images = list(references.captions)
    if task == "nocaps":
        strange = [image for image in images if references.domains.get(image) not in DOMAINS]
        if strange:
            domain = references.domains.get(strange[0])
            raise ValueError(f"{annotations_path}: image {strange[0]!r} has domain {domain!r}, not one of {DOMAINS}")

    flat = tokenize([caption for image in images for caption in references.captions[image]])
    ends = np.cumsum([len(references.captions[image]) for image in images])
    tokenized = [flat[end - len(references.captions[image]) : end] for image, end in zip(images, ends, strict=True)]
    scores = caption_scores(tokenize([predictions[image] for image in images]), tokenized)

    rows = _rows(PROTOCOLS[task], "overall", scores, np.arange(len(images)))
    if task == "nocaps":
        for domain in DOMAINS:
            members = np.flatnonzero([references.domains[image] == domain for image in images])
            if len(members):
                rows += _rows(PROTOCOLS[task], domain, scores, members)
    samples = [
        {
            "image_id": image,
            "caption": predictions[image],
            "references": references.captions[image],
            **({"domain": references.domains[image]} if image in references.domains else {}),
            **{
                name: round(100 * float(value), 4) for name, value in zip(NAMES, _per_image(scores)[place], strict=True)
            },
        }
        for place, image in enumerate(images)
    ]
    return metrics_file(task, len(images), rows), samples


def _per_image(scores: CaptionScores) -> Floats:
    return np.column_stack([scores.bleu, scores.rouge_l, scores.cider])


def _rows(protocol: str, subset: str, scores: CaptionScores, members: np.ndarray[Any, Any]) -> list[dict[str, Any]]:
    """Corpus BLEU and mean ROUGE-L and CIDEr of some images. The idf stays that of all images scored."""

    def statistic(totals: Floats) -> Floats:
        means = totals[..., -3:-1] / totals[..., -1:]
        return np.concatenate([corpus_bleu(totals[..., :-3]), means], axis=-1)

    sums = np.column_stack([scores.bleu_statistics, scores.rouge_l, scores.cider, np.ones(len(scores.cider))])[members]
    values = statistic(sums.sum(axis=0))
    low, high = interval(sums, statistic)
    return [
        metric_row(name, protocol, subset, *(100 * bound for bound in bounds))
        for name, *bounds in zip(NAMES, values, low, high, strict=True)
    ]
