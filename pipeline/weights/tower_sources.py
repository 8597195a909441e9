"""Where the frozen towers of a recipe come from: their names on the hub, or local folders, and their licences."""

import re
from dataclasses import dataclass
from pathlib import Path

from pipeline.config import Recipe

HF_HUB = "hf-hub:"
HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
UNKNOWN = "not known here; ask its owner"
LICENCES = {  # repository on the hub -> licence, not compared with its page: none could be reached
    "facebook/opt-": "OPT-175B licence: research only, not commercial",
    "google/flan-t5-": "apache-2.0",
    "google-bert/bert-": "apache-2.0",
}
MOVED = {"bert-base-uncased": "google-bert/bert-base-uncased", "bert-large-uncased": "google-bert/bert-large-uncased"}


@dataclass(frozen=True)
class Tower:
    """A part of the model: `repository` on the hub with its `revision`, or None when `name` is a local folder."""

    part: str
    name: str
    repository: str | None
    licence: str
    revision: str | None = None


def towers_of(recipe: Recipe) -> list[Tower]:
    """The image encoder, BERT, and the language model of stage 2."""
    found = [_vision(recipe.vision.name), _of_transformers("Q-Former's start", recipe.qformer.bert)]
    return [*found, _of_transformers("language model", recipe.language.name)] if recipe.language else found


def _vision(name: str) -> Tower:
    from pipeline.models.encoders import TIMM_FOLDER, TRANSFORMERS

    part = "image encoder"
    if name.startswith(TRANSFORMERS):
        return _of_transformers(part, name.removeprefix(TRANSFORMERS))
    if name.startswith(TIMM_FOLDER):
        return Tower(part, name.removeprefix(TIMM_FOLDER), None, UNKNOWN)
    from timm.models import get_pretrained_cfg

    known = name.removeprefix(HF_HUB).removeprefix("timm/")
    try:
        config = get_pretrained_cfg(known) if "/" not in known else None
    except (RuntimeError, KeyError):  # timm has no such model
        config = None
    licence = (config.license if config else None) or UNKNOWN
    if name.startswith(HF_HUB):
        repository, _, revision = name.removeprefix(HF_HUB).partition("@")
        return Tower(part, name, repository, licence, revision or None)
    return Tower(part, name, (config.hf_hub_id if config else None) or f"timm/{name}", licence)


def _of_transformers(part: str, name: str) -> Tower:
    if Path(name).exists() or not HUB_ID.fullmatch(name):
        return Tower(part, name, None, UNKNOWN)
    full = MOVED.get(name, name)
    licence = next((each for begin, each in LICENCES.items() if full.startswith(begin)), UNKNOWN)
    return Tower(part, name, name, licence)
