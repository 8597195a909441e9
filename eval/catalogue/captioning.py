"""The task captioning: captions of COCO or Flickr30K, or of one's own pictures."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from eval.catalogue.task import EvaluationTask, Kind
from eval.sets.captioned import load_captioning
from eval.sets.own_sets import load_own_captioning

if TYPE_CHECKING:
    from eval.scoring.tables import Scored


def _score(options: argparse.Namespace, predictions: Path) -> "Scored":
    from eval.scoring.captions import OutsideSteps, score_captions

    outside = OutsideSteps(options.meteor, options.spice)
    return score_captions("captions", predictions, options.annotations, options.split, outside)


CAPTIONING = EvaluationTask(
    name="captioning",
    kind=Kind.CAPTIONS,
    split="test",
    load=load_captioning,
    load_own=load_own_captioning,
    scorer="captions",
    score=_score,
    predictions="JSON list of {image_id, caption}",
    annotations="the official captions, COCO's captions_*.json, or your own .jsonl",
)
