"""Answers to questions about pictures: the prompts, and the official list of {question_id, answer}."""

import json
from collections.abc import Iterable
from pathlib import Path

from eval.sets.official_files import SampleId, field_of
from eval.sets.samples import Sample, TaskData
from eval.tasks.predictions import Entry
from pipeline.config import Recipe
from pipeline.files import replace_file
from pipeline.prompts import as_trained, fill, question_prompt, read_by_qformer


def default_prompt(recipe: Recipe, language_kind: str) -> str:
    """The prompt that a model was fine-tuned with, else the paper's."""
    return question_prompt(recipe, language_kind)


def prompts(data: TaskData, prompt: str, recipe: Recipe) -> dict[SampleId, str]:
    """Each question in the prompt, in place of {}. Raises ValueError for a prompt without exactly one {}."""
    return {sample.id: fill(prompt, _question(sample, recipe)) for sample in data.samples}


def questions(data: TaskData, recipe: Recipe, filled: dict[SampleId, str]) -> dict[SampleId, str] | None:
    """What the Q-Former reads beside the picture; None where it reads nothing."""
    asked = {each.id: read_by_qformer(_question(each, recipe), filled[each.id], recipe) for each in data.samples}
    return {sample_id: read for sample_id, read in asked.items() if read is not None} or None


def _question(sample: Sample, recipe: Recipe) -> str:
    assert sample.question is not None, "a sample of a question task has one"
    return as_trained(sample.question, recipe)


def write_official(folder: Path, entries: Iterable[Entry]) -> Path:
    """predictions.json, as the VQA evaluation server takes it: raw answers."""
    path = folder / "predictions.json"
    official = [
        {"question_id": entry["id"], "answer": field_of(folder / "predictions.jsonl", entry, "text", (str,))}
        for entry in entries
    ]
    replace_file(path, json.dumps(official, indent=0) + "\n")
    return path
