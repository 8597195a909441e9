"""What a run's places hold, by fingerprint: so that a folder may move, and no other may take its place."""

from contextlib import suppress

from pipeline.config import Recipe
from pipeline.files import sha256_of
from pipeline.models.build import build_tokenizer
from pipeline.models.fingerprint import fingerprint_of_qformer, fingerprint_of_settings
from pipeline.training.stage1_task import Stage1Task
from pipeline.training.stage2_task import Stage2Task
from pipeline.training.task import vision_of
from pipeline.weights import native


def identities(task: Stage1Task | Stage2Task, recipe: Recipe) -> dict[str, str]:
    """Of frozen weights; of structure, configuration and tokenizer of each tower; of the files that a run starts from.

    Initial weights that are gone have none: a run that has checkpoints does not need them any more.
    """
    found = task.towers.fingerprints()
    found["vision.settings"] = fingerprint_of_settings([vision_of(task)])
    reads = recipe.stage == 1 or recipe.qformer.question != "none"
    found["qformer.settings"] = fingerprint_of_qformer(task.bridge, build_tokenizer(recipe.qformer) if reads else None)
    if language := task.towers.language:
        found["language.settings"] = fingerprint_of_settings([language.model], language.tokenizer)
    for name in ("init_weights", "init_text_weights"):
        if path := getattr(recipe, name):
            with suppress(ValueError):
                found[name] = sha256_of(native.weights_file(path))
    return found
