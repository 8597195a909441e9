"""The sources that an evaluation's weights were trained on, and what they share with published sets."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from eval.reporting.evaluations import Evaluation

MOST_STAGES = 4  # of training, each from the weights of the one before
WEIGHTS = "trainable.safetensors"
MOST_HEADER_BYTES = 100_000_000  # the limit of safetensors
KNOWN_FILE = Path(__file__).with_name("shared_pictures.yaml")


def known_overlaps(evaluations: Sequence[Evaluation]) -> list[tuple[str, str]]:
    """(training source, what it shares) for each source that weights evaluated on this set were trained on.

    Only published sets and parts of them count: of other pictures nothing is known.
    """
    known = yaml.safe_load(KNOWN_FILE.read_text(encoding="utf-8"))
    found = {
        (source, known.get(source, {}).get(each.format_of))
        for each in evaluations
        if each.is_of_published
        for source in _sources(each)[0]
    }
    return sorted((source, why) for source, why in found if why)


def of_unknown_training(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """Evaluations on a published set whose training data is not fully known."""
    return [each for each in evaluations if each.is_of_published and not _sources(each)[1]]


def _sources(evaluation: Evaluation) -> tuple[set[str], bool]:
    """The sources of all stages of training, and whether they are all known.

    Not known are: the training of converted weights, data from URLs, and a manifest or weights that are missing.
    """
    from pipeline.data.manifest import load_manifest

    sources, recipe, all_known = set[str](), evaluation.task.get("recipe"), evaluation.is_trained_here
    for _ in range(MOST_STAGES):
        if not recipe:
            return sources, False
        manifest = recipe.get("data", {}).get("manifest")
        try:
            sources |= {shard.source for shard in load_manifest(Path(manifest or "")).shards}
        except (ValueError, OSError):  # it is missing, or another file is there now
            all_known = False
        if not recipe.get("init_weights"):
            break
        recipe = _recipe_of(Path(recipe["init_weights"]))
    return sources, all_known


def _recipe_of(weights: Path) -> dict[str, Any] | None:
    """The recipe in the metadata of native weights, read without torch. None for missing or converted weights."""
    newest = sorted(weights.glob("checkpoints/step_*/COMPLETE"))[-1:]
    file = newest[0].parent / WEIGHTS if newest else weights / WEIGHTS if weights.is_dir() else weights
    try:
        with file.open("rb") as opened:
            size = int.from_bytes(opened.read(8), "little")
            header = json.loads(opened.read(min(size, MOST_HEADER_BYTES)))
        if "converted_from" in header["__metadata__"]:  # its recipe names the towers, not the training
            return None
        found = json.loads(header["__metadata__"]["recipe"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, dict) else None
