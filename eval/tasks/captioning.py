"""Captions of COCO, Flickr30K or NoCaps pictures: the prompt, and the official list of {image_id, caption}."""

import json
from collections.abc import Iterable
from pathlib import Path

from eval.sets.official_files import SampleId, field_of
from eval.sets.samples import TaskData
from eval.tasks.predictions import Entry
from pipeline.config import Recipe
from pipeline.files import replace_file
from pipeline.prompts import caption_prompt


def default_prompt(recipe: Recipe, _language_kind: str) -> str:
    """The prompt that a model was fine-tuned with, else the paper's."""
    return caption_prompt(recipe)


def questions(_data: TaskData, _recipe: Recipe, _filled: dict[SampleId, str]) -> None:
    """A caption answers no question."""


def prompts(data: TaskData, prompt: str, _recipe: Recipe) -> dict[SampleId, str]:
    """The same prompt for every image."""
    return {sample.id: prompt for sample in data.samples}


def write_official(folder: Path, entries: Iterable[Entry]) -> Path:
    """predictions.json, as COCO's and NoCaps' evaluation servers take it."""
    path = folder / "predictions.json"
    official = [
        {"image_id": entry["id"], "caption": field_of(folder / "predictions.jsonl", entry, "text", (str,))}
        for entry in entries
    ]
    replace_file(path, json.dumps(official, indent=0) + "\n")
    return path
