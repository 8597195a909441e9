"""Whether the pairs of `validation.manifest` are held out: a manifest of training must not list the same samples."""

import numpy as np

from pipeline.config import Recipe
from pipeline.data.manifest import Manifest, Shard, load_manifest

CAPTIONED = "capfilt"  # the stage whose shards have the pictures of a raw shard


def check_held_out(recipe: Recipe, source: object) -> None:
    """Raises ValueError when both manifests list samples of one shard, or of shards made from one raw shard.

    Data from URLs are not known beforehand, and equal pictures in different raw shards are `data_prep.split`'s to find.
    """
    held = recipe.validation
    if held is None or held.on_training_data or not isinstance(source, Manifest):
        return
    weights = recipe.data.source_weights or {}
    trained: dict[str, list[Shard]] = {}
    for shard in source.shards:
        if weights.get(shard.source) != 0:
            trained.setdefault(_raw(shard), []).append(shard)
    manifest = load_manifest(held.manifest)
    for shard in manifest.shards:
        for other in trained.get(_raw(shard), ()):
            if _share_samples(manifest, shard, source, other):
                raise ValueError(
                    f"validation.manifest {held.manifest}: {shard.path} has samples that data.manifest "
                    f"{recipe.data.manifest} has too; divide the data with `python -m data_prep.split`, or set "
                    "validation.on_training_data=true"
                )


def _raw(shard: Shard) -> str:
    """The sha256 of the raw shard that has the pictures."""
    made_from = shard.provenance.get("input_sha256") if shard.provenance.get("stage") == CAPTIONED else None
    return str(made_from or shard.sha256)


def _share_samples(manifest: Manifest, shard: Shard, other_manifest: Manifest, other: Shard) -> bool:
    """Of two parts of one tar the samples are compared. Two tars of one raw shard count as sharing."""
    if shard.sha256 != other.sha256 or not (shard.of_samples and other.of_samples):
        return True
    return bool(np.isin(manifest.offsets(shard)[:, 0], other_manifest.offsets(other)[:, 0]).any())
