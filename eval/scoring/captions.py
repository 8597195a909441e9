"""Captions: BLEU, ROUGE-L, CIDEr, on request METEOR and SPICE; NoCaps also by domain, one idf for all."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eval.metrics.bootstrap import Floats
from eval.metrics.captions import MAX_NGRAM, caption_scores, corpus_bleu
from eval.metrics.java_program import find_java
from eval.metrics.meteor import meteor, meteor_statistics, packaged_jar
from eval.metrics.ptb_tokens import tokenize
from eval.metrics.spice import check_spice, spice_scores
from eval.scoring.tables import Scored, Table
from eval.sets.caption_references import CaptionReferences, read_caption_references
from eval.sets.captioned_images import NOCAPS_DOMAINS
from eval.sets.official_files import SampleId, check_same_ids, read_predictions
from pipeline.progress_line import ProgressLine

PROTOCOLS = {"captions": "captions/pycocoevalcap-1.2", "nocaps": "nocaps/idf-all"}
BLEU_NAMES = tuple(f"bleu_{n}" for n in range(1, MAX_NGRAM + 1))


@dataclass(frozen=True)
class OutsideSteps:
    """The metrics that need Java: METEOR by pycocoevalcap's jar, SPICE by the user's."""

    meteor: bool = False
    spice: Path | None = None

    def check(self) -> None:
        """Raise ValueError in one line, before anything is computed, when a wanted metric cannot run."""
        if self.spice:
            check_spice(self.spice)
        if self.meteor:
            find_java("METEOR")
            packaged_jar()

    def not_computed(self) -> dict[str, str]:
        """The metrics that were left out, and how to get them."""
        hints = {
            "meteor": "run eval.score with --meteor (needs java)",
            "spice": "run eval.score with --spice spice-1.0.jar (needs Java 8 to 14)",
        }
        return {name: hint for name, hint in hints.items() if not getattr(self, name)}


@dataclass(frozen=True)
class _Metric:
    """Some metrics of all images: their sums [images, S], the score of sums [..., S], and each image's [images, M]."""

    names: Sequence[str]
    sums: Floats
    score: Any
    per_image: Floats


def score_captions(
    task: str,
    predictions_path: Path,
    annotations_path: Path,
    split: str | None = None,
    outside: OutsideSteps = OutsideSteps(),
) -> Scored:
    """Every image of the annotation file (of its split) must have one caption, and no other image one."""
    outside.check()
    references = read_caption_references(annotations_path, split, of_nocaps=task == "nocaps")
    predictions = read_predictions(predictions_path, "image_id", "caption")
    check_same_ids(predictions_path, predictions, annotations_path, references.captions)
    images = list(references.captions)
    if task == "nocaps":
        _check_domains(annotations_path, references)
    tokens = tokenize([predictions[image] for image in images]), _tokenised_references(references)
    metrics = _measure(*tokens, outside)
    members = {"overall": np.arange(len(images))}
    if task == "nocaps":
        domains = np.array([references.domains[image] for image in images])
        of_domain = {name: np.flatnonzero(domains == name) for name in NOCAPS_DOMAINS}
        members |= {name: rows for name, rows in of_domain.items() if len(rows)}
    tables = [
        Table([(name, PROTOCOLS[task], subset) for name in metric.names], metric.sums[rows], metric.score)
        for subset, rows in members.items()
        for metric in metrics
    ]
    samples = _samples(images, predictions, references, metrics)
    return Scored(task, len(images), tables, samples, more={"not_computed": outside.not_computed()})


def _check_domains(path: Path, references: CaptionReferences) -> None:
    for image in references.captions:
        domain = references.domains.get(image)
        if domain not in NOCAPS_DOMAINS:
            raise ValueError(
                f"{path}: image {image!r} has domain {domain!r}, not one of {NOCAPS_DOMAINS}; name NoCaps' "
                "official file"
            )


def _tokenised_references(references: CaptionReferences) -> list[list[str]]:
    flat = tokenize([caption for captions in references.captions.values() for caption in captions])
    ends = np.cumsum([len(captions) for captions in references.captions.values()])
    return [flat[end - len(c) : end] for c, end in zip(references.captions.values(), ends, strict=True)]


def _measure(predictions: list[str], references: list[list[str]], outside: OutsideSteps) -> list[_Metric]:
    scores = caption_scores(predictions, references)
    means = np.column_stack([scores.rouge_l, scores.cider])
    metrics = [
        _Metric(BLEU_NAMES, scores.bleu_statistics, lambda totals: 100 * corpus_bleu(totals), scores.bleu),
        _mean_metric(["rouge_l", "cider"], means),
    ]
    if outside.meteor:
        with ProgressLine(f"METEOR of {len(predictions):,} captions"):
            statistics = meteor_statistics(predictions, references)
        metrics.append(
            _Metric(["meteor"], statistics, lambda totals: 100 * meteor(totals)[..., None], meteor(statistics)[:, None])
        )
    if outside.spice:
        with ProgressLine(f"SPICE of {len(predictions):,} captions"):
            metrics.append(_mean_metric(["spice"], spice_scores(predictions, references, outside.spice)[:, None]))
    return metrics


def _mean_metric(names: Sequence[str], per_image: Floats) -> _Metric:
    """Means over images; an image without a score (NaN) does not count."""
    counted = ~np.isnan(per_image)
    sums = np.hstack([np.where(counted, per_image, 0.0), counted])
    width = len(names)
    return _Metric(names, sums, lambda totals: 100 * totals[..., :width] / totals[..., width:], per_image)


def _samples(
    images: Sequence[SampleId],
    predictions: dict[SampleId, str],
    references: CaptionReferences,
    metrics: Sequence[_Metric],
) -> list[dict[str, Any]]:
    names = [name for metric in metrics for name in metric.names]
    values = np.hstack([metric.per_image for metric in metrics])
    return [
        {
            "image_id": image,
            "caption": predictions[image],
            "references": references.captions[image],
            **({"domain": references.domains[image]} if image in references.domains else {}),
            **{name: round(100 * float(value), 4) for name, value in zip(names, row, strict=True)},
        }
        for image, row in zip(images, values, strict=True)
    ]
