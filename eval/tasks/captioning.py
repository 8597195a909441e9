"""Captions of COCO, Flickr30K or NoCaps pictures: the prompt, and the official list of {image_id, caption}."""

import json
from collections.abc import Iterable
from pathlib import Path

from eval.sets.official_files import SampleId, field_of
from eval.sets.samples import TaskData
from eval.tasks.predictions import Entry
from pipeline.config import Recipe
from pipeline.files import replace_file

DEFAULT_PROMPT = "a photo of"  # paper, appendix: COCO captioning
DECODING = {"num_beams": 5, "max_new_tokens": 30, "min_new_tokens": None, "length_penalty": 1.0}
# By the kind of language model. The paper's code counts the 4 tokens of BOS and prompt among a causal model's 8.
MIN_NEW_TOKENS = {"causal": 4, "seq2seq": 8}


def default_prompt(recipe: Recipe, _language_kind: str) -> str:
    """The prompt that a model was fine-tuned with, else the paper's."""
    tuned = recipe.language.prompt if recipe.language else ""
    return tuned if tuned and "{}" not in tuned else DEFAULT_PROMPT


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
