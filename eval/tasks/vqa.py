"""Answers to questions about pictures: the prompts, and the official list of {question_id, answer}."""

import json
from collections.abc import Iterable
from pathlib import Path

from eval.sets.official_files import SampleId, field_of
from eval.sets.samples import TaskData
from eval.tasks.predictions import Entry
from pipeline.config import Recipe
from pipeline.data.captions import clean_question
from pipeline.files import replace_file

DEFAULT_PROMPTS = {"causal": "Question: {} Answer:", "seq2seq": "Question: {} Short answer:"}  # paper, section 4.1
DECODING = {"num_beams": 5, "max_new_tokens": 10, "min_new_tokens": 1, "length_penalty": -1.0}


def default_prompt(recipe: Recipe, language_kind: str) -> str:
    """The prompt that a model was fine-tuned with, else the paper's."""
    tuned = recipe.language.prompt if recipe.language else ""
    return tuned if "{}" in tuned else DEFAULT_PROMPTS[language_kind]


def prompts(data: TaskData, prompt: str, recipe: Recipe) -> dict[SampleId, str]:
    """Each question in the prompt, in place of {}. Raises ValueError for a prompt without exactly one {}."""
    if prompt.count("{}") != 1:
        raise ValueError(f"--prompt {prompt!r}: it needs one {{}} where the question goes")
    before, after = prompt.split("{}")
    return {sample.id: f"{before}{_as_trained(sample.question, recipe)}{after}" for sample in data.samples}


def questions(data: TaskData, recipe: Recipe, filled: dict[SampleId, str]) -> dict[SampleId, str] | None:
    """What the Q-Former reads beside the picture: the question, or the filled prompt; None where it reads neither."""
    if recipe.qformer.question == "prompt":
        return filled
    if recipe.qformer.question == "none":
        return None
    return {sample.id: _as_trained(sample.question, recipe) for sample in data.samples}


def _as_trained(question: str | None, recipe: Recipe) -> str:
    """A question as fine-tuning cleans it; as it is for a model that was not trained on questions."""
    assert question is not None, "a sample of a question task has one"
    return clean_question(question) if recipe.data.sample == "question" else question


def write_official(folder: Path, entries: Iterable[Entry]) -> Path:
    """predictions.json, as the VQA evaluation server takes it: raw answers."""
    path = folder / "predictions.json"
    official = [
        {"question_id": entry["id"], "answer": field_of(folder / "predictions.jsonl", entry, "text", (str,))}
        for entry in entries
    ]
    replace_file(path, json.dumps(official, indent=0) + "\n")
    return path
