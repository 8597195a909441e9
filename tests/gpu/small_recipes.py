"""Recipes for tasks that a part builds itself: only batch, optimizer and policy count; names of towers are not read."""

from pathlib import Path
from typing import Any

from pipeline.config import Recipe, parse_recipe


def small_recipe(output: Path, stage: int, language: str | None, micro_size: int, passes: int) -> Recipe:
    content: dict[str, Any] = {
        "stage": stage,
        "vision": {"name": "eva_giant_patch14_clip_224", "image_size_px": 224},
        "data": {"manifest": str(output / "none.json")},
        "batch": {"global_size": micro_size * passes, "micro_size": micro_size, "accumulation": passes},
        "optimizer": {"warmup_steps": 2},
        "run": {"output": str(output / "none"), "steps": 100},
    }
    if language:
        content["language"] = {"name": language, "precision": "fp16" if language == "opt" else "bf16"}
    return parse_recipe(content)
