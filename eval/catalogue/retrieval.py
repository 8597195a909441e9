"""The task retrieval: texts for images and images for texts, of COCO, Flickr30K or one's own pictures."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from eval.catalogue.task import EvaluationTask, Kind
from eval.sets.captioned import load_retrieval
from eval.sets.own_sets import load_own_retrieval

if TYPE_CHECKING:
    from eval.scoring.tables import Scored


def _score(_options: argparse.Namespace, predictions: Path) -> "Scored":
    from eval.scoring.retrieval import score_retrieval

    return score_retrieval(predictions)


RETRIEVAL = EvaluationTask(
    name="retrieval",
    kind=Kind.RETRIEVAL,
    split="test",
    load=load_retrieval,
    load_own=load_own_retrieval,
    score=_score,
    predictions=".npz with itc [images, texts], text_image [texts]; optional: itm (NaN where not scored), k_test",
    annotations="",
)
