"""The task nocaps: captions of NoCaps' pictures, scored by domain."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from eval.catalogue.task import EvaluationTask, Kind
from eval.sets.captioned import load_nocaps

if TYPE_CHECKING:
    from eval.scoring.tables import Scored


def _score(options: argparse.Namespace, predictions: Path) -> "Scored":
    from eval.scoring.captions import OutsideSteps, score_captions

    outside = OutsideSteps(options.meteor, options.spice)
    return score_captions("nocaps", predictions, options.annotations, options.split, outside)


NOCAPS = EvaluationTask(
    name="nocaps",
    kind=Kind.CAPTIONS,
    split="val",
    load=load_nocaps,
    score=_score,
    predictions="JSON list of {image_id, caption}",
)
