"""Recipes that stream shards of small samples, and the samples that a rank gets from them."""

import io
import tarfile
from typing import Any

from pipeline.config import Recipe, parse_recipe
from pipeline.data.loader import build_loader, open_source
from tests.support.tiny_shards import tiny_sample

SHARDS, PER_SHARD = 8, 6
NAMES = f"tiny-000-{{000000..{SHARDS - 1:06d}}}.tar"
ALL_KEYS = {tiny_sample(number, 0, 3, "web", "tiny").key for number in range(SHARDS * PER_SHARD)}


def recipe_of(urls: str | list[str] | None = None, num_workers: int = 0, steps: int = 12, **data: Any) -> Recipe:
    content = {
        "stage": 1,
        "vision": {"name": "x", "image_size_px": 8},
        "data": {"num_workers": num_workers, **({"urls": urls} if urls else {}), **data},
        "batch": {"global_size": 8, "micro_size": 2},
        "run": {"output": "none", "steps": steps},
    }
    return parse_recipe(content)


def keys_of(samples: Any) -> list[tuple[str, int]]:
    return [(sample.key, sample.corrupt) for sample in samples]


def keys(recipe: Recipe, rank: int = 0, world_size: int = 1, first_step: int = 0) -> list[str]:
    """The keys of this rank's samples, in order."""
    loader: Any = build_loader(recipe, open_source(recipe, world_size), keys_of, rank, world_size, first_step)  # type: ignore[arg-type]
    return [key for micro in loader for key, _ in micro]


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))
